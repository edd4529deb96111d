"""Texts that are made to be expensive cost no more than others of their size: nothing is tried twice.

No times are measured: what is exponential, or quadratic in a mebibyte, would not end within the test's time limit.
"""

from __future__ import annotations

import pytest

from proxy.rewrite.plan import Kind, Plan
from proxy.rewrite.planner import Planner
from proxy.session.blank import tangled
from proxy.session.book import PlanBook
from proxy.session.context import Flight
from proxy.session.databases import wanted_alone
from proxy.session.effects import Effects
from proxy.session.harmless import harmless
from proxy.session.outbox import discards_all
from proxy.session.ports import Target
from proxy.session.settings import SessionSettings, divides, sets_as_one
from proxy.session.statements import deallocated
from proxy.sql.literals import split
from proxy.stats import Stats
from tests.session.play import ORDERS, Play

UNITS = (
    b"(", b")", b"[", b"'", b'"', b"''", b"/*", b"*/", b"/**/", b"--", b"-- \n", b";", b"; ", b";/*", b";--", b"$",
    b"$$", b"$a$", b"$1",
     b"\\", b" ", b"\n", b"x", b"1", b"1.", b"1e", b".", b"U&", b"E'", b"a'", b"TEMPLATE ", b"DISCARD ",
    b"DO ", b"PREPARE ", b"WITH ", b"\xff", b"\xc3\xa9", b"-", b"/", b"*", b"/*/", b"=", b",(1)", b"+1", b" AND NOT",
)  # fmt: skip
STARTS = (
    b"", b"SELECT ", b"/* x", b"-- x", b"SET search_path = a", b"DEALLOCATE ", b'DEALLOCATE "', b"DROP DATABASE ",
    b"CREATE DATABASE x TEMPLATE", b"DO $x$", b"INSERT INTO orders VALUES (1)",
)  # fmt: skip
ENDS = (b"", b"x", b"'", b"*/")
TERM = Play().hub.term


def _look_at(text: bytes) -> None:
    """Everything that a session asks of a text without parsing it."""
    deallocated(text)
    wanted_alone(text)
    discards_all(text)
    harmless(text)
    divides(text)
    sets_as_one(text)
    split(text)
    stats = Stats()
    settings = SessionSettings("app", {}, "public")
    settings._read_search_path(text.decode("utf-8", "replace"))
    effects = Effects(settings, stats, True)
    for kind in (Kind.WRITE, Kind.SESSION, Kind.UNPARSED):
        effects.pins = frozenset(("listen",))
        effects.note(text, Plan(text, kind, "x", statements=2), Flight(TERM, Target.PRIMARY, 0.0))


@pytest.mark.parametrize("size", [40, 4_000, pytest.param(1 << 19, marks=pytest.mark.slow)])
@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_repetitions_are_looked_at_in_linear_time(unit: bytes, size: int) -> None:
    for start in STARTS:
        for end in ENDS:
            _look_at(start + unit * (size // len(unit)) + end)


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_repetitions_are_planned(unit: bytes) -> None:
    planner = Planner([ORDERS], "old")
    for start in (b"SELECT ", b"INSERT INTO orders VALUES (1", b"UPDATE orders SET status = "):
        plan = planner.plan(start + unit * (20_000 // len(unit)))
        assert plan.reason != "internal_error", plan.explanations


def test_a_text_is_tangled_by_many_beginnings_only() -> None:
    assert not tangled(b"x" * 1_000_000)
    assert not tangled(b"$1, " * 5_000)
    assert not tangled(b"/* a hint */ SELECT 1" + b" " * 5_000)
    assert tangled(b";/*" * 700)
    assert tangled(b"$a$ $b$" * 300)


def test_no_text_has_a_plan_of_a_template_that_it_would_not_get() -> None:
    book = PlanBook(1, (ORDERS,), True, Stats())
    planner = Planner([ORDERS], "old")
    for unit in UNITS:
        for size in (3, 30, 3_000):
            text = b"UPDATE orders SET status = 1 WHERE x = " + unit * size
            if len(text) < 8_192:
                assert book.plan(text, "old", ("public",), frozenset()) == planner.plan(text)
