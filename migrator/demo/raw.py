"""A service instance that speaks SQL through asyncpg."""

from __future__ import annotations

from typing import Any

import asyncpg

from .ledger import Side
from .operations import Operation, WrongAnswer
from .shop import NEXT_STATE, ORDERS, Table


class RawClient:
    """One connection; sends operations and checks the answers. Every statement names columns as its version
    knows them.
    """

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = dsn
        self._name = name
        self._connection: Any = None

    async def connect(self) -> None:
        """Connects anew."""
        self.abandon()
        self._connection = await asyncpg.connect(
            self._dsn, timeout=20, command_timeout=30, server_settings={"application_name": self._name}
        )

    async def close(self) -> None:
        """Says goodbye."""
        if self._connection is not None:
            await self._connection.close(timeout=5)
            self._connection = None

    def abandon(self) -> None:
        """Drops the connection as it is."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def perform(self, operation: Operation) -> list[int] | None:
        """Sends one operation; gives the keys of fresh rows."""
        handler = getattr(self, f"_{operation.kind}")
        keys: list[int] | None = await handler(operation)
        return keys

    async def probe(self, table: Table, side: Side) -> None:
        """A read that only succeeds where the side's version is served."""
        column = table.old_column if side is Side.OLD else table.new_column
        await self._connection.fetch(f"SELECT {column} FROM {table.name} WHERE id = $1", 1)

    # Reads

    async def _row(self, operation: Operation) -> None:
        plain = operation.table.plain_columns
        row = await self._connection.fetchrow(
            f"SELECT {', '.join(plain)}, {operation.column} FROM {operation.table.name} WHERE id = $1",
            operation.key,
        )
        self._expect(operation, row, (*plain, operation.column))

    async def _star(self, operation: Operation) -> None:
        row = await self._connection.fetchrow(
            f"SELECT * FROM {operation.table.name} WHERE id = $1", operation.key
        )
        self._expect(operation, row, _columns(operation))

    async def _plain_row(self, operation: Operation) -> None:
        plain = operation.table.plain_columns
        row = await self._connection.fetchrow(
            f"SELECT {', '.join(plain)} FROM {operation.table.name} WHERE id = $1", operation.key
        )
        record = operation.before[0]
        operation.expect_row(tuple(row) if row else (), record.value(operation.side) if record else None)

    async def _summary(self, operation: Operation) -> None:
        record = operation.before[0]
        customer = record.plain[0] if record else 0
        rows = await self._connection.fetch(
            f"SELECT {operation.column}, count(*) FROM orders WHERE customer_id = $1 GROUP BY 1 ORDER BY 1",
            customer,
        )
        mine = record.value(operation.side) if record else None
        if mine not in [row[0] for row in rows]:
            raise WrongAnswer(
                f"orders of customer {customer}: no {mine!r} in {rows}, order {operation.key} has it"
            )

    def _expect(self, operation: Operation, row: Any, columns: tuple[str, ...]) -> None:
        if row is None:
            raise WrongAnswer(f"{operation.table.name} {operation.key} is missing")
        if tuple(row.keys()) != columns:
            raise WrongAnswer(
                f"{operation.table.name} has the columns {tuple(row.keys())} instead of {columns}"
            )
        operation.expect_row(
            tuple(row[name] for name in operation.table.plain_columns), row[operation.column]
        )

    # Writes

    async def _insert(self, operation: Operation) -> list[int]:
        columns = (*operation.table.plain_columns, operation.column)
        width = len(columns)
        tuples = ", ".join(
            f"({', '.join(f'${row * width + n + 1}' for n in range(width))})"
            for row in range(len(operation.fresh))
        )
        arguments = [cell for plain, value in operation.fresh for cell in (*plain, value)]
        rows = await self._connection.fetch(
            f"INSERT INTO {operation.table.name} ({', '.join(columns)}) VALUES {tuples} RETURNING id",
            *arguments,
        )
        return [row["id"] for row in rows]

    _insert_many = _insert

    async def _upsert(self, operation: Operation) -> None:
        ((key, (plain, value)),) = operation.values.items()
        columns = (*operation.table.plain_columns, operation.column)
        places = ", ".join(f"${n + 2}" for n in range(len(columns)))
        assignments = ", ".join(f"{name} = EXCLUDED.{name}" for name in columns)
        tag = await self._connection.execute(
            f"INSERT INTO {operation.table.name} (id, {', '.join(columns)}) VALUES ($1, {places}) "
            f"ON CONFLICT (id) DO UPDATE SET {assignments}",
            key,
            *plain,
            value,
        )
        operation.expect_count(int(tag.split()[-1]), 1)

    async def _set(self, operation: Operation) -> None:
        for key, (plain, value) in operation.values.items():
            changing = operation.table.plain_columns[-2 if operation.table is ORDERS else -1]
            cell = plain[operation.table.plain_columns.index(changing)]
            tag = await self._connection.execute(
                f"UPDATE {operation.table.name} SET {operation.column} = $1, {changing} = $2 WHERE id = $3",
                value,
                cell,
                key,
            )
            operation.expect_count(int(tag.split()[-1]), 1)

    async def _save(self, operation: Operation) -> None:
        ((key, (plain, value)),) = operation.values.items()
        columns = (*operation.table.plain_columns, operation.column)
        assignments = ", ".join(f"{name} = ${n + 2}" for n, name in enumerate(columns))
        tag = await self._connection.execute(
            f"UPDATE {operation.table.name} SET {assignments} WHERE id = $1", key, *plain, value
        )
        operation.expect_count(int(tag.split()[-1]), 1)

    async def _plain(self, operation: Operation) -> None:
        ((key, (plain, _)),) = operation.values.items()
        columns = operation.table.plain_columns
        assignments = ", ".join(f"{name} = ${n + 2}" for n, name in enumerate(columns))
        tag = await self._connection.execute(
            f"UPDATE {operation.table.name} SET {assignments} WHERE id = $1", key, *plain
        )
        operation.expect_count(int(tag.split()[-1]), 1)

    async def _step(self, operation: Operation) -> None:
        expression = step_expression(operation)
        tag = await self._connection.execute(
            f"UPDATE {operation.table.name} SET {operation.column} = {expression} WHERE id = $1",
            operation.key,
        )
        operation.expect_count(int(tag.split()[-1]), 1)

    async def _many(self, operation: Operation) -> None:
        value = next(iter(operation.values.values()))[1]
        tag = await self._connection.execute(
            f"UPDATE {operation.table.name} SET {operation.column} = $1 WHERE id = ANY($2::bigint[])",
            value,
            list(operation.values),
        )
        operation.expect_count(int(tag.split()[-1]), len(operation.values))

    async def _delete(self, operation: Operation) -> None:
        tag = await self._connection.execute(
            f"DELETE FROM {operation.table.name} WHERE id = $1", operation.key
        )
        operation.expect_count(int(tag.split()[-1]), 1)

    async def _pair(self, operation: Operation) -> None:
        async with self._connection.transaction():
            await self._set(operation)

    async def _cancel(self, operation: Operation) -> None:
        transaction = self._connection.transaction()
        await transaction.start()
        await self._set(operation)
        await transaction.rollback()


def _columns(operation: Operation) -> tuple[str, ...]:
    """What ``*`` stands for, in the order of the version: the changing column where it always stood."""
    plain = operation.table.plain_columns
    return ("id", plain[0], operation.column, *plain[1:])


def step_expression(operation: Operation) -> str:
    """An expression over the changing column itself, in SQL."""
    column = operation.column
    if operation.table is not ORDERS:
        return f"upper({column})"
    if operation.side is Side.OLD:
        return f"CASE WHEN {column} < 3 THEN {column} + 1 ELSE {column} END"
    steps = " ".join(f"WHEN '{state}' THEN '{following}'" for state, following in NEXT_STATE.items())
    return f"CASE {column} {steps} ELSE {column} END"
