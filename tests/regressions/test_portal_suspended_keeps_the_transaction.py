"""PortalSuspended keeps the transaction.

Guards against proxies that take PortalSuspended for the end of a statement and give the server connection away: the
portal, with its snapshot and the rows that were not fetched yet, is gone, and the next Execute fails or reads from
somebody else's portal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled
from tests.regressions.raw import (
    FLUSH,
    SYNC,
    bind,
    close,
    codes,
    connected,
    execute,
    kinds,
    parse,
    query,
    status,
    values,
)

ROWS = "SELECT n FROM generate_series(1, 5) AS s(n)"


async def _rival(proxy: Sidecar) -> str:
    """Somebody else with the same unnamed statement and portal; what he reads."""
    async with connected(proxy) as client:
        client.send(parse("SELECT 'rival'"), bind(), execute(rows=1), FLUSH)
        frames = await client.take(4)
        await client.ask(SYNC)
        return values(frames)[0]


async def test_rows_are_fetched_in_pages_while_others_want_the_server(
    proxy: Sidecar, waiting: Callable[[Sidecar], int], soon: Callable[..., Awaitable[None]]
) -> None:
    async with connected(proxy) as client:
        client.send(parse(ROWS), bind(), execute(rows=2), FLUSH)
        frames = await client.take(5)
        assert (kinds(frames), values(frames)) == ("12DDs", ["1", "2"])
        rival = asyncio.create_task(_rival(proxy))
        await soon(lambda: waiting(proxy) or rival.done(), "the rival")
        assert not rival.done()
        client.send(execute(rows=2), FLUSH)
        frames = await client.take(3)
        assert (kinds(frames), values(frames)) == ("DDs", ["3", "4"])
        assert not rival.done()
        frames = await client.ask(execute(rows=2), SYNC)
        assert (kinds(frames), values(frames)) == ("DCZ", ["5"])
        await client.leave()
        assert await rival == "rival"


async def test_in_a_transaction_the_portal_outlives_the_sync(
    proxy: Sidecar, waiting: Callable[[Sidecar], int], soon: Callable[..., Awaitable[None]]
) -> None:
    async with connected(proxy) as client:
        assert status(await client.query("BEGIN")) == "T"
        frames = await client.ask(parse(ROWS), bind("", "p"), execute("p", 2), SYNC)
        assert (kinds(frames), values(frames), status(frames)) == ("12DDsZ", ["1", "2"], "T")
        rival = asyncio.create_task(_rival(proxy))
        await soon(lambda: waiting(proxy) or rival.done(), "the rival")
        for expected in (["3", "4"], ["5"]):
            assert not rival.done()
            frames = await client.ask(execute("p", 2), SYNC)
            assert (values(frames), status(frames)) == (expected, "T")
        assert status(await client.query("COMMIT")) == "I"
        await client.leave()
        assert await rival == "rival"


async def test_outside_a_transaction_the_sync_ends_the_portal_as_on_postgresql(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        frames = await client.ask(parse(ROWS), bind("", "p"), execute("p", 2), SYNC)
        assert (kinds(frames), status(frames)) == ("12DDsZ", "I")
        frames = await client.ask(execute("p", 2), SYNC)
        assert (kinds(frames), codes(frames)) == ("EZ", ["34000"])
        await client.in_step()


async def test_a_suspended_write_is_one_transaction(database: Database, proxy: Sidecar) -> None:
    database.sql("CREATE TABLE t (id int)")
    async with connected(proxy) as client:
        said = parse("INSERT INTO t SELECT generate_series(1, 5) RETURNING id") + bind() + execute(rows=2)
        client.send(said, FLUSH)
        assert kinds(await client.take(5)) == "12DDs"
        assert database.sql("SELECT count(*) FROM t") == "0"
        client.vanish()
    async with connected(proxy) as client:
        assert await client.value("SELECT count(*) FROM t") == "0"
        client.send(said, FLUSH)
        assert kinds(await client.take(5)) == "12DDs"
        assert kinds(await client.ask(execute(), SYNC)) == "DDDCZ"
        assert await client.value("SELECT count(*) FROM t") == "5"


@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
async def test_two_portals_are_read_in_turns(database: Database, pooled: Pooled, replicas: bool) -> None:
    proxy = pooled(1, replicas=replicas)
    async with connected(proxy) as client:
        client.send(query("BEGIN"), parse(ROWS, "s"), bind("s", "a"), bind("s", "b"), FLUSH)
        assert kinds(await client.ready()) == "CZ"
        assert kinds(await client.take(3)) == "122"
        for number in range(1, 6):
            for portal in ("a", "b"):
                client.send(execute(portal, 1), FLUSH)
                frames = await client.take(2)
                assert (kinds(frames), values(frames)) == ("Ds", [str(number)])
        assert kinds(await client.ask(execute("a", 1), close("a", "P"), execute("a", 1), SYNC)) == "C3EZ"
        assert status(await client.query("ROLLBACK")) == "I"
        await client.in_step()
