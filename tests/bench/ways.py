"""The ways to the server that are compared: straight, and through proxies that are started here.

Each proxy runs as one process (Pgpool-II: one and its children) with the defaults of its project where the comparison
does not need others, on a server that asks for no password. ``Way.unable`` says what a way cannot be asked to do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from migrator.cluster import Cluster
from migrator.cluster.embedded import free_port

SHARED = 20
"""Server connections of a proxy that shares them by transactions; with 64 clients that is a pool worth its name."""
MAX_CLIENTS = 20_000
START_TIMEOUT = 30.0
PEERS = ("pgbouncer", "pgpool")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Way:
    """Where clients connect, and the process whose CPU and memory count; the straight way has none."""

    name: str
    port: int
    user: str
    database: str
    password: str | None = None
    pid: int | None = None
    unable: Mapping[str, str] = field(default_factory=dict)
    """Protocol mode of pgbench to the reason why it is left out."""

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time that its processes have used so far."""
        user = system = 0
        for pid in () if self.pid is None else tree(self.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                # Its own, and that of the children it has waited for.
                user += int(fields[11]) + int(fields[13])
                system += int(fields[12]) + int(fields[14])
        return user / _TICKS, system / _TICKS

    def resident(self) -> int:
        """Bytes of memory resident in its process."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.parent.name))
    found = [root]
    for pid in found:
        found.extend(parents.get(pid, ()))
    return found


@dataclass(frozen=True)
class Access:
    """How clients log in to a proxy. ``users`` are lines of a users file, of the format that both proxies read."""

    method: str = "trust"
    users: str = ""
    certificate: tuple[Path, Path] | None = None
    """A certificate and its key: clients may then use TLS."""


TRUST = Access()


@dataclass(frozen=True)
class Setup:
    """The server that all ways lead to, and a directory for files."""

    cluster: Cluster
    database: str
    directory: Path

    def direct(self) -> Way:
        """No proxy."""
        address = self.cluster.primary.address
        return Way("direct", address.port, address.user, self.database, address.password)

    @contextlib.contextmanager
    def dualwire(
        self, pool_mode: str = "session", access: Access = TRUST, *, sockets: Path | None = None
    ) -> Iterator[Way]:
        """A sidecar without replicas and without rules; with ``sockets`` it reaches the server over one there."""
        port, admin = free_port(), free_port()
        directory = self._room(f"dualwire-{port}")
        listen = f'address = "127.0.0.1:{port}"\n'
        if access.certificate is not None:
            listen += f'tls_cert = "{access.certificate[0]}"\ntls_key = "{access.certificate[1]}"\n'
        address, server = self.cluster.primary.address, self.cluster.primary.dsn(database=self.database)
        if sockets is not None:
            server = f"postgresql://{address.user}@/{self.database}?host={sockets}&port={address.port}"
        auth = f'method = "{access.method}"\n'
        if access.users:
            (directory / "users.txt").write_text(access.users)
            auth += 'users_file = "users.txt"\n'
        (directory / "dualwire.toml").write_text(
            f'[listen]\n{listen}[admin]\naddress = "127.0.0.1:{admin}"\n[auth]\n{auth}'
            f'[databases.bench]\nprimary = "{server}"\n'
            f'pool_mode = "{pool_mode}"\npool_size = {100 if pool_mode == "session" else SHARED}\n'
            f"[limits]\nmax_clients = {MAX_CLIENTS}\nmax_logins = {MAX_CLIENTS}\n"
        )
        command = [
            sys.executable,
            "-m",
            "migrator.cli.main",
            "proxy",
            "--config",
            str(directory / "dualwire.toml"),
        ]
        with self._running(command, directory / "log") as process:
            _wait(lambda: _answers(f"http://127.0.0.1:{admin}/readyz"), process, directory / "log")
            yield self._way(
                f"dualwire {pool_mode}" + ("" if sockets is None else ", unix socket"),
                port,
                process.pid,
                "bench",
            )

    @contextlib.contextmanager
    def pgbouncer(self, pool_mode: str = "session", access: Access = TRUST) -> Iterator[Way | None]:
        """PgBouncer; None if it is not installed."""
        program = _program("pgbouncer")
        if program is None:
            yield None
            return
        address, port = self.cluster.primary.address, free_port()
        directory = self._room(f"pgbouncer-{port}")
        secret = "" if address.password is None else f" password={address.password}"
        # The method "any" takes the user from here, as trust does in dualwire; SCRAM takes the client's.
        forced = f" user={address.user}{secret}"
        (directory / "users.txt").write_text(access.users or f'"{address.user}" ""\n')
        tls = ""
        if access.certificate is not None:
            tls = (
                f"client_tls_sslmode = allow\nclient_tls_cert_file = {access.certificate[0]}\n"
                f"client_tls_key_file = {access.certificate[1]}\n"
            )
        named = bouncer_names_statements(program)
        (directory / "pgbouncer.ini").write_text(
            f"[databases]\nbench = host={address.host} port={address.port} dbname={self.database}{forced}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = {'any' if access.method == 'trust' else access.method}\n"
            f"auth_file = {directory / 'users.txt'}\npool_mode = {pool_mode}\n{tls}"
            f"max_client_conn = {MAX_CLIENTS - 200}\ndefault_pool_size = {100 if pool_mode == 'session' else SHARED}\n"
            "log_connections = 0\nlog_disconnections = 0\nserver_tls_sslmode = disable\n"
            f"ignore_startup_parameters = extra_float_digits\n{'max_prepared_statements = 200' if named else ''}\n"
        )
        unable = (
            {"prepared": "this PgBouncer (before 1.21) knows no prepared statements in transaction mode"}
            if pool_mode == "transaction" and not named
            else {}
        )
        # It refuses to run as root.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [program, "-q", *user, str(directory / "pgbouncer.ini")]
        with self._running(command, directory / "log") as process:
            _wait(lambda: _listens(port), process, directory / "log")
            yield self._way(f"pgbouncer {pool_mode}", port, process.pid, "bench", unable)

    @contextlib.contextmanager
    def pgpool(self) -> Iterator[Way | None]:
        """Pgpool-II before the one server (mode ``raw``), a child for each client; None if it is not installed."""
        program = _program("pgpool")
        if program is None:
            yield None
            return
        address, port = self.cluster.primary.address, free_port()
        directory = self._room(f"pgpool-{port}")
        for name in ("pool_hba.conf", "pcp.conf", "pool_passwd"):
            (directory / name).write_text("")
        (directory / "pgpool.conf").write_text(
            f"backend_clustering_mode = 'raw'\nlisten_addresses = '127.0.0.1'\nport = {port}\n"
            f"socket_dir = '{directory}'\npcp_socket_dir = '{directory}'\npcp_port = {free_port()}\n"
            f"pcp_listen_addresses = ''\nlogdir = '{directory}'\npid_file_name = '{directory / 'pid'}'\n"
            f"work_dir = '{directory}'\nwd_ipc_socket_dir = '{directory}'\nenable_pool_hba = off\n"
            f"allow_clear_text_frontend_auth = on\n"
            f"backend_hostname0 = '{address.host}'\nbackend_port0 = {address.port}\nbackend_weight0 = 1\n"
            "num_init_children = 80\nmax_pool = 1\nload_balance_mode = off\nsr_check_period = 0\n"
        )
        command = [
            *(program, "-n", "-f", str(directory / "pgpool.conf"), "-a", str(directory / "pool_hba.conf")),
            *("-F", str(directory / "pcp.conf")),
        ]
        with self._running(command, directory / "log") as process:
            _wait(lambda: _listens(port), process, directory / "log")
            yield self._way("pgpool", port, process.pid, self.database)

    @contextlib.contextmanager
    def relay(self) -> Iterator[Way]:
        """A relay on uvloop that does nothing but copy."""
        address, port = self.cluster.primary.address, free_port()
        log = self._room(f"relay-{port}") / "log"
        command = [sys.executable, "-m", "tests.bench.relay", str(port), address.host, str(address.port)]
        with self._running(command, log) as process:
            _wait(lambda: _listens(port), process, log)
            yield self._way("bare relay", port, process.pid, self.database)

    def _way(
        self, name: str, port: int, pid: int, database: str, unable: Mapping[str, str] | None = None
    ) -> Way:
        address = self.cluster.primary.address
        return Way(name, port, address.user, database, address.password, pid, unable or {})

    def _room(self, name: str) -> Path:
        room = self.directory / name
        room.mkdir()
        return room

    @contextlib.contextmanager
    def _running(self, command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        self.cluster.adopt(process.pid)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def bouncer_names_statements(program: str) -> bool:
    """Whether this PgBouncer follows prepared statements in transaction mode: since 1.21."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) >= (1, 21)


def absent() -> list[str]:
    """The peers that are not installed."""
    return [name for name in PEERS if _program(name) is None]


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        assert process.poll() is None, "it ended:\n" + log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < deadline, "it is not ready:\n" + log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)
