"""The two things a suite is run against: PostgreSQL itself, and a sidecar before it.

Each pass has a server of its own, freshly made by `migrator.cluster`, so that neither finds what the other left and no
sidecar's connections disturb the direct pass. Logins need no password: the suites are about what comes after.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migrator.cluster import Cluster, start_cluster
from migrator.cluster.embedded import free_port
from tests.conformance.suites.sources import SuiteError

READY_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0
ALARMING = ("Traceback (most recent call last)", "reply out of step")
"""What a sidecar never logs, whatever its clients and servers do."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a pass connects to, and as whom. ``password`` is None where none is asked for."""

    host: str
    port: int
    user: str
    password: str | None

    def variables(self, database: str) -> dict[str, str]:
        """The environment that libpq and every driver after its manner read."""
        secret = {} if self.password is None else {"PGPASSWORD": self.password}
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": database,
            **secret,
        }

    def dsn(self, database: str, scheme: str = "postgresql") -> str:
        """The same as a URI; ``scheme`` for SQLAlchemy's ``postgresql+driver``."""
        secret = "" if self.password is None else f":{self.password}"
        return f"{scheme}://{self.user}{secret}@{self.host}:{self.port}/{database}"


@dataclass(frozen=True, slots=True)
class Setting:
    """How the sidecar of a pass is configured.

    ``databases`` are the names that it serves, each the server's database of that name; it need not exist yet.
    ``control_schema`` installs what migrations need in those that exist, so that the sidecar registers and rewriting is
    on, with no rule. ``extra`` is TOML for the end of the file, ``listen`` for its section ``[listen]``.
    """

    databases: Sequence[str] = ("postgres",)
    pool_mode: str = "session"
    replicas: int = 0
    control_schema: bool = False
    extra: str = ""
    listen: str = ""


@contextlib.contextmanager
def server(prepare: Sequence[tuple[str, str]] = (), replicas: int = 0) -> Iterator[Cluster]:
    """A fresh server; ``prepare`` is SQL to run first, as pairs of database and statement."""
    with start_cluster(replicas=replicas, trust=True) as cluster:
        for database, statement in prepare:
            cluster.primary.sql(statement, database=database)
        cluster.wait_replayed()
        yield cluster


def directly(cluster: Cluster) -> Endpoint:
    """The server itself."""
    address = cluster.primary.address
    return Endpoint(address.host, address.port, address.user, address.password)


@dataclass(slots=True)
class Sidecar:
    """A running sidecar. ``complaints``, known once it was stopped, is what it did that no test may have noticed."""

    endpoint: Endpoint
    complaints: list[str] = field(default_factory=list)


@contextlib.contextmanager
def sidecar(cluster: Cluster, setting: Setting, directory: Path) -> Iterator[Sidecar]:
    """A sidecar before the cluster; its configuration and its log are left in ``directory``."""
    if setting.control_schema:
        _install_control_schema(cluster, setting.databases)
    port, admin_port = free_port(), free_port()
    config = directory / "sidecar.toml"
    config.write_text(_config(cluster, setting, port, admin_port), encoding="utf-8")
    log_path = directory / "sidecar.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "migrator.cli.main", "proxy", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Variables win over the file: nobody's settings are to be judged instead of these.
            env={name: value for name, value in os.environ.items() if not name.startswith("DUALWIRE_")},
        )
    cluster.adopt(process.pid)
    try:
        _await_ready(process, admin_port, log_path)
        running = Sidecar(Endpoint("127.0.0.1", port, cluster.primary.address.user, None))
        yield running
        running.complaints += _end(process, log_path)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _install_control_schema(cluster: Cluster, databases: Sequence[str]) -> None:
    existing = cluster.primary.sql("SELECT datname FROM pg_database").splitlines()
    for name in databases:
        if name in existing:
            dsn = cluster.primary.dsn(database=name)
            command = [sys.executable, "-m", "migrator.cli.main", "init", "--dsn", dsn]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SuiteError(f"dualwire init failed for {name}:\n{done.stdout}{done.stderr}")
    cluster.wait_replayed()


def _end(process: subprocess.Popen[bytes], log_path: Path) -> list[str]:
    complaints = []
    if process.poll() is not None:
        complaints.append(f"the sidecar ended by itself, with status {process.returncode}")
    else:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            complaints.append(f"the sidecar ignored SIGTERM for {STOP_TIMEOUT:g} s")
    said = log_path.read_text(errors="replace")
    complaints += [f"the sidecar logged: {mark}" for mark in ALARMING if mark in said]
    return [f"{complaint}; its log is {log_path}" for complaint in complaints]


def _config(cluster: Cluster, setting: Setting, port: int, admin_port: int) -> str:
    lines = [
        "[listen]",
        f'address = "127.0.0.1:{port}"',
        *([setting.listen] if setting.listen else []),
        "[admin]",
        f'address = "127.0.0.1:{admin_port}"',
        "[auth]",
        'method = "trust"',
    ]
    for name in setting.databases:
        replicas = [replica.dsn(database=name) for replica in cluster.replicas]
        lines += [
            f"[databases.{json.dumps(name)}]",
            f"primary = {json.dumps(cluster.primary.dsn(database=name))}",
            f"replicas = {json.dumps(replicas)}",
            f'pool_mode = "{setting.pool_mode}"',
        ]
    return "\n".join([*lines, setting.extra, ""])


def _await_ready(process: subprocess.Popen[bytes], admin_port: int, log_path: Path) -> None:
    """Waits until the sidecar listens and answers; a database that the suite has yet to create is not waited for."""
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = log_path.read_text(errors="replace")
            raise SuiteError(f"the sidecar ended with status {process.returncode}:\n{said}")
        # Not /readyz: that waits for every database.
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/status", timeout=5) as answer,
        ):
            if json.load(answer)["listening"]:
                return
        time.sleep(0.05)
    raise SuiteError(f"the sidecar was not ready within {READY_TIMEOUT:g} s; its log is {log_path}")


def clean_environment(**variables: str) -> dict[str, str]:
    """Our environment without what would lead a suite elsewhere: PG* and DUALWIRE_* variables, Python's paths."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "DUALWIRE_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
    return {**kept, **variables}
