"""The routing state: which versions are served, what is mirrored and which version a session gets.

One ``Routing`` is one publication of the migrator (``dualwire.routing`` in the migrated database), frozen and
free of I/O: a sidecar only ever swaps a whole one for another. ``from_document`` is strict, because a field
that an older sidecar would skip may be the one that keeps a write right: what it does not know it refuses, by
name.

``epoch`` counts changes of the write path (tables, mirrors, versions served); ``revision`` counts every
publication, so a change of percent alone moves only the revision. An epoch is comparable within one
``epoch_id`` only: after a failover that lost the last publication both may go back, and the id says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast, get_args

from proxy.rewrite.codec import table_from_json, table_to_json
from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.plan import Refusal

T = TypeVar("T")

Phase = Literal[
    "planned",
    "prepared",
    "expanded",
    "backfilled",
    "verified",
    "cutover",
    "closed",
    "completed",
    "rolled_back",
]
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)

FORMAT: Final = 2
_FORMATS: Final = (1, FORMAT)
"""Those that are read: what an earlier migrator has published stands until the next publication."""
AUTO: Final = "auto"
BASE: Final = "base"
"""The version before any migration."""

FEATURE_NOT_SUPPORTED: Final = "0A000"

_DOCUMENT_KEYS: Final = frozenset({"epoch", "epoch_id", "timeline", "revision", "state"})
_STATE_KEYS: Final = frozenset(
    {
        "format",
        "migration",
        "phase",
        "old",
        "new",
        "serves_old",
        "serves_new",
        "auto",
        "percent",
        "dual_write",
        "tables",
        "versions",
        "hold",
    }
)
_HOLD_KEYS: Final = frozenset({"id", "tables", "seconds"})

# 2**32 divided by the golden ratio: multiples of it spread evenly over the circle, so that already a handful
# of sessions with consecutive numbers is split close to the percentage asked for.
_GOLDEN: Final = 2654435769


@dataclass(frozen=True, slots=True)
class Hold:
    """Statements on these tables are parked, outside transactions, while their names are swapped."""

    id: int
    tables: tuple[str, ...]
    """``schema.name``, as ``TableModel.qualified``."""
    seconds: float
    """How long a sidecar parks at most, counted from when it first saw the hold."""


@dataclass(frozen=True, slots=True)
class Routing:
    """One publication of the migrator. Equality is by value; a new publication is a new object."""

    epoch: int = 0
    epoch_id: str = ""
    timeline: int = 0
    revision: int = 0
    migration: str | None = None
    phase: Phase | None = None
    old: str = BASE
    """The version before the active migration; the only one where none is active.

    With compat it is the version before the last migration, which then still has its phase and its ``new`` version.
    """
    new: str | None = None
    serves_old: bool = True
    serves_new: bool = False
    auto: Side = "old"
    percent: int = 0
    """The share of ``auto`` sessions that get the new version, once it may have any."""
    dual_write: bool = False
    tables: tuple[TableModel, ...] = ()
    versions: tuple[str, ...] = (BASE,)
    """Every version ever completed, oldest first, and the active migration's."""
    hold: Hold | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """What identifies the publication: (epoch id, epoch, revision)."""
        return (self.epoch_id, self.epoch, self.revision)

    @property
    def compat(self) -> bool:
        """Whether the old version is served although its columns are given up or gone."""
        return self.serves_old and self.phase in ("closed", "completed")

    @property
    def current(self) -> str:
        """The version that the next migration comes after."""
        return self.new if self.compat and self.new is not None else self.old

    @property
    def visible_versions(self) -> tuple[str, ...]:
        """The versions that a client can get now, the old one first."""
        shown = [self.old] if self.serves_old else []
        if self.new is not None and self.serves_new:
            shown.append(self.new)
        return tuple(shown)

    def version(self, side: Side) -> str:
        """The name of the version on that side, for logs and metrics."""
        return self.old if side == "old" or self.new is None else self.new

    def resolve(self, version: str, session_number: int) -> Side | Refusal:
        """The side that a session speaks whose client asked for ``version``, or why it cannot be served.

        ``auto`` depends on ``session_number`` only by a fixed hash, so a session keeps its side while the
        percentage stands, and raising the percentage never moves a session back.
        """
        if version == AUTO:
            return self._auto(session_number)
        if version == self.old:
            return "old" if self.serves_old else self._no_longer(version)
        if version == self.new:
            return "new" if self.serves_new else self._not_yet(version)
        if version in self.versions:
            return self._no_longer(version)
        return Refusal(
            FEATURE_NOT_SUPPORTED,
            f'unknown schema version "{version}"',
            detail=f"Versions known to this database: {_quoted(self.versions)}.",
            hint=f'Set schema_version, or the startup option dualwire.version, to one of them or "{AUTO}".',
        )

    def _auto(self, session_number: int) -> Side:
        if self.new is None or not self.serves_new:
            return "old"
        if not self.serves_old:
            return "new"
        if self.auto == "new" or self.phase == "verified":
            return "new" if bucket(session_number) < self.percent else "old"
        return "old"

    def _not_yet(self, version: str) -> Refusal:
        return Refusal(
            FEATURE_NOT_SUPPORTED,
            f'schema version "{version}" is not served yet',
            detail=f"Its migration is in phase {self.phase}; the phase verified is the first that serves it.",
            hint=f"Until `dualwire status` shows verified, use {_quoted((self.old, AUTO))}.",
        )

    def _no_longer(self, version: str) -> Refusal:
        return Refusal(
            FEATURE_NOT_SUPPORTED,
            f'schema version "{version}" is no longer served',
            detail=f"Versions served now: {_quoted(self.visible_versions)}.",
            hint="Deploy code for a version that is served, and set schema_version to it or to "
            f'"{AUTO}" (startup option dualwire.version).',
        )


