"""Statements that are tried against a twin, played without sockets."""

from __future__ import annotations

from dataclasses import replace

from proxy.rewrite.plan import Kind, Plan, Refusal
from proxy.session.outbox import REFUSED_TEXT
from proxy.sql.splice import Edit
from proxy.wire import messages as m
from tests.session.play import (
    EXECUTE,
    IN_TRANSACTION,
    ORDERS,
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


def test_an_error_of_the_twin_is_told_of_the_table_at_the_clients_position() -> None:
    play = stage((Edit(0, 0, b"/* four */", "twin"),))
    play.prober.verdict = Error(m.error_with_fields(SAID, {"P": b"18"}))
    (sent,) = play.client(query(TEXT))
    assert text_of(sent) == REFUSED_TEXT.decode()
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


def test_in_a_failed_transaction_that_is_what_the_client_hears() -> None:
    play = stage()
    play.prober.verdict = Error(SAID)
    play.client(query("BEGIN"))
    play.server(m.frame(m.COMMAND_COMPLETE, b"BEGIN\0") + IN_TRANSACTION)
    play.client(query(TEXT))
    assert play.server(FAILED + m.ready_for_query(b"E")) == FAILED + m.ready_for_query(b"E")


def test_a_prepared_statement_that_fails_does_not_exist() -> None:
    play = stage()
    play.prober.verdict = Error(SAID)
    play.client(parse(TEXT, "s") + m.describe_statement(b"s") + SYNC)
    assert [frame[0] for frame in split(play.server(m.error_response("42703", "ours") + READY))] == [
        m.ERROR_RESPONSE,
        m.READY_FOR_QUERY,
    ]
    bound = bind("s")
    assert play.client(bound + EXECUTE + SYNC)[0] == bound


def test_what_cannot_be_sent_is_refused_and_counted() -> None:
    play = stage()
    play.prober.verdict = Refused(Refusal("0A000", "no"))
    (sent,) = play.client(query(TEXT))
    assert text_of(sent) == REFUSED_TEXT.decode()
    error = split(play.server(m.error_response("42703", "ours") + READY))[0]
    assert m.error_fields(error)["M"] == b"no"
    assert play.stats.refusals == {"refused_by_server": 1}


def test_an_unnamed_statement_ends_the_one_before_even_if_it_fails() -> None:
    play = stage()
    play.prober.verdict = Error(SAID)
    play.client(parse("SELECT 1") + SYNC)
    play.server(m.PARSE_COMPLETE_FRAME + READY)
    (sent, _) = play.client(parse(TEXT) + SYNC)
    assert m.read_parse(sent)[:2] == (b"", REFUSED_TEXT)
    play.server(m.error_response("42703", "ours") + READY)
    assert b"" not in play.session.outbox.statements
