"""``pgbench -S`` through each way, in three protocols: transactions a second, and the proxy's CPU for each.

Ratios are to PgBouncer in the same pool mode, or in session mode where it cannot do what is asked; to the straight way
if there is no PgBouncer. A relay that only copies bytes shows what any proxy on this event loop costs.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from migrator.cluster.embedded import EmbeddedServer
from tests.bench import runs
from tests.bench.ways import Setup, Way

MODES = ("simple", "extended", "prepared")

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]


def every_way(setup: Setup, stack: ExitStack) -> list[Way]:
    """All ways that there are here."""
    ways = [
        setup.direct(),
        stack.enter_context(setup.pgbouncer("session")),
        stack.enter_context(setup.dualwire("session")),
        stack.enter_context(setup.pgbouncer("transaction")),
        stack.enter_context(setup.dualwire("transaction")),
        stack.enter_context(setup.pgpool()),
    ]
    return [way for way in ways if way is not None]


def control_of(name: str, there: set[str]) -> str:
    """What a way is compared with, of the ways that were measured."""
    for candidate in (f"pgbouncer {name.rpartition(' ')[2]}", "pgbouncer session"):
        if candidate in there:
            return candidate
    return "direct"


def test_throughput_and_cpu_of_a_query(setup: Setup) -> None:
    with ExitStack() as stack:
        ways = [*every_way(setup, stack), stack.enter_context(setup.relay())]
        cells = [
            (mode, clients, way)
            for mode in MODES
            for clients in runs.CLIENTS
            for way in ways
            if mode not in way.unable
        ]
        found = runs.rounds(
            [(mode, clients, way.name) for mode, clients, way in cells],
            lambda cell: runs.pgbench(next(way for way in ways if way.name == cell[2]), cell[0], cell[1]),
        )
    made = runs.table(
        f"pgbench -S, {runs.ROUNDS} rounds of {runs.SECONDS} s",
        (
            *("mode", "clients", "way", "tps", "CPU µs/query"),
            *("of it in the kernel", "tps ratio", "CPU ratio", "ratio to"),
        ),
    )
    for mode, clients, name in found:
        figures = found[(mode, clients, name)]
        there = {
            other for its_mode, its_clients, other in found if (its_mode, its_clients) == (mode, clients)
        }
        control = control_of(name, there)
        reference = found[(mode, clients, control)]
        cpu = [figure.cpu for figure in figures]
        known, compared = any(cpu), name != control
        made.add_row(
            mode,
            str(clients),
            name,
            runs.spread(figure.tps for figure in figures).text(),
            runs.spread(cpu).text(".1f") if known else "",
            f"{runs.spread(figure.system for figure in figures).middle:.1f}" if known else "",
            runs.ratios([f.tps for f in figures], [f.tps for f in reference]).text(".2f") if compared else "",
            runs.ratios(cpu, [f.cpu for f in reference]).text(".2f")
            if known and compared and all(f.cpu for f in reference)
            else "",
            control if compared else "",
        )
    runs.show(made, sorted({reason for way in ways for reason in way.unable.values()}))
    assert all(figure.tps > 0 for figures in found.values() for figure in figures)


def test_server_reached_over_a_unix_socket(setup: Setup) -> None:
    primary = setup.cluster.primary
    if not isinstance(primary, EmbeddedServer):
        pytest.skip("where the sockets of this server are is not known")
    with ExitStack() as stack:
        ways = [
            stack.enter_context(setup.dualwire(mode, sockets=sockets))
            for mode in ("session", "transaction")
            for sockets in (None, primary.sockets)
        ]
        found = runs.rounds(
            [(mode, way.name) for mode in ("simple", "prepared") for way in ways],
            lambda cell: runs.pgbench(next(way for way in ways if way.name == cell[1]), cell[0], 8),
        )
    made = runs.table(
        "pgbench -S, 8 clients, the server reached over TCP or over its unix socket",
        ("mode", "way", "tps", "CPU µs/query", "of it in the kernel", "tps ratio", "CPU ratio"),
    )
    for (mode, name), figures in found.items():
        reference = found[(mode, name.partition(",")[0])]
        compared = figures is not reference
        cpu = [figure.cpu for figure in figures]
        made.add_row(
            mode,
            name,
            runs.spread(figure.tps for figure in figures).text(),
            runs.spread(cpu).text(".1f"),
            f"{runs.spread(figure.system for figure in figures).middle:.1f}",
            runs.ratios([f.tps for f in figures], [f.tps for f in reference]).text(".2f") if compared else "",
            runs.ratios(cpu, [f.cpu for f in reference]).text(".2f") if compared else "",
        )
    runs.show(made)
    assert all(figure.tps > 0 for figures in found.values() for figure in figures)
