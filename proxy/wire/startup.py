"""The first packet of a client: StartupMessage, CancelRequest, SSLRequest, GSSENCRequest, a ClientHello, or garbage.

Contract: :func:`read_startup` looks at the bytes received so far and says what they are, how many more it needs, or
raises StartupRefused with the SQLSTATE and words of PostgreSQL. It accepts at most ``MAX_STARTUP`` bytes, as PostgreSQL
does, so an unauthenticated peer can make a sidecar hold no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import Literal

from proxy.wire.messages import LATEST_MINOR, MAX_SECRET, ProtocolViolation, error_response

MAX_STARTUP = 10_000
"""PostgreSQL's MAX_STARTUP_PACKET_LENGTH."""

SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102
TLS_HANDSHAKE = 0x16
"""The first byte of a TLS handshake; as a length of a packet it would mean hundreds of megabytes."""
LONG_KEYS = 2
"""The minor version from which on cancel keys may be longer than four bytes."""

_HEAD = Struct(">II")
_PID = Struct(">I")

Replication = Literal["", "physical", "database"]


class StartupRefused(ProtocolViolation):
    """The packet cannot be served; ``answer`` is what the client gets before the connection is closed."""

    def __init__(self, message: str, sqlstate: str = "08P01", hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.answer = error_response(sqlstate, message, hint=hint, detail=detail, severity="FATAL")


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
    """As asked for; ``spoken`` is what it gets."""
    parameters: dict[str, str]
    version: str | None = None
    """The schema version that the client asked for by ``options=-c dualwire.version=...``."""
    unknown_options: tuple[str, ...] = field(default=())
    """Protocol extensions (``_pq_.*``) that we do not know and must name in NegotiateProtocolVersion."""
    replication: Replication = ""
    """Whether a WAL sender is wanted, of the whole server or of one database."""

    @property
    def spoken(self) -> int:
        """The minor version of the protocol on this connection: what was asked for, or the newest that we know."""
        return min(self.minor, LATEST_MINOR)

    @property
    def negotiate(self) -> bool:
        """Whether the client must be told that it does not get all that it asked for."""
        return self.minor > LATEST_MINOR or bool(self.unknown_options)


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
            raise StartupRefused("malformed encryption request")
        return EncryptionRequest(gss=code == GSSENC_REQUEST), length
    if code == CANCEL_REQUEST:
        if not 4 < len(body) <= 4 + MAX_SECRET:
            refused = StartupRefused("invalid length of query cancel packet")
            refused.answer = b""
            raise refused
        return CancelRequest(_PID.unpack_from(body)[0], body[4:]), length
    major, minor = code >> 16, code & 0xFFFF
    if major != 3:
        raise unsupported(major, minor)
    return _startup(major, minor, body), length


def unsupported(major: int, minor: int) -> StartupRefused:
    """The refusal of a protocol version; a repeated SSLRequest or GSSENCRequest is taken for one, too."""
    message = f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{LATEST_MINOR}"
    refused = StartupRefused(message, "0A000")
    if major < 3:
        # Who speaks an older protocol knows only its form of an error.
        refused.answer = f"EFATAL:  {message}\n\0".encode()
    return refused


def unencrypted(gss: bool) -> StartupRefused:
    """The refusal of bytes that came before the handshake that they should have come after."""
    return StartupRefused(
        f"received unencrypted data after {'GSSAPI encryption' if gss else 'SSL'} request",
        detail="This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
    )


def _check_length(length: int) -> None:
    if not 8 <= length <= MAX_STARTUP:
        raise StartupRefused(f"invalid length of startup packet: {length}")


def _startup(major: int, minor: int, body: bytes) -> Startup:
    parameters = _parameters(body)
    unknown = tuple(name for name in parameters if name.startswith("_pq_."))
    for name in unknown:
        del parameters[name]
    replication = _replication(parameters.pop("replication", "off"))
    if not parameters.get("user"):
        raise StartupRefused("no PostgreSQL user name specified in startup packet", "28000")
    version = parameters.pop("dualwire.version", None)
    if "options" in parameters:
        options, chosen = _take_version(parameters["options"])
        version = chosen or version
        if options:
            parameters["options"] = options
        else:
            del parameters["options"]
    return Startup(major, minor, parameters, version, unknown, replication)


def _parameters(body: bytes) -> dict[str, str]:
    """Names and values up to an empty name, which must be the packet's last byte."""
    texts: list[str] = []
    position = 0
    while (end := body.find(b"\0", position)) > position or (end >= 0 and len(texts) % 2):
        try:
            texts.append(body[position:end].decode("utf-8"))
        except UnicodeDecodeError as exc:
            raise StartupRefused("startup parameters must be UTF-8") from exc
        position = end + 1
    if len(texts) % 2 or position != len(body) - 1 or end != position:
        raise StartupRefused("invalid startup packet layout: expected terminator as last byte")
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _replication(value: str) -> Replication:
    """``database``, or a boolean as PostgreSQL reads one: a word or the beginning of one."""
    if value == "database":
        return "database"
    word = value.lower()
    if word == "1" or word == "on" or (word and ("true".startswith(word) or "yes".startswith(word))):
        return "physical"
    if word in ("0", "of", "off") or (word and ("false".startswith(word) or "no".startswith(word))):
        return ""
    raise StartupRefused(
        f'invalid value for parameter "replication": "{value}"',
        "22023",
        'Valid values are: "false", 0, "true", 1, "database".',
    )


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
    if version is None:
        return options, None
    escaped = (word.replace("\\", "\\\\").replace(" ", "\\ ") for word in kept)
    return " ".join(escaped), version
