"""A primary with its replicas, wherever they come from, and their common end."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from . import docker, embedded
from .binaries import DEFAULT_VERSION, Binaries, ClusterError, find_binaries, server_account, usable_binaries
from .server import Address, Server

PRIMARY_DSN = "DUALWIRE_TEST_DSN"
REPLICA_DSN = "DUALWIRE_TEST_REPLICA_DSN"
IMAGE = "DUALWIRE_TEST_IMAGE"


class Keeper:
    """A temporary directory and the watchdog that removes it, with whatever runs on it, when we are gone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-m", "migrator.cluster.watchdog", str(directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    def adopt(self, pid: int) -> None:
        """Names another process that must not outlive us."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"adopt %d\n" % pid)
        self._process.stdin.flush()

    def release(self) -> None:
        """Lets the watchdog tear down, and waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


class Cluster:
    """The servers of one `start_cluster`; a context manager that stops them.

    ``kind`` says whose they are: ``embedded`` and ``docker`` ones can be stopped and killed, ``external``
    ones not. ``directory`` is a temporary one for whatever belongs to the cluster's users; it is removed with
    the cluster.
    """

    def __init__(
        self,
        kind: Literal["embedded", "docker", "external"],
        primary: Server,
        replicas: list[Server],
        keeper: Keeper,
        on_stop: Callable[[], None],
    ) -> None:
        self.kind = kind
        self.primary = primary
        self.replicas = replicas
        self.directory = keeper.directory
        self._keeper = keeper
        self._on_stop = on_stop
        self._stopped = False
        atexit.register(self.stop)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def servers(self) -> list[Server]:
        """The primary, then the replicas."""
        return [self.primary, *self.replicas]

    def bin(self, program: str) -> Path:
        """The path of a PostgreSQL client program, for instance ``pgbench``."""
        return client_program(program)

    def create_role(self, name: str, password: str, options: str = "LOGIN") -> None:
        """Makes a role with a password, or gives an existing one this password; `Server.dsn` knows it."""
        role, secret = _identifier(name), _literal(password)
        exists = self.primary.sql(f"SELECT 1 FROM pg_roles WHERE rolname = {_literal(name)}") == "1"
        self.primary.sql(f"{'ALTER' if exists else 'CREATE'} ROLE {role} {options} PASSWORD {secret}")
        for server in self.servers:
            server.passwords[name] = password

    def create_database(self, name: str, owner: str | None = None) -> None:
        """Makes a database; `wait_replayed` tells when the replicas have it."""
        self.primary.sql(
            f"CREATE DATABASE {_identifier(name)}" + (f" OWNER {_identifier(owner)}" if owner else "")
        )

    def drop_database(self, name: str) -> None:
        """Drops a database with whoever is still connected to it."""
        self.primary.sql(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    def wait_replayed(self, timeout: float = 30.0) -> None:
        """Waits until every replica shows all that the primary has done up to now."""
        lsn = self.primary.current_lsn()
        for replica in self.replicas:
            replica.wait_replayed(lsn, timeout)

    def adopt(self, pid: int) -> None:
        """Binds another process of ours to the cluster: it is killed when this one ends, if not before."""
        self._keeper.adopt(pid)

    def stop(self) -> None:
        """Ends everything that `start_cluster` began; again is allowed."""
        if not self._stopped:
            self._stopped = True
            atexit.unregister(self.stop)
            try:
                self._on_stop()
            finally:
                self._keeper.release()


def start_cluster(replicas: int = 1, *, version: int = DEFAULT_VERSION, trust: bool = False) -> Cluster:
    """Starts a primary with streaming replicas, or connects to the ones that the environment names.

    ``version`` (16 or 18) and ``trust`` (no passwords on loopback) are for the embedded servers; with a DSN
    or an image given, the server decides.
    """
    if os.environ.get(PRIMARY_DSN):
        return _external(replicas)
    if os.environ.get(IMAGE):
        keeper = Keeper(embedded.make_root(None))
        try:
            primary, copies, stop = docker.start(os.environ[IMAGE], replicas, client_program("psql"))
        except BaseException:
            keeper.release()
            raise
        return Cluster("docker", primary, copies, keeper, stop)
    return _embedded(replicas, version, trust)


def client_program(program: str, version: int = DEFAULT_VERSION) -> Path:
    """A PostgreSQL client program: the embedded package's, else the one in PATH."""
    try:
        return Binaries(find_binaries(version)).path(program)
    except ClusterError:
        found = shutil.which(program)
        if found is None:
            raise
        return Path(found)


def _external(replicas: int) -> Cluster:
    psql = client_program("psql")
    primary = Server("primary", Address.parse(os.environ[PRIMARY_DSN]), psql)
    copies: list[Server] = []
    if replicas and os.environ.get(REPLICA_DSN):
        copies.append(Server("replica-1", Address.parse(os.environ[REPLICA_DSN]), psql, primary.passwords))
    if len(copies) < replicas:
        raise ClusterError(
            f"{PRIMARY_DSN} is set and {replicas} replica(s) are needed: set {REPLICA_DSN} to one"
        )
    primary.sql("SELECT 1")
    return Cluster("external", primary, copies, Keeper(embedded.make_root(None)), lambda: None)


def _embedded(replicas: int, version: int, trust: bool) -> Cluster:
    directory = find_binaries(version)
    account = server_account()
    keeper = Keeper(embedded.make_root(account))
    root = keeper.directory
    try:
        root.chmod(0o711)
        binaries = usable_binaries(directory, account, root / "postgresql")
        binaries.own(root)
        root.chmod(0o700)
        password = secrets.token_urlsafe(12)
        primary = embedded.create_primary(binaries, root, directory / "psql", password, trust, version)
        copies = [embedded.create_replica(primary, f"replica-{number}") for number in range(1, replicas + 1)]
        _await_streaming(primary, replicas)
    except BaseException:
        keeper.release()
        raise

    def stop() -> None:
        for server in (*copies, primary):
            server.stop("immediate")

    return Cluster("embedded", primary, list(copies), keeper, stop)


def _await_streaming(primary: Server, replicas: int, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while int(primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")) < replicas:
        if time.monotonic() > deadline:
            raise ClusterError(f"the replicas did not start to stream within {timeout:g} s")
        time.sleep(0.05)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
