"""TLS towards clients: what libpq's sslmode and sslnegotiation get, what is refused, and renewed certificates."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import trustme

from proxy.wire import messages as m
from proxy.wire.scram import Verifier
from tests.conftest import Sidecar, SidecarFactory
from tests.server.handshake import SSL_REQUEST, Peer, Pki, error, kinds, make_pki, with_listen


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """An authority and the sidecar's certificate."""
    return make_pki(tmp_path)


@pytest.fixture
def proxy(sidecar: SidecarFactory, pki: Pki) -> Sidecar:
    """A sidecar that offers TLS."""
    return sidecar(with_listen(sidecar.default_config(), pki.listen()))


def _encrypted(proxy: Sidecar, **options: object) -> bool:
    """Logs in through libpq and tells whether the connection is encrypted; OperationalError if it fails."""
    given = {"host": "localhost", "hostaddr": "127.0.0.1", "sslrootcert": "", **options}
    with psycopg.connect(proxy.dsn(), **{k: v for k, v in given.items() if v}) as connection:  # type: ignore[arg-type]
        assert connection.execute("SELECT repeat('x', 100000)").fetchone() == ("x" * 100_000,)
        return bool(connection.pgconn.ssl_in_use)


def _who(proxy: Sidecar) -> dict[str, str]:
    return {"user": proxy.user, "database": proxy.database}


def test_each_sslmode_gets_what_libpq_promises(proxy: Sidecar, pki: Pki) -> None:
    assert not _encrypted(proxy, sslmode="disable")
    assert not _encrypted(proxy, sslmode="allow")
    for mode in ("prefer", "require"):
        assert _encrypted(proxy, sslmode=mode)
    for mode in ("verify-ca", "verify-full"):
        assert _encrypted(proxy, sslmode=mode, sslrootcert=str(pki.root))
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        _encrypted(proxy, sslmode="verify-full", sslrootcert=str(pki.root), host="elsewhere")


def test_libpq_connects_with_direct_tls(proxy: Sidecar, pki: Pki) -> None:
    for mode in ("require", "verify-full"):
        assert _encrypted(proxy, sslmode=mode, sslnegotiation="direct", sslrootcert=str(pki.root))


def test_a_cancel_request_comes_encrypted_too(proxy: Sidecar) -> None:
    for negotiation in ("postgres", "direct"):
        for version in ("3.0", "3.2"):
            with psycopg.connect(
                proxy.dsn(),
                autocommit=True,
                sslmode="require",
                sslnegotiation=negotiation,
                max_protocol_version=version,
            ) as connection:
                later = threading.Timer(0.5, connection.cancel_safe)
                later.start()
                with pytest.raises(psycopg.errors.QueryCanceled):
                    connection.execute("SELECT pg_sleep(60)")
                later.join()
                assert connection.execute("SELECT 1").fetchone() == (1,)


def test_scram_goes_through_tls(sidecar: SidecarFactory, pki: Pki, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text(f'"app" "{Verifier.from_password("s3cret")}"\n')
    config = with_listen(sidecar.default_config(), pki.listen('tls = "require"'))
    proxy = sidecar(config.replace('method = "trust"', f'method = "scram-sha-256"\nusers_file = "{users}"'))
    for negotiation in ("postgres", "direct"):
        with psycopg.connect(
            proxy.dsn(user="app", password="s3cret"), sslmode="require", sslnegotiation=negotiation
        ) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(
                proxy.dsn(user="app", password="wrong"), sslmode="require", sslnegotiation=negotiation
            )


async def test_a_first_byte_of_a_handshake_alone_is_waited_for(proxy: Sidecar, pki: Pki) -> None:
    for sizes in ([1], [2, 3, 1], [5, 100], [4096]):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = pki.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        for size in [*sizes, len(hello)]:
            writer.write(hello[:size])
            hello = hello[size:]
            await writer.drain()
            await asyncio.sleep(0.03)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await asyncio.wait_for(reader.read(65536), 10))
        # The end of the handshake and the startup packet in one segment.
        tls.write(m.startup(_who(proxy)))
        writer.write(outgoing.read())
        said = b""
        while m.ready_for_query(b"I") not in said:
            incoming.write(await asyncio.wait_for(reader.read(65536), 10))
            try:
                while True:
                    said += tls.read(65536)
            except ssl.SSLWantReadError:
                pass
        writer.close()


async def test_direct_tls_needs_the_protocol_named(proxy: Sidecar, pki: Pki) -> None:
    peer = await Peer.dial("127.0.0.1", proxy.port, pki.context(alpn=False))
    peer.say(m.startup(_who(proxy)))
    assert await peer.rest() == b""
    # After an SSLRequest it need not be: older clients do not know of it.
    peer = await Peer.dial("127.0.0.1", proxy.port)
    await peer.encrypt(pki.context(alpn=False))
    assert kinds(await peer.login(_who(proxy)))[-1] == "Z"
    peer.close()


