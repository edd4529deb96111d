"""A client that says single protocol messages, for what drivers would hide.

It believes nothing: every frame that comes is kept, in order, and :meth:`Raw.in_step` asks questions whose answers
nobody else's could be. :func:`directly` gives the same client on a connection past the sidecar.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Iterable

from proxy.wire import messages as m
from proxy.wire.scram import ClientExchange
from tests.conftest import Database, Sidecar

PATIENCE = 15.0
"""Seconds after which an answer that has not come is taken for missing."""

SYNC = m.SYNC_FRAME
FLUSH = m.FLUSH_FRAME
COPY_DONE = m.frame(m.COPY_DONE, b"")


class Closed(Exception):
    """The peer has closed the connection; ``frames`` came before."""

    def __init__(self, frames: list[bytes]) -> None:
        super().__init__(f"the connection was closed after {kinds(frames) or 'nothing'} {codes(frames)}")
        self.frames = frames


class Raw:
    """One connection, logged in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.key: tuple[int, bytes] = (0, b"")
        self.peer: tuple[str, int] = writer.get_extra_info("peername")[:2]

    # -- life --------------------------------------------------------------------------------------------------

    async def login(self, user: str, database: str, password: str | None, parameters: dict[str, str]) -> None:
        """Startup and, where asked for, SCRAM; raises Closed with the refusal in it."""
        self.send(m.startup({"user": user, "database": database, **parameters}))
        exchange = ClientExchange(password or "")
        seen: list[bytes] = []
        while True:
            frame = await self.frame(seen)
            seen.append(frame)
            if frame[0] == m.AUTHENTICATION:
                method = int.from_bytes(frame[5:9], "big")
                if method == 10:
                    self.send(exchange.first(frame[9:]))
                elif method == 11:
                    self.send(exchange.final(frame[9:]))
            elif frame[0] == m.BACKEND_KEY_DATA:
                self.key = (int.from_bytes(frame[5:9], "big"), frame[9:])
            elif frame[0] == m.READY_FOR_QUERY:
                return

    def vanish(self) -> None:
        """Be gone without a word: the peer gets a reset."""
        raw = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def leave(self) -> None:
        """Say goodbye and wait until the peer has closed."""
        with contextlib.suppress(ConnectionError):
            self.send(m.TERMINATE_FRAME)
            await asyncio.wait_for(self.reader.read(), PATIENCE)
        self.writer.close()

    async def cancel(self) -> None:
        """Ask for the cancellation of what this session does; back when the peer has taken the request."""
        reader, writer = await asyncio.open_connection(*self.peer)
        writer.write(m.cancel_request(*self.key))
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()

    # -- messages ----------------------------------------------------------------------------------------------

    def send(self, *frames: bytes) -> None:
        """Say this."""
        self.writer.write(b"".join(frames))

    async def frame(self, before: Iterable[bytes] = ()) -> bytes:
        """The next frame; ``before`` only explains a closed connection."""
        try:
            async with asyncio.timeout(PATIENCE):
                head = await self.reader.readexactly(5)
                return head + await self.reader.readexactly(int.from_bytes(head[1:], "big") - 4)
        except (asyncio.IncompleteReadError, ConnectionError) as exc:
            raise Closed(list(before)) from exc
        except TimeoutError:
            raise AssertionError(f"no answer after {kinds(list(before)) or 'nothing'}") from None

    async def take(self, count: int) -> list[bytes]:
        """As many frames, in order."""
        frames: list[bytes] = []
        for _ in range(count):
            frames.append(await self.frame(frames))
        return frames

    async def until(self, kind: int) -> list[bytes]:
        """Frames up to and including the first of that type."""
        frames = [await self.frame()]
        while frames[-1][0] != kind:
            frames.append(await self.frame(frames))
        return frames

    async def ready(self) -> list[bytes]:
        """Frames up to and including ReadyForQuery."""
        return await self.until(m.READY_FOR_QUERY)

    async def ask(self, *frames: bytes) -> list[bytes]:
        """Say this and hear the answer up to ReadyForQuery."""
        self.send(*frames)
        return await self.ready()

    async def query(self, text: str) -> list[bytes]:
        """A simple query and its answer."""
        return await self.ask(query(text))

    async def value(self, text: str) -> str:
        """The only value of a simple query."""
        frames = await self.query(text)
        assert kinds(frames) == "TDCZ", (text, kinds(frames), codes(frames))
        return values(frames)[0]

    async def pid(self) -> int:
        """The server process behind the connection, for this transaction at least."""
        return int(await self.value("SELECT pg_backend_pid()"))

    async def in_step(self) -> None:
        """Questions that only their own answers fit, in both protocols and in a pipeline."""
        marks = [secrets.token_hex(8) for _ in range(4)]
        assert await self.value(f"SELECT '{marks[0]}'") == marks[0]
        self.send(*(extended(f"SELECT '{mark}'") for mark in marks[1:]))
        for mark in marks[1:]:
            frames = await self.ready()
            assert (kinds(frames), values(frames)) == ("12DCZ", [mark])


