"""Large texts are planned by a process of their own, one after the other; the event loop goes on meanwhile.

Contract: :class:`Planning` implements ``proxy.session.ports.Planning``. The process is started with the first large
text, ends after a while without any, and is started anew when it is gone; a text whose process dies gets a second one.
Whatever else goes wrong with it (it takes too long, or too much memory), the text counts as one that cannot be looked
into.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from proxy.rewrite.model import Side
from proxy.rewrite.parcel import unpack
from proxy.rewrite.plan import Plan
from proxy.server.planning_worker import LENGTH, MAX_PLANNERS, message
from proxy.session.book import PlanBook, SearchPath

log = structlog.get_logger(__name__)

TIMEOUT: Final = 60.0
"""Seconds for one text."""
IDLE_SECONDS: Final = 60.0
_ROOT: Final = str(Path(__file__).resolve().parents[2])
"""Where this package is: the other process must not find another one."""


@dataclass(eq=False, slots=True)
class _Job:
    book: PlanBook
    text: bytes
    side: Side
    search_path: SearchPath
    temp: frozenset[str]
    done: Callable[[Plan], None]
    withdrawn: bool = False


class Planning:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._current: _Job | None = None
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._known: list[Any] = []
        """The planners that the process has."""
        self._idle: asyncio.TimerHandle | None = None

    def plan(
        self,
        book: PlanBook,
        text: bytes,
        side: Side,
        search_path: SearchPath,
        temp: frozenset[str],
        done: Callable[[Plan], None],
    ) -> Callable[[], None]:
        """Plan a text and call ``done`` later; what is given back withdraws the question."""
        job = _Job(book, text, side, search_path, temp, done)
        self._jobs.append(job)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

        def withdraw() -> None:
            job.withdrawn = True
            if job is self._current:
                self._kill()  # nobody waits for it, others may

        return withdraw

    async def stop(self) -> None:
        """End the process."""
        self._jobs.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._kill()

    async def _run(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        while self._jobs:
            job = self._current = self._jobs.popleft()
            if job.withdrawn:
                continue
            try:
                async with asyncio.timeout(TIMEOUT):
                    plan = await self._answer(job)
            except Exception as exc:
                # Whatever it is: a client waits for the answer.
                self._kill()
                if not job.withdrawn:
                    log.warning(
                        "a large statement could not be planned", error=repr(exc), bytes=len(job.text)
                    )
                plan = job.book.unplanned(job.text, job.side)
            self._current = None
            if not job.withdrawn:
                job.book.keep(job.text, job.side, job.search_path, job.temp, plan)
                try:
                    job.done(plan)
                except Exception:
                    log.exception("a session could not go on with its plan")  # the others' texts still wait
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._kill)

    async def _answer(self, job: _Job) -> Plan:
        """The plan of a text, from a second process if the first one dies of it, or of something else."""
        try:
            return await self._ask(job)
        except (asyncio.IncompleteReadError, ConnectionError):
            if job.withdrawn:
                raise
            self._kill()
            return await self._ask(job)

    async def _ask(self, job: _Job) -> Plan:
        process = self._process
        if process is None or process.returncode is not None:
            self._known = []
            process = self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "proxy.server.planning_worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join((_ROOT, os.environ.get("PYTHONPATH", "")))},
            )
        assert process.stdin is not None
        assert process.stdout is not None
        key = (job.book.serial, job.side, job.book.dual_write)
        tables = None
        if key not in self._known:
            tables = job.book.tables
            if len(self._known) >= MAX_PLANNERS:
                self._known = []
            self._known.append(key)
        process.stdin.write(message((key, tables, job.text, job.search_path, job.temp)))
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(LENGTH), "big")
        packed, last = pickle.loads(await process.stdout.readexactly(size))
        if last:
            self._process = None
            process.stdin.close()
        if packed is None:
            raise LookupError("the process does not know the planner")
        return unpack(packed, job.text)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
