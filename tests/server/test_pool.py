"""The pool: fair turns that are never lost, sizes, lifetimes, pauses, a server that refuses or is not there; and no
connection passes on with something under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from migrator.cluster.embedded import free_port
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

    def factory(
        size: int = 1,
        enter: Callable[[list[int]], Awaitable[None]] | None = None,
        dsn: str | None = None,
        **options: Any,
    ) -> Pool:
        options = {"connect_timeout": 5, "wait_timeout": 5, "idle_timeout": 60, **options}
        pool = Pool(parse(dsn or database.dsn), size=size, enter=enter, **options)
        pools.append(pool)
        return pool

    yield factory
    for pool in pools:
        await pool.close()


def _parameters(pool: Pool, **more: str) -> dict[str, str]:
    return {"user": pool.dsn.user, "database": pool.dsn.database, **more}


async def _acquire(pool: Pool, **more: str) -> ServerConnection:
    return await pool.acquire(_parameters(pool, **more), pool.dsn.password_or_default())


def _take(pool: Pool, applied: dict[str, str] | None = None, **more: str) -> ServerConnection | None:
    return pool.take(Pool.key(_parameters(pool, **more)), applied or {})


async def _queue(pool: Pool, *, count: int = 1, **more: str) -> list[asyncio.Task[ServerConnection]]:
    """So many more who wait."""
    already = pool.waiting
    tasks = [asyncio.create_task(_acquire(pool, **more)) for _ in range(count)]
    while pool.waiting < already + count:
        await asyncio.sleep(0)
    return tasks


def _value(frames: list[bytes]) -> bytes:
    (row,) = [frame for frame in frames if frame[0] == m.DATA_ROW]
    return row[11:]


async def test_a_turn_whose_client_has_gone_is_the_next_ones(make: Make) -> None:
    pool = make()
    holder = await _acquire(pool)
    first, second = await _queue(pool, count=2)
    pool.give(holder)
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


async def test_a_connection_given_back_keeps_what_it_holds(make: Make) -> None:
    pool = make()
    connection = await _acquire(pool)
    await connection.simple("SET application_name = 'kept'")
    connection.applied = {"application_name": "kept"}
    pool.give(connection)
    assert pool.idle == 1
    again = _take(pool)
    assert again is connection
    assert again.applied == {"application_name": "kept"}
    assert _value(await again.simple("SHOW application_name")) == b"kept"


async def test_the_connection_with_the_right_settings_is_taken_first(make: Make) -> None:
    pool = make(size=3)
    connections = [await _acquire(pool) for _ in range(3)]
    for number, connection in enumerate(connections):
        connection.applied = {"number": str(number)}
        pool.give(connection)
    assert _take(pool, {"number": "0"}) is connections[0]
    assert _take(pool, {"number": "7"}) is connections[2]
    assert _take(pool, {"number": "1"}) is connections[1]
    assert _take(pool, {"number": "1"}) is None


async def test_nobody_takes_a_connection_past_the_queue(make: Make) -> None:
    pool = make()
    holder = await _acquire(pool)
    (waiter,) = await _queue(pool)
    pool.give(holder)
    assert _take(pool) is None
    assert await waiter is holder
    assert _take(pool) is None
    pool.give(holder)
    assert _take(pool) is holder


async def test_turns_come_in_the_order_of_arrival(make: Make) -> None:
    pool = make()
    holder = await _acquire(pool)
    served: list[int] = []

    async def client(number: int) -> None:
        # Every other one has startup parameters of its own, so that its turn takes a new connection.
        connection = await _acquire(pool, **({"application_name": f"client {number}"} if number % 2 else {}))
        served.append(number)
        pool.give(connection)

    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(client(number)))
        while pool.waiting <= number:
            await asyncio.sleep(0)
    pool.give(holder)
    await asyncio.gather(*tasks)
    assert served == list(range(10))
    assert pool.active == pool.waiting == pool.connecting == 0


async def test_a_slot_whose_client_has_gone_is_the_next_ones(make: Make) -> None:
    pool = make()
    holder = await _acquire(pool)
    (first,) = await _queue(pool, application_name="another")
    (second,) = await _queue(pool)
    pool.release(holder, reusable=False)
    first.cancel()
    assert await asyncio.wait_for(second, 5)
    assert (pool.active, pool.connecting) == (1, 0)


async def test_clients_that_give_up_at_any_moment_cost_no_connection(make: Make) -> None:
    pool = make(size=2)

    async def client(number: int) -> None:
        connection = await _acquire(pool, **({"application_name": "odd"} if number % 2 else {}))
        await asyncio.sleep(0)
        if number % 3:
            pool.give(connection)
        else:
            pool.release(connection, reusable=bool(number % 2))

    tasks = [asyncio.create_task(client(number)) for number in range(60)]
    for number, task in enumerate(tasks):
        if number % 4 == 0:
            for _ in range(number % 7):
                await asyncio.sleep(0)
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # All of the pool can still be had.
    both = await asyncio.wait_for(asyncio.gather(_acquire(pool), _acquire(pool)), 5)
    assert len(set(both)) == 2
    assert (pool.active, pool.idle, pool.connecting, pool.waiting) == (2, 0, 0, 0)


async def test_a_connection_with_a_cancel_under_way_is_not_given_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = backend.cancel
    sent = asyncio.Event()

    async def held_back(dsn: Dsn, pid: int, secret: bytes) -> None:
        await sent.wait()
        await request(dsn, pid, secret)

    monkeypatch.setattr(backend, "cancel", held_back)
    pool = make()
    connection = await _acquire(pool)
    connection.cancel()
    pool.give(connection)
    assert _take(pool) is None
    assert (pool.cleaning, pool.idle) == (1, 0)
    (waiter,) = await _queue(pool)
    sent.set()
    assert await waiter is connection
    pool.give(connection)
    assert pool.idle == 1


async def test_an_abandoned_transaction_is_rolled_back_before_reuse(database: Database, make: Make) -> None:
    database.sql("CREATE TABLE t (a int)")
    pool = make()
    connection = await _acquire(pool)
    await connection.simple("BEGIN; INSERT INTO t VALUES (1); SET LOCAL work_mem = '7MB'")
    pool.release(connection, reusable=True, rollback=True)
    again = await _acquire(pool)
    assert again is connection
    assert _value(await again.simple("SELECT count(*) FROM t")) == b"0"
    assert database.sql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'") == "0"


async def test_the_reserve_is_for_those_who_have_waited(make: Make) -> None:
    pool = make(size=1, reserve_size=1, reserve_timeout=0.1)
    first = await _acquire(pool)
    second = await _acquire(pool)
    assert first is not second
    assert pool.wait_times.total >= 0.1
    (third,) = await _queue(pool)
    pool.give(first)
    assert await third is first


async def test_min_pool_size_is_kept_open_for_the_last_login(make: Make) -> None:
    pool = make(size=5, min_size=3)
    pool.maintain()
    assert pool.connecting == 0
    pool.give(await _acquire(pool))
    pool.maintain()
    async with asyncio.timeout(5):
        while pool.idle < 3:
            await asyncio.sleep(0.01)
    pool.idle_timeout = 0.001
    await asyncio.sleep(0.01)
    pool.maintain()
    assert pool.idle == 3
    pool.min_size = 1
    pool.maintain()
    assert pool.idle == 1


async def test_a_connection_past_its_lifetime_goes_when_it_is_given_back(make: Make) -> None:
    pool = make(lifetime=0.001)
    connection = await _acquire(pool)
    await asyncio.sleep(0.01)
    pool.maintain()
    assert not connection.closed
    pool.give(connection)
    assert connection.closed
    assert pool.active == pool.idle == 0


async def test_a_pool_that_was_made_smaller_shrinks(make: Make) -> None:
    pool = make(size=3)
    connections = [await _acquire(pool) for _ in range(3)]
    pool.size = 1
    pool.maintain()
    for connection in connections:
        pool.give(connection)
    assert pool.idle == 1


async def test_pause_ends_when_the_last_connection_is_back(make: Make) -> None:
    pool = make(size=2)
    idle, busy = await _acquire(pool), await _acquire(pool)
    pool.give(idle)
    pausing = asyncio.create_task(pool.pause())
    await asyncio.sleep(0)
    assert idle.closed
    assert not busy.closed
    assert _take(pool) is None
    (waiter,) = await _queue(pool)
    assert not pausing.done()
    pool.give(busy)
    assert await pausing
    assert busy.closed
    assert not waiter.done()
    pool.resume()
    assert await waiter


async def test_resume_ends_the_wait_for_a_pause(make: Make) -> None:
    pool = make()
    connection = await _acquire(pool)
    pausing = asyncio.create_task(pool.pause())
    await asyncio.sleep(0)
    pool.resume()
    assert not await pausing
    pool.give(connection)
    assert _take(pool) is connection


async def test_reconnect_replaces_a_connection_in_use_when_it_is_back(make: Make) -> None:
    pool = make(size=2)
    busy, idle = await _acquire(pool), await _acquire(pool)
    pool.give(idle)
    pool.reconnect()
    assert idle.closed
    assert _value(await busy.simple("SELECT 1")) == b"1"
    pool.give(busy)
    assert busy.closed
    assert (await _acquire(pool)).pid not in (busy.pid, idle.pid)


async def test_kill_closes_all_and_gives_out_nothing_before_resume(make: Make) -> None:
    pool = make(size=2)
    busy = await _acquire(pool)
    pool.kill()
    assert busy.closed
    (waiter,) = await _queue(pool)
    pool.resume()
    assert (await waiter).pid != busy.pid


async def test_a_dead_server_is_not_asked_by_every_client(make: Make) -> None:
    pool = make(size=4, dsn=f"postgresql://nobody@127.0.0.1:{free_port()}/nothing", login_retry=60)
    errors = await asyncio.gather(*(_acquire(pool) for _ in range(200)), return_exceptions=True)
    assert {getattr(error, "sqlstate", None) for error in errors} == {"08001"}
    assert pool.connect_failures_total <= 4
    assert (pool.waiting, pool.connecting) == (0, 0)
    # When a retry is due, one client makes it.
    pool.backoff.due = 0
    before = pool.connect_failures_total
    await asyncio.gather(*(_acquire(pool) for _ in range(200)), return_exceptions=True)
    assert pool.connect_failures_total == before + 1


async def test_a_login_that_the_server_refuses_does_not_hold_up_others(make: Make) -> None:
    pool = make(size=2)
    for _ in range(3):
        with pytest.raises(ServerUnavailable) as refused:
            await _acquire(pool, no_such_setting="1")
        assert refused.value.sqlstate == "42704"
    assert await _acquire(pool)


async def test_who_shares_waits_while_the_server_takes_no_more_connections(
    database: Database, make: Make
) -> None:
    role = f"crowd_{database.name}"
    dsn = database.role(role, "secret", "LOGIN CONNECTION LIMIT 1")
    pool = make(size=5, dsn=dsn, patient=True)
    connection = await _acquire(pool)
    (waiter,) = await _queue_after_refusal(pool)
    pool.give(connection)
    assert await waiter is connection
    await pool.close()
    impatient = make(size=5, dsn=dsn)
    other = await _acquire_when_free(impatient)
    with pytest.raises(ServerUnavailable) as refused:
        await _acquire(impatient)
    assert refused.value.sqlstate == "53300"
    assert refused.value.relayed is not None
    other.close()


async def _queue_after_refusal(pool: Pool) -> list[asyncio.Task[ServerConnection]]:
    task = asyncio.create_task(_acquire(pool))
    while not (pool.connect_failures_total and pool.waiting):
        await asyncio.sleep(0.01)
    return [task]


async def _acquire_when_free(pool: Pool) -> ServerConnection:
    """The server counts a connection that was closed for a moment longer."""
    while True:
        try:
            return await _acquire(pool)
        except ServerUnavailable:
            await asyncio.sleep(0.05)


async def test_a_wait_that_lasts_too_long_ends_in_an_error_that_says_so(make: Make) -> None:
    pool = make(wait_timeout=0.05)
    await _acquire(pool)
    with pytest.raises(ServerUnavailable, match="pool_size is 1") as refused:
        await _acquire(pool)
    assert refused.value.sqlstate == "53300"
    assert (pool.waiting, sum(pool.wait_times.counts)) == (0, 1)


async def test_a_closed_pool_sends_everyone_away(make: Make) -> None:
    pool = make()
    await _acquire(pool)
    (waiter,) = await _queue(pool)
    await pool.close()
    for attempt in (waiter, _acquire(pool)):
        with pytest.raises(ServerUnavailable) as refused:
            await attempt
        assert refused.value.sqlstate == "57P01"


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_to_a_pool_all_of_it_can_be_had_afterwards(make: Make, seed: int) -> None:
    chance = random.Random(seed)
    pool = make(size=4, reserve_size=1, reserve_timeout=0.02, patient=bool(seed % 2), login_retry=0.05)
    in_use: set[ServerConnection] = set()

    async def client() -> None:
        more = chance.choice(({}, {}, {"application_name": "other"}, {"application_name": "third"}))
        for _ in range(chance.randrange(1, 6)):
            connection = _take(pool, **more) or await _acquire(pool, **more)
            assert connection not in in_use, "one connection for two clients"
            in_use.add(connection)
            try:
                await asyncio.sleep(chance.choice((0, 0, 0.001, 0.005)))
                if chance.random() < 0.3:
                    await connection.simple("SELECT 1")
                if chance.random() < 0.05:
                    connection.cancel()
            except ServerUnavailable:
                pass
            finally:
                in_use.discard(connection)
                way = chance.random()
                if way < 0.7:
                    pool.give(connection)
                else:
                    pool.release(connection, reusable=way < 0.95, rollback=way < 0.8)

    async def operator() -> None:
        for _ in range(12):
            await asyncio.sleep(chance.choice((0.005, 0.02)))
            what = chance.randrange(5)
            if what == 0:
                pool.reconnect()
            elif what == 1:
                pause = asyncio.create_task(pool.pause())
                await asyncio.sleep(chance.choice((0, 0.01, 0.05)))
                pool.resume()
                await pause
            elif what == 2:
                pool.maintain()
            elif what == 3:
                pool.size = chance.choice((1, 2, 4))
            else:
                pool.kill()
                in_use.clear()
                pool.resume()

    clients = [asyncio.create_task(client()) for _ in range(60)]
    watch = asyncio.create_task(operator())
    for task in clients:
        await asyncio.sleep(0)
        if chance.random() < 0.2:
            asyncio.get_running_loop().call_later(chance.random() / 20, task.cancel)
    outcomes = await asyncio.wait_for(asyncio.gather(*clients, return_exceptions=True), 30)
    await watch
    allowed = (asyncio.CancelledError, ServerUnavailable, type(None))
    assert [outcome for outcome in outcomes if not isinstance(outcome, allowed)] == []
    assert [outcome for outcome in outcomes if getattr(outcome, "sqlstate", "") == "53300"] == [], (
        "waited in vain"
    )
    pool.size, pool.reserve_size = 4, 0
    pool.maintain()
    async with asyncio.timeout(5):
        while pool.cleaning:
            await asyncio.sleep(0.01)
    everything = await asyncio.wait_for(asyncio.gather(*(_acquire(pool) for _ in range(4))), 5)
    assert len(set(everything)) == 4
    assert (pool.active, pool.idle, pool.connecting, pool.waiting) == (4, 0, 0, 0)
    for connection in everything:
        assert _value(await connection.simple("SELECT 'well'")) == b"well"
