"""The demo's result: one object for programs, one table and a verdict for people."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .check import Findings
from .meter import Phase


@dataclass(slots=True)
class Result:
    """Everything that the verdict rests on."""

    seed: int
    rows: int
    writes_wanted: int
    phases: list[Phase] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each phase lasted, by its name."""
    stalls: dict[str, float] = field(default_factory=dict)
    """The longest operation around each flip, in seconds."""
    migrations: dict[str, str] = field(default_factory=dict)
    expected_migrations: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    checks: int = 0
    errors: list[str] = field(default_factory=list)
    """Samples of what clients saw."""
    failures: list[str] = field(default_factory=list)
    """What stopped the story before its end."""

    @property
    def writes(self) -> int:
        return sum(phase.writes for phase in self.phases)

    @property
    def reads(self) -> int:
        return sum(phase.reads for phase in self.phases)

    @property
    def client_errors(self) -> int:
        return sum(phase.errors for phase in self.phases)

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is no; empty when it is yes."""
        reasons = list(self.failures)
        if self.client_errors:
            reasons.append(f"{self.client_errors} client error(s)")
        if self.findings.lost:
            reasons.append(f"{len(self.findings.lost)} row(s) lost")
        if self.findings.diverged:
            reasons.append(f"{len(self.findings.diverged)} row(s) diverged")
        if not self.checks:
            reasons.append("the rows were never checked")
        if self.writes < self.writes_wanted:
            reasons.append(f"only {self.writes:,} of {self.writes_wanted:,} writes were acknowledged")
        for name, phase in self.expected_migrations.items():
            found = self.migrations.get(name, "not started")
            if found != phase:
                reasons.append(f"{name} is {found}, not {phase}")
        return reasons

    @property
    def ok(self) -> bool:
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """The object that ``--format json`` prints."""
        return {
            "phases": [
                {
                    "phase": phase.name,
                    "seconds": round(self.seconds.get(phase.name, 0.0), 2),
                    "writes": phase.writes,
                    "reads": phase.reads,
                    "errors": phase.errors,
                    "p50_ms": _ms(phase.latency.quantile(0.5)),
                    "p99_ms": _ms(phase.latency.quantile(0.99)),
                    "longest_ms": _ms(phase.longest),
                }
                for phase in self.phases
            ],
            "writes_acknowledged": self.writes,
            "reads": self.reads,
            "client_errors": self.client_errors,
            "rows_lost": len(self.findings.lost),
            "rows_diverged": len(self.findings.diverged),
            "stall_ms": {name: _ms(seconds) for name, seconds in self.stalls.items()},
            "latency_ms": {
                phase.name: {
                    "p50": _ms(phase.latency.quantile(0.5)),
                    "p99": _ms(phase.latency.quantile(0.99)),
                }
                for phase in self.phases
            },
            "ok": self.ok,
            "migrations": self.migrations,
            "seed": self.seed,
            "rows": self.rows,
        }

    def print(self, console: Console) -> None:
        """The table and the verdict."""
        table = Table(title="What the clients saw", title_justify="left")
        table.add_column("phase", no_wrap=True)
        for name in ("seconds", "writes", "reads", "errors", "p50 ms", "p99 ms", "longest ms"):
            table.add_column(name, justify="right")
        for phase in self.phases:
            table.add_row(
                _short(phase.name),
                f"{self.seconds.get(phase.name, 0.0):.1f}",
                f"{phase.writes:,}",
                f"{phase.reads:,}",
                str(phase.errors),
                f"{_ms(phase.latency.quantile(0.5)):.1f}",
                f"{_ms(phase.latency.quantile(0.99)):.1f}",
                f"{_ms(phase.longest):.1f}",
            )
        console.print(table)
        flips = Table(title="Longest stall at each flip", title_justify="left")
        flips.add_column("flip", no_wrap=True, min_width=24)
        flips.add_column("ms", justify="right")
        for name, seconds in self.stalls.items():
            flips.add_row(_short(name), f"{_ms(seconds):.1f}")
        console.print(flips)
        for name, phase_name in self.migrations.items():
            console.print(f"{name}: {phase_name}", highlight=False)
        console.print(
            f"{self.writes:,} writes acknowledged, {self.reads:,} reads, "
            f"client_errors: {self.client_errors}, "
            f"rows_lost: {len(self.findings.lost)}, rows_diverged: {len(self.findings.diverged)} "
            f"({self.findings.checked:,} rows compared in {self.checks} checks)",
            highlight=False,
        )
        self.print_samples(console)
        if self.ok:
            console.print("[bold green]OK[/]: nothing lost, nothing diverged, no client noticed.")
        else:
            console.print(f"[bold red]NOT OK[/]: {'; '.join(self.reasons)}", highlight=False)

    def print_samples(self, console: Console) -> None:
        """What went wrong, in words."""
        for kind, samples in (("row", self.findings.samples), ("client", self.errors)):
            for sample in samples:
                console.print(f"  {kind}: {sample}", markup=False, highlight=False, soft_wrap=True)


def _short(name: str) -> str:
    """``0001_order_state expanded`` and ``0001_order_state.expand`` without the migration's words."""
    return re.sub(r"^(\d+)_\w+[ .]", r"\1 ", name)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
