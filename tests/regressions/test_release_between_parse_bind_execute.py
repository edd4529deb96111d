"""The server is released between Parse, Bind and Execute.

Guards against proxies that release a server connection when nothing is in flight, not when the server has said that it
is idle. A driver may send Parse, Bind and Execute each with a Flush of its own; between them nothing is under way, but
the implicit transaction, the unnamed statement and the portal are on that server connection and on no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.raw import (
    FLUSH,
    SYNC,
    Raw,
    bind,
    close,
    codes,
    connect,
    connected,
    describe,
    execute,
    kinds,
    parse,
    values,
)


class Rival:
    """Somebody else, who wants the only server connection all the time."""

    def __init__(self, proxy: Sidecar) -> None:
        self._proxy = proxy
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Want it from now on."""
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with connected(self._proxy) as client:
            frames = await client.ask(
                parse("INSERT INTO seen VALUES ('rival') RETURNING who"), bind(), execute(), close(), SYNC
            )
            assert values(frames) == ["rival"]

    @property
    def served(self) -> bool:
        """Whether it has got an answer."""
        return self.task is not None and self.task.done()


@pytest.fixture
async def rival(database: Database, proxy: Sidecar) -> AsyncIterator[Rival]:
    """A rival that has not begun yet."""
    database.sql("CREATE TABLE seen (who text)")
    one = Rival(proxy)
    yield one
    if one.task is not None:
        await one.task


Until = Callable[..., Awaitable[None]]


@pytest.fixture
async def client(rival: Rival, proxy: Sidecar) -> AsyncIterator[Raw]:
    """The client whose messages come one by one; it leaves before the rival is waited for."""
    one = await connect(proxy)
    yield one
    one.vanish()


async def test_nobody_comes_in_between_them(
    database: Database,
    proxy: Sidecar,
    client: Raw,
    rival: Rival,
    waiting: Callable[[Sidecar], int],
    soon: Until,
) -> None:
    pid = await client.pid()
    steps = [
        (parse("SELECT pg_backend_pid() || ' ' || count(*) FROM seen"), "1"),
        (describe(), "tT"),
        (bind(), "2"),
        (describe("", "P"), "T"),
        (execute(), "DC"),
        (close("", "P"), "3"),
    ]
    for number, (said, expected) in enumerate(steps):
        client.send(said, FLUSH)
        answer = await client.take(len(expected))
        assert kinds(answer) == expected, codes(answer)
        if values(answer):
            assert values(answer) == [f"{pid} 0"]
        if number == 0:
            rival.start()
            await soon(lambda: waiting(proxy) or rival.served, "the rival")
        assert not rival.served
        assert database.sql("SELECT count(*) FROM seen") == "0"
    assert kinds(await client.ask(SYNC)) == "Z"
    await client.leave()
    await soon(lambda: rival.served, "the rival's turn")


async def test_the_implicit_transaction_of_several_executes_is_one(
    database: Database,
    proxy: Sidecar,
    client: Raw,
    rival: Rival,
    waiting: Callable[[Sidecar], int],
    soon: Until,
) -> None:
    client.send(parse("INSERT INTO seen VALUES ('client')"), bind(), execute(), FLUSH)
    assert kinds(await client.take(3)) == "12C"
    rival.start()
    await soon(lambda: waiting(proxy) or rival.served, "the rival")
    assert not rival.served
    assert database.sql("SELECT count(*) FROM seen") == "0"
    client.send(parse("SELECT who, 1/0 FROM seen"), FLUSH)
    assert kinds(await client.take(1)) == "1"
    client.send(bind(), FLUSH)
    assert kinds(await client.take(1)) == "E"
    assert not rival.served
    # Skipped up to the Sync; still nobody else's server.
    client.send(parse("SELECT 1"), FLUSH)
    assert not rival.served
    assert kinds(await client.ask(SYNC)) == "Z"
    await client.leave()
    await soon(lambda: rival.served, "the rival's turn")
    assert database.sql("SELECT who FROM seen") == "rival"


async def test_the_unnamed_statement_and_portal_of_another_client_are_not_ones_own(
    proxy: Sidecar, rival: Rival
) -> None:
    """After Sync the server may be another's; its unnamed statement must not be taken for one's own."""
    async with connected(proxy) as client:
        assert kinds(await client.ask(parse("SELECT 'mine'"), SYNC)) == "1Z"
        rival.start()
        if rival.task is not None and await _can_share(client, rival):
            answer = await client.ask(bind(), execute(), SYNC)
            assert (kinds(answer), values(answer)) == ("2DCZ", ["mine"])
            answer = await client.ask(execute(), SYNC)
            assert (kinds(answer), codes(answer)) == ("EZ", ["34000"])


async def _can_share(client: Raw, rival: Rival) -> bool:
    """In transaction mode the rival is served while the client stays; in session mode it must wait."""
    assert rival.task is not None
    done, _ = await asyncio.wait({rival.task}, timeout=2.0)
    await client.in_step() if not done else None
    return bool(done)
