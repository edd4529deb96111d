"""The server of the measurements: a primary alone, logins by trust, room for every way's connections."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.cluster import Cluster, start_cluster
from migrator.cluster.cluster import client_program
from tests.bench.ways import Setup

SCALE = 10


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """In place of the tests' cluster: no replica that takes a share of the machine."""
    with start_cluster(replicas=0, trust=True) as started:
        if started.kind == "embedded":
            started.primary.sql("ALTER SYSTEM SET max_connections = 600")
            started.primary.restart()
        yield started


@pytest.fixture(scope="session")
def setup(cluster: Cluster) -> Iterator[Setup]:
    """pgbench's tables, and a directory that PgBouncer's unprivileged user can read."""
    cluster.create_database("bench")
    subprocess.run(
        [str(client_program("pgbench")), "-i", "-s", str(SCALE), "-q", cluster.primary.dsn(database="bench")],
        check=True,
        capture_output=True,
    )
    cluster.primary.sql("VACUUM ANALYZE", database="bench")
    with tempfile.TemporaryDirectory(prefix="dualwire-bench-") as name:
        Path(name).chmod(0o755)
        yield Setup(cluster, "bench", Path(name))
