"""Trying rewritten texts on a real server before a client's statement depends on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from proxy.backend.pool import Pool
from proxy.backend.probe import ProbeVerdict, SessionProber, Verdicts
from proxy.dsn import parse
from proxy.rewrite.plan import Kind, Plan
from tests.conftest import Database

ORIGINAL = b"UPDATE t SET a = $1 WHERE id = $2 RETURNING id"


@dataclass
class Stage:
    """A prober on a table, and the pool that it uses."""

    prober: SessionProber
    pool: Pool

    async def verdict(self, text: bytes, original: bytes = ORIGINAL) -> ProbeVerdict:
        """What the prober says of a text whose fallback is ``original``."""
        answered: asyncio.Future[ProbeVerdict] = asyncio.get_running_loop().create_future()
        plan = Plan(
            text, Kind.WRITE, "dual_write", mirrored=True, fallback=Plan(original, Kind.WRITE, "guard_other")
        )
        key = ("old", ("public",), "user", (), text)
        self.prober.probe(key, plan, (), answered.set_result)
        verdict = await asyncio.wait_for(answered, 10)
        assert self.prober.known(key) == verdict
        return verdict


@pytest.fixture
async def stage(database: Database) -> AsyncIterator[Stage]:
    """A table ``t`` and a prober."""
    async with database.connection() as direct:
        await direct.execute("CREATE TABLE t (id bigint PRIMARY KEY, a int, b text)")
    dsn = parse(database.dsn)
    pool = Pool(dsn, size=1, connect_timeout=5, wait_timeout=5, idle_timeout=60)
    parameters = {"user": dsn.user, "database": dsn.database}
    yield Stage(SessionProber(Verdicts(), pool, parameters, dsn.password), pool)
    await pool.close()


async def test_a_good_text_is_mirrored_with_the_types_of_the_original(stage: Stage) -> None:
    text = b"UPDATE t SET a = $1, b = CAST($1 AS text) WHERE id = $2 RETURNING id"
    assert await stage.verdict(text) == ProbeVerdict(True, (23, 20))


@pytest.mark.parametrize(
    "text",
    [
        b"UPDATE t SET a = $1, missing = $1 WHERE id = $2 RETURNING id",
        b"UPDATE t SET a = $1, b = 'x' WHERE id = $2 RETURNING id, a",
    ],
    ids=["rejected", "other result"],
)
async def test_a_text_that_the_server_rejects_or_describes_otherwise_is_left_to_the_guard(
    stage: Stage, text: bytes
) -> None:
    assert not (await stage.verdict(text)).mirrored
    # The connection is as good as before.
    assert (await stage.verdict(ORIGINAL + b"")).mirrored


async def test_where_the_original_fails_the_client_gets_its_own_error(stage: Stage) -> None:
    assert not (await stage.verdict(b"UPDATE t SET a = 1", b"UPDATE nowhere SET a = 1")).mirrored


async def test_a_server_that_cannot_be_asked_leaves_the_text_to_the_guard(stage: Stage) -> None:
    taken = await stage.pool.acquire(
        {"user": stage.pool.dsn.user, "database": stage.pool.dsn.database}, stage.pool.dsn.password
    )
    stage.pool.wait_timeout = 0.2
    assert not (await stage.verdict(ORIGINAL)).mirrored
    stage.pool.release(taken, reusable=True)