async def test_the_protocol_is_named_after_an_ssl_request_too(proxy: Sidecar, pki: Pki) -> None:
    peer = await Peer.dial("127.0.0.1", proxy.port)
    await peer.encrypt(pki.context())
    assert peer.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "postgresql"
    peer.close()


async def test_an_ssl_request_inside_tls_is_answered_as_by_postgresql(proxy: Sidecar, pki: Pki) -> None:
    direct = await Peer.dial("127.0.0.1", proxy.port, pki.context())
    direct.say(SSL_REQUEST)
    assert await direct.byte() == b"N"
    assert kinds(await direct.login(_who(proxy)))[-1] == "Z"
    direct.close()
    asked = await Peer.dial("127.0.0.1", proxy.port)
    await asked.encrypt(pki.context())
    asked.say(SSL_REQUEST)
    assert error([await asked.frame()])[0] == "0A000"
    asked.close()


async def test_what_comes_in_the_clear_before_the_handshake_is_never_read(proxy: Sidecar, pki: Pki) -> None:
    startup = m.startup(_who(proxy))
    peer = await Peer.dial("127.0.0.1", proxy.port)
    peer.say(SSL_REQUEST + startup)
    assert error([await peer.frame()]) == ("08P01", "received unencrypted data after SSL request")
    assert await peer.rest() == b""
    # Behind the answer, in the place of a handshake.
    peer = await Peer.dial("127.0.0.1", proxy.port)
    peer.say(SSL_REQUEST)
    assert await peer.byte() == b"S"
    peer.say(startup)
    assert b"Z\0\0\0\5" not in await peer.rest()
    # Before and behind a ClientHello.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = pki.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    for stuffed in (startup + hello, hello + startup, hello[:20] + startup):
        peer = await Peer.dial("127.0.0.1", proxy.port)
        peer.say(stuffed)
        if stuffed.startswith(startup):
            # Nothing was encrypted, and nothing is afterwards: the login is a plain one, then there is garbage.
            assert b"C08P01\0" in await peer.rest()
        else:
            peer.writer.write_eof()
            assert b"Z\0\0\0\5" not in await peer.rest()


