"""``create_table``: a table that only the new version knows; created at expand, dropped by a rollback."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from migrator.draft import CreateDraft, Draft
from migrator.errors import Refused
from migrator.operations.common import ColumnSpec, ConstraintSpec, ReferencesSpec, Strict
from migrator.sqltext import ident, literal, names, qualified


class CreateTable(Strict):
    """The operation as the file has it."""

    name: str
    columns: list[ColumnSpec] = Field(default_factory=list)
    constraints: list[ConstraintSpec] = Field(default_factory=list)
    comment: str | None = None

    def apply(self, draft: Draft, index: int) -> None:
        """Adds the table to the draft."""
        where = f"operations[{index}].create_table"
        if not self.columns:
            raise Refused(f'{where}: table "{self.name}" needs at least one column')
        if draft.lookup(self.name) is not None or any(c.name == self.name for c in draft.created):
            raise Refused(f'{where}: table "{draft.schema}.{self.name}" already exists', sqlstate="42P07")
        keys = [c.name for c in self.columns if c.pk]
        if keys and any(c.type == "primary_key" for c in self.constraints):
            raise Refused(f"{where}: give the primary key in columns or in constraints, not in both")
        table = qualified(draft.schema, self.name)
        parts = [_column(draft.schema, c, inline_key=keys == [c.name]) for c in self.columns]
        if len(keys) > 1:
            parts.append(f"PRIMARY KEY ({names(keys)})")
        parts += [_constraint(draft.schema, c, where) for c in self.constraints]
        statements = [f"CREATE TABLE {table} (\n  " + ",\n  ".join(parts) + "\n)"]
        if self.comment is not None:
            statements.append(f"COMMENT ON TABLE {table} IS {literal(self.comment)}")
        for column in self.columns:
            if column.comment is not None:
                statements.append(
                    f"COMMENT ON COLUMN {table}.{ident(column.name)} IS {literal(column.comment)}"
                )
        draft.created.append(CreateDraft(draft.schema, self.name, statements))


def _column(schema: str, column: ColumnSpec, *, inline_key: bool) -> str:
    parts = [ident(column.name), column.type]
    if inline_key:
        parts.append("PRIMARY KEY")
    elif not column.nullable:
        parts.append("NOT NULL")
    if column.default is not None:
        parts.append(f"DEFAULT {column.default}")
    if column.generated is not None:
        if column.generated.expression is not None:
            parts.append(f"GENERATED ALWAYS AS ({column.generated.expression}) STORED")
        elif (identity := column.generated.identity) is not None:
            options = f" ({identity.sequence_options})" if identity.sequence_options else ""
            parts.append(f"GENERATED {identity.user_specified_values} AS IDENTITY{options}")
    if column.unique:
        parts.append("UNIQUE")
    if column.check is not None:
        parts.append(f"CONSTRAINT {ident(column.check.name)} CHECK ({column.check.constraint})")
    if column.references is not None:
        parts.append(_references(schema, column.references))
    return " ".join(parts)


def _references(schema: str, reference: ReferencesSpec) -> str:
    target = qualified(schema, reference.table)
    columns = f" ({ident(reference.column)})" if reference.column else ""
    return (
        f"CONSTRAINT {ident(reference.name)} REFERENCES {target}{columns} MATCH {reference.match_type}"
        f" ON DELETE {reference.on_delete} ON UPDATE {reference.on_update}"
    )


def _constraint(schema: str, spec: ConstraintSpec, where: str) -> str:
    body: dict[str, Any] = {
        "unique": _index_constraint,
        "primary_key": _index_constraint,
        "check": _check_constraint,
        "foreign_key": _foreign_key,
        "exclude": _exclude,
    }
    text: str = body[spec.type](schema, spec, where)
    suffix = ""
    if spec.deferrable:
        suffix = " DEFERRABLE" + (" INITIALLY DEFERRED" if spec.initially_deferred else "")
    return f"CONSTRAINT {ident(spec.name)} {text}{suffix}"


def _index_constraint(schema: str, spec: ConstraintSpec, where: str) -> str:
    if not spec.columns:
        raise Refused(f'{where}: constraint "{spec.name}" needs columns')
    head = "PRIMARY KEY" if spec.type == "primary_key" else "UNIQUE"
    if spec.nulls_not_distinct and spec.type == "unique":
        head += " NULLS NOT DISTINCT"
    text = f"{head} ({names(spec.columns)})"
    if spec.index_parameters is not None:
        parameters = spec.index_parameters
        if parameters.include_columns:
            text += f" INCLUDE ({names(parameters.include_columns)})"
        if parameters.storage_parameters:
            text += f" WITH ({parameters.storage_parameters})"
        if parameters.tablespace:
            text += f" USING INDEX TABLESPACE {ident(parameters.tablespace)}"
    return text


def _check_constraint(schema: str, spec: ConstraintSpec, where: str) -> str:
    if not spec.check:
        raise Refused(f'{where}: constraint "{spec.name}" needs check')
    return f"CHECK ({spec.check})" + (" NO INHERIT" if spec.no_inherit else "")


def _foreign_key(schema: str, spec: ConstraintSpec, where: str) -> str:
    if spec.references is None or not spec.columns:
        raise Refused(f'{where}: constraint "{spec.name}" needs columns and references')
    reference = spec.references
    target = qualified(schema, reference.table)
    columns = f" ({names(reference.columns)})" if reference.columns else ""
    on_delete = reference.on_delete
    set_columns = f" ({names(reference.on_delete_set_columns)})" if reference.on_delete_set_columns else ""
    return (
        f"FOREIGN KEY ({names(spec.columns)}) REFERENCES {target}{columns} MATCH {reference.match_type}"
        f" ON DELETE {on_delete}{set_columns} ON UPDATE {reference.on_update}"
    )


def _exclude(schema: str, spec: ConstraintSpec, where: str) -> str:
    if spec.exclude is None:
        raise Refused(f'{where}: constraint "{spec.name}" needs exclude')
    predicate = f" WHERE ({spec.exclude.predicate})" if spec.exclude.predicate else ""
    return f"EXCLUDE USING {ident(spec.exclude.index_method)} ({spec.exclude.elements}){predicate}"
