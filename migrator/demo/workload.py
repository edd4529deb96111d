"""The workload process: services and their ledger, told what to do by the director.

Run as ``python -m migrator.demo.workload '<json>'``. Standard input brings one JSON command a line, standard
output takes one JSON message a line: ``{"reply": id, ...}`` for each command, ``{"served": name}`` when an
instance got through, and the figures several times a second. The end of standard input ends the process:
without a director there is no traffic.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from dataclasses import dataclass
from typing import Any

from .ledger import Ledger
from .meter import Meter
from .service import Instance, Service

FIGURES_SECONDS = 0.25


@dataclass(slots=True)
class _Running:
    service: Service
    task: asyncio.Future[None]


class Workload:
    """Carries out the director's commands; every public coroutine is one."""

    def __init__(self, rows: int, index: int, owners: int, seed: int) -> None:
        self._seed = seed
        self._ledger = Ledger(rows, index, owners, seed)
        self._meter = Meter()
        self._focus = 0.8
        self._running: dict[str, _Running] = {}
        self._output = threading.Lock()

    async def start(self, instance: dict[str, Any]) -> None:
        """Starts a service instance."""
        wanted = Instance.from_json(instance)
        service = Service(
            wanted,
            self._ledger,
            self._meter,
            self._seed,
            lambda: self._focus,
            lambda name: self.say({"served": name}),
        )
        if wanted.driver == "asyncpg":
            task: asyncio.Future[None] = asyncio.ensure_future(service.run_raw())
        else:
            task = asyncio.ensure_future(asyncio.to_thread(service.run_orm))
        self._running[wanted.name] = _Running(service, task)

    async def stop(self, name: str) -> None:
        """Stops an instance; the reply comes when it has left."""
        running = self._running.pop(name)
        running.service.stop()
        await running.task

    async def stop_all(self) -> None:
        """Stops every instance."""
        await asyncio.gather(*(self.stop(name) for name in list(self._running)))

    async def phase(self, name: str) -> None:
        """From now on operations count for this phase."""
        self._meter.enter_phase(name)

    async def focus(self, orders: float) -> None:
        """Which share of the writes goes to orders; the rest goes to customers."""
        self._focus = orders

    async def open_window(self, name: str) -> None:
        """A flip begins."""
        self._meter.open_window(name)

    async def close_window(self, name: str) -> None:
        """A flip's command has ended."""
        self._meter.close_window(name)

    async def mirrored(self, migration: str) -> None:
        """The migration is expanded."""
        self._ledger.mirrored_from_now(migration)

    async def begin_check(self) -> None:
        """A check begins."""
        self._ledger.begin_check()

    async def expectations(self) -> dict[str, Any]:
        """What the check's snapshot must hold."""
        return self._ledger.expectations()

    async def report(self) -> dict[str, Any]:
        """All that was measured."""
        return self._meter.report()

    def say(self, message: dict[str, Any]) -> None:
        """Writes one message."""
        with self._output:
            sys.stdout.write(json.dumps(message, separators=(",", ":")) + "\n")
            sys.stdout.flush()

    async def serve(self) -> None:
        """Carries out commands until standard input ends."""
        commands: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        threading.Thread(target=_read, args=(loop, commands), daemon=True).start()
        figures = asyncio.ensure_future(self._tell_figures())
        replies: set[asyncio.Task[None]] = set()
        while (command := await commands.get()) is not None:
            reply = asyncio.ensure_future(self._carry_out(command))
            replies.add(reply)
            reply.add_done_callback(replies.discard)
        figures.cancel()
        await self.stop_all()

    async def _carry_out(self, command: dict[str, Any]) -> None:
        number, name = command.pop("id"), command.pop("do")
        try:
            result = await getattr(self, name)(**command)
            self.say({"reply": number, "result": result})
        except Exception as error:
            self.say({"reply": number, "error": f"{name}: {type(error).__name__}: {error}"})

    async def _tell_figures(self) -> None:
        while True:
            await asyncio.sleep(FIGURES_SECONDS)
            self.say({"figures": self._meter.figures()})


def _read(loop: asyncio.AbstractEventLoop, commands: asyncio.Queue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(commands.put_nowait, json.loads(line))
    loop.call_soon_threadsafe(commands.put_nowait, None)


def main() -> None:
    """Runs the process; the only argument holds the parameters of `Workload`."""
    workload = Workload(**json.loads(sys.argv[1]))
    try:
        asyncio.run(workload.serve())
    except (KeyboardInterrupt, BrokenPipeError):
        pass


if __name__ == "__main__":
    main()
