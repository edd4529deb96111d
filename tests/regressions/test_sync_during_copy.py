"""Sync during COPY.

Guards against proxies that count a Sync which the server swallows: while COPY FROM STDIN reads its data, PostgreSQL
ignores Sync and Flush (they were sent before the client could know that a copy had begun). Whoever waits for an answer
to it is one behind from then on; whoever drops a Sync that the server does answer is one ahead.
"""

from __future__ import annotations

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled
from tests.regressions.raw import (
    COPY_DONE,
    FLUSH,
    SYNC,
    Closed,
    bind,
    codes,
    connected,
    copy_data,
    copy_fail,
    directly,
    execute,
    extended,
    kinds,
    parse,
    query,
    values,
)

COPY = parse("COPY t FROM STDIN") + bind() + execute()
ROW = copy_data("1\n")


@pytest.fixture
def table(database: Database) -> None:
    """A table to copy to."""
    database.sql("CREATE TABLE t (id int)")


@pytest.mark.usefixtures("table")
async def test_a_sync_between_the_data_is_not_answered(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(COPY, FLUSH)
        assert kinds(await client.take(3)) == "12G"
        client.send(ROW, SYNC, ROW, FLUSH, SYNC, ROW, COPY_DONE)
        answer = await client.ask(SYNC)
        assert kinds(answer) == "CZ"
        assert await client.value("SELECT count(*) FROM t") == "3"
        await client.in_step()


@pytest.mark.usefixtures("table")
async def test_a_sync_in_a_simple_copy_is_not_answered(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(query("COPY t FROM STDIN"))
        assert kinds(await client.take(1)) == "G"
        client.send(ROW, SYNC, FLUSH, ROW, SYNC, COPY_DONE)
        assert kinds(await client.ready()) == "CZ"
        await client.in_step()
        assert await client.value("SELECT count(*) FROM t") == "2"


@pytest.mark.usefixtures("table")
async def test_the_sync_sent_before_the_copy_began_is_the_one_that_is_swallowed(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        pid = await client.pid()
        client.send(COPY, SYNC)
        assert kinds(await client.take(3)) == "12G"
        client.send(ROW, COPY_DONE, SYNC)
        assert kinds(await client.ready()) == "CZ"
        await client.in_step()
        await client.leave()
    async with connected(proxy) as other:
        assert await other.pid() == pid, (
            "an answer was still waited for, so the connection could not be reused"
        )


@pytest.mark.usefixtures("table")
async def test_more_that_was_sent_ahead_is_swallowed_with_it(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(COPY, SYNC, FLUSH, SYNC, SYNC)
        assert kinds(await client.take(3)) == "12G"
        client.send(ROW, COPY_DONE, SYNC)
        assert kinds(await client.ready()) == "CZ"
        await client.in_step()
        client.vanish()
    async with connected(proxy) as other:
        assert await other.value("SELECT count(*) FROM t") == "1"
        await other.in_step()


@pytest.mark.parametrize("said", [extended("SELECT 'lost'"), query("SELECT 'lost'")], ids=["batch", "query"])
@pytest.mark.usefixtures("table")
async def test_a_request_in_the_middle_ends_as_on_postgresql(
    database: Database, proxy: Sidecar, said: bytes
) -> None:
    """Where PostgreSQL gives the connection up, the client is told why, and nobody else gets it."""
    answers = []
    async with directly(database) as there, connected(proxy) as here:
        for client in (there, here):
            client.send(COPY, FLUSH)
            frames = await client.take(3)
            client.send(ROW, said)
            with pytest.raises(Closed) as closed:
                await client.ready()
            answers.append((kinds(frames + closed.value.frames), codes(closed.value.frames)))
    assert answers[1] == answers[0]
    async with connected(proxy) as other:
        await other.in_step()


SCRIPTS = {
    "sync ahead and behind": COPY + SYNC + ROW + COPY_DONE + SYNC,
    "sync ahead, flush, data": COPY + SYNC + FLUSH + ROW + COPY_DONE + SYNC,
    "only syncs": COPY + SYNC + SYNC + SYNC + copy_fail() + SYNC,
    "data first, then one sync": COPY + ROW + COPY_DONE + SYNC,
    "data, sync, data": COPY + FLUSH + ROW + SYNC + ROW + COPY_DONE + SYNC,
    "failed copy": COPY + FLUSH + ROW + SYNC + copy_fail() + SYNC,
    "bad data": COPY + FLUSH + copy_data("x\n") + SYNC + COPY_DONE + SYNC + SYNC,
    "two copies": COPY + ROW + COPY_DONE + SYNC + COPY + ROW + COPY_DONE + SYNC,
    "copy, then a batch": COPY + ROW + COPY_DONE + parse("SELECT 'b'") + bind() + execute() + SYNC,
    "two in one query": query("COPY t FROM STDIN; SELECT 'q'; COPY t FROM STDIN") + (ROW + COPY_DONE) * 2,
    "no copy at all": ROW + SYNC + COPY_DONE + copy_fail() + SYNC,
}


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
async def test_every_order_is_answered_as_by_postgresql(
    database: Database, pooled: Pooled, replicas: bool
) -> None:
    proxy = pooled(1, replicas=replicas)
    for what, said in SCRIPTS.items():
        answers = []
        async with directly(database) as there, connected(proxy) as here:
            for client in (there, here):
                client.send(said, SYNC, query("SELECT 'the end'"))
                frames: list[bytes] = []
                while "the end" not in values(frames[-3:]):
                    try:
                        frames += await client.ready()
                    except Closed as closed:
                        raise AssertionError(f"{what}: {closed}") from closed
                answers.append((kinds(frames), codes(frames), values(frames)))
                await client.in_step()
            await here.leave()
        assert answers[1] == answers[0], what
