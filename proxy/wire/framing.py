"""Cutting a byte stream into protocol messages, whatever pieces it arrives in.

Contract: feed bytes, get complete frames in order; the pieces in which the bytes arrive never change what comes out.
The first packet of a client has no type byte and its own limits: see :mod:`proxy.wire.startup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from proxy.wire.messages import FRONTEND_TYPES, MAX_MESSAGE, ProtocolViolation


@final
class Framer:
    """Complete frames out of a stream of bytes.

    ``allowed`` bounds the type bytes that the peer may send (None: any), so that garbage is found at its first byte
    and not after a gigabyte that its "length" announced.
    """

    __slots__ = ("_allowed", "_limit", "_need", "_tail")

    def __init__(self, *, allowed: frozenset[int] | None = FRONTEND_TYPES, limit: int = MAX_MESSAGE) -> None:
        # A table by type byte: compiled code reads it without making an object, a set would need one.
        self._allowed = bytes(allowed is None or kind in allowed for kind in range(256))
        self._limit = limit
        self._tail = bytearray()
        self._need = 0
        """Length that the tail must reach before another look at it can give something; 0 while there is none."""

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete message that wait for the rest."""
        return len(self._tail)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Complete frames, each as its own bytes object; raises ProtocolViolation on what cannot be a message."""
        if self._need:
            self._tail += data
            if len(self._tail) < self._need:
                return
            data = bytes(self._tail)
            self._tail.clear()
            self._need = 0
        allowed = self._allowed
        position = 0
        size = len(data)
        need = 5
        while size - position >= 5:
            # Shifts, not Struct: compiled, four indexed bytes are a few instructions and a call is a hundred.
            length = (
                data[position + 1] << 24
                | data[position + 2] << 16
                | data[position + 3] << 8
                | data[position + 4]
            )
            if length < 4 or length > self._limit:
                raise ProtocolViolation(f"invalid message length {length}")
            if not allowed[data[position]]:
                raise ProtocolViolation(f"invalid frontend message type {data[position]}")
            end = position + 1 + length
            if end > size:
                need = end - position
                break
            if position == 0 and end == size:
                yield data
                return
            yield data[position:end]
            position = end
        if position < size:
            if not allowed[data[position]]:
                raise ProtocolViolation(f"invalid frontend message type {data[position]}")
            self._tail += data[position:] if position else data
            self._need = need
