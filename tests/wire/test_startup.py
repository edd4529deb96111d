"""The first packet of a client, well-formed and not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import messages as m
from proxy.wire.messages import ProtocolViolation
from proxy.wire.startup import (
    MAX_STARTUP,
    CancelRequest,
    EncryptionRequest,
    Startup,
    StartupRefused,
    read_startup,
)


def _startup(data: bytes) -> Startup:
    found = read_startup(data)
    assert found is not None
    request, taken = found
    assert taken == len(data)
    assert isinstance(request, Startup)
    return request


def test_parameters_arrive_as_the_client_sent_them() -> None:
    request = _startup(m.startup({"user": "ann", "database": "shop", "application_name": "x y"}))
    assert request.parameters == {"user": "ann", "database": "shop", "application_name": "x y"}
    assert request.version is None


@pytest.mark.parametrize(
    ("options", "kept", "version"),
    [
        ("-c dualwire.version=0042_status", None, "0042_status"),
        ("-cdualwire.version=v2", None, "v2"),
        ("--dualwire.version=v2", None, "v2"),
        ("-c geqo=off -c dualwire.version=v2 -c work_mem=1MB", "-c geqo=off -c work_mem=1MB", "v2"),
        (r"-c search_path=a\ b", r"-c search_path=a\ b", None),
        (r"-c dualwire.version=my\ version", None, "my version"),
        ("-c geqo=off", "-c geqo=off", None),
    ],
)
def test_the_schema_version_is_taken_out_of_the_options(
    options: str, kept: str | None, version: str | None
) -> None:
    request = _startup(m.startup({"user": "ann", "options": options}))
    assert request.version == version
    assert request.parameters.get("options") == kept


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        (MAX_STARTUP + 1).to_bytes(4, "big") + b"\x00\x03\x00\x00",
        b"\x00\x00\x00\x04",
        b"\x00\x00\x00\x09\x00\x02\x00\x00\x00",
        b"\x00\x00\x00\x0a\x00\x03\x00\x00ab",
        b"\x00\x00\x00\x09\x00\x03\x00\x00\x00",
        m.startup({"user": "a"})[:-3] + b"\xff\x00\x00",
    ],
)
def test_garbage_is_a_protocol_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_startup(data)


@pytest.mark.parametrize(
    ("minor", "extra", "spoken", "negotiate"),
    [
        (0, {}, 0, False),
        (1, {}, 1, False),
        (2, {}, 2, False),
        (3, {}, 2, True),
        (9999, {}, 2, True),
        (0, {"_pq_.x": "1"}, 0, True),
        (2, {"_pq_.x": "1"}, 2, True),
    ],
)
def test_the_newest_version_that_both_know_is_spoken(
    minor: int, extra: dict[str, str], spoken: int, negotiate: bool
) -> None:
    request = _startup(m.startup({"user": "ann", **extra}, minor))
    assert (request.spoken, request.negotiate) == (spoken, negotiate)
    assert request.unknown_options == tuple(extra)
    assert request.parameters == {"user": "ann"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((word, "physical") for word in ("true", "TRUE", "t", "tr", "1", "on", "yes", "y", "YE")),
        *((word, "") for word in ("false", "f", "0", "off", "of", "no", "N")),
        ("database", "database"),
    ],
)
def test_replication_is_read_as_postgresql_reads_it(value: str, kind: str) -> None:
    request = _startup(m.startup({"user": "ann", "replication": value}))
    assert request.replication == kind
    assert "replication" not in request.parameters


@pytest.mark.parametrize("value", ["", "o", "DATABASE", "maybe", " on", "2", "truely"])
def test_another_value_of_replication_is_refused(value: str) -> None:
    with pytest.raises(StartupRefused) as refused:
        read_startup(m.startup({"user": "ann", "replication": value}))
    assert refused.value.sqlstate == "22023"


@pytest.mark.parametrize(
    ("version", "unknown"), [(0x30000, ()), (0x30002, (b"_pq_.a",)), (0x30001, (b"_pq_.a", b"_pq_.b"))]
)
def test_a_negotiated_version_can_be_read_back(version: int, unknown: tuple[bytes, ...]) -> None:
    message = m.negotiate_version(version & 0xFFFF, [name.decode() for name in unknown])
    assert m.read_negotiate_version(message) == (version, unknown)


@given(st.binary(max_size=64))
def test_random_first_bytes_never_raise_anything_else(data: bytes) -> None:
    try:
        found = read_startup(data)
    except ProtocolViolation:
        return
    assert found is None or found[1] <= len(data)


def test_requests_before_the_startup_packet() -> None:
    assert read_startup(bytes.fromhex("0000000804d2162f")) == (EncryptionRequest(gss=False), 8)
    assert read_startup(bytes.fromhex("0000000804d21630")) == (EncryptionRequest(gss=True), 8)
    assert read_startup(m.cancel_request(7, b"abcd")) == (CancelRequest(7, b"abcd"), 16)


@pytest.mark.parametrize("length", [1, 4, 32, 256])
def test_cancel_keys_have_any_length_up_to_256(length: int) -> None:
    packet = m.cancel_request(7, b"k" * length)
    assert read_startup(packet) == (CancelRequest(7, b"k" * length), len(packet))


@pytest.mark.parametrize("length", [0, 257])
def test_a_longer_cancel_key_or_none_is_no_request(length: int) -> None:
    with pytest.raises(StartupRefused) as refused:
        read_startup(m.cancel_request(7, b"k" * length))
    assert refused.value.answer == b""


def test_an_incomplete_packet_is_waited_for() -> None:
    packet = m.startup({"user": "ann"})
    for cut in range(len(packet)):
        assert read_startup(packet[:cut]) is None
