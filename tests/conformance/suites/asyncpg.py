"""asyncpg's own tests, against the released asyncpg.

With PGHOST set its test base takes the server named there for its own instead of starting one. The tests are copied
away from the rest of the source, so that ``import asyncpg`` finds the installed wheel.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conformance.suites.judge import Command, Run, Suite
from tests.conformance.suites.sources import Sdist

VERSION = "0.32.0"
TEST_TIMEOUT = 60


def _lay_out(source: Path, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source / "tests", directory / "tests")
    # An empty configuration of its own: pytest must not look for one above.
    (directory / "pytest.ini").write_text("[pytest]\n")


def _command(run: Run) -> Command:
    options = [
        "--quiet",
        "--tb=native",
        "--import-mode=importlib",
        "-o",
        "filterwarnings=default",
        "-p",
        "no:cacheprovider",
        f"--timeout={TEST_TIMEOUT}",
        f"--junitxml={run.report}",
    ]
    return Command(
        [str(run.python), "-m", "pytest", *options, *(run.only or ("tests",))],
        run.endpoint.variables("postgres"),
    )


SUITE = Suite(
    name="asyncpg",
    sdist=Sdist("asyncpg", VERSION, "45e64e56714d888330b884aad1dfb363d0bf43fb343e3d1a8968525f3bade478"),
    requirements=(
        f"asyncpg=={VERSION}",
        "pytest>=9,<10",
        "pytest-timeout>=2.3",
        # Imported by its tests.
        "distro>=1.9",
        "uvloop>=0.21",
    ),
    lay_out=_lay_out,
    command=_command,
    allowed=Path(__file__).parents[1] / "asyncpg_allowed.txt",
    least=290,
    # The two others are made, used and dropped by the tests.
    databases=("postgres", "testdb", "asyncpg_intro_test"),
)
