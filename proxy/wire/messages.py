"""Messages of the PostgreSQL protocol 3 as bytes: type codes, builders and the few parsers that a proxy needs.

Builders return complete frames (type byte, length, body). Parsers take a complete frame's bytes, the header included,
and raise :class:`ProtocolViolation` if the body is malformed. Nothing here keeps state. Source: PostgreSQL
documentation, chapter 54 "Frontend/Backend Protocol", section "Message Formats".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import Struct, error
from typing import Final

_INT32: Final = Struct(">I")
_INT16: Final = Struct(">H")

HEADER: Final = 5
"""Bytes before a message's body: the type and the length."""
MAX_MESSAGE: Final = 0x3FFFFFFF
"""PostgreSQL's own limit (PQ_LARGE_MESSAGE_LIMIT) on the length of one message."""
PROTOCOL_3 = 3 << 16
LATEST_MINOR = 2
"""The newest protocol that dualwire speaks is 3.2, PostgreSQL 18's."""
MAX_SECRET = 256
"""Bytes of a cancel key at most."""

BIND: Final = 0x42
CLOSE: Final = 0x43
COPY_DATA: Final = 0x64
COPY_DONE: Final = 0x63
COPY_FAIL: Final = 0x66
DESCRIBE: Final = 0x44
EXECUTE: Final = 0x45
FLUSH: Final = 0x48
FUNCTION_CALL: Final = 0x46
PARSE: Final = 0x50
PASSWORD: Final = 0x70
QUERY: Final = 0x51
SYNC: Final = 0x53
TERMINATE: Final = 0x58
AUTHENTICATION: Final = 0x52
BACKEND_KEY_DATA: Final = 0x4B
BIND_COMPLETE: Final = 0x32
CLOSE_COMPLETE: Final = 0x33
COMMAND_COMPLETE: Final = 0x43
COPY_IN_RESPONSE: Final = 0x47
COPY_OUT_RESPONSE: Final = 0x48
COPY_BOTH_RESPONSE: Final = 0x57
DATA_ROW: Final = 0x44
EMPTY_QUERY: Final = 0x49
ERROR_RESPONSE: Final = 0x45
NEGOTIATE_VERSION: Final = 0x76
NO_DATA: Final = 0x6E
NOTICE_RESPONSE: Final = 0x4E
NOTIFICATION: Final = 0x41
PARAMETER_DESCRIPTION: Final = 0x74
PARAMETER_STATUS: Final = 0x53
PARSE_COMPLETE: Final = 0x31
PORTAL_SUSPENDED: Final = 0x73
READY_FOR_QUERY: Final = 0x5A
ROW_DESCRIPTION: Final = 0x54
FUNCTION_RESPONSE: Final = 0x56

FRONTEND_TYPES: Final = frozenset(b"BCdcfDEHFPpQSX")

SYNC_FRAME: Final = b"S\x00\x00\x00\x04"
FLUSH_FRAME: Final = b"H\x00\x00\x00\x04"
TERMINATE_FRAME: Final = b"X\x00\x00\x00\x04"
AUTHENTICATION_OK: Final = b"R\x00\x00\x00\x08\x00\x00\x00\x00"
CLOSE_COMPLETE_FRAME: Final = b"3\x00\x00\x00\x04"
PARSE_COMPLETE_FRAME: Final = b"1\x00\x00\x00\x04"


class ProtocolViolation(Exception):
    """The peer sent bytes that the protocol does not allow; the connection cannot go on."""


def frame(kind: int, body: bytes) -> bytes:
    """One message of that type."""
    return bytes((kind,)) + _INT32.pack(len(body) + 4) + body


def cstring(data: bytes, start: int) -> tuple[bytes, int]:
    """The NUL-terminated string at ``start`` and the offset after its NUL."""
    end = data.find(b"\0", start)
    if end < 0:
        raise ProtocolViolation("a string in the message has no terminator")
    return data[start:end], end + 1


# -- errors and notices ----------------------------------------------------------------------------------------


def error_response(
    sqlstate: str,
    message: str,
    *,
    detail: str = "",
    hint: str = "",
    severity: str = "ERROR",
    routine: str = "",
    position: int = 0,
) -> bytes:
    """An ErrorResponse frame. ``severity`` is ERROR, FATAL or PANIC; ``position`` counts from 1."""
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", message)]
    fields += [(code, text) for code, text in (("D", detail), ("H", hint), ("R", routine)) if text]
    if position:
        fields.append(("P", str(position)))
    body = b"".join(code.encode() + text.encode().replace(b"\0", b"?") + b"\0" for code, text in fields)
    return frame(ERROR_RESPONSE, body + b"\0")


def error_fields(message: bytes) -> dict[str, bytes]:
    """The fields of an ErrorResponse or NoticeResponse frame by their one-letter code."""
    fields: dict[str, bytes] = {}
    position = HEADER
    while position < len(message) and message[position]:
        value, after = cstring(message, position + 1)
        fields[chr(message[position])] = value
        position = after
    return fields


