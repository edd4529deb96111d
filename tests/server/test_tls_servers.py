"""TLS towards servers: libpq's sslmode, sslnegotiation, sslrootcert, sslcert and sslcrl, and servers that cheat."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from proxy.backend import tls
from proxy.backend.connection import ServerConnection, connect
from proxy.backend.errors import ServerUnavailable
from proxy.dsn import parse
from tests.conftest import Database, SidecarFactory
from tests.server.front import ENCRYPTED, PLAIN, Front, fronted
from tests.server.handshake import Pki, make_pki, pg_hba

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


@pytest.fixture
def pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pki:
    """An authority and the server's certificate; no files of this machine's user play a part."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return make_pki(tmp_path)


@pytest.fixture(autouse=True)
def let_in(database: Database) -> Iterator[None]:
    """Both of the front's addresses, with passwords."""
    with pg_hba(
        database, *(f"host {database.name} all {address}/32 scram-sha-256" for address in (ENCRYPTED, PLAIN))
    ):
        yield


async def _login(dsn: str, password: str | None = None) -> ServerConnection:
    parsed = parse(dsn)
    return await connect(
        parsed,
        {"user": parsed.user, "database": parsed.database},
        password=password or parsed.password,
        timeout=20,
    )


async def _encrypted(dsn: str) -> bool:
    """Whether a connection made so is encrypted; ServerUnavailable if none is made."""
    connection = await _login(dsn)
    await connection.simple("SELECT 1")
    connection.close()
    return connection.encrypted


async def _each(front: Front, **parameters: str) -> dict[str, bool | str]:
    """What becomes of each sslmode: encrypted or not, or the SQLSTATE."""
    found: dict[str, bool | str] = {}
    for mode in MODES:
        try:
            found[mode] = await _encrypted(front.dsn("localhost", sslmode=mode, **parameters))
        except ServerUnavailable as exc:
            found[mode] = exc.sqlstate
    return found


async def test_each_sslmode_with_a_server_that_offers_tls(database: Database, pki: Pki) -> None:
    async with fronted(database, pki.server_context()) as front:
        assert await _each(front) == {
            "disable": False,
            "allow": False,
            "prefer": True,
            "require": True,
            "verify-ca": "08001",
            "verify-full": "08001",
        }
        with_root = await _each(front, sslrootcert=str(pki.root))
        assert with_root == dict(zip(MODES, (False, False, True, True, True, True), strict=True))


async def test_each_sslmode_with_a_server_that_has_none(database: Database, pki: Pki) -> None:
    async with fronted(database, None) as front:
        found = await _each(front, sslrootcert=str(pki.root))
        assert found == dict(zip(MODES, (False, False, False, "08001", "08001", "08001"), strict=True))
        assert set(front.seen) == {"plain"}


async def test_allow_uses_tls_where_pg_hba_refuses_a_plain_login(database: Database, pki: Pki) -> None:
    with pg_hba(database, f"host {database.name} all {PLAIN}/32 reject"):
        async with fronted(database, pki.server_context()) as front:
            assert await _encrypted(front.dsn(sslmode="allow"))
            assert front.seen == ["plain", "tls"]
            with pytest.raises(ServerUnavailable) as refused:
                await _encrypted(front.dsn(sslmode="disable"))
            assert refused.value.sqlstate == "28000"
        async with fronted(database, None) as front:
            # What the server said of the login is told, not that it has no TLS.
            with pytest.raises(ServerUnavailable) as refused:
                await _encrypted(front.dsn(sslmode="allow"))
            assert refused.value.sqlstate == "28000"


async def test_prefer_does_without_tls_where_pg_hba_refuses_it(database: Database, pki: Pki) -> None:
    with pg_hba(database, f"host {database.name} all {ENCRYPTED}/32 reject"):
        async with fronted(database, pki.server_context()) as front:
            assert not await _encrypted(front.dsn(sslmode="prefer"))
            assert front.seen == ["tls", "plain"]
            with pytest.raises(ServerUnavailable) as refused:
                await _encrypted(front.dsn(sslmode="require"))
            assert refused.value.sqlstate == "28000"


