"""The migrator in process, on a database of the test's own: what the commands do, without starting Python anew."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from migrator import engine
from migrator.control import install
from migrator.database import connect
from migrator.design import Design
from migrator.phases import cutover, rollback, verify
from migrator.phases.context import Context, Options
from migrator.progress import Progress
from migrator.spec import load
from proxy.control.routing import Phase
from tests.conftest import Database


@dataclass
class Migrator:
    """Runs the engine as the commands do."""

    dsn: str
    directory: Path
    options: Options = field(default_factory=Options)
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))

    def file(self, name: str, text: str) -> Path:
        path = self.directory / f"{name}.yaml"
        path.write_text(text)
        return path

    async def init(self) -> bool:
        conn = await connect(self.dsn)
        try:
            return await install.install(conn)
        finally:
            await conn.close()

    async def design(self, path: Path) -> Design:
        conn = await connect(self.dsn)
        try:
            return await engine.design_of(conn, load(path), "public")
        finally:
            await conn.close()

    async def start(self, path: Path, until: Phase = "verified") -> engine.Outcome:
        async with engine.working(self.dsn, 5) as session:
            return await engine.start(session, path, "public", until, self.progress, self.options)

    async def run(self, path: Path, retention: timedelta = timedelta(0)) -> engine.Outcome:
        async with engine.working(self.dsn, 5) as session:
            return await engine.run(
                session, path, "public", "completed", retention, self.progress, self.options
            )

    async def _context(self, session: Any) -> Context:
        return await engine.active_context(session, self.progress, self.options)

    async def verify(self, *, repair: bool = False) -> verify.Result:
        async with engine.working(self.dsn, 5) as session:
            return await verify.verify(await self._context(session), repair=repair)

    async def cutover(self, percent: int = 100) -> None:
        async with engine.working(self.dsn, 5) as session:
            await cutover.set_percent(await self._context(session), percent)

    async def complete(self, retention: timedelta = timedelta(0)) -> engine.Outcome:
        async with engine.working(self.dsn, 5) as session:
            return await engine.complete(await self._context(session), retention)

    async def end_compat(self) -> engine.Outcome:
        async with engine.working(self.dsn, 5) as session:
            return await engine.end_compat(session, self.progress, self.options)

    async def rollback(self, *, accept_loss: bool = False) -> dict[str, Any]:
        async with engine.working(self.dsn, 5) as session:
            return await rollback.run(await self._context(session), accept_loss=accept_loss)

    async def routing(self) -> dict[str, Any]:
        conn = await connect(self.dsn)
        try:
            document: dict[str, Any] = json.loads(await conn.fetchval("SELECT dualwire.routing_document()"))
            return document
        finally:
            await conn.close()


@pytest.fixture
async def migrator(database: Database, tmp_path: Path) -> Migrator:
    """The migrator on the test's database, with the control schema installed."""
    made = Migrator(database.dsn, tmp_path)
    await made.init()
    return made


@pytest.fixture
async def db(database: Database) -> Any:
    """A superuser's connection that comes past every sidecar."""
    conn = await asyncpg.connect(database.dsn, statement_cache_size=0)
    yield conn
    await conn.close()


@pytest.fixture
def catalog(database: Database) -> Callable[[], str]:
    """``catalog()``: schema public as pg_dump prints it, without its random token lines."""

    def dump() -> str:
        program = database.cluster.bin("pg_dump")
        found = subprocess.run(
            [str(program), "--schema-only", "--schema=public", database.dsn],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ},
        )
        lines = [
            line for line in found.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
        ]
        return "\n".join(lines)

    return dump
