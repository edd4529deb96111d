"""Django's tests of its database layer, with psycopg: once as Django is by default, once binding on the server.

By default Django writes parameters into the text of a statement; with server-side binding it uses the extended
protocol, here with every statement prepared at its first execution. The test databases are made, used and dropped
through what is judged, as in any Django project; that they could be dropped counts as one more test.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from tests.conformance.suites.judge import Command, Run, Suite
from tests.conformance.suites.sources import Sdist

VERSION = "5.2.19"
SETTINGS = "django_settings"
INSIDE = (SETTINGS, "django_runner")
DATABASE = "django"
LABELS = ("backends", "transactions", "transaction_hooks", "queries", "bulk_create")

PREPARE = tuple(
    ("postgres", statement)
    for name in (DATABASE, f"{DATABASE}_other")
    for statement in (
        f"DROP DATABASE IF EXISTS test_{name} WITH (FORCE)",
        f"DROP DATABASE IF EXISTS {name} WITH (FORCE)",
        f"CREATE DATABASE {name}",
    )
)


def _lay_out(source: Path, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source / "tests", directory / "tests")
    for module in INSIDE:
        shutil.copy(Path(__file__).parent / "inside" / f"{module}.py", directory)


def _command(run: Run, server_binding: bool) -> Command:
    options = [f"--settings={SETTINGS}", "--noinput", "--parallel=1"]
    # What the runner reports of itself is no label; any test makes and drops the databases.
    labels = [test for test in run.only if not test.startswith("django_runner.py")]
    if not labels:
        labels = ["transaction_hooks"] if run.only else list(LABELS)
    return Command(
        [str(run.python), "tests/runtests.py", *options, *labels],
        {
            **run.endpoint.variables(DATABASE),
            "PYTHONPATH": str(run.directory),
            "DJANGO_REPORTS": str(run.report),
            **({"DJANGO_SERVER_BINDING": "1"} if server_binding else {}),
        },
    )


def _suite(name: str, server_binding: bool, least: int) -> Suite:
    return Suite(
        name=name,
        sdist=Sdist("django", VERSION, "ad03d8abc51dbff95ebf34b27123cf0c26a3b62db7ba0cd520783686362533d1"),
        requirements=(
            f"django=={VERSION}",
            "psycopg[binary]==3.3.9",
            "psycopg-pool>=3.2",
            "tblib>=3",
            "unittest-xml-reporting>=4,<5",
        ),
        lay_out=_lay_out,
        command=partial(_command, server_binding=server_binding),
        allowed=Path(__file__).parents[1] / "django_allowed.txt",
        least=least,
        databases=("postgres", DATABASE, f"{DATABASE}_other", f"test_{DATABASE}", f"test_{DATABASE}_other"),
        prepare=PREPARE,
    )


SUITE = _suite("django", server_binding=False, least=840)
SERVER_BINDING = _suite("django-server-binding", server_binding=True, least=840)
