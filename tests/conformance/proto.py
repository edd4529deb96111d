"""An interpreter of pgproto's message scripts over a plain socket, and the traces that it gives.

A script (`parse`) is a list of frontend messages written out one a line, with points at which replies are
read; pgproto/README.md, beside the corpus, describes the format. `play` runs it on an endpoint and gives a `Trace`:
every message of the server with every field decoded, so that two traces are equal if and only if a client could
not have told the two servers apart. Only what no two runs of PostgreSQL have in common is made up for: OIDs of
freshly created objects, process ids, and the moment at which a notice from another session comes.

The project's own protocol code is not used here: the judge shares nothing with the judged but SCRAM's arithmetic.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scramp import ScramClient

PROTOCOL_3_0 = 3 << 16
FIRST_NORMAL_OID = 16384
DEADLINE = 15.0
"""Seconds within which a server that has something to say must have said it."""
QUIET = 0.15
"""Seconds of silence after which a server is taken to have said all (`y`), where nothing tells how much it is."""
PLAIN = {
    ord("1"): "ParseComplete",
    ord("2"): "BindComplete",
    ord("3"): "CloseComplete",
    ord("I"): "EmptyQueryResponse",
    ord("c"): "CopyDone",
    ord("n"): "NoData",
    ord("s"): "PortalSuspended",
}
COPIES = {ord("G"): "CopyInResponse", ord("H"): "CopyOutResponse", ord("W"): "CopyBothResponse"}
REPORTS = {ord("E"): "ErrorResponse", ord("N"): "NoticeResponse"}


class ScriptError(Exception):
    """The script does not follow the format; the text says in which line and how."""


# -- scripts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One line: bytes to send, or a point at which to read (``Y``, ``y``, ``Z``), or another connection (``@``)."""

    kind: str
    text: str
    data: bytes = b""
    number: int = 1


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed file. ``headers`` are its comments of the form ``# key: value``."""

    name: str
    steps: tuple[Step, ...]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def for_pgproto(self) -> bool:
        """Whether pgproto itself can run it as well."""
        return self.headers.get("pgproto") != "no"


@dataclass
class _Line:
    """A cursor over the fields of one logical line."""

    text: str
    at: int = 0

    def _skip(self) -> None:
        while self.text.startswith("\t", self.at):
            self.at += 1

    def integer(self) -> int:
        self._skip()
        end = self.text.find("\t", self.at)
        end = len(self.text) if end < 0 else end
        word, self.at = self.text[self.at : end], end
        return int(word)

    def char(self) -> bytes:
        self._skip()
        match = re.match("'(.)'", self.text[self.at :])
        if match is None:
            raise ValueError("a quoted character was expected")
        self.at += 3
        return match.group(1).encode()

    def string(self) -> bytes:
        """``"..."`` with ``\\`` before whatever is meant literally, or ``x"..."``: bytes in hexadecimal."""
        self._skip()
        if self.text.startswith('x"', self.at):
            end = self.text.index('"', self.at + 2)
            digits, self.at = self.text[self.at + 2 : end], end + 1
            return bytes.fromhex(digits)
        if not self.text.startswith('"', self.at):
            raise ValueError("a string was expected")
        self.at += 1
        found = []
        while self.at < len(self.text) and self.text[self.at] != "\t":
            if self.text[self.at] == "\\":
                self.at += 1
            found.append(self.text[self.at])
            self.at += 1
        # As in pgproto only the last quote before a tab ends a string, those inside need no backslash.
        if not found or found[-1] != '"':
            raise ValueError('a string must end with "')
        return "".join(found[:-1]).encode()

    def numbers(self, layout: str) -> bytes:
        """A counted list of integers."""
        count = self.integer()
        return struct.pack(f">h{count}{layout}", count, *(self.integer() for _ in range(count)))

    def values(self) -> bytes:
        """A counted list of values, each a length (-1: NULL) and, unless that is 0 or NULL, a string."""
        count = self.integer()
        packed = struct.pack(">h", count)
        for _ in range(count):
            length = self.integer()
            value = self.string() if length > 0 else b""
            if len(value) != max(length, 0):
                raise ValueError(f"the length {length} was given for {len(value)} bytes")
            packed += struct.pack(">i", length) + value
        return packed

    def end(self) -> None:
        if self.text[self.at :].strip("\t"):
            raise ValueError(f"more than expected: {self.text[self.at :]!r}")


