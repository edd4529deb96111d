"""The same cluster in containers, through testcontainers: chosen by ``DUALWIRE_TEST_IMAGE=postgres:18``.

The image has to be, or to behave like, the official ``postgres`` one. Ports are bound to fixed free ones,
since Docker gives another random one at every start of a container. Testcontainers' own reaper removes what a
crash leaves behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .binaries import ClusterError
from .embedded import SETTINGS, SUPERUSER, free_port
from .server import Address, Server, StopMode

PASSWORD = "dualwire"
START_TIMEOUT = 120.0
SIGNALS = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}
OPEN_REPLICATION = "echo 'host replication all all scram-sha-256' >> \"$PGDATA/pg_hba.conf\""
BECOME_REPLICA = (
    "set -e; install -d -o postgres -g postgres -m 0700 /replica; "
    'until gosu postgres pg_basebackup -D /replica -R -X stream -c fast -C -S {slot} -d "$PRIMARY"; '
    "do sleep 0.2; done; "
    "exec gosu postgres postgres -D /replica {settings}"
)


@dataclass
class ContainerServer(Server):
    """A server in a container of ours."""

    container: Any = None

    @property
    def running(self) -> bool:
        wrapped = self.container.get_wrapped_container()
        wrapped.reload()
        return bool(wrapped.status == "running")

    def start(self) -> None:
        self.container.get_wrapped_container().start()
        self.wait_ready()

    def stop(self, mode: StopMode = "fast") -> None:
        self._end(SIGNALS[mode])

    def kill(self) -> None:
        self._end("SIGKILL")

    def wait_ready(self) -> None:
        """Waits until the server answers over TCP (the image's first, initialising server listens on no TCP
        port).
        """
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.sql("SELECT 1")
                return
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _end(self, signal_name: str) -> None:
        wrapped = self.container.get_wrapped_container()
        wrapped.kill(signal=signal_name)
        wrapped.wait(timeout=START_TIMEOUT)


def start(image: str, replicas: int, psql: Path) -> tuple[Server, list[Server], Callable[[], None]]:
    """Starts the containers; gives the servers and what stops them."""
    try:
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.network import Network
    except ImportError as missing:
        raise ClusterError(
            "DUALWIRE_TEST_IMAGE needs testcontainers: pip install 'dualwire[test]'"
        ) from missing
    # The servers must listen on the container's address; everything else is as for the embedded servers.
    settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items() if " " not in value)
    settings = settings.replace("listen_addresses=127.0.0.1", "listen_addresses=*")
    passwords = {SUPERUSER: PASSWORD}
    network = Network()
    network.create()
    servers: list[Server] = []

    def stop() -> None:
        for server in reversed(servers):
            if isinstance(server, ContainerServer):
                server.container.stop()
        network.remove()

    def launch(
        name: str,
        environment: dict[str, str],
        command: str | None = None,
        entrypoint: list[str] | None = None,
    ) -> None:
        port = free_port()
        container = DockerContainer(image).with_bind_ports(5432, port).with_envs(**environment)
        container = container.with_network(network).with_network_aliases(name)
        if command is not None:
            container = container.with_command(command)
        if entrypoint is not None:
            container = container.with_kwargs(entrypoint=entrypoint)
        container.start()
        address = Address(container.get_container_host_ip(), port, SUPERUSER, PASSWORD, SUPERUSER)
        server = ContainerServer(name, address, psql, passwords, container)
        servers.append(server)
        server.wait_ready()

    try:
        launch("primary", {"POSTGRES_PASSWORD": PASSWORD}, command=f"postgres {settings}")
        primary = servers[0]
        assert isinstance(primary, ContainerServer)
        primary.container.exec(["bash", "-c", OPEN_REPLICATION])
        primary.sql("SELECT pg_reload_conf()")
        target = replace(primary.address, host="primary", port=5432)
        for number in range(1, replicas + 1):
            name = f"replica-{number}"
            script = BECOME_REPLICA.format(slot=f"replica_{number}", settings=settings)
            environment = {"PRIMARY": f"{target.dsn()}?application_name={name}"}
            launch(name, environment, entrypoint=["bash", "-c", script])
    except BaseException:
        stop()
        raise
    return servers[0], servers[1:], stop
