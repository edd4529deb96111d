"""Whether two answers are the same to a client, and the few differences that are known and allowed.

What is allowed stands here and nowhere else, each with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from tests.oracle.wire import Field, Heard

FIRST_NORMAL_OID = 16384
RECORD = 2249
IGNORED_FIELDS = "FLRqpW"
"""Where in PostgreSQL's source it was raised, and in what function's statement: no client acts on that."""
FAILING_ROW = re.compile(r"^Failing row contains \(.*\)\.$", re.DOTALL)
"""The row as the table physically holds it: both shapes' columns are in it."""

TWO_VIOLATIONS = {(got, expected) for got in ("23503", "23505") for expected in ("23502", "23514")} | {
    ("23503", "23505")
}
"""(got, expected): of two constraints that a row breaks, PostgreSQL tells NOT NULL and CHECK first. Those that only the
new version has are checked when the row is there, and so after unique ones. Foreign keys come at
the end of a statement, but COPY of a new speaker inserts row by row."""


class Names:
    """What OIDs of one database mean, for those that differ between databases: tables and their row types."""

    def __init__(
        self, types: Mapping[int, str], tables: Mapping[int, str], columns: Mapping[tuple[int, int], str]
    ):
        self.types = types
        self.tables = tables
        self.columns = columns
        """Logical names by (table, attribute) for the version that is spoken."""

    def type(self, oid: int) -> int | str:
        """A type's OID if it is the same everywhere, else its name."""
        return oid if oid < FIRST_NORMAL_OID else self.types.get(oid, f"unknown type {oid}")

    def origin(self, field: Field) -> str:
        """The table and column that a result's column comes from."""
        if not field.table:
            return ""
        table = self.tables.get(field.table)
        if table is None:
            return f"a table of the program's own.{field.attribute}"
        return f"{table}.{self.columns.get((field.table, field.attribute), field.attribute)}"


def told(heard: list[Heard], names: Names, ordered: bool) -> list[Any]:
    """An answer as it is compared."""
    found: list[Any] = []
    rows: list[Any] = []
    for one in heard:
        if one.kind == "D":
            rows.append(one.content)
            continue
        if rows:
            found.append(("D", rows if ordered else sorted(rows, key=repr)))
            rows = []
        if one.kind == "T":
            found.append(("T", [_field(f, names) for f in one.content]))
        elif one.kind == "t":
            found.append(("t", [names.type(oid) for oid in one.content]))
        elif one.kind in "EN":
            found.append((one.kind, _report(one.content)))
        elif one.kind == "d":
            found.append(("d", one.content))
        else:
            found.append((one.kind, one.content))
    return found


def _field(field: Field, names: Names) -> tuple[Any, ...]:
    return (field.name, names.type(field.type), field.size, field.modifier, field.format, names.origin(field))


def _report(fields: Mapping[str, str]) -> dict[str, str]:
    kept = {code: text for code, text in fields.items() if code not in IGNORED_FIELDS}
    if kept.get("H", "").startswith("The version of "):
        del kept["H"]  # names the columns that the client's version has
    if FAILING_ROW.match(kept.get("D", "")):
        del kept["D"]
    return kept


def differences(got: list[Any], expected: list[Any], not_null: Set[str] = frozenset()) -> list[str]:
    """Sentences about what differs; empty if the answers are equal. ``not_null``: such columns."""
    found = []
    for number in range(max(len(got), len(expected))):
        left = got[number] if number < len(got) else ("nothing",)
        right = expected[number] if number < len(expected) else ("nothing",)
        if left == right:
            continue
        if left[0] == right[0] == "T" and _same_fields(left[1], right[1]):
            continue
        if left[0] == right[0] == "E":
            parts = {c: (left[1].get(c), right[1].get(c)) for c in {**left[1], **right[1]}}
            wrong = {c: pair for c, pair in parts.items() if pair[0] != pair[1]}
            if parts["C"] == ("24000", "24000"):  # whether a cursor's row can be changed depends on the plan
                continue
            if wrong.get("C") in TWO_VIOLATIONS or _two_nulls(parts, not_null):
                continue
            found.append(f"error {right[1].get('C')}: (got, expected) {wrong}")
        else:
            found.append(f"message {number}: got {left!r}, expected {right!r}")
    return found


def _two_nulls(parts: Mapping[str, tuple[str | None, str | None]], not_null: Set[str]) -> bool:
    """Of two NULLs where none may be, PostgreSQL tells that of the first physical column."""
    return parts["C"] == ("23502", "23502") and parts.get("c", ("",))[0] in not_null


def _same_fields(got: list[Any], expected: list[Any]) -> bool:
    """A rewritten column may say that it comes from no table (documented in docs/compatibility.md)."""
    if len(got) != len(expected):
        return False
    return all(_same_field(g, e) for g, e in zip(got, expected, strict=True))


def _same_field(got: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    if got[5] not in ("", expected[5]):
        return False
    if got[1] == RECORD and isinstance(expected[1], str):  # a whole row
        return got[0] == expected[0]
    return bool(got[:5] == expected[:5])


def unsorted_copy(heard: list[Heard]) -> list[Heard]:
    """Lines of COPY TO in the order of their bytes: that of the heap is no promise."""
    lines = sorted(h.content for h in heard if h.kind == "d")
    found = iter(lines)
    return [replace(h, content=next(found)) if h.kind == "d" else h for h in heard]