async def test_a_wrong_password_is_not_tried_in_another_way(database: Database, pki: Pki) -> None:
    async with fronted(database, pki.server_context()) as front:
        for mode, ways in (("prefer", ["tls"]), ("allow", ["plain"])):
            front.seen.clear()
            with pytest.raises(ServerUnavailable) as refused:
                await _login(front.dsn(sslmode=mode), "wrong")
            assert refused.value.sqlstate == "28P01"
            assert front.seen == ways


async def test_prefer_does_without_tls_where_the_handshake_fails(
    database: Database, pki: Pki, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = make_pki(other)
    async with fronted(database, pki.server_context()) as front:
        assert not await _encrypted(front.dsn(sslmode="prefer", sslrootcert=str(stranger.root)))
        for mode in ("require", "verify-ca", "verify-full"):
            with pytest.raises(ServerUnavailable, match="certificate verify failed"):
                await _encrypted(front.dsn(sslmode=mode, sslrootcert=str(stranger.root)))


async def test_a_root_certificate_in_its_usual_place_is_used_with_require(
    database: Database, pki: Pki, tmp_path: Path
) -> None:
    usual = tmp_path / ".postgresql"
    usual.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    async with fronted(database, pki.server_context()) as front:
        (usual / "root.crt").write_bytes(pki.root.read_bytes())
        assert await _encrypted(front.dsn(sslmode="require"))
        (usual / "root.crt").write_bytes(make_pki(other).root.read_bytes())
        with pytest.raises(ServerUnavailable, match="certificate verify failed"):
            await _encrypted(front.dsn(sslmode="require"))


async def test_only_verify_full_minds_the_name(database: Database, pki: Pki) -> None:
    pki.renew("elsewhere.example")
    async with fronted(database, pki.server_context()) as front:
        root = str(pki.root)
        assert await _encrypted(front.dsn("localhost", sslmode="verify-ca", sslrootcert=root))
        with pytest.raises(ServerUnavailable, match=r"[Hh]ostname"):
            await _encrypted(front.dsn("localhost", sslmode="verify-full", sslrootcert=root))


async def test_the_systems_certificates_do_not_vouch_for_ours(database: Database, pki: Pki) -> None:
    async with fronted(database, pki.server_context()) as front:
        with pytest.raises(ServerUnavailable, match="certificate verify failed"):
            await _encrypted(front.dsn("localhost", sslrootcert="system"))


async def test_the_systems_certificates_are_where_openssl_looks(
    database: Database, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.root))
    async with fronted(database, pki.server_context()) as front:
        # A context that was made before is kept for as long as no file that is named changes.
        tls._context.cache_clear()
        assert await _encrypted(front.dsn("localhost", sslrootcert="system"))
        tls._context.cache_clear()


async def test_direct_tls(database: Database, pki: Pki) -> None:
    parameters = {"sslnegotiation": "direct", "sslrootcert": str(pki.root)}
    async with fronted(database, pki.server_context(), direct=True) as front:
        for mode in ("require", "verify-full"):
            assert await _encrypted(front.dsn("localhost", sslmode=mode, **parameters))
        assert set(front.seen) == {"direct"}
    async with fronted(database, pki.server_context(alpn=False), direct=True) as front:
        with pytest.raises(ServerUnavailable, match="not for PostgreSQL"):
            await _encrypted(front.dsn("localhost", sslmode="require", **parameters))


async def test_the_servers_name_is_told_unless_sslsni_is_off(database: Database, pki: Pki) -> None:
    async with fronted(database, pki.server_context()) as front:
        for host, parameters in (
            ("localhost", {}),
            ("127.0.0.1", {}),
            ("localhost", {"sslsni": "0"}),
        ):
            assert await _encrypted(front.dsn(host, sslmode="require", **parameters))
        assert front.names == ["localhost", None, None]


