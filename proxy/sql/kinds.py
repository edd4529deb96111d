"""What a statement is to a session and to routing: the vocabulary that classification answers in."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What a statement is to a session and to routing. The worst kind of all statements of a text counts."""

    READ = "read"
    """Proved to change nothing and to need nothing that only the primary has."""
    WRITE = "write"
    """May change something, or could not be proved harmless: the default."""
    BEGIN = "begin"
    COMMIT = "commit"
    """COMMIT, END, PREPARE TRANSACTION."""
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    """SAVEPOINT, RELEASE, ROLLBACK TO."""
    SET = "set"
    """SET or RESET of one session setting."""
    SET_LOCAL = "set_local"
    """SET LOCAL, SET TRANSACTION, SET CONSTRAINTS: ends with the transaction."""
    SHOW = "show"
    COPY_IN = "copy_in"
    DDL = "ddl"
    SESSION = "session"
    """LISTEN, DISCARD, DEALLOCATE, PREPARE, EXECUTE, DECLARE, LOAD, temp tables: state of the server session."""
    EMPTY = "empty"
    UNPARSED = "unparsed"
    """Could not be parsed; the server will say why."""


_SEVERITY = {
    kind: rank
    for rank, kind in enumerate(
        (
            Kind.EMPTY,
            Kind.READ,
            Kind.SHOW,
            Kind.SET_LOCAL,
            Kind.SAVEPOINT,
            Kind.BEGIN,
            Kind.COMMIT,
            Kind.ROLLBACK,
            Kind.SET,
            Kind.WRITE,
            Kind.COPY_IN,
            Kind.DDL,
            Kind.SESSION,
            Kind.UNPARSED,
        )
    )
}


def worst(first: Kind, second: Kind) -> Kind:
    """The kind that says more about what a session must mind."""
    return first if _SEVERITY[first] >= _SEVERITY[second] else second
