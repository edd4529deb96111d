"""The console's language: text in, commands out. Pure.

It is PgBouncer's where that has a word for the thing, and beside it what drivers and psql send of their own accord:
SET, transactions, SHOW of common settings and a few SELECTs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from proxy.config import CONSOLE_DATABASE

SERVER_VERSION: Final = "14.0 (dualwire console)"
"""What drivers take for the server's version: old enough for every psql, new enough for every driver."""

MAX_COMMANDS: Final = 64
"""Commands in one text."""

Operation = Literal["PAUSE", "RESUME", "RECONNECT", "KILL", "KILL_CLIENT", "RELOAD", "SHUTDOWN"]

_TOKEN: Final = re.compile(
    r"""(?P<blank>\s+|--[^\n]*|/\*.*?\*/)|"(?P<name>(?:[^"]|"")*)"|'(?P<string>(?:[^']|'')*)'"""
    r"""|(?P<word>(?:(?!--|/\*)[^\s;"'(),=])+)|(?P<mark>[;(),=])""",
    re.DOTALL,
)
_QUIET: Final[Mapping[str, str]] = {
    "set": "SET",
    "reset": "RESET",
    "discard": "DISCARD ALL",
    "unlisten": "UNLISTEN",
    "close": "CLOSE CURSOR",
    "deallocate": "DEALLOCATE",
}
_TRANSACTION: Final[Mapping[str, Literal["BEGIN", "COMMIT", "ROLLBACK"]]] = {
    "begin": "BEGIN",
    "start": "BEGIN",
    "commit": "COMMIT",
    "end": "COMMIT",
    "rollback": "ROLLBACK",
    "abort": "ROLLBACK",
}
TABLES: Final = (
    *(
        "pools",
        "clients",
        "servers",
        "stats",
        "migrations",
        "plans",
        "caches",
        "config",
        "databases",
        "version",
        "help",
    ),
)
_SETTINGS: Final[Mapping[str, str]] = {
    "server_version": SERVER_VERSION,
    "server_version_num": "140000",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "integer_datetimes": "on",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "time zone": "UTC",
    "search_path": '"$user", public',
    "transaction_isolation": "read committed",
    "transaction isolation level": "read committed",
    "transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "in_hot_standby": "off",
    "max_identifier_length": "63",
    "extra_float_digits": "1",
    "application_name": "",
    "statement_timeout": "0",
}
_EXPRESSIONS: Final[Mapping[str, tuple[str, str]]] = {
    "1": ("?column?", "1"),
    "version ( )": ("version", f"PostgreSQL {SERVER_VERSION}"),
    "pg_catalog.version ( )": ("version", f"PostgreSQL {SERVER_VERSION}"),
    # What asyncpg's pool resets a connection with.
    "pg_advisory_unlock_all ( )": ("pg_advisory_unlock_all", ""),
    "current_schema": ("current_schema", "public"),
    "current_schema ( )": ("current_schema", "public"),
    "current_database ( )": ("current_database", CONSOLE_DATABASE),
    "pg_catalog.current_database ( )": ("current_database", CONSOLE_DATABASE),
}


class ConsoleError(Exception):
    """A command that cannot be carried out, in PostgreSQL's terms."""

    def __init__(self, sqlstate: str, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.hint = hint
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Show:
    """``SHOW POOLS`` and its like."""

    table: str


@dataclass(frozen=True, slots=True)
class Constant:
    """One row of one text."""

    column: str
    value: str
    tag: str


@dataclass(frozen=True, slots=True)
class Quiet:
    """Accepted, and without any effect."""

    tag: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """The beginning or the end of a transaction, of which the console has none but in name."""

    tag: Literal["BEGIN", "COMMIT", "ROLLBACK"]


@dataclass(frozen=True, slots=True)
class Operate:
    """Something that changes the sidecar; it may take a while."""

    operation: Operation
    argument: str | None = None


Command = Show | Constant | Quiet | Transaction | Operate


def read(text: str) -> list[Command]:
    """The commands of a text, separated by semicolons; raises ConsoleError."""
    commands: list[list[str]] = [[]]
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ConsoleError("42601", f'syntax error at or near "{text[position : position + 20]}"')
        position = found.end()
        kind = found.lastgroup
        if kind == "mark" and found["mark"] == ";":
            commands.append([])
        elif kind == "name":
            commands[-1].append(found["name"].replace('""', '"'))
        elif kind == "string":
            commands[-1].append(found["string"].replace("''", "'"))
        elif kind != "blank":
            # An unquoted name means lower case, as everywhere in SQL.
            commands[-1].append(found[0].lower())
    filled = [words for words in commands if words]
    if len(filled) > MAX_COMMANDS:
        raise ConsoleError("54001", f"more than {MAX_COMMANDS} commands in one text")
    return [_command(words) for words in filled]


def _command(words: list[str]) -> Command:
    first, rest = words[0], words[1:]
    if first == "show":
        return _show(" ".join(rest))
    if first in _QUIET:
        return Quiet(_QUIET[first])
    if first in _TRANSACTION:
        return Transaction(_TRANSACTION[first])
    if first == "select":
        column = _EXPRESSIONS.get(" ".join(rest))
        if column is not None:
            return Constant(*column, tag="SELECT 1")
        raise ConsoleError(
            "0A000",
            "the console of the sidecar knows no tables",
            hint="It serves administrative commands: SHOW HELP lists them.",
        )
    return _operation(first, rest)


def _show(what: str) -> Command:
    if what in TABLES:
        return Show(what)
    value = _SETTINGS.get(what)
    if value is not None:
        return Constant(what.replace(" ", "_"), value, tag="SHOW")
    raise ConsoleError(
        "42704",
        f'unrecognized configuration parameter "{what}"' if what else "SHOW what?",
        hint=f"The console can SHOW {', '.join(name.upper() for name in TABLES)}.",
    )


def _operation(first: str, rest: list[str]) -> Operate:
    word = first.upper()
    match first:
        case "pause" | "resume" | "reconnect" | "kill" if len(rest) <= 1:
            operation: Operation = word  # type: ignore[assignment]
            return Operate(operation, rest[0] if rest else None)
        case "kill_client" if len(rest) == 1:
            return Operate("KILL_CLIENT", rest[0])
        case "reload" if not rest:
            return Operate("RELOAD")
        case "shutdown" if not rest or rest == ["wait_for_servers"]:
            return Operate("SHUTDOWN")
        case "pause" | "resume" | "reconnect" | "kill" | "kill_client" | "reload" | "shutdown":
            raise ConsoleError("42601", f"{word} does not take that", hint="See SHOW HELP.")
    raise ConsoleError("42601", f'unknown command "{first}"', hint="SHOW HELP lists the commands.")