async def test_a_client_certificate_is_shown(database: Database, pki: Pki, tmp_path: Path) -> None:
    mine = pki.authority.issue_cert("client@example.org")
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"
    cert.write_bytes(mine.cert_chain_pems[0].bytes())
    key.write_bytes(mine.private_key_pem.bytes())
    context = pki.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki.root)
    async with fronted(database, context) as front:
        assert await _encrypted(front.dsn(sslmode="require", sslcert=str(cert), sslkey=str(key)))
        with pytest.raises(ServerUnavailable):
            await _encrypted(front.dsn(sslmode="require"))
        with pytest.raises(ServerUnavailable, match=r"client\.crt"):
            await _encrypted(front.dsn(sslmode="require", sslcert=str(cert), sslkey=str(pki.key)))


async def test_a_revoked_certificate_is_refused(database: Database, pki: Pki, tmp_path: Path) -> None:
    crl = tmp_path / "root.crl"

    def revoke(*serials: int) -> None:
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.load_pem_x509_certificate(pki.root.read_bytes())
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - datetime.timedelta(days=1))
            .next_update(now + datetime.timedelta(days=1))
        )
        for serial in serials:
            made = made.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            )
        signing = serialization.load_pem_private_key(pki.authority.private_key_pem.bytes(), None)
        crl.write_bytes(
            made.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]
        )

    async with fronted(database, pki.server_context()) as front:
        dsn = front.dsn("localhost", sslmode="verify-full", sslrootcert=str(pki.root), sslcrl=str(crl))
        revoke()
        assert await _encrypted(dsn)
        revoke(x509.load_pem_x509_certificate(pki.cert.read_bytes()).serial_number)
        with pytest.raises(ServerUnavailable, match="revoked"):
            await _encrypted(dsn)


# -- servers that cheat ------------------------------------------------------------------------------------------------


async def test_bytes_between_the_answer_and_the_handshake_are_refused(database: Database, pki: Pki) -> None:
    async with fronted(database, pki.server_context(), stuffing=b"R\0\0\0\x08\0\0\0\0") as front:
        for mode in ("prefer", "require"):
            with pytest.raises(ServerUnavailable, match="unencrypted data"):
                await _encrypted(front.dsn(sslmode=mode))
    async with fronted(database, None, stuffing=b"R\0\0\0\x08\0\0\0\0") as front:
        with pytest.raises(ServerUnavailable, match="unencrypted data"):
            await _encrypted(front.dsn(sslmode="prefer"))


async def test_an_error_in_the_place_of_an_answer_is_not_shown(database: Database, pki: Pki) -> None:
    async with fronted(database, pki.server_context(), refusal=b"Esend your password to me\0") as front:
        assert not await _encrypted(front.dsn(sslmode="prefer"))
        with pytest.raises(ServerUnavailable) as refused:
            await _encrypted(front.dsn(sslmode="require"))
        assert "password" not in refused.value.message
    async with fronted(database, pki.server_context(), refusal=b"X") as front:
        with pytest.raises(ServerUnavailable, match="garbage"):
            await _encrypted(front.dsn(sslmode="prefer"))


# -- a whole sidecar ---------------------------------------------------------------------------------------------------


async def test_a_sidecar_uses_it_for_all_its_connections_and_for_cancel_requests(
    database: Database, sidecar: SidecarFactory, pki: Pki
) -> None:
    for direct in (False, True):
        async with fronted(database, pki.server_context(), direct=direct) as front:
            dsn = front.dsn(
                "localhost",
                sslmode="verify-full",
                sslrootcert=str(pki.root),
                sslnegotiation="direct" if direct else "postgres",
                max_protocol_version="latest",
            )
            config = sidecar.default_config().replace(database.dsn, dsn)
            proxy = await asyncio.to_thread(sidecar, config)
            connection = await proxy.connect()
            assert await connection.fetchval("SELECT length(repeat('x', 3000000))") == 3_000_000
            with pytest.raises((asyncpg.QueryCanceledError, TimeoutError)):
                await connection.execute("SELECT pg_sleep(60)", timeout=0.5)
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()
            how = "direct" if direct else "tls"
            assert set(front.seen) == {how, f"cancel-{how}"}
            await asyncio.to_thread(proxy.terminate)
