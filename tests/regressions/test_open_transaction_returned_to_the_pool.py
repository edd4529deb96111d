"""An open transaction returned to the pool.

Guards against proxies that pool a server connection when its client goes, not when its transaction is over. The next
client's statements land in it: his commit commits a stranger's writes, his errors are those of a stranger's failed
transaction. As bad is a proxy that ends what it finds open by committing it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.wire import messages as m
from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled, clients
from tests.regressions.raw import (
    COPY_DONE,
    FLUSH,
    SYNC,
    bind,
    connect,
    connected,
    copy_data,
    execute,
    extended,
    parse,
    query,
    status,
)

INSERT = "INSERT INTO t VALUES (1)"

# What is said, and how many ReadyForQuery are awaited before the client goes.
LEFT_OPEN = {
    "begin": (query("BEGIN") + query(INSERT), 2),
    "begin in a query of several": (query(f"SELECT 1; BEGIN; {INSERT}"), 1),
    "begin, extended": (extended("BEGIN") + extended(INSERT), 2),
    "begin after a commit": (query(f"BEGIN; SELECT 1; COMMIT; BEGIN; {INSERT}"), 1),
    "commit and chain": (query("BEGIN") + query("COMMIT AND CHAIN") + query(INSERT), 3),
    "failed": (query("BEGIN") + query(INSERT) + query("SELECT 1/0"), 3),
    "failed, with a savepoint": (query(f"BEGIN; SAVEPOINT s; {INSERT}") + query("SELECT 1/0"), 2),
    "prepared for no one": (query("BEGIN") + query(INSERT) + query("SAVEPOINT a") + query("RELEASE a"), 4),
    "implicit, no sync": (parse(INSERT) + bind() + execute() + FLUSH, 0),
    "implicit, neither flush nor sync": (parse(INSERT) + bind() + execute(), 0),
    "in the middle of a copy": (query("COPY t FROM STDIN") + copy_data("1\n"), 0),
    "after a copy": (query("BEGIN") + query("COPY t FROM STDIN") + copy_data("1\n") + COPY_DONE, 2),
    "a copy without its sync": (
        parse("COPY t FROM STDIN") + bind() + execute() + copy_data("1\n") + COPY_DONE + FLUSH,
        0,
    ),
    "under way": (query("BEGIN") + query(f"{INSERT}; SELECT pg_sleep(30)"), 1),
    "a lock": (query("BEGIN") + query("LOCK TABLE t") + query("SELECT pg_advisory_xact_lock(1)"), 3),
}


@pytest.mark.parametrize("end", ["goodbye", "reset", "end-of-stream"])
async def test_the_next_client_begins_outside_of_any_transaction(
    database: Database, proxy: Sidecar, end: str
) -> None:
    database.sql("CREATE TABLE t (id int)")
    for what, (said, answers) in LEFT_OPEN.items():
        if what == "under way" and end == "goodbye":
            continue  # What was asked before a goodbye is done: half a minute.
        client = await connect(proxy)
        client.send(said)
        for _ in range(answers):
            await client.ready()
        await client.writer.drain()
        if end == "goodbye":
            await client.leave()
        elif end == "reset":
            client.vanish()
        else:
            client.writer.close()
        async with connected(proxy) as other:
            frames = await other.query("SELECT 1")
            assert status(frames) == "I", what
            assert await other.value("SELECT now() = statement_timestamp()") == "t", what
            # Were it in the stranger's transaction, this would commit that too.
            assert status(await other.query("COMMIT")) == "I", what
            assert await other.value("SELECT count(*) FROM t") == "0", what
            # The stranger's own server may be another one, and not be through with its rollback.
            async with asyncio.timeout(10):
                while await other.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") != "0":
                    await asyncio.sleep(0.05)
            await other.in_step()
            await other.leave()
    assert database.sql("SELECT count(*) FROM t") == "0"


async def test_what_was_committed_before_the_end_stays(database: Database, proxy: Sidecar) -> None:
    database.sql("CREATE TABLE t (id int)")
    async with connected(proxy) as client:
        await client.query(INSERT)
        await client.ask(extended(INSERT))
        await client.query(f"BEGIN; {INSERT}; COMMIT; BEGIN; INSERT INTO t VALUES (9)")
        client.send(
            parse(INSERT),
            bind(),
            execute(),
            SYNC,
            parse("INSERT INTO t VALUES (9)"),
            bind(),
            execute(),
            FLUSH,
        )
        await client.ready()
        await client.leave()
    async with connected(proxy) as other:
        assert await other.value("SELECT count(*) FROM t WHERE id = 1") == "3"
        assert await other.value("SELECT count(*) FROM t") == "3"


@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
@pytest.mark.parametrize(
    "said",
    [
        query("SET work_mem = '1MB'") + parse(INSERT) + bind() + execute() + FLUSH,
        query("SELECT pg_sleep(0.2)") + parse(INSERT) + bind() + execute() + FLUSH,
        query("SET work_mem = '1MB'; COPY t FROM STDIN") + parse("SELECT 1") + FLUSH,
        query("SET work_mem = '1MB'")
        + parse("COPY t FROM STDIN")
        + bind()
        + execute()
        + SYNC
        + copy_data("1\n"),
    ],
    ids=["setting", "slow", "copy", "extended-copy"],
)
async def test_a_goodbye_behind_what_has_to_wait_and_has_no_end_leaves_nobody_behind(
    database: Database, pooled: Pooled, soon: Callable[..., Awaitable[None]], said: bytes, replicas: bool
) -> None:
    """What it waits for comes after its client has gone."""
    database.sql("CREATE TABLE t (id int)")
    database.wait_replayed()
    proxy = pooled(1, replicas=replicas)
    for _ in range(2):
        client = await connect(proxy)
        client.send(said, m.TERMINATE_FRAME)
        client.writer.close()
    async with connected(proxy) as other:
        await other.in_step()
        assert await other.value("SELECT count(*) FROM t") == "0"
        await other.leave()
    await soon(lambda: clients(proxy) == 0, "the clients' end")
