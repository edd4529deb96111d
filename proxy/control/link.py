"""A sidecar's link to the control schema of one database: follow the routing, acknowledge epochs, keep the
hold.

Theory of operation
-------------------
One connection to the primary, one task (``run``), one lock: what is read over it is therefore in order, and
the latest document is the truth, also where a failover made it older than what was acted under before.

1. *Follow.* LISTEN and a poll each second; every beat reports and compares (epoch id, epoch, revision) with
what
   the hub acts under, and reads the document again where they differ. While there is no control schema the
   routing is ``EMPTY``. While the link is lost the last routing stands: whoever changes it waits for this
   sidecar's lease and then ends its server connections, and a new one must pass ``enter`` first.
2. *Acknowledge.* A report names the current epoch only when the hub is quiet: no batch acts under an earlier
one.
3. *Hold.* ``sidecar_hold(true)`` once the hub is drained. Parked statements are released in one way only:
give up
   the own hold row (which waits until a swap under way is decided), publish the document read after that,
   then release. A sidecar that claimed to hold and then lost its link cannot know whether names were swapped,
   so it keeps holding; what waits longer than ``REFUSE_AFTER`` is refused, for a client must not hang for
   ever. One that never claimed may release: no swap goes past it while its server connections live.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from proxy.control.client import ControlClient, LinkLost, SchemaMissing, Unregistered
from proxy.control.hub import RoutingHub
from proxy.control.routing import EMPTY, Hold, Routing
from proxy.dsn import Dsn
from proxy.rewrite.plan import Refusal

POLL_SECONDS: Final = 1.0
LEASE_SECONDS: Final = 10
ENTER_TIMEOUT: Final = 10.0
REFUSE_AFTER: Final = 30.0
BACKOFF_FIRST: Final = 0.1
BACKOFF_LAST: Final = 1.0

Stats = Mapping[str, Any]


class ControlUnavailable(ConnectionError):
    """A new server connection cannot be used: whether its routing is current could not be learnt in time."""


@dataclass(slots=True)
class _Tracked:
    """The hold that this sidecar takes part in. Times are the event loop's."""

    id: int
    deadline: float
    claimed: bool = False
    """``sidecar_hold(true)`` was sent, under whatever id and whether or not it was answered."""
    told: bool = False
    """It was sent under the present registration."""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """What an operator sees of a link."""

    sidecar_id: str
    connected: bool
    schema_present: bool | None
    """None until the primary was asked for the first time."""
    registered: bool
    known: bool
    """Whether the routing in force was read from the database, or it is known that there is none to read."""
    lease_seconds: float
    """What is left of the lease; 0 where none is held."""
    acknowledged: tuple[str, int]
    reconnects: int
    holding: bool
    problem: str | None


