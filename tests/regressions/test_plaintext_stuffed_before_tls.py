"""Plaintext stuffed before TLS.

Guards against proxies (and servers: CVE-2021-23214) that keep what they had already read when encryption begins, and
take it for the first bytes of the encrypted stream: somebody on the way can then say the first statements of a session
that its client believes to be protected from the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from proxy.wire import messages as m
from tests.conftest import Database, SidecarFactory
from tests.server.test_bad_peers import certificate as certificate

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
STATEMENT = "INSERT INTO seen VALUES ('stuffed')"


@pytest.mark.parametrize("pool_mode", ["session", "transaction"], ids=["session-pool", "transaction-pool"])
@pytest.mark.parametrize("together", [True, False], ids=["one-segment", "two-segments"])
async def test_what_came_before_the_handshake_is_never_taken_for_encrypted(
    database: Database,
    sidecar: SidecarFactory,
    certificate: tuple[Path, Path],
    pool_mode: str,
    together: bool,
) -> None:
    database.sql("CREATE TABLE seen (who text)")
    cert, key = certificate
    config = sidecar.default_config(extra=f'pool_mode = "{pool_mode}"\n')
    proxy = sidecar(config.replace("[admin]", f'tls_cert = "{cert}"\ntls_key = "{key}"\n[admin]', 1))
    startup = m.startup({"user": proxy.user, "database": proxy.database})
    for stuffed in (
        startup,
        startup + m.query(STATEMENT.encode()),
        m.query(STATEMENT.encode()),
        b"\0",
        SSL_REQUEST,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        heard = b""
        if together:
            writer.write(SSL_REQUEST + stuffed)
        else:
            writer.write(SSL_REQUEST)
            heard = await asyncio.wait_for(reader.readexactly(1), 10)
            writer.write(stuffed)
        # The client itself knows nothing of it and goes on with its handshake.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(cert))
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        writer.write(outgoing.read())
        with contextlib.suppress(ConnectionError):
            heard += await asyncio.wait_for(reader.read(), 20)
        # Closed without having begun a session: at most a refusal or a TLS alert was said.
        assert m.AUTHENTICATION_OK not in heard
        assert b"Z\0\0\0\5" not in heard
        writer.close()
    assert database.sql("SELECT count(*) FROM seen") == "0"
    async with asyncio.timeout(20):
        good = await proxy.connect(ssl=ssl.create_default_context(cafile=str(cert)))
        assert await good.fetchval("SELECT 1") == 1
        await good.close()
