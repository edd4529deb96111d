"""What differs between two configurations, and what of it can take effect while the process runs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from proxy.config import Settings

SectionT = TypeVar("SectionT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs between two configurations."""

    path: str
    live: bool
    """Whether it takes effect without a restart."""


# What needs a restart: sockets that are open, how clients are let in, where pooled connections lead, what a
# link was registered as. Every other key is read when it is used. ``*`` stands for a database's name.
_RESTART: Final = (
    "listen.address",
    "admin.address",
    "auth.method",
    "databases.*.primary",
    "databases.*.replicas",
    "databases.*.pool_mode",
    "databases.*.service",
    "log.format",
)


def diff(old: Settings, new: Settings) -> list[Change]:
    """What differs, by path; a database that came or went is one change, and not a live one."""
    before, after = dict(flat(old)), dict(flat(new))
    appeared = {name: "databases." + name for name in old.databases.keys() ^ new.databases.keys()}
    changes = [Change(path, live=False) for path in appeared.values()]
    for path in before.keys() | after.keys():
        parts = path.split(".")
        if parts[0] == "databases" and parts[1] in appeared:
            continue
        if before.get(path) != after.get(path):
            changes.append(Change(path, live=is_live(path)))
    return sorted(changes, key=lambda change: change.path)


def is_live(path: str) -> bool:
    """Whether a change of that key takes effect without a restart."""
    parts = path.split(".")
    pattern = ["*" if parts[0] == "databases" and index == 1 else part for index, part in enumerate(parts)]
    general = ".".join(pattern)
    return not any(general == restart or general.startswith(restart + ".") for restart in _RESTART)


def keep_restart_keys(old: Settings, new: Settings) -> Settings:
    """The new settings with the old values of every key that needs a restart: what a reload may put in force.

    With another ``auth.method`` all of ``auth`` waits, since its other keys belong to the method.
    """
    kept = new.model_copy(
        update={
            "databases": {name: new.databases.get(name, database) for name, database in old.databases.items()}
        }
    )
    for path in _RESTART:
        kept = _with_old(old, kept, path.split("."))
    return kept if old.auth.method == new.auth.method else kept.model_copy(update={"auth": old.auth})


def _with_old(old: SectionT, new: SectionT, path: list[str]) -> SectionT:
    """``new`` with what ``old`` has at that path."""
    key, rest = path[0], path[1:]
    before, after = getattr(old, key), getattr(new, key)
    if not rest:
        after = before
    elif rest[0] == "*":
        after = {name: _with_old(before[name], section, rest[1:]) for name, section in after.items()}
    else:
        after = _with_old(before, after, rest)
    return new.model_copy(update={key: after})


def flat(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and its value, by path."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(inner, f"{prefix}{name}.{key}.")
        else:
            yield prefix + name, value
