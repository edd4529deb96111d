"""One session's decisions, played without sockets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control.routing import Hold, Routing
from proxy.session.outbox import REFUSED_TEXT
from proxy.session.ports import Target
from proxy.session.settings import parse_search_path
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
    No,
    Play,
    Yes,
    bind,
    parse,
    query,
    routing,
    split,
    text_of,
)

UPDATE = "UPDATE orders SET status = 2 WHERE id = 1"


def test_without_rules_bytes_go_through_as_they_are() -> None:
    play = Play()
    batch = parse("SELECT 1") + bind() + EXECUTE + SYNC
    assert b"".join(play.client(batch)) == batch
    reply = PARSED + BOUND + DONE + READY
    assert play.server(reply) == reply
    assert play.stats.plan_misses == 0


def test_a_write_of_an_old_speaker_is_mirrored_after_the_server_accepted_the_text() -> None:
    play = Play(routing())
    (sent,) = play.client(query(UPDATE))
    assert "dualwire.up_1_1" in text_of(sent)
    assert play.stats.mirrored == 1
    assert play.server(DONE + READY) == DONE + READY


def test_a_text_that_the_server_rejects_is_left_to_the_guard() -> None:
    play = Play(routing())
    play.prober.verdict = No()
    (sent,) = play.client(query(UPDATE))
    assert text_of(sent) == UPDATE
    assert play.stats.guarded == 1
    assert play.stats.fallbacks == 1


def test_a_client_waits_for_the_verdict_and_nothing_overtakes() -> None:
    play = Play(routing())
    play.prober.slow = True
    assert play.client(query(UPDATE)) == []
    assert play.client(query("SELECT 1")) == []
    assert play.session.waiting
    play.prober.slow = False
    play.prober.answer()
    first, second = play.heard(Target.PRIMARY)
    assert "up_1_1" in text_of(first)
    assert text_of(second) == "SELECT 1"


def test_the_parameter_types_of_the_original_are_given_with_the_rewritten_text() -> None:
    play = Play(routing())
    play.prober.verdict = Yes((23, 20))
    sent = play.client(parse("UPDATE orders SET status = $1 WHERE id = $2") + bind() + EXECUTE + SYNC)
    assert m.read_parse(sent[0])[2] == (23, 20)


def test_a_new_speaker_gets_its_names_translated() -> None:
    play = Play(routing(), version="m1")
    (sent,) = play.client(query("SELECT state FROM orders"))
    assert "_dualwire_new_state" in text_of(sent)


def test_an_unknown_version_is_refused_and_the_servers_transaction_fails_too() -> None:
    play = Play(routing(), version="nonsense")
    (sent,) = play.client(query("SELECT 1"))
    assert REFUSED_TEXT.decode() == text_of(sent)
    said = play.server(ERROR + READY)
    fields = m.error_fields(split(said)[0])
    assert fields["C"] == b"0A000"
    assert b"nonsense" in fields["M"]
    assert said.endswith(READY)


def test_a_refused_statement_of_a_pipeline_takes_the_rest_of_its_batch_with_it() -> None:
    play = Play(routing(), version="m1")
    play.client(parse("ALTER TABLE orders ADD COLUMN extra int") + bind() + EXECUTE + SYNC)
    play.client(query("SELECT 1"))
    said = split(play.server(ERROR + READY + DONE + READY))
    assert [chr(frame[0]) for frame in said] == ["E", "Z", "C", "Z"]
    assert m.error_fields(said[0])["C"] == b"0A000"


def test_prepared_statements_are_prepared_anew_when_an_epoch_changes_their_text() -> None:
    play = Play()
    play.client(parse(UPDATE, "s1") + SYNC)
    play.server(PARSED + READY)
    play.hub.publish(routing(2))
    sent = play.client(bind("s1") + EXECUTE + SYNC)
    assert [chr(frame[0]) for frame in sent] == ["C", "P", "B", "E", "S"]
    assert "up_1_1" in text_of(sent[1])
    assert play.server(CLOSED + PARSED + BOUND + DONE + READY) == BOUND + DONE + READY
    assert [chr(frame[0]) for frame in play.client(bind("s1") + EXECUTE + SYNC)] == ["B", "E", "S"]
    play.server(BOUND + DONE + READY)
    play.hub.publish(Routing(epoch=3, epoch_id="e"))
    sent = play.client(bind("s1") + EXECUTE + SYNC)
    assert text_of(sent[1]) == UPDATE


def test_a_failed_parse_leaves_no_statement_behind() -> None:
    play = Play(routing())
    play.client(parse("SELEC", "s1") + SYNC)
    play.server(ERROR + READY)
    assert play.session.outbox.statements == {}
    play.client(parse("SELECT 1", "s1") + SYNC)
    play.server(PARSED + READY)
    assert play.session.outbox.statements[b"s1"].text == b"SELECT 1"


def test_parsing_a_taken_name_again_keeps_the_first_statement() -> None:
    play = Play(routing())
    play.client(parse("SELECT 1", "s1") + SYNC)
    play.server(PARSED + READY)
    play.client(parse("SELECT 2", "s1") + SYNC)
    play.server(ERROR + READY)
    assert play.session.outbox.statements[b"s1"].text == b"SELECT 1"


@pytest.mark.parametrize("text", ["DEALLOCATE s1", "DEALLOCATE ALL", "discard all", 'deallocate "s1"'])
def test_sql_deallocate_is_followed(text: str) -> None:
    play = Play(routing())
    play.client(parse("SELECT 1", "s1") + SYNC)
    play.server(PARSED + READY)
    play.client(query(text))
    assert b"s1" not in play.session.outbox.statements


def test_an_epoch_is_left_only_when_its_last_batch_was_answered() -> None:
    play = Play(routing(1))
    play.client(query("SELECT 1"))
    play.client(query("SELECT 2"))
    play.hub.publish(routing(2))
    assert not play.hub.quiet()
    play.server(DONE + READY)
    assert not play.hub.quiet()
    play.server(DONE + READY)
    assert play.hub.quiet()


def test_a_vanished_client_keeps_its_epoch_until_the_server_answered() -> None:
    play = Play(routing(1))
    play.client(query(UPDATE))
    play.hub.publish(routing(2))
    play.session.abandon()
    assert not play.hub.quiet()
    play.server(ERROR + READY + READY)
    assert play.hub.quiet()
    assert not play.session.flights


def test_a_flip_reaches_later_parses_only() -> None:
    play = Play(routing(1), version="auto")
    play.client(parse("SELECT status FROM orders", "s1") + SYNC)
    play.server(PARSED + READY)
    play.hub.publish(routing(1, revision=2, phase="cutover", auto="new", percent=100))
    assert [chr(f[0]) for f in play.client(bind("s1") + EXECUTE + SYNC)] == ["B", "E", "S"]
    play.server(BOUND + DONE + READY)
    (sent,) = play.client(query("SELECT state FROM orders"))
    assert "_dualwire_new_state" in text_of(sent)


def test_a_flip_waits_for_the_end_of_the_transaction() -> None:
    play = Play(routing(1), version="auto")
    play.client(query("BEGIN"))
    play.server(DONE + IN_TRANSACTION)
    play.hub.publish(routing(1, revision=2, phase="cutover", auto="new", percent=100))
    assert [text_of(f) for f in play.client(query("SELECT status FROM orders"))] == [
        "SELECT status FROM orders"
    ]
    play.server(DONE + IN_TRANSACTION)
    play.client(query("COMMIT"))
    play.server(DONE + READY)
    (sent,) = play.client(query("SELECT state FROM orders"))
    assert "_dualwire_new_state" in text_of(sent)


def test_a_prepared_statement_of_a_retired_version_says_so_as_postgresql_does() -> None:
    play = Play(routing(1), version="auto")
    play.client(parse("SELECT status FROM orders", "s1") + SYNC)
    play.server(PARSED + READY)
    play.hub.publish(routing(2, phase="closed", serves_old=False, auto="new", percent=100))
    play.client(bind("s1") + EXECUTE + SYNC)
    fields = m.error_fields(split(play.server(ERROR + READY))[0])
    assert fields["M"] == b"cached plan must not change result type"
    assert fields["R"] == b"RevalidateCachedQuery"


# -- the hold ------------------------------------------------------------------------------------------------------

HOLD = Hold(7, ("public.orders",), 2.0)


def test_a_hold_parks_statements_on_its_tables_only_and_release_sends_them() -> None:
    play = Play(routing(1))
    play.hub.publish(routing(2, hold=HOLD))
    assert play.client(query(UPDATE)) == []
    assert play.hub.try_held(7)
    play.hub.publish(routing(3))
    (sent,) = play.heard(Target.PRIMARY)
    assert "up_1_1" in text_of(sent)


def test_other_tables_are_not_held() -> None:
    play = Play(routing(2, hold=HOLD))
    assert len(play.client(query("SELECT 1 FROM customers"))) == 1


def test_a_transaction_that_touched_the_table_goes_on_and_keeps_the_hold_from_being_held() -> None:
    play = Play(routing(1))
    play.client(query("BEGIN"))
    play.server(DONE + IN_TRANSACTION)
    play.client(query(UPDATE))
    play.server(DONE + IN_TRANSACTION)
    play.hub.publish(routing(2, hold=HOLD))
    assert len(play.client(query(UPDATE))) == 1
    assert not play.hub.try_held(7)
    play.server(DONE + IN_TRANSACTION)
    play.client(query("COMMIT"))
    play.server(DONE + READY)
    assert play.hub.try_held(7)


def test_once_held_even_a_transaction_is_parked_before_its_first_touch() -> None:
    play = Play(routing(2, hold=HOLD))
    play.client(query("BEGIN"))
    play.server(DONE + IN_TRANSACTION)
    assert play.hub.try_held(7)
    assert play.client(query(UPDATE)) == []


def test_a_client_that_vanishes_while_parked_is_forgotten() -> None:
    play = Play(routing(2, hold=HOLD))
    play.client(query(UPDATE))
    play.session.close()
    assert play.hub.parked == 0
    assert play.stats.parked == 0


# -- reads -----------------------------------------------------------------------------------------------------------


def _reading(covered: int = 5) -> Play:
    play = Play()
    play.reads.enabled = True
    play.reads.covered = covered
    return play


def test_a_proved_read_goes_to_the_replica_and_a_write_to_the_primary() -> None:
    play = _reading()
    assert play.client(query("SELECT 1")) == []
    assert play.heard(Target.REPLICA) == [query("SELECT 1")]
    play.server(DONE + READY, target=Target.REPLICA)
    assert len(play.client(query("SELECT nextval('s')"))) == 1


def test_after_a_write_reads_stay_on_the_primary_until_a_later_sample_is_replayed() -> None:
    play = _reading(covered=5)
    play.reads.sent = 9
    play.client(query("INSERT INTO t VALUES (1)"))
    play.server(DONE + READY)
    assert len(play.client(query("SELECT 1"))) == 1
    assert play.reads.requests == 0
    play.server(DONE + READY)
    assert play.reads.requests == 1
    play.reads.covered = 9
    assert len(play.client(query("SELECT 1"))) == 1
    play.server(DONE + READY)
    play.reads.covered = 10
    assert play.client(query("SELECT 1")) == []


def test_a_write_waits_for_replies_that_are_under_way_from_the_replica() -> None:
    play = _reading()
    play.client(query("SELECT 1"))
    assert play.client(query("DELETE FROM t")) == []
    assert play.server(DONE + READY, target=Target.REPLICA) == DONE + READY
    assert play.heard(Target.PRIMARY) == [query("DELETE FROM t")]


def test_reads_inside_a_transaction_go_to_the_primary() -> None:
    play = _reading()
    play.client(query("BEGIN"))
    play.server(DONE + IN_TRANSACTION)
    assert len(play.client(query("SELECT 1"))) == 1


def test_a_statement_prepared_on_one_server_is_prepared_on_the_other_when_needed() -> None:
    play = _reading()
    play.client(parse("SELECT 1", "s1") + SYNC)
    play.server(PARSED + READY)
    assert play.client(bind("s1") + EXECUTE + SYNC) == []
    assert [chr(frame[0]) for frame in play.heard(Target.REPLICA)] == ["P", "B", "E", "S"]
    assert play.server(PARSED + BOUND + DONE + READY, target=Target.REPLICA) == BOUND + DONE + READY


def test_settings_are_kept_for_the_replica_and_a_rolled_back_one_is_forgotten() -> None:
    play = _reading()
    play.client(query("SET work_mem = '1MB'"))
    play.server(DONE + READY)
    assert list(play.session.settings.applied) == ["work_mem"]
    play.client(query("BEGIN"))
    play.server(DONE + IN_TRANSACTION)
    play.client(query("SET work_mem = '2MB'"))
    play.server(DONE + IN_TRANSACTION)
    play.client(query("ROLLBACK"))
    play.server(DONE + READY)
    assert play.session.settings.applied == {"work_mem": "SET work_mem = '1MB'"}
    assert play.session.settings.portable


def test_what_a_committed_transaction_has_set_is_kept_for_the_replica() -> None:
    play = _reading()
    play.client(query("BEGIN"))
    play.server(DONE + IN_TRANSACTION)
    play.client(query("SET work_mem = '2MB'"))
    play.server(DONE + IN_TRANSACTION)
    assert play.session.settings.applied == {}
    play.client(query("COMMIT"))
    play.server(DONE + READY)
    assert play.session.settings.applied == {"work_mem": "SET work_mem = '2MB'"}
    assert play.session.settings.portable


def test_a_setting_before_a_return_to_a_savepoint_is_not_known() -> None:
    play = _reading()
    for text in ("BEGIN", "SAVEPOINT a", "SET work_mem = '2MB'", "ROLLBACK TO a"):
        play.client(query(text))
        play.server(DONE + IN_TRANSACTION)
    play.client(query("COMMIT"))
    play.server(DONE + READY)
    assert play.session.settings.unknown


def test_the_reset_of_a_drivers_pool_keeps_the_session_fit_for_replicas() -> None:
    play = _reading()
    play.client(query("SET work_mem = '1MB'"))
    play.server(DONE + READY)
    play.client(
        query(
            "SELECT pg_advisory_unlock_all(); CLOSE ALL;"
            " DO $$ BEGIN PERFORM 1 FROM pg_listening_channels(); IF FOUND THEN UNLISTEN *; END IF; END; $$; RESET ALL;"
        )
    )
    play.server(DONE + DONE + DONE + DONE + READY)
    assert play.session.settings.applied == {}
    assert play.session.settings.portable


@pytest.mark.parametrize(
    "text",
    [
        "SELECT set_config('work_mem', '1' || 'MB', false)",
        "SET work_mem = '1MB'; BEGIN; SET work_mem = '2MB'; ROLLBACK",
        "RESET ALL; SELECT set_config('work_mem', '1' || 'MB', false)",
        "DO $$ BEGIN SET ROLE nobody; END $$; RESET ALL",
    ],
)
def test_settings_that_cannot_be_followed_keep_a_session_on_the_primary(text: str) -> None:
    play = _reading()
    play.client(query(text))
    play.server(DONE + READY)
    assert not play.session.settings.portable


def test_a_set_config_with_constants_is_followed_like_a_set() -> None:
    play = _reading()
    play.client(query("SELECT set_config('TimeZone', 'UTC', false)"))
    play.server(DONE + READY)
    assert play.session.settings.applied == {"timezone": "SELECT set_config('TimeZone', 'UTC', false)"}
    assert play.session.settings.portable


# -- COPY and other protocol corners ---------------------------------------------------------------------------------

COPY_IN = m.frame(m.COPY_IN_RESPONSE, b"\0\0\0")
DATA = m.frame(m.COPY_DATA, b"1\n")
COPY_DONE = m.frame(m.COPY_DONE, b"")


def test_a_sync_sent_before_and_one_after_an_extended_copy_stay_in_step() -> None:
    play = Play()
    play.client(parse("COPY t FROM STDIN") + bind() + EXECUTE + SYNC)
    play.server(PARSED + BOUND + COPY_IN)
    play.client(DATA + DATA + COPY_DONE + SYNC)
    assert play.server(DONE + READY) == DONE + READY
    assert not play.session.flights
    play.client(query("SELECT 1"))
    assert play.server(DONE + READY) == DONE + READY


def test_copy_data_after_an_error_is_harmless() -> None:
    play = Play()
    play.client(query("COPY t FROM STDIN"))
    play.server(COPY_IN)
    play.client(DATA)
    play.server(ERROR + READY)
    assert play.client(DATA + COPY_DONE) == []
    assert play.client(query("SELECT 1")) == [query("SELECT 1")]


def test_a_query_in_the_middle_of_an_extended_batch_keeps_its_reply() -> None:
    play = Play(routing())
    play.client(parse("SELECT 1", "s1") + query("SELECT 2"))
    assert play.server(PARSED + DONE + READY) == PARSED + DONE + READY
    assert not play.session.flights


@given(st.data())
def test_a_script_split_anywhere_sends_the_same_bytes(data: st.DataObject) -> None:
    script = (
        query("SELECT 1")
        + parse(UPDATE, "s1")
        + m.FLUSH_FRAME
        + bind("s1")
        + EXECUTE
        + SYNC
        + query("BEGIN; " + UPDATE)
    )
    whole = Play(routing())
    whole.client(script)
    cut = Play(routing())
    places = sorted(data.draw(st.lists(st.integers(1, len(script) - 1), max_size=6)))
    sent: list[bytes] = []
    last = 0
    for place in [*places, len(script)]:
        sent += cut.client(script[last:place])
        last = place
    again = Play(routing())
    assert sent == again.client(script)


@given(st.binary(max_size=300))
def test_random_bytes_end_in_a_protocol_violation_or_wait_for_more(data: bytes) -> None:
    play = Play(routing())
    try:
        play.session.feed(data)
    except m.ProtocolViolation:
        return
    play.session.close()
    assert play.hub.quiet()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ('"$user", public', ("ann", "public")),
        ('a, "B c", "d""e"', ("a", "B c", 'd"e')),
        ("", ()),
        ("Sales,public", ("sales", "public")),
    ],
)
def test_search_paths_are_read_as_postgresql_prints_them(value: str, path: tuple[str, ...]) -> None:
    assert parse_search_path(value, "ann") == path
