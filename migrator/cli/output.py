"""How every command ends: results on stdout, errors as one clear block on stderr (or as JSON on stdout)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

import asyncpg
import typer

from migrator.errors import DualwireError, NotObtained

T = TypeVar("T")
INTERRUPTED = 130


class Format(StrEnum):
    """``--format``."""

    text = "text"
    json = "json"


def show(value: Any, text: str, output: Format) -> None:
    """Print a result."""
    if output is Format.json:
        print(json.dumps(value, default=str))
    elif text:
        print(text)


def fail(error: DualwireError, output: Format) -> None:
    """Print an error and leave with its code."""
    if output is Format.json:
        print(error.as_json())
    else:
        lines = [f"error: {error.message}"]
        if error.sqlstate:
            lines.append(f"  SQLSTATE: {error.sqlstate}")
        if error.detail:
            lines.append(f"  detail: {error.detail}")
        if error.hint:
            lines.append(f"  hint: {error.hint}")
        print("\n".join(lines), file=sys.stderr)
    raise typer.Exit(error.exit_code)


def perform(work: Coroutine[Any, Any, T], output: Format) -> T:
    """Run a command's coroutine; told errors become a block and an exit code."""
    try:
        return asyncio.run(work)
    except DualwireError as error:
        fail(error, output)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, ConnectionError) as error:
        fail(
            NotObtained(
                f"the connection to the server was lost: {error}",
                hint="Run the same command again: it goes on where it stopped.",
            ),
            output,
        )
    raise AssertionError("unreachable")


def parse_duration(text: str) -> timedelta:
    """``24h``, ``30m``, ``90s``, ``2d``, ``0`` or a number of seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    body = text.strip().lower()
    factor = units.get(body[-1:], 1)
    number = body[:-1] if body[-1:] in units else body
    try:
        value = float(number)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a duration like 24h, 30m or 0") from None
    if value < 0:
        raise typer.BadParameter("a duration cannot be negative")
    return timedelta(seconds=value * factor)
