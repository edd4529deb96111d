"""Quoting for the SQL that the migrator writes: names, literals, row values. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NEW_PREFIX = "_dualwire_new_"
MARK = "_dualwire_mark"
GUARD_TRIGGER = "zzz_dualwire_guard"
FENCE_TRIGGER = "zzz_dualwire_closed"
PROXIED_TRIGGER = "zzz_dualwire_proxied"
GUARD_CHECK = "_dualwire_guard"
MAX_NAME = 63


def ident(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """A quoted, schema-qualified name."""
    return f"{ident(schema)}.{ident(name)}"


def literal(value: str | None) -> str:
    """A string literal that means the same under any ``standard_conforming_strings``."""
    if value is None:
        return "NULL"
    text = value.replace("'", "''")
    if "\\" in text:
        return "E'" + text.replace("\\", "\\\\") + "'"
    return f"'{text}'"


def cut(prefix: str, name: str) -> str:
    """``prefix + name``, cut at the end of a character to the 63 bytes that PostgreSQL keeps."""
    raw = (prefix + name).encode()
    if len(raw) <= MAX_NAME:
        return prefix + name
    return raw[:MAX_NAME].decode(errors="ignore")


def new_column_name(name: str) -> str:
    """The physical name that a new shape's column has until completed."""
    return cut(NEW_PREFIX, name)


def names(columns: Iterable[str], prefix: str = "") -> str:
    """A comma-separated list of quoted names, each after ``prefix`` (such as ``t.``)."""
    return ", ".join(prefix + ident(column) for column in columns)


def row(columns: Sequence[str], prefix: str = "") -> str:
    """A value that compares as the columns do: the column itself, or a row of them."""
    listed = names(columns, prefix)
    return listed if len(columns) == 1 else f"({listed})"


def dollar(body: str) -> str:
    """A function body between dollar quotes that it does not contain."""
    tag = "dualwire"
    while f"${tag}$" in body:
        tag += "_"
    return f"${tag}$\n{body}\n${tag}$"


def conjunction(parts: Sequence[str]) -> str:
    """All of the conditions; ``true`` for none."""
    return " AND ".join(parts) if parts else "true"
