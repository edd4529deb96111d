"""Errors in the words of a version: what live servers say rarely, or in phases that are short."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel
from proxy.rewrite.plan import Edit, Kind, Plan
from proxy.rewrite.replies import Translator, located

MODEL = TableModel(
    "public",
    "orders",
    1,
    tuple(
        Column(name, kind, kind)
        for name, kind in (
            ("id", "integer"),
            ("status", "smallint"),
            ("code", "text"),
            ("note", "text"),
            ("_dualwire_new_state", "text"),
            ("_dualwire_mark", "smallint"),
        )
    ),
    ("id",),
    tuple(LogicalColumn(name, name) for name in ("id", "status", "code", "note")),
    (
        LogicalColumn("id", "id"),
        LogicalColumn("state", "_dualwire_new_state"),
        LogicalColumn("sku", "code"),
        LogicalColumn("note", "note"),
    ),
    up=Direction((Mirror("_dualwire_new_state", "dualwire.up_1_1", ("status",)),)),
    down=Direction((Mirror("status", "dualwire.down_1_1", ("_dualwire_new_state",)),)),
    mark="_dualwire_mark",
    labels=(
        ("_dualwire_index_1_1", "orders_state_key"),
        ("_dualwire_ck_known", "known"),
        ("_dualwire_nn_state", "orders_state_not_null"),
    ),
    relation=("dualwire", "rows_1"),
    twin_new=("dualwire", "twin_1_new"),
    copy_new=("dualwire", "copy_1_new"),
)
OLD, NEW = Translator((MODEL,), "old"), Translator((MODEL,), "new")
OF_ORDERS = {"s": "public", "t": "orders"}


def test_a_temporary_index_has_its_final_name_and_the_version_s_columns() -> None:
    told = {
        **OF_ORDERS,
        "C": "23505",
        "M": 'duplicate key value violates unique constraint "_dualwire_index_1_1"',
        "D": "Key (_dualwire_new_state, lower(code))=(new, a) already exists.",
        "n": "_dualwire_index_1_1",
    }
    assert NEW.error(told) == {
        "n": "orders_state_key",
        "M": 'duplicate key value violates unique constraint "orders_state_key"',
        "D": "Key (state, lower(sku))=(new, a) already exists.",
    }
    assert OLD.error(told)["D"] == "Key (status, lower(code))=(new, a) already exists."


def test_a_check_that_stands_in_for_not_null_fails_as_not_null() -> None:
    told = NEW.error(
        {
            **OF_ORDERS,
            "C": "23514",
            "M": 'new row for relation "orders" violates check constraint "_dualwire_nn_state"',
            "D": "Failing row contains (1, null, a, b, null, null).",
            "n": "_dualwire_nn_state",
        }
    )
    assert told == {
        "C": "23502",
        "M": 'null value in column "state" of relation "orders" violates not-null constraint',
        "D": "Failing row contains (1, null, a, b).",
        "c": "state",
        "n": None,
    }


def test_a_name_in_another_language_is_found_between_its_quotation_marks() -> None:
    told = NEW.error(
        {
            **OF_ORDERS,
            "C": "23502",
            "M": "NULL-Wert in Spalte »code« von Relation »orders« verletzt Not-Null-Constraint",
            "D": "Fehlgeschlagene Zeile enthält (1, 0, null, b, new, 1).",
            "c": "code",
        }
    )
    assert told == {
        "M": "NULL-Wert in Spalte »sku« von Relation »orders« verletzt Not-Null-Constraint",
        "D": "Fehlgeschlagene Zeile enthält (1, new, null, b).",
        "c": "sku",
    }


@pytest.mark.parametrize(
    ("row", "old", "new"),
    [
        ("1, 0, a, b, new, 1", "1, 0, a, b", "1, new, a, b"),
        ("1, 0, null, null, null, null", "1, 0, null, null", "1, null, null, null"),
        # Two texts side by side: nobody knows which of them has the comma.
        ("1, 0, a, b, c, new, 1", None, None),
    ],
)
def test_a_failing_row_has_the_columns_of_the_version(row: str, old: str | None, new: str | None) -> None:
    fields = {**OF_ORDERS, "C": "23514", "M": "m", "D": f"Failing row contains ({row}).", "n": "some"}
    for translator, expected in ((OLD, old), (NEW, new)):
        told = translator.error(fields)
        assert told == ({} if expected is None else {"D": f"Failing row contains ({expected})."})


def test_a_text_with_commas_is_told_from_what_is_around_it() -> None:
    model = replace(
        MODEL, columns=(*MODEL.columns[:2], Column("code", "integer", "integer"), *MODEL.columns[3:])
    )
    fields = {**OF_ORDERS, "C": "23514", "D": "Failing row contains (1, 0, 7, well, 8, too, new, 1)."}
    assert Translator((model,), "new").error(fields) == {
        "D": "Failing row contains (1, new, 7, well, 8, too)."
    }


def test_a_row_of_which_a_role_may_see_a_part_only_keeps_the_names_of_the_version() -> None:
    fields = {
        **OF_ORDERS,
        "C": "23502",
        "D": "Failing row contains (status, code, _dualwire_new_state) = (0, a, new).",
    }
    assert NEW.error(fields) == {"D": "Failing row contains (state, sku) = (new, a)."}
    assert OLD.error(fields) == {"D": "Failing row contains (status, code) = (0, a)."}


def test_a_key_of_a_foreign_key_is_that_of_the_table_which_the_message_names_first() -> None:
    fields = {
        "s": "public",
        "t": "items",
        "C": "23503",
        "M": 'update or delete on table "orders" violates foreign key constraint "f" on table "items"',
        "D": 'Key (code)=(a) is still referenced from table "items".',
    }
    assert NEW.error(fields) == {"D": 'Key (sku)=(a) is still referenced from table "items".'}
    fields["M"] = 'insert or update on table "items" violates foreign key constraint "f"'
    fields["D"] = 'Key (code)=(a) is not present in table "orders".'
    assert NEW.error(fields) == {}


def test_an_exclusion_constraint_says_its_columns_twice() -> None:
    fields = {
        **OF_ORDERS,
        "C": "23P01",
        "D": "Key (id, code)=(1, a) conflicts with existing key (id, code)=(1, a).",
    }
    assert NEW.error(fields) == {"D": "Key (id, sku)=(1, a) conflicts with existing key (id, sku)=(1, a)."}


def test_what_stands_behind_the_table_is_never_named() -> None:
    fields = {
        "s": "dualwire",
        "t": "rows_1",
        "C": "23514",
        "M": 'new row for relation "rows_1" violates check constraint "some"',
        "n": "some",
    }
    assert NEW.error(fields) == {
        "s": "public",
        "t": "orders",
        "M": 'new row for relation "orders" violates check constraint "some"',
    }
    copied = {
        "C": "22P02",
        "M": 'invalid input syntax for type integer: "x"',
        "W": 'COPY copy_1_new, line 3, column _dualwire_new_state: "x"',
    }
    assert NEW.error(copied) == {"W": 'COPY orders, line 3, column state: "x"'}
    assert NEW.error({**copied, "W": "COPY items, line 3"}) == {}


def test_the_guard_is_no_context() -> None:
    guard = "PL/pgSQL function dualwire.guard_1_1() line 5 at RAISE"
    fields = {
        **OF_ORDERS,
        "C": "23502",
        "M": "m",
        "D": "Failing row contains (1, 2, 3, 4, 5, 6).",
        "W": guard,
        "R": "exec_stmt_raise",
    }
    assert NEW.error(fields) == {"W": None}
    theirs = 'SQL statement "UPDATE orders SET code = 1"\nPL/pgSQL function f() line 3 at SQL statement'
    assert NEW.error({**fields, "W": f"{guard}\n{theirs}"}) == {"W": theirs}
    assert "W" not in NEW.error({**fields, "W": theirs})


def test_what_fails_inside_of_a_copy_view_is_an_error_of_the_table() -> None:
    fields = {
        **OF_ORDERS,
        "C": "23502",
        "M": 'null value in column "code" of relation "orders" violates not-null constraint',
        "D": "Failing row contains (1, 0, null, b, new, 1).",
        "c": "code",
        "W": 'SQL statement "INSERT INTO public.orders\n VALUES (1)"\n'
        'PL/pgSQL function dualwire.copy_1_1_new() line 3 at SQL statement\nCOPY copy_1_new, line 1: "1"',
        "R": "ExecConstraints",
    }
    assert NEW.error(fields) == {
        "c": "sku",
        "M": 'null value in column "sku" of relation "orders" violates not-null constraint',
        "D": "Failing row contains (1, new, null, b).",
        "W": 'COPY orders, line 1: "1"',
    }


@pytest.mark.parametrize(
    ("hint", "old", "new"),
    [
        ("orders.code", ..., "orders.sku"),
        ("orders.status", ..., "orders.state"),
        ("orders._dualwire_new_state", "orders.status", "orders.state"),
        ("orders._dualwire_mark", None, None),
        ("orders.note", ..., ...),
    ],
)
def test_a_column_that_is_suggested_is_one_of_the_version(hint: str, old: object, new: object) -> None:
    text = 'Perhaps you meant to reference the column "{}".'
    for translator, expected in ((OLD, old), (NEW, new)):
        told = translator.error({"C": "42703", "M": "m", "H": text.format(hint)}, ("public.orders",))
        want = {} if expected is ... else {"H": None if expected is None else text.format(expected)}
        assert told == want


def test_what_has_nothing_to_do_with_the_tables_stays_as_it_is() -> None:
    fields = {
        "s": "public",
        "t": "others",
        "c": "code",
        "C": "23502",
        "M": 'null value in column "code" of relation "others" violates not-null constraint',
        "D": "Failing row contains (1, 0, null, b, new, 1).",
    }
    assert NEW.error(fields) == {}
    assert (
        NEW.error({"C": "22P02", "M": 'invalid input syntax for type integer: "code"'}, ("public.orders",))
        == {}
    )


def test_a_position_and_the_name_that_stands_there_are_those_of_the_client_s_text() -> None:
    original = "/* ä */ UPDATE orders SET a = 1 WHERE state = 1 AND x".encode()
    begin = original.index(b"state")
    sent = original.replace(b"state", b'"orders"."code"')
    plan = Plan(
        sent, Kind.WRITE, "translated", edits=(Edit(begin, begin + 5, b'"orders"."code"', "translate"),)
    )
    at = len(sent[:begin].decode()) + 1
    told = located(plan, original, {"P": str(at), "M": 'column reference "code" is ambiguous'})
    assert told == {"P": str(at), "M": 'column reference "state" is ambiguous'}
    behind = len(sent.decode())
    assert located(plan, original, {"P": str(behind), "M": "code"}) == {"P": str(len(original.decode()))}
    assert located(plan, original, {"M": "no position"}) == {}
    assert located(plan, original, {"P": "x"}) == {}


def test_the_longest_rows_are_given_up_rather_than_looked_at_for_long() -> None:
    many = tuple(Column(f"c{n}", "text", "text") for n in range(1600))
    model = replace(
        MODEL, columns=many, old=tuple(LogicalColumn(c.name, c.name) for c in many[1:]), mark=None
    )
    fields = {**OF_ORDERS, "C": "23514", "D": f"Failing row contains ({', '.join(['x'] * 9000)})."}
    assert (
        Translator((replace(model, up=Direction(), down=Direction(), new=model.old),), "old").error(fields)
        == {}
    )
