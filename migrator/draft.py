"""What a migration's operations add up to, before the database is asked for details.

Operations are applied in file order to a ``Draft``; several on one column compose. The draft knows names only: the
old version's columns come from the catalog, everything else from the file. ``migrator.design`` turns a draft into
SQL, ``migrator.lint`` judges it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from migrator.errors import Refused

if TYPE_CHECKING:
    from migrator.operations.common import ReferencesSpec


@dataclass(slots=True)
class Check:
    """A new CHECK constraint on one column."""

    name: str
    expression: str
    at_close: bool = False


@dataclass(slots=True)
class Slot:
    """One column through a migration: what it was called, what it will be called, what changes."""

    old: str | None
    """The old version's name; None for an added column."""
    new: str | None
    """The new version's name; None for a dropped column."""
    physical: str | None
    """The physical column behind the old name."""
    aliases: set[str] = field(default_factory=set)
    """Every name the column had while the operations were applied."""
    type: str | None = None
    nullable: bool | None = None
    default_given: bool = False
    default: str | None = None
    checks: list[Check] = field(default_factory=list)
    uniques: list[str] = field(default_factory=list)
    """Names of UNIQUE constraints, enforced when the migration is closed."""
    references: list[ReferencesSpec] = field(default_factory=list)
    """Foreign keys, enforced when the migration is closed."""
    not_null_at_close: bool = False
    comment_given: bool = False
    comment: str | None = None
    up: str | None = None
    down: str | None = None
    replaced: bool = False
    """The new version has this column in another physical column."""
    operations: list[int] = field(default_factory=list)
    """Indexes of the operations that touched it, for messages."""

    @property
    def added(self) -> bool:
        """Whether only the new version has it."""
        return self.old is None

    @property
    def dropped(self) -> bool:
        """Whether only the old version has it."""
        return self.new is None


@dataclass(slots=True)
class TableDraft:
    """One existing table through a migration."""

    schema: str
    name: str
    slots: list[Slot]

    def find(self, name: str, where: str) -> Slot:
        """The column of that name as the operations before left it."""
        for slot in self.slots:
            if slot.new == name:
                slot.aliases.add(name)
                return slot
        known = ", ".join(sorted(s.new for s in self.slots if s.new)) or "none"
        raise Refused(
            f'{where}: table "{self.name}" has no column "{name}"',
            hint=f"Columns there: {known}.",
            sqlstate="42703",
        )

    def free(self, name: str, where: str) -> None:
        """Refuse a name that the new version already has."""
        if any(slot.new == name for slot in self.slots):
            raise Refused(f'{where}: table "{self.name}" already has a column "{name}"', sqlstate="42701")


@dataclass(slots=True)
class CreateDraft:
    """A table that the migration creates."""

    schema: str
    name: str
    statements: list[str]


@dataclass(slots=True)
class SqlDraft:
    """A ``sql`` operation."""

    index: int
    up: str
    down: str
    on_complete: bool


@dataclass(slots=True)
class ReplaceDraft:
    """A ``replace_table`` operation."""

    index: int
    name: str
    spec: Any
    """The operation as the file has it (``migrator.operations.replace_table.ReplaceTable``)."""


@dataclass(slots=True)
class Draft:
    """All tables that a migration touches."""

    schema: str
    lookup: Callable[[str], TableDraft | None]
    tables: dict[str, TableDraft] = field(default_factory=dict)
    created: list[CreateDraft] = field(default_factory=list)
    sql: list[SqlDraft] = field(default_factory=list)
    replaced: list[ReplaceDraft] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)

    def table(self, name: str, where: str) -> TableDraft:
        """The draft of an existing table; refuses a missing one."""
        if name not in self.tables:
            if any(created.name == name for created in self.created):
                raise Refused(
                    f'{where}: changing table "{name}" in the migration that creates it is not supported yet',
                    hint="Put the column into create_table itself.",
                )
            found = self.lookup(name)
            if found is None:
                raise Refused(
                    f'{where}: table "{self.schema}.{name}" does not exist',
                    sqlstate="42P01",
                    hint="Check the table's name and the option --schema.",
                )
            self.tables[name] = found
        return self.tables[name]
