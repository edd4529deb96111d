"""``add_column``: a column that only the new version has; ``up`` gives its value for old speakers' rows."""

from __future__ import annotations

from migrator.draft import Check, Draft, Slot
from migrator.errors import Refused
from migrator.operations.common import ColumnSpec, Strict
from migrator.sqltext import cut


class AddColumn(Strict):
    """The operation as the file has it."""

    table: str
    column: ColumnSpec
    up: str | None = None

    def apply(self, draft: Draft, index: int) -> None:
        """Adds a slot at the end of the table."""
        where = f"operations[{index}].add_column"
        column = self.column
        for key in ("pk", "generated"):
            if getattr(column, key):
                raise Refused(
                    f"{where}.column.{key}: not supported yet on an existing table",
                    hint="Add the column first, then the constraint with a `sql` migration.",
                )
        if column.type.lower() in {"serial", "bigserial", "smallserial", "serial4", "serial8", "serial2"}:
            raise Refused(
                f"{where}.column.type: {column.type} is not supported yet on an existing table",
                hint="Use an integer type with `up` and a default.",
            )
        table = draft.table(self.table, where)
        table.free(column.name, where)
        if not column.nullable and column.default is None and not self.up:
            raise Refused(
                f'{where}: column "{column.name}" is NOT NULL without `up` and without a default:'
                " rows of old speakers would have no value",
                hint="Give `up`, a default, or `nullable: true`.",
            )
        table.slots.append(
            Slot(
                old=None,
                new=column.name,
                physical=None,
                aliases={column.name},
                type=column.type,
                nullable=column.nullable,
                default_given=column.default is not None,
                default=column.default,
                checks=[Check(column.check.name, column.check.constraint, column.check.enforce is not None)]
                if column.check
                else [],
                uniques=[cut("", f"{self.table}_{column.name}_key")] if column.unique else [],
                references=[column.references] if column.references else [],
                comment_given=column.comment is not None,
                comment=column.comment,
                up=self.up or None,
                replaced=True,
                operations=[index],
            )
        )
