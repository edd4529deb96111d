"""SET lists, of UPDATE and of ON CONFLICT DO UPDATE alike, that assign to virtual columns.

Those assignments leave the list, and what follows from them is appended. Where an expression would stand twice that
must not, it becomes a column of a sub-select that is correlated to the target's row, so that it is evaluated once for
each row; so does what the client selects for several columns at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.rewrite.assign import mirror_set
from proxy.rewrite.correlation import stable
from proxy.rewrite.derived import castable
from proxy.rewrite.reasons import Reason
from proxy.rewrite.rules import INTERNAL_PREFIX, Rule
from proxy.rewrite.setlist import Assignment, Item, take_apart
from proxy.rewrite.virtual import (
    check,
    crossed,
    cut,
    default_of,
    name_of,
    raw_of,
    refuse_lost,
    refused,
    server_default,
    typed,
    uses,
)
from proxy.rewrite.work import Refused, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident

RECIPE = "virtual_write"
ASSIGNED = f"{INTERNAL_PREFIX}set"
"""The sub-select's derived table."""


def carry(work: Work, rule: Rule, qualifier: str, assigned: list[Assignment]) -> None:
    """Append to a SET list what follows from it; ``qualifier`` is the target's name, as SQL text."""
    if rule.virtuals:
        set_virtuals(work, rule, qualifier, assigned)
    else:
        mirror_set(work, rule, qualifier, assigned)


def set_virtuals(
    work: Work, rule: Rule, qualifier: str, assigned: list[Assignment], *, in_merge: bool = False
) -> bool:
    """The same for a table with virtual columns. Tells whether the list now has a sub-select for several columns."""
    return _SetList(work, rule, qualifier, assigned, in_merge).rewrite()


@dataclass(slots=True)
class _Value:
    """What one column is set to."""

    key: str
    text: str
    """SQL text; empty for a column of a sub-select."""
    default: bool
    """DEFAULT; ``text`` is what it stands for, if the server does not compute it."""
    repeats: bool
    """Whether it may be written down several times."""


