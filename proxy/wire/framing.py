"""Cutting a byte stream into protocol messages, whatever pieces it arrives in.

Contract: feed bytes, get complete frames in order; the pieces in which the bytes arrive never change what comes out.
The first packet of a client has no type byte and its own limits: see :mod:`proxy.wire.startup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from proxy.wire.messages import FRONTEND_TYPES, MAX_MESSAGE, ProtocolViolation

_LENGTH = Struct(">I").unpack_from


class Framer:
    """Complete frames out of a stream of bytes.

    ``allowed`` bounds the type bytes that the peer may send (None: any), so that garbage is found at its first byte
    and not after a gigabyte that its "length" announced.
    """

    __slots__ = ("_allowed", "_limit", "_need", "_tail")

    def __init__(self, *, allowed: frozenset[int] | None = FRONTEND_TYPES, limit: int = MAX_MESSAGE) -> None:
        self._allowed = allowed
        self._limit = limit
        self._tail = bytearray()
        self._need = 0

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete message that wait for the rest."""
        return len(self._tail)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Complete frames, each as its own bytes object; raises ProtocolViolation on what cannot be a message."""
        if self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return
            data = bytes(self._tail)
            self._tail.clear()
        position = 0
        size = len(data)
        while size - position >= 5:
            (length,) = _LENGTH(data, position + 1)
            if length < 4 or length > self._limit:
                raise ProtocolViolation(f"invalid message length {length}")
            if self._allowed is not None and data[position] not in self._allowed:
                raise ProtocolViolation(f"invalid message type 0x{data[position]:02x}")
            end = position + 1 + length
            if end > size:
                self._need = end - position
                break
            if position == 0 and end == size:
                yield data
                return
            yield data[position:end]
            position = end
        else:
            self._need = 5
            if position < size and self._allowed is not None and data[position] not in self._allowed:
                raise ProtocolViolation(f"invalid message type 0x{data[position]:02x}")
        if position < size:
            self._tail += data[position:] if position else data
