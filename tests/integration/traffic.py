"""Writers with their own memory, for tests that kill things while they write."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

UP = {0: "new", 1: "paid", 2: "shipped"}
DOWN = {state: code for code, state in UP.items()}
ABSENT = -1
"""Among what a row may be: not there, because no INSERT of it was acknowledged yet."""

SETUP = """CREATE TABLE orders (id bigint PRIMARY KEY, status smallint NOT NULL, note text);
INSERT INTO orders SELECT g, g % 3, 'n' FROM generate_series(1, {rows}) AS g"""

MIGRATION = """operations:
  - alter_column:
      table: orders
      column: status
      type: text
      nullable: false
      up: "CASE status WHEN 0 THEN 'new' WHEN 1 THEN 'paid' WHEN 2 THEN 'shipped' ELSE 'unknown' END"
      down: "CASE status WHEN 'new' THEN 0 WHEN 'paid' THEN 1 WHEN 'shipped' THEN 2 ELSE 9 END"
  - rename_column: {table: orders, from: status, to: state}
"""

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    # What asyncpg says when the server's farewell came while it was idle and the socket is not closed yet.
    asyncpg.InternalClientError,
    OSError,
)
"""What a client sees when its connection goes; anything else is a failed write."""

Connect = Callable[[], Awaitable[Any]]


class Writer:
    """One client on its own keys: writes, remembers what was acknowledged, connects again when cut off.

    A statement whose connection broke before the answer may or may not have happened: both values are right then.
    """

    def __init__(self, number: int, connect: Connect, column: str = "status") -> None:
        self.connect = connect
        self.column = column
        self.random = random.Random(number)
        self.keys = list(range(1_000_000 * number + 1, 1_000_000 * number + 40))
        self.known: dict[int, set[int]] = {}
        """Key to the status codes that it may have now."""
        self.attempts: Counter[int] = Counter()
        """Writes begun, by key."""
        self.acknowledged = 0
        self.reconnects = 0
        self.stop = False
        self.failure = ""
        """The error of a write that failed, which none may."""

    async def run(self) -> None:
        """Write until told to stop."""
        try:
            await self._write()
        except Exception as error:
            self.failure = repr(error)
            raise

    async def _write(self) -> None:
        connection: Any = None
        while not self.stop:
            key, code = self.random.choice(self.keys), self.random.randrange(3)
            value: Any = code if self.column == "status" else UP[code]
            before = self.known.get(key, {ABSENT})
            self.known[key] = {code} | before
            self.attempts[key] += 1
            try:
                if connection is None or connection.is_closed():
                    connection = await self.connect()
                if ABSENT in before:
                    await connection.execute(
                        f"INSERT INTO orders (id, {self.column}, note) VALUES ($1, $2, 'w') "
                        f"ON CONFLICT (id) DO UPDATE SET {self.column} = excluded.{self.column}",
                        key,
                        value,
                    )
                else:
                    await connection.execute(
                        f"UPDATE orders SET {self.column} = $2 WHERE id = $1", key, value
                    )
            except LOST:
                self.reconnects += 1
                connection = None
                await asyncio.sleep(0.05)
                continue
            self.known[key] = {code}
            self.acknowledged += 1
        if connection is not None:
            await connection.close()


def wrong(
    writers: list[Writer],
    rows: dict[int, tuple[int | None, str | None]],
    moving: frozenset[int] = frozenset(),
) -> list[str]:
    """What the shapes hold against what the writers know; a shape that does not exist (any more) is None.

    ``moving``: keys that were written while the rows were read, which only have to agree with themselves.
    """
    problems: list[str] = []
    for writer in writers:
        for key, known in writer.known.items():
            codes = {0, 1, 2} if key in moving else known
            if key in moving and key not in rows:
                continue
            if key not in rows:
                if ABSENT not in codes:
                    problems.append(f"row {key} is lost")
                continue
            old, new = rows[key]
            if old is not None and old not in codes:
                problems.append(f"row {key}: status {old}, expected one of {codes}")
            if new is not None and DOWN.get(new) not in codes:
                problems.append(f"row {key}: state {new}, expected one of {codes}")
            if old is not None and new is not None and UP[old] != new:
                problems.append(f"row {key}: shapes diverge, {old} and {new}")
    return problems
