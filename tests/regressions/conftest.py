"""Sidecars in both pool modes, with as few server connections as the fault needs to show.

They and their database are shared by the tests of this folder, since starting them takes longer than most tests. After
each test every connection to and from them is ended (KILL); before each the database is emptied.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from migrator.cluster import Cluster
from tests.conformance.proto import Connection
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.regressions.middleman import Middleman

Pooled = Callable[..., Sidecar]


NAME = "regressions"
EMPTY = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
        AND application_name NOT LIKE 'dualwire %';
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
            EXECUTE format('DROP SCHEMA %I CASCADE', name);
        END LOOP;
    END $$;
    CREATE SCHEMA public;
    GRANT USAGE ON SCHEMA public TO public;
"""


@dataclass
class Fleet:
    """The sidecars of these tests by pool mode, size and whether they read from the replica."""

    database: Database
    factory: SidecarFactory
    running: dict[tuple[str, int, bool], Sidecar] = field(default_factory=dict)
    used: list[Sidecar] = field(default_factory=list)

    def sidecar(self, pool_mode: str, size: int, replicas: bool) -> Sidecar:
        """One of that kind, of which nobody else makes use now."""
        kind = (pool_mode, size, replicas)
        if kind not in self.running:
            self.running[kind] = self.factory(self.config(pool_mode, size, replicas))
        self.used.append(self.running[kind])
        return self.running[kind]

    def config(self, pool_mode: str, size: int, replicas: bool) -> str:
        """The configuration of such a sidecar."""
        config = self.factory.default_config(extra=f'pool_mode = "{pool_mode}"\npool_size = {size}\n')
        return config if replicas else re.sub(r"^replicas = .*\n", "", config, flags=re.MULTILINE)

    def empty(self) -> None:
        """Nothing is in the database, and nobody but the sidecars themselves is connected."""
        self.database.sql(EMPTY)
        self.database.wait_replayed()

    def disperse(self) -> None:
        """End every connection to and from the sidecars that the test has used. One that has crashed fails it."""
        used, self.used = self.used, []
        for sidecar in used:
            if sidecar.process.poll() is not None:
                self.running = {kind: other for kind, other in self.running.items() if other is not sidecar}
                raise AssertionError(
                    f"the sidecar ended with status {sidecar.process.returncode}:\n{sidecar.log}"
                )
            console = Connection(sidecar.dsn(database="dualwire"))
            try:
                for command in (b"KILL", b"RESUME"):
                    console.send(b"Q" + (len(command) + 5).to_bytes(4, "big") + command + b"\0")
                    while (message := console.receive(30)).kind != ord("Z"):
                        assert message.kind not in (0, ord("E")), (command, message)
            finally:
                console.close()


@pytest.fixture(scope="package")
def fleet(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """All sidecars that these tests share; they are ended with the last test."""
    cluster.create_database(NAME)
    cluster.wait_replayed()
    database = Database(cluster, NAME)
    made = Fleet(database, SidecarFactory(database, tmp_path_factory.mktemp(NAME)))
    yield made
    for sidecar in made.factory.started:
        sidecar.process.terminate()
    for sidecar in made.factory.started:
        sidecar.terminate()
    cluster.drop_database(NAME)


@pytest.fixture
def database(fleet: Fleet) -> Database:
    """The database of these tests, empty."""
    fleet.empty()
    return fleet.database


@pytest.fixture(params=["session", "transaction"], ids=["session-pool", "transaction-pool"])
def pool_mode(request: pytest.FixtureRequest) -> str:
    """Every fault is looked for in both."""
    mode: str = request.param
    return mode


@pytest.fixture
def pooled(fleet: Fleet, database: Database, sidecar: SidecarFactory, pool_mode: str) -> Iterator[Pooled]:
    """Gives a sidecar with that pool mode and size; without a replica unless the test wants one. With ``port`` it is a
    new one, whose primary is behind that port.
    """

    def get(size: int = 1, *, replicas: bool = False, port: int | None = None) -> Sidecar:
        if port is None:
            return fleet.sidecar(pool_mode, size, replicas)
        direct = f":{database.cluster.primary.address.port}/"
        config = fleet.config(pool_mode, size, replicas)
        assert direct in config
        return sidecar(config.replace(direct, f":{port}/"))

    yield get
    fleet.disperse()


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
