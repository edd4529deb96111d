"""SCRAM-SHA-256 in PostgreSQL's framing, both roles; the arithmetic is scramp's.

Contract: each class is fed the peer's SASL payloads and gives the payloads to send; any malformed or wrong input
raises :class:`AuthenticationFailed`, never anything else, and no peer can make us compute for longer than
``MAX_ITERATIONS`` allows. The verifier format is PostgreSQL's
(``SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>``, RFC 5803 in spirit). Channel binding is not offered: it
would come in as another mechanism in :meth:`ServerExchange.request` and :meth:`ClientExchange.first`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass

from scramp import ScramClient, ScramException, ScramMechanism

from proxy.wire.messages import AUTHENTICATION, PASSWORD, ProtocolViolation, cstring, frame

MECHANISM = "SCRAM-SHA-256"
MIN_ITERATIONS = 4096
"""PostgreSQL's default, RFC 7677's minimum."""
MAX_ITERATIONS = 1_000_000
"""Some tenths of a second of one core: what a server, or a users file, may ask for at most."""
_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d{1,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_ITERATIONS = re.compile(r",i=([^,]*)")
_FIRST = re.compile(r"([^,]*,[^,]*,)n=[^,]*(,.*)", re.DOTALL)
_SERVER_MECHANISM = ScramMechanism(MECHANISM)


class AuthenticationFailed(Exception):
    """The peer could not prove that it knows the secret, or did not follow the exchange."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server stores of a password."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """A verifier from PostgreSQL's text form; ValueError if it is none."""
        match = _VERIFIER.fullmatch(text)
        if match is None:
            raise ValueError("not a SCRAM-SHA-256 verifier")
        try:
            salt, stored, server = (base64.b64decode(part, validate=True) for part in match.groups()[1:])
        except binascii.Error as exc:
            raise ValueError("not a SCRAM-SHA-256 verifier: invalid base64") from exc
        if len(stored) != 32 or len(server) != 32 or not salt:
            raise ValueError("not a SCRAM-SHA-256 verifier: wrong key length")
        iterations = int(match.group(1))
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise ValueError(
                f"not a SCRAM-SHA-256 verifier that can be used: {iterations} iterations, "
                f"not {MIN_ITERATIONS} to {MAX_ITERATIONS}"
            )
        return cls(iterations, salt, stored, server)

    @classmethod
    def from_password(cls, password: str) -> Verifier:
        """A fresh verifier for a clear-text password (4096 iterations, as PostgreSQL's default)."""
        salt, stored, server, iterations = _SERVER_MECHANISM.make_auth_info(password, iteration_count=4096)
        return cls(iterations, salt, stored, server)

    @classmethod
    def decoy(cls, user: str, key: bytes) -> Verifier:
        """A verifier that nothing matches, the same for the same user, so that unknown users look like known ones."""
        salt = hashlib.sha256(key + user.encode()).digest()[:16]
        return cls(4096, salt, os.urandom(32), os.urandom(32))

    def __str__(self) -> str:
        salt, stored, server = (
            base64.b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key)
        )
        return f"{MECHANISM}${self.iterations}:{salt}${stored}:{server}"


