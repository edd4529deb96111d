"""Table models as JSON documents, the form in which the routing state carries them.

Strict on reading: an unknown key, a missing one or a value of another type is a ``ValueError`` that says
where. A sidecar that does not understand all of a state must not act on part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from proxy.rewrite.model import (
    Column,
    DefaultKind,
    Direction,
    Guard,
    LogicalColumn,
    Mirror,
    Side,
    TableModel,
    Virtual,
)

Json = dict[str, Any]
T = TypeVar("T")


def table_to_json(table: TableModel) -> Json:
    """The document of a table; ``table_from_json`` gives an equal table back."""
    return {
        "schema": table.schema,
        "name": table.name,
        "oid": table.oid,
        "columns": [_column_to_json(c) for c in table.columns],
        "primary_key": list(table.primary_key),
        "old": [[c.name, c.column] for c in table.old],
        "new": [[c.name, c.column] for c in table.new],
        "up": _direction_to_json(table.up),
        "down": _direction_to_json(table.down),
        "mark": table.mark,
        "guard": table.guard,
        "shadows": list(table.shadows),
        "virtuals": [
            {
                "column": _column_to_json(v.column),
                "function": v.function,
                "sources": list(v.sources),
                "raw": v.raw,
                "assign": v.assign,
                "discards": v.discards,
            }
            for v in table.virtuals
        ],
        "relation": _pair_to_json(table.relation),
        "twin_old": _pair_to_json(table.twin_old),
        "twin_new": _pair_to_json(table.twin_new),
        "copy_old": _pair_to_json(table.copy_old),
        "copy_new": _pair_to_json(table.copy_new),
        "inline": table.inline,
        "labels": [list(pair) for pair in table.labels],
    }


_SINCE_2: Json = {
    "virtuals": [],
    "relation": None,
    "twin_old": None,
    "twin_new": None,
    "copy_old": None,
    "copy_new": None,
    "inline": True,
    "labels": [],
}
"""What format 2 of the routing state added, as format 1 meant it."""


def table_from_json(document: Mapping[str, Any], *, version: int = 2) -> TableModel:
    """Read a table's document, of this format of the routing state or an earlier one."""
    o = _Reader(document if version > 1 else {**_SINCE_2, **document}, "table")
    table = TableModel(
        schema=o.text("schema"),
        name=o.text("name"),
        oid=o.integer("oid"),
        columns=o.items("columns", _column),
        primary_key=o.texts("primary_key"),
        old=o.items("old", _logical),
        new=o.items("new", _logical),
        up=_direction(o.value("up"), "up"),
        down=_direction(o.value("down"), "down"),
        mark=o.optional_text("mark"),
        guard=cast(Guard, o.choice("guard", ("sync", "check", "off"))),
        shadows=o.texts("shadows"),
        virtuals=o.items("virtuals", _virtual),
        relation=o.pair("relation"),
        twin_old=o.pair("twin_old"),
        twin_new=o.pair("twin_new"),
        copy_old=o.pair("copy_old"),
        copy_new=o.pair("copy_new"),
        inline=o.flag("inline"),
        labels=o.items("labels", _label),
    )
    o.done()
    _check(table)
    return table


def _check(table: TableModel) -> None:
    physical = {c.name for c in table.columns}
    names = physical | {v.column.name for v in table.virtuals}
    used = {c.column for side in cast(tuple[Side, ...], ("old", "new")) for c in table.logical(side)}
    used.update(table.primary_key)
    for direction in (table.up, table.down):
        used.update(direction.ok_sources)
        for mirror in direction.mirrors:
            used.add(mirror.target)
            used.update(mirror.sources)
    if table.mark is not None:
        used.add(table.mark)
    needed = {name for v in table.virtuals for name in (*v.sources, *filter(None, (v.raw,)))}
    needed |= {mirror.target for direction in (table.up, table.down) for mirror in direction.mirrors}
    missing = sorted((used - names) | (needed - physical))
    if missing:
        raise ValueError(f"table {table.qualified}: no such column: {', '.join(missing)}")


def _column_to_json(column: Column) -> Json:
    return {
        "name": column.name,
        "type": column.type,
        "type_full": column.type_full,
        "not_null": column.not_null,
        "default": column.default,
        "default_kind": column.default_kind,
        "identity": column.identity,
        "generated": column.generated,
    }


