"""Session pools: idle server connections by login and startup parameters, bounded in number, handed out fairly.

Contract: :meth:`Pool.acquire` gives a logged-in, reset connection whose startup parameters are exactly the client's (so
that RESET and reported parameters behave as on a direct connection), waiting its turn where the pool is full;
:meth:`Pool.release` takes it back after a successful ``DISCARD ALL``, or closes it. Before its first use every
connection passes the pool's ``enter`` hook (the control link registers its pid there).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable

from proxy.backend.connection import ServerConnection, connect
from proxy.backend.errors import QueryFailed, ServerUnavailable
from proxy.dsn import Dsn

Key = tuple[tuple[str, str], ...]
RESET = "DISCARD ALL"
RESET_TIMEOUT = 10.0


class Pool:
    """Connections to one server of one database."""

    def __init__(
        self,
        dsn: Dsn,
        *,
        size: int,
        connect_timeout: float,
        wait_timeout: float,
        idle_timeout: float,
        enter: Callable[[list[int]], Awaitable[None]] | None = None,
    ) -> None:
        self.dsn = dsn
        self.size = size
        self.connect_timeout = connect_timeout
        self.wait_timeout = wait_timeout
        self.idle_timeout = idle_timeout
        self._enter = enter
        self._idle: defaultdict[Key, list[ServerConnection]] = defaultdict(list)
        self._all: set[ServerConnection] = set()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._connecting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False

    @property
    def pids(self) -> list[int]:
        """Backend pids of all connections."""
        return [connection.pid for connection in self._all if not connection.closed]

    @property
    def idle(self) -> int:
        """Connections that wait for a client."""
        return sum(len(connections) for connections in self._idle.values())

    @property
    def active(self) -> int:
        """Connections that a client has."""
        return len(self._all) - self.idle

    @property
    def connecting(self) -> int:
        """Connections that are being made."""
        return self._connecting

    @property
    def waiting(self) -> int:
        """Clients that wait for a connection."""
        return len(self._waiters)

    async def acquire(self, parameters: dict[str, str], password: str | None) -> ServerConnection:
        """A connection for these startup parameters; raises ServerUnavailable."""
        key = tuple(sorted(parameters.items()))
        try:
            async with asyncio.timeout(self.wait_timeout):
                while True:
                    stack = self._idle.get(key)
                    while stack:
                        connection = stack.pop()
                        if not connection.closed:
                            return connection
                    if len(self._all) + self._connecting < self.size or self._evict():
                        return await self._connect(parameters, password)
                    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiters.append(turn)
                    try:
                        await turn
                    except asyncio.CancelledError:
                        if turn in self._waiters:
                            self._waiters.remove(turn)
                        elif turn.done() and not turn.cancelled():
                            self._wake()  # our turn came too late: it is the next one's
                        raise
        except TimeoutError as exc:
            raise ServerUnavailable(
                "53300",
                f"no server connection became free within {self.wait_timeout:g} s (pool_size is {self.size})",
                hint="Raise pool_size in the sidecar's configuration, or let fewer clients connect.",
            ) from exc

    async def _connect(self, parameters: dict[str, str], password: str | None) -> ServerConnection:
        self._connecting += 1
        try:
            connection = await connect(self.dsn, parameters, password=password, timeout=self.connect_timeout)
        except BaseException:
            self._wake()
            raise
        finally:
            self._connecting -= 1
        connection.on_closed = self._forget
        self._all.add(connection)
        if self._enter is not None:
            try:
                await self._enter([connection.pid])
            except BaseException:
                connection.close()
                self._forget(connection)
                raise
            if connection.closed:
                raise ServerUnavailable("08006", f"the server {self.dsn.label} closed the new connection")
        return connection

    def _evict(self) -> bool:
        """Close one idle connection of other parameters to make room; False if there is none."""
        for connections in list(self._idle.values()):
            while connections:
                connection = connections.pop(0)
                usable = not connection.closed
                connection.close()
                self._forget(connection)
                if usable:
                    return True
        return False

    def _forget(self, connection: ServerConnection) -> None:
        self._all.discard(connection)
        for key, connections in list(self._idle.items()):
            if connection in connections:
                connections.remove(connection)
            if not connections:
                del self._idle[key]
        self._wake()

    def _wake(self) -> None:
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def release(self, connection: ServerConnection, *, reusable: bool) -> None:
        """Take a connection back: reset it for the next client, or close it."""
        connection.detach()
        if not reusable or connection.closed or self.closed:
            connection.close()
            self._forget(connection)
            return
        task = asyncio.ensure_future(self._reset(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reset(self, connection: ServerConnection) -> None:
        try:
            async with asyncio.timeout(RESET_TIMEOUT):
                usable = await connection.settled()
                await connection.simple(RESET)
        except (QueryFailed, ServerUnavailable, TimeoutError):
            connection.close()
            self._forget(connection)
            return
        connection.applied = {}
        connection.idle_since = asyncio.get_running_loop().time()
        if self.closed or not usable:
            connection.close()
            self._forget(connection)
            return
        self._idle[tuple(sorted(connection.startup_parameters.items()))].append(connection)
        self._wake()

    def expire(self) -> None:
        """Close connections that were idle for longer than the limit."""
        limit = asyncio.get_running_loop().time() - self.idle_timeout
        for connections in list(self._idle.values()):
            for connection in [c for c in connections if c.idle_since < limit]:
                connection.close()
                self._forget(connection)

    async def close(self) -> None:
        """Close every connection; clients' ones too."""
        self.closed = True
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._all):
            connection.close()
        self._all.clear()
        self._idle.clear()
        self._wake()
