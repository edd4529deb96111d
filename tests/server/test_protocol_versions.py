"""Protocol 3.0 and 3.2 towards clients and servers: what is asked for, what is spoken, and how long cancel keys are."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from migrator.cluster import Cluster, start_cluster
from proxy.wire import messages as m
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.server.handshake import GSSENC_REQUEST, SSL_REQUEST, Peer, error, kinds, make_pki, with_listen


@pytest.fixture
def proxy(sidecar: SidecarFactory) -> Sidecar:
    """A sidecar in front of primary and replica."""
    return sidecar()


def _startup(major: int, minor: int, parameters: dict[str, str], end: bytes = b"\0") -> bytes:
    body = b"".join(k.encode() + b"\0" + v.encode() + b"\0" for k, v in parameters.items()) + end
    return struct.pack(">IHH", len(body) + 8, major, minor) + body


async def _both(database: Database, proxy: Sidecar, say: Any) -> tuple[bytes, bytes]:
    """What PostgreSQL and the sidecar say to the same; ``say`` gets a Peer and the parameters of a login."""
    address = database.cluster.primary.address
    heard: list[bytes] = []
    for host, port, user, name in (
        (address.host, address.port, address.user, database.name),
        ("127.0.0.1", proxy.port, proxy.user, proxy.database),
    ):
        peer = await Peer.dial(host, port)
        heard.append(await say(peer, {"user": user, "database": name}))
        peer.close()
    return heard[0], heard[1]


def _plain(frame: bytes) -> bytes:
    """A frame without the place in the server's source."""
    return m.error_with_fields(frame, {"F": None, "L": None, "R": None}) if frame[:1] == b"E" else frame


ASKED: list[tuple[int, dict[str, str]]] = [
    (0, {}),
    (1, {}),
    (2, {}),
    (3, {}),
    (9999, {}),
    (0, {"_pq_.one": "1", "_pq_.two": "2"}),
    (1, {"_pq_.one": "1"}),
    (2, {"_pq_.one": "1"}),
    (9999, {"_pq_.test_protocol_negotiation": ""}),
]


async def test_a_version_is_negotiated_as_by_postgresql(database: Database, proxy: Sidecar) -> None:
    password = database.cluster.primary.address.password
    for minor, options in ASKED:

        async def say(peer: Peer, who: dict[str, str], minor: int = minor, options: Any = options) -> Any:
            frames = await peer.login({**who, **options}, minor=minor, password=password)
            assert frames[-1][0] == m.READY_FOR_QUERY
            return peer.negotiated, len(peer.key[1])

        direct, ours = await _both(database, proxy, say)
        assert ours == direct, (minor, options)


REFUSED: list[tuple[int, int, dict[str, str], bytes]] = [
    (4, 0, {}, b"\0"),
    (2, 0, {}, b"\0"),
    (1, 2, {}, b"\0"),
    (1234, 0, {}, b"\0"),
    (3, 0, {"user": ""}, b"\0"),
    (3, 0, {"replication": "perhaps"}, b"\0"),
    (3, 0, {"replication": ""}, b"\0"),
    (3, 2, {"replication": "o"}, b"\0"),
    (3, 0, {}, b""),
    (3, 0, {}, b"\0\0"),
    (3, 0, {}, b"x\0"),
    (3, 0, {}, b"x\0\0"),
    (3, 0, {}, b"\0x"),
]


async def test_what_cannot_be_served_is_refused_in_the_same_words(database: Database, proxy: Sidecar) -> None:
    for major, minor, change, end in REFUSED:

        async def say(peer: Peer, who: dict[str, str], case: Any = (major, minor, change, end)) -> bytes:
            major, minor, change, end = case
            peer.say(_startup(major, minor, {**who, **change}, end))
            said = await peer.rest()
            return _plain(said) if major > 2 else said

        direct, ours = await _both(database, proxy, say)
        assert ours == direct, (major, minor, change, end)
        assert b"FATAL" in ours


ENCRYPTION: list[tuple[bytes, ...]] = [
    (SSL_REQUEST, SSL_REQUEST),
    (GSSENC_REQUEST, GSSENC_REQUEST),
    (SSL_REQUEST, GSSENC_REQUEST, SSL_REQUEST),
    (SSL_REQUEST + GSSENC_REQUEST,),
    (GSSENC_REQUEST + SSL_REQUEST,),
]


async def test_encryption_requests_without_tls_are_answered_as_by_postgresql(
    database: Database, proxy: Sidecar
) -> None:
    async with database.connection() as connection:
        if await connection.fetchval("SHOW ssl") == "on":
            pytest.skip("this PostgreSQL has TLS")
    for requests in ENCRYPTION:

        async def say(peer: Peer, who: dict[str, str], requests: tuple[bytes, ...] = requests) -> bytes:
            for request in requests[:-1]:
                peer.say(request)
                assert await peer.byte() == b"N"
            peer.say(requests[-1])
            said = await peer.rest()
            count = len(said) - len(said.lstrip(b"N"))
            return said[:count] + _plain(said[count:])

        direct, ours = await _both(database, proxy, say)
        assert ours == direct, requests


