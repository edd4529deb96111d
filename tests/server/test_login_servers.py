"""How a server lets the sidecar in: SCRAM, MD5, clear text, each against a real server; and servers that cheat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from proxy.backend.connection import connect
from proxy.backend.errors import ServerUnavailable
from proxy.dsn import Dsn
from proxy.wire import messages as m
from tests.conftest import Database, SidecarFactory
from tests.server.handshake import pg_hba


@pytest.mark.parametrize(
    ("method", "stored"),
    [
        ("scram-sha-256", "scram-sha-256"),
        ("md5", "md5"),
        ("md5", "scram-sha-256"),
        ("password", "scram-sha-256"),
        ("password", "md5"),
        ("trust", "scram-sha-256"),
    ],
)
async def test_every_kind_of_password_check(
    database: Database, sidecar: SidecarFactory, method: str, stored: str
) -> None:
    name = f"login_{database.name}"
    dsn = database.role(name, "pässword with spaces")
    database.sql(
        f"SET password_encryption = '{stored}'; ALTER ROLE \"{name}\" PASSWORD 'pässword with spaces'"
    )
    with pg_hba(database, f"host {database.name} {name} 127.0.0.1/32 {method}"):
        address = database.cluster.primary.address
        parameters = {"user": name, "database": database.name}
        server = Dsn(address.host, address.port, name, database.name, minor=2)
        connection = await connect(server, parameters, password="pässword with spaces", timeout=20)
        await connection.simple("SELECT 1")
        connection.close()
        for password in () if method == "trust" else ("wrong", ""):
            with pytest.raises(ServerUnavailable) as refused:
                await connect(server, parameters, password=password, timeout=20)
            assert refused.value.sqlstate in ("28P01", "08P01"), password
        if method != "trust":
            with pytest.raises(ServerUnavailable, match="asks for a password"):
                await connect(server, parameters, password=None, timeout=20)
        if method == "md5":
            return
        proxy = await asyncio.to_thread(sidecar, sidecar.default_config().replace(database.dsn, dsn))
        through = await proxy.connect()
        assert await through.fetchval("SELECT current_user") == name
        await through.close()


async def test_a_rejection_reaches_the_client_field_by_field(
    database: Database, sidecar: SidecarFactory
) -> None:
    name = f"login_{database.name}"
    database.role(name, "secret")
    with pg_hba(database, f"host {database.name} {name} 127.0.0.1/32 reject"):
        address = database.cluster.primary.address
        with pytest.raises(ServerUnavailable) as refused:
            await connect(
                Dsn(address.host, address.port, name, database.name),
                {"user": name, "database": database.name},
                password="secret",
                timeout=20,
            )
        assert refused.value.relayed is not None
        fields = m.error_fields(refused.value.frame())
        assert (fields["S"], fields["C"], fields["R"]) == (b"FATAL", b"28000", b"ClientAuthentication")


# -- servers that cheat ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _cheat(*said: bytes) -> AsyncIterator[Dsn]:
    """A server that takes a startup packet and then says these things, whatever it hears."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readexactly(8)
            writer.write(b"".join(said))
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Dsn("127.0.0.1", server.sockets[0].getsockname()[1], "app", "shop", sslmode="disable")
    finally:
        server.close()


def _asked(method: int, body: bytes = b"") -> bytes:
    return m.frame(m.AUTHENTICATION, method.to_bytes(4, "big") + body)


OK = m.AUTHENTICATION_OK
SASL = _asked(10, b"SCRAM-SHA-256\0\0")
KEY = m.backend_key_data(1, b"abcd")
READY = m.ready_for_query(b"I")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ((SASL, OK, KEY, READY), "without having proved"),
        ((SASL, _asked(11, b"r=x,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=2147483647")), "iteration"),
        ((SASL, _asked(11, b"r=x,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096")), "SCRAM exchange failed"),
        ((SASL, _asked(12, b"v=AAAA")), "identity"),
        ((_asked(10, b"SCRAM-SHA-256-PLUS\0\0"),), "no SASL mechanism"),
        ((_asked(10, b"\0"),), "no SASL mechanism"),
        ((_asked(11, b"r=x"),), "method 11"),
        ((_asked(7),), "method 7"),
        ((KEY, READY), "before it let us in"),
        ((OK, _asked(3), KEY, READY), "once more"),
        ((OK, m.frame(m.BACKEND_KEY_DATA, b"\0\0\0\1abc"), READY), "cancel key"),
        ((OK, m.frame(m.BACKEND_KEY_DATA, b"\0\0\0\1" + b"x" * 257), READY), "cancel key"),
        ((m.negotiate_version(0, ()), OK, KEY, READY), "not asked for"),
        ((m.negotiate_version(2, ()), OK, KEY, READY), "not asked for"),
        ((m.negotiate_version(0, ["_pq_.x"]), OK, KEY, READY), "not asked for"),
        ((m.frame(m.NEGOTIATE_VERSION, b"\0\3\0\0\xff\xff\xff\xff"), OK), "terminator"),
        ((m.frame(m.NEGOTIATE_VERSION, b"\0\3"), OK), "malformed"),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "invalid message length"),
    ],
)
async def test_a_server_that_breaks_the_protocol_is_named(said: tuple[bytes, ...], complaint: str) -> None:
    async with _cheat(*said) as dsn:
        with pytest.raises(ServerUnavailable, match=complaint) as refused:
            await connect(dsn, {"user": "app", "database": "shop"}, password="s3cret", timeout=20)
        assert refused.value.sqlstate == "08P01"
        assert dsn.label in refused.value.message
