"""What the admin endpoints ask of the running sidecar: values and two small protocols, nothing that can be
driven.

The server implements ``SidecarView``; every method is cheap, never blocks and never raises, because a scrape
or a probe calls it at any moment, start and shutdown included. What is returned is read at once and not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from proxy.control.link import LinkStatus
from proxy.control.routing import Routing
from proxy.stats import Histogram, Stats

ServerRole = Literal["primary", "replica"]
ReloadResult = Literal["none", "applied", "unchanged", "rejected"]


@dataclass(frozen=True, slots=True)
class PoolView:
    """The server connections to one server of a database."""

    server: str
    """``host:port``."""
    role: ServerRole
    active: int
    """Leased by a session."""
    idle: int
    connecting: int
    waiting: int
    """Sessions that wait for a connection."""
    limit: int
    cleaning: int = 0
    """Being made ready for the next client."""
    cancelling: int = 0
    """With a cancel request under way; they count in another state too."""
    longest_wait: float = 0.0
    """Seconds for which the first of those who wait has waited."""
    waits: Histogram | None = None
    """How long those have waited who had to."""
    connects: int = 0
    connect_failures: int = 0
    paused: bool = False
    failing: str = ""
    """Why the last attempt to connect failed; empty where it did not."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as the monitor saw it last."""

    server: str
    usable: bool
    """Whether reads may go there now."""
    lag_seconds: float | None
    """None while it was never reached."""
    replayed_lsn: str | None = None
    reason: str = ""
    """Why it is not usable, in words; empty where it is."""


@dataclass(frozen=True, slots=True)
class DatabaseView:
    """One database of the configuration."""

    name: str
    schema_version: str
    routing: Routing
    link: LinkStatus
    stats: Stats
    primary_reached: bool
    """Whether a login at the primary ever succeeded, and the last attempt did not fail."""
    dual_write_enabled: bool
    pools: Sequence[PoolView] = ()
    replicas: Sequence[ReplicaView] = ()
    holds_total: int = 0
    """Statements that were ever parked."""


@dataclass(frozen=True, slots=True)
class ReloadView:
    """The outcome of the last reload."""

    at: float | None = None
    """Seconds since the epoch; None before the first."""
    result: ReloadResult = "none"
    error: str = ""
    pending_restart: tuple[str, ...] = ()
    """Keys whose new values wait for a restart."""
    totals: Mapping[str, int] = field(default_factory=dict)
    """Reloads by result."""


class SidecarView(Protocol):
    """The running sidecar, as the endpoints see it."""

    def listening(self) -> bool:
        """Whether clients can connect now: false before the listener is open and once a shutdown began."""
        ...

    def databases(self) -> Sequence[DatabaseView]:
        """The state of every configured database."""
        ...

    def config_path(self) -> str:
        """The file that the configuration came from."""
        ...


class ReloadSource(Protocol):
    """Who knows how the last reload went."""

    def view(self) -> ReloadView:
        """The outcome of the last reload, and the totals."""
        ...
