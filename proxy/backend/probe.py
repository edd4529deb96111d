"""Trying a rewritten text before a client's statement depends on it (DESIGN section 4, "parse the original first").

The original is parsed first, for the parameter types that the server infers, then the rewritten text with exactly those
types; both must describe the same result. Where the original names columns that its table has not, its *twin* is parsed
in its place, and what the server has against the twin is the client's error. This happens on a spare connection with
the client's login and search_path, so that neither the client's transaction nor its pipeline can be hurt. Whatever goes
wrong, the answer is the safe one: send the text that leaves the other shape to the guard, or refuse where none can.
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
from proxy.caches import Cache, CacheCounts
from proxy.rewrite.plan import Plan, Refusal
from proxy.session.cure import shape
from proxy.session.twins import DIFFERENT, rejected
from proxy.sql.parse import parse
from proxy.sql.quote import ident
from proxy.sql.splice import characters
from proxy.wire import messages as m

log = structlog.get_logger(__name__)

MAX_KNOWN = 20_000
MAX_KNOWN_BYTES = 16 << 20
_OVERHEAD = 600
"""Bytes that a verdict and its key take besides the text."""
MAX_SEVERAL = 1 << 17
"""Bytes of a text of several statements that is taken apart to be tried."""
TIMEOUT = 5.0
LOCK_MS = 300
RETRY_SECONDS = 5.0
"""How long a text that could not be tried is left to the guard, and an error that a twin got is believed."""

Key = tuple[Any, ...]

_PASSING = frozenset(("08", "25", "28", "40", "53", "55", "57", "58", "F0", "XX"))
"""Classes of errors that say nothing of a text: the server or the moment is in trouble."""
_MISSING = frozenset(("42P01", "3F000", "42501"))
"""What is said of a twin that is gone, or that the client's role may not see."""

NOT_TRIED = Refusal(
    "53000",
    "this statement could not be tried on the server",
    detail="It is translated for the client's schema version; such a text is tried before it is sent.",
    hint="Try again; see the sidecar's log for what is wrong.",
)


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """What came of trying a text; see ``proxy.session.ports.Verdict``."""

    mirrored: bool
    oids: tuple[int, ...] = ()
    error: bytes = b""
    refusal: Refusal | None = None


LEFT_TO_GUARD = ProbeVerdict(False)
WRONG_ITSELF = ProbeVerdict(False)
"""The server refuses the client's own text: perhaps for a literal in it, and others of that shape are good."""


