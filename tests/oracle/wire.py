"""A client's connection and what it hears, as values in which two servers can be compared.

An answer is a list of ``Heard``: the type of the message and its content, decoded. OIDs stay numbers here; ``compare``
knows which of them differ between databases.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from tests.conformance.proto import Connection, Message, report

PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Heard:
    """One message."""

    kind: str
    content: Any = None

    def __repr__(self) -> str:
        return f"{self.kind} {self.content!r}" if self.content is not None else self.kind


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a RowDescription."""

    name: str
    table: int
    attribute: int
    type: int
    size: int
    modifier: int
    format: int


class Lost(Exception):
    """The connection ended, or said nothing for too long."""


class Client:
    """One connection."""

    def __init__(self, dsn: str, options: str = "") -> None:
        self._connection = Connection(dsn, "oracle", options)

    def ask(self, frames: bytes, text: str = "") -> list[Heard]:
        """Sends, and hears everything up to ReadyForQuery."""
        self._connection.send(frames)
        heard: list[Heard] = []
        while True:
            message = self._connection.receive(PATIENCE)
            if message.kind == 0:
                raise Lost(f"{'silence' if message.body else 'the connection ended'} after {heard[-3:]!r}")
            if message.kind == ord("S"):
                continue
            heard.append(decoded(message))
            if message.kind == ord("Z"):
                return heard

    def close(self) -> None:
        """Says goodbye."""
        self._connection.send(b"X\0\0\0\4")
        self._connection.close()


def decoded(message: Message) -> Heard:
    """A message's content."""
    kind, body = chr(message.kind), message.body
    if kind in "EN":
        return Heard(kind, dict(report(body)))
    if kind == "C":
        return Heard(kind, body[:-1].decode())
    if kind == "Z":
        return Heard(kind, body.decode())
    if kind == "T":
        return Heard(kind, tuple(_fields(body)))
    if kind == "D":
        return Heard(kind, _values(body))
    if kind == "t":
        count = struct.unpack_from(">h", body)[0]
        return Heard(kind, struct.unpack_from(f">{count}I", body, 2))
    if kind in "GHd":
        return Heard(kind, body)
    return Heard(kind, body or None)


def _fields(body: bytes) -> list[Field]:
    (count,) = struct.unpack_from(">h", body)
    at, found = 2, []
    for _ in range(count):
        end = body.index(b"\0", at)
        found.append(Field(body[at:end].decode(), *struct.unpack_from(">IhIhih", body, end + 1)))
        at = end + 19
    return found


def _values(body: bytes) -> tuple[bytes | None, ...]:
    (count,) = struct.unpack_from(">h", body)
    at = 2
    found: list[bytes | None] = []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", body, at)
        at += 4
        if length < 0:
            found.append(None)
        else:
            found.append(body[at : at + length])
            at += length
    return tuple(found)


def rows(heard: list[Heard]) -> list[tuple[str | None, ...]]:
    """The rows of an answer, as texts."""
    return [tuple(None if v is None else v.decode() for v in h.content) for h in heard if h.kind == "D"]


def error(heard: list[Heard]) -> dict[str, str] | None:
    """The first error of an answer."""
    return next((h.content for h in heard if h.kind == "E"), None)
