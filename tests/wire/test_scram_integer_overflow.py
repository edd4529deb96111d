"""Numbers that a hostile peer puts into a SCRAM exchange: lengths and iteration counts never overflow, hang or crash.

Proxies have read a negative or huge length as an offset, and have computed for hours because a server said so.
"""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import messages as m
from proxy.wire.scram import MAX_ITERATIONS, AuthenticationFailed, ClientExchange, ServerExchange, Verifier

OFFER = b"SCRAM-SHA-256\0\0"
VERIFIER = Verifier.from_password("s3cret")
LENGTHS = [-1, -(2**31), 2**31 - 1, 0, 1, 4, 0xFFFF, 0x10000]


def _challenge(client: ClientExchange, iterations: str) -> bytes:
    first = client.first(OFFER)
    nonce = first.partition(b",r=")[2]
    salt = base64.b64encode(b"0123456789abcdef")
    return b"r=" + nonce + b"server,s=" + salt + b",i=" + iterations.encode()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("payload", [b"", b"n,,n=,r=abc", b"n,,n=,r=" + b"a" * 5000])
def test_the_length_of_a_first_message_is_never_believed(length: int, payload: bytes) -> None:
    length += length == len(payload)
    body = b"SCRAM-SHA-256\0" + (length & 0xFFFFFFFF).to_bytes(4, "big") + payload
    with pytest.raises(AuthenticationFailed):
        ServerExchange(VERIFIER).respond(m.frame(m.PASSWORD, body))


@pytest.mark.parametrize(
    "iterations",
    [
        "2147483647", "2147483648", "4294967295", "4294967296", "4294971392", "9223372036854775808",
        "99999999999999999999999999", "9" * 5000, str(MAX_ITERATIONS + 1), "-1", "-2147483648", "0", "1", "00004096",
        "4096x", "٤٠٩٦", "", "4_096", " 4096", "1e6", "0x1000",
    ],
)  # fmt: skip
def test_an_iteration_count_out_of_bounds_is_refused_before_anything_is_computed(iterations: str) -> None:
    client = ClientExchange("s3cret")
    with pytest.raises(AuthenticationFailed, match="iteration"):
        client.final(_challenge(client, iterations))


def test_a_second_iteration_count_does_not_replace_the_one_that_was_checked() -> None:
    client = ClientExchange("s3cret")
    with pytest.raises(AuthenticationFailed):
        client.final(_challenge(client, "4096,i=2147483647"))


def test_an_iteration_count_within_bounds_is_served() -> None:
    client = ClientExchange("s3cret")
    assert client.final(_challenge(client, "4096"))[:1] == b"p"


@pytest.mark.parametrize("iterations", ["0", "1", "999999999", str(MAX_ITERATIONS + 1), "99999999999"])
def test_a_verifier_with_such_a_count_is_no_verifier(iterations: str) -> None:
    text = str(VERIFIER).replace("$4096:", f"${iterations}:")
    with pytest.raises(ValueError, match="verifier"):
        Verifier.parse(text)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_random_messages_of_a_client_fail_cleanly(first: bytes, second: bytes) -> None:
    server = ServerExchange(VERIFIER)
    for body in (first, b"SCRAM-SHA-256\0" + len(first).to_bytes(4, "big") + first):
        with pytest.raises(AuthenticationFailed):
            ServerExchange(VERIFIER).respond(m.frame(m.PASSWORD, body))
    payload = b"n,,n=,r=abcdefgh"
    server.respond(m.frame(m.PASSWORD, b"SCRAM-SHA-256\0" + len(payload).to_bytes(4, "big") + payload))
    with pytest.raises(AuthenticationFailed):
        server.respond(m.frame(m.PASSWORD, second))
    assert not server.done


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_random_messages_of_a_server_fail_cleanly(challenge: bytes, outcome: bytes) -> None:
    client = ClientExchange("s3cret")
    client.first(OFFER)
    with pytest.raises(AuthenticationFailed):
        client.final(challenge)
    with pytest.raises(AuthenticationFailed):
        client.verify(outcome)
    assert not client.done


def test_a_server_that_ends_the_exchange_early_is_found_out() -> None:
    client = ClientExchange("s3cret")
    client.first(OFFER)
    with pytest.raises(AuthenticationFailed, match="identity"):
        client.verify(b"v=" + base64.b64encode(b"\0" * 32))
