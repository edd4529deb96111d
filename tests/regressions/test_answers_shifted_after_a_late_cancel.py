"""Answers shifted by one after a late cancel.

Guards against proxies that forward a cancel request and forget about it. It is a connection of its own and may reach
the server when the statement it was meant for has long been answered; by then the server connection may have been
given to somebody else. His statement is cancelled, and an error that nobody expects shifts all answers after it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled, clients, metric
from tests.regressions.middleman import Middleman
from tests.regressions.raw import Raw, codes, connect, connected, kinds, query, values


@pytest.mark.parametrize("fate", ["hold", "lose"])
async def test_a_cancel_that_comes_late_does_not_reach_the_next_client(
    database: Database,
    pooled: Pooled,
    middleman: Middleman,
    waiting: Callable[[Sidecar], int],
    soon: Callable[..., Awaitable[None]],
    fate: str,
) -> None:
    proxy = await asyncio.to_thread(pooled, 1, port=middleman.port)
    first = await connect(proxy)
    pid = await first.pid()
    middleman.with_cancels = fate  # type: ignore[assignment]
    first.send(query("SELECT pg_sleep(0.5), 'first'"))
    await soon(lambda: _running(database, "first"), "the first statement")
    cancelling = asyncio.create_task(first.cancel())
    await soon(lambda: middleman.cancels == 1, "the cancel request")
    # Answered before the cancel request is with the server.
    assert kinds(await first.ready()) == "TDCZ"
    await first.leave()

    async def second() -> list[bytes]:
        async with connected(proxy) as client:
            frames = await client.query("SELECT pg_sleep(1), pg_backend_pid() AS second")
            await client.in_step()
            return frames

    asking = asyncio.create_task(second())
    # Either it waits until the cancel is settled, or it runs where no cancel can reach it.
    await soon(lambda: waiting(proxy) or _running(database, "second"), "the second client")
    middleman.release()
    await soon(lambda: middleman.cancels_passed == 1, "the late cancel")
    answer = await asking
    assert (kinds(answer), codes(answer)) == ("TDCZ", [])
    await cancelling
    if fate == "lose":
        # Nobody can know whether a request that was lost on the way may still arrive.
        assert not database.sql(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}")


async def test_a_cancel_of_an_idle_session_reaches_nobody(
    database: Database, pooled: Pooled, pool_mode: str, soon: Callable[..., Awaitable[None]]
) -> None:
    """In transaction mode both sessions use the same server connection, one after the other."""
    proxy = pooled(2 if pool_mode == "session" else 1)
    before = metric(proxy, "dualwire_cancels_total")
    async with connected(proxy) as idle, connected(proxy) as busy:
        pid = await idle.pid()
        assert (await busy.pid() == pid) == (pool_mode == "transaction")
        busy.send(query("SELECT pg_sleep(1), 'busy'"))
        await soon(lambda: _running(database, "busy"), "the statement")
        for _ in range(10):
            await idle.cancel()
        answer = await busy.ready()
        assert (kinds(answer), codes(answer)) == ("TDCZ", [])
        await busy.in_step()
        await idle.in_step()
    assert metric(proxy, "dualwire_cancels_total") - before == 10


async def test_a_cancel_that_races_with_the_answer_hits_that_statement_or_nothing(proxy: Sidecar) -> None:
    chance = random.Random(4)
    async with connected(proxy) as client:
        outcomes = set()
        for number in range(150):
            client.send(query(f"SELECT {number} FROM (SELECT pg_sleep(0.004)) AS s"))
            await asyncio.sleep(chance.uniform(0, 0.008))
            cancelling = asyncio.create_task(client.cancel())
            answer = await client.ready()
            await cancelling
            assert (kinds(answer), values(answer), codes(answer)) in (
                ("TDCZ", [str(number)], []),
                ("TEZ", [], ["57014"]),
                ("EZ", [], ["57014"]),
            )
            outcomes.add(kinds(answer))
            await client.in_step()
        assert len(outcomes) > 1, "neither won the race: it is no test"


async def test_a_wrong_key_cancels_nothing(
    database: Database, pooled: Pooled, soon: Callable[..., Awaitable[None]]
) -> None:
    proxy = pooled(2)
    async with connected(proxy) as client:
        client.send(query("SELECT pg_sleep(1), 'victim'"))
        await soon(lambda: _running(database, "victim"), "the statement")
        number, secret = client.key
        for key in (
            (number, bytes(len(secret))),
            (number + 1, secret),
            (0, secret),
            (number, secret + b"\0" * 8),
        ):
            stranger = Raw(client.reader, client.writer)
            stranger.key = key
            await stranger.cancel()
        assert kinds(await client.ready()) == "TDCZ"
    await soon(lambda: clients(proxy) == 0, "the client's end")


def _running(database: Database, text: str) -> bool:
    return bool(
        database.sql(
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() "
            f"AND backend_type = 'client backend' AND query LIKE '%{text}%'"
        )
    )
