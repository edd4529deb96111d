"""The mirrors of a SET list: appended to it, or in one assignment of several columns where that must be.

An expression that may be written down twice stays where it is, and the mirrors repeat it. One that may not, because it
is volatile, long, or the column of a sub-select, is evaluated once for each row: ::

    SET (a, a_new, mark) = (SELECT r.x, CASE WHEN t.a IS DISTINCT FROM CAST(r.x AS type) THEN ... END, ...
      FROM (VALUES (<expression>) OFFSET CASE WHEN t.ctid IS NULL THEN 0 ELSE 0 END) AS r(x))

* What is stored is ``r.x`` itself, so that it is converted, and fails, as the bare expression's value does; the mirrors
  cast it.
* Everything refers to the row as it is when it is updated, so a concurrent change is not lost.
* VALUES forbids what SET forbids (aggregates, window functions, functions that return sets).
* The OFFSET keeps the planner from merging the expression into the places that refer to it; and it names the target,
  for a sub-select that does not would be evaluated once for the whole statement.
* The client's own sub-select of several columns is joined; without a row it gives NULLs. If it surely names no column
  of the row it becomes a common table expression, which runs once for the statement, as it did. Otherwise it must not
  be one, for when PostgreSQL looks again at a row that was changed meanwhile, it would take the old results of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.rewrite.correlation import stable
from proxy.rewrite.derived import ROWS, castable
from proxy.rewrite.mirror import default_once, default_text, set_items
from proxy.rewrite.reasons import Reason
from proxy.rewrite.rules import INTERNAL_PREFIX, Rule
from proxy.rewrite.setlist import Cell, Item
from proxy.rewrite.work import Unmirrorable, Work
from proxy.sql.quote import ident


@dataclass(frozen=True, slots=True)
class Change:
    """An edit of a SET list that has not been made yet."""

    start: int
    end: int
    text: str
    assigns_several: bool = False
    """Whether it brings in an assignment of several columns."""

    def write(self, work: Work) -> None:
        """Make it; what was edited within serves the fallback only."""
        if self.start != self.end:
            work.only_in_fallback(self.start, self.end)
        work.replace(self.start, self.end, self.text, "mirror_set")


@dataclass(slots=True)
class _Sources:
    """Where the mirrors find the values of the columns that they depend on."""

    values: dict[str, str] = field(default_factory=dict)
    """The SQL text for each column that is assigned."""
    once: list[tuple[Cell, str]] = field(default_factory=list)
    """Cells to be evaluated once, with their text."""
    queries: list[Item] = field(default_factory=list)
    involved: list[Item] = field(default_factory=list)
    """The items that give way to the one assignment."""


def mirror_changes(work: Work, rule: Rule, qualifier: str, items: Sequence[Item]) -> list[Change]:
    """The edits that add the mirrors to a SET list; Unmirrorable if it cannot have them."""
    sources = _Sources()
    for item in items:
        if any(cell.column in rule.sources for cell in item.cells):
            _look_into(work, rule, item, sources)
    if not sources.involved:
        added = set_items(rule, qualifier, sources.values)
        end = items[-1].end
        return [Change(end, end, "".join(f", {name} = {text}" for name, text in added))]
    text = _assignment(work, rule, qualifier, sources)
    changes = []
    for before, item in zip([None, *items], items, strict=False):
        if item not in sources.involved:
            continue
        kept = _kept(work, item, sources)
        if item is sources.involved[0]:
            changes.append(Change(item.start, item.end, ", ".join([text, *kept]), assigns_several=True))
        elif kept:
            changes.append(Change(item.start, item.end, ", ".join(kept)))
        else:
            assert before is not None
            changes.append(Change(before.end, item.end, ""))  # with its comma
    return changes


def _look_into(work: Work, rule: Rule, item: Item, sources: _Sources) -> None:
    for cell in item.cells:
        if cell.partial and (cell.column in rule.sources or len(item.cells) > 1):
            raise Unmirrorable(Reason.GUARD_SUBSCRIPT, f"Only a part of column {cell.column} is assigned.")
    if item.opaque or (item.query is not None and not _width_fits(work, rule, item)):
        names = ", ".join(cell.column for cell in item.cells)
        raise Unmirrorable(
            Reason.GUARD_MULTI_ASSIGNMENT,
            f"It cannot be told which value each of the columns {names} is given.",
        )
    if item.query is not None:
        if item.correlated is None and not stable(item.query):
            raise Unmirrorable(
                Reason.GUARD_VOLATILE_EXPRESSION,
                "It cannot be told whether a sub-select is to be run once or for each row.",
            )
        sources.queries.append(item)
        sources.involved.append(item)
        return
    once = []
    for cell in item.cells:
        if cell.column not in rule.sources:
            continue
        text = _repeated(work, rule, cell)
        if text is None:
            once.append((cell, _once(work, rule, cell)))
        else:
            sources.values[cell.column] = text
    if once:
        sources.once += once
        sources.involved.append(item)


def _width_fits(work: Work, rule: Rule, item: Item) -> bool:
    """Whether a sub-select has as many columns as are assigned, or else the prober asks the server."""
    assert item.query is not None
    outputs = work.outputs.get(id(item.query.get("SelectStmt")))
    if outputs is None:
        return rule.model.guard == "sync"
    return len(outputs) == len(item.cells)


def _repeated(work: Work, rule: Rule, cell: Cell) -> str | None:
    """The SQL text of what a column is given, if it may be written down again."""
    if "SetToDefault" in cell.node:
        column = rule.model.column(cell.column)
        if column.default_kind == "volatile" and not column.identity:
            return None
        return default_text(column)
    start, end = cell.span
    return work.rendered(start, end) if work.may_repeat(cell.node, end - start) else None


def _once(work: Work, rule: Rule, cell: Cell) -> str:
    """The SQL text of what a column is given, to be written down once."""
    column = rule.model.column(cell.column)
    if "SetToDefault" in cell.node:
        return default_once(column)
    text = work.rendered(*cell.span)
    if "A_Const" in cell.node:  # too long to be written down twice
        if castable(column):
            return f"CAST({text} AS {column.type})"
    elif "RowExpr" not in cell.node:
        return text
    raise Unmirrorable(
        Reason.GUARD_VOLATILE_EXPRESSION,
        f"What is assigned to column {cell.column} takes its type only where it stands.",
    )


def _assignment(work: Work, rule: Rule, qualifier: str, sources: _Sources) -> str:
    """The one assignment: of what is evaluated once, and of all mirrors."""
    names: list[str] = []
    outputs: list[str] = []
    rows: list[str] = []
    queries: list[str] = []
    for cell, text in sources.once:
        output = f"{ROWS}.{INTERNAL_PREFIX}{len(rows) + 1}"
        sources.values[cell.column] = output
        names.append(ident(cell.column))
        outputs.append(output)
        rows.append(text)
    joins = ""
    for at, item in enumerate(sources.queries):
        table = f"{INTERNAL_PREFIX}query_{at + 1}"
        columns = [f"{INTERNAL_PREFIX}{place + 1}" for place in range(len(item.cells))]
        for cell, column in zip(item.cells, columns, strict=True):
            sources.values[cell.column] = f"{table}.{column}"
            names.append(ident(cell.column))
            outputs.append(f"{table}.{column}")
        text = work.rendered(*item.cells[0].span)
        named = f"{table}({', '.join(columns)})"
        if item.correlated is False:
            queries.append(f"{named} AS MATERIALIZED {text}")
            joins += f" LEFT JOIN {table} ON true"
        else:
            joins += f" LEFT JOIN (SELECT * FROM {text} AS {table} OFFSET 0) AS {named} ON true"
    relevant = {name: text for name, text in sources.values.items() if name in rule.sources}
    for name, text in set_items(rule, qualifier, relevant):
        names.append(name)
        outputs.append(text)
    inner = "(VALUES (1))"
    if rows:
        inner = f"(VALUES ({', '.join(rows)}) OFFSET CASE WHEN {qualifier}.ctid IS NULL THEN 0 ELSE 0 END)"
    columns = [f"{INTERNAL_PREFIX}{at + 1}" for at in range(max(len(rows), 1))]
    with_clause = f"WITH {', '.join(queries)} " if queries else ""
    return (
        f"({', '.join(names)}) = ({with_clause}SELECT {', '.join(outputs)}"
        f" FROM {inner} AS {ROWS}({', '.join(columns)}){joins})"
    )


def _kept(work: Work, item: Item, sources: _Sources) -> list[str]:
    """What remains of an item: the columns whose expressions are not evaluated elsewhere."""
    if item.query is not None:
        return []
    moved = [cell for cell, _ in sources.once]
    return [f"{ident(cell.column)} = {work.rendered(*cell.span)}" for cell in item.cells if cell not in moved]
