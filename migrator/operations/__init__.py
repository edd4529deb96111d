"""The operations that a migration file may hold: one module each, one line in the registry below."""

from __future__ import annotations

from typing import Protocol

from migrator.draft import Draft
from migrator.operations.add_column import AddColumn
from migrator.operations.alter_column import AlterColumn
from migrator.operations.common import Strict
from migrator.operations.create_table import CreateTable
from migrator.operations.drop_column import DropColumn
from migrator.operations.rename_column import RenameColumn
from migrator.operations.replace_table import ReplaceTable
from migrator.operations.sql import Sql


class Operation(Protocol):
    """What every operation can do."""

    def apply(self, draft: Draft, index: int) -> None:
        """Fold the operation into the draft; ``index`` is its place in the file."""


REGISTRY: dict[str, type[Strict]] = {
    "create_table": CreateTable,
    "add_column": AddColumn,
    "drop_column": DropColumn,
    "rename_column": RenameColumn,
    "alter_column": AlterColumn,
    "replace_table": ReplaceTable,
    "sql": Sql,
}

KNOWN_TO_PGROLL = frozenset(
    {
        "create_constraint",
        "create_index",
        "drop_constraint",
        "drop_index",
        "drop_multicolumn_constraint",
        "drop_table",
        "rename_constraint",
        "rename_table",
        "set_replica_identity",
    }
)
"""Operations of pgroll's format that are refused by name rather than as unknown."""
