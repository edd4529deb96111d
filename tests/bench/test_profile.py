"""Where a proxy's time goes: system calls of each query (strace), shares of the CPU (perf); where they are installed.

Both watch the process from outside while pgbench runs. strace slows it down so much that its counts are of smaller
batches than in normal work: read them as an upper bound, and compare the proxies with each other.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.bench import runs
from tests.bench.ways import Setup, Way

CLIENTS = 8
MODES = ("simple", "prepared")
TOP = 25

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]


def _ways(setup: Setup, stack: ExitStack) -> list[Way]:
    ways = [
        stack.enter_context(start(mode))
        for mode in ("session", "transaction")
        for start in (setup.pgbouncer, setup.dualwire)
    ]
    return [way for way in ways if way is not None]


@contextmanager
def _watched(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    attached = threading.Event()
    said: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            attached.set()
        attached.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    # Both say so when they have attached; perf only with -v, so it is given a moment instead.
    attached.wait(1)
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
    try:
        if process.poll() is not None:
            pytest.skip(f"{command[0]} cannot watch a process here: {''.join(said).strip()}")
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
        reader.join(10)


def test_system_calls_of_a_query(setup: Setup) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    rows: list[tuple[str, str, int, Counter[str]]] = []
    with ExitStack() as stack:
        for way in _ways(setup, stack):
            for mode in MODES:
                if mode in way.unable:
                    continue
                output = setup.directory / f"strace-{way.port}-{mode}"
                with _watched(["strace", "-f", "-c", "-o", str(output), "-p", str(way.pid)]):
                    figure = runs.pgbench(way, mode, CLIENTS, seconds=runs.SECONDS / 2)
                calls = Counter(
                    {
                        match[2]: int(match[1])
                        for match in re.finditer(
                            r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$",
                            output.read_text(),
                            re.MULTILINE,
                        )
                        if match[2] != "total"
                    }
                )
                rows.append((mode, way.name, figure.done, calls))
    made = runs.table(f"system calls of a query, {CLIENTS} clients", ("mode", "way", "all", "which"))
    for mode, name, done, calls in sorted(rows, key=lambda row: row[0]):
        often = [f"{call} {count / done:.2f}" for call, count in calls.most_common() if count / done >= 0.01]
        made.add_row(mode, name, f"{calls.total() / done:.2f}", ", ".join(often))
    runs.show(made)
    assert all(calls for *_, calls in rows)


def test_shares_of_the_cpu(setup: Setup) -> None:
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    shares: dict[tuple[str, str], dict[str, list[tuple[float, str]]]] = {}
    with ExitStack() as stack:
        for way in _ways(setup, stack):
            for mode in MODES:
                if mode in way.unable:
                    continue
                data = setup.directory / f"perf-{way.port}-{mode}"
                with _watched(["perf", "record", "-q", "-F", "1999", "-o", str(data), "-p", str(way.pid)]):
                    runs.pgbench(way, mode, CLIENTS, seconds=runs.SECONDS / 2)
                shares[(mode, way.name)] = {kind: _shares(data, kind) for kind in ("dso", "dso,symbol")}
    made = runs.table(f"shares of the proxy's CPU in percent, {CLIENTS} clients", ("mode", "way", "which"))
    for (mode, name), found in sorted(shares.items()):
        largest = [f"{_short(what)} {share:.0f}" for share, what in found["dso"] if share >= 1]
        made.add_row(mode, name, ", ".join(largest))
    runs.show(made)
    detail = runs.table("the largest single functions of dualwire", ("mode", "way", "percent", "function"))
    for (mode, name), found in sorted(shares.items()):
        for share, what in found["dso,symbol"][: TOP if name.startswith("dualwire") else 0]:
            detail.add_row(mode, name, f"{share:.1f}", what)
    runs.show(detail)
    assert all(found["dso"] for found in shares.values())


def _shares(data: Path, kinds: str) -> list[tuple[float, str]]:
    report = subprocess.run(
        ["perf", "report", "-i", str(data), "--sort", kinds, "--stdio", "-q", "--percent-limit", "0.3"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PERF_CONFIG": os.devnull},
    ).stdout
    found = re.findall(r"^ +([\d.]+)% +(.+?) *$", report, re.MULTILINE)
    return [(float(share), re.sub(r"\s+", " ", what).removesuffix(" - -")) for share, what in found]


def _short(library: str) -> str:
    """``loop.cpython-311-x86_64-linux-gnu.so`` is ``loop``."""
    return (
        "kernel"
        if library.startswith("[kernel")
        else library.partition(".cpython")[0].partition("__mypyc")[0]
    )
