"""Parsing of untrusted SQL text into JSON trees, bounded in length and depth.

Promises: never raises and never crashes on any bytes; what cannot be parsed comes back as a ``Failure`` that
says why. Every ``location`` in the trees is a byte offset into the text (the JSON omits zero and false
fields: read with ``.get("location", 0)``). It never calls ``pglast.parse_sql``, which can overflow the C
stack on hostile input.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pglast.parser import ParseError, parse_sql_json

Node = dict[str, Any]
"""A node of the tree: field name to value; a wrapped node has one key, its type's name."""

LEAVES = frozenset({"A_Const", "ParamRef", "String", "TypeName", "typeName"})
"""Keys under which a tree names no column, no relation and no function."""

MAX_BYTES = 4 << 20
"""Longer texts are not parsed: an INSERT of very many rows takes about half a second for each mebibyte to plan."""


MAX_OPENINGS = 64
_SIGNS = re.compile(rb"[~!@#^&|`?+\-*/%<>=]{128,}+")


class Failure(StrEnum):
    """Why a text has no tree."""

    SYNTAX = "syntax"
    """Not in the parser's grammar: the server will very likely say the same."""
    LIMIT = "limit"
    """Too long or too deeply nested to look into; the server may well accept it."""
    ENCODING = "encoding"
    """Not UTF-8, or with a NUL byte."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a text."""

    type: str
    """The node's type, e.g. ``UpdateStmt``."""
    node: Node
    start: int
    """Byte offset of the statement's first byte (white space and comments may stand before the first token)."""
    end: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """The outcome of parsing one text."""

    text: bytes
    statements: tuple[Statement, ...] = ()
    failure: Failure | None = None
    message: str = ""


def parse(text: bytes) -> Parsed:
    """Parse a text of any number of statements."""
    if len(text) > MAX_BYTES:
        return Parsed(text, failure=Failure.LIMIT, message=f"longer than {MAX_BYTES} bytes")
    if text.count(b"/*") > MAX_OPENINGS and _nests(text):
        return Parsed(text, failure=Failure.LIMIT, message="too many comments within comments")
    if b"\0" in text:
        return Parsed(text, failure=Failure.ENCODING, message="a NUL byte")
    try:
        source = text.decode()
    except UnicodeDecodeError as error:
        return Parsed(text, failure=Failure.ENCODING, message=str(error))
    try:
        tree = json.loads(parse_sql_json(source))
    except ParseError as error:
        message = str(error)
        return Parsed(text, failure=_failure_of(message), message=message)
    except (RecursionError, MemoryError):
        return Parsed(text, failure=Failure.LIMIT, message="nested too deeply")
    statements = []
    for raw in tree.get("stmts", ()):
        start = raw.get("stmt_location", 0)
        length = raw.get("stmt_len", 0)
        for kind, node in raw["stmt"].items():
            statements.append(Statement(kind, node, start, start + length if length else len(text)))
    return Parsed(text, tuple(statements))


def _nests(text: bytes) -> bool:
    """Whether very many comments begin with nothing but signs between them: the scanner takes quadratic time for it."""
    return any(run.count(b"/*") > MAX_OPENINGS for run in _SIGNS.findall(text))


def _failure_of(message: str) -> Failure:
    if "memory exhausted" in message or "stack depth" in message or "nested too" in message:
        return Failure.LIMIT
    return Failure.SYNTAX
