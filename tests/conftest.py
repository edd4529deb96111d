"""Fixtures that every part's tests share: real servers, a database of its own for each test, sidecars and the
command.

The servers are those of `migrator.cluster`: embedded unless ``DUALWIRE_TEST_DSN`` or ``DUALWIRE_TEST_IMAGE``
say otherwise. Nothing is mocked, and whatever a fixture starts is gone after the test, or with the test
process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from migrator.cluster import Cluster, NotOurs, embedded, start_cluster
from migrator.cluster.embedded import free_port

DUALWIRE = [sys.executable, "-m", "migrator.cli.main"]
SIDECAR_TIMEOUT = 30.0

if (worker := os.environ.get("PYTEST_XDIST_WORKER", "")).startswith("gw"):
    # Processes that run tests side by side must not be given the same port.
    embedded.PORTS = embedded.PORTS[int(worker[2:]) % 4 :: 4]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that has to stop a server is skipped where the servers are not ours to stop."""
    try:
        yield
    except NotOurs as refused:
        pytest.skip(str(refused))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A primary and one streaming replica for the whole session."""
    with start_cluster(replicas=1) as started:
        yield started


@dataclass
class Database:
    """A fresh database on the shared cluster, owned by the superuser that the DSNs name."""

    cluster: Cluster
    name: str

    @property
    def dsn(self) -> str:
        """The superuser's DSN on the primary."""
        return self.cluster.primary.dsn(database=self.name)

    @property
    def replica_dsn(self) -> str:
        """The same on the replica."""
        return self.cluster.replicas[0].dsn(database=self.name)

    def sql(self, statement: str) -> str:
        """Runs SQL through psql on the primary; rows come back as ``a|b`` lines."""
        return self.cluster.primary.sql(statement, database=self.name)

    async def connect(self, *, user: str | None = None, replica: bool = False, **options: Any) -> Any:
        """A new asyncpg connection; close it, or leave it to the dropping of the database."""
        server = self.cluster.replicas[0] if replica else self.cluster.primary
        return await asyncpg.connect(server.dsn(user=user, database=self.name), **options)

    @contextlib.asynccontextmanager
    async def connection(self, **options: Any) -> AsyncIterator[Any]:
        """An asyncpg connection for a block."""
        connection = await self.connect(**options)
        try:
            yield connection
        finally:
            await connection.close()

    def wait_replayed(self) -> None:
        """Waits until the replica shows all that was committed up to now."""
        self.cluster.wait_replayed()

    def role(self, name: str, password: str | None = None, options: str = "LOGIN") -> str:
        """Makes a role (cluster-wide: choose a name of your own) with all rights on schema public; gives its
        DSN.
        """
        self.cluster.create_role(name, password or secrets.token_urlsafe(9), options)
        self.sql(
            f'GRANT ALL ON SCHEMA public TO "{name}"; GRANT ALL ON ALL TABLES IN SCHEMA public TO "{name}";'
            f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{name}";'
            f'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO "{name}";'
            f'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO "{name}"'
        )
        return self.cluster.primary.dsn(user=name, database=self.name)


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """A fresh database, dropped after the test with whoever is still connected."""
    name = f"t_{secrets.token_hex(6)}"
    cluster.create_database(name)
    cluster.wait_replayed()
    yield Database(cluster, name)
    cluster.drop_database(name)


@dataclass
class Sidecar:
    """A ``dualwire proxy`` process. ``database`` is the name under which its config knows the database."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    config: Path
    log_path: Path
    database: str
    user: str
    password: str | None

    @property
    def admin_url(self) -> str:
        """The base of the admin endpoints, for instance ``f"{admin_url}/status"``."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def log(self) -> str:
        """What it wrote so far, standard output and error together."""
        return self.log_path.read_text(errors="replace")

    def dsn(self, user: str | None = None, database: str | None = None, password: str | None = None) -> str:
        """A DSN through the sidecar; without arguments as the user of the database's DSN."""
        name = user or self.user
        secret = password if password is not None else (self.password if name == self.user else None)
        credentials = quote(name, safe="") + ("" if secret is None else f":{quote(secret, safe='')}")
        return f"postgresql://{credentials}@127.0.0.1:{self.port}/{quote(database or self.database, safe='')}"

    async def connect(self, *, version: str | None = None, **options: Any) -> Any:
        """An asyncpg connection through the sidecar, optionally speaking a given version."""
        settings = {"options": f"-c dualwire.version={version}"} if version else {}
        return await asyncpg.connect(self.dsn(), server_settings=settings, **options)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an admin endpoint."""
        try:
            with urllib.request.urlopen(f"{self.admin_url}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def signal(self, number: int) -> None:
        """Sends a signal, for instance SIGHUP."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kills it as a crash would."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self, timeout: float = 15.0) -> int:
        """Asks it to end and gives its exit status; one that does not end in time is killed, and fails the
        test.
        """
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(
                f"the sidecar ignored SIGTERM for {timeout:g} s; its log:\n{self.log}"
            ) from None

    def wait_ready(self, timeout: float = SIDECAR_TIMEOUT) -> None:
        """Waits until /readyz answers 200."""
        deadline = time.monotonic() + timeout
        said = "nothing"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the sidecar ended with status {self.process.returncode}:\n{self.log}")
            try:
                status, said = self.get("/readyz")
                if status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the sidecar was not ready within {timeout:g} s ({said}):\n{self.log}")


