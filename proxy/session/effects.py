"""What a session's statements leave behind on its server: settings to replay elsewhere, and state that binds it there.

Contract: :meth:`Effects.note` is told of every statement that is sent and may leave something behind,
:meth:`Effects.settle` of every answered batch. What was set inside a transaction takes effect when that commits and not
if it rolls back; whatever cannot be followed with certainty makes the session's settings *unknown*: it reads from the
primary then, and on shared servers (transaction mode) it is *pinned* to the one it has. A pinned session keeps its
server until it ends, or until ``DISCARD ALL`` (for some reasons less) frees it.
"""

from __future__ import annotations

import re
from typing import Final, final

from proxy.rewrite.plan import Kind, Plan
from proxy.session.blank import BLANK, tangled
from proxy.session.context import Flight
from proxy.session.settings import DISCARDED, SessionSettings, Setting, divides, sets_as_one
from proxy.stats import Stats

IDLE: Final = 0x49
IN_TRANSACTION: Final = 0x54
FAILED: Final = 0x45
_CONTROL: Final = frozenset((Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT))
_BACK = re.compile(rb"\b(?:ROLLBACK|ABORT)\b", re.IGNORECASE)
_SPACE = re.compile(rb"\s+")
_REASONS: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (reason, re.compile(pattern, re.IGNORECASE))
    for reason, pattern in (
        ("listen", rb"\bLISTEN\b"),
        ("advisory_lock", rb"advisory_lock"),
        ("with_hold", rb"\bWITH\s+HOLD\b"),
        ("sql_prepare", rb"(?<!DEALLOCATE\s)\bPREPARE\b(?!\s+TRANSACTION\b)"),
        ("load", rb"\bLOAD\b"),
        ("settings", rb"set_config"),
    )
)
_START = rb"(?:\A|;)" + BLANK
_FREES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (reason, re.compile(_START + pattern + rb"\s*(?:;|\Z)", re.IGNORECASE | re.DOTALL))
    for reason, pattern in (
        ("all", rb"DISCARD\s+ALL"),
        ("listen", rb"UNLISTEN\s*\*"),
        ("sql_prepare", rb"DEALLOCATE\s+(?:PREPARE\s+)?ALL"),
        ("advisory_lock", rb"SELECT\s+pg_advisory_unlock_all\s*\(\s*\)"),
        ("with_hold", rb"CLOSE\s+ALL"),
    )
)
_UNSEEN = re.compile(_START + rb"(?:DO|CALL)\b", re.IGNORECASE | re.DOTALL)


