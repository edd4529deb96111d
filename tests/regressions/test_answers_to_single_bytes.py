"""Messages that arrive byte by byte.

Guards against proxies that take what one read gives them for whole messages. It never is under load, and nearly always
is on a developer's machine. The sans-IO half of this is ``tests/session/test_split_everywhere.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tests.conftest import Database
from tests.regressions.conftest import Pooled
from tests.regressions.raw import (
    COPY_DONE,
    FLUSH,
    SYNC,
    Raw,
    bind,
    close,
    codes,
    connected,
    copy_data,
    copy_fail,
    describe,
    directly,
    execute,
    extended,
    kinds,
    parse,
    query,
    values,
)

SCRIPTS = {
    "simple": query("SELECT 'a'; SELECT 'b'") + query("") + query("SELECT 1/0") + query("SELECT 'c'"),
    "extended": extended("SELECT 'a'") + parse("SELECT 'b'") + describe() + bind() + execute() + SYNC,
    "named": parse("SELECT 'a'", "s") + SYNC + (bind("s") + execute() + SYNC) * 3 + close("s") + SYNC,
    "errors": parse("SELEC") + bind() + execute() + SYNC + extended("SELECT 1/0") + extended("SELECT 'a'"),
    "flushed": parse("SELECT 'a'", "s") + FLUSH + bind("s") + FLUSH + execute() + FLUSH + close("s") + SYNC,
    "transaction": query("BEGIN") + extended("SELECT 'a'") + query("SELECT 1/0") + extended("SELECT 'b'")
    + query("ROLLBACK"),
    "paging": parse("SELECT n FROM generate_series(1, 5) AS s(n)") + bind() + (execute(rows=2) + FLUSH) * 2 + SYNC,
    "copy in": query("COPY t FROM STDIN") + copy_data("1\n") * 3 + COPY_DONE + query("SELECT count(*) FROM t"),
    "copy in, extended": parse("COPY t FROM STDIN") + bind() + execute() + copy_data("1\n") + COPY_DONE + SYNC,
    "copy that fails": query("COPY t FROM STDIN") + copy_data("x\n") + copy_fail() + query("SELECT 'a'"),
    "copy out": query("COPY (SELECT 1) TO STDOUT") + extended("COPY (SELECT 2) TO STDOUT"),
    "told": query("LISTEN c; NOTIFY c") + query("SET application_name = 'x'") + query("UNLISTEN *; RESET ALL"),
}  # fmt: skip


@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
async def test_scripts_that_arrive_byte_by_byte_are_answered_the_same(
    database: Database, pooled: Pooled, replicas: bool
) -> None:
    database.sql("CREATE TABLE t (id int)")
    database.wait_replayed()
    proxy = pooled(1, replicas=replicas)
    async with directly(database) as there, connected(proxy) as here:
        # Small reads on the way back, too.
        here.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        for name, script in SCRIPTS.items():
            answers = []
            for client, byte_by_byte in ((there, False), (here, True)):
                script_and_end = script + SYNC + query("SELECT 'the end'")
                if byte_by_byte:
                    saying = asyncio.create_task(_byte_by_byte(client, script_and_end))
                else:
                    saying = asyncio.create_task(_at_once(client, script_and_end))
                frames: list[bytes] = []
                while "the end" not in values(frames[-3:]):
                    frames += await client.ready()
                await saying
                answers.append((kinds(frames), codes(frames), values(frames)))
                await client.query("TRUNCATE t")
            assert answers[1] == answers[0], name
        await here.in_step()


async def test_a_startup_that_arrives_byte_by_byte_is_answered(database: Database, pooled: Pooled) -> None:
    proxy = pooled(1)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    client = Raw(reader, writer)
    said: list[bytes] = []
    client.send = lambda *frames: said.extend(frames)  # type: ignore[method-assign]
    login = asyncio.create_task(client.login(proxy.user, proxy.database, proxy.password, {}))
    while not said:
        await asyncio.sleep(0)
    del client.send
    await _byte_by_byte(client, b"".join(said))
    await login
    await client.in_step()
    client.vanish()


async def _byte_by_byte(client: Raw, data: bytes) -> None:
    raw = client.writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(data)):
        client.send(data[at : at + 1])
        # A turn of the loop sends it; the peer may or may not read it alone.
        await client.writer.drain()
        await asyncio.sleep(0)


async def _at_once(client: Raw, data: bytes) -> None:
    client.send(data)
