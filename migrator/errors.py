"""Every way in which the migrator says no, each with the exit code that scripts rely on.

An error carries what an operator needs in one block: the message, PostgreSQL's SQLSTATE and detail where there is
one, and a hint that names the next command. Nothing here prints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import asyncpg

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_DIFFERENCES = 4
EXIT_ROLLED_BACK = 5
EXIT_LOCK = 6


class DualwireError(Exception):
    """Base of all errors that are told to the operator without a traceback."""

    exit_code = EXIT_BUG

    def __init__(
        self,
        message: str,
        *,
        detail: str = "",
        hint: str = "",
        sqlstate: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint
        self.sqlstate = sqlstate
        self.data = dict(data or {})

    def as_dict(self) -> dict[str, Any]:
        """The body of ``{"error": ...}`` on stdout."""
        body: dict[str, Any] = {"message": self.message, "exit_code": self.exit_code}
        for key in ("sqlstate", "detail", "hint"):
            if value := getattr(self, key):
                body[key] = value
        body.update(self.data)
        return body

    def as_json(self) -> str:
        """One JSON object, as ``--format json`` prints it."""
        return json.dumps({"error": self.as_dict()}, default=str)


class Usage(DualwireError):
    """The command line is wrong."""

    exit_code = EXIT_USAGE


class Refused(DualwireError):
    """Lint, pre-flight or a gate says no; nothing was changed."""

    exit_code = EXIT_REFUSED


class Differences(DualwireError):
    """Verification found rows that are not right in both shapes."""

    exit_code = EXIT_DIFFERENCES


class RolledBack(DualwireError):
    """The run had to go back by itself; the database is as it was before."""

    exit_code = EXIT_ROLLED_BACK


class NotObtained(DualwireError):
    """A lock, a lease or an acknowledgement did not come in time; the state machine stays where it was."""

    exit_code = EXIT_LOCK


def from_postgres(error: asyncpg.PostgresError, doing: str) -> Refused:
    """A statement that the server rejected, told with its own words.

    Args:
        error: what asyncpg raised.
        doing: what was being done, e.g. ``expanding public.orders``.
    """
    return Refused(
        f"{doing}: {error}",
        sqlstate=getattr(error, "sqlstate", "") or "",
        detail=getattr(error, "detail", "") or "",
        hint=getattr(error, "hint", "") or "",
    )
