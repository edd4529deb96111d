"""The model that rewriting works on: physical tables, the versions seen through them, the mirrors between.

The migrator builds these values from a migration and the catalog and publishes them inside the routing state;
a sidecar only reads them. Everything here is frozen, hashable and free of I/O. JSON codecs stand in
``proxy.rewrite.codec``.

Vocabulary (see ``docs/architecture.md``): a *version* is the logical schema that an app knows; a *shape* is
the physical columns behind it; *up* maps the old shape's columns to the new shape's, *down* the reverse; the
*mark* is the smallint column that says which shape was last authoritative for a row (1/2 old, 3/4 new, NULL
never synced or a problem) and that toggles with every rewritten write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["old", "new"]
Guard = Literal["sync", "check", "off"]
DefaultKind = Literal["none", "stable", "volatile"]

MARK_OLD = (1, 2)
MARK_NEW = (3, 4)

NOT_NULL_CHECK = "_dualwire_nn_"
"""With the column's name in its version behind it, the name of a check that stands in for NOT NULL until the swap."""


@dataclass(frozen=True, slots=True)
class Column:
    """One physical column, as the catalog has it."""

    name: str
    type: str
    """The type without its modifier, as ``format_type(oid, -1)`` prints it: safe as a cast target."""
    type_full: str
    """The type with its modifier, as ``format_type(oid, typmod)`` prints it."""
    not_null: bool = False
    default: str | None = None
    """The default's SQL text, every name in it schema-qualified or in ``pg_catalog``."""
    default_kind: DefaultKind = "none"
    """``stable``: the text may be repeated within one statement; ``volatile``: two evaluations may differ."""
    identity: Literal["", "a", "d"] = ""
    generated: bool = False


@dataclass(frozen=True, slots=True)
class LogicalColumn:
    """One column of a version: the name that the app uses, and the physical column that holds it."""

    name: str
    column: str
    """The physical column, or else the key of a ``Virtual`` one."""


@dataclass(frozen=True, slots=True)
class Virtual:
    """A column that a version has and the table has not: read by a function of physical columns.

    Written by way of the version's ``Direction``: its mirrors have the keys of virtual columns among their sources.
    """

    column: Column
    """The column as the version knows it; its name is a key, unique among the physical and the virtual columns."""
    function: str
    """SQL text naming the function that reads it."""
    sources: tuple[str, ...]
    """Physical columns, in the order of the function's arguments."""
    raw: str | None = None
    """A physical column with equal values of another type in the same operator family (bigint for integer, say):
    it may stand for this one where values are compared, sorted or grouped, so that its indexes are used, and what is
    assigned to this one may be assigned to it as it is."""
    assign: str | None = None
    """SQL text naming a function that takes a value of ``column.type`` and fails as an assignment to the column would
    where a cast would cut it silently (``varchar(n)``, ``char(n)``, ``bit(n)``)."""
    discards: bool = False
    """What is written to it is given up where nothing follows from it; otherwise such a write is refused."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One physical column whose value follows from columns of the other shape."""

    target: str
    """The physical column that is computed."""
    function: str
    """SQL text naming the function, schema-qualified and quoted, e.g. ``dualwire.up_3_1``. It never raises."""
    sources: tuple[str, ...]
    """Columns of the authoritative shape (physical, or keys of virtual ones), in the order of the function's arguments.
    With virtual ones among them the function may raise: the value it gives is the only one that is kept."""
    total: bool = True
    """Whether the expression was proved unable to raise (else the function traps errors and gives NULL)."""


@dataclass(frozen=True, slots=True)
class Direction:
    """All mirrors of one direction: what a writer of one version must also write for the other."""

    mirrors: tuple[Mirror, ...] = ()
    ok_function: str | None = None
    """SQL text naming a boolean function that tells whether every mirror worked and the target shape's
    constraints hold. It never raises. None where nothing can fail."""
    ok_sources: tuple[str, ...] = ()
    """The physical columns that are the arguments of ``ok_function``, in order."""


@dataclass(frozen=True, slots=True)
class TableModel:
    """A table of which some version differs from what the catalog shows."""

    schema: str
    name: str
    oid: int
    columns: tuple[Column, ...]
    """All physical columns in catalog order (dropped ones left out), the mark included."""
    primary_key: tuple[str, ...]
    """Physical names."""
    old: tuple[LogicalColumn, ...]
    """The columns of the old version in the order that its clients see."""
    new: tuple[LogicalColumn, ...]
    """The columns of the new version; equal to ``old`` where no migration is active."""
    up: Direction = Direction()
    """What writes of old speakers must carry over."""
    down: Direction = Direction()
    """What writes of new speakers must carry over."""
    mark: str | None = None
    """The mark column's physical name; None where nothing needs mirroring."""
    guard: Guard = "sync"
    """What the database does about writes that did not come rewritten: ``sync`` repairs them, ``check`` and ``off``
    do not, so what cannot be rewritten is refused."""
    shadows: tuple[str, ...] = ()
    """Other schemas that hold a relation of the same name when the state was published."""
    virtuals: tuple[Virtual, ...] = ()
    """Columns that only a version has."""
    relation: tuple[str, str] | None = None
    """(schema, name) of the table that holds the rows for both versions; None: the one of that name."""
    twin_old: tuple[str, str] | None = None
    """(schema, name) of an empty table of the old version's shape, against which its clients' texts are parsed."""
    twin_new: tuple[str, str] | None = None
    copy_old: tuple[str, str] | None = None
    """(schema, name) of a view with the version's columns that takes the rows of COPY for both shapes."""
    copy_new: tuple[str, str] | None = None
    inline: bool = True
    """False: the table's own triggers may overrule what a statement writes, so mirrors are left to the guard."""
    labels: tuple[tuple[str, str], ...] = ()
    """Names of the new shape's constraints and indexes until the swap, each with its final name, for messages."""

    @property
    def qualified(self) -> str:
        """``schema.name``, unquoted: the table's key in plans, metrics and logs."""
        return f"{self.schema}.{self.name}"

    def column(self, name: str) -> Column:
        """The physical column of that name; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def virtual(self, key: str) -> Virtual | None:
        """The virtual column of that key, if it is one."""
        for virtual in self.virtuals:
            if virtual.column.name == key:
                return virtual
        return None

    def twin(self, side: Side) -> tuple[str, str] | None:
        """The twin of one version."""
        return self.twin_old if side == "old" else self.twin_new

    def copy_view(self, side: Side) -> tuple[str, str] | None:
        """What takes the rows of COPY from one version's clients."""
        return self.copy_old if side == "old" else self.copy_new

    def logical(self, side: Side) -> tuple[LogicalColumn, ...]:
        """The columns of one version."""
        return self.old if side == "old" else self.new

    def direction(self, side: Side) -> Direction:
        """What a writer that speaks ``side`` must carry over to the other shape."""
        return self.up if side == "old" else self.down

    def native(self, side: Side) -> bool:
        """Whether that version's columns are the physical ones, in the same order and under the same names."""
        return tuple((c.name, c.column) for c in self.logical(side)) == tuple(
            (c.name, c.name) for c in self.columns
        )
