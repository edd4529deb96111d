"""SCRAM in both roles; the real peers are drivers and servers in tests/server."""

from __future__ import annotations

import pytest

from proxy.wire import messages as m
from proxy.wire.scram import AuthenticationFailed, ClientExchange, ServerExchange, Verifier

OFFER = b"SCRAM-SHA-256\0\0"


def _login(verifier: Verifier, password: str) -> bool:
    server, client = ServerExchange(verifier), ClientExchange(password)
    challenge = server.respond(client.first(OFFER))
    outcome = server.respond(client.final(challenge[9:]))
    client.verify(outcome[9:])
    return server.done


def test_the_right_password_logs_in_and_the_verifier_survives_its_text_form() -> None:
    verifier = Verifier.from_password("sécret")
    assert Verifier.parse(str(verifier)) == verifier
    assert _login(verifier, "sécret")


def test_a_wrong_password_fails() -> None:
    with pytest.raises(AuthenticationFailed):
        _login(Verifier.from_password("right"), "wrong")


def test_nothing_matches_the_verifier_of_an_unknown_user() -> None:
    with pytest.raises(AuthenticationFailed):
        _login(Verifier.decoy("nobody", b"key"), "")
    assert Verifier.decoy("nobody", b"key").salt == Verifier.decoy("nobody", b"key").salt


def test_a_server_that_does_not_know_the_verifier_is_found_out() -> None:
    server, client = ServerExchange(Verifier.from_password("one")), ClientExchange("one")
    client.final(server.respond(client.first(OFFER))[9:])
    with pytest.raises(AuthenticationFailed, match="identity"):
        client.verify(b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        b"SCRAM-SHA-256\0\0\0\0\x05abcde",
        b"SCRAM-SHA-1\0\0\0\0\0",
        b"SCRAM-SHA-256\0\xff\xff\xff\xffn,,n=,r=",
    ],
)
def test_malformed_first_messages_fail_cleanly(payload: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        ServerExchange(Verifier.from_password("x")).respond(m.frame(m.PASSWORD, payload))


@pytest.mark.parametrize(
    "text", ["", "md5abc", "SCRAM-SHA-256$4096:!$a:b", "SCRAM-SHA-256$4096:YWJj$YQ==:YQ=="]
)
def test_what_is_no_verifier_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="verifier"):
        Verifier.parse(text)
