"""A cache that is bounded in entries and bytes, and what it counts. Imports nothing of dualwire.

Two generations: what is asked for is in the young one or comes back into it; when the young one is half of the bounds,
the old one is dropped and the young one takes its place. So what is used stays, as in a least-recently-used cache, and
a hit costs one look into a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar, final

K = TypeVar("K")
V = TypeVar("V")

CACHES: Final = ("plans", "templates", "verdicts")


@final
class CacheCounts:
    """What all caches of one name have done, and what they hold now."""

    __slots__ = ("bytes", "entries", "evictions", "hits", "misses")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        """Entries dropped for want of room."""
        self.entries = 0
        self.bytes = 0


@final
class Kept(Generic[V]):
    """An entry."""

    __slots__ = ("hits", "size", "value")

    def __init__(self, value: V, size: int) -> None:
        self.value = value
        self.size = size
        self.hits = 0


@final
class Cache(Generic[K, V]):
    """See the module. An entry larger than a sixteenth of the bound in bytes is not kept."""

    __slots__ = ("_counts", "_half_bytes", "_half_entries", "_old", "_old_bytes", "_young", "_young_bytes")

    def __init__(self, entries: int, size: int, counts: CacheCounts) -> None:
        self._half_entries = max(entries // 2, 1)
        self._half_bytes = max(size // 2, 1)
        self._counts = counts
        self._young: dict[K, Kept[V]] = {}
        self._old: dict[K, Kept[V]] = {}
        self._young_bytes = 0
        self._old_bytes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """What is kept under a key."""
        kept = self._young.get(key)
        if kept is None:
            kept = self._old.pop(key, None)
            if kept is None:
                self._counts.misses += 1
                return None
            self._old_bytes -= kept.size
            self._keep(key, kept)
        self._counts.hits += 1
        kept.hits += 1
        return kept.value

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of about so many bytes."""
        self.pop(key)
        if size > self._half_bytes // 8:
            return
        self._counts.entries += 1
        self._counts.bytes += size
        self._keep(key, Kept(value, size))

    def _keep(self, key: K, kept: Kept[V]) -> None:
        if len(self._young) >= self._half_entries or self._young_bytes + kept.size > self._half_bytes:
            self._counts.evictions += len(self._old)
            self._forget(len(self._old), self._old_bytes)
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
        self._young[key] = kept
        self._young_bytes += kept.size

    def pop(self, key: K) -> None:
        """Forget a key, if it is known."""
        kept = self._young.pop(key, None)
        if kept is not None:
            self._young_bytes -= kept.size
        else:
            kept = self._old.pop(key, None)
            if kept is None:
                return
            self._old_bytes -= kept.size
        self._forget(1, kept.size)

    def clear(self) -> None:
        """Forget everything: it is out of date."""
        self._forget(len(self), self._young_bytes + self._old_bytes)
        self._young, self._old = {}, {}
        self._young_bytes = self._old_bytes = 0

    def _forget(self, entries: int, size: int) -> None:
        self._counts.entries -= entries
        self._counts.bytes -= size

    def items(self) -> Iterator[tuple[K, Kept[V]]]:
        """All entries, the ones used lately first."""
        yield from list(self._young.items())
        yield from list(self._old.items())
