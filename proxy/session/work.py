"""From the messages of one batch to what they mean: plans, tables, whether a replica may serve them.

Contract: :func:`study` changes nothing. It resolves every statement of a batch under the current routing and says
what is still unknown (a rewritten text that was never tried on the server); sending is ``proxy.session.core``'s job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.plan import Kind, Plan, Refusal
from proxy.rewrite.reasons import Reason
from proxy.session.book import LARGE_TEXT, PlanBook, SearchPath
from proxy.session.breaker import Breaker, Who
from proxy.session.ports import Prober, Verdict
from proxy.session.statements import Statement
from proxy.session.twins import as_if_alone
from proxy.wire import messages as m

RETIRED = Refusal(
    "0A000",
    "cached plan must not change result type",
    detail="The prepared statement belongs to a schema version that is no longer served.",
    hint="Prepare the statement again.",
)
"""What a statement gets whose version was retired while the session's own version went on (DESIGN section 6)."""

CHANGED = Refusal("0A000", "cached plan must not change result type")
"""What a statement gets that gives other columns than its client was told."""

_ENDS_TRANSACTION = frozenset((Kind.COMMIT, Kind.ROLLBACK, Kind.EMPTY))

Large = tuple[int, Side, SearchPath, frozenset[str], bytes]
"""A large text, and under what it is planned: the book's serial, side, search_path, temporary relations."""


class Unplanned(Exception):
    """A large text must be planned before the batch can be studied."""

    def __init__(self, large: Large) -> None:
        super().__init__()
        self.large = large


SideOf = Callable[[str], Side | Refusal]


@dataclass(slots=True)
class Item:
    """One message of a batch with the decision about its statement, if it has one."""

    frame: bytes
    kind: int
    name: bytes = b""
    statement: Statement | None = None
    plan: Plan | None = None
    oids: tuple[int, ...] = ()
    refusal: Refusal | None = None
    error: bytes = b""
    """The error that the statement gets, as PostgreSQL gives it for the client's own text."""
    tried: bool = False
    """Whether that is what the session's own connection has said."""
    runs: Item | None = None
    """Of an Execute: the Bind of its portal, if that is in the same batch."""
    edits: Callable[[bytes], bytes] | None = None
    """What an error of the statement's rewritten text goes through on its way to the client, once it was asked for."""
    decides: bool = False
    """Whether this message is where the statement's text arrives (Query, Parse), so that it is counted once."""

    @property
    def fails(self) -> bool:
        """Whether the statement is not sent: the client gets an error in its place."""
        return self.refusal is not None or self.error != b""

    @property
    def text(self) -> bytes:
        """The client's own text of the statement (Query, Parse, Bind)."""
        return self.frame[5:-1] if self.statement is None else self.statement.text


@dataclass(frozen=True, slots=True)
class Doubt:
    """A statement whose twin got an error on a spare connection, which knows nothing of temporary tables, say."""

    key: tuple[Any, ...]
    plan: Plan
    text: bytes
    """The client's own."""
    oids: tuple[int, ...]
    tables: Sequence[TableModel]


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of trying it on the session's own connection; see ``proxy.session.ports.Verdict``."""

    mirrored: bool
    oids: tuple[int, ...] = ()
    error: bytes = b""
    refusal: Refusal | None = None


@dataclass(slots=True)
class Work:
    """One batch, studied."""

    items: list[Item] = field(default_factory=list)
    tables: tuple[str, ...] = ()
    touches: bool = False
    reads_only: bool = True
    unproved: Plan | None = None
    """A plan whose rewritten text the server has not seen yet, with ``probe_key`` and ``probe_oids``."""
    probe_key: tuple[Any, ...] = ()
    probe_oids: tuple[int, ...] = ()
    doubt: Doubt | None = None
    """The batch's first statement is wrong as far as a spare connection can tell."""

    @property
    def plans(self) -> list[Plan]:
        """The plans of all statements."""
        return [item.plan for item in self.items if item.plan is not None]


@dataclass(frozen=True, slots=True)
class Scope:
    """Under what a batch is studied."""

    book: PlanBook
    prober: Prober
    side_of: SideOf
    version: str
    """The version that new statements of this session belong to."""
    refusal: Refusal | None
    """Why the session's version cannot be served, if so."""
    search_path: SearchPath
    temp: frozenset[str]
    user: str
    misread: Callable[[bytes], str]
    """Why a parser would misread a text, if so."""
    breaker: Breaker
    tried: Mapping[tuple[Any, ...], Verdict]
    """What was tried on the session's own connection for this batch."""
    who: Who
    """Whose statements they are, for the breaker."""
    planned: Mapping[Large, Plan] | None = None
    """The large texts of the batch that were planned elsewhere; None: they are planned here."""
    shared: bool = False
    """Servers are shared by transactions: a named statement is prepared wherever it is wanted."""

    def plan(self, text: bytes, side: Side) -> Plan:
        """The plan of a text; one that a parser would misread counts as one that cannot be looked into."""
        why = self.misread(text)
        if why:
            return self.book.unplanned(text, side, why)
        if self.planned is not None and len(text) > LARGE_TEXT:
            large = (self.book.serial, side, self.search_path, self.temp, text)
            plan = self.planned.get(large) or self.book.large(text, side, self.search_path, self.temp)
            if plan is None:
                raise Unplanned(large)
            return plan
        return self.book.plan(text, side, self.search_path, self.temp)


