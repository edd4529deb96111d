"""The first packet of a client: StartupMessage, CancelRequest, SSLRequest, GSSENCRequest, or garbage.

Contract: :func:`read_startup` looks at the bytes received so far and says what they are, how many more it needs, or
raises ProtocolViolation. It accepts at most ``MAX_STARTUP`` bytes, as PostgreSQL does, so an unauthenticated peer can
make a sidecar hold no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

from proxy.wire.messages import ProtocolViolation

MAX_STARTUP = 10_000
"""PostgreSQL's MAX_STARTUP_PACKET_LENGTH."""

SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102

_HEAD = Struct(">II")
_PID = Struct(">I")


@dataclass(frozen=True, slots=True)
class EncryptionRequest:
    """The client asks for TLS (or GSS encryption) before it says who it is."""

    gss: bool


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """The client wants the query of another session cancelled."""

    pid: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Startup:
    """A StartupMessage: protocol version and parameters, in the client's order."""

    major: int
    minor: int
    parameters: dict[str, str]
    version: str | None = None
    """The schema version that the client asked for by ``options=-c dualwire.version=...``."""
    unknown_options: tuple[str, ...] = field(default=())
    """Protocol extensions (``_pq_.*``) that we do not know and must name in NegotiateProtocolVersion."""


Request = EncryptionRequest | CancelRequest | Startup


def read_startup(data: bytes) -> tuple[Request, int] | None:
    """The request and the bytes that it took; None while it is incomplete."""
    if len(data) < 8:
        if len(data) >= 4:
            _check_length(int.from_bytes(data[:4], "big"))
        return None
    length, code = _HEAD.unpack_from(data)
    _check_length(length)
    if len(data) < length:
        return None
    body = data[8:length]
    if code in (SSL_REQUEST, GSSENC_REQUEST):
        if length != 8:
            raise ProtocolViolation("malformed encryption request")
        return EncryptionRequest(gss=code == GSSENC_REQUEST), length
    if code == CANCEL_REQUEST:
        if not 8 <= len(body) <= 260:
            raise ProtocolViolation("malformed cancel request")
        return CancelRequest(_PID.unpack_from(body)[0], body[4:]), length
    major, minor = code >> 16, code & 0xFFFF
    if major != 3:
        raise ProtocolViolation(f"unsupported frontend protocol {major}.{minor}: dualwire speaks 3.0")
    return _startup(major, minor, body), length


def _check_length(length: int) -> None:
    if not 8 <= length <= MAX_STARTUP:
        raise ProtocolViolation(f"invalid length of startup packet: {length}")


def _startup(major: int, minor: int, body: bytes) -> Startup:
    if not body.endswith(b"\0"):
        raise ProtocolViolation("invalid startup packet layout: expected terminator as last byte")
    parts = body[:-1].split(b"\0")
    if parts[-1] == b"":
        parts.pop()
    if len(parts) % 2:
        raise ProtocolViolation("invalid startup packet layout: a parameter has no value")
    try:
        texts = [part.decode("utf-8") for part in parts]
    except UnicodeDecodeError as exc:
        raise ProtocolViolation("startup parameters must be UTF-8") from exc
    parameters = dict(zip(texts[::2], texts[1::2], strict=True))
    unknown = tuple(name for name in parameters if name.startswith("_pq_."))
    for name in unknown:
        del parameters[name]
    if not parameters.get("user"):
        raise ProtocolViolation("no PostgreSQL user name specified in startup packet")
    version = parameters.pop("dualwire.version", None)
    if "options" in parameters:
        options, chosen = _take_version(parameters["options"])
        version = chosen or version
        if options:
            parameters["options"] = options
        else:
            del parameters["options"]
    return Startup(major, minor, parameters, version, unknown)


def _split_options(options: str) -> list[str]:
    """Words of an ``options`` value; a backslash escapes the next character, as in PostgreSQL's pg_split_opts."""
    words: list[str] = []
    word: list[str] | None = None
    characters = iter(options)
    for character in characters:
        if character.isspace():
            if word is not None:
                words.append("".join(word))
                word = None
            continue
        word = [] if word is None else word
        word.append(next(characters, "") if character == "\\" else character)
    if word is not None:
        words.append("".join(word))
    return words


def _take_version(options: str) -> tuple[str, str | None]:
    """``options`` without ``-c dualwire.version=X`` (or ``--dualwire.version=X``), and X."""
    words = _split_options(options)
    kept: list[str] = []
    version: str | None = None
    index = 0
    while index < len(words):
        word = words[index]
        setting, taken = word, 1
        if word == "-c" and index + 1 < len(words):
            setting, taken = words[index + 1], 2
        elif word.startswith(("-c", "--")):
            setting = word[2:]
        name, _, value = setting.partition("=")
        if name.strip().lower() == "dualwire.version":
            version = value.strip()
        else:
            kept += words[index : index + taken]
        index += taken
    escaped = (word.replace("\\", "\\\\").replace(" ", "\\ ") for word in kept)
    return " ".join(escaped), version
