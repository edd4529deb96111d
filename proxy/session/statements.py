"""Prepared statements of one session, and what each server connection knows of them.

A prepared statement belongs to the version that its client spoke when it was parsed (DESIGN: a flip reaches later
Parses only). What was prepared on a server under an earlier epoch may be outdated: before each Bind the text that the
current epoch wants is compared with the text that the server connection has, and re-prepared where they differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import final

from proxy.session.blank import BLANK
from proxy.session.harmless import harmless
from proxy.wire import messages as m

_DEALLOCATE = re.compile(
    BLANK
    + rb"""(?:DEALLOCATE\s+(?:PREPARE\s+)?(?:(?P<all>ALL)\b|"(?P<quoted>(?:[^"]|"")+)"|(?P<name>\w+))
        |(?P<discard>DISCARD\s+ALL)\b)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


Sent = tuple[bytes, tuple[int, ...]]
"""A statement's text and the parameter types declared with it."""


@final
class Statement:
    """One prepared statement as its client knows it. Decodes its Parse frame only when somebody needs the text."""

    __slots__ = (
        "_frame",
        "_harmless",
        "_parts",
        "changed",
        "told",
        "told_as",
        "version",
        "wire_name",
        "wire_scope",
    )

    def __init__(self, frame: bytes, version: str) -> None:
        self._frame = frame
        self._parts: tuple[bytes, bytes, tuple[int, ...]] | None = None
        self._harmless = -1
        self.version = version
        self.told: bytes | None = None
        """The RowDescription or NoData frame that a Describe of the statement was answered with."""
        self.told_as = b""
        """The name on shared servers that the description was given for."""
        self.changed = False
        """What it gives is not what the client was told any more."""
        self.wire_scope: tuple[str, ...] = ()
        """Under what it got its name on shared servers, see ``SessionSettings.scope``."""
        self.wire_name = b""
        """The name of the client's own text on shared servers, once it was asked for."""

    def _read(self) -> tuple[bytes, bytes, tuple[int, ...]]:
        if self._parts is None:
            self._parts = m.read_parse(self._frame)
        return self._parts

    @property
    def frame(self) -> bytes:
        """The client's own Parse message."""
        return self._frame

    @property
    def text(self) -> bytes:
        """The client's text."""
        return self._read()[1]

    @property
    def sent(self) -> Sent:
        """Text and types, as the client gave them."""
        _, text, oids = self._parts or self._read()
        return text, oids

    @property
    def harmless(self) -> bool:
        """Whether running it leaves nothing behind in its session, see ``proxy.session.harmless``."""
        if self._harmless < 0:
            self._harmless = harmless(self.text)
        return self._harmless > 0

    def hear(self, description: bytes) -> None:
        """A Describe was answered."""
        self.told = description
        self.told_as = self.wire_name

    @property
    def oids(self) -> tuple[int, ...]:
        """Parameter types that the client declared."""
        return self._read()[2]


@final
class Prepared:
    """What one server connection has prepared: statement name to the text and the types that were sent there."""

    __slots__ = ("rewritten", "texts", "unproved")

    def __init__(self) -> None:
        self.texts: dict[bytes, Sent] = {}
        self.rewritten: set[bytes] = set()
        """Names whose text differs from the client's, or is in doubt: while there are any, no batch may pass unseen."""
        self.unproved: dict[bytes, int] = {}
        """Names that were prepared behind the client's back, by a batch that may fail before: the batch's number."""

    def put(self, name: bytes, sent: Sent, rewritten: bool) -> None:
        """The connection is about to get this statement."""
        self.texts[name] = sent
        if rewritten:
            self.rewritten.add(name)
        else:
            self.rewritten.discard(name)

    def undo(self, name: bytes) -> Callable[[], None]:
        """What brings back what the connection has under this name now, should the server discard what follows."""
        sent, rewritten = self.texts.get(name), name in self.rewritten

        def back() -> None:
            if sent is None:
                self.drop(name)
            else:
                self.put(name, sent, rewritten)

        return back

    def prove(self, name: bytes, rewritten: bool, completion: bytes) -> None:
        """What was prepared behind the client's back is there."""
        if self.unproved.pop(name, None) is not None and not rewritten:
            self.rewritten.discard(name)

    def lack(self, name: bytes) -> None:
        """The client has given this statement to another connection, and this one has not got it."""
        self.texts.pop(name, None)
        self.rewritten.add(name)

    def used(self, name: bytes) -> None:
        """The statement is used again: it is the last to be dropped."""
        self.texts[name] = self.texts.pop(name)

    def eldest(self, keep: int) -> bytes | None:
        """The named statement that was not used for longest, if there are more than ``keep``."""
        if len(self.texts) <= keep:
            return None
        return next((name for name in self.texts if name), None)

    def distrust(self, name: bytes) -> None:
        """What the connection has under this name can no longer be used as it is: it is closed and prepared anew."""
        if name in self.texts:
            self.put(name, (b"", (0,)), True)

    def drop(self, name: bytes) -> None:
        """The connection has this statement no longer (or never got it)."""
        self.texts.pop(name, None)
        self.rewritten.discard(name)
        self.unproved.pop(name, None)

    def clear(self) -> None:
        """The connection has no statement any more."""
        self.texts.clear()
        self.rewritten.clear()
        self.unproved.clear()


def deallocated(text: bytes) -> bytes | None:
    """The statement name that an SQL DEALLOCATE or DISCARD drops: ``b""`` for all of them, None for neither."""
    match = _DEALLOCATE.match(text)
    if match is None:
        return None
    if match["all"] or match["discard"]:
        return b""
    if match["quoted"]:
        return bytes(match["quoted"]).replace(b'""', b'"')
    return bytes(match["name"]).lower()
