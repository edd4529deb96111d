"""What a way adds to the time that a query takes: median and 99th percentile of every transaction in pgbench's log.

With one client nothing waits for anything else, so the median is the price of the two more hops; with eight the CPU is
shared by client, proxy and server.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.bench import runs
from tests.bench.test_pgbench import every_way
from tests.bench.ways import Setup

MODES = ("simple", "prepared")
CLIENTS = (1, 8)

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]


def test_added_latency(setup: Setup) -> None:
    with ExitStack() as stack:
        ways = every_way(setup, stack)
        found = runs.rounds(
            [
                (mode, clients, way.name)
                for mode in MODES
                for clients in CLIENTS
                for way in ways
                if mode not in way.unable
            ],
            lambda cell: (
                runs.pgbench(
                    next(way for way in ways if way.name == cell[2]),
                    cell[0],
                    cell[1],
                    seconds=runs.SECONDS / 2,
                    latency=True,
                ).latencies
            ),
        )
    made = runs.table(
        f"latency of pgbench -S, µs, {runs.ROUNDS} rounds",
        ("mode", "clients", "way", "p50", "p99", "added p50", "added p99"),
    )
    for (mode, clients, name), figures in found.items():
        straight = found[(mode, clients, "direct")]
        added = [
            runs.spread(mine[which] - its[which] for mine, its in zip(figures, straight, strict=True))
            for which in (0, 1)
        ]
        made.add_row(
            mode,
            str(clients),
            name,
            *(runs.spread(figure[which] for figure in figures).text() for which in (0, 1)),
            *(("", "") if name == "direct" else (one.text("+,.0f") for one in added)),
        )
    runs.show(made)
    assert all(median > 0 for figures in found.values() for median, _ in figures)
