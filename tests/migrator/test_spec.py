"""Migration files: pgroll's are read as they are, mistakes are named with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.errors import Refused, Usage
from migrator.operations import REGISTRY
from migrator.operations.alter_column import AlterColumn
from migrator.spec import load, parse

EXAMPLES = Path(__file__).parents[2] / "config" / "migrations"


def read(text: str) -> object:
    return parse("0001_test", "0001_test.yaml", text.encode())


def refusal(text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        read(text)
    return caught.value


def test_pgroll_files_parse_as_they_are() -> None:
    migration = parse(
        "18_change_column_type",
        "18_change_column_type.yaml",
        b"""
name: 18_change_column_type
operations:
  - alter_column:
      table: reviews
      column: rating
      type: integer
      up: CAST(rating AS integer)
      down: CAST(rating AS text)
""",
    )
    [operation] = migration.operations
    assert isinstance(operation, AlterColumn)
    assert (operation.type, operation.up) == ("integer", "CAST(rating AS integer)")


def test_every_column_key_of_create_table_is_understood() -> None:
    read(
        """
operations:
  - create_table:
      name: fruits
      comment: what grows
      columns:
        - {name: id, type: bigint, pk: true, generated: {identity: {user_specified_values: BY DEFAULT}}}
        - {name: name, type: varchar(255), unique: true, comment: "its name"}
        - {name: price, type: "decimal(10,2)", default: 0.00}
        - {name: owner, type: bigint, nullable: true,
           references: {name: fk_owner, table: owners, column: id, on_delete: CASCADE}}
        - {name: weight, type: int, check: {name: positive, constraint: weight > 0}}
      constraints:
        - {name: unique_pair, type: unique, columns: [name, price], nulls_not_distinct: true}
        - {name: sane, type: check, check: length(name) > 0}
        - {name: no_twins, type: exclude, exclude: {index_method: btree, elements: name WITH =}}
"""
    )


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "0002_rename.json"
    path.write_text('{"operations": [{"rename_column": {"table": "t", "from": "a", "to": "b"}}]}')
    assert load(path).name == "0002_rename"


def test_the_checksum_ignores_formatting_and_comments() -> None:
    one = parse("m", "m.yaml", b"operations:\n  - rename_column: {table: t, from: a, to: b}\n")
    two = parse("m", "m.yaml", b"# c\noperations:\n- rename_column:\n    table: t\n    to: b\n    from: a\n")
    assert one.checksum == two.checksum


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "operations: [{alter_column: {table: a, column: b, type: int, up: x, down: y, foo: 1}}]",
            "operations[0].alter_column.foo: unknown key",
            "Known keys there: check, column,",
        ),
        (
            "operations: [{create_table: {name: a, columns: [{name: x, type: int, nullabel: true}]}}]",
            "operations[0].create_table.columns[0].nullabel: unknown key",
            "nullable",
        ),
        ("operations: [{alter_column: {table: 3, column: b}}]", "operations[0].alter_column.table", "table"),
        (
            "operations: [{rename_column: {table: t, from: a}}]",
            "operations[0].rename_column.to: missing",
            "to",
        ),
        ("operations: [{create_index: {}}]", "operation `create_index` is not supported yet", "alter_column"),
        ("operations: [{frobnicate: {}}]", "unknown operation `frobnicate`", "add_column"),
        ("operations: []", "at least one operation", ""),
        ("operation: []", "unknown key `operation`", "operations"),
        ("operations: [{a: {}, b: {}}]", "exactly one operation", ""),
        ("- 1", "a migration is a mapping", ""),
        ("operations: [", "cannot be parsed", ""),
        (
            "operations: [{sql: {up: SELECT 1}}, {rename_column: {table: t, from: a, to: b}}]",
            "operations[0].sql cannot stand together",
            "onComplete",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert message in error.message
    assert hint in error.hint
    assert error.message.startswith("0001_test.yaml")
    assert error.exit_code == 3


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(Usage) as caught:
        load(tmp_path / "none.yaml")
    assert caught.value.exit_code == 2


def test_examples_in_the_repository_parse() -> None:
    found = sorted(EXAMPLES.glob("*.yaml"))
    assert found
    used = {kind for path in found for item in load(path).document["operations"] for kind in item}
    assert used == set(REGISTRY)
