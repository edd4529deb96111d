"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from migrator.cli.output import Format
from proxy.rewrite.model import Guard

Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn", envvar="DUALWIRE_DSN", help="The primary to migrate, postgresql://...", show_default=False
    ),
]
Output = Annotated[Format, typer.Option("--format", help="text or json.")]
File = Annotated[Path, typer.Argument(help="The migration file (pgroll's format, YAML or JSON).")]
Schema = Annotated[str, typer.Option("--schema", help="The schema of tables that the file names.")]
Retention = Annotated[
    str, typer.Option("--retention", help="How long after cutover a rollback stays possible, e.g. 24h or 0.")
]
LockWait = Annotated[float, typer.Option("--lock-wait", help="Seconds to wait for another migrator to end.")]
AckTimeout = Annotated[
    float, typer.Option("--ack-timeout", help="Seconds to wait for sidecars at each step.")
]
LockTimeout = Annotated[
    int, typer.Option("--lock-timeout", min=10, help="Milliseconds that DDL may wait in a lock queue.")
]
LockAttempts = Annotated[int, typer.Option("--lock-attempts", min=1, help="How often DDL is tried.")]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Rows of a backfill batch; adapted to its time if left out."),
]
Throttle = Annotated[
    float, typer.Option("--throttle", min=0.0, max=0.95, help="The share of time that the backfill rests.")
]
MaxRate = Annotated[float | None, typer.Option("--max-rate", min=1, help="Rows a second at most.")]
MaxLag = Annotated[float, typer.Option("--max-lag", min=0.0, help="Seconds that replicas may be behind.")]
GuardMode = Annotated[
    Guard | None,
    typer.Option(
        "--guard",
        help="What the database does about writes that come past a sidecar: sync, check or off."
        " By default what the file says, else sync.",
        show_default=False,
    ),
]
Compat = Annotated[
    bool | None,
    typer.Option(
        "--compat/--no-compat",
        help="Serve clients of the old version after it was closed, without its columns."
        " By default what the file says, else not.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
