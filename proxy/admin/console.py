"""One connection to the SQL console, without its socket: bytes of the client in, bytes for the client out.

Contract: speaks the simple and the extended protocol well enough for psql and for drivers: Parse, Bind, Describe,
Execute with a row limit, Close, Flush, Sync, errors that skip to the next Sync, results of type int8 and text in text
and in binary. Parameters are refused. A command that takes a while holds up what the client sends after it, and nothing
else. What the commands show and do is behind :class:`Desk`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from struct import Struct, error
from typing import Final, Protocol

from proxy.admin.console_commands import (
    SERVER_VERSION,
    Command,
    ConsoleError,
    Constant,
    Operate,
    Quiet,
    Show,
    Transaction,
    read,
)
from proxy.wire import messages as m
from proxy.wire.framing import Framer
from proxy.wire.messages import ProtocolViolation

INT8: Final = 20
TEXT: Final = 25
MAX_MESSAGE: Final = 1 << 20

_INT16 = Struct(">H")
_INT32 = Struct(">i")
_INT64 = Struct(">q")
_FIELD = Struct(">IhIhih")

Value = int | str | None
Row = Sequence[Value]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a result."""

    name: str
    oid: int = TEXT


@dataclass(frozen=True, slots=True)
class Done:
    """A command that was carried out."""

    tag: str
    notices: tuple[str, ...] = ()


class Desk(Protocol):
    """Where a console gets its answers."""

    def columns(self, table: str) -> tuple[Column, ...]:
        """The columns of a SHOW."""
        ...

    def rows(self, table: str) -> Iterable[Row]:
        """Its rows now."""
        ...

    def operate(self, command: Operate, done: Callable[[Done | ConsoleError], None]) -> None:
        """Carry a command out; ``done`` is called once, now or later."""
        ...


@dataclass(slots=True)
class _Portal:
    command: Command | None
    formats: tuple[int, ...] = ()
    rows: list[Row] | None = None
    """What is left to be fetched; None before the first Execute."""


