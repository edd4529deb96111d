"""The pool's accounts under cancellation: no turn is lost, and no connection passes on with something under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from proxy.backend import connection as backend
from proxy.backend.connection import ServerConnection
from proxy.backend.errors import ServerUnavailable
from proxy.backend.pool import Pool
from proxy.dsn import Dsn, parse
from proxy.wire import messages as m
from tests.conftest import Database

Make = Callable[..., Pool]


@pytest.fixture
async def make(database: Database) -> AsyncIterator[Make]:
    """A factory of pools for the test's database."""
    pools: list[Pool] = []

    def factory(size: int = 1, enter: Callable[[list[int]], Awaitable[None]] | None = None) -> Pool:
        pool = Pool(
            parse(database.dsn),
            size=size,
            connect_timeout=5,
            wait_timeout=5,
            idle_timeout=60,
            enter=enter,
        )
        pools.append(pool)
        return pool

    yield factory
    for pool in pools:
        await pool.close()


async def _acquire(pool: Pool) -> ServerConnection:
    dsn = pool.dsn
    return await pool.acquire({"user": dsn.user, "database": dsn.database}, dsn.password_or_default())


def _value(frames: list[bytes]) -> bytes:
    (row,) = [frame for frame in frames if frame[0] == m.DATA_ROW]
    return row[11:]


async def test_a_turn_whose_client_has_gone_is_the_next_ones(make: Make) -> None:
    pool = make()
    holder = await _acquire(pool)
    first, second = (asyncio.create_task(_acquire(pool)) for _ in range(2))
    await asyncio.sleep(0.05)
    assert pool.waiting == 2
    pool._idle[tuple(sorted(holder.startup_parameters.items()))].append(holder)
    pool._wake()
    first.cancel()
    assert await asyncio.wait_for(second, 1) is holder


async def test_a_query_of_ours_that_was_given_up_ends_its_connection(make: Make) -> None:
    pool = make()
    connection = await _acquire(pool)
    task = asyncio.create_task(connection.simple("SELECT 'late' FROM pg_sleep(0.2)"))
    await asyncio.sleep(0.05)
    task.cancel()
    pool.release(connection, reusable=True)
    follower = await _acquire(pool)
    for word in ("one", "two", "three"):
        assert _value(await follower.simple(f"SELECT '{word}' FROM pg_sleep(0.1)")) == word.encode()
    pool.release(follower, reusable=True)


async def test_a_cancel_request_never_reaches_the_next_client(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = backend.cancel

    async def slow(dsn: Dsn, pid: int, secret: bytes) -> None:
        await asyncio.sleep(0.3)
        await request(dsn, pid, secret)

    monkeypatch.setattr(backend, "cancel", slow)
    pool = make()
    connection = await _acquire(pool)
    connection.cancel()
    pool.release(connection, reusable=True)
    follower = await _acquire(pool)
    assert _value(await follower.simple("SELECT 'mine' FROM pg_sleep(0.6)")) == b"mine"
    pool.release(follower, reusable=True)


async def test_a_connection_that_was_lost_while_entering_is_not_given_out(
    database: Database, make: Make
) -> None:
    async def enter(pids: list[int]) -> None:
        direct = await asyncpg.connect(database.dsn)
        await direct.execute("SELECT pg_terminate_backend($1)", pids[0])
        await direct.close()
        await asyncio.sleep(0.2)

    pool = make(enter=enter)
    with pytest.raises(ServerUnavailable):
        await _acquire(pool)
    assert pool.active == pool.idle == 0
