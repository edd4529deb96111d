"""Commands that only look: lint, plan, status, history, drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from migrator import drift as drift_module
from migrator import engine, report
from migrator import status as status_module
from migrator.cli import options as opt
from migrator.cli.output import Format, perform, show
from migrator.control import install, store
from migrator.database import connect
from migrator.design import Design
from migrator.errors import EXIT_REFUSED, Refused
from migrator.spec import load
from proxy.rewrite.model import Guard


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (lint, plan, status, history, drift):
        app.command()(command)


async def _design(
    dsn: str | None, file: Path, schema: str, guard: Guard | None, compat: bool | None = None
) -> Design:
    migration = engine.loaded(file, guard, compat)
    conn = await connect(dsn)
    try:
        await install.require(conn)
        active = await store.active(conn)
        if active is not None and active.name != migration.name:
            raise Refused(
                f"migration {active.name} is under way (phase {active.phase})",
                hint="Complete it or roll it back first.",
            )
        if active is not None:
            return active.design
        return await engine.design_of(conn, migration, schema)
    finally:
        await conn.close()


def lint(
    file: opt.File,
    dsn: opt.Dsn = None,
    schema: opt.Schema = "public",
    guard: opt.GuardMode = None,
    output: opt.Output = Format.text,
) -> None:
    """Judge a migration file; exit code 3 if it has errors. Without a DSN only the file itself is read."""
    if not dsn:
        migration = perform(_loaded(file), output)
        said = f"{migration}: the file is well-formed; give --dsn to check it against a database"
        show({"migration": migration, "findings": [], "ok": True}, said, output)
        return
    design = perform(_design(dsn, file, schema, guard), output)
    document = {
        "migration": design.migration,
        "findings": [f.model_dump() for f in design.findings],
        "ok": not design.errors(),
    }
    show(document, report.findings_text(design), output)
    if design.errors():
        raise typer.Exit(EXIT_REFUSED)


async def _loaded(file: Path) -> str:
    return load(file).name


def plan(
    file: opt.File,
    dsn: opt.Dsn = None,
    schema: opt.Schema = "public",
    guard: opt.GuardMode = None,
    compat: opt.Compat = None,
    output: opt.Output = Format.text,
) -> None:
    """Dry run: phases, forward and backward SQL, estimate, findings. Exit code 3 if start would refuse."""
    design = perform(_design(dsn, file, schema, guard, compat), output)
    show(report.document(design), report.text(design), output)
    if design.errors():
        raise typer.Exit(EXIT_REFUSED)


def status(dsn: opt.Dsn = None, output: opt.Output = Format.text) -> None:
    """Phase, progress, sidecars, problems."""

    async def work() -> dict[str, Any]:
        async with engine.reading(dsn) as conn:
            return await status_module.status(conn)

    document = perform(work(), output)
    show(document, status_module.text(document), output)


def history(dsn: opt.Dsn = None, output: opt.Output = Format.text) -> None:
    """All migrations, with their steps' times."""

    async def work() -> list[dict[str, Any]]:
        async with engine.reading(dsn) as conn:
            rows = await conn.fetch(
                "SELECT id, name, parent, phase, started_at, finished_at FROM dualwire.migration ORDER BY id"
            )
            steps = await conn.fetch(
                "SELECT migration, name, state, started_at, finished_at FROM dualwire.step"
                " ORDER BY migration, started_at"
            )
            return [
                {**dict(r), "steps": [_without(s, "migration") for s in steps if s["migration"] == r["id"]]}
                for r in rows
            ]

    found = perform(work(), output)
    lines = [
        f"{r['id']:>4}  {r['name']}  {r['phase']}  started {r['started_at']:%Y-%m-%d %H:%M:%S}"
        + (f", ended {r['finished_at']:%Y-%m-%d %H:%M:%S}" if r["finished_at"] else "")
        for r in found
    ]
    show({"migrations": found}, "\n".join(lines) or "no migration yet", output)


def _without(record: Any, key: str) -> dict[str, Any]:
    return {k: v for k, v in dict(record).items() if k != key}


def drift(
    accept: Annotated[
        bool, typer.Option("--accept", help="Take the present catalog as the expected one.")
    ] = False,
    dsn: opt.Dsn = None,
    output: opt.Output = Format.text,
    lock_wait: opt.LockWait = 5.0,
) -> None:
    """What others changed about the migrated tables; exit code 3 if anything."""

    async def look() -> tuple[str, list[str]]:
        async with engine.reading(dsn) as conn:
            row = await store.active(conn)
            if row is None:
                return "", []
            actual = drift_module.snapshot(await drift_module.look(conn, row.design), row.design)
            return row.name, drift_module.differences(row.catalog, actual)

    async def take() -> tuple[str, list[str]]:
        async with engine.working(dsn, lock_wait) as session:
            row = await store.active(session.conn)
            if row is None:
                return "", []
            async with session.transaction() as conn:
                actual = drift_module.snapshot(await drift_module.look(conn, row.design), row.design)
                found = drift_module.differences(row.catalog, actual)
                await drift_module.remember(conn, row.id, row.design)
                await store.event(conn, "drift accepted", row.id, {"drift": found})
            return row.name, found

    name, found = perform(take() if accept else look(), output)
    if not name:
        show({"migration": None, "drift": []}, "no migration is under way", output)
        return
    text = "\n".join([f"{name}: {len(found)} change(s)" + (" accepted" if accept else ""), *found])
    show(
        {"migration": name, "drift": found, "accepted": accept},
        text if found else f"{name}: no drift",
        output,
    )
    if found and not accept:
        raise typer.Exit(EXIT_REFUSED)