class ServerExchange:
    """The server's role: authenticates one client against a verifier."""

    def __init__(self, verifier: Verifier) -> None:
        self._scram = _SERVER_MECHANISM.make_server(
            lambda _user: (verifier.salt, verifier.stored_key, verifier.server_key, verifier.iterations)
        )
        self._started = False
        self.done = False

    @staticmethod
    def request() -> bytes:
        """AuthenticationSASL: the mechanisms that we offer."""
        return frame(AUTHENTICATION, b"\0\0\0\x0a" + MECHANISM.encode() + b"\0\0")

    def respond(self, message: bytes) -> bytes:
        """The answer to one SASLInitialResponse or SASLResponse frame; ``done`` is set after the last."""
        if message[0] != PASSWORD:
            raise AuthenticationFailed("expected a SASL response")
        try:
            if not self._started:
                self._started = True
                mechanism, after = cstring(message, 5)
                if mechanism != MECHANISM.encode():
                    raise AuthenticationFailed("client selected an invalid SASL authentication mechanism")
                length = int.from_bytes(message[after : after + 4], "big", signed=True)
                payload = message[after + 4 :]
                if length != len(payload):
                    raise AuthenticationFailed("malformed SASL message")
                self._client_first(payload.decode())
                return frame(AUTHENTICATION, b"\0\0\0\x0b" + self._scram.get_server_first().encode())
            self._scram.set_client_final(message[5:].decode())
            final = self._scram.get_server_final()
        except AuthenticationFailed:
            raise
        except (ScramException, ProtocolViolation, ValueError, KeyError, IndexError) as exc:
            raise AuthenticationFailed(str(exc) or type(exc).__name__) from exc
        self.done = True
        return frame(AUTHENTICATION, b"\0\0\0\x0c" + final.encode())

    def _client_first(self, text: str) -> None:
        """Hand the first message to scramp.

        libpq and most drivers leave the user name empty (``n=``), since the startup packet has said it, and
        PostgreSQL ignores it; scramp insists on a name. It gets a placeholder, and then the message as the client
        sent it, because both sides' signatures cover it.
        """
        match = _FIRST.fullmatch(text)
        if match is None:
            raise AuthenticationFailed("malformed SCRAM message")
        header, rest = match.groups()
        self._scram.set_client_first(f"{header}n=*{rest}")
        self._scram.client_first_bare = text.removeprefix(header)


class ClientExchange:
    """The client's role: logs in to a server that knows the verifier."""

    def __init__(self, password: str) -> None:
        try:
            self._scram = ScramClient([MECHANISM], "dualwire", password)
        except ScramException as exc:
            raise AuthenticationFailed(str(exc)) from exc
        self.done = False
        """The server has proved that it knows the verifier."""

    def first(self, offered: bytes) -> bytes:
        """SASLInitialResponse for an AuthenticationSASL body's list of mechanisms."""
        if MECHANISM.encode() not in offered.split(b"\0"):
            raise AuthenticationFailed("the server offers no SASL mechanism that dualwire knows")
        payload = self._scram.get_client_first().encode()
        return frame(PASSWORD, MECHANISM.encode() + b"\0" + len(payload).to_bytes(4, "big") + payload)

    def final(self, challenge: bytes) -> bytes:
        """SASLResponse for an AuthenticationSASLContinue payload."""
        try:
            text = challenge.decode()
            match = _ITERATIONS.search(text)
            # Before anything is computed: a number of any length would keep us busy for as long as it says.
            if match is None or not re.fullmatch(r"[1-9][0-9]{0,6}", match.group(1)):
                raise AuthenticationFailed("SCRAM exchange failed: the server's iteration count is not valid")
            if not MIN_ITERATIONS <= int(match.group(1)) <= MAX_ITERATIONS:
                raise AuthenticationFailed(
                    f"SCRAM exchange failed: the server asks for {match.group(1)} iterations, "
                    f"not {MIN_ITERATIONS} to {MAX_ITERATIONS}"
                )
            self._scram.set_server_first(text)
            return frame(PASSWORD, self._scram.get_client_final().encode())
        except (ScramException, ValueError) as exc:
            raise AuthenticationFailed(f"SCRAM exchange failed: {exc}") from exc

    def verify(self, outcome: bytes) -> None:
        """Check the server's signature in AuthenticationSASLFinal: only who knows the verifier can make it."""
        try:
            self._scram.set_server_final(outcome.decode())
        except (ScramException, ValueError) as exc:
            raise AuthenticationFailed(f"the server could not prove its identity: {exc}") from exc
        self.done = True


def md5_response(user: str, password: str, salt: bytes) -> bytes:
    """PasswordMessage for AuthenticationMD5Password."""
    inner = hashlib.md5(password.encode() + user.encode(), usedforsecurity=False).hexdigest()
    digest = hashlib.md5(inner.encode() + salt, usedforsecurity=False).hexdigest()
    return frame(PASSWORD, b"md5" + digest.encode() + b"\0")
