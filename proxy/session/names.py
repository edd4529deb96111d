"""Names of prepared statements on shared servers: one for each text and its parameter types, whoever prepares it.

A text means something else under another ``search_path`` or role: those are part of what a name stands for.

Contract: in transaction mode a client's statement name means nothing to a server, because the next transaction may run
on another one. :class:`StatementNames` is common to all sessions of a database: the same text and types have the same
server name everywhere, so that one client's Parse serves the next. Names are never given twice; what the bounded map
forgets gets a new one, and servers drop what they have not used for longest (``session.outbox``).
"""

from __future__ import annotations

import secrets
from typing import final

from proxy.session.statements import Sent

Scope = tuple[str, ...]
"""What relation names are resolved under: ``SessionSettings.scope``."""
MAX_NAMES = 20_000
"""Texts whose names are remembered."""


@final
class StatementNames:
    """See the module's docstring. ``limit`` is how many named statements one server connection may hold."""

    __slots__ = ("_count", "_names", "limit", "prefix", "taken")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Nobody can guess the name of another client's statement.
        self.prefix = b"dualwire_" + secrets.token_hex(4).encode() + b"_"
        self.taken = self.prefix + b"taken"
        """A name that a server has been made to know, for the error of a second Parse of the same name."""
        self._names: dict[tuple[Sent, Scope], bytes] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._names)

    def renew(self, sent: Sent, scope: Scope, name: bytes) -> None:
        """What servers have under this name is out of date: whoever prepares the text from now on gets another name."""
        if self._names.get((sent, scope)) == name:
            del self._names[sent, scope]

    def name(self, sent: Sent, scope: Scope) -> bytes:
        """The server name of a text with these parameter types, for sessions that resolve its names alike."""
        key = (sent, scope)
        name = self._names.get(key)
        if name is None:
            if len(self._names) >= MAX_NAMES:
                for stale in list(self._names)[: MAX_NAMES // 10]:
                    del self._names[stale]
            self._count += 1
            name = self._names[key] = self.prefix + str(self._count).encode()
        return name
