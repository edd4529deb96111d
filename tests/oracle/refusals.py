"""The only refusals (0A000) that the oracle accepts, each with the reason why the statement cannot be served."""

from __future__ import annotations

import re

REFUSALS: tuple[tuple[str, str], ...] = ()
"""(regular expression over the message, reason)."""


def allowed(message: str) -> str | None:
    """The reason for which a refusal with that message is accepted."""
    for pattern, reason in REFUSALS:
        if re.search(pattern, message):
            return reason
    return None
