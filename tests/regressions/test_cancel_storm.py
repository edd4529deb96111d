"""A storm of two hundred cancels.

Guards against proxies that look up a cancel request's target when it comes and act on it later: under load the server
connection has another client by then, requests are lost in a queue, or the keys of two sessions are mixed up. Every
cancel must reach the statement of its own session, and no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from tests.conftest import Database
from tests.regressions.conftest import Pooled, clients, metric
from tests.regressions.raw import Raw, codes, connect, kinds, query, values

CLIENTS = 200


async def test_every_cancel_reaches_its_own_query_only(
    database: Database, pooled: Pooled, soon: Callable[..., Awaitable[None]]
) -> None:
    proxy = pooled(CLIENTS + 10)
    before = metric(proxy, "dualwire_cancels_total")
    crowd = [await connect(proxy) for _ in range(CLIENTS)]
    assert len({client.key for client in crowd}) == CLIENTS
    for number, client in enumerate(crowd):
        client.send(query(f"SELECT {number} FROM (SELECT pg_sleep(600)) AS storm"))
    await soon(lambda: _sleeping(database) == CLIENTS, "everyone's statement")

    first, second = crowd[::2], crowd[1::2]
    for half in (first, second):
        # Each twice: the second request may be late.
        await asyncio.gather(*(client.cancel() for client in [*half, *half]))
        for client in half:
            frames = await client.ready()
            assert codes(frames) == ["57014"], kinds(frames)
        if half is first:
            assert _sleeping(database) == CLIENTS // 2
    await asyncio.gather(*(client.in_step() for client in crowd))

    # Late ones: half of the crowd works, the idle half's keys are cancelled again and again.
    for number, client in enumerate(first):
        client.send(query(f"SELECT {number} FROM (SELECT pg_sleep(1)) AS storm"))
    await asyncio.gather(*(client.cancel() for client in [*second, *second]))
    for number, client in enumerate(first):
        frames = await client.ready()
        assert (kinds(frames), values(frames), codes(frames)) == ("TDCZ", [str(number)], [])
    await asyncio.gather(*(client.in_step() for client in crowd))
    assert metric(proxy, "dualwire_cancels_total") - before == 3 * CLIENTS
    for client in crowd:
        client.vanish()
    await soon(lambda: clients(proxy) == 0, "everyone's end")


async def test_a_storm_while_server_connections_change_hands(
    database: Database, pooled: Pooled, pool_mode: str, soon: Callable[..., Awaitable[None]]
) -> None:
    """In transaction mode five clients share a server connection; in session mode clients come and go."""
    proxy = pooled(40)
    calm = [await connect(proxy) for _ in range(20 if pool_mode == "session" else CLIENTS // 2)]
    over = asyncio.Event()
    cancelled = 0

    async def work(client: Raw, number: int) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            frames = await client.query(f"SELECT '{number}/{turn}' FROM (SELECT pg_sleep(0.01)) AS calm")
            assert (kinds(frames), values(frames), codes(frames)) == ("TDCZ", [f"{number}/{turn}"], [])

    async def storm(number: int) -> None:
        nonlocal cancelled
        chance = random.Random(number)
        for turn in range(5):
            client = await connect(proxy)
            mark = f"{number}-{turn}"
            client.send(
                query(f"SELECT '{mark}' FROM (SELECT pg_sleep({chance.choice((0.001, 0.02, 600))})) AS storm")
            )
            await asyncio.sleep(chance.uniform(0, 0.03))
            requests = [asyncio.create_task(client.cancel()) for _ in range(2)]
            if chance.random() < 0.3:
                client.vanish()
            else:
                # One that came before the statement did nothing: ask until it is over.
                asking = asyncio.create_task(client.ready())
                while not asking.done():
                    await client.cancel()
                frames = await asking
                assert values(frames) in ([mark], []), "an answer of somebody else"
                assert codes(frames) in ([], ["57014"])
                cancelled += codes(frames) == ["57014"]
                await asyncio.gather(*requests)
                await client.in_step()
                await client.leave()
            await asyncio.gather(*requests)

    workers = [asyncio.create_task(work(client, number)) for number, client in enumerate(calm)]
    await asyncio.gather(*(storm(number) for number in range(CLIENTS // 10)))
    over.set()
    await asyncio.gather(*workers)
    assert cancelled > 10
    await asyncio.gather(*(client.in_step() for client in calm))
    for client in calm:
        client.vanish()
    await soon(lambda: clients(proxy) == 0, "everyone's end")
    await soon(lambda: _sleeping(database) == 0, "the end of all statements")


def _sleeping(database: Database) -> int:
    return int(
        database.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%AS storm%' "
            "AND pid <> pg_backend_pid()"
        )
    )
