"""Sidecars in both pool modes, with as few server connections as the fault needs to show."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.conftest import Database, Sidecar, SidecarFactory
from tests.regressions.middleman import Middleman

Pooled = Callable[..., Sidecar]


@pytest.fixture(params=["session", "transaction"], ids=["session-pool", "transaction-pool"])
def pool_mode(request: pytest.FixtureRequest) -> str:
    """Every fault is looked for in both."""
    mode: str = request.param
    return mode


@pytest.fixture
def pooled(database: Database, sidecar: SidecarFactory, pool_mode: str) -> Pooled:
    """A factory of sidecars with that pool mode and size; without a replica unless the test wants one."""

    def start(size: int = 1, *, replicas: bool = False, port: int | None = None) -> Sidecar:
        config = sidecar.default_config(extra=f'pool_mode = "{pool_mode}"\npool_size = {size}\n')
        if not replicas:
            config = re.sub(r"^replicas = .*\n", "", config, flags=re.MULTILINE)
        if port is not None:
            direct = f":{database.cluster.primary.address.port}/"
            assert direct in config
            config = config.replace(direct, f":{port}/")
        return sidecar(config)

    return start


@pytest.fixture
def proxy(pooled: Pooled) -> Sidecar:
    """A sidecar with a single server connection: whoever comes next has what the one before him left."""
    return pooled(1)


@pytest.fixture
async def middleman(database: Database) -> AsyncIterator[Middleman]:
    """A relay in front of the primary; start the sidecar with ``port=middleman.port``, in a thread."""
    address = database.cluster.primary.address
    async with Middleman(address.host, address.port) as relay:
        yield relay


@pytest.fixture
def waiting() -> Callable[[Sidecar], int]:
    """How many clients wait for a server connection."""

    def count(proxy: Sidecar) -> int:
        return metric(proxy, "dualwire_pool_waiting")

    return count


@pytest.fixture
def soon(eventually: Callable[..., None]) -> Callable[..., Awaitable[None]]:
    """``eventually`` for tests whose own event loop must go on meanwhile."""

    async def wait(condition: Callable[[], object], what: str = "the condition") -> None:
        await asyncio.to_thread(eventually, condition, 30.0, what)

    return wait


def metric(proxy: Sidecar, name: str, labels: str = "") -> int:
    """The sum of a metric's samples whose labels contain that text."""
    total = 0.0
    for line in proxy.get("/metrics")[1].splitlines():
        if line.startswith(name + "{") and labels in line:
            total += float(line.rsplit(" ", 1)[1])
    return int(total)


def clients(proxy: Sidecar) -> int:
    """How many clients the sidecar counts."""
    counted: dict[str, int] = json.loads(proxy.get("/status")[1])["databases"][proxy.database]["clients"]
    return sum(counted.values())
