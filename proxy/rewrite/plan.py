"""What planning a statement gives: the text to send, or a refusal, with the reason for either.

A plan is a value: cached by exact text, shared between sessions, never changed after it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.sql.kinds import Kind as Kind
from proxy.sql.splice import Edit as Edit


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that dualwire gives instead of sending the statement."""

    sqlstate: str
    message: str
    detail: str = ""
    hint: str = ""
    position: int = 0
    """Where in the client's text, in characters from 1; 0: nowhere."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision for one text under one version."""

    text: bytes
    """What to send: the client's own bytes (the same object) where nothing is rewritten."""
    kind: Kind
    reason: str
    """Why this plan: snake_case, a bounded set of values, fit for a metric label."""
    edits: tuple[Edit, ...] = ()
    tables: tuple[str, ...] = ()
    """Tables of the routing state that the statement names, ``schema.name``."""
    mirrored: bool = False
    """The text writes both shapes itself."""
    guarded: bool = False
    """The text writes one shape and leaves the other to the guard."""
    refusal: Refusal | None = None
    relations: tuple[tuple[str | None, str], ...] = ()
    """(schema or None, name) of every relation that a READ names, for the check that a replica can serve it."""
    fallback: Plan | None = None
    """What to send when the server rejects ``text`` but accepts the original (None: refuse)."""
    twin: bytes | None = None
    """The client's text over empty tables of its version's shape: what the server is asked for parameter types, the
    description and errors where the version has columns that the tables have not (None: the text is asked itself)."""
    twin_edits: tuple[Edit, ...] = ()
    """What makes the client's text that of ``twin``."""
    settings: tuple[tuple[str, str | None], ...] = ()
    """For Kind.SET: (lower-case name, the statement's own text or None for RESET)."""
    temp_relations: tuple[str, ...] = ()
    """Names of temporary relations that the statement creates."""
    statements: int = 1
    explanations: tuple[str, ...] = field(default=())
    """Sentences for people: what was done to the statement and why (``dualwire explain``)."""

    @property
    def rewritten(self) -> bool:
        """Whether the text that is sent differs from the client's."""
        return bool(self.edits)

    @property
    def touches(self) -> bool:
        """Whether the statement may touch a table of the routing state (unparsable text may)."""
        return bool(self.tables) or self.kind is Kind.UNPARSED
