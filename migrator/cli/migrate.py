"""Commands that change something: init, start, verify, cutover, rollback, complete, run, pause, resume."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from migrator import engine
from migrator.cli import options as opt
from migrator.cli.output import Format, parse_duration, perform, show
from migrator.control import install, store
from migrator.database import connect
from migrator.errors import Refused
from migrator.locks import LockOptions
from migrator.phases import cutover as cutover_phase
from migrator.phases import rollback as rollback_phase
from migrator.phases import verify as verify_phase
from migrator.phases.context import BackfillOptions, Options
from migrator.progress import Progress
from proxy.control.routing import Phase
from proxy.rewrite.model import Guard

UNTIL = ("prepared", "expanded", "backfilled", "verified", "cutover")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (init, start, verify, cutover, rollback, complete, run, pause, resume):
        app.command()(command)


def _until(text: str, allowed: tuple[str, ...]) -> Phase:
    if text not in allowed:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(allowed)}")
    return cast(Phase, text)


def _options(
    ack_timeout: float = 30.0,
    lock_timeout: int = 250,
    lock_attempts: int = 60,
    batch_size: int | None = None,
    throttle: float = 0.0,
    max_rate: float | None = None,
    max_lag: float = 5.0,
    guard: Guard | None = None,
    compat: bool | None = None,
) -> Options:
    return Options(
        lock=LockOptions(timeout_ms=lock_timeout, attempts=lock_attempts),
        backfill=BackfillOptions(
            batch_rows=batch_size, throttle=throttle, max_rate=max_rate, max_lag=max_lag
        ),
        ack_timeout=ack_timeout,
        guard=guard,
        compat=compat,
    )


def init(dsn: opt.Dsn = None, output: opt.Output = Format.text) -> None:
    """Install the control schema `dualwire` in a database, or upgrade it. Safe to run again."""

    async def work() -> bool:
        conn = await connect(dsn)
        try:
            return await install.install(conn)
        finally:
            await conn.close()

    new = perform(work(), output)
    said = "control schema installed" if new else "control schema is up to date"
    show({"installed": new, "version": install.VERSION}, said, output)


def start(
    file: opt.File,
    until: Annotated[
        str, typer.Option("--until", help=f"Stop after this phase: {', '.join(UNTIL)}.")
    ] = "verified",
    dsn: opt.Dsn = None,
    schema: opt.Schema = "public",
    output: opt.Output = Format.text,
    lock_wait: opt.LockWait = 5.0,
    ack_timeout: opt.AckTimeout = 30.0,
    lock_timeout: opt.LockTimeout = 250,
    lock_attempts: opt.LockAttempts = 60,
    batch_size: opt.BatchSize = None,
    throttle: opt.Throttle = 0.0,
    max_rate: opt.MaxRate = None,
    max_lag: opt.MaxLag = 5.0,
    guard: opt.GuardMode = None,
    quiet: opt.Quiet = False,
) -> None:
    """Begin a migration, or continue it after any interruption."""
    goal = _until(until, UNTIL)
    chosen = _options(
        ack_timeout, lock_timeout, lock_attempts, batch_size, throttle, max_rate, max_lag, guard
    )

    async def work() -> engine.Outcome:
        with Progress(quiet=quiet) as progress:
            async with engine.working(dsn, lock_wait) as session:
                return await engine.start(session, file, schema, goal, progress, chosen)

    _told(perform(work(), output), output)


def run(
    file: opt.File,
    until: Annotated[str, typer.Option("--until", help="Stop after this phase.")] = "completed",
    retention: opt.Retention = "24h",
    dsn: opt.Dsn = None,
    schema: opt.Schema = "public",
    output: opt.Output = Format.text,
    lock_wait: opt.LockWait = 5.0,
    ack_timeout: opt.AckTimeout = 30.0,
    lock_timeout: opt.LockTimeout = 250,
    lock_attempts: opt.LockAttempts = 60,
    batch_size: opt.BatchSize = None,
    throttle: opt.Throttle = 0.0,
    max_rate: opt.MaxRate = None,
    max_lag: opt.MaxLag = 5.0,
    guard: opt.GuardMode = None,
    compat: opt.Compat = None,
    quiet: opt.Quiet = False,
) -> None:
    """All phases up to completed; stops with exit code 3 while the retention time after cutover runs."""
    goal = _until(until, (*UNTIL, "completed"))
    keep = parse_duration(retention)
    chosen = _options(
        ack_timeout, lock_timeout, lock_attempts, batch_size, throttle, max_rate, max_lag, guard, compat
    )

    async def work() -> engine.Outcome:
        with Progress(quiet=quiet) as progress:
            async with engine.working(dsn, lock_wait) as session:
                return await engine.run(session, file, schema, goal, keep, progress, chosen)

    _told(perform(work(), output), output)


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Recompute rows that differ, each in its own direction.")
    ] = False,
    dsn: opt.Dsn = None,
    output: opt.Output = Format.text,
    lock_wait: opt.LockWait = 5.0,
    ack_timeout: opt.AckTimeout = 30.0,
    quiet: opt.Quiet = False,
) -> None:
    """Compare every row in both shapes; in phase backfilled a clean result serves the new version."""

    async def work() -> dict[str, Any]:
        with Progress(quiet=quiet) as progress:
            async with engine.working(dsn, lock_wait) as session:
                ctx = await engine.active_context(session, progress, _options(ack_timeout))
                await engine.not_rolling_back(ctx)
                await ctx.check_drift()
                if ctx.row.phase in {"planned", "prepared", "expanded", "closed"}:
                    raise Refused(
                        f"there is nothing to verify in phase {ctx.row.phase}",
                        hint="Run `dualwire start` again, or `dualwire complete` after closed.",
                    )
                await ctx.wait_acks()
                result = await verify_phase.verify(ctx, repair=repair)
                if not result.clean:
                    raise verify_phase.failure(result)
                if ctx.row.phase == "backfilled":
                    await verify_phase.serve(ctx)
                    await ctx.reload()
                return {"migration": ctx.row.name, "phase": ctx.row.phase, **result.as_dict()}

    found = perform(work(), output)
    rows = sum(t["rows"] for t in found["tables"])
    show(found, f"{found['migration']}: {rows} rows are right in both shapes; phase {found['phase']}", output)


def cutover(
    percent: Annotated[
        int, typer.Option("--percent", min=0, max=100, help="Share of auto sessions; 0 flips back.")
    ] = 100,
    dsn: opt.Dsn = None,
    output: opt.Output = Format.text,
    lock_wait: opt.LockWait = 5.0,
    ack_timeout: opt.AckTimeout = 30.0,
    max_lag: opt.MaxLag = 5.0,
    quiet: opt.Quiet = False,
) -> None:
    """Send auto clients to the new version, or back to the old one."""

    async def work() -> engine.Outcome:
        with Progress(quiet=quiet) as progress:
            async with engine.working(dsn, lock_wait) as session:
                ctx = await engine.active_context(session, progress, _options(ack_timeout, max_lag=max_lag))
                await engine.not_rolling_back(ctx)
                await ctx.check_drift()
                await cutover_phase.set_percent(ctx, percent)
                await ctx.reload()
                return engine.Outcome(ctx.row.name, ctx.row.phase, {"percent": percent})

    _told(perform(work(), output), output)


def rollback(
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Give up values that only the new shape holds.")
    ] = False,
    dsn: opt.Dsn = None,
    output: opt.Output = Format.text,
    lock_wait: opt.LockWait = 5.0,
    ack_timeout: opt.AckTimeout = 30.0,
    lock_timeout: opt.LockTimeout = 250,
    lock_attempts: opt.LockAttempts = 60,
    quiet: opt.Quiet = False,
) -> None:
    """Go back to the old version and drop the new shape; possible until closed."""
    chosen = _options(ack_timeout, lock_timeout, lock_attempts)

    async def work() -> engine.Outcome:
        with Progress(quiet=quiet) as progress:
            async with engine.working(dsn, lock_wait) as session:
                ctx = await engine.active_context(session, progress, chosen)
                await ctx.check_drift()
                details = await rollback_phase.run(ctx, accept_loss=accept_loss)
                return engine.Outcome(ctx.row.name, "rolled_back", details)

    _told(perform(work(), output), output)


def complete(
    retention: opt.Retention = "24h",
    dsn: opt.Dsn = None,
    output: opt.Output = Format.text,
    lock_wait: opt.LockWait = 5.0,
    ack_timeout: opt.AckTimeout = 30.0,
    lock_timeout: opt.LockTimeout = 250,
    lock_attempts: opt.LockAttempts = 60,
    compat: opt.Compat = None,
    quiet: opt.Quiet = False,
) -> None:
    """End the old version and keep only the new shape. There is no way back.

    With --compat old clients are served on, without the old columns; --no-compat ends that, after the migration was
    completed as well.
    """
    keep = parse_duration(retention)
    chosen = _options(ack_timeout, lock_timeout, lock_attempts, compat=compat)

    async def work() -> engine.Outcome:
        with Progress(quiet=quiet) as progress:
            async with engine.working(dsn, lock_wait) as session:
                if compat is False and await store.active(session.conn) is None:
                    return await engine.end_compat(session, progress, chosen)
                ctx = await engine.active_context(session, progress, chosen)
                return await engine.complete(ctx, keep)

    _told(perform(work(), output), output)


def pause(dsn: opt.Dsn = None, output: opt.Output = Format.text) -> None:
    """Let the backfill rest after its present batch."""
    _set_paused(dsn, True, output)


def resume(dsn: opt.Dsn = None, output: opt.Output = Format.text) -> None:
    """Let a paused backfill go on."""
    _set_paused(dsn, False, output)


def _set_paused(dsn: str | None, paused: bool, output: Format) -> None:
    async def work() -> str:
        async with engine.reading(dsn) as conn:
            row = await store.active(conn)
            if row is None:
                raise Refused("no migration is under way")
            await conn.execute("UPDATE dualwire.migration SET paused = $2 WHERE id = $1", row.id, paused)
            await store.event(conn, "pause" if paused else "resume", row.id, {})
            return row.name

    name = perform(work(), output)
    show({"migration": name, "paused": paused}, f"{name}: {'paused' if paused else 'resumed'}", output)


def _told(outcome: engine.Outcome, output: Format) -> None:
    note = f" ({outcome.details['note']})" if "note" in outcome.details else ""
    show(outcome.as_dict(), f"{outcome.migration}: {outcome.phase}{note}", output)
