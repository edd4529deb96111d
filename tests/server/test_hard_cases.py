"""Races and rude peers at the asyncio shell: nothing may leak, and nobody else may pay for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from proxy.wire import messages as m
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.server.test_bad_peers import _tls
from tests.server.test_bad_peers import certificate as certificate

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
READY = b"Z\x00\x00\x00\x05I"


@pytest.fixture
def proxy(sidecar: SidecarFactory) -> Sidecar:
    """A sidecar in front of primary and replica."""
    return sidecar()


def _clients(proxy: Sidecar) -> dict[str, int]:
    found: dict[str, int] = json.loads(proxy.get("/status")[1])["databases"]["shop"]["clients"]
    return found


async def _login(proxy: Sidecar) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(m.startup({"user": proxy.user, "database": proxy.database}))
    await reader.readuntil(READY)
    return reader, writer


async def test_a_session_that_fails_is_counted_out_once(database: Database, proxy: Sidecar) -> None:
    survivor = await proxy.connect()
    reader, writer = await _login(proxy)
    assert _clients(proxy)["auto"] == 2
    writer.write(b"\x01\x02\x03\x04\x05\x06")
    await reader.read()
    writer.close()
    await asyncio.sleep(0.2)
    assert _clients(proxy)["auto"] == 1
    await survivor.close()


async def test_a_backend_that_is_terminated_ends_its_session_at_once(
    database: Database, proxy: Sidecar
) -> None:
    victim = await proxy.connect()
    pid = await victim.fetchval("SELECT pg_backend_pid()")
    running = asyncio.create_task(victim.execute("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.3)
    async with database.connection() as direct:
        await direct.execute("SELECT pg_terminate_backend($1)", pid)
    with pytest.raises((asyncpg.PostgresError, ConnectionError)):
        await running
    await asyncio.sleep(0.5)
    assert _clients(proxy)["auto"] == 0


async def test_a_startup_packet_that_comes_with_the_end_of_the_handshake_is_read(
    database: Database, sidecar: SidecarFactory, certificate: tuple[Path, Path]
) -> None:
    proxy = _tls(sidecar, certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(SSL_REQUEST)
    assert await reader.readexactly(1) == b"S"
    context = ssl.create_default_context(cafile=str(certificate[0]))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await asyncio.wait_for(reader.read(65536), 5))
    # Finished and the startup packet in one segment.
    tls.write(m.startup({"user": proxy.user, "database": proxy.database}))
    writer.write(outgoing.read())
    said = b""
    while READY not in said:
        incoming.write(await asyncio.wait_for(reader.read(65536), 5))
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                said += tls.read(65536)
    writer.close()


async def test_handshakes_that_break_off_do_not_use_up_the_clients(
    database: Database, sidecar: SidecarFactory, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    config = sidecar.default_config().replace(
        "[admin]", f'tls_cert = "{cert}"\ntls_key = "{key}"\n[admin]', 1
    )
    proxy = sidecar(config + '[limits]\nmax_clients = 3\nclient_login_timeout = "1s"\n')
    for how in ("reset", "reset", "slow", "slow", "slow", "hello"):
        peer = socket.create_connection(("127.0.0.1", proxy.port))
        peer.sendall(SSL_REQUEST)
        assert await asyncio.to_thread(peer.recv, 1) == b"S"
        await asyncio.sleep(0.05)
        if how == "hello":
            peer.sendall(b"\x16\x03\x01\x02\x00")
        if how == "slow":
            await asyncio.sleep(1.2)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    await asyncio.sleep(0.3)
    connections = [await proxy.connect() for _ in range(3)]
    for connection in connections:
        await connection.close()


async def test_encryption_is_asked_for_once(proxy: Sidecar) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(SSL_REQUEST * 5000)
    said = await asyncio.wait_for(reader.read(), 5)
    assert said.startswith(b"NE")
    assert b"C08P01\0" in said


async def test_a_default_isolation_that_a_standby_cannot_serve_keeps_reads_on_the_primary(
    database: Database, proxy: Sidecar
) -> None:
    async with database.connection() as direct:
        await direct.execute("CREATE TABLE t (id int)")
    database.wait_replayed()
    for options in ({"server_settings": {"default_transaction_isolation": "serializable"}}, {}):
        connection = await asyncpg.connect(proxy.dsn(), **options)
        if not options:
            await connection.execute("SET default_transaction_isolation = serializable")
        for _ in range(40):
            await connection.fetch("SELECT * FROM t")
            await asyncio.sleep(0.01)
        await connection.close()


async def test_a_role_that_was_reset_is_reset_on_the_replica_too(database: Database, proxy: Sidecar) -> None:
    role = f"r_{database.name}"
    async with database.connection() as direct:
        await direct.execute("CREATE TABLE t (id int)")
        await direct.execute(f"CREATE ROLE {role}")
    database.wait_replayed()
    connection = await proxy.connect()

    async def reader() -> Any:
        return await connection.fetchval("SELECT current_user FROM t RIGHT JOIN (SELECT 1) AS x ON true")

    try:
        await connection.execute(f"GRANT SELECT ON t TO {role}")
        await connection.execute(f"SET ROLE {role}")
        for _ in range(30):
            assert await reader() == role
            await asyncio.sleep(0.01)
        await connection.execute("RESET ROLE")
        for _ in range(30):
            assert await reader() != role
            await asyncio.sleep(0.01)
    finally:
        await connection.close()
        async with database.connection() as direct:
            await direct.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
