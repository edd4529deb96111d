"""What tests of logins share: first packets said byte by byte, certificates, rules of pg_hba for one role."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from migrator.cluster.embedded import EmbeddedServer
from proxy.wire import messages as m
from proxy.wire.scram import ClientExchange
from tests.conftest import Database

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
GSSENC_REQUEST = bytes.fromhex("0000000804d21630")
PATIENCE = 20.0


@dataclass(frozen=True)
class Pki:
    """An authority and a certificate for localhost, as files."""

    authority: trustme.CA
    root: Path
    cert: Path
    key: Path

    def listen(self, extra: str = "") -> str:
        """The lines of ``[listen]``."""
        return f'tls_cert = "{self.cert}"\ntls_key = "{self.key}"\n{extra}'

    def renew(self, *names: str) -> trustme.LeafCert:
        """Another certificate of the same authority in the place of the old."""
        leaf = self.authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
        self.key.write_bytes(leaf.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return leaf

    def context(self, *, alpn: bool = True) -> ssl.SSLContext:
        """A client's context that trusts the authority."""
        context = ssl.create_default_context(cafile=str(self.root))
        if alpn:
            context.set_alpn_protocols(["postgresql"])
        return context

    def server_context(self, *, alpn: bool = True) -> ssl.SSLContext:
        """A server's context with the certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if alpn:
            context.set_alpn_protocols(["postgresql"])
        return context


def make_pki(directory: Path) -> Pki:
    """A fresh authority with one certificate."""
    authority = trustme.CA()
    pki = Pki(authority, directory / "root.crt", directory / "server.crt", directory / "server.key")
    authority.cert_pem.write_to_path(str(pki.root))
    pki.renew()
    return pki


def with_listen(config: str, lines: str) -> str:
    """A configuration with more lines in its ``[listen]``."""
    return config.replace("[admin]", f"{lines}\n[admin]", 1)


class Peer:
    """One connection on which a test says bytes and reads frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.key: tuple[int, bytes] = (0, b"")
        self.negotiated: list[tuple[int, tuple[bytes, ...]]] = []
        self.parameters: dict[str, str] = {}

    @classmethod
    async def dial(cls, host: str, port: int, tls: ssl.SSLContext | None = None) -> Peer:
        """A connection; with a context TLS is its first word."""
        name = "localhost" if tls else None
        return cls(*await asyncio.open_connection(host, port, ssl=tls, server_hostname=name))

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def byte(self) -> bytes:
        """One byte: the answer to an encryption request."""
        return await asyncio.wait_for(self.reader.readexactly(1), PATIENCE)

    async def frame(self) -> bytes:
        """One message; empty at the end of the connection."""
        try:
            async with asyncio.timeout(PATIENCE):
                head = await self.reader.readexactly(5)
                return head + await self.reader.readexactly(int.from_bytes(head[1:], "big") - 4)
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def rest(self) -> bytes:
        """All bytes until the peer closes."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), PATIENCE)
        return b""

    async def encrypt(self, context: ssl.SSLContext) -> None:
        """SSLRequest and handshake."""
        self.say(SSL_REQUEST)
        assert await self.byte() == b"S"
        await self.writer.start_tls(context, server_hostname="localhost")

    async def login(
        self, parameters: Mapping[str, str], *, minor: int = 0, password: str | None = None
    ) -> list[bytes]:
        """The frames up to the first ReadyForQuery, or to the end of the connection."""
        self.say(m.startup(parameters, minor))
        exchange = ClientExchange(password or "")
        frames: list[bytes] = []
        while frame := await self.frame():
            frames.append(frame)
            kind = frame[0]
            if kind == m.AUTHENTICATION and frame[8] == 10:
                self.say(exchange.first(frame[9:]))
            elif kind == m.AUTHENTICATION and frame[8] == 11:
                self.say(exchange.final(frame[9:]))
            elif kind == m.NEGOTIATE_VERSION:
                self.negotiated.append(m.read_negotiate_version(frame))
            elif kind == m.PARAMETER_STATUS:
                name, value = m.read_parameter_status(frame)
                self.parameters[name] = value
            elif kind == m.BACKEND_KEY_DATA:
                self.key = m.read_backend_key_data(frame)
            elif kind == m.READY_FOR_QUERY:
                break
        return frames

    async def ask(self, text: str) -> list[bytes]:
        """A simple query's answer up to ReadyForQuery."""
        self.say(m.query(text.encode()))
        return await self.until(m.READY_FOR_QUERY)

    async def until(self, *kinds: int) -> list[bytes]:
        """Frames up to the first of these types, or to the end of the connection."""
        frames: list[bytes] = []
        while frame := await self.frame():
            frames.append(frame)
            if frame[0] in kinds:
                break
        return frames

    def close(self) -> None:
        self.writer.transport.abort()


def kinds(frames: list[bytes]) -> str:
    """The types of these frames."""
    return "".join(chr(frame[0]) for frame in frames)


def error(frames: list[bytes]) -> tuple[str, str]:
    """SQLSTATE and message of the only error among them."""
    (found,) = (frame for frame in frames if frame[0] == m.ERROR_RESPONSE)
    fields = m.error_fields(found)
    return fields["C"].decode(), fields["M"].decode()


def row(frames: list[bytes]) -> list[str | None]:
    """The values of the only row among them."""
    (found,) = (frame for frame in frames if frame[0] == m.DATA_ROW)
    values: list[str | None] = []
    position = 7
    for _ in range(int.from_bytes(found[5:7], "big")):
        length = int.from_bytes(found[position : position + 4], "big", signed=True)
        position += 4
        values.append(None if length < 0 else found[position : position + length].decode())
        position += max(length, 0)
    return values


@contextlib.contextmanager
def pg_hba(database: Database, *lines: str) -> Iterator[None]:
    """These rules before all others of the primary, for as long as the block lasts."""
    primary = database.cluster.primary
    if not isinstance(primary, EmbeddedServer):
        pytest.skip("pg_hba.conf is not ours to change")
    path = primary.data / "pg_hba.conf"
    before = path.read_text()
    path.write_text("\n".join(lines) + "\n" + before)
    primary.sql("SELECT pg_reload_conf()")
    try:
        # Backends that start after the reload has been seen use the new rules; this asks until one has.
        for _ in range(100):
            if primary.sql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0":
                break
        yield
    finally:
        path.write_text(before)
        primary.sql("SELECT pg_reload_conf()")
