"""Statements that are tried against a twin, played without sockets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.rewrite.plan import Kind, Plan, Refusal
from proxy.session.outbox import REFUSED_TEXT
from proxy.session.ports import Target
from proxy.sql.splice import Edit
from proxy.wire import messages as m
from tests.session.play import (
    BOUND,
    CLOSED,
    DONE,
    EXECUTE,
    IN_TRANSACTION,
    ORDERS,
    PARSED,
    READY,
    SYNC,
    Error,
    Play,
    Refused,
    Yes,
    bind,
    parse,
    query,
    routing,
    split,
    text_of,
)

TEXT = "SELECT st FROM orders"
TWIN = "SELECT st FROM dualwire.twin_1_1 AS orders"
SENT = "SELECT f(status) AS st FROM orders"
TABLE = replace(ORDERS, twin_old=("dualwire", "twin_1_1"))
SAID = m.error_with_fields(
    m.error_response(
        "42703", 'column "st" of relation "twin_1_1" does not exist', hint='See "dualwire.twin_1_1".'
    ),
    {"P": b"8", "s": b"dualwire", "t": b"twin_1_1"},
)
FAILED = m.error_response("25P02", "current transaction is aborted")


def stage(twin_edits: tuple[Edit, ...] = (Edit(15, 21, b"dualwire.twin_1_1 AS orders", "twin"),)) -> Play:
    """A session of the old version, with a plan that has a twin."""
    play = Play(routing(tables=(TABLE,)))
    plan = Plan(
        SENT.encode(),
        Kind.READ,
        "translated",
        edits=(Edit(7, 9, b"f(status) AS st", "virtual"),),
        tables=("public.orders",),
        twin=TWIN.encode(),
        twin_edits=twin_edits,
    )
    book = play.session.context.book()
    book._plans.put(("old", play.session.settings.search_path, TEXT.encode()), plan, len(TEXT))
    return play


def test_a_read_with_a_twin_is_tried_and_gets_the_types_that_the_twin_has() -> None:
    play = stage()
    play.prober.verdict = Yes((25,))
    sent = play.client(parse(TEXT) + bind() + EXECUTE + SYNC)
    assert m.read_parse(sent[0])[1:] == (SENT.encode(), (25,))
    assert play.stats.refusals == {}


def tried(play: Play, *frames: bytes) -> list[tuple[int, bytes]]:
    """What the primary is asked when the client says this; the texts of what is parsed there."""
    return [
        (frame[0], m.read_parse(frame)[1] if frame[0] == m.PARSE else b"") for frame in play.client(*frames)
    ]


TRIAL = [(m.PARSE, TWIN.encode()), (m.DESCRIBE, b""), (m.CLOSE, b""), (m.SYNC, b"")]


@pytest.mark.parametrize(
    "batch", [query(TEXT), parse(TEXT) + bind() + EXECUTE + SYNC], ids=["simple", "extended"]
)
def test_the_sessions_own_server_has_the_last_word_on_an_error_of_the_twin(batch: bytes) -> None:
    play = stage((Edit(0, 0, b"/* four */", "twin"),))
    play.prober.verdict = Error(SAID)
    assert tried(play, batch) == TRIAL
    assert play.server(m.error_with_fields(SAID, {"P": b"18"}) + READY) == b""
    assert text_of(play.heard(Target.PRIMARY)[0]) == REFUSED_TEXT.decode()
    error, ready = split(play.server(m.error_response("42703", "ours") + READY))
    assert ready == READY
    assert m.error_fields(error) == {
        "S": b"ERROR",
        "V": b"ERROR",
        "C": b"42703",
        "M": b'column "st" of relation "orders" does not exist',
        "H": b'See "orders".',
        "P": b"8",
        "s": b"public",
        "t": b"orders",
    }
    assert play.stats.refusals == {}
    (sent,) = play.client(query("SELECT 1"))
    assert text_of(sent) == "SELECT 1"


def test_a_statement_that_only_its_own_session_understands_is_sent() -> None:
    play = stage()
    play.prober.verdict = Error(SAID)
    types = m.frame(m.PARAMETER_DESCRIPTION, b"\0\1\0\0\0\x19")
    row = m.frame(m.ROW_DESCRIPTION, b"\0\1st\0" + bytes(6) + b"\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0")
    described = PARSED + types + row + CLOSED + READY
    assert tried(play, parse(TEXT) + bind() + EXECUTE + SYNC) == TRIAL
    assert play.server(described) == b""
    again = play.heard(Target.PRIMARY)
    assert m.read_parse(again[0])[1:] == (SENT.encode(), (25,))
    assert play.server(described) == b""
    sent = play.heard(Target.PRIMARY)
    assert m.read_parse(sent[0]) == (b"", SENT.encode(), (25,))
    assert play.server(PARSED + BOUND + DONE + READY) == PARSED + BOUND + DONE + READY
    # What holds for one batch may not hold for the next.
    assert tried(play, query(TEXT)) == TRIAL
    assert play.server(described) == b""
    play.heard(Target.PRIMARY)
    assert play.server(m.error_response("42883", "no such function") + READY) == b""
    said = split(play.server(m.error_response("42703", "ours") + READY))
    assert m.error_fields(said[0])["C"] == b"0A000"
    assert b"42883" in m.error_fields(said[0])["D"]


def test_an_error_behind_other_statements_of_a_batch_is_told_in_its_place() -> None:
    play = stage()
    play.prober.verdict = Error(SAID)
    sent = play.client(parse("SELECT 1") + bind() + EXECUTE + parse(TEXT) + bind() + EXECUTE + SYNC)
    assert [m.read_parse(frame)[1] for frame in sent if frame[0] == m.PARSE] == [
        b"SELECT 1",
        REFUSED_TEXT,
        REFUSED_TEXT,
    ]
    said = split(play.server(PARSED + BOUND + DONE + m.error_response("42703", "ours") + READY))
    assert m.error_fields(said[3])["M"] == b'column "st" of relation "orders" does not exist'


def test_in_a_failed_transaction_that_is_what_the_client_hears() -> None:
    play = stage()
    play.prober.verdict = Error(SAID)
    play.client(query("BEGIN"))
    play.server(m.frame(m.COMMAND_COMPLETE, b"BEGIN\0") + IN_TRANSACTION)
    play.client(query(TEXT))
    failed = m.ready_for_query(b"E")
    assert play.server(SAID + failed) == b""
    error, ready = split(play.server(FAILED + failed))
    assert (m.error_fields(error)["C"], ready) == (b"42703", failed)
    play.client(query(TEXT))
    assert play.server(FAILED + failed) == FAILED + failed


def test_what_cannot_be_sent_is_refused_and_counted() -> None:
    play = stage()
    play.prober.verdict = Refused(Refusal("0A000", "no"))
    (sent,) = play.client(query(TEXT))
    assert text_of(sent) == REFUSED_TEXT.decode()
    error = split(play.server(m.error_response("42703", "ours") + READY))[0]
    assert m.error_fields(error)["M"] == b"no"
    assert play.stats.refusals == {"refused_by_server": 1}


def test_an_unnamed_statement_ends_the_one_before_even_if_it_is_refused() -> None:
    play = stage()
    play.prober.verdict = Refused(Refusal("0A000", "no"))
    play.client(parse("SELECT 1") + SYNC)
    play.server(m.PARSE_COMPLETE_FRAME + READY)
    (sent, _) = play.client(parse(TEXT) + SYNC)
    assert m.read_parse(sent)[:2] == (b"", REFUSED_TEXT)
    play.server(m.error_response("42703", "ours") + READY)
    assert b"" not in play.session.outbox.statements
