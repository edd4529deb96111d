"""A relay between a sidecar and its primary that can delay, lose or add what PostgreSQL itself would send in time.

It changes nothing unless a test says so. The server behind it is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Literal

_CANCEL = (80877102).to_bytes(4, "big")


class Link:
    """One connection through the relay."""

    def __init__(self, to_sidecar: asyncio.StreamWriter) -> None:
        self._to_sidecar = to_sidecar
        self.asked = b""
        """What the sidecar has said on it so far."""

    def say(self, data: bytes) -> None:
        """Tell the sidecar this in the server's name."""
        self._to_sidecar.write(data)


class Middleman:
    """See the module's docstring; an async context manager, listening on ``port``."""

    def __init__(self, host: str, port: int) -> None:
        self._server_address = (host, port)
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.links: list[Link] = []
        self.cancels = 0
        """Cancel requests that have come."""
        self.cancels_passed = 0
        """Cancel requests that the server has taken."""
        self.with_cancels: Literal["pass", "hold", "lose"] = "pass"
        """hold: until :meth:`release`; lose: the sidecar sees the request fail, the server gets it at ``release``."""
        self._released = asyncio.Event()

    async def __aenter__(self) -> Middleman:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def release(self) -> None:
        """Let every cancel request that was held or lost so far reach the server."""
        self._released.set()

    def link(self, asked: bytes) -> Link:
        """The one on which the sidecar has sent these bytes."""
        (found,) = (link for link in self.links if asked in link.asked)
        return found

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(8)
        if head[4:8] == _CANCEL:
            await self._cancel(head + await reader.readexactly(int.from_bytes(head[:4], "big") - 8), writer)
            return
        link = Link(writer)
        self.links.append(link)
        back, onward = await asyncio.open_connection(*self._server_address)
        onward.write(head)

        async def answers() -> None:
            while data := await back.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        answering = asyncio.create_task(answers())
        try:
            while data := await reader.read(65536):
                link.asked += data
                onward.write(data)
                await onward.drain()
        finally:
            onward.close()
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _cancel(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        self.cancels += 1
        if self.with_cancels == "lose":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if self.with_cancels != "pass":
            await self._released.wait()
        reader, onward = await asyncio.open_connection(*self._server_address)
        onward.write(request)
        await reader.read()
        onward.close()
        self.cancels_passed += 1
