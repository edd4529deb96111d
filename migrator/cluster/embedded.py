"""The embedded servers: initdb, pg_basebackup, processes on free loopback ports and a unix socket.

Everything is below one temporary directory that `watchdog` removes, after having stopped the servers, when
this process ends. The settings are for tests: durability is off (a killed server recovers, a power cut would
not), connections are many, replicas reconnect at once.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from .binaries import Account, Binaries, ClusterError
from .server import Address, Server, StopMode

SUPERUSER = "postgres"
START_TIMEOUT = 60.0
# sun_path holds 107 bytes; the socket's own name and a sub-directory take some of them.
LONGEST_ROOT = 70
# Below the ephemeral range, so that no outgoing connection can take the port of a server that is being
# restarted.
PORTS = range(20000, 32000)
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "300",
    "shared_buffers": "256MB",
    "password_encryption": "scram-sha-256",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_prepared_transactions": "20",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "fsync": "off",
    "full_page_writes": "off",
    "hot_standby": "on",
    "hot_standby_feedback": "on",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
    "jit": "off",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}


@dataclass
class EmbeddedServer(Server):
    """A server process below the cluster's temporary directory."""

    binaries: Binaries = None  # type: ignore[assignment]  # dataclass inheritance wants a default; always given
    data: Path = Path()
    sockets: Path = Path()
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.data.with_name(f"{self.name}.log")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        if self.running:
            return
        deadline = time.monotonic() + START_TIMEOUT
        while not self._start_once(deadline):
            time.sleep(0.1)

    def stop(self, mode: StopMode = "fast") -> None:
        self._signal({"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired as stuck:
            raise ClusterError(
                f"{self.name} did not stop within {START_TIMEOUT:g} s of {number.name}"
            ) from stuck

    def _start_once(self, deadline: float) -> bool:
        """Whether it came up; False to try again: the children of a killed server leave a moment after it."""
        args = ["-D", str(self.data), "-p", str(self.port), "-k", str(self.sockets)]
        with open(self.log, "ab") as log:
            begin = log.tell()
            self.process = self.binaries.popen("postgres", args, self.data, log)
        while True:
            if self._ready():
                return True
            if self.process.poll() is not None:
                said = self.log.read_bytes()[begin:].decode(errors="replace").strip()
                if "pre-existing shared memory block" in said and time.monotonic() < deadline:
                    return False
                raise ClusterError(f"{self.name} did not start:\n{said}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{self.name} was not ready within {START_TIMEOUT:g} s; its log is {self.log}"
                )
            time.sleep(0.02)

    def _ready(self) -> bool:
        """The postmaster writes its state into line 8 of its pid file; line 1 tells a stale file from its
        own.
        """
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            self.process is not None
            and len(lines) >= 8
            and lines[0].strip() == str(self.process.pid)
            and lines[7].strip() == "ready"
        )


def make_root(account: Account | None) -> Path:
    """The temporary directory of one cluster; in /tmp when the usual place is too deep or closed to the
    server.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):
        root = Path(tempfile.mkdtemp(prefix="dualwire-pg-", dir=parent)).resolve()
        if len(str(root)) <= LONGEST_ROOT and (account is None or _traversable(root.parent)):
            return root
        shutil.rmtree(root)
    raise ClusterError("no temporary directory that the server's user can reach: set TMPDIR to one")


def create_primary(
    binaries: Binaries, root: Path, psql: Path, password: str, trust: bool, version: int
) -> EmbeddedServer:
    """Makes and starts a primary below ``root``."""
    sockets = root / "s"
    sockets.mkdir()
    binaries.own(sockets)
    data = root / "primary"
    secret = root / "password"
    secret.touch(0o600)
    secret.write_text(password)
    binaries.own(secret)
    # The programs may be another version's than asked for, where a setting names their directory.
    major = re.search(r"\d+", binaries.run("initdb", "--version", cwd=root))
    builtin = (version if major is None else int(major[0])) >= 17
    locale = ["--locale-provider=builtin", "--locale=C.UTF-8"] if builtin else ["--no-locale"]
    binaries.run(
        "initdb",
        *(
            "-D",
            str(data),
            "-U",
            SUPERUSER,
            "-E",
            "UTF8",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
        ),
        *locale,
        cwd=root,
    )
    secret.unlink()
    with open(data / "postgresql.conf", "a") as conf:
        conf.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
    method = "trust" if trust else "scram-sha-256"
    # The socket's directory is closed to everybody but the server's user, and root.
    (data / "pg_hba.conf").write_text(
        "local all all trust\n"
        "local replication all trust\n"
        f"host all all 127.0.0.1/32 {method}\n"
        f"host replication all 127.0.0.1/32 {method}\n"
    )
    for _ in range(10):
        server = EmbeddedServer(
            name="primary",
            address=Address("127.0.0.1", free_port(), SUPERUSER, None if trust else password, "postgres"),
            psql=psql,
            passwords={SUPERUSER: password},
            binaries=binaries,
            data=data,
            sockets=sockets,
        )
        if _started(server):
            return server
    raise ClusterError("no free port was found for the primary")


def create_replica(primary: EmbeddedServer, name: str) -> EmbeddedServer:
    """Makes and starts a streaming replica of ``primary``, with a physical slot of its own."""
    data = primary.data.with_name(name)
    slot = name.replace("-", "_")
    primary.binaries.run(
        "pg_basebackup",
        *("-D", str(data), "-R", "-X", "stream", "-c", "fast", "-C", "-S", slot, "--no-sync"),
        *("-d", f"host={primary.sockets} port={primary.port} user={SUPERUSER} application_name={name}"),
        cwd=data.parent,
    )
    for _ in range(10):
        server = EmbeddedServer(
            name=name,
            address=replace(primary.address, port=free_port()),
            psql=primary.psql,
            passwords=primary.passwords,
            binaries=primary.binaries,
            data=data,
            sockets=primary.sockets,
        )
        if _started(server):
            return server
    raise ClusterError(f"no free port was found for {name}")


def free_port() -> int:
    """A loopback TCP port that is free now and that the kernel hands to nobody on its own."""
    for _ in range(1000):
        port = random.choice(PORTS)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ClusterError(f"no free TCP port between {PORTS.start} and {PORTS.stop} on 127.0.0.1")


def _started(server: EmbeddedServer) -> bool:
    try:
        server.start()
    except ClusterError as failure:
        if "could not bind" in str(failure) or "Address already in use" in str(failure):
            return False
        raise
    return True


def _traversable(directory: Path) -> bool:
    return all(os.stat(part).st_mode & 0o001 for part in (directory, *directory.parents))
