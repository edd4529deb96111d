"""Drives a migration through its phases. Every command of an operator that changes anything ends up here.

The engine decides from the stored phase alone what comes next, so the same command continues after any crash. It
holds the migrator's lock for as long as it works.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg

from migrator import compat, compat_findings, designer, drift, preflight
from migrator.control import install, publish, store
from migrator.control.session import Session, acquire
from migrator.control.store import MigrationRow, reached
from migrator.database import connect
from migrator.design import Design
from migrator.errors import Refused, RolledBack
from migrator.phases import backfill, close, cutover, expand, prepare, rollback, swap, verify, withdraw
from migrator.phases.context import Context, Options
from migrator.progress import Progress
from migrator.spec import Migration, load
from proxy.control.routing import Phase
from proxy.rewrite.model import Guard

STEPS: dict[Phase, Callable[[Context], Awaitable[None]]] = {
    "planned": prepare.run,
    "prepared": expand.run,
    "expanded": backfill.run,
    "backfilled": verify.run,
    "verified": cutover.run,
}
"""What leads out of each phase. Closing has conditions of its own, see ``complete``."""

DEFAULT_RETENTION = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    migration: str
    phase: Phase
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return {"migration": self.migration, "phase": self.phase, **self.details}


async def design_of(conn: asyncpg.Connection, migration: Migration, schema: str) -> Design:
    """The design, built in a transaction that is rolled back; changes nothing."""
    routing = await publish.current(conn)
    orders = {t.oid: [(c.name, c.column) for c in t.new] for t in routing.tables}
    transaction = conn.transaction()
    await transaction.start()
    try:
        design = await designer.build(
            conn,
            migration,
            id=await store.next_id(conn),
            schema=schema,
            parent=routing.current,
            orders=orders,
        )
    finally:
        await transaction.rollback()
    findings = [*design.findings, *await preflight.judge_server(conn, design)]
    if migration.compat:
        design = compat.planned(design, catalogs := await drift.look(conn, design))
        findings += compat_findings.judge(design, catalogs)
    return design.model_copy(update={"findings": findings})


def loaded(path: Path, guard: Guard | None, compat: bool | None) -> Migration:
    """The file's migration, with the guard and the compat that the command line asks for, if it does."""
    migration = load(path)
    return replace(
        migration,
        guard=migration.guard if guard is None else guard,
        compat=migration.compat if compat is None else compat,
    )


def refuse_errors(design: Design) -> None:
    """Refuse to start over findings of severity error."""
    errors = design.errors()
    if errors:
        raise Refused(
            f"lint found {len(errors)} error(s): " + "; ".join(f.message for f in errors),
            hint=" ".join(dict.fromkeys(f.hint for f in errors if f.hint)),
            data={"findings": [f.model_dump() for f in design.findings]},
        )


@contextlib.asynccontextmanager
async def working(dsn: str | None, lock_wait: float) -> AsyncIterator[Session]:
    """A connection with the control schema, the migrator's lock, and no pooler between."""
    conn = await connect(dsn)
    try:
        await preflight.refuse_pooler(conn, dsn)
        await install.require(conn)
        yield await acquire(conn, lock_wait)
    finally:
        await _close(conn)


@contextlib.asynccontextmanager
async def reading(dsn: str | None, *, application: str = "dualwire") -> AsyncIterator[asyncpg.Connection]:
    """A connection that only looks."""
    conn = await connect(dsn, application=application)
    try:
        await install.require(conn)
        yield conn
    finally:
        await _close(conn)


async def _close(conn: asyncpg.Connection) -> None:
    try:
        await conn.close(timeout=5)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        conn.terminate()


async def active_context(session: Session, progress: Progress, options: Options) -> Context:
    """The migration under way.

    Raises:
        Refused: there is none.
    """
    row = await store.active(session.conn)
    if row is None:
        last = await store.latest(session.conn)
        detail = f"The last one, {last.name}, is {last.phase}." if last else "There was none yet."
        raise Refused(
            "no migration is under way", detail=detail, hint="Begin one with `dualwire start FILE`."
        )
    return Context(session, row, progress, options)


async def not_rolling_back(ctx: Context) -> None:
    """Refuse to go forward while a rollback has begun."""
    if await store.step_state(ctx.conn, ctx.row.id, rollback.WITHDRAW) == "done":
        raise Refused(
            f"a rollback of {ctx.row.name} has begun",
            hint="Finish it with `dualwire rollback`.",
        )


