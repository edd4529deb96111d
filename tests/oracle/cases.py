"""Every failure that the oracle has found, shrunk: a combination, a program, and what was wrong.

``bug`` says why a case is expected to fail; it is taken off with the mending, together with the entry in ``known``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.oracle.schemas import KINDS, Column, Combo, Slot, Table, draw
from tests.oracle.steps import Batch, Call, CopyIn, Program, Query

__all__ = ["CASES", "Batch", "Call", "Case", "CopyIn", "draw"]


@dataclass(frozen=True)
class Case:
    """One failure."""

    name: str
    combo: Combo
    program: Program
    bug: str = ""


def _column(name: str, kind: str, **changes: Any) -> Column:
    return replace(KINDS[kind], name=name, **changes)


def _kept(column: Column) -> Slot:
    return Slot((column,), (column,), kept=((column.name, column.name),))


def _altered(old: Column, new: Column, up: str, down: str, **body: Any) -> Slot:
    named = {"name": new.name} if new.name != old.name else {}
    operation = {"alter_column": {"column": old.name, **named, **body, "up": up, "down": down}}
    return Slot((old,), (new,), (operation,), ((new.name, up),), ((old.name, down),))


KEY = _kept(Column("id", "integer", "int", ("1", "2", "3", "4"), not_null=True))
NOTE = _kept(_column("note", "text"))
CENTS = _altered(
    _column("amount", "num", default="1.5"),
    _column("amount", "int"),
    "(amount * 100)::integer",
    "amount / 100.0",
    type="integer",
    default=None,
)
PRESENT = _altered(
    _column("present", "bool"),
    _column("present", "bool", not_null=True),
    "coalesce(present, false)",
    "present",
    nullable=False,
)
CODE = _altered(
    _column("code", "code", not_null=True, default="'c'"),
    _column("label", "text", not_null=True),
    "code",
    "left(label, 6)",
    type="text",
    default=None,
)

RENAMED = Slot(
    (_column("size", "int", not_null=True),),
    (_column("width", "int", not_null=True),),
    ({"rename_column": {"from": "size", "to": "width"}},),
    kept=(("size", "width"),),
)

WIDTH = Combo(
    "width", (Table("item", ("id",), (KEY, RENAMED, CENTS)),), ("INSERT INTO item VALUES (1, 2, 3)",)
)
ITEM = Combo(
    "item",
    (Table("item", ("id",), (KEY, NOTE, CENTS, PRESENT)),),
    ("INSERT INTO item VALUES (1, 'a', 2.25, true), (2, NULL, NULL, NULL)",),
)
LOGGED = Combo(
    "logged",
    (
        Table(
            "item",
            ("id",),
            (KEY, NOTE, CENTS),
            triggers=(
                "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN"
                " INSERT INTO notes SELECT max(n.id) + 1, 'log', (SELECT count(*) FROM fresh) FROM notes n;"
                " RETURN NULL; END $$",
                "CREATE TRIGGER log AFTER INSERT ON item REFERENCING NEW TABLE AS fresh"
                " FOR EACH STATEMENT EXECUTE FUNCTION log()",
            ),
        ),
    ),
)
LABEL = Combo(
    "label", (Table("item", ("id",), (KEY, CODE, NOTE)),), ("INSERT INTO item VALUES (1, 'a', 'b')",)
)


def _queries(name: str, combo: Combo, speaker: str, *texts: str, bug: str = "") -> Case:
    return Case(name, combo, Program(speaker, tuple(Query(text) for text in texts)), bug)


CASES: tuple[Case, ...] = (
    _queries(
        "a_system_column_stays_out_of_the_whole_row",
        ITEM,
        "old",
        "SELECT *, item.ctid IS NOT NULL, row_to_json(item) FROM item",
    ),
    _queries(
        "an_unknown_function_of_a_whole_row_is_told_with_the_tables_name",
        ITEM,
        "old",
        "SELECT nosuch(t) FROM item t",
        bug="a whole row is a record",
    ),
    _queries(
        "not_null_of_the_new_version_is_checked_before_conflicts_are_looked_for",
        ITEM,
        "new",
        "INSERT INTO item (id, present) VALUES (1, NULL) ON CONFLICT DO NOTHING",
        bug="the guard checks it, when the row is there",
    ),
    _queries(
        "create_table_as_takes_a_whole_row",
        ITEM,
        "old",
        "CREATE TEMP TABLE made AS SELECT item FROM item",
        "SELECT * FROM made",
        bug="a whole row is a record, which no column may be",
    ),
    _queries(
        "not_null_of_a_renamed_and_retyped_column_is_told_by_its_name",
        LABEL,
        "new",
        "INSERT INTO item (id, label) VALUES (5, NULL)",
    ),
    Case(
        "a_copy_tells_not_null_by_the_columns_new_name",
        WIDTH,
        Program("new", (CopyIn("COPY item (id, amount) FROM STDIN", (b"5\t1\n",)),)),
    ),
    Case(
        "a_copy_fires_the_tables_own_statement_triggers_once",
        LOGGED,
        Program("new", (CopyIn("COPY item FROM STDIN", (b"5\ta\t1\n6\tb\t2\n",)),)),
        "the view's trigger inserts row by row",
    ),
    _queries(
        "a_wrong_type_in_a_query_that_is_assigned_is_told_where_it_stands",
        ITEM,
        "new",
        "PREPARE p AS UPDATE item SET (amount, id) = (SELECT 1, NULL)",
    ),
    _queries(
        "too_few_expressions_are_told_where_the_column_stands",
        ITEM,
        "new",
        "INSERT INTO item (id, amount) SELECT * FROM unnest(ARRAY[5])",
        bug="the position is that of the first added column",
    ),
    _queries(
        "a_dropped_temporary_table_does_not_hide_the_migrated_one_any_more",
        ITEM,
        "old",
        "CREATE TEMP TABLE item AS SELECT 1 AS id",
        "SELECT * FROM item",
        "DROP TABLE pg_temp.item",
        "SELECT * FROM item",
    ),
    _queries(
        "a_new_speakers_insert_that_is_left_to_the_guard_keeps_no_default_of_the_old_shape",
        ITEM,
        "new",
        "DELETE FROM item WHERE id IS NULL; INSERT INTO item (id, present) VALUES (4, true)",
        "PREPARE p AS INSERT INTO item (id, present) VALUES (5, true)",
        "EXECUTE p",
    ),
)