@dataclass
class SidecarFactory:
    """Starts sidecars: ``sidecar()`` for the test's database with the defaults, or with a config text of your
    own.
    """

    database: Database
    directory: Path
    started: list[Sidecar] = field(default_factory=list)

    def __call__(
        self,
        config: str | None = None,
        *,
        schema_version: str = "auto",
        database: str = "shop",
        extra: str = "",
        environment: dict[str, str] | None = None,
        port: int | None = None,
        admin_port: int | None = None,
        wait: bool = True,
    ) -> Sidecar:
        """Starts one.

        Without ``config`` it is `default_config` with ``extra`` (TOML) at its end. A given text may name any
        listen and admin address: free ports are set over them by environment variables, which win.
        """
        port, admin_port = port or free_port(), admin_port or free_port()
        number = len(self.started) + 1
        path = self.directory / f"sidecar-{number}.toml"
        path.write_text(config or self.default_config(schema_version, database, extra))
        log_path = path.with_suffix(".log")
        settings = {
            "DUALWIRE_LISTEN__ADDRESS": f"127.0.0.1:{port}",
            "DUALWIRE_ADMIN__ADDRESS": f"127.0.0.1:{admin_port}",
            **(environment or {}),
        }
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                [*DUALWIRE, "proxy", "--config", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings},
            )
        self.database.cluster.adopt(process.pid)
        address = self.database.cluster.primary.address
        sidecar = Sidecar(
            process,
            port,
            admin_port,
            path,
            log_path,
            database,
            address.user,
            self.password_for(config, address.password),
        )
        self.started.append(sidecar)
        if wait:
            sidecar.wait_ready()
        return sidecar

    def default_config(self, schema_version: str = "auto", database: str = "shop", extra: str = "") -> str:
        """Trust on loopback, both servers of the cluster, fast reactions; the rest is dualwire's own
        defaults.
        """
        return (
            '[listen]\naddress = "127.0.0.1:0"\n'
            '[admin]\naddress = "127.0.0.1:0"\n'
            '[auth]\nmethod = "trust"\n'
            f"[databases.{database}]\n"
            f'primary = "{self.database.dsn}"\n'
            f'replicas = ["{self.database.replica_dsn}"]\n'
            f'schema_version = "{schema_version}"\n{extra}'
        )

    @staticmethod
    def password_for(config: str | None, password: str | None) -> str | None:
        """A client needs the password only where the config asks for one."""
        return password if config is not None and "scram-sha-256" in config else None


@pytest.fixture
def sidecar(database: Database, tmp_path: Path) -> Iterator[SidecarFactory]:
    """A factory of sidecars for the test's database; all are ended after the test."""
    factory = SidecarFactory(database, tmp_path)
    yield factory
    for started in factory.started:
        if started.process.poll() is None:
            started.process.terminate()
    for started in factory.started:
        try:
            started.process.wait(10)
        except subprocess.TimeoutExpired:
            started.process.kill()
            started.process.wait(10)


@dataclass
class Cli:
    """Runs ``dualwire ...`` as an operator would. ``DUALWIRE_DSN`` names the test's database, if the test has
    one.
    """

    dsn: str | None
    cluster: Cluster | None
    directory: Path
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(
        self, *args: str | Path, dsn: str | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end: returncode, stdout, stderr. Never raises for the exit code."""
        return subprocess.run(
            [*DUALWIRE, *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self._environment(dsn),
            cwd=self.directory,
        )

    def popen(self, *args: str | Path, dsn: str | None = None) -> subprocess.Popen[str]:
        """Starts a command, to be killed by the test or at its end."""
        process = subprocess.Popen(
            [*DUALWIRE, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(dsn),
            cwd=self.directory,
        )
        if self.cluster is not None:
            self.cluster.adopt(process.pid)
        self.children.append(process)
        return process

    def _environment(self, dsn: str | None) -> dict[str, str]:
        chosen = dsn or self.dsn
        return {
            **os.environ,
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **({"DUALWIRE_DSN": chosen} if chosen else {}),
        }


@pytest.fixture
def migrator_cli(database: Database, tmp_path: Path) -> Iterator[Cli]:
    """The ``dualwire`` command on the test's database."""
    cli = Cli(database.dsn, database.cluster, tmp_path)
    yield cli
    for child in cli.children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """``eventually(condition)``: waits until a condition holds, for what happens in another process."""

    def wait(condition: Callable[[], object], timeout: float = 10.0, what: str = "the condition") -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true within {timeout:g} s"
            time.sleep(0.02)

    return wait
