"""Memory of idle clients: resident bytes of the process at rest, with them logged in, and after each has asked once.

In transaction mode, where an idle client holds no server connection: what is measured is the client's own share. The
kernel's socket buffers belong to no process and are not counted.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import time

import pytest

from tests.bench import runs
from tests.bench.ways import Setup, Way

IDLE = [int(word) for word in os.environ.get("BENCH_IDLE", "1000 10000").split()]
SPARE_FILES = 500
_QUERY = b"Q\x00\x00\x00\x0dSELECT 1\x00"
_PATIENCE = 60.0

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]


def _allow_files(wanted: int) -> None:
    """Raise this process's limit, which the proxies inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        pytest.skip(f"the limit on open files is below {wanted}: raise it with ulimit -n")


def _client(way: Way) -> socket.socket:
    """One that has logged in."""
    connection = socket.create_connection(("127.0.0.1", way.port), _PATIENCE)
    body = struct.pack("!i", 196608)
    for name, value in (("user", way.user), ("database", way.database)):
        body += f"{name}\0{value}\0".encode()
    connection.sendall(struct.pack("!i", len(body) + 5) + body + b"\0")
    _await_ready(connection)
    return connection


def _await_ready(connection: socket.socket) -> None:
    """Read up to ReadyForQuery in an idle session, which is the last that comes."""
    data = b""
    while not data.endswith(b"Z\x00\x00\x00\x05I"):
        more = connection.recv(65536)
        assert more, f"the proxy hung up after {data!r}"
        data += more


def _settled(way: Way) -> int:
    """Resident bytes when they no longer change."""
    last = -1
    for _ in range(20):
        now = way.resident()
        if now == last:
            break
        last = now
        time.sleep(0.25)
    return last


def test_memory_of_idle_clients(setup: Setup) -> None:
    _allow_files(max(IDLE) + SPARE_FILES)
    made = runs.table(
        "memory of idle clients, transaction mode",
        (
            *("way", "clients", "at rest MiB", "logged in MiB", "KiB/client"),
            *("after a query each MiB", "KiB/client", "when they have left MiB"),
        ),
    )
    for start in (setup.pgbouncer, setup.dualwire):
        for count in IDLE:
            with start("transaction") as way:
                if way is None:
                    continue
                clients = [_client(way)]
                clients.pop().close()
                rest = _settled(way)
                try:
                    for _ in range(count):
                        clients.append(_client(way))
                    idle = _settled(way)
                    for client in clients:
                        client.sendall(_QUERY)
                        _await_ready(client)
                    used = _settled(way)
                finally:
                    for client in clients:
                        client.close()
                time.sleep(1)
                made.add_row(
                    way.name,
                    f"{count:,}",
                    f"{rest / 2**20:.1f}",
                    f"{idle / 2**20:.1f}",
                    f"{(idle - rest) / count / 1024:.1f}",
                    f"{used / 2**20:.1f}",
                    f"{(used - rest) / count / 1024:.1f}",
                    f"{_settled(way) / 2**20:.1f}",
                )
    runs.show(made)
