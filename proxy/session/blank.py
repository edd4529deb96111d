"""What may stand before and between words of SQL, as a regular expression that takes linear time whatever the text.

Contract: :data:`BLANK` never gives back what it took, so nothing is tried twice. Where a search begins anew at many
places of a text, each may run to its end: :func:`tangled` says of which texts that must be feared, and then the caller
answers as if it had found what it looked for, or not, whichever is safe.
"""

from __future__ import annotations

import re
from typing import Final

BLANK: Final = rb"(?:\s++|--[^\n]*+(?:\n|\Z)|/\*(?:[^*]++|\*(?!/))*+\*/)*+"
_OPENINGS: Final = re.compile(rb"/\*|--|\$\w*+\$")
MAX_STEPS: Final = 1 << 19


def tangled(text: bytes) -> bool:
    """Whether a text has so many beginnings of comments and dollar quotes that looking from each to its end is much."""
    if len(text) <= 512:
        return False
    return any(found * len(text) > MAX_STEPS for found, _ in enumerate(_OPENINGS.finditer(text), 1))
