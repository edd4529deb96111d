"""Trying a rewritten text before a client's statement depends on it (DESIGN section 4, "parse the original first").

The original is parsed first, for the parameter types that the server infers, then the rewritten text with exactly those
types; both must describe the same result. This happens on a spare connection with the client's login and search_path,
so that neither the client's transaction nor its pipeline can be hurt. Whatever goes wrong, the answer is the safe one:
send the text that leaves the other shape to the guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from proxy.backend.connection import ServerConnection
from proxy.backend.errors import QueryFailed
from proxy.backend.pool import Pool
from proxy.rewrite.plan import Plan
from proxy.sql.quote import ident
from proxy.wire import messages as m

log = structlog.get_logger(__name__)

MAX_KNOWN = 20_000
TIMEOUT = 5.0
RETRY_SECONDS = 5.0
"""How long a text that could not be tried is left to the guard."""

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What came of trying a text."""

    mirrored: bool
    oids: tuple[int, ...] = ()


LEFT_TO_GUARD = ProbeVerdict(False)


class Verdicts:
    """Verdicts of one database, shared by its sessions."""

    def __init__(self) -> None:
        self.known: dict[Key, ProbeVerdict] = {}

    def learn(self, key: Key, verdict: ProbeVerdict) -> None:
        """Remember a verdict."""
        if len(self.known) >= MAX_KNOWN:
            for stale in list(self.known)[: MAX_KNOWN // 10]:
                del self.known[stale]
        self.known[key] = verdict


class SessionProber:
    """Probes for one session's login; implements ``proxy.session.ports.Prober``."""

    def __init__(
        self, verdicts: Verdicts, pool: Pool, parameters: dict[str, str], password: str | None
    ) -> None:
        self._verdicts = verdicts
        self._pool = pool
        self._parameters = parameters
        self._password = password
        self._tasks: set[asyncio.Task[None]] = set()

    def known(self, key: Key) -> ProbeVerdict | None:
        """The verdict, if this text was tried before."""
        return self._verdicts.known.get(key)

    def probe(
        self, key: Key, plan: Plan, oids: tuple[int, ...], done: Callable[[ProbeVerdict], None]
    ) -> None:
        """Try the plan; ``done`` is called later, whatever happens."""
        task = asyncio.ensure_future(self._probe(key, plan, oids, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(
        self, key: Key, plan: Plan, oids: tuple[int, ...], done: Callable[[ProbeVerdict], None]
    ) -> None:
        verdict = LEFT_TO_GUARD
        tried = False
        try:
            async with asyncio.timeout(TIMEOUT):
                verdict = await self._try(plan, oids, search_path=key[1])
                tried = True
        except Exception as exc:
            # Whatever it is: a client waits for the answer.
            log.warning("could not try a rewritten statement; it is left to the guard", error=str(exc))
        # The session asks for the key again: only what was learned lets it go on.
        self._verdicts.learn(key, verdict)
        if not tried:
            # The text itself may be good: ask again before long.
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._verdicts.known.pop, key, None)
        done(verdict)

    async def _try(self, plan: Plan, oids: tuple[int, ...], search_path: tuple[str, ...]) -> ProbeVerdict:
        assert plan.fallback is not None
        connection = await self._pool.acquire(self._parameters, self._password)
        healthy = False
        try:
            if search_path:
                path = ", ".join(ident(schema) for schema in search_path)
                await connection.simple(f"SET search_path TO {path}")
            try:
                original, row = await _describe(connection, plan.fallback.text, oids)
            except QueryFailed:
                healthy = True
                return LEFT_TO_GUARD
            try:
                _, rewritten_row = await _describe(connection, plan.text, original)
            except QueryFailed as exc:
                healthy = True
                log.warning(
                    "the server rejects a rewritten statement; it is left to the guard",
                    error=str(exc),
                    sqlstate=exc.sqlstate,
                    reason=plan.reason,
                    statement=plan.text.decode("utf-8", "replace")[:500],
                )
                return LEFT_TO_GUARD
            healthy = True
            if rewritten_row != row:
                log.warning("a rewritten statement describes another result; it is left to the guard")
                return LEFT_TO_GUARD
            return ProbeVerdict(True, original)
        finally:
            self._pool.release(connection, reusable=healthy)


async def _describe(
    connection: ServerConnection, text: bytes, oids: tuple[int, ...]
) -> tuple[tuple[int, ...], bytes]:
    """Parameter types and row description of a text, as the server sees them."""
    request = m.parse(b"", text, oids) + m.describe_statement(b"") + m.SYNC_FRAME
    frames = await connection.roundtrip(request)
    parameters: tuple[int, ...] = ()
    row = b""
    for frame in frames:
        if frame[0] == m.PARAMETER_DESCRIPTION:
            parameters = m.read_parameter_oids(frame)
        elif frame[0] == m.ROW_DESCRIPTION:
            row = frame
    return parameters, row
