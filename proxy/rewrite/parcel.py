"""Plans as plain values, to be handed from one process to another.

The edits of a very long text are joined in groups: making and dropping a hundred thousand small objects would stall
whoever receives them. An error's position within such a group is told as the group's beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from itertools import groupby
from typing import Any, Final

from proxy.rewrite.plan import Plan, Refusal
from proxy.sql.kinds import Kind
from proxy.sql.splice import Edit

MAX_EDITS: Final = 4_000

Packed = list[tuple[str, Any]]


def pack(plan: Plan, text: bytes) -> Packed:
    """A plan of ``text`` as plain values."""
    return [_packed(getattr(plan, field.name), text) for field in fields(plan)]


def _packed(value: Any, text: bytes) -> tuple[str, Any]:
    if value is text:
        return "text", None
    if isinstance(value, Plan):
        return "plan", pack(value, text)
    if isinstance(value, Refusal):
        return "refusal", astuple(value)
    if isinstance(value, Kind):
        return "kind", value.value
    if isinstance(value, tuple) and value and isinstance(value[0], Edit):
        return "edits", [(edit.start, edit.end, edit.text, edit.recipe) for edit in joined(text, value)]
    return "value", value


def unpack(packed: Packed, text: bytes) -> Plan:
    """The plan."""
    return Plan(*[_unpacked(kind, value, text) for kind, value in packed])


def _unpacked(kind: str, value: Any, text: bytes) -> Any:
    if kind == "text":
        return text
    if kind == "plan":
        return unpack(value, text)
    if kind == "refusal":
        return Refusal(*value)
    if kind == "kind":
        return Kind(value)
    if kind == "edits":
        return tuple([Edit(*edit) for edit in value])
    return value


def joined(text: bytes, edits: Sequence[Edit], limit: int = MAX_EDITS) -> Sequence[Edit]:
    """Edits that do the same to a text, and are no more than ``limit``."""
    if len(edits) <= limit:
        return edits
    size = -(-len(edits) // limit)
    return [
        _one([edit for _, edit in group], text)
        for _, group in groupby(enumerate(edits), lambda pair: pair[0] // size)
    ]


def _one(group: Sequence[Edit], text: bytes) -> Edit:
    parts: list[bytes] = []
    at = group[0].start
    for edit in group:
        parts += (text[at : edit.start], edit.text)
        at = edit.end
    return Edit(group[0].start, at, b"".join(parts), group[0].recipe)
