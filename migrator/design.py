"""The design of a migration: every column, function, constraint and statement, fixed before anything is changed.

It is stored in the control schema when the migration starts, so a migrator that takes over continues with the same
names and the same SQL although the catalog has changed meanwhile. All SQL of forward and backward steps is in it,
which is also what ``plan`` prints.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from migrator.analysis import Compiled
from migrator.expressions import render
from migrator.replace.design import ReplaceDesign
from migrator.sqltext import MARK, ident, literal, names, qualified
from proxy.rewrite.model import Guard

Severity = Literal["error", "warning", "info"]


class Value(BaseModel):
    """Base of the design's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(Value):
    """One thing that lint or pre-flight has to say."""

    severity: Severity
    code: str
    message: str
    hint: str = ""
    waiver: bool = False
    """Names a statement that may fail during the migration although it would succeed without it."""


class KeyColumn(Value):
    """A column of the primary key."""

    name: str
    type: str


class NewColumn(Value):
    """A physical column that expand adds."""

    name: str
    final: str
    """Its name after completed."""
    type: str
    """As ``format_type(oid, -1)``."""
    type_full: str
    collation: str | None
    default: str | None
    default_kind: Literal["none", "stable", "volatile"]
    not_null: bool
    native: bool
    """Old speakers never need a computed value: the default serves them, and constraints hold from the start."""
    comment: str | None = None
    replaces: str | None = None
    """The old physical column in whose place it stands."""


class MirrorDesign(Value):
    """A physical column that follows from columns of the other shape."""

    target: str
    function: str
    value: Compiled
    keeps: bool = False
    """Down only: the target is NOT NULL and the value may be NULL; the guard then keeps what is there."""

    def computed(self, prefix: str) -> str:
        """The value as SQL over ``prefix``'s columns: inline where possible, else the function's call."""
        values = [f"{prefix}{ident(s)}" for s in self.value.sources]
        if self.value.inline:
            return "(" + render(self.value.template, values) + ")"
        return f"{self.function}({', '.join(values)})"


class ConstraintDesign(Value):
    """A constraint that the target shape of a direction must meet."""

    name: str
    """Final name; for NOT NULL a name of dualwire's own."""
    kind: Literal["check", "not_null"]
    column: str
    """Physical column."""
    label: str
    """The column's logical name, for error messages."""
    condition: Compiled
    proved: bool
    """Every value that the mirrors give meets it."""

    def holds(self, values: dict[str, str]) -> str:
        """The condition as SQL, given the SQL of each physical column."""
        if self.kind == "not_null":
            return f"{values[self.column]} IS NOT NULL"
        return (
            f"({render(self.condition.template, [values[s] for s in self.condition.sources])}) IS NOT FALSE"
        )


class DirectionDesign(Value):
    """All that a writer of one version carries over."""

    mirrors: list[MirrorDesign] = []
    constraints: list[ConstraintDesign] = []
    ok: str | None = None
    why: str | None = None
    ok_sources: list[str] = []

    @property
    def reproducible(self) -> list[MirrorDesign]:
        """Mirrors whose value may be computed again and compared."""
        return [m for m in self.mirrors if m.value.volatility != "volatile"]

    @property
    def volatile(self) -> bool:
        """Whether some mirror must never be computed twice."""
        return any(m.value.volatility == "volatile" for m in self.mirrors)

    @property
    def sources(self) -> list[str]:
        """All source columns of the mirrors."""
        return list(dict.fromkeys(s for m in self.mirrors for s in m.value.sources))

    @property
    def targets(self) -> list[str]:
        """All columns that the mirrors compute."""
        return [m.target for m in self.mirrors]


class AtClose(Value):
    """A constraint that is made when the migration is about to close."""

    kind: Literal["unique", "foreign_key", "check", "not_null"]
    name: str
    own: str
    """Its name until the swap; a unique one is only an index until then."""
    column: str
    label: str
    build: str
    validate_: list[str]
    unmake: list[str]
    """What takes it back, under a lock."""
    swap: list[str]


class IndexDesign(Value):
    """An index that is built for the new shape under a temporary name."""

    name: str
    final: str
    create: str


