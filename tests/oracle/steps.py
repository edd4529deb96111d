"""What a program is made of: messages of a client, as values that print as the code that makes them.

A program is a tuple of steps that one client takes, one after the other, each answered before the next begins.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TypeAlias

from proxy.wire import messages as m


@dataclass(frozen=True)
class Query:
    """A simple Query. ``ordered``: the order of the rows is settled by the text."""

    text: str
    ordered: bool = False

    def frames(self) -> bytes:
        """What the client sends."""
        return m.query(self.text.encode())


@dataclass(frozen=True)
class Call:
    """Parse, Describe, Bind and Execute, without the Sync; what is None or False is left out."""

    text: str | None = None
    """None: the statement of that name was parsed before."""
    values: tuple[str | bytes | None, ...] | None = ()
    """Texts, or bytes in the binary format; None: neither Bind nor Execute."""
    types: tuple[int, ...] = ()
    name: str = ""
    describe: str = ""
    """Any of S, P."""
    binary: bool = False
    """Results in the binary format."""
    rows: int = 0
    """Execute for at most so many, then again for the rest."""
    ordered: bool = False

    def frames(self) -> bytes:
        """What the client sends."""
        sent = b""
        name = self.name.encode()
        if self.text is not None:
            sent += m.parse(name, self.text.encode(), self.types)
        if "S" in self.describe:
            sent += m.frame(m.DESCRIBE, b"S" + name + b"\0")
        if self.values is not None:
            sent += self._bind(name)
            if "P" in self.describe:
                sent += m.frame(m.DESCRIBE, b"P\0")
            sent += m.frame(m.EXECUTE, b"\0" + struct.pack(">i", self.rows))
            if self.rows:
                sent += m.frame(m.EXECUTE, b"\0" + struct.pack(">i", 0))
        return sent

    def _bind(self, name: bytes) -> bytes:
        values = self.values or ()
        formats = [int(isinstance(value, bytes)) for value in values]
        body = b"\0" + name + b"\0" + struct.pack(f">h{len(formats)}h", len(formats), *formats)
        body += struct.pack(">h", len(values))
        for value in values:
            if value is None:
                body += struct.pack(">i", -1)
            else:
                data = value.encode() if isinstance(value, str) else value
                body += struct.pack(">i", len(data)) + data
        return m.frame(m.BIND, body + struct.pack(">hh", 1, int(self.binary)))


@dataclass(frozen=True)
class Batch:
    """Calls before one Sync: one is a plain extended query, several a pipeline."""

    calls: tuple[Call, ...]

    def frames(self) -> bytes:
        """What the client sends."""
        return b"".join(call.frames() for call in self.calls) + m.SYNC_FRAME


@dataclass(frozen=True)
class CopyIn:
    """COPY ... FROM STDIN by a simple Query, and its data."""

    text: str
    data: tuple[bytes, ...] = field(default=())
    fail: bool = False

    def frames(self) -> bytes:
        """What the client sends: the data follow without waiting."""
        sent = m.query(self.text.encode())
        for chunk in self.data:
            sent += m.frame(m.COPY_DATA, chunk)
        return sent + (m.frame(m.COPY_FAIL, b"enough\0") if self.fail else m.frame(m.COPY_DONE, b""))


Step: TypeAlias = "Query | Batch | CopyIn"


@dataclass(frozen=True)
class Program:
    """What one client does."""

    speaker: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [f"Program({self.speaker!r}, ("]
        return "\n".join([*lines, *(f"    {step!r}," for step in self.steps), "))"])


@dataclass(frozen=True)
class Mixed:
    """What several clients do in turns: speakers of both versions, and one of the old shape past the sidecar."""

    turns: tuple[tuple[str, Step], ...]
    """(old, new or past; step)."""

    def __str__(self) -> str:
        return "\n".join(["Mixed((", *(f"    {turn!r}," for turn in self.turns), "))"])
