"""``dualwire demo``: a whole migration under live traffic on servers of its own, with a verdict."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console

from migrator.cluster import Cluster, ClusterError, start_cluster

from .director import Director, Plan
from .display import Display, LiveDisplay, PlainDisplay
from .report import Result

OK, BUG, DIFFERENCES = 0, 1, 4
PLAIN_WIDTH = 110
FULL_ROWS, QUICK_ROWS = 200_000, 20_000
FULL_WRITES, QUICK_WRITES = 20_500, 2_000


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A small run: under 90 seconds instead of under 6 minutes.")
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option(min=100, help="Orders before the traffic [default: 200000, quick 20000]."),
    ] = None,
    writes: Annotated[
        int | None,
        typer.Option(min=1, help="Acknowledged writes at least [default: 20500, quick 2000]."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The traffic's random seed.")] = 1,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave servers and sidecars running afterwards, until Ctrl-C.")
    ] = False,
    sabotage: Annotated[
        bool,
        typer.Option(
            "--sabotage",
            help="Turn dual writes and the guard off: proves that the check can fail (exit status 4).",
        ),
    ] = False,
    output: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """Run a whole migration under live traffic on an embedded PostgreSQL and check every row.

    A small shop under load: services of two versions behind sidecars, one job that comes past them, a ledger
    that knows what every acknowledged write must have left. The first migration is completed, the second is
    rolled back after its cutover. Exit status 0 if nothing was lost, nothing diverged and no client saw an
    error, 4 otherwise.
    """
    if output not in ("text", "json"):
        raise typer.BadParameter("must be text or json", param_hint="--format")
    plan = Plan(
        rows=rows or (QUICK_ROWS if quick else FULL_ROWS),
        seed=seed,
        writes=writes or (QUICK_WRITES if quick else FULL_WRITES),
        dwell=1.2 if quick else 5.0,
        sabotage=sabotage,
    )
    console = Console(stderr=output == "json")
    display: Display = LiveDisplay(console)
    if not console.is_terminal:
        console = Console(stderr=output == "json", width=PLAIN_WIDTH)
        display = PlainDisplay(sys.stderr if output == "json" else sys.stdout)
    try:
        with start_cluster(replicas=1) as cluster:
            status = asyncio.run(_perform(cluster, plan, display, console, output, keep))
    except ClusterError as failure:
        Console(stderr=True).print(str(failure), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BUG) from failure
    raise typer.Exit(status)


async def _perform(
    cluster: Cluster, plan: Plan, display: Display, console: Console, output: str, keep: bool
) -> int:
    """Runs the story; a signal ends it early, and whatever happens the processes are ended."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    received: list[signal.Signals] = []
    stopping = False

    def interrupt(number: signal.Signals) -> None:
        if not received and not stopping:
            task.cancel()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt, number)
    director = Director(cluster, plan, display)
    finished = False
    try:
        try:
            with display:
                await director.run()
            finished = True
            _tell(director.result, console, output)
            if keep:
                await _stay(director, console)
        except asyncio.CancelledError:
            task.uncancel()
    finally:
        stopping = True
        await director.stop()
    if not finished:
        return 128 + received[0]
    return OK if director.result.ok else DIFFERENCES


def _tell(result: Result, console: Console, output: str) -> None:
    if output == "json":
        result.print_samples(console)
        for reason in result.reasons:
            console.print(f"NOT OK: {reason}", markup=False, highlight=False, soft_wrap=True)
        print(json.dumps(result.to_json(), indent=2), flush=True)
    else:
        result.print(console)


async def _stay(director: Director, console: Console) -> None:
    """Leaves everything running for a look around."""
    console.print("Still running, until Ctrl-C:")
    dsns = {"primary": director.dsn}
    dsns["replica"] = director.cluster.replicas[0].dsn(database=director.database)
    for name, dsn in {**dsns, **director.service_dsns()}.items():
        console.print(f"  {name}: {dsn}", markup=False, highlight=False, soft_wrap=True)
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
