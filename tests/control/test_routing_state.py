"""The routing state as a value: its codec is strict and exact, and a session's version follows from it
alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from proxy.control.routing import (
    EMPTY,
    Hold,
    Routing,
    bucket,
    from_document,
    state_to_json,
    to_document,
)
from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel
from proxy.rewrite.plan import Refusal

ORDERS = TableModel(
    schema="public",
    name="orders",
    oid=16400,
    columns=(
        Column("id", "bigint", "bigint", not_null=True, identity="d"),
        Column("status", "text", "text", default="'new'::text", default_kind="stable"),
        Column("_dualwire_new_state", "smallint", "smallint"),
        Column("_dualwire_mark", "smallint", "smallint"),
    ),
    primary_key=("id",),
    old=(LogicalColumn("id", "id"), LogicalColumn("status", "status")),
    new=(LogicalColumn("id", "id"), LogicalColumn("state", "_dualwire_new_state")),
    up=Direction((Mirror("_dualwire_new_state", "dualwire.up_1_1", ("status",)),)),
    down=Direction((Mirror("status", "dualwire.down_1_1", ("_dualwire_new_state",), total=False),)),
    mark="_dualwire_mark",
)

EXPANDED = Routing(
    epoch=3,
    epoch_id="a",
    timeline=1,
    revision=7,
    migration="0002_state",
    phase="expanded",
    old="0001_first",
    new="0002_state",
    dual_write=True,
    tables=(ORDERS,),
    versions=("base", "0001_first", "0002_state"),
)
VERIFIED = replace(EXPANDED, phase="verified", serves_new=True)
CUTOVER = replace(VERIFIED, phase="cutover", auto="new", percent=100)
CLOSED = replace(CUTOVER, phase="closed", serves_old=False, dual_write=False)


@pytest.mark.parametrize(
    "routing",
    [EMPTY, EXPANDED, CUTOVER, replace(CLOSED, hold=Hold(7, ("public.orders",), 2.0))],
    ids=["empty", "expanded", "cutover", "hold"],
)
def test_a_document_comes_back_as_the_same_routing(routing: Routing) -> None:
    assert from_document(json.loads(json.dumps(to_document(routing)))) == routing


def test_the_state_has_exactly_the_published_keys() -> None:
    assert set(state_to_json(EXPANDED)) == {
        *("format", "migration", "phase", "old", "new", "serves_old", "serves_new", "auto", "percent"),
        *("dual_write", "tables", "versions", "hold"),
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 3}, "format 3 is not understood"),
        ({"colour": "red"}, "unknown keys colour"),
        ({"percent": "10"}, "percent must be of type int"),
        ({"percent": True}, "percent must be an integer"),
        ({"percent": 101}, "within 0..100"),
        ({"auto": "both"}, 'must be "old" or "new"'),
        ({"phase": "paused"}, "unknown phase 'paused'"),
        ({"serves_old": 1}, "serves_old must be of type bool"),
        ({"versions": ["base", 1]}, "versions must be a list of names"),
        ({"tables": [{"name": "orders"}]}, "table"),
        ({"hold": {"id": 1, "tables": []}}, "missing keys seconds"),
        ({"hold": {"id": 1, "tables": [], "seconds": 0}}, "positive number"),
        ({"hold": 3}, "hold must be an object"),
        ({"new": None, "serves_new": True}, "no new version is named"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change: dict[str, Any], complaint: str) -> None:
    document = to_document(EXPANDED)
    document["state"] |= change
    with pytest.raises(ValueError, match=complaint):
        from_document(document)


def test_a_missing_key_is_refused_by_name() -> None:
    document = to_document(EXPANDED)
    del document["state"]["dual_write"]
    with pytest.raises(ValueError, match="missing keys dual_write"):
        from_document(document)
    with pytest.raises(ValueError, match="missing keys state"):
        from_document({"epoch": 1, "epoch_id": "", "timeline": 1, "revision": 1})


def refused(answer: object) -> str:
    assert isinstance(answer, Refusal)
    assert answer.sqlstate == "0A000"
    return f"{answer.message}: {answer.detail} {answer.hint}"


def test_a_pinned_version_gets_its_side_while_it_is_served() -> None:
    assert VERIFIED.resolve("0001_first", 1) == "old"
    assert VERIFIED.resolve("0002_state", 1) == "new"
    assert VERIFIED.visible_versions == ("0001_first", "0002_state")


def test_a_new_version_is_refused_until_it_is_verified() -> None:
    answer = refused(EXPANDED.resolve("0002_state", 1))
    assert '"0002_state" is not served yet' in answer
    assert "phase expanded" in answer
    assert "verified" in answer


def test_an_old_version_is_refused_from_closed_on() -> None:
    answer = refused(CLOSED.resolve("0001_first", 1))
    assert "no longer served" in answer
    assert '"0002_state"' in answer
    assert CLOSED.visible_versions == ("0002_state",)


def test_a_version_before_the_last_is_no_longer_served() -> None:
    assert "no longer served" in refused(VERIFIED.resolve("base", 1))


def test_an_unknown_version_is_refused_with_the_known_ones() -> None:
    answer = refused(VERIFIED.resolve("0009_nothing", 1))
    assert 'unknown schema version "0009_nothing"' in answer
    assert '"base", "0001_first", "0002_state"' in answer


def test_without_a_control_schema_only_auto_and_base_are_served() -> None:
    assert EMPTY.resolve("auto", 5) == "old"
    assert EMPTY.resolve("base", 5) == "old"
    assert "unknown" in refused(EMPTY.resolve("0001_first", 5))
    assert (EMPTY.epoch, EMPTY.tables, EMPTY.visible_versions) == (0, (), ("base",))


@pytest.mark.parametrize(
    ("routing", "share"),
    [
        (EXPANDED, 0),
        (replace(EXPANDED, auto="new", percent=100), 0),
        (VERIFIED, 0),
        (replace(VERIFIED, percent=10), 10),
        (replace(CUTOVER, percent=35), 35),
        (CUTOVER, 100),
        (replace(CUTOVER, auto="old"), 0),
        (CLOSED, 100),
        (replace(CLOSED, percent=0), 100),
    ],
    ids=[
        "expanded",
        "never before verified",
        "verified",
        "canary",
        "cutover at 35",
        "cutover",
        "flipped back",
        "closed",
        "closed whatever the percentage",
    ],
)
def test_auto_sessions_are_split_by_the_percentage(routing: Routing, share: int) -> None:
    new = sum(routing.resolve("auto", number) == "new" for number in range(10_000))
    assert abs(new - share * 100) <= 20


def test_a_small_number_of_sessions_is_split_evenly_too() -> None:
    half = replace(CUTOVER, percent=50)
    assert 9 <= sum(half.resolve("auto", number) == "new" for number in range(100, 120)) <= 11


def test_raising_the_percentage_never_moves_a_session_back() -> None:
    for number in range(500):
        sides = [replace(CUTOVER, percent=percent).resolve("auto", number) for percent in range(101)]
        assert sides == sorted(sides, reverse=True)
        assert 0 <= bucket(number) < 100
