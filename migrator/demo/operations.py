"""What the services do: one operation after the other, chosen at random, with the answer that each must get.

An operation is planned against the ledger, independent of how it is sent; `raw` sends it as SQL through
asyncpg, `orm` through SQLAlchemy.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .ledger import Claim, Ledger, Plain, Record, Side
from .shop import NEXT_STATE, ORDERS, REFUNDED, STATES, TABLES, Table

UPSERT_KEYS = 400
READ_SHARE = 0.45


class WrongAnswer(Exception):
    """The server answered something that cannot be, given what it had acknowledged before."""


@dataclass(slots=True)
class Operation:
    """One unit of work. ``values`` are the keys that it writes; ``fresh`` rows get theirs from the server."""

    kind: str
    table: Table
    side: Side
    claim: Claim
    before: list[Record | None]
    values: dict[int, tuple[Plain, Any]] = field(default_factory=dict)
    fresh: list[tuple[Plain, Any]] = field(default_factory=list)
    writes: bool = True

    @property
    def key(self) -> int:
        """The key of an operation on one row."""
        return self.claim.keys[0]

    @property
    def column(self) -> str:
        """The changing column's name for this side."""
        return self.table.old_column if self.side is Side.OLD else self.table.new_column

    def expect_row(self, plain: Plain, value: Any, number: int = 0) -> None:
        """Checks a row that was read, the claim's first or another one, against the ledger."""
        record, key = self.before[number], self.claim.keys[number]
        if record is None:
            raise WrongAnswer(f"{self.table.name} {key} was found although it is deleted")
        expected = (record.plain, record.value(self.side))
        if (plain, value) != expected:
            raise WrongAnswer(f"{self.table.name} {key} read as {(plain, value)}, written was {expected}")

    def expect_count(self, found: int, expected: int) -> None:
        """Checks a row count."""
        if found != expected:
            raise WrongAnswer(f"{self.kind} of {expected} row(s) in {self.table.name} reported {found}")