def _body(kind: str, line: _Line) -> bytes:
    if kind in "XSHc":
        return b""
    if kind in "Qf":
        return line.string() + b"\0"
    if kind == "d":
        return line.string()
    if kind == "P":
        return line.string() + b"\0" + line.string() + b"\0" + line.numbers("i")
    if kind == "B":
        names = line.string() + b"\0" + line.string() + b"\0"
        return names + line.numbers("h") + line.values() + line.numbers("h")
    if kind == "E":
        return line.string() + b"\0" + struct.pack(">i", line.integer())
    if kind in "DC":
        return line.char() + line.string() + b"\0"
    if kind == "F":
        function = struct.pack(">i", line.integer())
        return function + line.numbers("h") + line.values() + struct.pack(">h", line.integer())
    raise ValueError(f"unknown kind {kind!r}")


def parse(name: str, text: str) -> Script:
    """Reads a script; ScriptError names the line that it cannot read."""
    steps: list[Step] = []
    headers: dict[str, str] = {}
    joined = ""
    for number, raw in enumerate(text.split("\n"), 1):
        joined += raw
        if raw.endswith("\\"):
            joined += "\n"
            continue
        logical, joined = joined, ""
        header = re.fullmatch(r"# (\w+): (.*)", logical)
        if header is not None:
            headers[header.group(1)] = header.group(2)
        if not logical or logical.startswith("#"):
            continue
        match = re.match(r"'(.)'", logical)
        if match is None:
            raise ScriptError(f"{name}:{number}: a line begins with a message's kind in quotes")
        kind, line = match.group(1), _Line(logical, 3)
        try:
            if kind in "YyZ":
                step = Step(kind, logical)
            elif kind == "@":
                step = Step(kind, logical, number=line.integer())
            elif kind == "*":
                step = Step(kind, logical, line.string())
            else:
                body = _body(kind, line)
                step = Step(kind, logical, kind.encode() + struct.pack(">i", len(body) + 4) + body)
            line.end()
        except ValueError as wrong:
            raise ScriptError(f"{name}:{number}: {wrong}") from wrong
        steps.append(step)
    return Script(name, tuple(steps), headers)


def load(directory: Path) -> list[Script]:
    """The scripts of a directory in order of their names."""
    return [parse(path.stem, path.read_text()) for path in sorted(directory.glob("*.data"))]


# -- one connection ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the server: its type byte and body. Type 0 stands for the end of the connection."""

    kind: int
    body: bytes = b""


END = Message(0)
SILENCE = Message(0, b"silence")


