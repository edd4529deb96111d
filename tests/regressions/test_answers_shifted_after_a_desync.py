"""Answers shifted by one after a desync.

Guards against proxies that count answers and lose count: of a client that vanished in the middle of something, of an
error that took requests with it, or of a server that says more than was asked. From then on every answer belongs to
the question before, and the next client on that server connection gets the last one's rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.wire import messages as m
from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled, clients
from tests.regressions.middleman import Middleman
from tests.regressions.raw import (
    FLUSH,
    SYNC,
    Closed,
    bind,
    close,
    codes,
    connect,
    connected,
    copy_data,
    describe,
    directly,
    execute,
    extended,
    kinds,
    parse,
    query,
    values,
)

MANY = "SELECT n FROM generate_series(1, 200000) AS s(n)"

LEFT_BEHIND = {
    "rows on their way": query(MANY),
    "several queries": query("SELECT 'mine'") * 20 + query("SELECT pg_sleep(30)"),
    "several syncs": extended("SELECT 'mine'") * 20,
    "flushed and never synced": parse("SELECT 'mine'") + bind() + execute() + FLUSH,
    "neither flushed nor synced": parse("SELECT 'mine'") + bind() + execute(),
    "an error and no sync": parse("SELEC") + FLUSH,
    "an error, then skipped messages": parse("SELEC") + bind() + execute() + FLUSH + query("SELECT 'mine'"),
    "half a message": query("SELECT 'mine'") + query("SELECT 'mine, too'")[:9],
    "a long statement": query("SELECT pg_sleep(30)"),
    "a portal with rows left": parse(MANY) + bind() + execute(rows=3) + FLUSH,
    "an open transaction": query("BEGIN; INSERT INTO t VALUES (1)"),
    "a failed transaction": query("BEGIN; SELECT 1/0"),
    "a copy in without its end": query("COPY t FROM STDIN") + copy_data("1\n"),
    "a copy in with its sync sent ahead": parse("COPY t FROM STDIN") + bind() + execute() + SYNC,
    "half a copy data message": query("COPY t FROM STDIN") + copy_data("1\n" * 100)[:50],
    "a copy out": query(f"COPY ({MANY}) TO STDOUT"),
    "a named statement": parse("SELECT 'mine'", "s") + SYNC,
}


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end-of-stream"])
async def test_the_client_after_one_that_vanished_gets_its_own_answers(
    database: Database, proxy: Sidecar, reset: bool
) -> None:
    database.sql("CREATE TABLE t (id int)")
    for what, said in LEFT_BEHIND.items():
        client = await connect(proxy)
        client.send(said)
        if what != "half a message":
            # So that something has begun; what it is does not matter.
            client.send(FLUSH)
        await client.writer.drain()
        if reset:
            client.vanish()
        else:
            client.writer.close()
        try:
            async with connected(proxy) as other:
                assert await other.value("SELECT 'other'") == "other"
                await other.in_step()
                assert kinds(await other.ask(parse("SELECT 'other'", "s") + SYNC)) == "1Z"
                assert await other.value("SELECT count(*) FROM t") == "0"
                await other.leave()
        except (AssertionError, Closed) as exc:
            raise AssertionError(f"after a client that left behind {what}: {exc}") from exc


ERRORS_AT = {
    "at the first parse": parse("SELEC") + bind() + execute() + extended("SELECT 'two'"),
    "at a bind": bind("nobody") + execute() + parse("SELECT 'lost'") + SYNC + extended("SELECT 'two'"),
    "at an execute": parse("SELECT 1/0") + bind() + execute() + describe("", "P") + SYNC,
    "at a close in between": parse("SELECT 'one'") + bind() + execute() + bind("nobody") + close() + SYNC,
    "at a statement of an earlier batch": parse("SELECT 'one'", "s") + SYNC + parse("SELECT 'two'", "s") + SYNC
    + bind("s") + execute() + SYNC,
    "at the second of three": extended("SELECT 'one'") + extended("SELECT 1/0") + extended("SELECT 'three'"),
    "at a portal that nobody bound": execute("nobody") + bind("s") + execute() + SYNC + bind("s") + execute() + SYNC,
    "in a query of several statements": query("SELECT 'one'; SELECT 1/0; SELECT 'lost'") + query("SELECT 'two'"),
    "at a query that is skipped": parse("SELEC") + FLUSH + query("SELECT 'lost'") + SYNC + query("SELECT 'two'"),
    "at a describe": describe("nobody") + bind("s") + execute() + SYNC + bind("s") + describe("", "P") + SYNC,
}  # fmt: skip


@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
async def test_pipelines_with_errors_are_answered_as_by_postgresql(
    database: Database, pooled: Pooled, replicas: bool
) -> None:
    proxy = pooled(1, replicas=replicas)
    async with directly(database) as there, connected(proxy) as here:
        for what, said in ERRORS_AT.items():
            answers = []
            for client in (there, here):
                client.send(close("s"), SYNC, parse("SELECT 's'", "s"), SYNC)
                await client.ready()
                await client.ready()
                client.send(said, query("SELECT 'the end'"))
                frames: list[bytes] = []
                while "the end" not in values(frames[-3:]):
                    frames += await client.ready()
                answers.append((kinds(frames), codes(frames), values(frames)))
                await client.in_step()
            assert answers[1] == answers[0], what


async def test_a_statement_that_a_replica_cannot_prepare_fails_without_shifting_what_follows(
    database: Database, pooled: Pooled, soon: Callable[..., Awaitable[None]]
) -> None:
    """Behind the client's back the statement is prepared on the replica: that may fail too."""
    proxy = pooled(1, replicas=True)
    database.sql("CREATE TABLE gone (id int)")
    database.wait_replayed()
    async with connected(proxy) as client:
        assert kinds(await client.ask(parse("SELECT count(*) FROM gone", "s"), SYNC)) == "1Z"
        database.sql("DROP TABLE gone")
        database.wait_replayed()
        for _ in range(30):
            client.send(extended("SELECT 'before'"), bind("s"), execute(), SYNC, extended("SELECT 'after'"))
            assert values(await client.ready()) == ["before"]
            failed = await client.ready()
            assert (kinds(failed), codes(failed)) == ("EZ", ["42P01"])
            assert values(await client.ready()) == ["after"]
            # Reads move to the replica in a pause.
            await asyncio.sleep(0.01)
        await client.in_step()


@pytest.mark.parametrize(
    "extra",
    [m.ready_for_query(b"I"), m.frame(m.COMMAND_COMPLETE, b"SELECT 1\0") + m.ready_for_query(b"I")],
    ids=["ready", "complete"],
)
async def test_a_server_that_says_more_than_was_asked_is_not_used_again(
    database: Database,
    pooled: Pooled,
    middleman: Middleman,
    extra: bytes,
    soon: Callable[..., Awaitable[None]],
) -> None:
    proxy = await asyncio.to_thread(pooled, 1, port=middleman.port)
    async with connected(proxy) as client:
        pid = await client.pid()
        middleman.link(b"pg_backend_pid").say(extra)
        # Whoever has the connection when the extra answer comes, no one may go on with it.
        await soon(
            lambda: database.sql(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == "0",
            "the end of the connection that said too much",
        )
        client.vanish()
        await soon(lambda: clients(proxy) == 0, "the client's end")
    async with connected(proxy) as other:
        assert await other.pid() != pid
        await other.in_step()