class Console:
    """See the module's docstring."""

    def __init__(self, desk: Desk, write: Callable[[bytes], None], *, user: str, admin: bool) -> None:
        self._desk = desk
        self._write = write
        self._user = user
        self._admin = admin
        self._framer = Framer(limit=MAX_MESSAGE)
        self._frames: deque[bytes] = deque()
        self._statements: dict[bytes, Command | None] = {}
        self._portals: dict[bytes, _Portal] = {}
        self._status = b"I"
        self._skipping = False
        """An error came in the extended protocol: nothing counts before the next Sync."""
        self._advancing = False
        self.busy = False
        """A command is being carried out."""
        self.closed = False
        """The client has said goodbye."""

    def greeting(self, key: tuple[int, bytes]) -> bytes:
        """What follows a successful login."""
        parameters = {
            "server_version": SERVER_VERSION,
            "server_encoding": "UTF8",
            "client_encoding": "UTF8",
            "DateStyle": "ISO, MDY",
            "IntervalStyle": "postgres",
            "TimeZone": "UTC",
            "integer_datetimes": "on",
            "standard_conforming_strings": "on",
            "is_superuser": "on" if self._admin else "off",
            "session_authorization": self._user,
            "default_transaction_read_only": "off",
            "in_hot_standby": "off",
            "application_name": "",
        }
        return b"".join(
            (
                m.AUTHENTICATION_OK,
                *(m.parameter_status(name, value) for name, value in parameters.items()),
                m.backend_key_data(*key),
                m.ready_for_query(b"I"),
            )
        )

    def feed(self, data: bytes) -> None:
        """Bytes of the client; raises ProtocolViolation."""
        self._frames.extend(self._framer.feed(data))
        self._advance()

    @property
    def queued(self) -> int:
        """Messages that wait for the end of a command."""
        return len(self._frames)

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._frames and not self.busy and not self.closed:
                self._message(self._frames.popleft())
        finally:
            self._advancing = False

    def _message(self, frame: bytes) -> None:
        kind = frame[0]
        if kind == m.TERMINATE:
            self.closed = True
        elif kind == m.SYNC:
            self._skipping = False
            if self._status == b"I":
                self._portals.clear()
            self._ready()
        elif kind in (m.COPY_DATA, m.COPY_DONE, m.COPY_FAIL, m.FLUSH):
            return
        elif kind == m.QUERY:
            self._skipping = False
            self._query(frame)
        elif kind == m.FUNCTION_CALL:
            self._error(ConsoleError("0A000", "the console has no functions"))
            self._ready()
        elif kind in _EXTENDED:
            if not self._skipping:
                try:
                    _EXTENDED[kind](self, frame)
                except ConsoleError as exc:
                    self._skip(exc)
        else:
            raise ProtocolViolation(f"unexpected message type 0x{kind:02x}")

    # -- carrying out ----------------------------------------------------------------------------------------------

    def _perform(self, command: Command, then: Callable[[Done | ConsoleError], None]) -> None:
        """Carry out a command without rows."""
        if isinstance(command, Quiet):
            then(Done(command.tag))
        elif isinstance(command, Transaction):
            failed, self._status = self._status == b"E", b"T" if command.tag == "BEGIN" else b"I"
            then(Done("ROLLBACK" if failed else command.tag))
        elif isinstance(command, Operate):
            self.busy = True

            def done(outcome: Done | ConsoleError) -> None:
                self.busy = False
                then(outcome)

            self._desk.operate(command, done)
        else:
            raise AssertionError(command)

    def _check(self, command: Command) -> None:
        if self._status == b"E" and not (isinstance(command, Transaction) and command.tag != "BEGIN"):
            raise ConsoleError(
                "25P02", "current transaction is aborted, commands ignored until end of transaction block"
            )
        if isinstance(command, Operate) and not self._admin:
            raise ConsoleError(
                "42501",
                f"only an admin user may {command.operation}",
                hint="Users of admin.stats_users may only SHOW; admins are listed in admin.users of the sidecar's "
                "configuration.",
            )

    def _columns(self, command: Command | None) -> tuple[Column, ...]:
        if isinstance(command, Show):
            return self._desk.columns(command.table)
        if isinstance(command, Constant):
            return (Column(command.column),)
        return ()

    def _rows(self, command: Command) -> list[Row]:
        if isinstance(command, Show):
            return list(self._desk.rows(command.table))
        assert isinstance(command, Constant)
        return [(command.value,)]

    def _complete(self, done: Done) -> None:
        notices = b"".join(_notice(text) for text in done.notices)
        self._write(notices + m.frame(m.COMMAND_COMPLETE, done.tag.encode() + b"\0"))

    def _error(self, exc: ConsoleError) -> None:
        if self._status == b"T":
            self._status = b"E"
        self._write(m.error_response(exc.sqlstate, exc.message, hint=exc.hint, detail=exc.detail))

    def _ready(self) -> None:
        self._write(m.ready_for_query(self._status))

    # -- simple protocol -------------------------------------------------------------------------------------------

    def _query(self, frame: bytes) -> None:
        try:
            commands = read(_decode(m.read_query(frame)))
        except ConsoleError as exc:
            self._error(exc)
            self._ready()
            return
        if not commands:
            self._write(m.frame(m.EMPTY_QUERY, b""))
        self._next(commands)

    def _next(self, commands: list[Command]) -> None:
        """Carry out the first of the commands, and when it is done the others."""
        if not commands:
            self._ready()
            return
        command = commands[0]

        def told(outcome: Done | ConsoleError) -> None:
            if isinstance(outcome, ConsoleError):
                self._error(outcome)
                self._ready()
            else:
                self._complete(outcome)
                self._next(commands[1:])
            self._advance()

        try:
            self._check(command)
            if isinstance(command, Show | Constant):
                columns = self._columns(command)
                rows = self._rows(command)
                formats = (0,) * len(columns)
                self._write(_row_description(columns, formats))
                self._write(b"".join(_data_row(columns, formats, row) for row in rows))
                told(Done(_tag(command)))
            else:
                self._perform(command, told)
        except ConsoleError as exc:
            told(exc)

    # -- extended protocol -----------------------------------------------------------------------------------------

    def _skip(self, exc: ConsoleError) -> None:
        self._error(exc)
        self._skipping = True

    def _parse(self, frame: bytes) -> None:
        name, text, _ = m.read_parse(frame)
        if name and name in self._statements:
            raise ConsoleError("42P05", f'prepared statement "{_decode(name)}" already exists')
        commands = read(_decode(text))
        if len(commands) > 1:
            raise ConsoleError("42601", "cannot insert multiple commands into a prepared statement")
        self._statements[name] = commands[0] if commands else None
        self._write(m.PARSE_COMPLETE_FRAME)

    def _bind(self, frame: bytes) -> None:
        portal, name, parameters, formats = _read_bind(frame)
        command = self._statement(name)
        if parameters:
            raise ConsoleError(
                "08P01",
                f"bind message supplies {parameters} parameters, but the prepared statement requires 0",
                hint="The console takes no parameters: write the values into the command.",
            )
        if any(code not in (0, 1) for code in formats):
            raise ConsoleError("08P01", "invalid format code")
        width = len(self._columns(command))
        if len(formats) not in (0, 1, width):
            raise ConsoleError("08P01", f"bind message has {len(formats)} result formats, not {width}")
        spread = formats if len(formats) == width else (formats[0] if formats else 0,) * width
        self._portals[portal] = _Portal(command, spread)
        self._write(_BIND_COMPLETE)

    def _statement(self, name: bytes) -> Command | None:
        if name not in self._statements:
            raise ConsoleError("26000", f'prepared statement "{_decode(name)}" does not exist')
        return self._statements[name]

    def _portal(self, name: bytes) -> _Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise ConsoleError("34000", f'portal "{_decode(name)}" does not exist')
        return portal

    def _describe(self, frame: bytes) -> None:
        kind, name = m.read_target(frame)
        if kind == ord("S"):
            columns = self._columns(self._statement(name))
            formats: tuple[int, ...] = (0,) * len(columns)
            self._write(m.frame(m.PARAMETER_DESCRIPTION, _INT16.pack(0)))
        else:
            portal = self._portal(name)
            columns, formats = self._columns(portal.command), portal.formats
        self._write(_row_description(columns, formats) if columns else m.frame(m.NO_DATA, b""))

    def _close(self, frame: bytes) -> None:
        kind, name = m.read_target(frame)
        if kind == ord("S"):
            self._statements.pop(name, None)
        else:
            self._portals.pop(name, None)
        self._write(m.CLOSE_COMPLETE_FRAME)

    def _execute(self, frame: bytes) -> None:
        name, after = m.cstring(frame, m.HEADER)
        if len(frame) < after + 4:
            raise ProtocolViolation("malformed Execute message")
        (limit,) = _INT32.unpack_from(frame, after)
        portal = self._portal(name)
        command = portal.command
        if command is None:
            self._write(m.frame(m.EMPTY_QUERY, b""))
            return
        self._check(command)
        if isinstance(command, Show | Constant):
            self._fetch(portal, command, limit)
            return

        def told(outcome: Done | ConsoleError) -> None:
            if isinstance(outcome, ConsoleError):
                self._skip(outcome)
            else:
                self._complete(outcome)
            self._advance()

        self._perform(command, told)

    def _fetch(self, portal: _Portal, command: Show | Constant, limit: int) -> None:
        if portal.rows is None:
            portal.rows = self._rows(command)
        columns = self._columns(command)
        count = limit if limit > 0 else len(portal.rows)
        now, portal.rows = portal.rows[:count], portal.rows[count:]
        self._write(b"".join(_data_row(columns, portal.formats, row) for row in now))
        # PostgreSQL suspends a portal as soon as the limit is reached, also where nothing is left.
        if 0 < limit == len(now):
            self._write(m.frame(m.PORTAL_SUSPENDED, b""))
        else:
            self._complete(Done(_tag(command)))


