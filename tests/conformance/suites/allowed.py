"""The reviewed list of tests that may differ through the sidecar, with the reason of each.

One entry a line: ``test id -- reason``. An id that ends in ``*`` stands for every test that begins so. A ``~`` before
it says that the difference is one of timing: it need not show, and must not always show. Blank lines and lines that
begin with ``#`` are comments. An entry without a reason is an error: nothing is allowed for no reason.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.suites.sources import SuiteError

SEPARATOR = " -- "


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the file."""

    pattern: str
    reason: str
    sometimes: bool = False

    def covers(self, test: str) -> bool:
        """Whether the entry speaks of this test."""
        if self.pattern.endswith("*"):
            return test.startswith(self.pattern[:-1])
        return test == self.pattern


@dataclass(frozen=True, slots=True)
class Allowed:
    """All entries of a file."""

    entries: tuple[Entry, ...]

    def reason(self, test: str) -> str | None:
        """Why this test may differ; None if it may not."""
        return next((entry.reason for entry in self.entries if entry.covers(test)), None)

    def sometimes(self, test: str) -> bool:
        """Whether the test may differ, but not always."""
        return next((entry.sometimes for entry in self.entries if entry.covers(test)), False)

    def stale(self, differing: Collection[str]) -> list[Entry]:
        """Entries that speak of no test that differs, though they should."""
        return [
            entry
            for entry in self.entries
            if not entry.sometimes and not any(entry.covers(test) for test in differing)
        ]


def read(path: Path) -> Allowed:
    """The entries of a file; a file that is not there allows nothing."""
    entries: dict[str, Entry] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = (part.strip() for part in line.partition(SEPARATOR))
        sometimes = pattern.startswith("~")
        pattern = pattern.removeprefix("~").strip()
        if not pattern or not reason:
            raise SuiteError(f'{path.name}:{number}: an entry is "test id{SEPARATOR}reason", not {line!r}')
        if pattern in entries:
            raise SuiteError(f"{path.name}:{number}: {pattern} is listed twice")
        entries[pattern] = Entry(pattern, reason, sometimes)
    return Allowed(tuple(entries.values()))