async def test_a_login_follows_refused_encryption_requests_in_either_order(proxy: Sidecar) -> None:
    for requests in ((GSSENC_REQUEST, SSL_REQUEST), (SSL_REQUEST, GSSENC_REQUEST), (GSSENC_REQUEST,)):
        peer = await Peer.dial("127.0.0.1", proxy.port)
        for request in requests:
            peer.say(request)
            assert await peer.byte() == b"N"
        assert kinds(await peer.login({"user": proxy.user, "database": proxy.database}))[-1] == "Z"
        peer.close()


# -- cancel keys ---------------------------------------------------------------------------------------------------


async def _cancel(proxy: Sidecar, pid: int, secret: bytes) -> bytes:
    peer = await Peer.dial("127.0.0.1", proxy.port)
    peer.say(m.cancel_request(pid, secret))
    return await peer.rest()


async def test_a_cancel_key_of_either_length_cancels_its_own_query_only(proxy: Sidecar) -> None:
    for minor, length in ((0, 4), (1, 4), (2, 32), (9999, 32)):
        one, two = [await Peer.dial("127.0.0.1", proxy.port) for _ in range(2)]
        for peer in (one, two):
            await peer.login({"user": proxy.user, "database": proxy.database}, minor=minor)
            assert len(peer.key[1]) == length
            peer.say(m.query(b"SELECT pg_sleep(30)"))
        await asyncio.sleep(0.3)
        pid, secret = one.key
        for wrong in (secret[:-1], secret + b"\0", bytes(length), two.key[1], secret[:3] + bytes(length - 3)):
            assert await _cancel(proxy, pid, wrong) == b""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.reader.readexactly(1), 0.3)
        assert await _cancel(proxy, pid, secret) == b""
        assert error(await one.until(m.READY_FOR_QUERY))[0] == "57014"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(two.reader.readexactly(1), 0.3)
        one.close()
        two.close()


async def test_a_cancel_request_of_another_length_is_closed_without_a_word(proxy: Sidecar) -> None:
    for length in (0, 257, 5000):
        assert await _cancel(proxy, 1, bytes(length)) == b""


def test_libpq_speaks_3_2_and_cancels(proxy: Sidecar) -> None:
    with psycopg.connect(proxy.dsn() + "?max_protocol_version=3.2&min_protocol_version=3.2") as connection:
        assert connection.pgconn.full_protocol_version == 30002
        connection.cancel_safe()
        assert connection.execute("SELECT 1").fetchone() == (1,)


# -- towards servers -----------------------------------------------------------------------------------------------


async def _cancels(proxy: Sidecar) -> None:
    connection = await proxy.connect()
    with pytest.raises((asyncpg.QueryCanceledError, TimeoutError)):
        await connection.execute("SELECT pg_sleep(30)", timeout=0.5)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.parametrize("version", ["3.0", "latest"])
async def test_a_server_is_asked_for_the_version_of_its_connection_string(
    database: Database, sidecar: SidecarFactory, version: str
) -> None:
    config = sidecar.default_config().replace(database.dsn, f"{database.dsn}?max_protocol_version={version}")
    await _cancels(sidecar(config))


@pytest.fixture(scope="module")
def older() -> Iterator[Cluster]:
    """A server that knows 3.0 only."""
    with start_cluster(replicas=0, version=16) as started:
        yield started


async def test_an_older_server_is_spoken_to_in_its_own_version(
    older: Cluster, sidecar: SidecarFactory, database: Database
) -> None:
    if older.primary.sql("SHOW server_version_num") >= "180000":
        pytest.skip("no older server at hand")
    config = sidecar.default_config().replace(
        database.dsn, f"{older.primary.dsn()}?max_protocol_version=latest"
    )
    proxy = sidecar("\n".join(line for line in config.splitlines() if not line.startswith("replicas")))
    await _cancels(proxy)
    peer = await Peer.dial("127.0.0.1", proxy.port)
    await peer.login({"user": proxy.user, "database": proxy.database}, minor=2)
    assert (peer.negotiated, len(peer.key[1])) == ([], 32)
    peer.close()


def test_tls_negotiation_changes_nothing_of_the_version(sidecar: SidecarFactory, tmp_path: Any) -> None:
    pki = make_pki(tmp_path)
    proxy = sidecar(with_listen(sidecar.default_config(), pki.listen()))
    with psycopg.connect(proxy.dsn() + "?sslmode=require&max_protocol_version=latest") as connection:
        assert connection.pgconn.full_protocol_version == 30002
        connection.cancel_safe()
