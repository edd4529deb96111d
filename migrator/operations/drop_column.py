"""``drop_column``: a column that only the old version has; ``down`` gives its value for new speakers' rows."""

from __future__ import annotations

from migrator.draft import Draft
from migrator.errors import Refused
from migrator.operations.common import Strict


class DropColumn(Strict):
    """The operation as the file has it."""

    table: str
    column: str
    down: str | None = None

    def apply(self, draft: Draft, index: int) -> None:
        """Takes the column out of the new version; physically it stays until completed."""
        where = f"operations[{index}].drop_column"
        table = draft.table(self.table, where)
        slot = table.find(self.column, where)
        if slot.added:
            raise Refused(f'{where}: column "{self.column}" is added by the same migration')
        if slot.replaced:
            raise Refused(f'{where}: column "{self.column}" is altered by the same migration')
        slot.new = None
        slot.down = self.down or None
        slot.operations.append(index)
