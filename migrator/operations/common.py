"""What the operations' file format shares: strict models, column definitions, constraints (pgroll's names)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Action = Literal["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"]
Enforce = Literal["at_close"]
"""When a constraint begins to bind, where that is not from the start; an addition to pgroll's format."""


class Strict(BaseModel):
    """A part of a migration file: unknown keys and wrong types are errors, never guesses."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    def given(self, key: str) -> bool:
        """Whether the file has the key at all (``default: null`` differs from no default)."""
        return key in self.model_fields_set


class CheckSpec(Strict):
    """``check``: a named condition."""

    name: str
    constraint: str
    no_inherit: bool = False
    enforce: Enforce | None = None


class UniqueSpec(Strict):
    """``unique`` of alter_column."""

    name: str
    enforce: Enforce | None = None


class ReferencesSpec(Strict):
    """``references`` of one column."""

    name: str
    table: str
    column: str | None = None
    enforce: Enforce | None = None
    on_delete: Action = "NO ACTION"
    on_update: Action = "NO ACTION"
    match_type: Literal["SIMPLE", "FULL", "PARTIAL"] = "SIMPLE"


class IdentitySpec(Strict):
    """``generated.identity``."""

    user_specified_values: Literal["ALWAYS", "BY DEFAULT"] = "ALWAYS"
    sequence_options: str = ""


class GeneratedSpec(Strict):
    """``generated``: a stored expression or an identity."""

    expression: str | None = None
    identity: IdentitySpec | None = None

    @model_validator(mode="after")
    def _one_of(self) -> GeneratedSpec:
        if (self.expression is None) == (self.identity is None):
            raise ValueError("give exactly one of expression and identity")
        return self


class ColumnSpec(Strict):
    """A column definition. Columns are NOT NULL unless ``nullable: true``, as in pgroll."""

    name: str
    type: str
    nullable: bool = False
    default: str | None = None
    pk: bool = False
    unique: bool = False
    check: CheckSpec | None = None
    references: ReferencesSpec | None = None
    generated: GeneratedSpec | None = None
    comment: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        return default_as_text(value)


class TableReferencesSpec(Strict):
    """``references`` of a table constraint."""

    name: str | None = None
    table: str
    columns: list[str] = Field(default_factory=list)
    on_delete: Action = "NO ACTION"
    on_delete_set_columns: list[str] = Field(default_factory=list)
    on_update: Action = "NO ACTION"
    match_type: Literal["SIMPLE", "FULL", "PARTIAL"] = "SIMPLE"


class IndexParametersSpec(Strict):
    """``index_parameters`` of a unique or primary-key constraint."""

    tablespace: str | None = None
    storage_parameters: str | None = None
    include_columns: list[str] = Field(default_factory=list)


class ExcludeSpec(Strict):
    """``exclude``: the parts of an exclusion constraint."""

    index_method: str = "gist"
    elements: str
    predicate: str | None = None


class ConstraintSpec(Strict):
    """A constraint of create_table."""

    name: str
    type: Literal["unique", "check", "primary_key", "foreign_key", "exclude"]
    columns: list[str] = Field(default_factory=list)
    check: str | None = None
    nulls_not_distinct: bool = False
    deferrable: bool = False
    initially_deferred: bool = False
    no_inherit: bool = False
    references: TableReferencesSpec | None = None
    index_parameters: IndexParametersSpec | None = None
    exclude: ExcludeSpec | None = None


def default_as_text(value: Any) -> Any:
    """YAML reads ``default: 0`` as a number; a default is SQL text."""
    if isinstance(value, dict):
        given = value.get("default")
        if isinstance(given, bool):
            return {**value, "default": "true" if given else "false"}
        if isinstance(given, int | float):
            return {**value, "default": str(given)}
    return value