class Verdicts:
    """Verdicts of one database, shared by its sessions."""

    def __init__(self, counts: CacheCounts | None = None) -> None:
        self.known: Cache[Key, ProbeVerdict] = Cache(MAX_KNOWN, MAX_KNOWN_BYTES, counts or CacheCounts())

    def learn(self, key: Key, verdict: ProbeVerdict) -> None:
        """Remember a verdict."""
        size = _OVERHEAD + sum([len(part) for part in key if isinstance(part, bytes)])
        # Whatever its size, it is kept: the session that waits for it asks for it at once.
        self.known.put(key, verdict, min(size, MAX_KNOWN_BYTES // 16))


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

    def known(self, key: Key, plan: Plan) -> ProbeVerdict | None:
        """The verdict, if this text was tried before."""
        known = self._verdicts.known
        verdict = known.get(key)
        if verdict is None and plan.twin is not None:
            # An error may be due to a literal.
            verdict = known.get((*key, plan.twin))
        return verdict

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
        verdict = LEFT_TO_GUARD if plan.fallback is not None else ProbeVerdict(False, refusal=NOT_TRIED)
        lasting = False
        try:
            async with asyncio.timeout(TIMEOUT):
                verdict = await self._try(plan, oids, search_path=key[1])
                lasting = not verdict.error and verdict is not WRONG_ITSELF
        except Exception as exc:
            # Whatever it is: a client waits for the answer.
            what = "left to the guard" if plan.fallback is not None else "refused"
            log.warning(f"could not try a rewritten statement; it is {what}", error=str(exc))
        if verdict.error:
            key = (*key, plan.twin)
        # The session asks for the key again: only what was learned lets it go on.
        self._verdicts.learn(key, verdict)
        if not lasting:
            # The text itself may be good, or become so: ask again before long.
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._verdicts.known.pop, key)
        done(verdict)

    async def _try(self, plan: Plan, oids: tuple[int, ...], search_path: tuple[str, ...]) -> ProbeVerdict:
        connection = await self._pool.acquire(self._parameters, self._password)
        healthy = False
        try:
            # The client's own transaction may hold a lock that even parsing would wait for.
            settings = f"SET lock_timeout TO '{LOCK_MS}ms'"
            if search_path:
                path = ", ".join(ident(schema) for schema in search_path)
                settings += f"; SET search_path TO {path}"
            await connection.simple(settings)
            verdict = await _judge(connection, plan, oids)
            healthy = True
            return verdict
        except QueryFailed:
            healthy = True
            raise
        finally:
            self._pool.release(connection, reusable=healthy)


async def _judge(connection: ServerConnection, plan: Plan, oids: tuple[int, ...]) -> ProbeVerdict:
    twin = plan.twin
    if twin is not None and plan.statements > 1:
        return await _judge_several(connection, plan, twin)
    if twin is None and plan.statements > 1:
        return await _mirror_several(connection, plan)
    if twin is None:
        assert plan.fallback is not None
        try:
            types, row = await _describe(connection, plan.fallback.text, oids)
        except QueryFailed:
            return WRONG_ITSELF
    else:
        try:
            types, row = await _describe(connection, twin, oids)
        except QueryFailed as exc:
            _refuse_passing(exc)
            return ProbeVerdict(False, error=exc.frame)
    try:
        _, rewritten_row = await _describe(connection, plan.text, types)
    except QueryFailed as exc:
        return _rejected(plan, exc)
    same = rewritten_row == row if twin is None else shape(rewritten_row) == shape(row)
    return ProbeVerdict(True, types) if same else _different(plan)


async def _judge_several(connection: ServerConnection, plan: Plan, twin: bytes) -> ProbeVerdict:
    """Several statements of one simple Query: each by itself, because a Parse takes no more than one."""
    twins, texts = _statements(twin), _statements(plan.text)
    if len(twins) != len(texts):
        return _different(plan)
    for (start, original), (_, text) in zip(twins, texts, strict=True):
        try:
            types, row = await _describe(connection, original, ())
        except QueryFailed as exc:
            _refuse_passing(exc)
            if start:
                # What stands before it may have made what is missing here: the server will see.
                break
            return ProbeVerdict(False, error=exc.frame)
        try:
            _, rewritten_row = await _describe(connection, text, types)
        except QueryFailed as exc:
            return _rejected(plan, exc)
        if shape(rewritten_row) != shape(row):
            return _different(plan)
    return ProbeVerdict(True)


async def _mirror_several(connection: ServerConnection, plan: Plan) -> ProbeVerdict:
    """The same where both texts are the table's own: each of the statements that are mirrored by itself."""
    assert plan.fallback is not None
    if len(plan.text) > MAX_SEVERAL:
        return LEFT_TO_GUARD
    originals, texts = _statements(plan.fallback.text), _statements(plan.text)
    if len(originals) != len(texts):
        return _different(plan)
    for (_, original), (_, text) in zip(originals, texts, strict=True):
        if original == text:
            continue
        try:
            types, row = await _describe(connection, original, ())
        except QueryFailed:
            return LEFT_TO_GUARD  # it is wrong, or what stands before it makes what is missing here
        try:
            _, rewritten_row = await _describe(connection, text, types)
        except QueryFailed as exc:
            return _rejected(plan, exc)
        if rewritten_row != row:
            return _different(plan)
    return ProbeVerdict(True)


def _statements(text: bytes) -> list[tuple[int, bytes]]:
    """The statements of a text, each with its offset in characters."""
    found = parse(text).statements
    return [(characters(text[: one.start]), text[one.start : one.end]) for one in found]


def _refuse_passing(exc: QueryFailed) -> None:
    """Raise the error again unless it is about the client's text."""
    message = m.error_fields(exc.frame).get("M", b"")
    if exc.sqlstate[:2] in _PASSING or (exc.sqlstate in _MISSING and b"dualwire" in message):
        raise exc


def _rejected(plan: Plan, exc: QueryFailed) -> ProbeVerdict:
    log.warning(
        "the server rejects a rewritten statement",
        error=str(exc),
        sqlstate=exc.sqlstate,
        reason=plan.reason,
        left_to_guard=plan.fallback is not None,
        statement=plan.text.decode("utf-8", "replace")[:500],
    )
    if plan.fallback is not None:
        return LEFT_TO_GUARD
    return ProbeVerdict(False, refusal=rejected(str(exc), exc.sqlstate))


def _different(plan: Plan) -> ProbeVerdict:
    log.warning(
        "a rewritten statement describes another result",
        reason=plan.reason,
        left_to_guard=plan.fallback is not None,
        statement=plan.text.decode("utf-8", "replace")[:500],
    )
    return LEFT_TO_GUARD if plan.fallback is not None else ProbeVerdict(False, refusal=DIFFERENT)


async def _describe(
    connection: ServerConnection, text: bytes, oids: tuple[int, ...]
) -> tuple[tuple[int, ...], bytes]:
    """Parameter types and row description of a text, as the server sees them."""
    request = m.parse(b"", text, oids) + m.describe_statement(b"") + m.SYNC_FRAME
    frames = await connection.roundtrip(request)
    parameters: tuple[int, ...] = ()
    row = m.frame(m.NO_DATA, b"")
    for frame in frames:
        if frame[0] == m.PARAMETER_DESCRIPTION:
            parameters = m.read_parameter_oids(frame)
        elif frame[0] == m.ROW_DESCRIPTION:
            row = frame
    return parameters, row
