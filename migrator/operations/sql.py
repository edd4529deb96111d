"""``sql``: raw statements, run at expand (``down`` undoes them) or, with ``onComplete``, after the swap."""

from __future__ import annotations

from pydantic import Field

from migrator.draft import Draft, SqlDraft
from migrator.errors import Refused
from migrator.operations.common import Strict


class Sql(Strict):
    """The operation as the file has it."""

    up: str
    down: str | None = None
    on_complete: bool = Field(default=False, alias="onComplete")

    def apply(self, draft: Draft, index: int) -> None:
        """Remembers the statements; lint looks into them."""
        if self.on_complete and self.down:
            raise Refused(
                f"operations[{index}].sql: down and onComplete exclude each other",
                hint="After completed there is no rollback.",
            )
        draft.sql.append(SqlDraft(index, self.up, self.down or "", self.on_complete))
