"""Texts of several statements that set the search_path between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_old_speakers import STATUS

from proxy.rewrite.planner import Planner

SHADOWED = replace(STATUS, shadows=("other",))
UPDATE = "UPDATE orders SET status = 'x'"


@pytest.mark.parametrize(
    ("before", "mirrored"),
    [
        ("SET search_path TO other, public", False),
        ("SET search_path = public, other", True),
        ("SET LOCAL search_path TO 'other'", False),
        ("SET SCHEMA 'other'", False),
        ("SET search_path TO ''", False),
        ("SET search_path TO other; BEGIN; SAVEPOINT a", False),
        ("SET search_path TO other; SET search_path TO public", True),
        ("SET work_mem TO '4MB'", True),
        ("BEGIN; SELECT 1; COMMIT", True),
        ("DO 'BEGIN END'", True),
    ],
)
def test_a_statement_is_planned_under_the_path_that_those_before_it_set(before: str, mirrored: bool) -> None:
    plan = Planner([SHADOWED], "old").plan(f"{before}; {UPDATE}".encode())
    assert (plan.refusal, plan.mirrored) == (None, mirrored)
    # And the other way around.
    plan = Planner([SHADOWED], "old").plan(f"{UPDATE}; {before}".encode(), ("public",))
    assert plan.mirrored
    plan = Planner([SHADOWED], "old").plan(f"{UPDATE}; {before}".encode(), ("other", "public"))
    assert not plan.mirrored


def test_a_schema_that_was_not_in_the_path_is_found_once_it_is() -> None:
    planner = Planner([STATUS], "new")
    text = b"SET search_path TO public; UPDATE orders SET state = 'x'"
    assert planner.plan(text, ("elsewhere",)).mirrored


@pytest.mark.parametrize(
    "before",
    [
        "RESET search_path",
        "RESET ALL",
        "DISCARD ALL",
        "SET search_path TO DEFAULT",
        'SET search_path TO "$user", public',
        "SELECT set_config('search_path', 'other', true)",
        "BEGIN; SET LOCAL search_path TO other; COMMIT",
        "SET search_path TO other; ROLLBACK TO a",
    ],
)
def test_where_the_text_does_not_tell_the_path_only_what_is_certain_is_planned(before: str) -> None:
    text = f"{before}; {UPDATE}".encode()
    refusal = Planner([SHADOWED], "old").plan(text).refusal
    assert refusal is not None
    assert "search_path" in refusal.hint
    assert Planner([SHADOWED], "old").plan(text.replace(b"orders", b"public.orders")).mirrored
    assert Planner([STATUS], "old").plan(text).mirrored
