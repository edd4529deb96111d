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
    Known(
        "new_constraint_before_conflict",
        r"INSERT .* ON CONFLICT",
        r"got \('(C|D)'.*, expected \('E', .*'23(502|514)'",
    ),
    Known("copy_fires_statement_triggers_for_each_row", r"COPY .* FROM STDIN", r"^notes differ$"),
    Known("too_few_expressions", r"INSERT INTO", r"^error 42601: .* \{'P': "),
    Known("whole_row_is_a_record", "nosuch", r"\(record\) does not exist"),
    Known("create_table_as_whole_row", r"CREATE TEMP TABLE made AS", "has pseudo-type record"),
)


def known(step: str, difference: str) -> str | None:
    """The name of the failure that a difference shows, if it is one of these."""
    return next((k.name for k in KNOWN if k.matches(step, difference)), None)
