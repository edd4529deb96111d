"""SQLAlchemy's tests of its PostgreSQL dialect and of what it asks of every dialect, through asyncpg and psycopg.

They run from the source distribution, whose pure Python package they use: nothing of SQLAlchemy is compiled, so both
passes cost the same everywhere. A test id carries the driver and the server's version
(``JSONTest_postgresql+psycopg_18_4``), so the list of allowed differences does best with ids that end in ``*``.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.conformance.suites.judge import Command, Run, Suite
from tests.conformance.suites.sources import Sdist

VERSION = "2.1.9"
PLUGIN = "sqlalchemy_extensions"
DATABASE = "test"
TESTS = ("test/dialect/postgresql", "test/dialect/test_suite.py")
GENERATED = re.compile(r"_postgresql\+\w+(?=::)")
"""What SQLAlchemy appends to a class's name for each database; pytest selects by the name in the file."""

PREPARE = (
    ("postgres", f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"),
    ("postgres", f"CREATE DATABASE {DATABASE}"),
    ("postgres", f"ALTER DATABASE {DATABASE} SET default_text_search_config = 'pg_catalog.english'"),
    (DATABASE, "CREATE SCHEMA test_schema"),
    (DATABASE, "CREATE SCHEMA test_schema_2"),
    # Named by two tests; which order it stands for is nothing to them, and a server may come without any but C.
    (DATABASE, 'CREATE COLLATION IF NOT EXISTS "en_US" FROM "C"'),
)


def _lay_out(source: Path, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    for part in ("lib", "test"):
        shutil.copytree(source / part, directory / part)
    for file in ("setup.cfg", "pyproject.toml"):
        shutil.copy(source / file, directory)
    shutil.copy(Path(__file__).parent / "inside" / f"{PLUGIN}.py", directory)


def _command(run: Run, driver: str) -> Command:
    # Some tests build addresses from the parts of this one and want every part, also a password nobody asks for.
    endpoint = replace(run.endpoint, password=run.endpoint.password or "unasked")
    options = [
        "--quiet",
        "-p",
        PLUGIN,
        "-p",
        "no:cacheprovider",
        "--override-ini=addopts=--tb=native --strict-markers -p warnings -p logging",
        f"--dburi={endpoint.dsn(DATABASE, f'postgresql+{driver}')}",
        f"--junitxml={run.report}",
    ]
    chosen = dict.fromkeys(GENERATED.sub("", test) for test in run.only) or TESTS
    return Command([str(run.python), "-m", "pytest", *options, *chosen], {"PYTHONPATH": str(run.directory)})


def _suite(driver: str, requirement: str, least: int) -> Suite:
    return Suite(
        name=f"sqlalchemy-{driver}",
        sdist=Sdist(
            "sqlalchemy",
            VERSION,
            "d700a8b2edfb26282a470333d6bc4a454c4acda4d201a3bea7b72fa76c217d28",
            # pip asks for the metadata of what it downloads; without this it compiles for minutes to answer.
            variables=(("DISABLE_SQLALCHEMY_CEXT", "1"),),
        ),
        requirements=(
            requirement,
            "greenlet>=3.1",
            "typing-extensions>=4.12",
            "pytest>=9,<10",
            "pytest-xdist>=3.6",
        ),
        lay_out=_lay_out,
        command=partial(_command, driver=driver),
        allowed=Path(__file__).parents[1] / "sqlalchemy_allowed.txt",
        least=least,
        databases=(DATABASE,),
        prepare=PREPARE,
    )


ASYNCPG = _suite("asyncpg", "asyncpg==0.32.0", least=11_900)
PSYCOPG = _suite("psycopg", "psycopg[binary]==3.3.9", least=12_000)
