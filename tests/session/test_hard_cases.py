"""What a session must survive: errors before injected messages, statements known to one server only, hostile frames."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.control.routing import Hold
from proxy.rewrite.plan import Plan, Refusal
from proxy.session.ports import Target
from proxy.wire import messages as m
from tests.session.play import (
    BOUND,
    CLOSED,
    DONE,
    ERROR,
    EXECUTE,
    IN_TRANSACTION,
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

UPDATE = "UPDATE orders SET status = 2 WHERE id = 1"
HOLD = Hold(7, ("public.orders",), 2.0)
COPY_IN = m.frame(m.COPY_IN_RESPONSE, b"\0\0\0")
DATA = m.frame(m.COPY_DATA, b"1\n")
COPY_DONE = m.frame(m.COPY_DONE, b"")
FATAL = m.error_response("57P01", "terminating connection", severity="FATAL")


def kinds(frames: list[bytes]) -> str:
    """The type bytes of frames, as a word."""
    return "".join(chr(frame[0]) for frame in frames)


def _reading(covered: int = 5) -> Play:
    play = Play()
    play.reads.enabled = True
    play.reads.covered = covered
    return play


# -- prepared statements ---------------------------------------------------------------------------------------------


def test_an_error_before_an_injected_close_leaves_the_statement_as_the_server_has_it() -> None:
    play = Play()
    play.client(parse("SELECT 1", "s1") + parse(UPDATE, "s2") + SYNC)
    play.server(PARSED + PARSED + READY)
    play.hub.publish(routing(2))
    assert kinds(play.client(bind("s1") + EXECUTE + bind("s2") + EXECUTE + SYNC)) == "BECPBES"
    play.server(ERROR + READY)
    # The server still has s2 as it was: it must be closed before it can be prepared again.
    assert kinds(play.client(bind("s2") + EXECUTE + SYNC)) == "CPBES"
    assert play.server(CLOSED + PARSED + BOUND + DONE + READY) == BOUND + DONE + READY
    assert kinds(play.client(bind("s2") + EXECUTE + SYNC)) == "BES"


def test_an_error_in_an_injected_parse_leaves_nothing_to_close() -> None:
    play = Play()
    play.client(parse(UPDATE, "s2") + SYNC)
    play.server(PARSED + READY)
    play.hub.publish(routing(2))
    assert kinds(play.client(bind("s2") + EXECUTE + SYNC)) == "CPBES"
    play.server(CLOSED + ERROR + READY)
    assert kinds(play.client(bind("s2") + EXECUTE + SYNC)) == "PBES"


def test_a_named_statement_is_always_known_to_the_primary() -> None:
    play = _reading()
    assert kinds(play.client(parse("SELECT 1", "s1") + SYNC)) == "PS"
    play.server(PARSED + READY)
    assert play.client(bind("s1") + EXECUTE + SYNC) == []
    assert kinds(play.heard(Target.REPLICA)) == "PBES"
    play.server(PARSED + BOUND + DONE + READY, target=Target.REPLICA)
    play.reads.enabled = False
    assert kinds(play.client(bind("s1") + EXECUTE + SYNC)) == "BES"


def test_an_unnamed_statement_of_the_replica_follows_when_replicas_are_switched_off() -> None:
    play = _reading()
    play.client(parse("SELECT 1") + SYNC)
    play.server(PARSED + READY, target=Target.REPLICA)
    play.reads.enabled = False
    assert kinds(play.client(bind() + EXECUTE + SYNC)) == "PBES"
    assert play.server(PARSED + BOUND + DONE + READY) == BOUND + DONE + READY


def test_a_name_that_was_closed_can_be_taken_again_though_the_replica_still_has_it() -> None:
    play = _reading()
    play.client(parse("SELECT 1", "s1") + SYNC)
    play.server(PARSED + READY)
    play.client(bind("s1") + EXECUTE + SYNC)
    play.server(PARSED + BOUND + DONE + READY, target=Target.REPLICA)
    play.heard(Target.REPLICA)
    assert kinds(play.client(m.close_statement(b"s1") + SYNC)) == "CS"
    play.server(CLOSED + READY)
    assert kinds(play.client(parse("SELECT 2", "s1") + SYNC)) == "PS"
    play.server(PARSED + READY)
    play.client(bind("s1") + EXECUTE + SYNC)
    heard = play.heard(Target.REPLICA)
    assert kinds(heard) == "CPBES"
    assert text_of(heard[1]) == "SELECT 2"


def test_the_same_text_with_other_parameter_types_is_prepared_anew() -> None:
    play = _reading()
    play.client(m.parse(b"s1", b"SELECT $1", (23,)) + SYNC)
    play.server(PARSED + READY)
    play.client(bind("s1") + EXECUTE + SYNC)
    play.server(PARSED + BOUND + DONE + READY, target=Target.REPLICA)
    play.client(m.close_statement(b"s1") + m.parse(b"s1", b"SELECT $1", (25,)) + SYNC)
    play.server(CLOSED + PARSED + READY)
    play.heard(Target.REPLICA)
    play.client(bind("s1") + EXECUTE + SYNC)
    heard = play.heard(Target.REPLICA)
    assert kinds(heard) == "CPBES"
    assert m.read_parse(heard[1])[2] == (25,)


def test_a_name_that_was_freed_unseen_gets_its_new_text_everywhere() -> None:
    play = _reading()
    play.client(parse("SELECT 1", "s1") + SYNC)
    play.server(PARSED + READY)
    # As a function would: DEALLOCATE that no parser sees. The server accepts the name again.
    play.client(parse("SELECT 2", "s1") + SYNC)
    play.server(PARSED + READY)
    play.client(bind("s1") + EXECUTE + SYNC)
    assert text_of(play.heard(Target.REPLICA)[0]) == "SELECT 2"


@pytest.mark.parametrize("text", ["/* app */ DEALLOCATE s1", "-- c\nDEALLOCATE s1", "/**/ discard all"])
def test_deallocate_behind_a_comment_is_followed(text: str) -> None:
    for play in (Play(), Play(routing())):
        play.client(parse("SELECT 1", "s1") + SYNC)
        play.server(PARSED + READY)
        play.client(query(text))
        assert b"s1" not in play.session.outbox.statements


def test_a_retired_statement_is_refused_though_no_table_has_a_rule_any_more() -> None:
    play = Play(routing(1), version="auto")
    play.client(parse("SELECT status FROM orders", "s1") + SYNC)
    play.server(PARSED + READY)
    play.hub.publish(
        routing(2, phase="completed", old="m1", new=None, serves_new=False, dual_write=False, tables=())
    )
    play.client(bind("s1") + EXECUTE + SYNC)
    assert b"cached plan must not change result type" in play.server(ERROR + READY)


# -- the hold, and other sessions --------------------------------------------------------------------------------------


def test_no_replica_is_chosen_for_a_parked_read_before_it_must_have_the_swap() -> None:
    play = Play(routing(1))
    play.reads.enabled = True
    play.reads.covered = 5
    play.reads.sent = 5

    def raise_floor(_routing: Any) -> None:
        play.reads.covered = -1

    play.hub.publish(routing(2, hold=HOLD))
    play.hub.listen(raise_floor)
    assert play.client(query("SELECT status FROM orders")) == []
    play.hub.publish(routing(3))
    assert play.heard(Target.REPLICA) == []
    assert kinds(play.heard(Target.PRIMARY)) == "Q"


def test_a_malformed_message_behind_a_parked_one_is_left_to_the_server() -> None:
    play, other = Play(routing(1)), Play()
    other.hub = other.session.context.hub = play.hub
    play.hub.publish(routing(2, hold=HOLD))
    play.client(query(UPDATE) + m.frame(m.QUERY, b"no\0end"))
    other.client(query(UPDATE))
    play.hub.publish(routing(3))
    assert play.ended == ""
    assert kinds(play.heard(Target.PRIMARY)) == "QQ"
    assert kinds(other.heard(Target.PRIMARY)) == "Q"


def test_a_refused_parked_statement_is_counted_out_once() -> None:
    play = Play(routing(2, hold=HOLD))
    play.client(query(UPDATE))
    fail = play.fail

    def closing(sqlstate: str, message: str, hint: str = "") -> None:
        fail(sqlstate, message, hint)
        play.session.close()

    play.fail = closing  # type: ignore[method-assign]
    play.hub.refuse_parked(Refusal("08006", "no"))
    assert play.ended == "08006"
    assert play.stats.parked == 0


@pytest.mark.parametrize(
    "frame",
    [
        m.frame(m.QUERY, b""),
        m.frame(m.PARSE, b""),
        m.frame(m.PARSE, b"s"),
        m.frame(m.PARSE, b"\0"),
        m.frame(m.PARSE, b"\0\0"),
        m.frame(m.BIND, b""),
        m.frame(m.DESCRIBE, b""),
        m.frame(m.CLOSE, b""),
        m.frame(m.EXECUTE, b""),
    ],
    ids=repr,
)
def test_a_message_without_its_body_is_a_protocol_violation_or_the_servers_to_refuse(frame: bytes) -> None:
    for play in (Play(), Play(routing()), _reading()):
        try:
            play.client(frame + SYNC)
        except m.ProtocolViolation:
            continue
        assert play.session.flights


# -- replicas ----------------------------------------------------------------------------------------------------------


def test_what_an_idle_replica_says_of_its_own_end_is_not_for_the_client() -> None:
    play = _reading()
    play.client(query("SELECT 1"))
    play.server(DONE + READY, target=Target.REPLICA)
    assert play.server(FATAL, target=Target.REPLICA) == b""
    assert not play.session.saw_fatal
    assert play.server(m.parameter_status("in_hot_standby", "off"), target=Target.REPLICA) == b""


def test_a_pipelined_read_that_a_replica_cannot_serve_waits_for_the_primary() -> None:
    play = _reading()

    def servable(plan: Plan, _path: tuple[str, ...], _user: str) -> bool:
        return not plan.relations

    play.reads.servable = servable  # type: ignore[method-assign]
    play.client(query("SELECT 1"))
    play.client(query("SELECT * FROM unlogged"))
    assert len(play.heard(Target.REPLICA)) == 1
    play.server(DONE + READY, target=Target.REPLICA)
    assert kinds(play.heard(Target.PRIMARY)) == "Q"


def test_a_pipelined_read_does_not_go_to_a_replica_that_is_no_longer_fit() -> None:
    play = _reading()
    play.client(query("SELECT 1"))
    play.reads.covered = -1
    play.client(query("SELECT 2"))
    assert len(play.heard(Target.REPLICA)) == 1
    play.server(DONE + READY, target=Target.REPLICA)
    assert kinds(play.heard(Target.PRIMARY)) == "Q"


def test_a_notification_is_news_from_the_primary() -> None:
    play = _reading(covered=5)
    play.reads.sent = 9
    notification = m.frame(m.NOTIFICATION, b"\0\0\0\1c\0new row\0")
    assert play.server(notification) == notification
    assert kinds(play.client(query("SELECT 1"))) == "Q"


def test_a_setting_made_in_the_batch_that_opens_a_transaction_is_not_overlooked() -> None:
    play = _reading()
    play.client(
        parse("BEGIN") + bind() + EXECUTE + parse("SET search_path TO a") + bind() + EXECUTE + SYNC,
    )
    play.server((PARSED + BOUND + DONE) * 2 + IN_TRANSACTION)
    assert play.session.settings.search_path == ("ann", "public")
    play.client(query("COMMIT"))
    play.server(DONE + READY)
    assert play.session.settings.search_path == ("a",)
    assert list(play.session.settings.applied) == ["search_path"]


@pytest.mark.parametrize("text", ["BEGIN; SET search_path TO a; ROLLBACK", "SET search_path TO a; CALL p()"])
def test_a_setting_among_other_statements_is_not_taken_for_certain(text: str) -> None:
    play = _reading()
    play.client(query(text))
    play.server(DONE + DONE + DONE + READY)
    assert not play.session.settings.portable


def test_a_setting_rolled_back_in_its_own_batch_is_not_taken_for_certain() -> None:
    play = _reading()
    texts = ("BEGIN", "SET search_path TO a", "ROLLBACK")
    play.client(*(parse(text) + bind() + EXECUTE for text in texts), SYNC)
    play.server((PARSED + BOUND + DONE) * 3 + READY)
    assert not play.session.settings.portable


def test_discard_plans_discards_neither_settings_nor_statements() -> None:
    play = _reading()
    for batch in (query("SET search_path TO a"), parse("SELECT 1", "s1") + SYNC, query("DISCARD PLANS")):
        play.client(batch)
        play.server((PARSED if b"s1" in batch else DONE) + READY)
    assert play.session.settings.applied
    assert b"s1" in play.session.outbox.statements


def test_settings_made_while_replicas_were_off_keep_a_session_on_the_primary() -> None:
    play = Play()
    play.client(query("SET search_path TO tenant"))
    play.server(DONE + READY)
    play.reads.enabled = True
    play.reads.covered = 5
    assert kinds(play.client(query("SELECT 1"))) == "Q"


def test_a_discard_that_failed_discards_no_setting() -> None:
    play = _reading()
    play.client(query("SET search_path TO a"))
    play.server(DONE + READY)
    play.client(query("BEGIN"))
    play.server(DONE + IN_TRANSACTION)
    play.client(query("DISCARD ALL"))
    play.server(ERROR + m.ready_for_query(b"E"))
    assert play.session.settings.applied
    play.client(query("ROLLBACK"))
    play.server(DONE + READY)
    play.client(query("DISCARD ALL"))
    play.server(DONE + READY)
    assert not play.session.settings.applied


# -- errors and COPY ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", [True, False])
def test_a_query_that_is_skipped_after_an_error_leaves_no_batch_behind(tables: bool) -> None:
    play = Play(routing()) if tables else Play()
    play.client(bind("nope") + m.FLUSH_FRAME + query("SELECT 1"))
    play.server(ERROR)
    play.client(SYNC)
    assert play.server(READY) == READY
    assert not play.session.flights
    play.client(bind("nope") + m.FLUSH_FRAME + query("SELECT 1") + query("SELECT 2") + SYNC)
    play.server(ERROR + READY)
    assert not play.session.flights
    play.client(query("SELECT 1"))
    assert play.server(DONE + READY) == DONE + READY


def test_copy_data_sent_blindly_comes_after_the_statement_that_wants_it() -> None:
    play = Play()
    batch = parse("COPY t FROM STDIN") + bind() + EXECUTE + DATA + COPY_DONE + SYNC
    assert kinds(play.client(batch)) == "PBEdcS"
    assert play.server(PARSED + BOUND + COPY_IN + DONE + READY) == PARSED + BOUND + COPY_IN + DONE + READY
    assert not play.session.flights


def test_copy_data_does_not_overtake_a_statement_that_waits() -> None:
    play = Play(routing())
    play.prober.slow = True
    play.client(query("SELECT 1"))
    play.client(query(UPDATE))
    assert play.client(query("COPY customers FROM STDIN") + DATA + COPY_DONE) == []
    play.prober.slow = False
    play.prober.answer()
    assert kinds(play.heard(Target.PRIMARY)) == "QQdc"


def test_what_follows_a_setting_in_a_pipeline_is_planned_after_it_took_effect() -> None:
    play = Play(routing())
    play.client(query("SET search_path TO elsewhere"))
    assert play.client(query("UPDATE orders SET status = 1")) == []
    (sent,) = _after(play, m.parameter_status("search_path", "elsewhere") + DONE + READY)
    assert text_of(sent) == "UPDATE orders SET status = 1"


def _after(play: Play, reply: bytes) -> list[bytes]:
    play.server(reply)
    return play.heard(Target.PRIMARY)