def study(frames: list[bytes], statements: Mapping[bytes, Statement], scope: Scope) -> Work:
    """Resolve every message of a batch. Raises ProtocolViolation for malformed messages, and Unplanned."""
    work = Work()
    fresh: dict[bytes, Statement | None] = {}
    portals: dict[bytes, Item] = {}
    tables: set[str] = set()
    unknown = False
    for frame in frames:
        kind = frame[0]
        item = Item(frame, kind)
        work.items.append(item)
        if kind == m.QUERY:
            item.decides = True
            _decide(item, work, scope, m.read_query(frame), scope.version, ())
        elif kind == m.PARSE:
            item.decides = True
            item.name, _ = m.cstring(frame, m.HEADER)
            item.statement = statement = Statement(frame, scope.version)
            fresh[item.name] = statement
            # Named statements live on the primary: there SQL's EXECUTE and DEALLOCATE look for them.
            work.reads_only = work.reads_only and (not item.name or scope.shared)
            _decide(item, work, scope, statement.text, scope.version, statement.oids)
        elif kind in (m.BIND, m.DESCRIBE, m.CLOSE):
            item.name, is_statement = _named(frame)
            if is_statement and kind != m.CLOSE:
                if kind == m.BIND:
                    portals[m.cstring(frame, m.HEADER)[0]] = item
                known = fresh[item.name] if item.name in fresh else statements.get(item.name)
                item.statement = known
                if known is not None and known.changed:
                    item.plan = Plan(known.text, Kind.UNPARSED, "columns_changed", refusal=CHANGED)
                    item.refusal = CHANGED
                elif known is not None:
                    _decide(item, work, scope, known.text, known.version, known.oids)
                else:
                    work.reads_only = False
                    unknown = unknown or kind == m.BIND
            elif is_statement:
                fresh[item.name] = None
                work.reads_only = work.reads_only and not item.name
        elif kind == m.EXECUTE:
            item.runs = portals.get(m.cstring(frame, m.HEADER)[0])
        elif kind == m.FUNCTION_CALL:
            work.reads_only = False
            unknown = True
        if item.plan is not None:
            tables.update(item.plan.tables)
    unknown = unknown or any(plan.touches and not plan.tables for plan in work.plans)
    work.touches = work.touches or (unknown and bool(scope.book.tables))
    work.tables = () if unknown else tuple(sorted(tables))
    return work


def _named(frame: bytes) -> tuple[bytes, bool]:
    """The name in a Bind, Describe or Close message, and whether it names a statement."""
    if frame[0] == m.BIND:
        return m.read_bind_names(frame)[1], True
    target, name = m.read_target(frame)
    return name, target == ord("S")


def _decide(item: Item, work: Work, scope: Scope, text: bytes, version: str, oids: tuple[int, ...]) -> None:
    side = scope.side_of(version)
    if isinstance(side, Refusal):
        plan = scope.plan(text, "old")
        if plan.kind not in _ENDS_TRANSACTION:
            item.refusal = side if scope.refusal is not None else RETIRED
        plan = Plan(text, plan.kind, "version_not_served", refusal=item.refusal)
    else:
        plan = scope.plan(text, side)
        item.refusal = plan.refusal
    item.plan, item.oids = plan, oids
    if plan.kind is not Kind.READ:
        work.reads_only = False
    if plan.refusal is not None:
        return
    work.touches = work.touches or (plan.touches and bool(scope.book.tables))
    if plan.twin is None and (plan.fallback is None or not plan.mirrored):
        return
    key = (
        side,
        scope.search_path,
        scope.user,
        oids,
        scope.book.tried_as(text, item.kind == m.QUERY),
        scope.book.serial,
    )
    tried = scope.tried.get(key)
    item.tried = tried is not None
    verdict = tried or scope.prober.known(key, plan)
    if verdict is None:
        if work.unproved is None:
            work.unproved, work.probe_key, work.probe_oids = plan, key, oids
    elif verdict.mirrored:
        item.oids = verdict.oids
        if plan.fallback is not None and plan.mirrored and scope.breaker.handed(plan.tables, scope.who):
            item.plan = replace(plan.fallback, reason=Reason.GUARD_BREAKER.value)
    elif verdict.error:
        if len(work.items) == 1 and not item.tried:
            work.doubt = Doubt(key, plan, text, oids, scope.book.tables)
        item.error = as_if_alone(verdict.error, text, plan, scope.book.tables)
    elif verdict.refusal is not None:
        item.refusal = verdict.refusal
        reason = Reason.REFUSED_BY_SERVER.value
        item.plan = Plan(text, plan.kind, reason, tables=plan.tables, refusal=verdict.refusal)
    else:
        item.plan = plan.fallback
