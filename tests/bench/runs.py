"""Runs of pgbench and what they give, and the tables that figures are printed in.

``rounds`` does every cell of a matrix by turns, so that what disturbs the machine for a while disturbs all ways. A
``Spread`` is what the rounds gave of one figure.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from migrator.cluster.cluster import client_program
from proxy.build.state import describe
from tests.bench.ways import Way, absent

SECONDS = int(os.environ.get("BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
CLIENTS = [int(word) for word in os.environ.get("BENCH_CLIENTS", "8 64").split()]

Cell = TypeVar("Cell")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Figure:
    """One pgbench run."""

    tps: float
    done: int
    user: float
    """Microseconds of the proxy's CPU a transaction, in its own code; 0 for the straight way."""
    system: float
    """The same, in the kernel."""
    latencies: tuple[float, float] = (0.0, 0.0)
    """The median and the 99th percentile, in microseconds."""

    @property
    def cpu(self) -> float:
        return self.user + self.system


@dataclass(frozen=True)
class Spread:
    """A figure's rounds."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        return median(self.values)

    def text(self, form: str = ",.0f") -> str:
        """The median; the smallest and the largest, if there is more than one."""
        low, high = min(self.values), max(self.values)
        return f"{self.middle:{form}}" + (f" ({low:{form}}–{high:{form}})" if len(self.values) > 1 else "")


def spread(values: Iterable[float]) -> Spread:
    return Spread(tuple(values))


def ratios(runs: Sequence[float], control: Sequence[float]) -> Spread:
    """Of each round to the same round of the control."""
    return spread(mine / its for mine, its in zip(runs, control, strict=True))


def rounds(cells: Sequence[Cell], run: Callable[[Cell], Result]) -> dict[Cell, list[Result]]:
    """Every cell once in each round."""
    found: dict[Cell, list[Result]] = {cell: [] for cell in cells}
    for _ in range(ROUNDS):
        for cell in cells:
            found[cell].append(run(cell))
    return found


def pgbench(
    way: Way,
    mode: str,
    clients: int,
    *,
    seconds: float = SECONDS,
    reconnect: bool = False,
    program: Path | None = None,
    tls: bool = False,
    password: str | None = None,
    latency: bool = False,
) -> Figure:
    """``pgbench -S`` for whole seconds, at least one; fails if a transaction failed.

    It has one thread; where it reconnects one for each client, because a thread does nothing else while it connects.
    """
    with tempfile.TemporaryDirectory(prefix="dualwire-bench-log-") as directory:
        command = [
            str(program or client_program("pgbench")),
            *("-n", "-S", "-M", mode, "-c", str(clients), "-j", str(clients if reconnect else 1)),
            *("-T", str(max(1, int(seconds)))),
            *(["-C"] if reconnect else []),
            *(["-l", f"--log-prefix={directory}/log"] if latency else []),
            *("-h", "127.0.0.1", "-p", str(way.port), "-U", way.user, way.database),
        ]
        before = way.cpu_seconds()
        output = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PGPASSWORD": password or way.password or "",
                "PGSSLMODE": "require" if tls else "disable",
                "PGGSSENCMODE": "disable",
            },
        )
        after = way.cpu_seconds()
        said = f"{way.name}, {mode}: {output.stdout}{output.stderr}"
        assert output.returncode == 0, said
        assert "number of failed transactions: 0 " in output.stdout, said
        done = int(re.search(r"transactions actually processed: (\d+)", output.stdout)[1])  # type: ignore[index]
        tps = float(re.search(r"tps = ([\d.]+)", output.stdout)[1])  # type: ignore[index]
        return Figure(
            tps,
            done,
            (after[0] - before[0]) / done * 1e6,
            (after[1] - before[1]) / done * 1e6,
            _latencies(Path(directory)) if latency else (0.0, 0.0),
        )


def _latencies(directory: Path) -> tuple[float, float]:
    taken = [int(line.split()[2]) for log in directory.glob("log*") for line in log.read_text().splitlines()]
    # What comes first finds cold caches.
    taken = taken[len(taken) // 20 :]
    cuts = quantiles(taken, n=100)
    return cuts[49], cuts[98]


WORDS = ("mode", "login", "way", "ratio to", "which", "function")
"""The headings of columns that hold no numbers."""


def table(title: str, headings: Sequence[str]) -> Table:
    """A table that can be copied into a document."""
    made = Table(box=box.MARKDOWN, title=f"{title} (dualwire: {describe()})", title_justify="left")
    for heading in headings:
        made.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=True)
    return made


def show(made: Table, notes: Iterable[str] = ()) -> None:
    """Print it with what was left out."""
    console = Console(width=220, highlight=False, markup=False)
    console.print()
    console.print(made)
    for note in notes:
        console.print(f"left out: {note}")
    for name in absent():
        console.print(f"left out: {name} is not installed")
