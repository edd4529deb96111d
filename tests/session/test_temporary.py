"""A temporary relation hides a table of the routing state exactly as long as it is there."""

from __future__ import annotations

import pytest

from proxy.wire import messages as m
from tests.session.play import DONE, ERROR, IN_TRANSACTION, READY, Play, query, routing, text_of

READ = "SELECT state FROM orders"
MAKE = "CREATE TEMP TABLE orders (id int)"
FAILED = m.ready_for_query(b"E")


def hidden(play: Play, ready: bytes = READY) -> bool:
    """Whether a read of the table goes out as the client wrote it."""
    (sent,) = play.client(query(READ))
    play.server(DONE + ready)
    return text_of(sent) == READ


def run(play: Play, *steps: tuple[str, bytes]) -> None:
    for text, answer in steps:
        play.client(query(text))
        play.server(answer)


def test_a_temporary_table_hides_the_table_of_its_name() -> None:
    play = Play(routing(), version="m1")
    assert not hidden(play)
    run(play, (MAKE, DONE + READY))
    assert hidden(play)


@pytest.mark.parametrize(
    "text", ["DROP TABLE orders", "drop table if exists pg_temp.orders", "DISCARD TEMP", "DISCARD ALL"]
)
def test_it_is_seen_to_go(text: str) -> None:
    play = Play(routing(), version="m1")
    run(play, (MAKE, DONE + READY), (text, DONE + READY))
    assert not hidden(play)


def test_a_drop_of_something_else_changes_nothing() -> None:
    play = Play(routing(), version="m1")
    run(play, (MAKE, DONE + READY), ("DROP TABLE others", DONE + READY))
    assert hidden(play)


def test_a_drop_that_fails_changes_nothing() -> None:
    play = Play(routing(), version="m1")
    run(play, (MAKE, DONE + READY), ("DROP TABLE orders", ERROR + READY))
    assert hidden(play)


def test_one_that_could_not_be_made_hides_nothing() -> None:
    play = Play(routing(), version="m1")
    run(play, (MAKE, ERROR + READY))
    assert not hidden(play)


def test_what_a_transaction_made_goes_with_its_rollback() -> None:
    play = Play(routing(), version="m1")
    run(play, ("BEGIN", DONE + IN_TRANSACTION), (MAKE, DONE + IN_TRANSACTION))
    assert hidden(play, IN_TRANSACTION)
    run(play, ("ROLLBACK", DONE + READY))
    assert not hidden(play)


def test_what_a_transaction_dropped_is_back_after_it_failed() -> None:
    play = Play(routing(), version="m1")
    run(play, (MAKE, DONE + READY), ("BEGIN", DONE + IN_TRANSACTION))
    run(play, ("DROP TABLE orders", DONE + IN_TRANSACTION), ("SELECT 1/0", ERROR + FAILED))
    run(play, ("COMMIT", DONE + READY))
    assert hidden(play)


def test_one_that_is_dropped_on_commit_goes_with_the_transaction() -> None:
    play = Play(routing(), version="m1")
    run(play, ("BEGIN", DONE + IN_TRANSACTION), (MAKE + " ON COMMIT DROP", DONE + IN_TRANSACTION))
    assert hidden(play, IN_TRANSACTION)
    run(play, ("COMMIT", DONE + READY))
    assert not hidden(play)
