"""Many writers on the same few rows while a migration runs: what the stress tests of both kinds share.

Some rows are only ever counted up, by writers of both versions and by writers past the sidecars; what was acknowledged
is counted here, so that a lost update shows. The others are inserted, upserted, deleted and given other keys at random;
of them only the agreement of both shapes is known, which the migrator verifies. Statements may fail as they do without
a migration (a key that is taken, 40001 under REPEATABLE READ), and in no other way.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg

COUNTED = 8
"""Rows 1 to this are counted up."""
ROWS = 40

SETUP = f"""CREATE TABLE accounts (id integer PRIMARY KEY, status smallint NOT NULL, amount numeric(12,2) NOT NULL,
  note text);
INSERT INTO accounts SELECT g, g % 3, 0, 'n' FROM generate_series(1, {ROWS}) AS g"""

STATES = ("new", "paid", "shipped")


@dataclass(frozen=True)
class Kind:
    """A migration of the table, and how each version writes it: column, column, what one is, states by number."""

    migration: str
    old: tuple[str, str, int, tuple[Any, ...]]
    new: tuple[str, str, int, tuple[Any, ...]]


SAME_TABLE = Kind(
    """operations:
  - alter_column:
      table: accounts
      column: status
      type: text
      nullable: false
      up: "CASE status WHEN 0 THEN 'new' WHEN 1 THEN 'paid' WHEN 2 THEN 'shipped' ELSE status::text END"
      down: "CASE status WHEN 'new' THEN 0 WHEN 'paid' THEN 1 WHEN 'shipped' THEN 2 ELSE 9 END"
  - rename_column: {table: accounts, from: status, to: state}
  - alter_column:
      table: accounts
      column: amount
      name: cents
      type: bigint
      nullable: false
      up: "(amount * 100)::bigint"
      down: "cents / 100.0"
""",
    old=("status", "amount", 1, (0, 1, 2)),
    new=("state", "cents", 100, STATES),
)
"""Columns of other types and names."""

OTHER_TABLE = Kind(
    """operations:
  - replace_table:
      table: accounts
      columns:
        - {name: id, type: bigint}
""",
    old=("status", "amount", 1, (0, 1, 2)),
    new=("status", "amount", 1, (0, 1, 2)),
)
"""A wider primary key, which takes another table."""

Connect = Callable[[], Awaitable[Any]]
Version = Literal["old", "new"]
Isolation = Literal["read_committed", "repeatable_read"]

EXPECTED = (asyncpg.UniqueViolationError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""How a statement may fail without a migration, too."""


@dataclass
class Writer:
    """One client; ``counted`` and ``inserted`` say what it was told had happened."""

    number: int
    connect: Connect
    version: Version
    kind: Kind
    isolation: Isolation = "read_committed"
    counted: Counter[int] = field(default_factory=Counter)
    done: int = 0
    excused: Counter[str] = field(default_factory=Counter)
    stop: bool = False
    failure: str = ""

    async def run(self) -> None:
        """Write until told to stop."""
        chance = random.Random(self.number)
        connection = await self.connect()
        try:
            while not self.stop:
                await self._transaction(connection, chance)
        except Exception as error:
            self.failure = f"writer {self.number} ({self.version}, {self.isolation}): {error!r}"
            raise
        finally:
            await connection.close()

    async def _transaction(self, connection: Any, chance: random.Random) -> None:
        steps = chance.choice((1, 1, 1, 2, 3))
        counted: Counter[int] = Counter()
        try:
            if steps == 1 and self.isolation == "read_committed":
                await self._step(connection, chance, counted)
            else:
                async with connection.transaction(isolation=self.isolation):
                    for _ in range(steps):
                        await self._step(connection, chance, counted)
        except EXPECTED as error:
            self.excused[type(error).__name__] += 1
            return
        self.counted += counted
        self.done += 1

    async def _step(self, connection: Any, chance: random.Random, counted: Counter[int]) -> None:
        state, amount, one, values = self.kind.old if self.version == "old" else self.kind.new
        value = chance.choice(values)
        key = chance.randint(COUNTED + 1, ROWS)
        kind = chance.randrange(10)
        if kind < 4:
            row = chance.randint(1, COUNTED)
            tag = await connection.execute(
                f"UPDATE accounts SET {amount} = {amount} + {one} WHERE id = $1", row
            )
            assert tag == "UPDATE 1", tag
            counted[row] += 1
        elif kind == 4:
            await connection.execute(f"UPDATE accounts SET {state} = $2 WHERE id = $1", key, value)
        elif kind == 5:
            await connection.execute(
                f"UPDATE accounts SET {state} = $3, note = 'many' WHERE id BETWEEN $1 AND $2",
                key,
                key + 2,
                value,
            )
        elif kind == 6:
            await connection.execute("DELETE FROM accounts WHERE id = $1", key)
        elif kind == 7:
            await connection.execute(
                "UPDATE accounts SET id = id + $2 WHERE id = $1",
                key,
                chance.choice((1, -1, 100)) if key > COUNTED + 1 else 1,
            )
        elif kind == 8:
            await connection.execute(
                f"INSERT INTO accounts (id, {state}, {amount}) VALUES ($1, $2, {one}), ($3, $2, {one} * 2)",
                key,
                value,
                key + 200,
            )
        else:
            await connection.execute(
                f"INSERT INTO accounts (id, {state}, {amount}) VALUES ($1, $2, {one}) ON CONFLICT (id) DO UPDATE"
                f" SET {state} = excluded.{state}, {amount} = accounts.{amount} + excluded.{amount}",
                key,
                value,
            )


class Crowd:
    """The writers of one round."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.writers: list[Writer] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def add(self, connect: Connect, version: Version, isolation: Isolation = "read_committed") -> None:
        """One more writer, which begins at once."""
        writer = Writer(len(self.writers) + 1, connect, version, self.kind, isolation)
        self.writers.append(writer)
        self._tasks[writer.number] = asyncio.create_task(writer.run())

    async def work(self, more: int) -> None:
        """Let each writer that is under way do so many further transactions."""
        running = [writer for writer in self.writers if not writer.stop]
        goals = {writer.number: writer.done + more for writer in running}
        async with asyncio.timeout(60):
            while any(writer.done < goals[writer.number] for writer in running):
                failures = [writer.failure for writer in self.writers if writer.failure]
                assert not failures, failures
                await asyncio.sleep(0.01)

    async def leave(self, version: Version | None = None) -> None:
        """End the writers of a version, or all."""
        leaving = [w for w in self.writers if not w.stop and version in (None, w.version)]
        for writer in leaving:
            writer.stop = True
        await asyncio.gather(*(self._tasks[writer.number] for writer in leaving))

    @property
    def counted(self) -> Counter[int]:
        """How often each row was counted up, as far as anybody was told."""
        return sum((writer.counted for writer in self.writers), Counter())