class _SetList:
    def __init__(
        self, work: Work, rule: Rule, qualifier: str, assigned: list[Assignment], in_merge: bool
    ) -> None:
        self.work = work
        self.rule = rule
        self.qualifier = qualifier
        self.assigned = assigned
        self.in_merge = in_merge

    def _relevant(self, key: str) -> bool:
        return key in self.rule.virtuals or key in self.rule.sources

    def rewrite(self) -> bool:
        rule, work = self.rule, self.work
        if not any(self._relevant(item.column) for item in self.assigned):
            return False
        self._check()
        items = take_apart(self.work, self.assigned, in_merge=self.in_merge)
        values: list[_Value] = []
        selects: list[Item] = []
        removed: list[int] = []
        moved: list[_Value] = []
        for at, item in enumerate(items):
            if not any(self._relevant(cell.column) for cell in item.cells):
                continue
            if item.query is not None:
                removed.append(at)
                selects.append(item)
                continue
            found = self._values(item)
            values += [value for value in found if self._relevant(value.key)]
            if len(found) > 1 or found[0].key in rule.virtuals:
                removed.append(at)
                moved += [value for value in found if self._physical(value.key)]
        several = bool(selects) or not all(value.repeats or self._once(value) for value in values)
        if several:
            # What follows from physical columns too must find them in the sub-select.
            removed = [
                at for at, item in enumerate(items) if any(self._relevant(cell.column) for cell in item.cells)
            ]
            apart = [value for value in moved if not self._relevant(value.key)]
            apart += [value for value in values if self._physical(value.key) and not value.text]
            new = list(map(self._assign, apart))
            new += self._inline([value for value in values if not value.text])
            new.append(self._correlated([value for value in values if value.text], selects))
        else:
            new = [*map(self._assign, moved), *self._inline(values)]
        kept = cut(work, [(item.start, item.end) for item in items], removed, RECIPE)
        if not kept and not new:
            new = [self._nothing()]
        if new:
            work.insert(items[-1].end, ", " * kept + ", ".join(new), RECIPE)
        work.tell(
            Reason.VIRTUAL_WRITE,
            f"Values for columns that only this version of {rule.model.qualified} has become values of the table's.",
        )
        return several

    def _physical(self, key: str) -> bool:
        return key not in self.rule.virtuals

    def _assign(self, value: _Value) -> str:
        """An assignment of its own, for a column that stood in brackets with others."""
        return f"{ident(value.key)} = {'DEFAULT' if value.default else value.text}"

    def _nothing(self) -> str:
        """An assignment that changes nothing, for a list of which nothing has a place in the table."""
        rule = self.rule
        if not all(
            item.column in rule.virtuals and rule.virtuals[item.column].discards for item in self.assigned
        ):
            raise refused(rule, "Nothing that is assigned has a place in the table.")
        columns = [c for c in rule.model.columns if not c.generated and c.identity != "a"]
        apart = [c for c in columns if c.name not in rule.model.primary_key]
        name = ident((apart or columns)[0].name)
        return f"{name} = {self.qualifier}.{name}"

    def _check(self) -> None:
        rule = self.rule
        keys = [item.column for item in self.assigned]
        check(rule, keys)
        for item in self.assigned:
            if item.partial and self._relevant(item.column):
                raise refused(rule, "Only a part of a column is assigned.")
            if keys.count(item.column) > 1:
                # As PostgreSQL says it, where no part of the column is assigned.
                raise Refused(
                    Reason.REFUSED_CONSTRUCT,
                    f'multiple assignments to same column "{name_of(rule, item.column)}"',
                    sqlstate="42601",
                )

    def _once(self, value: _Value) -> bool:
        """Whether the value is written down once only where it stands."""
        mirrors = [mirror for mirror in self.rule.mirrors if value.key in mirror.sources]
        if self._physical(value.key):
            return not mirrors
        return len(mirrors) < 2 and all(raw_of(self.rule, mirror) is not None for mirror in mirrors)

    def _values(self, item: Item) -> list[_Value]:
        """What the columns of an item are set to."""
        if item.opaque:
            raise refused(self.rule, "Several columns are assigned together.")
        return [self._value(cell.column, cell.node, *cell.span) for cell in item.cells]

    def _value(self, key: str, node: Node, start: int, end: int) -> _Value:
        rule = self.rule
        default = "SetToDefault" in node
        if not default:
            refuse_lost(rule, key)
            return _Value(key, self.work.rendered(start, end), False, self.work.may_repeat(node, end - start))
        if not self._relevant(key) or not uses(rule, key) or self._own_default(key):
            return _Value(key, "", True, True)
        return _Value(key, default_of(rule, key), True, not server_default(rule, key))

    def _own_default(self, key: str) -> bool:
        """Whether the default of a physical column serves for this one's."""
        return (
            not self._physical(key)
            and server_default(self.rule, key)
            and all(mirror.sources == (key,) for mirror in self.rule.mirrors if key in mirror.sources)
        )

    def _inline(self, values: Sequence[_Value]) -> list[str]:
        rule = self.rule
        texts = {value.key: typed(rule, value.key, value.text) for value in values if value.text}
        own = {value.key for value in values if not value.text}
        result = []
        for mirror in rule.mirrors:
            if not own.isdisjoint(mirror.sources):
                result.append(f"{ident(mirror.target)} = DEFAULT")
            elif not texts.keys().isdisjoint(mirror.sources):
                result.append(f"{ident(mirror.target)} = {crossed(rule, self.qualifier, mirror, texts)}")
        return result

    def _correlated(self, values: Sequence[_Value], selects: Sequence[Item]) -> str:
        """One assignment of everything, from a sub-select that evaluates each expression of the client once."""
        rule, work = self.rule, self.work
        columns: dict[str, str] = {}
        inner: list[str] = []
        order = {
            column.column: at for at, column in enumerate(rule.columns)
        }  # the order in which they are evaluated
        for value in sorted(values, key=lambda value: order.get(value.key, len(order))):
            if not value.text:
                raise refused(
                    rule, "A default that only the server knows is assigned beside a changing expression."
                )
            columns[value.key] = f"{ASSIGNED}.{INTERNAL_PREFIX}{len(inner) + 1}"
            inner.append(self._nested(value))
        source = "(VALUES (1))"
        if (
            inner
        ):  # the OFFSET names the row, and keeps each expression from being merged into where it is used
            source = f"(VALUES ({', '.join(inner)}) OFFSET CASE WHEN {self.qualifier}.ctid IS NULL THEN 0 ELSE 0 END)"
        aliases = ", ".join(f"{INTERNAL_PREFIX}{at + 1}" for at in range(len(inner) or 1))
        source += f" AS {ASSIGNED}({aliases})"
        once: list[str] = []
        for number, item in enumerate(selects):
            assert item.query is not None
            if item.correlated is None and not stable(item.query):
                raise refused(
                    rule, "It cannot be told whether a sub-select is to be run once or for each row."
                )
            name = f"{ASSIGNED}_{number + 1}"
            names = [f"{INTERNAL_PREFIX}{at + 1}" for at in range(len(item.cells))]
            for column, output in zip(item.cells, names, strict=True):
                refuse_lost(rule, column.column)
                columns[column.column] = f"{name}.{output}"
            query = work.rendered(*item.cells[0].span)
            named = f"{name}({', '.join(names)})"
            if item.correlated is False:  # it runs once for the statement, as it did
                once.append(f"{named} AS MATERIALIZED {query}")
                source += f" LEFT JOIN {name} ON true"
            else:
                source += f" LEFT JOIN (SELECT * FROM {query} AS {name} OFFSET 0) AS {named} ON true"
        exact = {value.key for value in values if not self._physical(value.key)}
        texts = {
            key: text if key in exact else typed(rule, key, text)
            for key, text in columns.items()
            if self._relevant(key)
        }
        targets = [key for key in columns if self._physical(key)]
        outputs = [columns[key] for key in targets]
        for mirror in rule.mirrors:
            if not texts.keys().isdisjoint(mirror.sources):
                targets.append(mirror.target)
                outputs.append(crossed(rule, self.qualifier, mirror, texts))
        queries = f"WITH {', '.join(once)} " if once else ""
        return f"({', '.join(map(ident, targets))}) = ({queries}SELECT {', '.join(outputs)} FROM {source})"

    def _nested(self, value: _Value) -> str:
        rule = self.rule
        if not self._physical(value.key):
            return typed(rule, value.key, value.text)
        column = rule.column(value.key)
        if not castable(column):
            raise refused(rule, f'What is assigned to column "{value.key}" cannot be cast in advance.')
        return f"CAST({value.text} AS {column.type})"  # the assignment itself minds the modifier
