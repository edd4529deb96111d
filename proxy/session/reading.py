"""When a session may read from a replica: its side of read-your-writes (see ``proxy.backend.lag`` for the other).

A session remembers the number of the last LSN sample that had been sent to the primary when it last heard from it; a
replica serves it once it has replayed a later one. It stays with its replica, because another one may be behind it.
"""

from __future__ import annotations

from typing import final

from proxy.session.ports import Reads
from proxy.session.settings import SessionSettings
from proxy.session.work import Work


@final
class Reading:
    """Where one session reads."""

    __slots__ = ("_reads", "_settings", "_user", "_waits", "replica", "seen")

    def __init__(self, reads: Reads, settings: SessionSettings, user: str) -> None:
        self._reads = reads
        self._settings = settings
        self._user = user
        self._waits = False
        self.seen = 0
        """The number of the last sample sent when this session last heard from the primary."""
        self.replica: int | None = None
        """The replica that this session reads from."""

    def replica_for(self, work: Work) -> tuple[int | None, str]:
        """The replica that can serve a read, or None, and the reason."""
        if not self._settings.portable:
            return None, "session_state"
        for plan in work.plans:
            servable = self._reads.servable(plan, self._settings.search_path, self._user)
            if not servable:
                return None, "relation_unknown" if servable is None else "relation_unsafe"
        return self._reads.choose(self.seen, self.replica)

    def waits(self, reason: str) -> None:
        """A read had to go to the primary for that reason."""
        self._waits = reason == "read_your_writes"

    def found(self, index: int) -> None:
        """A read goes to this replica."""
        self._waits = False
        self.replica = index

    def heard(self) -> None:
        """Something came from the primary."""
        self.seen = self._reads.sent

    def answered(self) -> None:
        """The primary has answered in full: only a sample sent from now on helps a session that waits."""
        self.seen = self._reads.sent
        if self._waits:
            self._reads.request()

    def lost(self) -> None:
        """The replica is gone. What was read there may be newer than what another one has."""
        self.replica = None
        self.seen = self._reads.sent
