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
    Raw,
    bind,
    codes,
    connect,
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
UNKNOWABLE = {"failed copy", "bad data"}
"""In these a Sync stands behind data of a copy that fails. PostgreSQL answers it or swallows it, depending on where it
fails, and nobody but it knows: instead of guessing, the session may be ended with 08P01.
"""


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
async def test_every_order_is_answered_as_by_postgresql(
    database: Database, pooled: Pooled, replicas: bool
) -> None:
    proxy = pooled(1, replicas=replicas)
    for what, said in SCRIPTS.items():
        async with directly(database) as there, connected(proxy) as here:
            expected = await _answers(there, said, what)
            answers, ended = await _answers_or_end(here, said, what)
            if ended and what in UNKNOWABLE:
                assert codes(ended)[-1:] == ["08P01"], what
                assert b"VFATAL\0" in ended[-1], what
            else:
                assert answers == expected, (what, kinds(ended), codes(ended))
                await here.in_step()
                await here.leave()
        async with connected(proxy) as other:
            await other.in_step()
            await other.leave()


Answers = tuple[str, list[str], list[str]]


async def _answers(client: Raw, said: bytes, what: str) -> Answers:
    """What is said to a script and a query behind it; raises Closed with all that came before the end."""
    client.send(said, SYNC, query("SELECT 'the end'"))
    frames: list[bytes] = []
    while "the end" not in values(frames[-3:]):
        try:
            frames += await client.ready()
        except Closed as closed:
            raise Closed(frames + closed.frames) from closed
        except AssertionError as silence:
            raise AssertionError(f"{what}, after {kinds(frames)}: {silence}") from silence
    return kinds(frames), codes(frames), values(frames)


async def _answers_or_end(client: Raw, said: bytes, what: str) -> tuple[Answers | None, list[bytes]]:
    """The same, or all that came before the end of the connection."""
    try:
        return await _answers(client, said, what), []
    except Closed as closed:
        return None, closed.frames


@pytest.mark.usefixtures("table")
async def test_a_failed_copy_that_has_swallowed_who_knows_what_shifts_nobodys_answers(proxy: Sidecar) -> None:
    """A request is under way behind it, and another client waits for the only server connection."""
    said = (
        copy_data("x\n") + SYNC + COPY_DONE + SYNC + SYNC + SYNC + query("SELECT 'theirs' FROM pg_sleep(0.3)")
    )
    async with connected(proxy) as client:
        client.send(COPY, FLUSH)
        assert kinds(await client.take(3)) == "12G"
        client.send(said)
        other = await connect(proxy)
        try:
            assert await other.value("SELECT 'mine'") == "mine"
            await other.in_step()
        finally:
            other.vanish()


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
@pytest.mark.parametrize(
    "said",
    [
        query("COPY t FROM STDIN; SELECT set_config('my.own', 'x', false)") + bind() + FLUSH + COPY_DONE,
        parse("SET work_mem = '1MB'") + bind() + execute() + COPY + SYNC + SYNC + ROW + COPY_DONE + SYNC,
        query("SET work_mem = '1MB'; COPY t FROM STDIN") + SYNC + SYNC + ROW + COPY_DONE + SYNC,
    ],
    ids=["bind", "batch", "query"],
)
async def test_what_is_sent_behind_a_copy_that_comes_with_a_setting_is_not_held_back(
    database: Database, pooled: Pooled, said: bytes, replicas: bool
) -> None:
    """The data would wait behind it, and the server for the data."""
    proxy = pooled(1, replicas=replicas)
    answers = []
    async with directly(database) as there, connected(proxy) as here:
        for client in (there, here):
            # What PostgreSQL says before it gives a connection up may be lost with what it has not read.
            answers.append((await _answers_or_end(client, said, "a copy with a setting"))[0])
    assert answers[1] == answers[0]