class ControlLink:
    """The link of one database; see the module's docstring for the rules."""

    def __init__(
        self,
        dsn: Dsn,
        hub: RoutingHub,
        *,
        service: str,
        speaks: str,
        pids: Callable[[], Sequence[int]],
        stats: Callable[[], Stats],
        info: Mapping[str, Any] | None = None,
        hold_max: float = 2.0,
        poll_seconds: float = POLL_SECONDS,
        lease_seconds: int = LEASE_SECONDS,
    ) -> None:
        """``pids``: all server backends on the primary, those about to ``enter`` included. ``stats``: what
        the migrator's gates look at."""
        self.hold_max = hold_max
        self._dsn = dsn
        self._hub = hub
        self._service = service
        self._speaks = speaks
        self._pids = pids
        self._stats = stats
        self._info = {"host": os.uname().nodename, "pid": os.getpid(), **(info or {})}
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        # Bound at each call, not now: a reload may change the level.
        self._log = structlog.get_logger("dualwire.control", service=service, server=dsn.label)

        self._id, self._secret = _identity()
        self._client: ControlClient | None = None
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._synced = asyncio.Event()
        """Set while the link is up and the hub has what the database publishes."""
        self._known = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._entering: set[asyncio.Task[None]] = set()
        self._schema: bool | None = None
        self._registered = False
        self._reregister = False
        self._acknowledged: tuple[str, int] = ("", 0)
        self._lease_until = 0.0
        self._reconnects = 0
        self._problem: str | None = None
        self._tracked: _Tracked | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._roused = asyncio.Event()
        self._roused.set()
        """Cleared while the link rests."""

    # -- life
    # --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow; needs a running event loop."""
        self._hub.on_quiet = self._wake.set
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"control {self._service}")

    async def stop(self) -> None:
        """Leave the registry and end the link. Sessions must have ended: nothing is released or
        acknowledged."""
        tasks = [task for task in (self._task, *self._entering) if task is not None]
        pending = set(tasks)
        while pending:
            # Again, should a library below have swallowed the cancellation (asyncpg uses wait_for).
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=1.0)
        self._cancel_timers()
        client, self._client = self._client, None
        if client is None:
            return
        try:
            if self._registered:
                await asyncio.wait_for(client.leave(), 2.0)
        except (LinkLost, Unregistered, SchemaMissing, TimeoutError) as error:
            self._log.warning("could not leave the registry", error=str(error))
        finally:
            self._synced.clear()
            await client.close()

    def rest(self) -> bool:
        """Give the connection up until :meth:`rouse`; False where there is a control schema to follow.

        For a database without clients that somebody wants for himself (DROP DATABASE).
        """
        if self._schema:
            return False
        self._roused.clear()
        self._synced.clear()
        self._known.clear()
        self._schema = None
        self._wake.set()
        return True

    def rouse(self) -> None:
        """Follow again."""
        self._roused.set()

    async def wait_known(self, within: float) -> bool:
        """Wait until it is known what routing holds; False if it is not by then."""
        if self._known.is_set():
            return True
        try:
            async with asyncio.timeout(within):
                await self._known.wait()
        except TimeoutError:
            return False
        return True

    def speak(self, version: str) -> None:
        """Register anew as speaking another version (a reload changed ``schema_version``)."""
        if version != self._speaks:
            self._speaks = version
            self._reregister = True
            self._wake.set()

    def status(self) -> LinkStatus:
        """The state of the link now."""
        tracked = self._tracked
        return LinkStatus(
            sidecar_id=self._id,
            connected=self._client is not None,
            schema_present=self._schema,
            registered=self._registered,
            known=self._known.is_set(),
            lease_seconds=max(0.0, self._lease_until - time.monotonic()),
            acknowledged=self._acknowledged,
            reconnects=self._reconnects,
            holding=tracked is not None and tracked.claimed,
            problem=self._problem,
        )

    # -- new server connections
    # --------------------------------------------------------------------------------

    async def enter(self, pids: Sequence[int], within: float = ENTER_TIMEOUT) -> None:
        """Make new server backends known and the routing current, before their first use.

        Returns at once where the database has no control schema. Raises ControlUnavailable if the link does
        not come up in time: the connection must not be used then.
        """
        if self._schema is False:
            return
        # In a task of its own: a client that goes away must not interrupt the publication of a routing
        # half-way.
        task = asyncio.get_running_loop().create_task(self._enter(tuple(pids)))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)
        try:
            await asyncio.wait_for(asyncio.shield(task), within)
        except TimeoutError:
            task.cancel()
            why = self._problem or "the control link is not up"
            raise ControlUnavailable(f"the routing could not be read within {within:g} s: {why}") from None

    async def _enter(self, pids: tuple[int, ...]) -> None:
        while True:
            await self._synced.wait()
            async with self._lock:
                client = self._client
                if client is None or not self._synced.is_set():
                    continue
                if self._schema is False:
                    return
                try:
                    if await client.enter(pids) != self._hub.routing.key:
                        await self._apply(client, await client.document())
                    return
                except (LinkLost, Unregistered, SchemaMissing, ValueError) as error:
                    # The task finds the same and mends it; then the loop here goes on.
                    self._trouble(str(error))
                    if isinstance(error, Unregistered):
                        self._forget()
                    self._wake.set()

    # -- the task
    # ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        delay = BACKOFF_FIRST
        while True:
            await self._roused.wait()
            try:
                self._client = client = await ControlClient.connect(
                    self._dsn, on_notify=self._wake.set, on_lost=self._on_lost
                )
                client.id, client.secret = self._id, self._secret
                while self._roused.is_set():
                    await self._turn(client)
                    delay = BACKOFF_FIRST
                self._client = None
                await client.close()
                continue
            except LinkLost as error:
                self._lost(str(error))
            except Exception as error:
                # Whatever it is, parked sessions and leases hang on this task: it goes on, and says what it
                # was.
                self._log.exception("the control link failed")
                self._lost(repr(error))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, BACKOFF_LAST)

    async def _turn(self, client: ControlClient) -> None:
        """One beat, then wait for a reason or for the next second."""
        self._wake.clear()
        async with self._lock:
            try:
                current = await self._beat(client)
            except Unregistered as error:
                self._trouble(f"registration refused: {error}")
                self._forget()
            except SchemaMissing as error:
                await self._schema_missing(client, str(error))
            except ValueError as error:
                # Acting on without it could write the wrong columns: new server connections wait.
                self._known.clear()
                self._trouble(f"the published routing is not understood: {error}")
            else:
                if current and self._roused.is_set():
                    self._problem = None
                    self._synced.set()
                    self._known.set()
        try:
            # Not wait_for: before Python 3.12 it can swallow a cancellation that comes together with the wake-up.
            async with asyncio.timeout(self._poll_seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _beat(self, client: ControlClient) -> bool:
        """Bring the hub up to date and report; False if what is in force is not what the database says."""
        if not self._registered and not await client.schema_present():
            return self._publish_absence()
        if self._reregister and self._tracked is None:
            if self._registered:
                await client.leave()
            self._forget()
        # Twice at most: the second time for a sidecar whose lease ran out while nobody heard of it.
        for attempt in (1, 2):
            try:
                if not self._registered:
                    await self._register(client)
                await self._settle(client)
                break
            except Unregistered:
                if attempt == 2:
                    raise
                self._log.info("registering under a new id", was=self._id)
                self._forget()
        return True

    async def _register(self, client: ControlClient) -> None:
        await client.register(
            self._id, self._secret, self._service, self._speaks, self._info, self._lease_seconds
        )
        self._registered, self._reregister, self._schema = True, False, True
        await self._apply(client, await client.document())

    async def _settle(self, client: ControlClient) -> None:
        """Report until what the database publishes is in force here, and acknowledged if it can be."""
        while True:
            await self._step_hold(client)
            if self._hub.quiet():
                self._acknowledged = (self._hub.routing.epoch_id, self._hub.routing.epoch)
            sent = self._acknowledged
            before = time.monotonic()
            published = await client.report(
                sent, self._hub.routing.revision, self._lease_seconds, self._pids(), self._stats()
            )
            self._lease_until = before + self._lease_seconds
            current = self._hub.routing
            if published != current.key:
                await self._apply(client, await client.document())
            elif sent == (current.epoch_id, current.epoch) or not self._hub.quiet():
                return

    async def _apply(self, client: ControlClient, routing: Routing) -> None:
        """Put a document in force. A hold that it ends, or whose time is over, is given up first."""
        tracked = self._tracked
        if tracked is not None and (
            routing.hold is None or routing.hold.id != tracked.id or self._now() >= tracked.deadline
        ):
            routing = await client.hold(tracked.id, held=False)
            self._publish(routing)
            self._end_tracking(None)
        else:
            self._publish(routing)
        hold, local = routing.hold, self._hub.hold
        if self._tracked is None and hold is not None and local is not None and local.id == hold.id:
            self._track(hold)

    def _publish(self, routing: Routing) -> None:
        before = self._hub.routing
        self._hub.publish(routing)
        if before.key != routing.key:
            self._log.info(
                "routing",
                epoch=routing.epoch,
                revision=routing.revision,
                migration=routing.migration,
                phase=routing.phase,
                percent=routing.percent,
                hold=routing.hold.id if routing.hold else None,
            )
            if before.epoch_id != routing.epoch_id and before.epoch > routing.epoch:
                self._log.warning("the epoch went back", was=before.epoch, now=routing.epoch)

    # -- the hold
    # ----------------------------------------------------------------------------------------------

    async def _step_hold(self, client: ControlClient) -> None:
        tracked = self._tracked
        if tracked is None:
            return
        if self._now() >= tracked.deadline:
            await self._apply(client, self._hub.routing)
        elif not tracked.told and self._hub.try_held(tracked.id):
            tracked.claimed = tracked.told = True
            await self._apply(client, await client.hold(tracked.id, held=True))

    def _track(self, hold: Hold) -> None:
        deadline = self._now() + min(hold.seconds, self.hold_max)
        self._tracked = _Tracked(hold.id, deadline)
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_at(deadline, self._on_deadline),
            loop.call_at(deadline + REFUSE_AFTER, self._refuse_parked),
        ]
        # The sessions that must drain may all be idle already.
        self._wake.set()

    def _end_tracking(self, refusal: Refusal | None) -> None:
        tracked, self._tracked = self._tracked, None
        self._cancel_timers()
        if tracked is not None:
            self._hub.release(tracked.id, refusal)

    def _on_deadline(self) -> None:
        self._wake.set()
        if self._client is None:
            self._release_unclaimed()

    def _release_unclaimed(self) -> None:
        """Without a link: end a hold that was never claimed, once its time is over."""
        tracked = self._tracked
        if tracked is not None and not tracked.claimed and self._now() >= tracked.deadline:
            self._log.warning("hold released without a link", hold=tracked.id)
            self._end_tracking(None)

    def _refuse_parked(self) -> None:
        """Refuse what is parked, and go on holding: names may have been swapped without us hearing of it."""
        tracked = self._tracked
        if tracked is None:
            return
        self._log.error("parked statements refused: the end of the hold could not be learnt", hold=tracked.id)
        self._hub.refuse_parked(
            Refusal(
                "08006",
                "the statement waited for a schema swap whose outcome could not be learnt",
                detail=f"The sidecar lost its link to the control schema during hold {tracked.id}.",
                hint="Nothing was executed: try again. See control in the sidecar's /status.",
            )
        )
        self._timers.append(asyncio.get_running_loop().call_later(REFUSE_AFTER, self._refuse_parked))

    def _cancel_timers(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            timer.cancel()

    # -- what goes wrong
    # ---------------------------------------------------------------------------------------

    def _on_lost(self) -> None:
        self._synced.clear()
        self._wake.set()

    def _lost(self, why: str) -> None:
        client, self._client = self._client, None
        self._synced.clear()
        if client is not None:
            client.terminate()
            self._reconnects += 1
        self._trouble(why)
        self._release_unclaimed()

    def _trouble(self, problem: str) -> None:
        self._synced.clear()
        if problem != self._problem:
            self._log.warning("control link", problem=problem)
        self._problem = problem

    def _forget(self) -> None:
        """The registration is gone: the next one is under a new id."""
        self._id, self._secret = _identity()
        self._registered = False
        self._acknowledged = ("", 0)
        self._lease_until = 0.0
        if self._tracked is not None:
            self._tracked.told = False

    async def _schema_missing(self, client: ControlClient, why: str) -> None:
        if await client.schema_present():
            self._trouble(f"the control schema is incomplete: {why}; run `dualwire init` of this version")
            return
        self._forget()
        if self._publish_absence():
            self._synced.set()
            self._known.set()

    def _publish_absence(self) -> bool:
        """No control schema: the routing is EMPTY, unless tables are known to differ from what clients
        expect."""
        if self._hub.routing.tables or self._tracked is not None:
            self._trouble("the control schema vanished while tables have rules: the last routing is kept")
            return False
        if self._schema is not False:
            self._log.info("no control schema: nothing is rewritten until `dualwire init`")
        self._schema = False
        if self._hub.routing != EMPTY:
            self._hub.publish(EMPTY)
        return True

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _identity() -> tuple[str, str]:
    return secrets.token_hex(8), secrets.token_hex(32)
