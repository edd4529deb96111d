"""Which texts leave nothing behind on a shared server, told from their bytes: the fast path of transaction mode.

Contract: :func:`harmless` is True only for a single statement that begins with a listed word and names nothing that
could set, lock or create something for the session. It says no far too often (a semicolon in a literal is enough);
what it does not know is parsed and classified, once for each text.
"""

from __future__ import annotations

from typing import Final

_WORDS: Final = frozenset(
    b"select insert update delete merge with values table begin start commit end rollback abort savepoint release "
    b"fetch move copy explain".split()
)
_BLANKS: Final = b" \t\r\n;"


def harmless(text: bytes) -> bool:
    """Whether the text is one statement that changes nothing which outlives its transaction but data.

    What must not be in it: set_config; advisory locks; SELECT INTO TEMP and pg_temp; identifiers with Unicode escapes,
    which may spell any of these.
    """
    lowered = text.lower().strip(_BLANKS)
    end = 0
    for end in range(min(len(lowered), 10)):
        if not 97 <= lowered[end] <= 122:
            break
    else:
        end = len(lowered)
    return (
        lowered[:end] in _WORDS
        and b";" not in lowered
        and b"_config" not in lowered
        and b"advisory" not in lowered
        and b"temp" not in lowered
        and b"u&" not in lowered
    )