async def test_garbage_in_the_place_of_a_handshake_frees_its_connection(
    sidecar: SidecarFactory, pki: Pki, eventually: Callable[..., None]
) -> None:
    config = with_listen(sidecar.default_config(), pki.listen())
    proxy = sidecar(config + '[limits]\nmax_logins = 2\nclient_login_timeout = "1s"\n')
    for garbage in (b"\x16", b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x00\x05hello", b"\x16" * 5000):
        peers = [await Peer.dial("127.0.0.1", proxy.port) for _ in range(2)]
        for peer in peers:
            peer.say(garbage)
            peer.writer.write_eof()
        for peer in peers:
            await peer.rest()
            peer.close()
    assert await asyncio.to_thread(_encrypted, proxy, sslmode="require", sslnegotiation="direct")


# -- who may come without --------------------------------------------------------------------------------------------


async def test_required_tls_refuses_a_plain_login_but_not_a_cancel_request(
    sidecar: SidecarFactory, pki: Pki
) -> None:
    proxy = sidecar(with_listen(sidecar.default_config(), pki.listen('tls = "require"')))
    peer = await Peer.dial("127.0.0.1", proxy.port)
    code, message = error(await peer.login(_who(proxy)))
    assert code == "28000"
    assert f'host "127.0.0.1", user "{proxy.user}", database "shop", no encryption' in message
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        await asyncio.to_thread(_encrypted, proxy, sslmode="disable")
    # libpq tries again with TLS.
    assert await asyncio.to_thread(_encrypted, proxy, sslmode="allow")
    sleeper = await Peer.dial("127.0.0.1", proxy.port, pki.context())
    await sleeper.login(_who(proxy), minor=2)
    sleeper.say(m.query(b"SELECT pg_sleep(60)"))
    await asyncio.sleep(0.3)
    canceller = await Peer.dial("127.0.0.1", proxy.port)
    canceller.say(m.cancel_request(*sleeper.key))
    await canceller.rest()
    assert error(await sleeper.until(m.READY_FOR_QUERY))[0] == "57014"
    sleeper.close()


def test_required_tls_lets_unix_sockets_be(sidecar: SidecarFactory, pki: Pki, tmp_path: Path) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    proxy = sidecar(
        with_listen(sidecar.default_config(), pki.listen('tls = "require"')),
        environment={"DUALWIRE_LISTEN__ADDRESS": f"{sockets}:6000"},
    )
    # libpq itself never asks for TLS there; whoever does is refused.
    with psycopg.connect(host=str(sockets), port=6000, user=proxy.user, dbname="shop") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

    async def ask() -> None:
        peer = Peer(*await asyncio.open_unix_connection(f"{sockets}/.s.PGSQL.6000"))
        peer.say(SSL_REQUEST)
        assert await peer.byte() == b"N"
        peer.close()
        peer = Peer(*await asyncio.open_unix_connection(f"{sockets}/.s.PGSQL.6000"))
        peer.say(b"\x16\x03\x01\x02\x00")
        assert await peer.rest() == b""

    asyncio.run(ask())


def test_disabled_tls_is_not_offered_though_there_is_a_certificate(sidecar: SidecarFactory, pki: Pki) -> None:
    proxy = sidecar(with_listen(sidecar.default_config(), pki.listen('tls = "disable"')))
    assert not _encrypted(proxy, sslmode="prefer")
    with pytest.raises(psycopg.OperationalError):
        _encrypted(proxy, sslmode="require")
    with pytest.raises(psycopg.OperationalError):
        _encrypted(proxy, sslmode="require", sslnegotiation="direct")


def test_an_older_tls_version_than_the_least_is_refused(sidecar: SidecarFactory, pki: Pki) -> None:
    proxy = sidecar(with_listen(sidecar.default_config(), pki.listen('tls_min_version = "TLSv1.3"')))
    assert _encrypted(proxy, sslmode="require")
    with pytest.raises(psycopg.OperationalError, match="SSL error"):
        _encrypted(proxy, sslmode="require", ssl_max_protocol_version="TLSv1.2")


# -- renewal -----------------------------------------------------------------------------------------------------------


def _shown(proxy: Sidecar, pki: Pki) -> bytes:
    """The certificate that the sidecar shows now."""

    async def look() -> bytes:
        peer = await Peer.dial("127.0.0.1", proxy.port, pki.context())
        shown: bytes = peer.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        peer.close()
        return shown

    return asyncio.run(look())


def _der(leaf: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


def _reload(proxy: Sidecar) -> dict[str, object]:
    found: dict[str, object] = json.loads(proxy.get("/status")[1])["config"]["reload"]
    return found


def test_a_renewed_certificate_is_shown_after_a_reload(
    proxy: Sidecar, pki: Pki, eventually: Callable[..., None]
) -> None:
    with psycopg.connect(proxy.dsn(), sslmode="require") as before:
        renewed = _der(pki.renew())
        proxy.signal(signal.SIGHUP)
        eventually(lambda: _shown(proxy, pki) == renewed, what="the renewed certificate")
        assert before.execute("SELECT 1").fetchone() == (1,)
    assert _encrypted(proxy, sslmode="verify-full", sslrootcert=str(pki.root))


def test_a_broken_certificate_fails_the_reload_and_the_old_one_stays(
    proxy: Sidecar, pki: Pki, eventually: Callable[..., None]
) -> None:
    shown = _shown(proxy, pki)
    good = pki.cert.read_bytes()
    pki.cert.write_text("no certificate")
    proxy.signal(signal.SIGHUP)
    eventually(lambda: _reload(proxy)["result"] == "rejected", what="the rejection")
    assert "cannot be used" in str(_reload(proxy)["error"])
    assert _shown(proxy, pki) == shown
    # Another key than the certificate's is as bad.
    pki.cert.write_bytes(good)
    pki.key.write_bytes(pki.authority.issue_cert("localhost").private_key_pem.bytes())
    proxy.signal(signal.SIGHUP)
    eventually(lambda: "MISMATCH" in str(_reload(proxy)["error"]), what="the second rejection")
    assert _shown(proxy, pki) == shown
    renewed = _der(pki.renew())
    proxy.signal(signal.SIGHUP)
    eventually(lambda: _shown(proxy, pki) == renewed, what="the renewed certificate")


def test_whether_tls_is_required_changes_with_a_reload(
    proxy: Sidecar, pki: Pki, eventually: Callable[..., None]
) -> None:
    assert not _encrypted(proxy, sslmode="disable")
    proxy.config.write_text(with_listen(proxy.config.read_text(), 'tls = "require"'))
    proxy.signal(signal.SIGHUP)

    def refused() -> bool:
        try:
            return _encrypted(proxy, sslmode="disable")
        except psycopg.OperationalError as exc:
            return "no encryption" in str(exc)

    eventually(refused, what="the refusal")


def test_a_sidecar_does_not_start_with_a_broken_certificate(sidecar: SidecarFactory, pki: Pki) -> None:
    pki.key.write_text("no key")
    proxy = sidecar(with_listen(sidecar.default_config(), pki.listen()), wait=False)
    assert proxy.process.wait(30) == 2
    assert "cannot be used" in proxy.log
