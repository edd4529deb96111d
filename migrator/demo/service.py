"""One service instance: a session that works at its own pace, counts, and comes back after an error.

Both kinds run the same loop; a `RawClient`'s lives in the event loop, an `OrmClient`'s in a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg
from sqlalchemy.exc import DBAPIError

from .ledger import Ledger, Side
from .meter import Meter
from .operations import Operation, Planner
from .orm import OrmClient
from .raw import RawClient
from .shop import TABLES

RETRY_SECONDS = 0.2
# How a sidecar refuses a version that is not served (yet): feature_not_supported.
NOT_SERVED = "0A000"
_sessions = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Instance:
    """What the director wants to run. ``speaks`` is None for one that only touches columns which never
    change.
    """

    name: str
    driver: Literal["asyncpg", "sqlalchemy"]
    dsn: str
    speaks: Mapping[str, Side] | None
    rate: float
    """Operations a second at the most."""
    patient: bool = False
    """Started before its version is served: a refusal then means waiting, not an error."""
    direct: bool = False
    """Comes past the sidecars: ``SELECT *`` is not what its version says."""

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Instance:
        """As the director writes it."""
        speaks = raw["speaks"]
        sides = None if speaks is None else {table: Side(side) for table, side in speaks.items()}
        return cls(**{**raw, "speaks": sides})


class Service:
    """The loop of one instance. ``on_served`` is called once it has got through for the first time."""

    def __init__(
        self,
        instance: Instance,
        ledger: Ledger,
        meter: Meter,
        seed: int,
        focus: Callable[[], float],
        on_served: Callable[[str], None],
    ) -> None:
        self.instance = instance
        self._ledger = ledger
        self._meter = meter
        self._seed = seed
        self._focus = focus
        self._on_served = on_served
        self._stop = threading.Event()
        self._served = False
        self._random = random.Random(f"{seed}/{instance.name}/pace")
        self._planner: Planner | None = None
        self._session = 0

    def stop(self) -> None:
        """Asks it to finish its operation and to leave."""
        self._stop.set()

    async def run_raw(self) -> None:
        """The loop of an asyncpg instance."""
        client = RawClient(self.instance.dsn, self.instance.name)
        connected = False
        while not self._stop.is_set():
            begun = time.monotonic()
            operation = None
            try:
                if not connected:
                    await client.connect()
                    await self._probe_raw(client)
                    connected = self._connected()
                operation = self._begin()
                if operation is not None:
                    begun = self._meter.begin(self._session)
                    self._end(operation, begun, await client.perform(operation))
            except Exception as error:
                client.abandon()
                self._broken(operation, begun, error, connected)
                connected = False
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(self._pause(begun))
        await client.close()

    def run_orm(self) -> None:
        """The loop of a SQLAlchemy instance."""
        client = OrmClient(self.instance.dsn, self.instance.name)
        connected = False
        while not self._stop.is_set():
            begun = time.monotonic()
            operation = None
            try:
                if not connected:
                    client.connect()
                    if self.instance.speaks is not None:
                        for table, side in self.instance.speaks.items():
                            client.probe(TABLES[table], side)
                    connected = self._connected()
                operation = self._begin()
                if operation is not None:
                    begun = self._meter.begin(self._session)
                    self._end(operation, begun, client.perform(operation))
            except Exception as error:
                client.abandon()
                self._broken(operation, begun, error, connected)
                connected = False
                self._stop.wait(RETRY_SECONDS)
            self._stop.wait(self._pause(begun))
        client.close()

    async def _probe_raw(self, client: RawClient) -> None:
        if self.instance.speaks is not None:
            for table, side in self.instance.speaks.items():
                await client.probe(TABLES[table], side)

    def _connected(self) -> bool:
        """A new connection is a new session: it owes nobody the writes of the one before."""
        self._session = next(_sessions)
        self._planner = Planner(
            self._ledger,
            self._session,
            self.instance.speaks,
            f"{self._seed}/{self.instance.name}/{self._session}",
            self._focus,
            star=not self.instance.direct,
        )
        if not self._served:
            self._served = True
            self._on_served(self.instance.name)
        return True

    def _begin(self) -> Operation | None:
        assert self._planner is not None
        return self._planner.next()

    def _end(self, operation: Operation, begun: float, keys: list[int] | None) -> None:
        assert self._planner is not None
        self._planner.settle(operation, keys)
        write = None if operation.kind == "cancel" else operation.writes
        self._meter.done(self._session, begun, write)

    def _broken(self, operation: Operation | None, begun: float, error: Exception, connected: bool) -> None:
        if operation is not None and self._planner is not None:
            self._planner.give_up(operation)
        if self.instance.patient and not self._served and _sqlstate(error) == NOT_SERVED:
            return
        what = operation.kind if operation is not None else "connect"
        words = " ".join(str(error).split())
        clock = time.strftime("%H:%M:%S")
        self._meter.failed(
            self._session,
            begun,
            f"{clock} {self.instance.name} {what}: {type(error).__name__}: {words[:300]}",
        )

    def _pause(self, begun: float) -> float:
        """Until the next operation is due; a little irregular, as people are."""
        due = self._random.uniform(0.5, 1.5) / self.instance.rate
        return max(0.0, due - (time.monotonic() - begun))


def _sqlstate(error: BaseException) -> str | None:
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate)
    if isinstance(error, DBAPIError):
        origin = error.orig
        state = getattr(origin, "sqlstate", None)
        # psycopg tells no SQLSTATE for what happens while connecting; the text has the refusal's words.
        if state is None and "not served yet" in str(origin):
            return NOT_SERVED
        return state
    return None
