"""The console command ``dualwire``."""

from __future__ import annotations

import platform
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from migrator.cli import processes
from migrator.errors import EXIT_BUG
from proxy.build.state import describe

app = typer.Typer(
    name="dualwire",
    help="Zero-downtime PostgreSQL schema migrations: a dual-writing sidecar and its migrator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dualwire {version('dualwire')} ({describe()}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version, and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _register(arguments: Sequence[str]) -> None:
    if processes.wanted(arguments) != "proxy":
        # A sidecar has no use for the migrator: that would be megabytes of memory beside each service.
        from migrator.cli import explain, inspect, migrate

        migrate.register(app)
        inspect.register(app)
        explain.register(app)
    processes.register(app, arguments)


def main() -> None:
    """Entry point: exit codes are 0 done, 2 usage, 3 refused, 4 differences, 5 rolled back, 6 lock, 1 a bug."""
    _register(sys.argv[1:])
    try:
        app()
    except SystemExit:
        raise
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in dualwire; please report the lines above", file=sys.stderr)
        sys.exit(EXIT_BUG)


if __name__ == "__main__":
    main()