class TableDesign(Value):
    """One existing table."""

    schema_name: str
    name: str
    oid: int
    key: list[KeyColumn]
    old: list[tuple[str, str]]
    new: list[tuple[str, str]]
    final: list[tuple[str, str]]
    columns: list[NewColumn]
    old_only: list[str]
    """Physical columns that only the old version has."""
    old_given: list[tuple[str, str | None]]
    """Those of them that a writer can give a value, each with its default if that is reproducible."""
    new_only: list[str]
    up: DirectionDesign
    down: DirectionDesign
    mark: bool
    indexes: list[IndexDesign]
    functions: list[str]
    """What expand makes before it takes any lock on the table."""
    expand: list[str]
    arm: list[str] = []
    """What guards ``check`` and ``off`` install once every sidecar writes both shapes."""
    strengthen: list[str] = []
    """What makes guard ``check`` strict after the backfill."""
    disarm: list[str] = []
    """What removes them where sidecars are about to write one shape only."""
    compat: list[str] = []
    """What closing makes to serve old clients without the old columns."""
    shrink: list[str]
    """What undoes expand."""
    native_validate: list[str]
    relax: list[str]
    strict: list[str]
    validate_strict: list[str]
    swap: list[str]
    cleanup: list[str]
    rows: int
    bytes: int
    suppress_triggers: bool
    """Backfill and repairs run with session_replication_role = replica."""
    guard: Guard = "sync"
    fill_old: bool = False
    """Guard ``sync``: rows inserted by writers who know the old shape only are completed before they are inserted."""
    inline: bool = True
    """Whether sidecars write both shapes; False: the table's own triggers or rules may overrule what they write."""
    at_close: list[AtClose] = []
    partitioned: bool = False
    partition_orders: dict[str, list[str]] = {}
    """The old version's names in the order of a partition's columns, by OID, where it differs from the table's."""
    copy_old: str | None = None
    """The view in schema dualwire that takes the rows of COPY from the old version's clients."""
    copy_new: str | None = None

    @property
    def label(self) -> str:
        """``schema.name``, unquoted."""
        return f"{self.schema_name}.{self.name}"

    @property
    def sql(self) -> str:
        """The quoted name."""
        return qualified(self.schema_name, self.name)

    def orders(self, oid: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """The old and the new version's columns of the table or of one of its partitions."""
        listed = self.partition_orders.get(str(oid))
        if listed is None:
            return self.old, self.new
        physical = dict(self.old)
        replaced = {c.replaces: c.name for c in self.columns if c.replaces is not None}
        logical = {p: n for n, p in self.new}
        old = [(name, physical[name]) for name in listed]
        stays = [p for _, p in old if p in logical or replaced.get(p) in logical]
        stands = [p if p in logical else replaced[p] for p in stays]
        new = [(logical[p], p) for p in stands]
        return old, new + [pair for pair in self.new if pair not in new]

    @property
    def key_names(self) -> list[str]:
        """The primary key's columns."""
        return [k.name for k in self.key]

    def key_json(self, prefix: str = "") -> str:
        """SQL for the key as a jsonb object."""
        parts = ", ".join(f"{literal(k.name)}, {prefix}{ident(k.name)}" for k in self.key)
        return f"jsonb_build_object({parts})"

    def key_equals(self, left: str, right: str) -> str:
        """SQL that compares the keys of two aliases."""
        return " AND ".join(f"{left}{ident(k.name)} = {right}{ident(k.name)}" for k in self.key)

    def consistent(self, prefix: str) -> str:
        """SQL: whether the row is right in both shapes by its own direction. Never NULL."""
        old = self.right("old", prefix)
        new = self.right("new", prefix)
        mark = f"{prefix}{ident(MARK)}"
        return f"CASE WHEN {mark} < 3 THEN {old} WHEN {mark} >= 3 THEN {new} ELSE false END"

    def right(self, side: Literal["old", "new"], prefix: str) -> str:
        """SQL: whether the other shape is what it must be if ``side`` is authoritative. Never NULL."""
        direction = self.up if side == "old" else self.down
        parts = [
            f"{prefix}{ident(m.target)} IS NOT DISTINCT FROM {m.computed(prefix)}"
            for m in direction.reproducible
        ]
        values = _Columns(prefix)
        # The constraints of the new shape bind every row: old speakers' rows through the mirrors' own result,
        # new speakers' rows because their version has the constraint.
        for constraint in self.up.constraints:
            if side == "new" or not constraint.proved:
                parts.append(constraint.holds(values))
        # A trapped error gives NULL, which may be what is there: only then the reason matters.
        trapped = [m.target for m in direction.mirrors if not m.value.total]
        if direction.ok is not None and trapped:
            nulls = " OR ".join(f"{prefix}{ident(t)} IS NULL" for t in trapped)
            call = f"{direction.ok}({names(direction.ok_sources, prefix)})"
            parts.append(f"CASE WHEN {nulls} THEN {call} ELSE true END")
        return "(" + (" AND ".join(parts) if parts else "true") + ")"


class _Columns(dict[str, str]):
    """Every physical column under a prefix."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def __missing__(self, key: str) -> str:
        return f"{self._prefix}{ident(key)}"


class CreateDesign(Value):
    """A table that expand creates."""

    schema_name: str
    name: str
    statements: list[str]

    @property
    def sql(self) -> str:
        """The quoted name."""
        return qualified(self.schema_name, self.name)


class SqlDesign(Value):
    """A ``sql`` operation."""

    up: str
    down: str
    on_complete: bool


class Design(Value):
    """A whole migration."""

    id: int
    migration: str
    schema_name: str
    parent: str
    tables: list[TableDesign]
    creates: list[CreateDesign]
    sql: list[SqlDesign]
    compat: bool = False
    """Clients of the old version are served after closed too, unless ``complete`` says otherwise."""
    replaces: list[ReplaceDesign] = []
    prelude: list[str]
    """Objects of the migration itself, before any table's: the repair counter."""
    epilogue: list[str]
    findings: list[Finding]
    guard: Guard = "sync"

    @property
    def mirrored(self) -> list[TableDesign]:
        """Tables whose rows must be right in both shapes."""
        return [t for t in self.tables if t.mark]

    @property
    def existing(self) -> list[TableDesign | ReplaceDesign]:
        """All tables that were there before."""
        return [*self.tables, *self.replaces]

    @property
    def repairs(self) -> str:
        """The sequence that counts the guard's repairs."""
        return f"dualwire.guard_repairs_{self.id}"

    def errors(self) -> list[Finding]:
        """Findings that forbid to start."""
        return [f for f in self.findings if f.severity == "error"]
