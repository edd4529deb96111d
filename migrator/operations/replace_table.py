"""``replace_table``: the new version has the table in another physical table (our addition to pgroll's format).

For what cannot be done inside one table: another type of the primary key, partitioning. Columns that the file does
not name are carried over as they are; the new table has the columns of the old one, by the same names.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from migrator.draft import Draft, ReplaceDraft
from migrator.errors import Refused
from migrator.operations.common import CheckSpec, Strict, default_as_text


class ReplacedColumn(Strict):
    """What the new table changes about a column; what is not given stays as it is."""

    name: str
    type: str | None = None
    nullable: bool | None = None
    default: str | None = None
    check: CheckSpec | None = None
    comment: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        return default_as_text(value)


class PartitionSpec(Strict):
    """A partition of the new table."""

    name: str
    values: str | None = None
    default: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> PartitionSpec:
        if (self.values is None) != self.default:
            raise ValueError('give either values, e.g. "FROM (1) TO (100)", or default: true')
        return self

    @property
    def bound(self) -> str:
        """The SQL after ``PARTITION OF parent``."""
        return "DEFAULT" if self.values is None else f"FOR VALUES {self.values}"


class ReplaceTable(Strict):
    """The operation as the file has it."""

    table: str
    columns: list[ReplacedColumn] = Field(default_factory=list)
    primary_key: list[str] = Field(default_factory=list)
    partition_by: str | None = None
    partitions: list[PartitionSpec] = Field(default_factory=list)
    key: list[str] = Field(default_factory=list)
    up: dict[str, str] = Field(default_factory=dict)
    down: dict[str, str] = Field(default_factory=dict)
    mirror: Literal["trigger", "statement"] = "trigger"

    def apply(self, draft: Draft, index: int) -> None:
        """Adds the replacement to the draft."""
        where = f"operations[{index}].replace_table"
        if self.mirror == "statement":
            raise Refused(
                f"{where}.mirror: statement is not supported yet",
                hint="Leave it out: triggers mirror every path into the table and cost the same.",
            )
        if draft.lookup(self.table) is None:
            raise Refused(
                f'{where}: table "{draft.schema}.{self.table}" does not exist',
                sqlstate="42P01",
                hint="Check the table's name and the option --schema.",
            )
        if any(r.name == self.table for r in draft.replaced):
            raise Refused(f'{where}: table "{self.table}" is replaced twice')
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names):
            raise Refused(f"{where}.columns: a column is given twice")
        if self.partitions and not self.partition_by:
            raise Refused(
                f"{where}.partitions: partition_by is missing", hint='For example "RANGE (created_at)".'
            )
        if self.partition_by and not self.partitions:
            raise Refused(
                f"{where}.partition_by: a partitioned table needs partitions to hold its rows",
                hint="Give `partitions`, with a default one for rows that fit nowhere else.",
            )
        if not (self.columns or self.primary_key or self.partition_by or self.up or self.down):
            raise Refused(
                f"{where}: changes nothing", hint="Give columns, primary_key or partition_by with partitions."
            )
        draft.replaced.append(ReplaceDraft(index, self.table, self))