async def enter(
    session: Session, path: Path, schema: str, progress: Progress, options: Options
) -> Context | MigrationRow:
    """The context of a file's migration, begun if it is new; the row alone if it was completed before."""
    migration = loaded(path, options.guard, options.compat)
    conn = session.conn
    row = await store.active(conn)
    if row is not None:
        if row.name != migration.name:
            raise Refused(
                f"migration {row.name} is under way (phase {row.phase})",
                hint="Complete it or roll it back first; see `dualwire status`.",
            )
        if row.checksum != migration.checksum:
            raise Refused(
                f"{path} has changed since migration {row.name} was started",
                hint="Restore the file, or run `dualwire rollback` and start again.",
            )
        if migration.guard not in {None, row.design.guard}:
            raise Refused(
                f"migration {row.name} was started with guard {row.design.guard}",
                hint="Roll it back to start it with another guard.",
            )
        ctx = Context(session, row, progress, options)
        await not_rolling_back(ctx)
        return ctx
    last = await store.latest(conn, migration.name)
    if last is not None and last.phase == "completed":
        if last.checksum != migration.checksum:
            raise Refused(
                f"a migration named {migration.name} was completed with another content",
                hint="Give the file another name.",
            )
        return last
    if migration.name in {"base", "auto", "old", "new"}:
        raise Refused(f"{migration.name} cannot be the name of a migration")
    await withdraw.refuse_while_spoken(conn, await publish.current(conn))
    design = await design_of(conn, migration, schema)
    refuse_errors(design)
    async with session.transaction():
        row = await store.insert(conn, design, migration.checksum, migration.document)
        await store.event(conn, "start", row.id, {"findings": [f.model_dump() for f in design.findings]})
        await drift.remember(conn, row.id, design)
    progress.line(f"migration {row.name} planned")
    ctx = Context(session, row, progress, options)
    await ctx.reload()
    return ctx


async def advance(ctx: Context, until: Phase) -> None:
    """Go on, phase by phase, up to and with ``until`` (at most cutover)."""
    while not reached(ctx.row.phase, until):
        await ctx.check_drift()
        before = ctx.row.phase
        await STEPS[before](ctx)
        await ctx.reload()
        ctx.progress.settle()
        ctx.progress.line(f"{ctx.row.name}: {before} -> {ctx.row.phase}")
    if ctx.row.phase not in {"closed", "completed"}:
        await ctx.wait_acks()


async def start(
    session: Session, path: Path, schema: str, until: Phase, progress: Progress, options: Options
) -> Outcome:
    """``dualwire start``: begin or continue."""
    entered = await enter(session, path, schema, progress, options)
    if isinstance(entered, MigrationRow):
        return Outcome(entered.name, entered.phase, {"note": "already completed"})
    await _advance_or_back(entered, until)
    return Outcome(entered.row.name, entered.row.phase, {})


async def run(
    session: Session,
    path: Path,
    schema: str,
    until: Phase,
    retention: timedelta,
    progress: Progress,
    options: Options,
) -> Outcome:
    """``dualwire run``: all phases."""
    entered = await enter(session, path, schema, progress, options)
    if isinstance(entered, MigrationRow):
        return Outcome(entered.name, entered.phase, {"note": "already completed"})
    if not reached(entered.row.phase, "closed"):
        await _advance_or_back(entered, until if not reached(until, "closed") else "cutover")
    if until == "completed":
        return await complete(entered, retention)
    return Outcome(entered.row.name, entered.row.phase, {})


async def _advance_or_back(ctx: Context, until: Phase) -> None:
    """Advance; DDL that the server refuses at expand leaves nothing half done: go back by ourselves."""
    try:
        await advance(ctx, until)
    except Refused as error:
        await ctx.reload()
        if ctx.row.phase != "prepared" or not error.sqlstate:
            raise
        await rollback.run(ctx, accept_loss=False)
        raise RolledBack(
            f"expand failed and the migration was rolled back: {error.message}",
            sqlstate=error.sqlstate,
            detail=error.detail,
            hint=error.hint or "Correct the migration and start it again.",
        ) from error


async def complete(ctx: Context, retention: timedelta) -> Outcome:
    """``dualwire complete``: close and swap."""
    await not_rolling_back(ctx)
    await ctx.check_drift()
    outlives = ctx.design.compat if ctx.options.compat is None else ctx.options.compat
    if not reached(ctx.row.phase, "closed"):
        await close.check(ctx, retention, outlives=outlives)
        await close.run(ctx, outlives=outlives)
        await ctx.reload()
        ctx.progress.line(f"{ctx.row.name}: cutover -> closed")
    else:
        await _change_compat(ctx)
    await close.settle(ctx)
    await ctx.reload()
    await ctx.check_drift()
    await swap.run(ctx)
    await swap.finish(ctx)
    await ctx.reload()
    ctx.progress.line(f"{ctx.row.name}: closed -> completed")
    served = await publish.current(ctx.conn)
    return Outcome(ctx.row.name, ctx.row.phase, {"compat": served.old if served.compat else None})


async def _change_compat(ctx: Context) -> None:
    """Another wish than that with which the migration was closed: compat can be ended, but not begun."""
    serves = (await publish.current(ctx.conn)).compat
    if ctx.options.compat is False and serves:
        await withdraw.closed(ctx)
    elif ctx.options.compat and not serves:
        raise Refused(
            f"migration {ctx.row.name} was closed without compat",
            hint="Old clients cannot be served any more: run `dualwire complete` without --compat.",
        )


async def end_compat(session: Session, progress: Progress, options: Options) -> Outcome:
    """``dualwire complete --no-compat`` after the migration was completed."""
    name = await withdraw.completed(session, progress, options)
    return Outcome(name, "completed", {"compat": None, "note": "compat ended"})