def error_with_fields(message: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """The same error with some fields replaced (or removed, where the value is None)."""
    fields: dict[str, bytes | None] = {**error_fields(message), **changes}
    body = b"".join(code.encode() + value + b"\0" for code, value in fields.items() if value is not None)
    return frame(message[0], body + b"\0")


# -- backend messages that a proxy makes or reads ----------------------------------------------------------------


def ready_for_query(status: bytes) -> bytes:
    """ReadyForQuery with transaction status ``I``, ``T`` or ``E``."""
    return b"Z\x00\x00\x00\x05" + status


def parameter_status(name: str, value: str) -> bytes:
    """ParameterStatus."""
    return frame(PARAMETER_STATUS, name.encode() + b"\0" + value.encode() + b"\0")


def read_parameter_status(message: bytes) -> tuple[str, str]:
    """Name and value of a ParameterStatus frame."""
    name, after = cstring(message, HEADER)
    value, _ = cstring(message, after)
    return name.decode("utf-8", "replace"), value.decode("utf-8", "replace")


def backend_key_data(pid: int, secret: bytes) -> bytes:
    """BackendKeyData; the secret has four bytes in protocol 3.0, and 4 to 256 from 3.2 on."""
    return frame(BACKEND_KEY_DATA, _INT32.pack(pid) + secret)


def read_backend_key_data(message: bytes) -> tuple[int, bytes]:
    """Process id and secret of a BackendKeyData frame."""
    if not HEADER + 8 <= len(message) <= HEADER + 4 + MAX_SECRET:
        raise ProtocolViolation("a cancel key must have 4 to 256 bytes")
    return _INT32.unpack_from(message, HEADER)[0], message[HEADER + 4 :]


def negotiate_version(minor: int, options: Iterable[str]) -> bytes:
    """NegotiateProtocolVersion: the minor version that will be spoken, and the options that nobody knows here."""
    names = [name.encode() + b"\0" for name in options]
    return frame(
        NEGOTIATE_VERSION, _INT32.pack(PROTOCOL_3 | minor) + _INT32.pack(len(names)) + b"".join(names)
    )


def read_negotiate_version(message: bytes) -> tuple[int, tuple[bytes, ...]]:
    """Protocol version (major in the upper half) and unknown options of a NegotiateProtocolVersion frame."""
    try:
        version, count = Struct(">II").unpack_from(message, HEADER)
    except error as exc:
        raise ProtocolViolation("malformed NegotiateProtocolVersion") from exc
    names: list[bytes] = []
    position = HEADER + 8
    # A count of billions in a short message ends at the first string that is missing.
    for _ in range(count):
        name, position = cstring(message, position)
        names.append(name)
    return version, tuple(names)


def read_parameter_oids(message: bytes) -> tuple[int, ...]:
    """The type OIDs of a ParameterDescription frame."""
    try:
        (count,) = _INT16.unpack_from(message, HEADER)
        return Struct(f">{count}I").unpack_from(message, HEADER + 2)
    except error as exc:
        raise ProtocolViolation("malformed ParameterDescription") from exc


# -- frontend messages ---------------------------------------------------------------------------------------------


def startup(parameters: Mapping[str, str], minor: int = 0) -> bytes:
    """A StartupMessage for protocol 3.``minor``."""
    body = b"".join(k.encode() + b"\0" + v.encode() + b"\0" for k, v in parameters.items()) + b"\0"
    return _INT32.pack(len(body) + 8) + _INT32.pack(PROTOCOL_3 | minor) + body


def cancel_request(pid: int, secret: bytes) -> bytes:
    """A CancelRequest packet."""
    return _INT32.pack(12 + len(secret)) + _INT32.pack(80877102) + _INT32.pack(pid) + secret


def query(text: bytes) -> bytes:
    """A simple Query."""
    return frame(QUERY, text + b"\0")


def read_query(message: bytes) -> bytes:
    """The text of a Query frame."""
    text, after = cstring(message, HEADER)
    if after != len(message):
        raise ProtocolViolation("trailing bytes in a Query message")
    return text


def parse(name: bytes, text: bytes, oids: Iterable[int]) -> bytes:
    """A Parse message."""
    types = tuple(oids)
    return frame(
        PARSE, name + b"\0" + text + b"\0" + _INT16.pack(len(types)) + Struct(f">{len(types)}I").pack(*types)
    )


def read_parse(message: bytes) -> tuple[bytes, bytes, tuple[int, ...]]:
    """Statement name, text and parameter type OIDs of a Parse frame."""
    name, after = cstring(message, HEADER)
    text, after = cstring(message, after)
    try:
        (count,) = _INT16.unpack_from(message, after)
        oids = Struct(f">{count}I").unpack_from(message, after + 2) if count else ()
    except error as exc:
        raise ProtocolViolation("malformed Parse message") from exc
    return name, text, oids


def read_bind_names(message: bytes) -> tuple[bytes, bytes]:
    """Portal and statement name of a Bind frame."""
    portal, after = cstring(message, HEADER)
    statement, _ = cstring(message, after)
    return portal, statement


def read_target(message: bytes) -> tuple[int, bytes]:
    """What a Describe or Close frame names: ``S`` (statement) or ``P`` (portal), and the name."""
    if len(message) < HEADER + 2:
        raise ProtocolViolation("malformed Describe or Close message")
    name, _ = cstring(message, HEADER + 1)
    return message[HEADER], name


def describe_statement(name: bytes) -> bytes:
    """Describe for a prepared statement."""
    return frame(DESCRIBE, b"S" + name + b"\0")


def close_statement(name: bytes) -> bytes:
    """Close for a prepared statement."""
    return frame(CLOSE, b"S" + name + b"\0")
