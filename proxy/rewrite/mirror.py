"""The SQL that carries a write over to the other shape, in the same row version.

Arguments of mirror functions are cast to the source column's full type, as the assignment itself would make
them; the cell or SET item that the client wrote is left bare, so that it fails exactly as it does without a
migration.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.rewrite.model import Column, Mirror
from proxy.rewrite.reasons import Reason
from proxy.rewrite.rules import Rule
from proxy.rewrite.work import Unmirrorable
from proxy.sql.quote import ident


def inserted_columns(rule: Rule) -> list[str]:
    """The physical columns that a mirrored INSERT writes besides its own; the mark is not among them."""
    return [mirror.target for mirror in rule.mirrors]


def inserted_values(rule: Rule, cells: Mapping[str, str | None]) -> list[str]:
    """The cells for ``inserted_columns`` of one row.

    ``cells`` has the SQL text of each given cell by physical column, None for DEFAULT; columns that are not
    given get their defaults as well.
    """
    return [_call(mirror, inserted_arguments(rule, mirror.sources, cells)) for mirror in rule.mirrors]


def inserted_mark(rule: Rule, cells: Mapping[str, str | None]) -> str:
    """The mark of an inserted row."""
    if rule.side == "new":
        return "3::int2"
    direction = rule.direction
    if direction.ok_function is None:
        return "1::int2"
    arguments = inserted_arguments(rule, direction.ok_sources, cells)
    return f"CASE WHEN {direction.ok_function}({', '.join(arguments)}) THEN 1::int2 END"


def inserted_arguments(rule: Rule, sources: tuple[str, ...], cells: Mapping[str, str | None]) -> list[str]:
    """Arguments for a function of columns of a row that is about to be inserted."""
    arguments = []
    for name in sources:
        cell = cells.get(name)
        if cell is None:
            cell = default_text(rule.column(name))
        arguments.append(cast(rule, name, cell))
    return arguments


def default_text(column: Column) -> str:
    """What DEFAULT stands for, where the text of it may be repeated."""
    if column.default_kind == "volatile" and not (column.identity or column.generated):
        raise Unmirrorable(
            Reason.GUARD_VOLATILE_DEFAULT,
            f"The default of column {column.name} gives another value each time.",
        )
    return default_once(column)


def default_once(column: Column) -> str:
    """What DEFAULT stands for, where it is written down once."""
    if column.identity or column.generated:
        raise Unmirrorable(
            Reason.GUARD_COMPUTED_COLUMN,
            f"Only the server knows the value of column {column.name}: it is computed.",
        )
    return "NULL" if column.default is None else column.default


def cast(rule: Rule, name: str, expression: str) -> str:
    """An expression as the column of that name would hold it."""
    return f"CAST({expression} AS {rule.types[name]})"


def set_items(rule: Rule, qualifier: str, assigned: Mapping[str, str]) -> list[tuple[str, str]]:
    """What an UPDATE must assign besides: columns and expressions, both as SQL text.

    ``assigned`` has the SQL text of each assigned expression by physical column; ``qualifier`` is the
    target's name in the statement, as SQL text. Only real changes cross over, so that saving an unchanged
    column does not destroy what only the other shape can hold.
    """
    values = {name: cast(rule, name, text) for name, text in assigned.items()}
    items: list[tuple[str, str]] = []
    crossing: dict[str, str] = {}
    for mirror in rule.mirrors:
        changes = _changes(rule, qualifier, mirror.sources, values)
        if not changes:
            continue
        crossing.update(changes)
        call = _call(mirror, _arguments(qualifier, mirror.sources, values))
        target = ident(mirror.target)
        changed = " OR ".join(changes.values())
        items.append((target, f"CASE WHEN {changed} THEN {call} ELSE {qualifier}.{target} END"))
    if rule.mark is not None:
        mark = _mark(rule, qualifier, values, crossing)
        if mark:
            items.append((ident(rule.mark), mark))
    return items


def _mark(rule: Rule, qualifier: str, values: Mapping[str, str], crossing: Mapping[str, str]) -> str:
    assert rule.mark is not None
    mark = ident(rule.mark)
    direction = rule.direction
    ok = ""
    if direction.ok_function is not None and rule.side == "old":
        ok = f"{direction.ok_function}({', '.join(_arguments(qualifier, direction.ok_sources, values))})"
    if crossing:
        first, second = (1, 2) if rule.side == "old" else (3, 4)
        toggled = f"CASE {qualifier}.{mark} WHEN {first} THEN {second}::int2 ELSE {first}::int2 END"
        if ok:
            toggled = f"CASE WHEN {ok} THEN {toggled} END"
        return f"CASE WHEN {' OR '.join(crossing.values())} THEN {toggled} ELSE {qualifier}.{mark} END"
    changes = _changes(rule, qualifier, direction.ok_sources, values) if ok else {}
    if not changes:
        return ""
    # Nothing is carried over, but a constraint of the other shape may not hold any more: then the row is a
    # problem.
    changed = " OR ".join(changes.values())
    return f"CASE WHEN ({changed}) AND NOT {ok} THEN NULL ELSE {qualifier}.{mark} END"


def _changes(
    rule: Rule, qualifier: str, sources: tuple[str, ...], values: Mapping[str, str]
) -> dict[str, str]:
    changes = {}
    for name in sources:
        if name in values:
            suffix = "::text" if name in rule.text_compared else ""
            changes[name] = f"{qualifier}.{ident(name)}{suffix} IS DISTINCT FROM {values[name]}{suffix}"
    return changes


def _arguments(qualifier: str, sources: tuple[str, ...], values: Mapping[str, str]) -> list[str]:
    return [values.get(name, f"{qualifier}.{ident(name)}") for name in sources]


def _call(mirror: Mirror, arguments: list[str]) -> str:
    return f"{mirror.function}({', '.join(arguments)})"
