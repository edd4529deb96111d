"""A configuration that changes while a migration is under way and clients write."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable

from tests.conftest import Cli, Database, Sidecar, SidecarFactory
from tests.integration.traffic import MIGRATION, SETUP


def _counter(proxy: Sidecar, name: str) -> float:
    _, text = proxy.get("/metrics")
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


async def test_switching_dual_writes_off_leaves_them_to_the_guard_and_is_recorded(
    database: Database, sidecar: SidecarFactory, migrator_cli: Cli, eventually: Callable[..., None]
) -> None:
    async with database.connection() as direct:
        await direct.execute(SETUP.format(rows=50))
    (migrator_cli.directory / "0001_state.yaml").write_text(MIGRATION)
    assert migrator_cli("init").returncode == 0
    proxy = sidecar()
    started = await asyncio.to_thread(migrator_cli, "start", "0001_state.yaml", "--until", "verified")
    assert started.returncode == 0, started.stderr
    connection = await proxy.connect(version="base")
    write = "UPDATE orders SET status = $2 WHERE id = $1"
    await connection.execute(write, 1, 2)
    mirrored = _counter(proxy, "dualwire_mirrored_statements_total")
    assert mirrored == 1

    proxy.config.write_text(proxy.config.read_text() + "[databases.shop.dual_write]\nenabled = false\n")
    proxy.signal(signal.SIGHUP)
    eventually(
        lambda: not json.loads(proxy.get("/status")[1])["databases"]["shop"]["dual_write_enabled"],
        what="the reload",
    )
    await connection.execute(write, 1, 0)
    await connection.execute(write, 2, 1)
    assert _counter(proxy, "dualwire_mirrored_statements_total") == mirrored
    assert _counter(proxy, "dualwire_guarded_statements_total") == 2
    async with database.connection() as direct:
        rows = await direct.fetch(
            'SELECT id, status, "_dualwire_new_state" FROM orders WHERE id < 3 ORDER BY id'
        )
        assert [tuple(row) for row in rows] == [(1, 0, "new"), (2, 1, "paid")]
        recorded = "SELECT count(*) FROM dualwire.event WHERE kind = 'dual_write'"
        async with asyncio.timeout(10):
            while not await direct.fetchval(recorded):
                await asyncio.sleep(0.05)
        assert await direct.fetchval("SELECT verified_at FROM dualwire.migration") is None
    await connection.close()


async def test_a_wrong_configuration_keeps_the_old_one_and_says_why(
    database: Database, sidecar: SidecarFactory, eventually: Callable[..., None]
) -> None:
    proxy = sidecar()
    connection = await proxy.connect()
    good = proxy.config.read_text()
    proxy.config.write_text(good + "[limits]\nmax_client = 5\n")
    eventually(
        lambda: json.loads(proxy.get("/status")[1])["config"]["reload"]["result"] == "rejected",
        what="the rejected reload",
    )
    assert "limits.max_client" in json.loads(proxy.get("/status")[1])["config"]["reload"]["error"]
    assert await connection.fetchval("SELECT 1") == 1
    proxy.config.write_text(good + "[limits]\nmax_clients = 1\n")
    eventually(
        lambda: json.loads(proxy.get("/status")[1])["config"]["reload"]["result"] == "applied",
        what="the corrected reload",
    )
    refused = ""
    try:
        await proxy.connect()
    except Exception as error:
        refused = str(error)
    assert "too many clients" in refused
    await connection.close()