@contextlib.asynccontextmanager
async def connected(proxy: Sidecar, **parameters: str) -> AsyncIterator[Raw]:
    """A client of the sidecar for a block; gone without a word at its end, if it is still there."""
    client = await connect(proxy, **parameters)
    try:
        yield client
    finally:
        client.vanish()


async def connect(proxy: Sidecar, **parameters: str) -> Raw:
    """A client of the sidecar."""
    client = Raw(*await asyncio.open_connection("127.0.0.1", proxy.port))
    await client.login(proxy.user, proxy.database, proxy.password, parameters)
    return client


@contextlib.asynccontextmanager
async def directly(database: Database) -> AsyncIterator[Raw]:
    """A client of the primary itself."""
    address = database.cluster.primary.address
    client = Raw(*await asyncio.open_connection(address.host, address.port))
    await client.login(address.user, database.name, address.password, {})
    try:
        yield client
    finally:
        client.vanish()


# -- saying --------------------------------------------------------------------------------------------------------


def query(text: str) -> bytes:
    """A simple query."""
    return m.query(text.encode())


def parse(text: str, name: str = "") -> bytes:
    """A Parse message."""
    return m.parse(name.encode(), text.encode(), ())


def bind(name: str = "", portal: str = "") -> bytes:
    """A Bind without parameters, results as text."""
    return m.frame(m.BIND, portal.encode() + b"\0" + name.encode() + b"\0\0\0\0\0\0\0")


def execute(portal: str = "", rows: int = 0) -> bytes:
    """An Execute for at most so many rows; 0: all."""
    return m.frame(m.EXECUTE, portal.encode() + b"\0" + rows.to_bytes(4, "big"))


def describe(name: str = "", kind: str = "S") -> bytes:
    """A Describe of a statement (S) or portal (P)."""
    return m.frame(m.DESCRIBE, kind.encode() + name.encode() + b"\0")


def close(name: str = "", kind: str = "S") -> bytes:
    """A Close of a statement (S) or portal (P)."""
    return m.frame(m.CLOSE, kind.encode() + name.encode() + b"\0")


def copy_data(text: str) -> bytes:
    """A CopyData message."""
    return m.frame(m.COPY_DATA, text.encode())


def copy_fail(reason: str = "no more") -> bytes:
    """A CopyFail message."""
    return m.frame(m.COPY_FAIL, reason.encode() + b"\0")


def extended(text: str) -> bytes:
    """A statement in the extended protocol, with its Sync."""
    return parse(text) + bind() + execute() + SYNC


# -- reading -------------------------------------------------------------------------------------------------------


def kinds(frames: Iterable[bytes]) -> str:
    """The type bytes of frames as a word, without what may come at any time."""
    return "".join(
        chr(frame[0]) for frame in frames if frame[0] not in (m.PARAMETER_STATUS, m.NOTICE_RESPONSE)
    )


def codes(frames: Iterable[bytes]) -> list[str]:
    """The SQLSTATEs of the errors."""
    return [m.error_fields(frame)["C"].decode() for frame in frames if frame[0] == m.ERROR_RESPONSE]


def values(frames: Iterable[bytes]) -> list[str]:
    """The first column of the rows, as text."""
    found = []
    for frame in frames:
        if frame[0] == m.DATA_ROW:
            length = int.from_bytes(frame[7:11], "big", signed=True)
            found.append("" if length < 0 else frame[11 : 11 + length].decode())
    return found


def status(frames: list[bytes]) -> str:
    """The transaction status in the last frame, a ReadyForQuery: I, T or E."""
    assert frames[-1][0] == m.READY_FOR_QUERY
    return chr(frames[-1][5])
