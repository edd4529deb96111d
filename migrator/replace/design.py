"""The design of a replaced table: both tables' columns, how they follow from each other, all SQL of all steps.

Stored with the migration's design. Both tables have the same column names. ``pair`` are the columns that tell which
rows belong together; on both sides they include the primary key, and their values compare across the tables.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from migrator.analysis import Compiled
from migrator.expressions import render
from migrator.sqltext import ident, literal, names, qualified
from proxy.rewrite.model import Guard

Side = Literal["old", "new"]


def other(side: Side) -> Side:
    """The other table."""
    return "new" if side == "old" else "old"


class Part(BaseModel):
    """Base of the design's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyPart(Part):
    """A column that tells which rows belong together, with its types."""

    name: str
    type: str
    """In the old table."""
    new_type: str

    def of(self, side: Side) -> str:
        """Its type in one table."""
        return self.type if side == "old" else self.new_type


class ColumnPair(Part):
    """A column of both tables."""

    name: str
    old_type: str
    old_full: str
    new_type: str
    new_full: str
    up: Compiled
    """The new value; its sources are columns of the old table."""
    down: Compiled
    carried: bool
    """The same column on both sides: either version may use either table's."""
    raw: bool
    """Of another type with equal values in the same operator family, converted by a plain cast."""
    exact: bool
    """Its equality tells all values apart; others are compared as text."""
    generated: bool
    up_function: str | None
    """Gives the new value; None where the column is carried. It may raise."""
    down_function: str | None
    up_assign: str | None
    """Checks a value as an assignment to the new column would, where a cast would cut it."""
    down_assign: str | None
    up_try: str | None
    """Gives the new value or NULL, never an error, for comparisons; None where the expression cannot fail."""
    down_try: str | None

    def value(self, to: Side) -> Compiled:
        """How the column of one table follows from the other one's."""
        return self.up if to == "new" else self.down

    def computed(self, to: Side, prefix: str) -> str:
        """The same as SQL over the other table's columns; the assignment to the column converts it."""
        value = self.value(to)
        return render(value.template, [f"{prefix}{ident(s)}" for s in value.sources])


class Incoming(Part):
    """A foreign key of another table that points here."""

    schema_name: str
    table: str
    oid: int
    name: str
    temporary: str
    create: str
    validate_sql: str


class Rename(Part):
    """A statement of the swap that gives something its final name."""

    name: str
    final: str
    sql: str


class ReplaceDesign(Part):
    """One replaced table."""

    number: int
    migration: int
    schema_name: str
    name: str
    temporary: str
    """The new table's name until the swap."""
    oid: int
    """Of the old table."""
    key: list[KeyPart]
    """The old table's primary key, for key ranges."""
    pair: list[KeyPart]
    new_key: list[str]
    columns: list[ColumnPair]
    """In the order of both versions."""
    touch: str
    """A column that may be set to itself to make a new version of a row."""
    old_by_row: bool
    """Writes reach the old table that fire no triggers of statements: on a partition, or by logical replication."""
    new_partitioned: bool
    partitions: list[str]
    old_partitions: list[tuple[str, str]]
    """(schema, name) of the old table's partitions, for their TRUNCATE triggers."""
    suppress_triggers: bool
    has_user_triggers: bool
    functions: list[str]
    create: list[str]
    """Makes the new table. The file's author wrote parts of it: run with the schema in the path."""
    attach: list[str]
    """What locks other tables: foreign keys of a partitioned new table."""
    forward: list[str]
    """Mirror triggers with the old table as the authoritative one, or the new one:"""
    forward_flipped: list[str]
    unmirror: list[str]
    flip: list[str]
    flip_back: list[str]
    indexes: list[Rename]
    """Built after the backfill."""
    keys: list[str]
    """Foreign keys of the new table, added after the backfill, NOT VALID."""
    validate_keys: list[str]
    replica_identity: list[str]
    incoming: list[Incoming]
    identities: list[tuple[str, str, str, str]]
    """(column, sequence schema, sequence name, ALWAYS or BY DEFAULT)."""
    swap_before: list[str]
    swap: list[str]
    shrink: list[str]
    compat: list[str]
    """What serves old clients after the contract, if they are to be served."""
    labels: list[tuple[str, str]]
    rows: int
    bytes: int

    # -- what phases/backfill needs of a table ---------------------------------------------------------------

    @property
    def label(self) -> str:
        """``schema.name``, unquoted."""
        return f"{self.schema_name}.{self.name}"

    @property
    def sql(self) -> str:
        """The quoted name of the old table."""
        return qualified(self.schema_name, self.name)

    @property
    def new_sql(self) -> str:
        """The quoted name of the new table until the swap."""
        return qualified(self.schema_name, self.temporary)

    @property
    def key_names(self) -> list[str]:
        """The old table's primary key."""
        return [k.name for k in self.key]

    @property
    def guard(self) -> Guard:
        """The mirror sees every path, as the guard ``sync`` does."""
        return "sync"

    @property
    def mark(self) -> bool:
        """Whether rows must be right in both shapes."""
        return True

    # -- SQL fragments ---------------------------------------------------------------------------------------

    @property
    def tag(self) -> str:
        """What the names of the functions and the loop breaker's setting share."""
        return f"{self.migration}_{self.number}"

    def table(self, side: Side) -> str:
        """The quoted name of one table."""
        return self.sql if side == "old" else self.new_sql

    def by_row(self, side: Side) -> bool:
        """Whether one table needs row triggers."""
        return self.old_by_row if side == "old" else self.new_partitioned

    def primary_key(self, side: Side) -> list[str]:
        """The primary key of one table."""
        return self.key_names if side == "old" else self.new_key

    @property
    def pair_names(self) -> list[str]:
        """The columns that tell which rows belong together."""
        return [p.name for p in self.pair]

    def paired(self, left: str, right: str) -> str:
        """SQL: rows of two aliases belong together. Never raises."""
        return " AND ".join(f"{left}{ident(n)} = {right}{ident(n)}" for n in self.pair_names)

    def key_json(self, prefix: str) -> str:
        """SQL for the pair's values as jsonb, by a function that pins the settings it depends on."""
        return f"dualwire.key_{self.tag}({names(self.pair_names, prefix)})"

    def written(self) -> list[ColumnPair]:
        """The columns that the mirror writes."""
        return [c for c in self.columns if not c.generated]

    def wide(self, side: Side) -> bool:
        """Whether the primary key of one table alone does not tell which rows belong together."""
        return set(self.pair_names) != set(self.primary_key(side))

    @property
    def problems_where(self) -> str:
        """SQL: a problem of this table."""
        return f"p.migration = {self.migration} AND p.table_name = {literal(self.label)}"
