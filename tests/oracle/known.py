"""Failures that the oracle has found and that are not mended yet: a program that shows one is counted, not failed.

Each has a named case in ``cases`` that is expected to fail, strictly: when the bug is mended, both are taken out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """A failure, told by the step and by what differs."""

    name: str
    step: str
    difference: str

    def matches(self, step: str, difference: str) -> bool:
        """Whether a difference in a step is this failure."""
        return bool(re.search(self.step, step) and re.search(self.difference, difference))


KNOWN: tuple[Known, ...] = (
    Known("system_column_in_whole_row", r"(ctid|tableoid)", r'"(ctid|tableoid)":|"\(\d+,\d+\)"|\b\d{5}\)'),
    Known(
        "new_constraint_before_conflict",
        r"INSERT .* ON CONFLICT",
        r"got \('(C|D)'.*, expected \('E', .*'23(502|514)'",
    ),
    Known("too_few_expressions", r"INSERT INTO", r"^error 42601: .* \{'P': "),
    Known("create_table_as_whole_row", r"CREATE TEMP TABLE made AS", "has pseudo-type record"),
)


def known(step: str, difference: str) -> str | None:
    """The name of the failure that a difference shows, if it is one of these."""
    return next((k.name for k in KNOWN if k.matches(step, difference)), None)