EMPTY: Final = Routing()
"""What holds where the database has no control schema: one version, nothing rewritten."""


def bucket(session_number: int) -> int:
    """The session's place in 0..99, fixed for the number; a percentage p covers the buckets below p."""
    return (((session_number * _GOLDEN) & 0xFFFFFFFF) * 100) >> 32


def state_to_json(routing: Routing) -> dict[str, Any]:
    """The ``state`` column of ``dualwire.routing`` (JSON-ready): everything but epoch, ids and revision."""
    hold = routing.hold
    return {
        "format": FORMAT,
        "migration": routing.migration,
        "phase": routing.phase,
        "old": routing.old,
        "new": routing.new,
        "serves_old": routing.serves_old,
        "serves_new": routing.serves_new,
        "auto": routing.auto,
        "percent": routing.percent,
        "dual_write": routing.dual_write,
        "tables": [table_to_json(table) for table in routing.tables],
        "versions": list(routing.versions),
        "hold": None
        if hold is None
        else {"id": hold.id, "tables": list(hold.tables), "seconds": hold.seconds},
    }


def to_document(routing: Routing) -> dict[str, Any]:
    """The whole document, as ``dualwire.routing_document()`` gives it."""
    return {
        "epoch": routing.epoch,
        "epoch_id": routing.epoch_id,
        "timeline": routing.timeline,
        "revision": routing.revision,
        "state": state_to_json(routing),
    }


def from_document(document: Mapping[str, Any]) -> Routing:
    """The routing that a document describes; ValueError names what is missing, unknown or of the wrong
    type."""
    _exact(document, _DOCUMENT_KEYS, "routing document")
    state = document["state"]
    if not isinstance(state, Mapping):
        raise ValueError(f"routing document: state must be an object, not {type(state).__name__}")
    # The format comes first: with another one, complaints about single keys would lead astray.
    if state.get("format") not in _FORMATS:
        raise ValueError(
            f"routing state: format {state.get('format')!r} is not understood, this sidecar knows "
            f"{FORMAT}: run the same dualwire version for the migrator and the sidecars"
        )
    _exact(state, _STATE_KEYS, "routing state")
    phase = _optional(state, "phase", str)
    if phase is not None and phase not in PHASES:
        raise ValueError(f"routing state: unknown phase {phase!r}")
    auto = _typed(state, "auto", str)
    if auto not in ("old", "new"):
        raise ValueError(f'routing state: auto must be "old" or "new", not {auto!r}')
    percent = _integer(state, "percent")
    if not 0 <= percent <= 100:
        raise ValueError(f"routing state: percent must be within 0..100, not {percent}")
    routing = Routing(
        epoch=_integer(document, "epoch"),
        epoch_id=_typed(document, "epoch_id", str),
        timeline=_integer(document, "timeline"),
        revision=_integer(document, "revision"),
        migration=_optional(state, "migration", str),
        phase=phase,
        old=_typed(state, "old", str),
        new=_optional(state, "new", str),
        serves_old=_typed(state, "serves_old", bool),
        serves_new=_typed(state, "serves_new", bool),
        auto=cast("Side", auto),
        percent=percent,
        dual_write=_typed(state, "dual_write", bool),
        tables=_tables(state),
        versions=_names(state, "versions"),
        hold=_hold(state["hold"]),
    )
    if routing.compat and (routing.new is None or routing.auto != "new" or routing.percent != 100):
        raise ValueError("routing state: the old version outlives its columns, but auto is not all new")
    if routing.serves_new and routing.new is None:
        raise ValueError("routing state: serves_new is true but no new version is named")
    return routing


def _tables(state: Mapping[str, Any]) -> tuple[TableModel, ...]:
    found: list[Any] = _typed(state, "tables", list)
    return tuple(table_from_json(table, version=cast(int, state["format"])) for table in found)


def _hold(value: Any) -> Hold | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"routing state: hold must be an object or null, not {type(value).__name__}")
    _exact(value, _HOLD_KEYS, "routing state: hold")
    seconds = value["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        raise ValueError(f"routing state: hold: seconds must be a positive number, not {seconds!r}")
    return Hold(id=_integer(value, "id"), tables=_names(value, "tables"), seconds=float(seconds))


def _exact(value: Mapping[str, Any], keys: frozenset[str], where: str) -> None:
    if unknown := sorted(value.keys() - keys):
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}")
    if missing := sorted(keys - value.keys()):
        raise ValueError(f"{where}: missing keys {', '.join(missing)}")


def _typed(value: Mapping[str, Any], key: str, kind: type[T]) -> T:
    found = value[key]
    if not isinstance(found, kind):
        raise ValueError(f"routing: {key} must be of type {kind.__name__}, not {found!r}")
    return found


def _optional(value: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    return None if value[key] is None else _typed(value, key, kind)


def _integer(value: Mapping[str, Any], key: str) -> int:
    if isinstance(value[key], bool):
        raise ValueError(f"routing: {key} must be an integer, not {value[key]!r}")
    return _typed(value, key, int)


def _names(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found: list[Any] = _typed(value, key, list)
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"routing: {key} must be a list of names, it holds {name!r}")
    return tuple(found)


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"