@final
class Effects:
    """See the module's docstring. ``shared``: servers are shared by transactions, so that pins matter."""

    __slots__ = ("_settings", "_shared", "_stats", "_unsettled", "dirty", "pending", "pins")

    def __init__(self, settings: SessionSettings, stats: Stats, shared: bool) -> None:
        self._settings = settings
        self._stats = stats
        self._shared = shared
        self._unsettled = 0
        self.pending: tuple[Setting, ...] = ()
        """What the open transaction has set."""
        self.pins: frozenset[str] = frozenset()
        """Why the session must keep its server."""
        self.dirty = False
        """Code that cannot be seen ran on the server: it is reset before anybody else gets it."""

    @property
    def busy(self) -> bool:
        """Whether the outcome of something that was set is still open: every statement must be looked at."""
        return self._unsettled > 0 or bool(self.pending)

    def note(self, text: bytes, plan: Plan, flight: Flight) -> None:
        """A statement is sent."""
        kind = plan.kind
        if kind in _CONTROL:
            flight.control += (kind,)
            flight.back = flight.back or (kind is Kind.SAVEPOINT and _BACK.search(text) is not None)
        elif kind is Kind.SESSION:
            if self._shared:
                self._note_pins(text, plan)
        elif self._shared and kind is Kind.UNPARSED:
            flight.unparsed = True
            self._wait_for(flight)
        elif self._shared and kind is Kind.WRITE and (tangled(text) or _UNSEEN.search(text) is not None):
            self.dirty = True
        if self.pins and not (plan.statements > 1 and divides(text)):
            self._note_frees(text, flight)
        if plan.settings or kind is Kind.SESSION or self.pending or self._unsettled:
            self._note_settings(text, plan, flight)

    def _wait_for(self, flight: Flight) -> None:
        if not flight.noted:
            flight.noted = True
            self._unsettled += 1

    def _note_frees(self, text: bytes, flight: Flight) -> None:
        if tangled(text):
            return
        for reason, pattern in _FREES:
            if pattern.search(text) is not None:
                flight.frees += (reason,)
                self._wait_for(flight)
        for reason, pattern in _REASONS:
            if reason in flight.frees and pattern.search(text) is not None:
                flight.frees = ()

    def _note_settings(self, text: bytes, plan: Plan, flight: Flight) -> None:
        settings = plan.settings
        if plan.statements > 1 and (settings or self.busy) and divides(text):
            flight.uncertain = True
        elif plan.statements == 1 and plan.kind is Kind.SESSION:
            flight.uncertain = flight.uncertain or b"set_config" in text.lower()
        elif (settings and plan.kind is not Kind.SET) or plan.kind is Kind.SESSION:
            flight.uncertain = flight.uncertain or not sets_as_one(text)
        if settings or flight.uncertain:
            flight.settings += settings
            self._wait_for(flight)

    def discarded(self, flight: Flight) -> None:
        """A DISCARD ALL is sent."""
        flight.settings += DISCARDED
        self._wait_for(flight)

    def settle(self, flight: Flight, before: int, after: int) -> None:
        """A batch was answered; ``before`` and ``after`` are the transaction's status around it."""
        if flight.noted:
            self._unsettled -= 1
        elif not self.pending:
            return
        if flight.uncertain:
            self.lose()
        else:
            self._settle(flight, before, after)
        if flight.unparsed and not flight.failed:
            self.pin("unparsed")
        if flight.frees and before == IDLE == after and not flight.failed:
            self.free(self.pins if "all" in flight.frees else frozenset(flight.frees))

    def _settle(self, flight: Flight, before: int, after: int) -> None:
        new, pending, control = flight.settings, self.pending, flight.control
        if flight.back and (pending or new):
            self.lose()
        elif Kind.COMMIT in control or Kind.ROLLBACK in control:
            self.pending = ()
            if flight.failed or Kind.ROLLBACK in control or before == FAILED:
                # What was set before the end is undone; what came after it, or before an end that failed, may not be.
                if new or (pending and after != IDLE):
                    self.lose()
            elif after == IDLE or not new:
                self._settings.apply(pending + new)
            else:
                self.lose()
        elif after != IDLE:
            self.pending = pending + new
        elif before != IDLE:
            # The transaction has ended in a way that was not seen.
            self.pending = ()
            if pending or new:
                self.lose()
        elif not flight.failed:
            self._settings.apply(new)

    def lose(self) -> None:
        """What the session has set is not known any more."""
        self.pending = ()
        self._settings.unknown = True
        self.pin("settings")

    # -- pins ------------------------------------------------------------------------------------------------------

    def _note_pins(self, text: bytes, plan: Plan) -> None:
        if plan.temp_relations and not (plan.statements == 1 and _drops_on_commit(text)):
            self.pin("temp_table")
        for reason, pattern in _REASONS:
            if pattern.search(text) is not None:
                self.pin(reason)

    def pin(self, reason: str) -> None:
        """From now on the session keeps its server."""
        if self._shared and reason not in self.pins:
            self.pins |= {reason}
            self._stats.pins[reason] += 1
            self._stats.pins_total[reason] += 1

    def free(self, reasons: frozenset[str]) -> None:
        """These reasons hold no longer."""
        for reason in self.pins & reasons:
            self._stats.pins[reason] -= 1
        self.pins -= reasons


def _drops_on_commit(text: bytes) -> bool:
    return b"ON COMMIT DROP" in _SPACE.sub(b" ", text).upper()
