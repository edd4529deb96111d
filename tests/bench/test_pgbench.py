"""``pgbench -S`` straight, through PgBouncer (if installed) and through dualwire, in one run: tps and CPU as ratios.

Run with ``make bench``. Machines are noisy, so figures are medians over interleaved rounds and what counts is the ratio
of dualwire to PgBouncer of the same run. CPU is the proxy process's user and system time per transaction.

Environment: ``BENCH_SECONDS`` (of one pgbench run, default 4), ``BENCH_ROUNDS`` (default 3), ``BENCH_CLIENTS``
(default "8 64").
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console
from rich.table import Table

from migrator.cluster.cluster import client_program
from migrator.cluster.embedded import free_port
from proxy.build.state import describe
from tests.conftest import Database, SidecarFactory

SECONDS = int(os.environ.get("BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
CLIENTS = [int(word) for word in os.environ.get("BENCH_CLIENTS", "8 64").split()]
MODES = ("simple", "extended", "prepared")
TICKS = os.sysconf("SC_CLK_TCK")

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]


@dataclass(frozen=True)
class Way:
    """One way to the server: where pgbench connects, and the process whose CPU counts."""

    name: str
    port: int
    pid: int | None
    database: str


@dataclass(frozen=True)
class Figure:
    """One pgbench run."""

    tps: float
    cpu_us: float | None
    """Microseconds of the proxy's CPU a transaction; None for the straight way."""


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _run(way: Way, mode: str, clients: int, user: str, password: str | None) -> Figure:
    before = 0.0 if way.pid is None else _cpu_seconds(way.pid)
    output = subprocess.run(
        [
            str(client_program("pgbench")),
            *("-n", "-S", "-M", mode, "-c", str(clients), "-j", "1", "-T", str(SECONDS)),
            *("-h", "127.0.0.1", "-p", str(way.port), "-U", user, way.database),
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PGPASSWORD": password or ""},
    )
    assert "number of failed transactions: 0 " in output.stdout, output.stdout + output.stderr
    done = int(re.search(r"transactions actually processed: (\d+)", output.stdout)[1])  # type: ignore[index]
    tps = float(re.search(r"tps = ([\d.]+)", output.stdout)[1])  # type: ignore[index]
    cpu = None if way.pid is None else (_cpu_seconds(way.pid) - before) / done * 1e6
    return Figure(tps, cpu)


@contextmanager
def _pgbouncer(database: Database, directory: Path) -> Iterator[Way | None]:
    """PgBouncer in session mode, as Debian packages it, with one process; None if it is not installed."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        yield None
        return
    port, address = free_port(), database.cluster.primary.address
    password = "" if address.password is None else f" password={address.password}"
    directory.chmod(0o755)
    (directory / "users.txt").write_text(f'"{address.user}" ""\n')
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"[databases]\nbench = host={address.host} port={address.port} dbname={database.name} "
        f"user={address.user}{password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = session\n"
        "unix_socket_dir =\nmax_client_conn = 500\ndefault_pool_size = 200\nlog_connections = 0\n"
        "log_disconnections = 0\nserver_tls_sslmode = disable\nignore_startup_parameters = extra_float_digits\n"
    )
    # It refuses to run as root.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, "-q", *user, str(config)])
    database.cluster.adopt(process.pid)
    try:
        time.sleep(1)
        assert process.poll() is None, "pgbouncer did not start"
        yield Way("pgbouncer", port, process.pid, "bench")
    finally:
        process.terminate()
        process.wait(10)


def test_select_only_pgbench_against_pgbouncer(
    database: Database, sidecar: SidecarFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    primary = database.cluster.primary
    address = primary.address
    subprocess.run(
        [str(client_program("pgbench")), "-i", "-s", "10", "-q", database.dsn],
        check=True,
        capture_output=True,
    )
    config = "\n".join(
        line for line in sidecar.default_config().splitlines() if not line.startswith("replicas")
    )
    proxy = sidecar(config)
    figures: dict[tuple[str, int, str], list[Figure]] = {}
    with _pgbouncer(database, tmp_path_factory.getbasetemp()) as bouncer:
        ways = [
            Way("direct", primary.port, None, database.name),
            *([bouncer] if bouncer else []),
            Way("dualwire", proxy.port, proxy.process.pid, proxy.database),
        ]
        for _ in range(ROUNDS):
            for mode in MODES:
                for clients in CLIENTS:
                    for way in ways:
                        figure = _run(way, mode, clients, address.user, address.password)
                        figures.setdefault((mode, clients, way.name), []).append(figure)
    _report(figures, [way.name for way in ways])
    assert all(figure.tps > 0 for runs in figures.values() for figure in runs)


def _report(figures: dict[tuple[str, int, str], list[Figure]], ways: list[str]) -> None:
    control = "pgbouncer" if "pgbouncer" in ways else "direct"
    table = Table(
        title=f"pgbench -S, dualwire {describe()}, {ROUNDS} rounds of {SECONDS} s, medians; ratios to {control}"
    )
    for heading in ("mode", "clients", "way", "tps", "CPU µs/query", f"tps / {control}", f"CPU / {control}"):
        table.add_column(heading, justify="left" if heading in ("mode", "way") else "right")
    for mode in MODES:
        for clients in CLIENTS:
            reference = figures[(mode, clients, control)]
            for way in ways:
                runs = figures[(mode, clients, way)]
                tps, cpu = median(run.tps for run in runs), _median_cpu(runs)
                reference_cpu = _median_cpu(reference)
                table.add_row(
                    mode,
                    str(clients),
                    way,
                    f"{tps:,.0f}",
                    "" if cpu is None else f"{cpu:.1f}",
                    f"{tps / median(run.tps for run in reference):.2f}",
                    "" if cpu is None or not reference_cpu else f"{cpu / reference_cpu:.2f}",
                )
    Console(width=100).print(table)


def _median_cpu(runs: list[Figure]) -> float | None:
    known = [run.cpu_us for run in runs if run.cpu_us is not None]
    return median(known) if known else None
