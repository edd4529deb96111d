"""What a session needs of the world, as protocols: the layers above implement them, tests record them.

A session calls these and returns; whatever takes time answers later through a callback given here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.plan import Plan, Refusal

if TYPE_CHECKING:
    from proxy.session.book import PlanBook
    from proxy.session.context import Term


class Target(IntEnum):
    """Which of a session's two server connections."""

    PRIMARY = 0
    REPLICA = 1


class RoutingView(Protocol):
    """The part of the routing state that sessions read."""

    @property
    def tables(self) -> Sequence[TableModel]: ...
    @property
    def dual_write(self) -> bool: ...
    @property
    def old(self) -> str: ...
    @property
    def new(self) -> str | None: ...
    def resolve(self, version: str, session_number: int, /) -> Side | Refusal: ...


class HubView(Protocol):
    """Routing, epochs in use and the hold (``proxy.control.hub.RoutingHub``)."""

    @property
    def term(self) -> Term: ...
    @property
    def hold(self) -> object | None: ...
    def leave(self, term: Term, /) -> None: ...
    def touch(self) -> None: ...
    def untouch(self) -> None: ...
    def must_park(self, tables: tuple[str, ...], in_transaction: bool, touched: bool) -> bool: ...
    def park(self, waiter: Callable[[Refusal | None], None], /) -> None: ...
    def unpark(self, waiter: Callable[[Refusal | None], None], /) -> None: ...


class Reads(Protocol):
    """Whether reads may leave the primary (``proxy.backend.lag``).

    ``sent`` counts the LSN samples that were *sent* to the primary so far; a session that heard a reply from the
    primary when ``sent`` was n may use a replica only once that replica has replayed the LSN of a sample later than n.
    """

    sent: int

    @property
    def enabled(self) -> bool:
        """Whether reads may leave the primary at all."""

    def choose(self, seen: int, current: int | None, /) -> tuple[int | None, str]:
        """The index of a replica that can serve a session which has seen the primary at sample ``seen`` and has read
        from replica ``current`` so far (None: from none), or None; and the reason."""

    def request(self) -> None:
        """A session waits for a replica to catch up: sample soon."""

    def servable(self, plan: Plan, search_path: tuple[str, ...], user: str, /) -> bool | None:
        """Whether a replica can serve the plan's relations; None: not known yet (it is being looked up)."""


class Verdict(Protocol):
    """What the server said of a rewritten text (``proxy.backend.probe``).

    Neither ``mirrored`` nor ``error`` nor ``refusal``: the plan's fallback is sent.
    """

    @property
    def mirrored(self) -> bool:
        """Whether the rewritten text may be sent."""

    @property
    def oids(self) -> tuple[int, ...]:
        """The parameter types that the server found in the original, or in its twin."""

    @property
    def error(self) -> bytes:
        """The ErrorResponse that the server gave to the plan's twin: what PostgreSQL has to say to the client."""

    @property
    def refusal(self) -> Refusal | None:
        """Why the statement cannot be sent at all."""


class Prober(Protocol):
    """Tries rewritten texts on a spare connection, so that a mistake of ours never fails a client's statement."""

    def known(self, key: tuple[Any, ...], plan: Plan, /) -> Verdict | None:
        """The verdict, if this text was tried before. The key may leave out the text's literals."""

    def probe(
        self, key: tuple[Any, ...], plan: Plan, oids: tuple[int, ...], done: Callable[[Verdict], None], /
    ) -> None:
        """Try the plan and call ``done`` later, always."""


class Planning(Protocol):
    """Plans large texts elsewhere, so that other clients' statements go on."""

    def plan(
        self,
        book: PlanBook,
        text: bytes,
        side: Side,
        search_path: tuple[str, ...],
        temp: frozenset[str],
        done: Callable[[Plan], None],
        /,
    ) -> Callable[[], None]:
        """Plan a text and call ``done`` later, once, unless what is given back was called before."""


class Port(Protocol):
    """One client's connections."""

    def to_client(self, data: bytes) -> None: ...
    def to_server(self, target: Target, data: bytes) -> None: ...
    def replica_ready(self, index: int) -> bool:
        """Whether a connection to that replica with this session's settings is at hand; if not, it is prepared now."""

    def lease(self) -> bool:
        """Whether a primary connection with this session's settings is at hand (``outbox.prepared`` is then that
        connection's); if not, ``on_leased`` is called once it is."""

    def release(self, dirty: bool) -> None:
        """The transaction is over: the primary connection is free, after a reset if it is ``dirty``."""

    def release_replica(self) -> None:
        """The read is over: the replica connection is free."""

    def reported(self, parameters: dict[str, str]) -> None:
        """The primary connection that is leased has reported a setting: these hold now."""

    def make_way(self, database: str) -> None:
        """A statement needs that database of the primary's server for itself: leave it, if no client is there."""

    def finish(self) -> None:
        """The client has said goodbye."""

    def fail(self, sqlstate: str, message: str, hint: str = "") -> None:
        """Tell the client that this connection cannot go on, and close it."""