def _pair_to_json(pair: tuple[str, str] | None) -> list[str] | None:
    return None if pair is None else list(pair)


def _virtual(document: Any, where: str) -> Virtual:
    o = _Reader(document, where)
    virtual = Virtual(
        column=_column(o.value("column"), f"{where}.column"),
        function=o.text("function"),
        sources=o.texts("sources"),
        raw=o.optional_text("raw"),
        assign=o.optional_text("assign"),
        discards=o.flag("discards"),
    )
    o.done()
    return virtual


def _label(document: Any, where: str) -> tuple[str, str]:
    return _two_texts(document, where)


def _two_texts(document: Any, where: str) -> tuple[str, str]:
    if (
        not isinstance(document, list)
        or len(document) != 2
        or not all(isinstance(part, str) for part in document)
    ):
        raise ValueError(f"{where}: expected two strings, got {document!r}")
    return document[0], document[1]


def _direction_to_json(direction: Direction) -> Json:
    return {
        "mirrors": [
            {"target": m.target, "function": m.function, "sources": list(m.sources), "total": m.total}
            for m in direction.mirrors
        ],
        "ok_function": direction.ok_function,
        "ok_sources": list(direction.ok_sources),
    }


def _direction(document: Any, where: str) -> Direction:
    o = _Reader(document, where)
    direction = Direction(
        mirrors=o.items("mirrors", _mirror),
        ok_function=o.optional_text("ok_function"),
        ok_sources=o.texts("ok_sources"),
    )
    o.done()
    return direction


def _mirror(document: Any, where: str) -> Mirror:
    o = _Reader(document, where)
    mirror = Mirror(
        target=o.text("target"),
        function=o.text("function"),
        sources=o.texts("sources"),
        total=o.flag("total"),
    )
    o.done()
    return mirror


def _column(document: Any, where: str) -> Column:
    o = _Reader(document, where)
    column = Column(
        name=o.text("name"),
        type=o.text("type"),
        type_full=o.text("type_full"),
        not_null=o.flag("not_null"),
        default=o.optional_text("default"),
        default_kind=cast(DefaultKind, o.choice("default_kind", ("none", "stable", "volatile"))),
        identity=cast(Any, o.choice("identity", ("", "a", "d"))),
        generated=o.flag("generated"),
    )
    o.done()
    return column


def _logical(document: Any, where: str) -> LogicalColumn:
    if not (isinstance(document, list) and len(document) == 2 and all(isinstance(x, str) for x in document)):
        raise ValueError(f"{where}: expected [name, column], got {document!r}")
    return LogicalColumn(document[0], document[1])


class _Reader:
    """Typed access to one object; ``done`` complains of keys that nobody asked for."""

    def __init__(self, document: Any, where: str) -> None:
        if not isinstance(document, Mapping):
            raise ValueError(f"{where}: expected an object, got {document!r}")
        self._left = dict(document)
        self._where = where

    def value(self, key: str) -> Any:
        if key not in self._left:
            raise ValueError(f"{self._where}: missing key {key!r}")
        return self._left.pop(key)

    def _typed(self, key: str, kind: type) -> Any:
        value = self.value(key)
        if type(value) is not kind:
            raise ValueError(f"{self._where}.{key}: expected {kind.__name__}, got {value!r}")
        return value

    def text(self, key: str) -> str:
        return cast(str, self._typed(key, str))

    def integer(self, key: str) -> int:
        return cast(int, self._typed(key, int))

    def flag(self, key: str) -> bool:
        return cast(bool, self._typed(key, bool))

    def optional_text(self, key: str) -> str | None:
        if self._left.get(key, ...) is None:
            self._left.pop(key)
            return None
        return self.text(key)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in allowed:
            raise ValueError(
                f"{self._where}.{key}: expected one of {', '.join(map(repr, allowed))}, got {value!r}"
            )
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._typed(key, list)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self._where}.{key}: expected a list of strings, got {values!r}")
        return tuple(values)

    def pair(self, key: str) -> tuple[str, str] | None:
        value = self.value(key)
        return None if value is None else _two_texts(value, f"{self._where}.{key}")

    def items(self, key: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
        values = self._typed(key, list)
        return tuple(read(value, f"{self._where}.{key}[{at}]") for at, value in enumerate(values))

    def done(self) -> None:
        if self._left:
            raise ValueError(f"{self._where}: unknown key {', '.join(map(repr, sorted(self._left)))}")
