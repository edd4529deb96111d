"""A session whose large text is planned elsewhere waits for it, in order; other things go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.rewrite.parcel import joined, pack, unpack
from proxy.rewrite.plan import Plan
from proxy.rewrite.planner import Planner
from proxy.session.book import LARGE_TEXT, PlanBook
from proxy.session.ports import Target
from proxy.sql.splice import apply
from proxy.wire import messages as m
from tests.session.play import (
    BOUND,
    DONE,
    EXECUTE,
    ORDERS,
    PARSED,
    READY,
    SYNC,
    Play,
    bind,
    parse,
    query,
    routing,
    text_of,
)

LARGE = f"UPDATE orders SET status = 2 WHERE id = 1 /* {'x' * LARGE_TEXT} */"


class Elsewhere:
    """Keeps the questions until the test has them answered."""

    def __init__(self) -> None:
        self.asked: list[tuple[PlanBook, Any, Callable[[Plan], None]]] = []
        self.withdrawn = 0

    def plan(
        self, book: PlanBook, text: bytes, side: Any, path: Any, temp: Any, done: Any
    ) -> Callable[[], None]:
        self.asked.append((book, (text, side, path, temp), done))
        return self._withdraw

    def _withdraw(self) -> None:
        self.withdrawn += 1

    def answer(self) -> None:
        book, (text, side, path, temp), done = self.asked.pop(0)
        plan = book.plan(text, side, path, temp)
        book.keep(text, side, path, temp, plan)
        done(plan)


def _play() -> tuple[Play, Elsewhere]:
    play = Play(routing())
    elsewhere = play.session.context.planning = Elsewhere()
    return play, elsewhere


def test_a_large_text_waits_for_its_plan_and_what_follows_waits_with_it() -> None:
    play, elsewhere = _play()
    assert play.client(query(LARGE), query("SELECT 1")) == []
    assert play.session.blocked == "plan"
    elsewhere.answer()
    first, second = play.heard(Target.PRIMARY)
    assert "dualwire.up_1_1" in text_of(first)
    assert text_of(second) == "SELECT 1"
    assert play.server(DONE + READY, DONE + READY) == (DONE + READY) * 2


def test_a_large_prepared_text_is_planned_once() -> None:
    play, elsewhere = _play()
    assert play.client(parse(LARGE, "s") + bind("s") + EXECUTE + SYNC) == []
    elsewhere.answer()
    assert len(play.heard(Target.PRIMARY)) == 4
    play.server(PARSED + BOUND + DONE + READY)
    assert len(play.client(bind("s") + EXECUTE + SYNC)) == 3
    assert not elsewhere.asked


def test_two_large_texts_of_one_batch_are_planned_one_after_the_other() -> None:
    play, elsewhere = _play()
    other = LARGE.replace("= 1", "= 7")
    assert play.client(parse(LARGE) + bind() + EXECUTE + parse(other) + bind() + EXECUTE + SYNC) == []
    elsewhere.answer()
    assert play.session.blocked == "plan"
    elsewhere.answer()
    assert len(play.heard(Target.PRIMARY)) == 7


def test_a_cancel_withdraws_the_question_and_answers_the_client() -> None:
    play, elsewhere = _play()
    play.client(query(LARGE), query("SELECT 1"))
    assert play.session.cancel_waiting()
    assert elsewhere.withdrawn == 1
    assert [text_of(frame) for frame in play.heard(Target.PRIMARY)] == ["SELECT 1"]
    assert b"57014" in play.server(DONE + READY)
    elsewhere.answer()  # too late: nobody hears it
    assert play.heard(Target.PRIMARY) == []


def test_the_end_of_the_client_withdraws_the_question() -> None:
    play, elsewhere = _play()
    play.client(query(LARGE))
    play.session.close()
    assert elsewhere.withdrawn == 1
    elsewhere.answer()
    assert play.heard(Target.PRIMARY) == []


def test_a_new_epoch_asks_again() -> None:
    play, elsewhere = _play()
    play.client(query(LARGE))
    play.hub.publish(routing(2))
    elsewhere.answer()
    assert play.session.blocked == "plan"
    elsewhere.answer()
    (sent,) = play.heard(Target.PRIMARY)
    assert sent[0] == m.QUERY


def test_a_plan_survives_the_way_between_processes() -> None:
    planner = Planner([ORDERS], "old")
    for text in (
        LARGE,
        "SELECT 1",
        "SET work_mem = '1MB'",
        "MERGE INTO",
        "DROP TABLE orders",
        "SELECT * FROM orders",
    ):
        plan = planner.plan(text.encode())
        assert unpack(pack(plan, text.encode()), text.encode()) == Plan(
            *[getattr(plan, name) for name in Plan.__dataclass_fields__]
        )


def test_very_many_edits_are_joined_and_still_do_the_same() -> None:
    text = b"INSERT INTO orders (id, status) VALUES " + b", ".join(b"(%d, 5)" % at for at in range(300))
    plan = Planner([ORDERS], "old").plan(text)
    few = joined(text, plan.edits, 7)
    assert len(few) <= 7 < len(plan.edits)
    assert apply(text, few) == plan.text
