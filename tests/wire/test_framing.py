"""Cutting streams into messages: the pieces in which bytes arrive never matter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import messages as m
from proxy.wire.framing import Framer
from proxy.wire.messages import ProtocolViolation

frames = st.lists(
    st.builds(m.frame, st.sampled_from(sorted(m.FRONTEND_TYPES)), st.binary(max_size=40)), max_size=8
)


@given(frames, st.lists(st.integers(min_value=0, max_value=400), max_size=12))
def test_any_split_of_a_stream_gives_the_same_frames(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(messages)
    framer, found, last = Framer(), [], 0
    for cut in [*sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]:
        found += list(framer.feed(stream[last:cut]))
        last = cut
    assert found == messages
    assert framer.buffered == 0


@given(st.binary(max_size=200))
def test_random_bytes_give_frames_or_a_protocol_violation(data: bytes) -> None:
    framer = Framer()
    try:
        for frame in framer.feed(data):
            assert frame[0] in m.FRONTEND_TYPES
            assert len(frame) == int.from_bytes(frame[1:5], "big") + 1
    except ProtocolViolation:
        pass


def test_an_unknown_type_is_refused_before_its_announced_length_is_awaited() -> None:
    with pytest.raises(ProtocolViolation, match="invalid frontend message type"):
        list(Framer().feed(b"\x16\x03\x01\x02\x00\x01"))


@pytest.mark.parametrize("length", [0, 3, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(ProtocolViolation, match="invalid message length"):
        list(Framer().feed(b"Q" + length.to_bytes(4, "big")))
