"""``alter_column``: another type, nullability, default, check or comment; the new shape is another physical column."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from migrator.draft import Check, Draft
from migrator.errors import Refused
from migrator.operations.common import CheckSpec, Enforce, ReferencesSpec, Strict, UniqueSpec, default_as_text
from migrator.operations.rename_column import rename

SHAPE_KEYS = ("type", "nullable", "default", "check")
LATE_KEYS = ("unique", "references")
"""What is enforced when the migration is closed: it needs no column of its own unless ``up`` changes values."""


class AlterColumn(Strict):
    """The operation as the file has it."""

    table: str
    column: str
    name: str | None = None
    type: str | None = None
    nullable: bool | None = None
    default: str | None = None
    check: CheckSpec | None = None
    comment: str | None = None
    enforce: Enforce | None = None
    """For ``nullable: false``."""
    unique: UniqueSpec | None = None
    references: ReferencesSpec | None = None
    up: str | None = None
    down: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        return default_as_text(value)

    def apply(self, draft: Draft, index: int) -> None:
        """Changes the column in the new version; several operations on one column compose."""
        where = f"operations[{index}].alter_column"
        changes = [key for key in (*SHAPE_KEYS, *LATE_KEYS, "comment") if self.given(key)]
        if self.enforce is not None and self.nullable is not False:
            raise Refused(
                f"{where}.enforce: goes with nullable: false; constraints have an enforce of their own"
            )
        if not changes and self.name is None:
            raise Refused(
                f"{where}: changes nothing",
                hint=f"Give at least one of {', '.join((*SHAPE_KEYS, *LATE_KEYS, 'comment', 'name'))}.",
            )
        slot = draft.table(self.table, where).find(self.column, where)
        slot.operations.append(index)
        if self.unique is not None:
            slot.uniques.append(self.unique.name)
        if self.references is not None:
            slot.references.append(self.references)
        late = any(self.given(key) for key in LATE_KEYS)
        if any(self.given(key) for key in SHAPE_KEYS) or (late and (self.up or self.down)):
            self._shape(slot, where)
        elif self.up or self.down:
            raise Refused(
                f"{where}: up and down need a change of type, nullability, default or check to belong to"
            )
        if self.given("comment"):
            slot.comment_given, slot.comment = True, self.comment
        if self.name is not None:
            rename(draft, self.table, self.column, self.name, index, where)

    def _shape(self, slot: Any, where: str) -> None:
        if slot.replaced and (self.up or self.down) and (slot.up or slot.down):
            raise Refused(
                f'{where}: column "{self.column}" already has up and down in this migration',
                hint="Write one alter_column with all changes of the column.",
            )
        if self.type is not None and slot.type is not None:
            raise Refused(f'{where}.type: column "{self.column}" gets its type earlier in this migration')
        slot.replaced = True
        slot.type = self.type if self.type is not None else slot.type
        if self.nullable is not None:
            slot.nullable = self.nullable
            slot.not_null_at_close = self.enforce is not None
        if self.given("default"):
            slot.default_given, slot.default = True, self.default
        if self.check is not None:
            slot.checks.append(Check(self.check.name, self.check.constraint, self.check.enforce is not None))
        slot.up = self.up or slot.up
        slot.down = self.down or slot.down
        if self.type is not None and not slot.added and not (self.up and self.down):
            missing = " and ".join(k for k in ("up", "down") if not getattr(self, k))
            raise Refused(
                f"{where}: a change of type needs {missing}",
                hint="up gives the new value from the old columns, down the old value from the new ones.",
            )
        if self.nullable is False and not slot.added and not slot.up:
            raise Refused(
                f"{where}: nullable: false needs up",
                hint="up gives the value for rows where the old column is NULL.",
            )
        if self.check is not None and not slot.added and not slot.up:
            raise Refused(
                f"{where}: check needs up",
                hint="up gives a value that meets the check for every old row; write the column's name to keep it.",
            )
