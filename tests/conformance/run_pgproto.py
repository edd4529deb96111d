"""The message scripts by our interpreter and, where it is found, by pgproto itself.

``python -m tests.conformance pgproto`` runs it. ``PGPROTO`` names the program; else it is looked for in PATH. Arguments
go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conformance.suites.servers import clean_environment

TESTS = Path(__file__).with_name("test_pgproto.py")


def main(arguments: list[str] | None = None) -> int:
    """Runs the module's tests, the slow ones too; pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", str(TESTS), *(arguments or [])]
    return subprocess.run(command, check=False, env=_environment()).returncode


def _environment() -> dict[str, str]:
    """Settings of the caller for libpq would lead pgproto elsewhere; those for this project are wanted."""
    ours = {
        name: value for name, value in os.environ.items() if name == "PGPROTO" or name.startswith("DUALWIRE_")
    }
    return clean_environment(**ours)
