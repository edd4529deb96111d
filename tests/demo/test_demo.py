"""``dualwire demo`` from end to end: the verdict is yes, and it is no when the product is broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEMO = [sys.executable, "-m", "migrator.cli.main", "demo"]
SMALL = ["--quick", "--rows", "3000", "--writes", "300", "--format", "json"]
KEYS = {
    "phases",
    "writes_acknowledged",
    "reads",
    "client_errors",
    "rows_lost",
    "rows_diverged",
    "stall_ms",
    "latency_ms",
    "ok",
    "migrations",
    "seed",
    "rows",
}
FIRST, SECOND = "0001_order_state", "0002_customer_email"


def run(*args: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run([*DEMO, *args], capture_output=True, text=True, timeout=180, check=False)
    try:
        return done.returncode, json.loads(done.stdout), done.stderr
    except json.JSONDecodeError:
        pytest.fail(f"no JSON on standard output, status {done.returncode}:\n{done.stdout}\n{done.stderr}")


def test_two_migrations_under_traffic_lose_nothing_and_nobody_notices() -> None:
    status, result, log = run(*SMALL)
    assert (status, result["ok"]) == (0, True), log
    assert result.keys() == KEYS
    assert result["migrations"] == {FIRST: "completed", SECOND: "rolled_back"}
    assert (result["client_errors"], result["rows_lost"], result["rows_diverged"]) == (0, 0, 0)
    assert result["writes_acknowledged"] >= 300
    assert result["reads"] > 0
    assert result["rows"] == 3000
    assert {f"{FIRST}.{flip}" for flip in ("expand", "cutover", "complete")} <= result["stall_ms"].keys()
    assert {f"{SECOND}.{flip}" for flip in ("expand", "cutover", "rollback")} <= result["stall_ms"].keys()
    names = [phase["phase"] for phase in result["phases"]]
    assert {f"{FIRST} {phase}" for phase in ("expanded", "verified", "cutover", "completed")} <= set(names)
    assert result["latency_ms"].keys() == set(names)
    assert all(latency.keys() == {"p50", "p99"} for latency in result["latency_ms"].values())


def test_a_broken_product_fails_the_verdict() -> None:
    status, result, log = run(*SMALL, "--sabotage")
    assert (status, result["ok"]) == (4, False), log
    assert result["rows_diverged"] > 0


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary directory with a short name (sockets live in it) that the server's user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="dw-", dir="/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def started(temporary: Path, eventually: Callable[..., None]) -> Iterator[subprocess.Popen[bytes]]:
    """A demo in the middle of its traffic."""
    log = temporary / "log"
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with (
        log.open("wb") as output,
        subprocess.Popen([*DEMO, *SMALL], stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            eventually(lambda: "traffic:" in log.read_text(), 60, "the traffic's start")
            assert _processes_of(temporary)
            yield process
        finally:
            process.kill()


def test_an_interrupted_demo_leaves_nothing_behind(
    started: subprocess.Popen[bytes], temporary: Path, eventually: Callable[..., None]
) -> None:
    started.send_signal(signal.SIGINT)
    assert started.wait(30) == 128 + signal.SIGINT
    eventually(lambda: not _processes_of(temporary), 20, "the end of all processes")
    assert [path.name for path in temporary.iterdir()] == ["log"]


def test_a_killed_demo_leaves_nothing_behind(
    started: subprocess.Popen[bytes], temporary: Path, eventually: Callable[..., None]
) -> None:
    started.kill()
    started.wait(10)
    eventually(lambda: not _processes_of(temporary), 20, "the end of all processes")
    eventually(lambda: [path.name for path in temporary.iterdir()] == ["log"], 5, "the directory's removal")


def test_an_unknown_format_is_a_usage_error() -> None:
    done = subprocess.run([*DEMO, "--format", "xml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "text or json" in done.stderr


def _processes_of(directory: Path) -> list[int]:
    """The live processes that have the directory in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
