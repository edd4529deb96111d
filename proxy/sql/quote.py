"""Quoting of identifiers for SQL text that is put together here."""

from __future__ import annotations


def ident(name: str) -> str:
    """The identifier in double quotes: right for any name, reserved words and mixed case included."""
    return '"' + name.replace('"', '""') + '"'


def idents(names: tuple[str, ...]) -> str:
    """A comma-separated list of quoted identifiers."""
    return ", ".join(map(ident, names))
