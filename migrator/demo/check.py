"""Compares the database with the ledgers, row by row, in one snapshot.

*Lost*: a row, a deletion or a value that was acknowledged is not in the shape that it was written through.
*Diverged*: the shapes disagree with each other, that is, the shape that was not written last does not hold
the counterpart; or there are rows that nobody wrote.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .ledger import Record, Side, seeded_record
from .shop import Table

BATCH = 2000
SAMPLES = 10


class Visible(Enum):
    """Which shapes a table physically has, and from which rows on the second one must be right."""

    OLD = "old"
    MIRRORED = "mirrored"
    """Both, but only rows written since expand must have both: the backfill is not through."""
    BOTH = "both"
    NEW = "new"


@dataclass(slots=True)
class Findings:
    """What was wrong, by table and key; samples in words for people."""

    checked: int = 0
    lost: set[tuple[str, int]] = field(default_factory=set)
    diverged: set[tuple[str, int]] = field(default_factory=set)
    samples: list[str] = field(default_factory=list)

    def add(self, kind: set[tuple[str, int]], table: str, key: int, text: str) -> None:
        """Notes one row."""
        kind.add((table, key))
        if len(self.samples) < SAMPLES:
            self.samples.append(f"{table} {key}: {text}")

    def merge(self, other: Findings) -> None:
        """Adds another check's findings."""
        self.checked += other.checked
        self.lost |= other.lost
        self.diverged |= other.diverged
        self.samples = (self.samples + other.samples)[:SAMPLES]


@dataclass(frozen=True, slots=True)
class Expected:
    """The ledgers' word on one table."""

    rows: dict[int, tuple[Record, bool]]
    """Touched rows, each with whether it was written since expand."""
    gone: frozenset[int]
    excluded: frozenset[int]
    references: frozenset[str]
    seeded: int

    @classmethod
    def parse(cls, raw: dict[str, list[Any]], seeded: int) -> Expected:
        """Reads what `ledger.merged` gives."""
        return cls(
            rows={
                key: (Record(tuple(plain), old, new, Side(author), 0), mirrored)
                for key, plain, old, new, author, mirrored in raw["rows"]
            },
            gone=frozenset(raw["gone"]),
            excluded=frozenset(raw["excluded"]),
            references=frozenset(raw["references"]),
            seeded=seeded,
        )


def compare_row(
    table: Table, visible: Visible, expected: Expected, key: int, plain: tuple[Any, ...], old: Any, new: Any
) -> tuple[str, str] | None:
    """What is wrong with one row of the database, as ("lost" | "diverged", words); None when nothing is."""
    if key in expected.gone:
        return "lost", "is back after an acknowledged DELETE"
    touched = expected.rows.get(key)
    if touched is None:
        if not 1 <= key <= expected.seeded:
            return "diverged", f"nobody was told that this row exists: {plain}"
        record, mirrored = seeded_record(table, key), False
    else:
        record, mirrored = touched
    if plain != record.plain:
        return "lost", f"holds {plain}, acknowledged was {record.plain}"
    has_old = visible is not Visible.NEW
    has_new = visible in (Visible.BOTH, Visible.NEW) or (visible is Visible.MIRRORED and mirrored)
    wrong = []
    if has_old and old != record.old:
        wrong.append((Side.OLD, f"{table.old_column} is {old!r} instead of {record.old!r}"))
    if has_new and new != record.new:
        wrong.append((Side.NEW, f"new {table.new_column} is {new!r} instead of {record.new!r}"))
    if not wrong:
        return None
    words = "; ".join(text for _, text in wrong)
    # Where only one shape is left there is nothing to disagree with: a wrong value there is a lost one.
    alone = visible in (Visible.OLD, Visible.NEW)
    author_wrong = any(side is record.author for side, _ in wrong)
    return ("lost" if alone or author_wrong else "diverged"), words


async def compare(
    table: Table,
    visible: Visible,
    expected: Expected,
    rows: AsyncIterator[list[tuple[int, tuple[Any, ...], Any, Any]]],
) -> Findings:
    """Compares all rows of a table, which come in batches of (key, plain columns, old value, new value)."""
    findings = Findings()
    seen: set[int] = set()
    async for batch in rows:
        for key, plain, old, new in batch:
            seen.add(key)
            if key in expected.excluded or plain[table.reference] in expected.references:
                continue
            findings.checked += 1
            wrong = compare_row(table, visible, expected, key, plain, old, new)
            if wrong is not None:
                kind, words = wrong
                findings.add(findings.lost if kind == "lost" else findings.diverged, table.name, key, words)
    must_exist = expected.rows.keys() | set(range(1, expected.seeded + 1))
    for key in sorted(must_exist - expected.gone - expected.excluded - seen):
        findings.add(findings.lost, table.name, key, "is missing")
    return findings


async def visible_shape(connection: Any, table: Table, backfilled: bool, completed: bool) -> Visible:
    """Which shapes the table has at this snapshot."""
    columns = {
        row["attname"]
        for row in await connection.fetch(
            "SELECT attname FROM pg_attribute "
            "WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
            table.name,
        )
    }
    if table.shadow in columns:
        return Visible.BOTH if backfilled else Visible.MIRRORED
    return Visible.NEW if completed else Visible.OLD


async def table_rows(
    connection: Any, table: Table, visible: Visible
) -> AsyncIterator[list[tuple[int, tuple[Any, ...], Any, Any]]]:
    """All rows under the connection's snapshot; a shape that does not exist reads as NULL."""
    old = "NULL" if visible is Visible.NEW else f'"{table.old_column}"'
    new = {Visible.OLD: "NULL", Visible.NEW: f'"{table.new_column}"'}.get(visible, f'"{table.shadow}"')
    plain = ", ".join(table.plain_columns)
    cursor = await connection.cursor(f"SELECT id, {plain}, {old}, {new} FROM {table.name}")
    width = len(table.plain_columns)
    while batch := await cursor.fetch(BATCH):
        yield [(row[0], tuple(row[1 : 1 + width]), row[1 + width], row[2 + width]) for row in batch]
