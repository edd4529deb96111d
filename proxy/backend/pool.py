"""Server connections of one server: by login and startup parameters, bounded in number, handed out fairly.

Contract: a connection that the pool gives out is logged in, idle, and was started with exactly the parameters asked for
(so that RESET and reported parameters behave as on a direct connection). Before its first use it has passed the pool's
``enter`` hook (the control link registers its pid there).

There are two ways in and out. :meth:`Pool.acquire` waits for its turn and :meth:`Pool.release` cleans up with
``DISCARD ALL``: for whoever keeps a connection for long. :meth:`Pool.take` and :meth:`Pool.give` never wait and never
clean up, for a single transaction: what the connection holds (``applied``, prepared statements) stays with it.

Fairness: whoever waits is served strictly in the order of arrival, and nothing is handed past a queue. A waiter is
granted either a connection or a *slot*, the right to make one (an idle connection of other parameters is closed to make
room); a grant whose waiter has gone goes back and is the next one's. All grants are made in :meth:`Pool._serve`, which
runs whenever a connection or a slot may have become free, so that no wake-up can be lost.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final

from proxy.backend.backoff import Backoff
from proxy.backend.cleanup import reset, settle
from proxy.backend.connection import ServerConnection, connect
from proxy.backend.errors import ServerUnavailable
from proxy.backend.stock import Key as Key
from proxy.backend.stock import Member, ServerFacts, Stock
from proxy.dsn import Dsn
from proxy.stats import Histogram

Work = Callable[[ServerConnection], Awaitable[bool]]
"""What makes a connection ready for the next client; False if it cannot be."""

TIMER_SLACK: Final = 0.002
"""Seconds; an event loop counts in milliseconds, and a timer that came early would find nothing to do."""
SPREAD: Final = 0.1
"""Share of a lifetime by which connections of one age differ, so that they do not all end at once."""

# What a server says of itself, not of the login that it refuses: connection exceptions, operator intervention.
_SERVER_TROUBLE: Final = ("08", "57")
# An authentication that cannot go on: a password that is not there, a method that nobody knows.
_NO_PASSWORD: Final = "08P01"
# "Too many connections": of the server, of the database, of the role. Others may still be let in.
_CROWDED: Final = "53"


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody in the queue; ``turn`` ends with a connection, with None for a slot, or with an error."""

    ticket: int
    key: Key
    since: float
    turn: asyncio.Future[ServerConnection | None]


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
        min_size: int = 0,
        reserve_size: int = 0,
        reserve_timeout: float = 5.0,
        lifetime: float = 3600.0,
        login_retry: float = 15.0,
        patient: bool = False,
        enter: Callable[[list[int]], Awaitable[None]] | None = None,
    ) -> None:
        self.dsn = dsn
        self.size = size
        self.min_size = min_size
        """Connections that are kept open for whoever logged in last; 0: none."""
        self.reserve_size = reserve_size
        """Connections beyond ``size`` for when somebody has waited for longer than ``reserve_timeout``."""
        self.reserve_timeout = reserve_timeout
        self.connect_timeout = connect_timeout
        self.wait_timeout = wait_timeout
        """Seconds; 0 waits for as long as it takes."""
        self.idle_timeout = idle_timeout
        """Seconds after which an unused connection is closed; 0: never."""
        self.lifetime = lifetime
        """Seconds after which a connection is closed when it is not in use; 0: never."""
        self.patient = patient
        """Whether to wait for a connection in use when the server refuses another one: right where connections come
        back after a transaction, wrong where a client keeps one for hours."""
        self.backoff = Backoff(login_retry)
        self._crowded: dict[Key, Backoff] = {}
        """Logins with connections of their own to which the server refuses more."""
        self.on_reach: Callable[[str | None], None] | None = None
        """Called with None when the server let us in, with the error where it could not be reached."""
        self.paused = False
        self.closed = False
        self.wait_times = Histogram()
        """How long those have waited who got a connection or gave up; who need not wait is not counted."""
        self.connects_total = 0
        self.connect_failures_total = 0
        self._enter = enter
        self._stock = Stock()
        self._all = self._stock.members
        self._said: dict[frozenset[tuple[str, str]], dict[str, str]] = {}
        self._stacks = self._stock.stacks
        self._waiters: deque[_Waiter] = deque()
        self._tickets = count()
        self._connecting = 0
        self._retry: asyncio.TimerHandle | None = None
        self._last: tuple[dict[str, str], str | None] | None = None
        self._pausing: set[asyncio.Future[bool]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def pids(self) -> list[int]:
        """Backend pids of all connections."""
        return [connection.pid for connection in self._all if not connection.closed]

    @property
    def idle(self) -> int:
        """Connections that wait for a client."""
        return self._stock.idle_count

    @property
    def cleaning(self) -> int:
        """Connections that are being made ready for the next client."""
        return len(self._stock.cleaning)

    @property
    def active(self) -> int:
        """Connections that a client has."""
        return len(self._all) - self.idle - len(self._stock.cleaning)

    @property
    def connecting(self) -> int:
        """Connections that are being made."""
        return self._connecting

    @property
    def cancelling(self) -> int:
        """Connections with a cancel request under way."""
        return sum(connection.cancel_pending for connection in self._all)

    @property
    def waiting(self) -> int:
        """Clients that wait for a connection."""
        return len(self._waiters)

    @property
    def longest_wait(self) -> float:
        """For how many seconds the first in the queue has waited."""
        return self._loop.time() - self._waiters[0].since if self._waiters else 0.0

    def servers(self) -> Iterator[ServerFacts]:
        """All connections."""
        return self._stock.facts(self._loop.time())

    # -- one transaction -------------------------------------------------------------------------------------------

    @staticmethod
    def key(parameters: dict[str, str]) -> Key:
        """What connections are kept apart by."""
        return tuple(sorted(parameters.items()))

    def take(self, key: Key, applied: dict[str, str]) -> ServerConnection | None:
        """An idle connection, one with these settings if there is one; None if it takes a wait or a new connection."""
        if self._waiters or self.paused:
            return None
        stack = self._stacks.get(key)
        if not stack:
            return None
        if stack[-1].applied is applied and not stack[-1].closed:
            return stack.pop()
        return self._stock.take(key, applied)

    def give(self, connection: ServerConnection) -> None:
        """Take back a connection between two transactions, as it is."""
        connection.detach()
        member = self._all.get(connection)
        if member is None or connection.closed or member.stale or self.paused or self.closed:
            self._discard(connection)
        elif connection.cancel_pending:
            self._later(connection, settle)
        else:
            connection.idle_since = self._loop.time()
            self._stacks[member.key].append(connection)
            if self._waiters:
                self._serve()

    # -- for long --------------------------------------------------------------------------------------------------

    async def acquire(self, parameters: dict[str, str], password: str | None) -> ServerConnection:
        """A connection for these startup parameters; raises ServerUnavailable."""
        key = self.key(parameters)
        connection = self.take(key, {})
        if connection is not None:
            return connection
        waiter = _Waiter(next(self._tickets), key, self._loop.time(), self._loop.create_future())
        waited = False
        try:
            async with asyncio.timeout(self.wait_timeout or None):
                while True:
                    self._enqueue(waiter)
                    waited = waited or not waiter.turn.done()
                    granted = await self._granted(waiter)
                    if granted is None:
                        try:
                            return await self._connect(parameters, password)
                        except ServerUnavailable:
                            if not (self.patient and self._obstacle(key) and self._stock.has(key)):
                                raise
                    elif not granted.closed:
                        return granted
                    waiter.turn = self._loop.create_future()
        except TimeoutError as exc:
            error = self.backoff.error
            raise ServerUnavailable(
                "53300",
                f"no server connection became free within {self.wait_timeout:g} s (pool_size is {self.size})"
                + (f"; the last attempt to make one failed: {error.message}" if error else ""),
                hint="Raise pool_size in the sidecar's configuration, or let fewer clients connect.",
            ) from exc
        finally:
            if waited:
                self.wait_times.observe(self._loop.time() - waiter.since)

    def _enqueue(self, waiter: _Waiter) -> None:
        """Into the queue: at its end, or where it was if its grant came to nothing."""
        at = len(self._waiters)
        while at and self._waiters[at - 1].ticket > waiter.ticket:
            at -= 1
        self._waiters.insert(at, waiter)
        self._serve()
        if self.reserve_size and not waiter.turn.done():
            left = waiter.since + self.reserve_timeout - self._loop.time()
            self._loop.call_later(max(0.0, left) + TIMER_SLACK, self._serve)

    async def _granted(self, waiter: _Waiter) -> ServerConnection | None:
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._serve()
            elif waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                # It came too late: it is the next one's.
                connection = waiter.turn.result()
                if connection is None:
                    self._connecting -= 1
                    self._changed()
                else:
                    self.give(connection)
            raise

    def _serve(self) -> None:
        """Grant what can be granted, first come first served."""
        while self._waiters and not self.paused:
            waiter = self._waiters[0]
            if waiter.turn.done():
                self._waiters.popleft()
                continue
            now = self._loop.time()
            if self.closed:
                self._waiters.popleft()
                waiter.turn.set_exception(
                    ServerUnavailable("57P01", "the sidecar is shutting down", hint="Connect again.")
                )
                continue
            connection = self._stock.take(waiter.key)
            if connection is not None:
                self._waiters.popleft()
                waiter.turn.set_result(connection)
                continue
            obstacle = self._obstacle(waiter.key)
            if obstacle is not None:
                refusal = obstacle.refusal(now)
                if refusal is not None and not (self.patient and self._stock.has(waiter.key)):
                    self._waiters.popleft()
                    waiter.turn.set_exception(refusal)
                    continue
                if refusal is not None:
                    self._serve_at(obstacle.due)
                    return
                if self._connecting:
                    # One finds out whether the server lets us in again, for all.
                    return
            limit = self.size
            if self.reserve_size and now - waiter.since >= self.reserve_timeout:
                limit += self.reserve_size
            if len(self._all) + self._connecting >= limit and not self._evict():
                return
            self._waiters.popleft()
            self._connecting += 1
            waiter.turn.set_result(None)

    def _serve_at(self, due: float) -> None:
        if self._retry is None:
            self._retry = self._loop.call_at(due + TIMER_SLACK, self._serve_again)

    def _serve_again(self) -> None:
        self._retry = None
        self._serve()

    def _obstacle(self, key: Key) -> Backoff | None:
        """What keeps these parameters from another connection; None if the last attempt did not fail."""
        return self.backoff if self.backoff.failing else self._crowded.get(key)

    async def _connect(self, parameters: dict[str, str], password: str | None) -> ServerConnection:
        """Make a connection, for a slot that was granted."""
        key = self.key(parameters)
        try:
            try:
                connection = await connect(
                    self.dsn, parameters, password=password, timeout=self.connect_timeout
                )
                now = self._loop.time()
                age = self.lifetime * random.uniform(1 - SPREAD, 1) if self.lifetime else float("inf")
                connection.on_closed = self._forget
                # Connections that said the same share one object: then it is seen at a glance.
                said = frozenset(connection.parameters.items())
                connection.parameters = connection.greeting = self._said.setdefault(said, connection.greeting)
                self._all[connection] = Member(key, now, now + age)
            finally:
                self._connecting -= 1
            await self._introduce(connection)
        except ServerUnavailable as exc:
            self._failed(key, exc)
            raise
        finally:
            self._changed()
        self.connects_total += 1
        self._last = (parameters, password)
        self._crowded.pop(key, None)
        self._answered()
        return connection

    async def _introduce(self, connection: ServerConnection) -> None:
        if self._enter is None:
            return
        try:
            await self._enter([connection.pid])
        except BaseException:
            self._discard(connection)
            raise
        if connection.closed:
            raise ServerUnavailable("08006", f"the server {self.dsn.label} closed the new connection")

    def _failed(self, key: Key, error: ServerUnavailable) -> None:
        self.connect_failures_total += 1
        if error.sqlstate.startswith(_SERVER_TROUBLE) and error.sqlstate != _NO_PASSWORD:
            self.backoff.failed(error, self._loop.time())
            if self.on_reach is not None:
                self.on_reach(error.message)
            return
        # It refuses this login; the next one may be welcome.
        if self.patient and error.sqlstate.startswith(_CROWDED) and self._stock.has(key):
            self._crowded.setdefault(key, Backoff(self.backoff.bound)).failed(error, self._loop.time())
        self._answered()

    def _answered(self) -> None:
        self.reached()
        if self.on_reach is not None:
            self.on_reach(None)

    def reached(self) -> None:
        """The server answers: whoever waits for a retry need not."""
        if self.backoff.failing:
            self.backoff.succeeded()
            self._serve()

    def release(self, connection: ServerConnection, *, reusable: bool, rollback: bool = False) -> None:
        """Take a connection back: make it as new for the next client, or close it.

        ``rollback`` says that a transaction may be open, which is rolled back first.
        """
        connection.detach()
        member = self._all.get(connection)
        if not reusable or member is None or connection.closed or member.stale or self.paused or self.closed:
            self._discard(connection)
        else:
            self._later(connection, partial(reset, rollback=rollback))

    # -- the way back ----------------------------------------------------------------------------------------------

    def _later(self, connection: ServerConnection, work: Work) -> None:
        """Put a connection back once it is ready for the next client, if it ever is."""
        self._stock.cleaning.add(connection)
        task = asyncio.ensure_future(self._after(connection, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _after(self, connection: ServerConnection, work: Work) -> None:
        usable = False
        try:
            usable = await work(connection)
        finally:
            self._stock.cleaning.discard(connection)
            member = self._all.get(connection)
            barred = self.paused or self.closed
            if not usable or member is None or connection.closed or member.stale or barred:
                self._discard(connection)
            else:
                self._put(connection, member)

    def _put(self, connection: ServerConnection, member: Member) -> None:
        """Among the idle ones, and so to the first in the queue."""
        self._stock.put(connection, member.key, self._loop.time())
        self._serve()

    def _evict(self) -> bool:
        """Close the connection that was idle for longest, to make room; False if there is none."""
        connection = self._stock.longest_idle()
        if connection is None:
            return False
        connection.close()
        self._remove(connection)
        return True

    def _discard(self, *connections: ServerConnection) -> None:
        """Close connections. All of them are out of the books before what they leave free is granted."""
        for connection in connections:
            connection.close()
        if sum(self._remove(connection) for connection in connections):
            self._changed()

    def _forget(self, connection: ServerConnection) -> None:
        """A connection was lost."""
        if self._remove(connection):
            self._changed()

    def _remove(self, connection: ServerConnection) -> bool:
        member = self._stock.remove(connection)
        if member is None:
            return False
        if self._crowded and not self._stock.has(member.key):
            self._crowded.pop(member.key, None)
        return True

    def _changed(self) -> None:
        """A connection or a slot is free: grant it, and tell whoever waits for the last one."""
        self._serve()
        if self._pausing and not self._all and not self._connecting:
            self._end_pauses(True)

    def _end_pauses(self, paused: bool) -> None:
        waiting, self._pausing = self._pausing, set()
        for turn in waiting:
            if not turn.done():
                turn.set_result(paused)

    # -- operations ------------------------------------------------------------------------------------------------

    async def pause(self) -> bool:
        """Give out nothing more, and wait until all is given back and closed; False if :meth:`resume` came before."""
        self.paused = True
        self._close_idle()
        if not self._all and not self._connecting:
            return True
        turn: asyncio.Future[bool] = self._loop.create_future()
        self._pausing.add(turn)
        try:
            return await turn
        finally:
            self._pausing.discard(turn)

    def resume(self) -> None:
        """End a pause, or the wait for one."""
        self.paused = False
        self._end_pauses(False)
        self._serve()

    def reconnect(self) -> None:
        """Replace every connection as soon as it is not in use."""
        for member in self._all.values():
            member.stale = True
        self._close_idle()
        self.reached()

    def kill(self) -> None:
        """Close every connection at once, also those in use; nothing is given out until :meth:`resume`."""
        self.paused = True
        self._discard(*self._all)

    def _close_idle(self) -> None:
        self._discard(*self._stock.idle())

    def maintain(self) -> None:
        """Close what is too old, too long unused or too much; make what is too little. Called every second."""
        now = self._loop.time()
        surplus = len(self._all) + self._connecting - self.size - self.reserve_size
        for member in self._all.values():
            if not member.stale and (now >= member.expires or surplus > 0):
                member.stale = True
                surplus -= 1
        keep = min(self.min_size, self.size)
        spare = len(self._all) - keep
        ended: list[ServerConnection] = []
        for connection in self._stock.idle():
            unused = self.idle_timeout and connection.idle_since < now - self.idle_timeout
            if self._all[connection].stale or (unused and len(ended) < spare):
                ended.append(connection)
        self._discard(*ended)
        if self._last is None or self.paused or self.closed or self._waiters or self.backoff.failing:
            return
        for _ in range(keep - len(self._all) - self._connecting):
            self._connecting += 1
            task = asyncio.ensure_future(self._fill(*self._last))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fill(self, parameters: dict[str, str], password: str | None) -> None:
        """Make a connection that nobody has asked for yet."""
        try:
            connection = await self._connect(parameters, password)
        except ServerUnavailable:
            # Logged by whoever listens to on_reach; a client will see it if it lasts.
            return
        self.give(connection)

    async def close(self) -> None:
        """Close every connection; clients' ones too."""
        self.closed = True
        self.paused = False
        for task in list(self._tasks):
            task.cancel()
        self._discard(*self._all)
        self._changed()
        self._end_pauses(True)
