"""``rename_column``: another name for the same column; nothing physical changes before completed."""

from __future__ import annotations

from pydantic import Field

from migrator.draft import Draft
from migrator.operations.common import Strict


class RenameColumn(Strict):
    """The operation as the file has it."""

    table: str
    from_: str = Field(alias="from")
    to: str

    def apply(self, draft: Draft, index: int) -> None:
        """Renames the column in the new version."""
        rename(draft, self.table, self.from_, self.to, index, f"operations[{index}].rename_column")


def rename(draft: Draft, table_name: str, old: str, new: str, index: int, where: str) -> None:
    """The rename itself; ``alter_column`` with ``name`` is the older spelling of the same."""
    table = draft.table(table_name, where)
    slot = table.find(old, where)
    if old == new:
        return
    table.free(new, where)
    slot.new = new
    slot.aliases.add(new)
    slot.operations.append(index)
