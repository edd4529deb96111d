"""Clients and servers that misbehave: a clear error, nothing lost, nobody else disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
from pathlib import Path

import asyncpg
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.wire import messages as m
from proxy.wire.scram import Verifier
from tests.conftest import Database, Sidecar, SidecarFactory


@pytest.fixture
def proxy(sidecar: SidecarFactory) -> Sidecar:
    """A sidecar in front of primary and replica."""
    return sidecar()


async def _say(port: int, data: bytes) -> bytes:
    """What the sidecar answers to these first bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        return await asyncio.wait_for(reader.read(), 10)
    return b""


def _error(answer: bytes) -> tuple[str, str]:
    assert answer[:1] == b"E", answer
    fields = m.error_fields(answer)
    return fields["C"].decode(), fields["M"].decode()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
        b"\x00\x01\x00\x00" + b"\x00\x03\x00\x00",
        b"\x00" * 12,
    ],
    ids=["http", "ff", "oversized", "zeros"],
)
async def test_a_garbage_startup_packet_gets_a_clear_error(proxy: Sidecar, garbage: bytes) -> None:
    code, message = _error(await _say(proxy.port, garbage))
    assert code == "08P01"
    assert message
    connection = await proxy.connect()
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_garbage_after_the_login_ends_that_session_only(proxy: Sidecar) -> None:
    bystander = await proxy.connect()
    answer = await _say(
        proxy.port, m.startup({"user": proxy.user, "database": proxy.database}) + b"\x01\x02\x03\x04\x05\x06"
    )
    assert b"C08P01\0" in answer
    assert await bystander.fetchval("SELECT 1") == 1
    await bystander.close()


async def test_a_client_that_vanishes_in_the_middle_of_a_message_leaves_nothing(
    database: Database, proxy: Sidecar
) -> None:
    async with database.connection() as direct:
        await direct.execute("CREATE TABLE t (id int)")
        for tail in (
            m.query(b"INSERT INTO t VALUES (1)")[:9],
            m.query(b"BEGIN; INSERT INTO t VALUES (2)") + b"Q\0\0",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(m.startup({"user": proxy.user, "database": proxy.database}))
            await reader.readuntil(b"Z\x00\x00\x00\x05I")
            writer.write(tail)
            await writer.drain()
            await asyncio.sleep(0.2)
            writer.transport.abort()
        await asyncio.sleep(0.3)
        assert await direct.fetchval("SELECT count(*) FROM t") == 0
        assert (
            await direct.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
            )
            == 0
        )
    status = json.loads(proxy.get("/status")[1])
    assert status["databases"]["shop"]["clients"] == {"old": 0, "new": 0, "auto": 0} or not any(
        status["databases"]["shop"]["clients"].values()
    )


async def test_a_client_that_vanishes_during_a_long_query_frees_its_server(
    database: Database, proxy: Sidecar
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(m.startup({"user": proxy.user, "database": proxy.database}))
    await reader.readuntil(b"Z\x00\x00\x00\x05I")
    writer.write(m.query(b"SELECT pg_sleep(600)"))
    await asyncio.sleep(0.3)
    writer.transport.abort()
    async with database.connection() as direct:
        for _ in range(100):
            running = await direct.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND state = 'active' "
                "AND pid <> pg_backend_pid()"
            )
            if not running:
                break
            await asyncio.sleep(0.1)
        assert running == 0


async def test_an_unreachable_server_is_named_with_what_to_do(
    database: Database, sidecar: SidecarFactory
) -> None:
    config = sidecar.default_config().replace(database.dsn.split("@")[1].split("/")[0], "127.0.0.1:1")
    proxy = sidecar(config, wait=False)
    for _ in range(100):
        with contextlib.suppress(OSError):
            status, body = proxy.get("/readyz")
            break
        await asyncio.sleep(0.1)
    assert status == 503
    assert json.loads(body)["reasons"]
    code, message = _error(await _say_until_closed(proxy))
    assert code.startswith("08")
    assert "127.0.0.1:1" in message or "not known" in message


async def _say_until_closed(proxy: Sidecar) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(m.startup({"user": proxy.user, "database": proxy.database}))
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_a_database_that_is_not_configured_is_refused_by_name(proxy: Sidecar) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError, match="nonsense"):
        await asyncpg.connect(proxy.dsn(database="nonsense"))


