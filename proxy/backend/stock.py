"""The connections of one pool: what each was started with, how old it is, which are idle.

Only books: nothing waits here, and nothing is opened or closed.

Contract: an idle connection is in exactly one stack, that of its key, the one used last on top; a connection that was
removed is in none. A closed connection is never given out, whether or not its end has been heard of yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from proxy.backend.connection import ServerConnection

Key = tuple[tuple[str, str], ...]
"""The startup parameters, sorted: what connections are kept apart by."""

ServerState = Literal["active", "idle", "tested"]
"""PgBouncer calls "tested" what is being made ready for the next client."""

SCAN: Final = 4
"""Idle connections that are looked at for one whose settings are right already."""


@dataclass(slots=True, eq=False)
class Member:
    """What the pool knows of one of its connections."""

    key: Key
    since: float
    """When it was made, in the loop's clock."""
    expires: float
    stale: bool = False
    """Closed when it is given back."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """One connection as an operator sees it."""

    connection: ServerConnection
    state: ServerState
    age: float
    """Seconds since it was made."""
    stale: bool


class Stock:
    """See the module's docstring."""

    __slots__ = ("cleaning", "members", "stacks")

    def __init__(self) -> None:
        self.members: dict[ServerConnection, Member] = {}
        self.cleaning: set[ServerConnection] = set()
        """Those that are being made ready for the next client."""
        self.stacks: defaultdict[Key, list[ServerConnection]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self.members)

    def has(self, key: Key) -> bool:
        """Whether there is a connection with these parameters, in use or not."""
        return any(member.key == key for member in self.members.values())

    def idle(self) -> Iterator[ServerConnection]:
        """The idle connections."""
        for stack in self.stacks.values():
            yield from stack

    @property
    def idle_count(self) -> int:
        """How many are idle."""
        return sum(len(stack) for stack in self.stacks.values())

    def facts(self, now: float) -> Iterator[ServerFacts]:
        """All connections."""
        idle = set(self.idle())
        for connection, member in list(self.members.items()):
            state: ServerState = "idle" if connection in idle else "active"
            if connection in self.cleaning:
                state = "tested"
            yield ServerFacts(connection, state, now - member.since, member.stale)

    def put(self, connection: ServerConnection, key: Key, now: float) -> None:
        """A connection is idle from now on."""
        connection.idle_since = now
        self.stacks[key].append(connection)

    def take(self, key: Key, applied: dict[str, str] | None = None) -> ServerConnection | None:
        """An idle connection, one with these settings if there is one; it is idle no more."""
        stack = self.stacks.get(key)
        if not stack:
            return None
        if applied is not None:
            for index in range(len(stack) - 1, max(-1, len(stack) - 1 - SCAN), -1):
                found = stack[index]
                if (found.applied is applied or found.applied == applied) and not found.closed:
                    del stack[index]
                    return found
        while stack:
            found = stack.pop()
            if not found.closed:
                return found
        return None

    def longest_idle(self) -> ServerConnection | None:
        """The connection that was idle for longest."""
        bottom = [stack[0] for stack in self.stacks.values() if stack]
        return min(bottom, key=lambda connection: connection.idle_since) if bottom else None

    def remove(self, connection: ServerConnection) -> Member | None:
        """Forget a connection; None if it was forgotten before."""
        member = self.members.pop(connection, None)
        if member is None:
            return None
        stack = self.stacks.get(member.key)
        if stack is not None:
            if connection in stack:
                stack.remove(connection)
            if not stack:
                del self.stacks[member.key]
        return member
