"""Statements that need a database to themselves: PostgreSQL refuses them while anybody is connected to it.

A sidecar keeps connections of its own to each database that it serves; the server waits five seconds for others to
leave before it refuses, which is time enough to give up the idle ones.
"""

from __future__ import annotations

import re

from proxy.session.blank import BLANK

_NAME = rb'("(?:[^"]|"")+"|\w+)'
_STATEMENTS = re.compile(
    BLANK + rb"(?:"
    rb"DROP\s+DATABASE\s+(?:IF\s+EXISTS\s+)?" + _NAME + rb"|"
    rb"ALTER\s+DATABASE\s+" + _NAME + rb"\s+RENAME\b|"
    rb"CREATE\s+DATABASE\s+\S+\s.*?\bTEMPLATE\s*+=?\s*+" + _NAME + rb")",
    re.IGNORECASE | re.DOTALL,
)


def wanted_alone(text: bytes) -> str | None:
    """The database that nobody else may be connected to while this text runs."""
    match = _STATEMENTS.match(text)
    if match is None:
        return None
    name: bytes = match[1] or match[2] or match[3]
    if name.startswith(b'"'):
        return name[1:-1].replace(b'""', b'"').decode("utf-8", "replace")
    return name.decode("utf-8", "replace").lower()
