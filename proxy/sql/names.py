"""The byte-level test that stands before any parse: can this text name one of these relations?

False means certainly not. True may be a false alarm (a longer word, a string, a comment): it only costs a
parse. Texts whose names cannot be seen in their bytes (Unicode escapes) or that run other texts (EXECUTE, DO,
CALL) always answer True.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_HIDING = (b"u&", b"execute", b"prepare", b"deallocate", b"call")
_DO = re.compile(rb"\bdo\b")
_MANY = 8
"""From this many names on, one search for all of them beats a search for each."""


def touches_names(names: Iterable[str]) -> Callable[[bytes], bool]:
    """Compile the test for a set of names (as the catalog has them, unquoted, without schema)."""
    needles = sorted({spelling for name in names for spelling in _spellings(name)})
    if not needles:
        return _never
    if len(needles) > _MANY:
        search = re.compile(b"|".join(re.escape(needle) for needle in (*needles, *_HIDING))).search

        def touches_many(text: bytes) -> bool:
            lowered = text.lower()
            return search(lowered) is not None or _is_do(lowered)

        return touches_many
    fixed = (*needles, *_HIDING)

    def touches(text: bytes) -> bool:
        lowered = text.lower()
        for needle in fixed:
            if needle in lowered:
                return True
        return _is_do(lowered)

    return touches


def _is_do(lowered: bytes) -> bool:
    return b"do" in lowered and _DO.search(lowered) is not None


def _spellings(name: str) -> set[bytes]:
    lowered = name.encode().lower()
    return {lowered, lowered.replace(b'"', b'""')}


def _never(text: bytes) -> bool:
    return False
