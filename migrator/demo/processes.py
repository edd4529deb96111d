"""The demo's other processes: sidecars, workloads, and the migrator as an operator would call it.

All of them are ``dualwire`` or its modules run by this Python, each in a session of its own (a Ctrl-C is the
director's to handle) and adopted by the cluster's watchdog (nothing outlives a crash of the director).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from migrator.cluster import Cluster
from migrator.cluster.embedded import free_port

DUALWIRE = (sys.executable, "-m", "migrator.cli.main")
ROOT = str(Path(__file__).resolve().parents[2])
READY_SECONDS = 60.0
LEAVE_SECONDS = 20.0
# A reply may hold what a whole ledger expects.
LONGEST_LINE = 1 << 28


class DemoError(Exception):
    """Something that the demo needs did not work; the text says what."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a finished command said."""

    args: tuple[str, ...]
    status: int
    output: str
    errors: str

    @property
    def words(self) -> str:
        """The beginning and the end of what it said, for people: the error and the hint."""
        text = self.errors.strip() or self.output.strip()
        text = text[max(text.find("error:"), 0) :]
        return text if len(text) <= 700 else f"{text[:400]} [...] {text[-250:]}"


async def spawn(cluster: Cluster, *args: str, **streams: Any) -> Process:
    """Starts a process that ends with us at the latest."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DUALWIRE_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, environment.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        *args, **streams, env=environment, start_new_session=True, limit=LONGEST_LINE
    )
    cluster.adopt(process.pid)
    return process


async def dualwire(cluster: Cluster, dsn: str, *args: str) -> Command:
    """Runs ``dualwire ... --dsn`` to its end."""
    process = await spawn(cluster, *DUALWIRE, *args, "--dsn", dsn, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    return Command(args, process.returncode or 0, output.decode(), errors.decode())


class Sidecar:
    """One ``dualwire proxy`` beside one kind of service."""

    def __init__(self, name: str, port: int, admin_port: int, log: Path, process: Process) -> None:
        self.name = name
        self.port = port
        self._admin_port = admin_port
        self._log = log
        self._process = process

    @classmethod
    async def start(
        cls,
        cluster: Cluster,
        directory: Path,
        name: str,
        version: str,
        servers: tuple[str, str],
        users_file: Path,
        dual_write: bool,
    ) -> Sidecar:
        """Starts one and waits until it is ready. ``servers`` are the DSNs of primary and replica."""
        port, admin_port = free_port(), free_port()
        config, log = directory / f"{name}.toml", directory / f"{name}.log"
        primary, replica = servers
        config.write_text(
            f'[listen]\naddress = "127.0.0.1:{port}"\n'
            f'[admin]\naddress = "127.0.0.1:{admin_port}"\n'
            f'[auth]\nmethod = "scram-sha-256"\nusers_file = "{users_file}"\n'
            f'[databases.shop]\nprimary = "{primary}"\nreplicas = ["{replica}"]\n'
            f'schema_version = "{version}"\nservice = "{name}"\n'
            f"[databases.shop.dual_write]\nenabled = {str(dual_write).lower()}\n"
        )
        with _log(log) as output:
            process = await spawn(
                cluster,
                *DUALWIRE,
                "proxy",
                "--config",
                str(config),
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
            )
        sidecar = cls(name, port, admin_port, log, process)
        await sidecar._wait_ready()
        return sidecar

    def dsn(self, user: str, password: str) -> str:
        """How a service connects through it."""
        return f"postgresql://{quote(user)}:{quote(password)}@127.0.0.1:{self.port}/shop"

    async def stop(self) -> int:
        """Asks it to end; gives its exit status."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), LEAVE_SECONDS)
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:]

    async def _wait_ready(self) -> None:
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while not await asyncio.to_thread(_answers, f"http://127.0.0.1:{self._admin_port}/readyz"):
            if self._process.returncode is not None:
                raise DemoError(f"the sidecar {self.name} ended at once:\n{self.last_words()}")
            if asyncio.get_running_loop().time() > deadline:
                raise DemoError(f"the sidecar {self.name} was not ready in time:\n{self.last_words()}")
            await asyncio.sleep(0.05)


class WorkloadProcess:
    """The other end of `workload`: sends commands, keeps the latest figures, knows who is served."""

    def __init__(self, process: Process, on_failure: Callable[[str], None]) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._served: dict[str, asyncio.Event] = {}
        self._on_failure = on_failure
        self._leaving = False
        self._reader = asyncio.ensure_future(self._read())
        self.figures: dict[str, Any] = {"writes": 0, "reads": 0, "errors": 0, "p99": 0.0}

    @classmethod
    async def start(
        cls, cluster: Cluster, parameters: dict[str, Any], log: Path, on_failure: Callable[[str], None]
    ) -> WorkloadProcess:
        """Starts one; its standard error goes to a log file."""
        args = (sys.executable, "-m", "migrator.demo.workload", json.dumps(parameters))
        with _log(log) as errors:
            return cls(await spawn(cluster, *args, stdin=PIPE, stdout=PIPE, stderr=errors), on_failure)

    async def do(self, command: str, **arguments: Any) -> Any:
        """Gives a command and waits for its reply."""
        number = next(self._numbers)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "do": command, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()
        return await reply

    async def served(self, name: str) -> None:
        """Waits until an instance has got through to its version."""
        await self._event(name).wait()

    async def leave(self) -> None:
        """Ends the process."""
        self._leaving = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), LEAVE_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader

    def _event(self, name: str) -> asyncio.Event:
        return self._served.setdefault(name, asyncio.Event())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "figures" in message:
                self.figures = message["figures"]
            elif "served" in message:
                self._event(message["served"]).set()
            elif "error" in message:
                self._waiting.pop(message["reply"]).set_exception(DemoError(message["error"]))
            else:
                self._waiting.pop(message["reply"]).set_result(message["result"])
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(DemoError("a workload process ended"))
        if not self._leaving:
            self._on_failure("a workload process ended before its time")


def _log(path: Path) -> IO[bytes]:
    return path.open("wb")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
