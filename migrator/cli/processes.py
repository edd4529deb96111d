"""Commands that start something else: ``proxy`` and ``demo``. Imported only when asked for, so the rest starts fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from migrator.cli.output import Format, fail
from migrator.errors import Usage


def proxy(
    config: Annotated[Path, typer.Option("--config", help="The sidecar's configuration (TOML).")],
) -> None:
    """Run a sidecar: clients in, rewritten statements out."""
    from proxy.main import run

    raise typer.Exit(run(config))


def demo_unavailable() -> None:
    """Run a whole migration under live traffic (needs the extra `demo`)."""
    fail(
        Usage("the demo needs packages that are not installed", hint="pip install 'dualwire[demo]'"),
        Format.text,
    )


def wanted(arguments: Sequence[str]) -> str:
    """The command that the arguments name."""
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def register(app: typer.Typer, arguments: Sequence[str]) -> None:
    """Add the commands; the demo's own options are loaded only if it is the one that runs."""
    app.command()(proxy)
    if wanted(arguments) == "demo":
        try:
            from migrator.demo.command import demo
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.split(".")[0] in {"migrator", "proxy"}:
                raise
            app.command("demo")(demo_unavailable)
        else:
            app.command("demo")(demo)
    else:
        app.command("demo", help="Run a whole migration under live traffic on an embedded PostgreSQL.")(
            demo_unavailable
        )
