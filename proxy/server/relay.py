"""A replication connection: one client, one server connection of its own, and every byte passed straight through.

Contract: from :meth:`Relay.start` on nothing is parsed, rewritten or pooled. The side that is slow makes the other
wait, the end of one side is the end of both, a CancelRequest reaches the server, and a shutdown of the sidecar ends it
at once: a stream of changes has no end of its own to wait for, and its client resumes where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from proxy.backend.connection import ServerConnection

if TYPE_CHECKING:
    from proxy.server.database import DatabaseRuntime
    from proxy.server.sidecar import Sidecar

LINGER_SECONDS = 30.0
"""How long a closing connection waits for a client that does not read."""


class Relay(asyncio.Protocol):
    """See the module's docstring. The protocol of the client's transport, the owner of the server's connection."""

    def __init__(
        self,
        sidecar: Sidecar,
        database: DatabaseRuntime,
        transport: asyncio.Transport,
        server: ServerConnection,
    ) -> None:
        self.database: DatabaseRuntime | None = database
        self.key: tuple[int, bytes] = (0, b"")
        self._sidecar = sidecar
        self._stats = database.stats
        self._transport = transport
        self._server = server
        self._ended = False

    def start(self, early: bytes) -> None:
        """Take the transport over; ``early`` is what the client has sent ahead."""
        self._stats.clients_total += 1
        self._stats.replication += 1
        self._transport.set_protocol(self)
        self._server.attach(self, self._server_data)
        if early:
            self.data_received(early)
        self._read_client(True)

    # -- the client's socket ---------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._stats.bytes_from_clients += len(data)
        self._server.write(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._server.pause_reading()

    def resume_writing(self) -> None:
        self._server.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _read_client(self, reading: bool) -> None:
        if not self._transport.is_closing():
            with contextlib.suppress(RuntimeError):
                if reading:
                    self._transport.resume_reading()
                else:
                    self._transport.pause_reading()

    # -- Owner -----------------------------------------------------------------------------------------------------

    def _server_data(self, data: bytes) -> None:
        """Bytes from the server."""
        self._stats.bytes_to_clients += len(data)
        self._transport.write(data)

    def server_lost(self, connection: ServerConnection) -> None:
        """The server has closed; what it said last still goes to the client."""
        self._end()

    def server_writable(self, connection: ServerConnection, writable: bool) -> None:
        """The server does (not) keep up with what the client sends."""
        self._read_client(writable)

    # -- both ------------------------------------------------------------------------------------------------------

    async def cancel(self) -> None:
        """Cancel what runs on the server."""
        await asyncio.shield(self._server.cancel())

    def shut_down(self) -> None:
        """The sidecar stops."""
        self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._stats.replication -= 1
        self._sidecar.relay_ended(self)
        self._server.close()
        if not self._transport.is_closing():
            self._transport.close()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)