class Connection:
    """A client that has logged in. ``greeting`` is what the server said before its first ReadyForQuery."""

    def __init__(self, dsn: str, application_name: str = "pgproto", options: str = "") -> None:
        parts = urlsplit(dsn)
        self._user, self._password = unquote(parts.username or "postgres"), unquote(parts.password or "")
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 5432), DEADLINE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = bytearray()
        self.ended = False
        self.pid = 0
        self.greeting: list[Message] = []
        parameters = {
            "user": self._user,
            "database": unquote(parts.path.lstrip("/")),
            "application_name": application_name,
            "client_encoding": "UTF8",
        }
        if options:
            parameters["options"] = options
        body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items()) + b"\0"
        self.send(struct.pack(">ii", len(body) + 8, PROTOCOL_3_0) + body)
        try:
            self._log_in()
        except BaseException:
            self.close()
            raise

    def _log_in(self) -> None:
        scram: ScramClient | None = None
        while True:
            message = self.receive(DEADLINE)
            if message.kind == ord("R"):
                (code,) = struct.unpack_from(">i", message.body)
                if code == 10:
                    scram = ScramClient(["SCRAM-SHA-256"], self._user, self._password)
                    first = scram.get_client_first().encode()
                    self._password_message(b"SCRAM-SHA-256\0" + struct.pack(">i", len(first)) + first)
                elif code == 11 and scram is not None:
                    scram.set_server_first(message.body[4:].decode())
                    self._password_message(scram.get_client_final().encode())
                elif code == 12 and scram is not None:
                    scram.set_server_final(message.body[4:].decode())
                elif code != 0:
                    raise AssertionError(f"authentication method {code} is not known here")
            elif message.kind in (0, ord("E")):
                raise AssertionError(f"no login: {message.body!r}")
            else:
                self.greeting.append(message)
                if message.kind == ord("K"):
                    (self.pid,) = struct.unpack_from(">i", message.body)
                if message.kind == ord("Z"):
                    return

    def _password_message(self, body: bytes) -> None:
        self.send(b"p" + struct.pack(">i", len(body) + 4) + body)

    def send(self, data: bytes) -> None:
        """Sends; a server that hung up is noticed when its last words are read."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def receive(self, timeout: float) -> Message:
        """The next message; `SILENCE` if none comes within ``timeout`` seconds, `END` at the connection's end."""
        deadline = time.monotonic() + timeout
        while True:
            if len(self._data) >= 5:
                (length,) = struct.unpack_from(">i", self._data, 1)
                if len(self._data) > length:
                    message = Message(self._data[0], bytes(self._data[5 : length + 1]))
                    del self._data[: length + 1]
                    return message
            if self.ended:
                return END
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return SILENCE
            try:
                received = self._socket.recv(65536)
            except ConnectionResetError:
                received = b""
            self._data += received
            self.ended = not received

    def close(self) -> None:
        """Hangs up without a word."""
        self._socket.close()


# -- traces ------------------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """What a run gave: ``lines`` with all fields for the eye and for comparison, ``pgproto`` as pgproto prints it.

    ``reads`` holds how many messages each reading step took, so that another run need not wait for silence.
    """

    lines: list[str] = field(default_factory=list)
    pgproto: list[str] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)


class Renderer:
    """Messages as text. OIDs of objects that users make are numbered in the order in which they appear."""

    def __init__(self) -> None:
        self._oids: dict[int, int] = {}

    def oid(self, number: int) -> str:
        """An OID below the first normal one is PostgreSQL's own and the same everywhere."""
        if number < FIRST_NORMAL_OID:
            return str(number)
        return f"new{self._oids.setdefault(number, len(self._oids) + 1)}"

    def full(self, message: Message) -> str:
        """One line with everything that the message says."""
        kind, body = message.kind, message.body
        if message is END:
            return "end of the connection"
        if message is SILENCE:
            return "silence"
        if kind in PLAIN:
            return PLAIN[kind]
        if kind in REPORTS:
            return f"{REPORTS[kind]} {' | '.join(f'{code}={text}' for code, text in report(body))}"
        if kind in COPIES:
            overall, count = struct.unpack_from(">bh", body)
            return f"{COPIES[kind]} format={overall} columns={struct.unpack_from(f'>{count}h', body, 3)}"
        if kind == ord("Z"):
            return f"ReadyForQuery {body.decode()}"
        if kind == ord("C"):
            return f"CommandComplete {body[:-1].decode()}"
        if kind == ord("S"):
            name, value = body[:-1].decode().split("\0")
            return f"ParameterStatus {name}={value}"
        if kind == ord("A"):
            channel, payload = body[4:-1].decode().split("\0")
            return f"NotificationResponse channel={channel} payload={payload}"
        if kind == ord("t"):
            count = struct.unpack_from(">h", body)[0]
            types = struct.unpack_from(f">{count}I", body, 2)
            return f"ParameterDescription {' '.join(map(self.oid, types))}"
        if kind == ord("T"):
            return "RowDescription " + ", ".join(self._columns(body))
        if kind == ord("D"):
            (count,) = struct.unpack_from(">h", body)
            return f"DataRow ({', '.join(_values(body, 2, count))})"
        if kind == ord("V"):
            return f"FunctionCallResponse {', '.join(_values(body, 0, 1))}"
        if kind == ord("d"):
            return f"CopyData {_shown(body)}"
        return f"message {chr(kind)!r} {body!r}"

    def _columns(self, body: bytes) -> Iterator[str]:
        (count,) = struct.unpack_from(">h", body)
        at = 2
        for _ in range(count):
            end = body.index(b"\0", at)
            table, column, kind, size, modifier, form = struct.unpack_from(">IhIhih", body, end + 1)
            name, at = body[at:end].decode(), end + 19
            yield (
                f"{name}: table={self.oid(table)}.{column} type={self.oid(kind)} "
                f"size={size} mod={modifier} format={form}"
            )

    @staticmethod
    def short(message: Message) -> str:
        """The line that pgproto prints, without its arrow."""
        kind, body = message.kind, message.body
        if kind in PLAIN:
            return PLAIN[kind]
        if kind in REPORTS:
            return f"{REPORTS[kind]}({''.join(f'{code} {text} ' for code, text in report(body))})"
        if kind in COPIES:
            return COPIES[kind]
        if kind == ord("Z"):
            return f"ReadyForQuery({body.decode()})"
        if kind == ord("C"):
            return f"CommandComplete({body[:-1].decode()})"
        if kind == ord("A"):
            channel, payload = body[4:-1].decode().split("\0")
            return f'Notification response. pid: 0 channel: {channel} payload: "{payload}"'
        names = {
            "S": "ParameterStatus",
            "T": "RowDescription",
            "D": "DataRow",
            "V": "FunctionCallResponse",
            "d": "CopyData",
            "t": "ParameterDescription",
        }
        return names.get(chr(kind), f"({chr(kind)})")


