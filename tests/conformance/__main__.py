"""``python -m tests.conformance``: the outside judges that are commands; ``make conformance`` runs it.

Without names every one is run. Exit status: 0 no unexpected difference, 1 there are some, or the sidecar misbehaved,
2 usage, 3 a suite could not be fetched or did not run.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from tests.conformance.suites.judge import Suite, judge
from tests.conformance.suites.servers import Setting
from tests.conformance.suites.sources import SuiteError

SUITES = {
    "asyncpg": "tests.conformance.suites.asyncpg:SUITE",
    "sqlalchemy-asyncpg": "tests.conformance.suites.sqlalchemy:ASYNCPG",
    "sqlalchemy-psycopg": "tests.conformance.suites.sqlalchemy:PSYCOPG",
    "django": "tests.conformance.suites.django:SUITE",
    "django-server-binding": "tests.conformance.suites.django:SERVER_BINDING",
}
"""The module of each suite, and the name of the `Suite` in it. Loaded only when asked for."""
COMMANDS = {
    "pgproto": "tests.conformance.run_pgproto",
    "regress": "tests.conformance.run_regress",
    "corpus": "tests.conformance.run_corpus",
    "pgbench": "tests.conformance.run_pgbench",
}
"""Judges that are no suites of somebody's tests: the module whose ``main`` takes the rest of the command line."""


def load(name: str) -> Suite:
    """The suite of a name in `SUITES`."""
    module, _, attribute = SUITES[name].partition(":")
    suite: Suite = getattr(importlib.import_module(module), attribute)
    return suite


def command(name: str, arguments: list[str]) -> int:
    """Runs one of `COMMANDS`; gives its exit status."""
    status: int = importlib.import_module(COMMANDS[name]).main(arguments)
    return status


def main() -> int:
    """Run what the command line asks for."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        return command(sys.argv[1], sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Outside judges.")
    parser.add_argument(
        "suite", nargs="*", help=f"which to run: {', '.join([*SUITES, *COMMANDS])}; all without"
    )
    parser.add_argument("--pool-mode", choices=("session", "transaction"), default="session")
    parser.add_argument(
        "--replicas", type=int, default=0, metavar="N", help="let the sidecar read from N replicas"
    )
    parser.add_argument(
        "--control-schema", action="store_true", help="run `dualwire init` first: rewriting on, with no rule"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEST", help="only this test; may be repeated"
    )
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.suite if name not in SUITES]:
        parser.error(f"unknown suite {', '.join(unknown)}: there are {', '.join(SUITES)}")
    status = 0
    for name in chosen.suite or SUITES:
        suite = load(name)
        setting = Setting(suite.databases, chosen.pool_mode, chosen.replicas, chosen.control_schema)
        try:
            judgement = judge(suite, setting, tuple(chosen.only))
        except SuiteError as error:
            print(f"[{name}] {error}", file=sys.stderr)
            status = max(status, 3)
        else:
            status = max(status, 0 if judgement.passed else 1)
    if not chosen.suite:
        status = max(status, *(command(name, []) for name in COMMANDS))
    return status


if __name__ == "__main__":
    sys.exit(main())
