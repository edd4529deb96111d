"""Edits of a client's text by byte offsets, and the way back from a position in the result.

Splicing keeps the client's comments, hints and spelling, and lets the server's error positions be mapped
back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``original[start:end]`` (byte offsets) by ``text``; ``start == end`` is an insertion."""

    start: int
    end: int
    text: bytes
    recipe: str
    """The name of the rule that asked for the edit, e.g. ``mirror_set`` or ``expand_star``."""


def ordered(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """The edits in the order of the text; insertions at one place stay in the order given.

    Raises ValueError if two of them overlap.
    """
    result = tuple(sorted(edits, key=lambda edit: (edit.start, edit.end)))
    last = 0
    for edit in result:
        if edit.start < last or edit.end < edit.start:
            raise ValueError(f"overlapping edits at byte {edit.start}")
        last = edit.end
    return result


def apply(original: bytes, edits: Sequence[Edit]) -> bytes:
    """The text after all edits; they must be ``ordered``."""
    return render(original, edits, 0, len(original))


def render(original: bytes, edits: Sequence[Edit], start: int, end: int) -> bytes:
    """The part ``original[start:end]`` after those of the ordered edits that lie within it."""
    parts: list[bytes] = []
    at = start
    for edit in edits:
        if edit.start < start or edit.end > end:
            continue
        parts.append(original[at : edit.start])
        parts.append(edit.text)
        at = edit.end
    parts.append(original[at:end])
    return b"".join(parts)


def original_position(original: bytes, edits: Sequence[Edit], position: int) -> int:
    """Where a server's error position (1-based, in characters of the edited text) stands in the original.

    A position inside text that an edit brought in maps to the place of the edit. Past the end it maps to the
    end.
    """
    at = 0
    remaining = max(position, 1) - 1
    for edit in edits:
        kept = characters(original[at : edit.start])
        if remaining < kept:
            break
        remaining -= kept
        at = edit.start
        added = characters(edit.text)
        if remaining < added:
            return characters(original[: edit.start]) + 1
        remaining -= added
        at = edit.end
    total = characters(original)
    return min(characters(original[:at]) + remaining, total) + 1


def characters(text: bytes) -> int:
    """How many characters of UTF-8 a text has: its bytes that do not continue one."""
    if text.isascii():
        return len(text)
    return sum(1 for byte in text if byte & 0xC0 != 0x80)
