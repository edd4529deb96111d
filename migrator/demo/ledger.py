"""The independent ledger: what every acknowledged write must have left in both shapes.

One ledger lives in each workload process and knows only the keys that this process writes. Writers *claim*
keys before they send a statement and *settle* the claim once the server has acknowledged it, so that the
value of an unclaimed key is known for certain. What the ledger expects follows from the statements alone and
from `shop`'s own reading of the migrations; it never reads the database.

The rule for both shapes is the product's promise: a write that changes a value through one shape sets the
other shape to its counterpart; a write that leaves the value as it was leaves the other shape alone, too (it
may hold what the first cannot).

A check runs while the traffic goes on: `begin_check` before the checker takes its snapshot, `expectations`
after it. Keys that were claimed meanwhile may be in the snapshot or not: they are left out of this check.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .shop import TABLES, Table, seeded_rows

Plain = tuple[Any, ...]


class Side(Enum):
    """Which shape of a table a writer knows."""

    OLD = "old"
    NEW = "new"


@dataclass(slots=True)
class Record:
    """What one row must hold. ``author`` is the side whose value was written last, ``begun`` when that write
    began.
    """

    plain: Plain
    old: Any
    new: Any
    author: Side
    begun: int
    session: int = 0

    def value(self, side: Side) -> Any:
        """The changing column as one side sees it."""
        return self.old if side is Side.OLD else self.new


@dataclass(frozen=True, slots=True)
class Claim:
    """Keys, and references of rows that get their key from the server, that one operation may touch."""

    table: str
    keys: tuple[int, ...]
    references: tuple[str, ...]
    begun: int


@dataclass(slots=True)
class _Book:
    """One table's rows in this ledger: those touched so far (None: deleted), those in somebody's hands."""

    table: Table
    seeded: int
    touched: dict[int, Record | None] = field(default_factory=dict)
    claimed: set[int] = field(default_factory=set)
    references: set[str] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    unknown_references: set[str] = field(default_factory=set)
    lively: list[int] = field(default_factory=list)


class Ledger:
    """The rows of one workload process: every seeded key that is ``index`` modulo ``owners``, and its own
    inserts.
    """

    def __init__(self, rows: int, index: int, owners: int, seed: int) -> None:
        self.index = index
        self.owners = owners
        self._random = random.Random(f"{seed}/{index}")
        self._lock = threading.Lock()
        self._books = {name: _Book(table, seeded_rows(name, rows)) for name, table in TABLES.items()}
        self._clock = 0
        self._marked: tuple[int, dict[str, set[int]], dict[str, set[str]]] | None = None
        self._since_mark: list[Claim] = []
        self._names = 0
        self._mirrored_since: dict[str, int] = {}

    # Claiming

    def claim_some(self, table: str, count: int, session: int | None = None) -> Claim | None:
        """Claims existing rows that nobody holds; with ``session`` only rows that this session wrote last."""
        with self._lock:
            book = self._books[table]
            keys: list[int] = []
            for _ in range(20 * count):
                key = self._pick(book)
                if key is None or key in book.claimed or key in book.unknown or key in keys:
                    continue
                record = self._record(book, key)
                if record is None or (session is not None and record.session != session):
                    continue
                keys.append(key)
                if len(keys) == count:
                    return self._claim(book, tuple(keys), ())
            return None

    def claim_key(self, table: str, key: int) -> Claim | None:
        """Claims one key, existing or not; None while somebody else holds it."""
        with self._lock:
            book = self._books[table]
            if key in book.claimed or key in book.unknown:
                return None
            return self._claim(book, (key,), ())

    def claim_new(self, table: str, count: int) -> Claim:
        """Names rows that are about to be inserted under keys that the server gives."""
        with self._lock:
            names = []
            for _ in range(count):
                self._names += 1
                names.append(f"w{self.index}-{self._names}")
            return self._claim(self._books[table], (), tuple(names))

    def own_key(self, table: str, number: int) -> int:
        """A key of this process's own range, far above what sequences give: for upserts."""
        return (self.index + 1) * 1_000_000_000 + number

    def look(self, claim: Claim) -> list[Record | None]:
        """What the claimed rows hold now, as far as is known."""
        with self._lock:
            return [self._record(self._books[claim.table], key) for key in claim.keys]

    # Settling

    def written(
        self, claim: Claim, side: Side, values: dict[int, tuple[Plain, Any]], session: int = 0
    ) -> None:
        """The server acknowledged a write: for each key the plain columns and the value, as ``side`` wrote
        them.
        """
        with self._lock:
            book = self._books[claim.table]
            for key, (plain, value) in values.items():
                before = self._record(book, key)
                book.touched[key] = _applied(book.table, before, side, plain, value, claim.begun, session)
                book.lively.append(key)
            self._release(book, claim)

    def deleted(self, claim: Claim) -> None:
        """The server acknowledged that the claimed rows are gone."""
        with self._lock:
            book = self._books[claim.table]
            book.touched.update(dict.fromkeys(claim.keys))
            self._release(book, claim)

    def untouched(self, claim: Claim) -> None:
        """Nothing was written: a read, or a transaction that was rolled back."""
        with self._lock:
            self._release(self._books[claim.table], claim)

    def lost_sight(self, claim: Claim) -> None:
        """The outcome is unknown (the connection broke): these rows are never checked again."""
        with self._lock:
            book = self._books[claim.table]
            book.unknown.update(claim.keys)
            book.unknown_references.update(claim.references)
            self._release(book, claim)

    # Checking

    def mirrored_from_now(self, migration: str) -> None:
        """The migration is expanded: what is written from now on has to be in both shapes at once."""
        with self._lock:
            self._mirrored_since[migration] = self._clock

    def begin_check(self) -> None:
        """Remembers what is in somebody's hands; the checker takes its snapshot after this."""
        with self._lock:
            self._marked = (
                self._clock,
                {name: set(book.claimed) for name, book in self._books.items()},
                {name: set(book.references) for name, book in self._books.items()},
            )
            self._since_mark = []

    def expectations(self) -> dict[str, Any]:
        """What the snapshot taken since `begin_check` must hold, as JSON: see `check.Expected`."""
        with self._lock:
            if self._marked is None:
                raise RuntimeError("expectations without begin_check")
            _, claimed, references = self._marked
            for claim in self._since_mark:
                claimed[claim.table].update(claim.keys)
                references[claim.table].update(claim.references)
            self._marked = None
            return {
                name: self._expected(
                    book, claimed[name] | book.unknown, references[name] | book.unknown_references
                )
                for name, book in self._books.items()
            }

    def _expected(self, book: _Book, excluded: set[int], references: set[str]) -> dict[str, Any]:
        since = self._mirrored_since.get(book.table.migration)
        rows, gone = [], []
        # A row inserted around the snapshot may have its key by now, and still not be in the snapshot.
        excluded = excluded | {
            key
            for key, record in book.touched.items()
            if record and record.plain[book.table.reference] in references
        }
        for key, record in book.touched.items():
            if key in excluded:
                continue
            if record is None:
                gone.append(key)
            else:
                mirrored = since is not None and record.begun > since
                rows.append([key, list(record.plain), record.old, record.new, record.author.value, mirrored])
        return {"rows": rows, "gone": gone, "excluded": sorted(excluded), "references": sorted(references)}

    # Internals; the lock is held

    def _claim(self, book: _Book, keys: tuple[int, ...], references: tuple[str, ...]) -> Claim:
        self._clock += 1
        claim = Claim(book.table.name, keys, references, self._clock)
        book.claimed.update(keys)
        book.references.update(references)
        if self._marked is not None:
            self._since_mark.append(claim)
        return claim

    def _release(self, book: _Book, claim: Claim) -> None:
        book.claimed.difference_update(claim.keys)
        book.references.difference_update(claim.references)

    def _pick(self, book: _Book) -> int | None:
        """Half of the time a row that was written lately, so that rows see many writers in turn."""
        if book.lively and self._random.random() < 0.5:
            return self._random.choice(book.lively[-500:])
        span = (book.seeded - self.index) // self.owners
        key = self.index + self.owners * self._random.randint(0, max(span, 0))
        return key if 1 <= key <= book.seeded else None

    def _record(self, book: _Book, key: int) -> Record | None:
        if key in book.touched:
            return book.touched[key]
        return seeded_record(book.table, key) if self._owns_seeded(book, key) else None

    def _owns_seeded(self, book: _Book, key: int) -> bool:
        return 1 <= key <= book.seeded and key % self.owners == self.index


def seeded_record(table: Table, key: int) -> Record:
    """A row as it was before the traffic."""
    plain, old = table.seeded(key)
    return Record(plain, old, table.up(old), Side.OLD, 0)


def _applied(
    table: Table, before: Record | None, side: Side, plain: Plain, value: Any, begun: int, session: int
) -> Record:
    if before is not None and before.value(side) == value:
        return Record(plain, before.old, before.new, before.author, begun, session)
    if side is Side.OLD:
        return Record(plain, value, table.up(value), side, begun, session)
    return Record(plain, table.down(value), value, side, begun, session)


def merged(expectations: Iterable[dict[str, Any]], table: str) -> dict[str, list[Any]]:
    """The expectations of several ledgers for one table, together."""
    total: dict[str, list[Any]] = {"rows": [], "gone": [], "excluded": [], "references": []}
    for part in expectations:
        for kind, entries in part[table].items():
            total[kind].extend(entries)
    return total