_BIND_COMPLETE: Final = m.frame(m.BIND_COMPLETE, b"")
_EXTENDED: Final[dict[int, Callable[[Console, bytes], None]]] = {
    m.PARSE: Console._parse,
    m.BIND: Console._bind,
    m.DESCRIBE: Console._describe,
    m.EXECUTE: Console._execute,
    m.CLOSE: Console._close,
}


def _tag(command: Show | Constant) -> str:
    return "SHOW" if isinstance(command, Show) else command.tag


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise ConsoleError("22021", 'invalid byte sequence for encoding "UTF8"') from None


def _notice(text: str) -> bytes:
    body = m.error_response("00000", text, severity="NOTICE")
    return bytes((m.NOTICE_RESPONSE,)) + body[1:]


def _row_description(columns: Sequence[Column], formats: Sequence[int]) -> bytes:
    body = b"".join(
        column.name.encode()
        + b"\0"
        + _FIELD.pack(0, 0, column.oid, 8 if column.oid == INT8 else -1, -1, code)
        for column, code in zip(columns, formats, strict=True)
    )
    return m.frame(m.ROW_DESCRIPTION, _INT16.pack(len(columns)) + body)


def _data_row(columns: Sequence[Column], formats: Sequence[int], row: Row) -> bytes:
    parts = [_INT16.pack(len(columns))]
    for column, code, value in zip(columns, formats, row, strict=True):
        if value is None:
            parts.append(_INT32.pack(-1))
            continue
        data = (
            _INT64.pack(int(value)) if code and column.oid == INT8 else str(value).encode("utf-8", "replace")
        )
        parts += (_INT32.pack(len(data)), data)
    return m.frame(m.DATA_ROW, b"".join(parts))


def _read_bind(frame: bytes) -> tuple[bytes, bytes, int, tuple[int, ...]]:
    """Portal, statement, number of parameters and result formats of a Bind frame."""
    portal, at = m.cstring(frame, m.HEADER)
    name, at = m.cstring(frame, at)
    try:
        (formats,) = _INT16.unpack_from(frame, at)
        at += 2 + 2 * formats
        (parameters,) = _INT16.unpack_from(frame, at)
        at += 2
        for _ in range(parameters):
            (length,) = _INT32.unpack_from(frame, at)
            at += 4 + max(0, length)
        (count,) = _INT16.unpack_from(frame, at)
        return portal, name, parameters, Struct(f">{count}H").unpack_from(frame, at + 2)
    except error as exc:
        raise ProtocolViolation("malformed Bind message") from exc