async def test_an_unknown_schema_version_is_refused_at_login(proxy: Sidecar) -> None:
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="nonsense"):
        await proxy.connect(version="nonsense")


# -- passwords -----------------------------------------------------------------------------------------------------


def _scram(sidecar: SidecarFactory, extra_users: str = "") -> Sidecar:
    users = sidecar.directory / "users.txt"
    users.write_text(f'"app" "{Verifier.from_password("s3cret")}"\n{extra_users}')
    config = sidecar.default_config().replace(
        'method = "trust"', f'method = "scram-sha-256"\nusers_file = "{users}"'
    )
    return sidecar(config)


@pytest.mark.parametrize(("user", "password"), [("app", "wrong"), ("app", ""), ("stranger", "s3cret")])
async def test_a_wrong_password_or_user_fails_the_same_way(
    database: Database, sidecar: SidecarFactory, user: str, password: str
) -> None:
    proxy = _scram(sidecar)
    with pytest.raises(
        asyncpg.InvalidPasswordError, match=f'password authentication failed for user "{user}"'
    ):
        await asyncpg.connect(proxy.dsn(user=user, password=password or "x"))
    good = await asyncpg.connect(proxy.dsn(user="app", password="s3cret"))
    assert await good.fetchval("SELECT 1") == 1
    await good.close()


def test_libpq_logs_in_with_scram_too(database: Database, sidecar: SidecarFactory) -> None:
    proxy = _scram(sidecar)
    with psycopg.connect(proxy.dsn(user="app", password="s3cret")) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_the_server_is_logged_in_to_with_scram(database: Database, sidecar: SidecarFactory) -> None:
    dsn = database.role(f"scram_{database.name}", "pässword")
    proxy = sidecar(sidecar.default_config().replace(database.dsn, dsn))
    connection = await asyncpg.connect(proxy.dsn(user=f"scram_{database.name}"))
    assert await connection.fetchval("SELECT current_user") == f"scram_{database.name}"
    await connection.close()


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


def _tls(sidecar: SidecarFactory, certificate: tuple[Path, Path]) -> Sidecar:
    cert, key = certificate
    config = sidecar.default_config().replace(
        "[admin]", f'tls_cert = "{cert}"\ntls_key = "{key}"\n[admin]', 1
    )
    return sidecar(config)


async def test_clients_can_use_tls_where_it_is_configured(
    database: Database, sidecar: SidecarFactory, certificate: tuple[Path, Path]
) -> None:
    proxy = _tls(sidecar, certificate)
    context = ssl.create_default_context(cafile=str(certificate[0]))
    connection = await asyncpg.connect(proxy.dsn(), ssl=context)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()
    with psycopg.connect(proxy.dsn() + f"?sslmode=verify-full&sslrootcert={certificate[0]}") as sync:
        assert sync.execute("SELECT repeat('x', 100000)").fetchone() == ("x" * 100000,)


async def test_bytes_stuffed_before_the_tls_handshake_are_refused(
    database: Database, sidecar: SidecarFactory, certificate: tuple[Path, Path]
) -> None:
    proxy = _tls(sidecar, certificate)
    stuffed = bytes.fromhex("0000000804d2162f") + m.startup({"user": "postgres", "database": "shop"})
    code, message = _error(await _say(proxy.port, stuffed))
    assert code == "08P01"
    assert "unencrypted" in message


async def test_without_tls_an_ssl_request_is_answered_with_n(proxy: Sidecar) -> None:
    with psycopg.connect(proxy.dsn() + "?sslmode=prefer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="SSL"):
        psycopg.connect(proxy.dsn() + "?sslmode=require")


# -- random bytes ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=200))
def test_random_bytes_after_the_login_never_hurt_another_session(proxy: Sidecar, data: bytes) -> None:
    async def attempt() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(m.startup({"user": proxy.user, "database": proxy.database}))
        await reader.readuntil(b"Z\x00\x00\x00\x05I")
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 10)
        writer.close()

    asyncio.run(attempt())
    with psycopg.connect(proxy.dsn()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