def report(body: bytes) -> list[tuple[str, str]]:
    """The fields of an error or notice in the order in which they came."""
    return [(part[:1].decode(), part[1:].decode(errors="replace")) for part in body.split(b"\0") if part]


def _values(body: bytes, at: int, count: int) -> Iterator[str]:
    for _ in range(count):
        (length,) = struct.unpack_from(">i", body, at)
        at += 4
        if length < 0:
            yield "NULL"
            continue
        yield _shown(body[at : at + length])
        at += length


def _shown(value: bytes) -> str:
    """Long values by their length and checksum: a trace is for reading too."""
    if len(value) > 200:
        return f"{len(value)} bytes, {value[:20]!r}..., CRC {zlib.crc32(value):08x}"
    return repr(value)[1:]


# -- runs --------------------------------------------------------------------------------------------------------


def play(
    script: Script,
    dsn: str,
    expected: Trace | None = None,
    between: Callable[[], None] = lambda: None,
) -> Trace:
    """Runs a script. ``expected`` is the trace of an earlier run: ``y`` then reads as many messages as that had.

    ``between`` is called whenever the server has said that it is idle outside of a transaction.
    """
    trace, renderer = Trace(), Renderer()
    connections: dict[int, Connection] = {}
    current = 1

    def connection() -> Connection:
        if current not in connections:
            connections[current] = Connection(dsn)
        return connections[current]

    def note(message: Message) -> None:
        trace.lines.append(f"{current} <= {renderer.full(message)}")
        if message is not SILENCE and message is not END:
            trace.pgproto.append(f"<= BE {renderer.short(message)}")

    try:
        for step in script.steps:
            trace.lines.append(f"{current} {step.text}")
            if step.kind == "@":
                current = step.number
            elif step.kind in "YyZ":
                known = expected.reads[len(trace.reads)] if expected is not None else None
                trace.reads.append(_read(connection(), step.kind, known, note, between))
            else:
                connection().send(step.data)
        for current, left in sorted(connections.items()):  # noqa: B007 (note shows the number)
            if script.steps[-1].kind == "X":
                _read(left, "Z", None, note, between)
    finally:
        for left in connections.values():
            left.close()
    return trace


def _read(
    connection: Connection,
    until: str,
    known: int | None,
    note: Callable[[Message], None],
    between: Callable[[], None],
) -> int:
    """Reads to ReadyForQuery (``Y``), to silence or ReadyForQuery (``y``), or to the connection's end (``Z``)."""
    count = 0
    while until != "y" or known is None or count < known:
        message = connection.receive(QUIET if until == "y" and known is None else DEADLINE)
        if message is SILENCE and until == "y" and known is None:
            break
        note(message)
        if message is SILENCE or message is END:
            break
        count += 1
        if message.kind == ord("Z") and until != "Z":
            if message.body == b"I":
                between()
            break
    return count
