"""A TLS front for a real PostgreSQL: the server's encryption where the server at hand was built without any.

It answers the encryption requests, terminates TLS and passes every other byte on. PostgreSQL sees encrypted clients
come from 127.0.0.2 and others from 127.0.0.3, so that rules of pg_hba can tell them apart as ``hostssl`` and
``hostnossl`` do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from tests.conftest import Database
from tests.server.handshake import SSL_REQUEST

ENCRYPTED, PLAIN = "127.0.0.2", "127.0.0.3"


@dataclass
class Front:
    """Where it listens and what it has seen."""

    database: Database
    context: ssl.SSLContext | None
    stuffing: bytes = b""
    """Bytes sent in the clear behind the answer to an SSLRequest."""
    refusal: bytes = b""
    """Said in the place of an answer to an SSLRequest."""
    port: int = 0
    seen: list[str] = field(default_factory=list)
    """How each connection came: ``tls``, ``direct`` or ``plain``; and ``cancel-...``."""
    names: list[str | None] = field(default_factory=list)
    """What clients asked for by SNI."""

    def dsn(self, host: str = "127.0.0.1", user: str | None = None, **parameters: str) -> str:
        """The database's DSN through the front."""
        parts = urlsplit(self.database.dsn)
        credentials = parts.netloc.rpartition("@")[0] if user is None else user
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return urlunsplit(parts._replace(netloc=f"{credentials}@{host}:{self.port}", query=query))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            how = "plain"
            first = await reader.readexactly(8)
            if first == SSL_REQUEST:
                if self.refusal:
                    writer.write(self.refusal)
                    writer.close()
                    return
                writer.write((b"N" if self.context is None else b"S") + self.stuffing)
                if self.context is not None:
                    await writer.start_tls(self.context)
                    how = "tls"
                first = await reader.readexactly(8)
            elif writer.get_extra_info("ssl_object") is not None:
                how = "direct"
            await self.relay(how, first, reader, writer)
        writer.close()

    async def relay(
        self, how: str, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Everything from the startup packet on, to the server and back."""
        cancels = first[4:] == (80877102).to_bytes(4, "big")
        self.seen.append(f"cancel-{how}" if cancels else how)
        address = self.database.cluster.primary.address
        local = (PLAIN if how == "plain" else ENCRYPTED, 0)
        server_reader, server_writer = await asyncio.open_connection(
            address.host, address.port, local_addr=local
        )
        server_writer.write(first)
        await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def fronted(
    database: Database,
    context: ssl.SSLContext | None,
    *,
    direct: bool = False,
    stuffing: bytes = b"",
    refusal: bytes = b"",
) -> AsyncIterator[Front]:
    """A front for the database's primary; ``direct``: TLS is the first word."""
    front = Front(database, None if direct else context, stuffing, refusal)
    if context is not None:
        context.sni_callback = lambda _made, name, _context: front.names.append(name)
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0, ssl=context if direct else None)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
