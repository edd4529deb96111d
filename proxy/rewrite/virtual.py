"""Values for columns that a version has and the table has not, on their way into columns that the table has.

The version's direction says which physical columns follow from them. A value passes through the column's type first,
as the assignment to it would have made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proxy.rewrite.model import Mirror, Virtual
from proxy.rewrite.reasons import Reason
from proxy.rewrite.rules import Rule
from proxy.rewrite.work import Refused, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident

Cells = Mapping[str, str | None]
"""The SQL text of what is given for each column, by key; None for DEFAULT."""

_HINT = "Write the columns of the new version, or split the statement."


def refused(rule: Rule, why: str) -> Refused:
    """A write that has no translation."""
    return Refused(
        Reason.REFUSED_CONSTRUCT,
        f"this write to {rule.model.qualified} cannot be translated to the columns that the table has",
        hint=_HINT,
        detail=why,
    )


def name_of(rule: Rule, key: str) -> str:
    """What the version calls a column."""
    return next((column.name for column in rule.columns if column.column == key), key)


def uses(rule: Rule, key: str) -> int:
    """How many physical columns follow from a column."""
    return sum(key in mirror.sources for mirror in rule.mirrors)


def raw_of(rule: Rule, mirror: Mirror) -> Virtual | None:
    """The virtual column whose values this mirror's target takes as they are."""
    virtual = rule.virtuals.get(mirror.sources[0]) if len(mirror.sources) == 1 else None
    return virtual if virtual is not None and virtual.raw == mirror.target else None


def typed(rule: Rule, key: str, text: str) -> str:
    """An expression as the column of that key would hold it, or fail to."""
    virtual = rule.virtuals.get(key)
    if virtual is None:
        return f"CAST({text} AS {rule.types[key]})"
    column = virtual.column
    if virtual.assign is None or text == "NULL":
        return f"CAST({text} AS {column.type_full})"
    value = f"{virtual.assign}(CAST({text} AS {column.type}))"
    return value if column.type == column.type_full else f"CAST({value} AS {column.type_full})"


def server_default(rule: Rule, key: str) -> bool:
    """Whether only the server may compute what DEFAULT stands for."""
    column = rule.column(key)
    return bool(column.identity) or column.generated or column.default_kind == "volatile"


def default_of(rule: Rule, key: str) -> str:
    """The text of a default."""
    column = rule.column(key)
    if column.identity or column.generated:
        raise refused(rule, f'Only the server knows the value of column "{name_of(rule, key)}".')
    return "NULL" if column.default is None else column.default


def inserted(rule: Rule, mirror: Mirror, cells: Cells) -> str | None:
    """What a row's values make of a physical column; None where its own default serves."""
    given = any(cells.get(key) is not None for key in mirror.sources)
    late = [key for key in mirror.sources if cells.get(key) is None and server_default(rule, key)]
    if late and not given:
        return None
    if any(uses(rule, key) > 1 or key not in rule.virtuals for key in late):
        raise refused(rule, f'The default of column "{name_of(rule, late[0])}" would be evaluated twice.')
    arguments = []
    for key in mirror.sources:
        text = cells.get(key)
        arguments.append(typed(rule, key, default_of(rule, key) if text is None else text))
    if raw_of(rule, mirror) is not None:
        return arguments[0]
    return f"{mirror.function}({', '.join(arguments)})"


def check(rule: Rule, columns: Sequence[str]) -> None:
    """Refuse to write a physical column both as it is and by way of others."""
    for mirror in rule.mirrors:
        if mirror.target in columns:
            raise refused(rule, f'Column "{name_of(rule, mirror.target)}" follows from others.')


def refuse_lost(rule: Rule, key: str) -> None:
    """Refuse a value that nothing in the table could hold, unless that was agreed to."""
    virtual = rule.virtuals.get(key)
    if virtual is None or virtual.discards or uses(rule, key):
        return
    raise Refused(
        Reason.REFUSED_CONSTRUCT,
        f'column "{name_of(rule, key)}" of {rule.model.qualified} can no longer be written',
        hint="Nothing in the table holds it any more: leave the column out, or write DEFAULT.",
    )


def is_default(rule: Rule, key: str, cell: Node) -> bool:
    """Whether a cell says no more than that the column is not given."""
    return "SetToDefault" in cell or (
        "isnull" in cell.get("A_Const", {})
        and rule.column(key).default is None
        and not server_default(rule, key)
    )


def distinct(rule: Rule, qualifier: str, key: str, value: str) -> str:
    """A condition that holds where a value differs from what the row has."""
    suffix = "::text" if key in rule.text_compared else ""
    return f"{rule.read(key, qualifier)}{suffix} IS DISTINCT FROM {value}{suffix}"


def crossed(rule: Rule, qualifier: str, mirror: Mirror, values: Mapping[str, str]) -> str:
    """What a row's changed values make of a physical column; it stays as it is where nothing really changes."""
    if raw_of(rule, mirror) is not None:
        return values[mirror.sources[0]]
    changes = [
        distinct(rule, qualifier, key, values[key]) for key in dict.fromkeys(mirror.sources) if key in values
    ]
    arguments = [values[key] if key in values else rule.read(key, qualifier) for key in mirror.sources]
    return (
        f"CASE WHEN {' OR '.join(changes)} THEN {mirror.function}({', '.join(arguments)})"
        f" ELSE {qualifier}.{ident(mirror.target)} END"
    )


def cut(work: Work, spans: Sequence[tuple[int, int]], removed: Sequence[int], recipe: str) -> bool:
    """Take items out of a list, with their commas; ``spans`` are the items. Tells whether any is left."""
    kept = False
    gone = set(removed)
    for at, (start, end) in enumerate(spans):
        if at in gone:
            work.take(start, end)
            work.replace(spans[at - 1][1] if at else start, end, "", recipe)
        else:
            if not kept and at > 0:
                work.replace(spans[at - 1][1], start, "", recipe)
            kept = True
    return kept
