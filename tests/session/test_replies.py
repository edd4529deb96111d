"""The reply queue: every reply meets its request, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.session.replies import (
    PLAIN_BIND,
    PLAIN_DESCRIBE,
    PLAIN_EXECUTE,
    PLAIN_QUERY,
    PLAIN_SYNC,
    SKIPPED_PARSE,
    Desync,
    Mode,
    Reply,
    ReplyQueue,
)
from proxy.wire import messages as m

READY = m.ready_for_query(b"I")
PARSED, BOUND, CLOSED, NO_DATA = (m.frame(kind, b"") for kind in b"123n")
ROWS = m.frame(m.ROW_DESCRIPTION, b"\0\0")
ROW = m.frame(m.DATA_ROW, b"\0\1\0\0\0\1x")
DONE = m.frame(m.COMMAND_COMPLETE, b"SELECT 1\0")
ERROR = m.error_response("42601", "boom")
NOTICE = m.frame(m.NOTICE_RESPONSE, b"SNOTICE\0\0")
COPY_IN = m.frame(m.COPY_IN_RESPONSE, b"\0\0\0")


class Heard:
    """A handler that remembers."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def on_ready(self, status: int) -> None:
        self.events.append(("ready", chr(status)))

    def on_copy_in(self, simple: bool) -> int:
        self.events.append(("copy_in", simple))
        return 0 if simple else 1

    def on_error(self, message: bytes, quiet: bool) -> bytes | None:
        self.events.append("error")
        return None

    def on_skipped_ready(self, status: int) -> None:
        self.events.append("skipped ready")

    def on_parameter(self, name: str, value: str) -> None:
        self.events.append((name, value))

    def on_notification(self) -> None:
        self.events.append("notification")

    def on_skipped(self) -> None:
        self.events.append("skipped")


def _queue(*replies: Reply) -> tuple[ReplyQueue, Heard]:
    heard = Heard()
    queue = ReplyQueue(heard)
    for reply in replies:
        queue.expect(reply)
    return queue, heard


SCRIPT = [
    Reply(m.PARSE),
    SKIPPED_PARSE,
    PLAIN_BIND,
    PLAIN_DESCRIBE,
    PLAIN_EXECUTE,
    PLAIN_SYNC,
    PLAIN_QUERY,
    SKIPPED_PARSE,
    PLAIN_BIND,
    PLAIN_EXECUTE,
    PLAIN_SYNC,
]
REPLIES = [
    PARSED, PARSED, NOTICE, BOUND, ROWS, ROW, ROW, DONE, READY,
    ROWS, ROW, DONE, DONE, READY,
    PARSED, ERROR, READY,
]  # fmt: skip
SEEN = [
    PARSED, NOTICE, BOUND, ROWS, ROW, ROW, DONE, READY,
    ROWS, ROW, DONE, DONE, READY,
    ERROR, READY,
]  # fmt: skip


@given(st.lists(st.integers(min_value=1, max_value=len(b"".join(REPLIES)) - 1), max_size=20))
def test_skipped_replies_vanish_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    queue, heard = _queue(*SCRIPT)
    stream, last, got = b"".join(REPLIES), 0, b""
    for cut in [*sorted(cuts), len(stream)]:
        got += b"".join(queue.feed(stream[last:cut]))
        last = cut
    assert got == b"".join(SEEN)
    assert heard.events == [("ready", "I"), ("ready", "I"), "error", ("ready", "I")]
    assert len(queue) == 0


def test_a_chunk_of_plain_replies_is_forwarded_without_a_copy() -> None:
    queue, _ = _queue(PLAIN_QUERY)
    chunk = ROWS + ROW + DONE + READY
    assert queue.feed(chunk) == [chunk]
    assert queue.feed(b"") == []


def test_a_huge_row_is_passed_on_in_the_pieces_in_which_it_comes() -> None:
    queue, heard = _queue(PLAIN_QUERY)
    row = m.frame(m.DATA_ROW, b"x" * 1_000_000)
    got = [len(b"".join(queue.feed(row[at : at + 65536]))) for at in range(0, len(row), 65536)]
    assert got[0] == 65536
    assert sum(got) == len(row)
    assert queue.buffered == 0
    queue.feed(DONE + READY)
    assert heard.events == [("ready", "I")]


def test_an_error_discards_what_the_server_discards_and_undoes_it() -> None:
    undone: list[str] = []
    queue, _ = _queue(
        Reply(m.PARSE, undo=lambda: undone.append("first")),
        PLAIN_BIND,
        Reply(m.PARSE, undo=lambda: undone.append("second")),
        PLAIN_SYNC,
        PLAIN_QUERY,
    )
    assert b"".join(queue.feed(PARSED + ERROR + READY)) == PARSED + ERROR + READY
    assert undone == ["second"]
    assert len(queue) == 1


def test_a_refusal_replaces_the_error_that_was_provoked() -> None:
    ours = m.error_response("0A000", "refused", hint="do this")
    queue, heard = _queue(Reply(m.PARSE, Mode.REPLACE, payload=ours), PLAIN_BIND, PLAIN_SYNC)
    assert b"".join(queue.feed(ERROR + READY)) == ours + READY
    assert heard.events == ["error", ("ready", "I")]


def test_a_sync_that_the_server_swallows_during_copy_has_no_reply() -> None:
    queue, heard = _queue(PLAIN_BIND, PLAIN_EXECUTE, PLAIN_SYNC)
    queue.feed(BOUND + COPY_IN)
    assert heard.events == [("copy_in", False)]
    queue.expect(PLAIN_SYNC)
    queue.feed(DONE + READY)
    assert heard.events[-1] == ("ready", "I")
    assert len(queue) == 0


def test_copy_in_of_a_simple_query_keeps_its_reply() -> None:
    queue, heard = _queue(PLAIN_QUERY)
    queue.feed(COPY_IN + DONE + READY)
    assert heard.events == [("copy_in", True), ("ready", "I")]


def test_two_errors_in_one_pipeline_meet_their_own_syncs() -> None:
    queue, _ = _queue(
        PLAIN_BIND, PLAIN_EXECUTE, PLAIN_SYNC, PLAIN_BIND, PLAIN_EXECUTE, PLAIN_SYNC, PLAIN_QUERY
    )
    stream = ERROR + READY + BOUND + ERROR + READY + DONE + READY
    assert b"".join(queue.feed(stream)) == stream
    assert len(queue) == 0


@pytest.mark.parametrize("stream", [READY, PARSED + READY + READY])
def test_a_reply_without_a_request_is_a_desync(stream: bytes) -> None:
    queue, _ = _queue(Reply(m.PARSE), PLAIN_SYNC)
    with pytest.raises(Desync):
        queue.feed(stream)


def test_a_wrong_reply_to_a_precise_request_is_a_desync() -> None:
    queue, _ = _queue(PLAIN_BIND, PLAIN_SYNC)
    with pytest.raises(Desync):
        queue.feed(CLOSED)


def test_parameter_changes_are_heard_and_forwarded() -> None:
    queue, heard = _queue()
    status = m.parameter_status("search_path", "a, b")
    assert queue.feed(status) == [status]
    assert heard.events == [("search_path", "a, b")]