class Planner:
    """Chooses one session's operations. ``speaks`` names the side by table; None: only columns that never
    change.
    """

    def __init__(
        self,
        ledger: Ledger,
        session: int,
        speaks: Mapping[str, Side] | None,
        seed: str,
        focus: Callable[[], float],
        star: bool = True,
    ) -> None:
        self._ledger = ledger
        self._session = session
        self._speaks = speaks
        self._random = random.Random(seed)
        self._focus = focus
        self._star = star
        self._recent: deque[tuple[str, int]] = deque(maxlen=50)

    def next(self) -> Operation | None:
        """The next operation, its rows claimed; None when everything it picked is in other hands just now."""
        if self._random.random() < READ_SHARE:
            return self._read()
        table = TABLES["orders" if self._random.random() < self._focus() else "customers"]
        if self._speaks is None:
            return self._plain(table)
        kinds, weights = zip(*_WRITES.items(), strict=True)
        kind = self._random.choices(kinds, weights)[0]
        return self._write(kind, table, self._speaks[table.name])

    def settle(self, operation: Operation, keys: list[int] | None = None) -> None:
        """The operation was acknowledged; ``keys`` are those that the server gave to ``fresh`` rows."""
        if operation.kind == "delete":
            self._ledger.deleted(operation.claim)
        elif not operation.writes:
            self._ledger.untouched(operation.claim)
        else:
            values = dict(operation.values)
            if operation.fresh:
                operation.expect_count(len(keys or []), len(operation.fresh))
                values.update(zip(keys or [], operation.fresh, strict=True))
            self._ledger.written(operation.claim, operation.side, values, self._session)
            self._recent.extend((operation.table.name, key) for key in values)

    def give_up(self, operation: Operation) -> None:
        """The operation's outcome is unknown."""
        self._ledger.lost_sight(operation.claim)

    def _read(self) -> Operation | None:
        """A row that this very session wrote last: it has to see its own write, wherever it is routed."""
        for _ in range(5):
            if not self._recent:
                return None
            name, key = self._random.choice(self._recent)
            claim = self._ledger.claim_key(name, key)
            if claim is None:
                continue
            before = self._ledger.look(claim)
            if before[0] is None or before[0].session != self._session:
                self._ledger.untouched(claim)
                continue
            side = Side.OLD if self._speaks is None else self._speaks[name]
            kinds = ["plain_row"] if self._speaks is None else ["row", "row", "star", "summary"]
            kind = self._random.choice(kinds)
            if (kind == "star" and not self._star) or (kind == "summary" and name != "orders"):
                kind = "row"
            return Operation(kind, TABLES[name], side, claim, before, writes=False)
        return None

    def _plain(self, table: Table) -> Operation | None:
        claim = self._ledger.claim_some(table.name, 1)
        if claim is None:
            return None
        before = self._ledger.look(claim)
        record = _present(before[0])
        values = {claim.keys[0]: (self._changed(table, record.plain), record.old)}
        return Operation("plain", table, Side.OLD, claim, before, values)

    def _write(self, kind: str, table: Table, side: Side) -> Operation | None:
        if kind in ("insert", "insert_many"):
            claim = self._ledger.claim_new(table.name, 1 if kind == "insert" else 3)
            fresh = [(self._new_plain(table, name), self._value(table, side)) for name in claim.references]
            return Operation(kind, table, side, claim, [], fresh=fresh)
        if kind == "upsert":
            key = self._ledger.own_key(table.name, self._random.randrange(UPSERT_KEYS))
            one = self._ledger.claim_key(table.name, key)
            if one is None:
                return None
            values = {key: (self._new_plain(table, f"upsert-{key}"), self._value(table, side))}
            return Operation(kind, table, side, one, self._ledger.look(one), values)
        some = self._ledger.claim_some(table.name, {"many": 4, "pair": 2}.get(kind, 1))
        if some is None:
            return None
        before = self._ledger.look(some)
        operation = Operation(kind, table, side, some, before, writes=kind != "cancel")
        value = self._value(table, side)
        for key, found in zip(some.keys, before, strict=True):
            record = _present(found)
            operation.values[key] = {
                "set": (self._changed(table, record.plain), value),
                "save": (self._changed(table, record.plain), record.value(side)),
                "step": (record.plain, _stepped(table, side, record.value(side))),
                "many": (record.plain, value),
            }.get(kind, (self._changed(table, record.plain), self._value(table, side)))
        return operation

    def _value(self, table: Table, side: Side) -> Any:
        if table is ORDERS:
            if side is Side.OLD:
                return self._random.randrange(len(STATES))
            return self._random.choice((*STATES, REFUNDED))
        if side is Side.OLD and self._random.random() < 0.3:
            return None
        return f"c{self._random.randrange(100_000)}@example.com"

    def _new_plain(self, table: Table, reference: str) -> Plain:
        if table is ORDERS:
            return (self._random.randrange(1000) + 1, self._random.randrange(10_000), reference)
        return (reference, self._random.randrange(100))

    def _changed(self, table: Table, plain: Plain) -> Plain:
        """Another amount, never the same one: an ORM sends nothing at all when nothing changes."""
        if table is ORDERS:
            return (plain[0], (plain[1] + self._random.randrange(1, 10_000)) % 10_000, plain[2])
        return (plain[0], (plain[1] + self._random.randrange(1, 100)) % 100)


def _present(record: Record | None) -> Record:
    assert record is not None, "claim_some gives existing rows"
    return record


def _stepped(table: Table, side: Side, value: Any) -> Any:
    """What the expression of a "step" (an UPDATE computed from the column itself) leaves."""
    if table is not ORDERS:
        return None if value is None else value.upper()
    if side is Side.OLD:
        return value + 1 if value < 3 else value
    return NEXT_STATE.get(value, value)


_WRITES = {
    "insert": 14,
    "insert_many": 4,
    "set": 32,
    "save": 10,
    "step": 8,
    "many": 5,
    "upsert": 14,
    "delete": 4,
    "pair": 6,
    "cancel": 3,
}
