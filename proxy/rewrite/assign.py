"""SET lists, of UPDATE and of ON CONFLICT DO UPDATE alike: names translated, mirrors appended."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.rewrite.mirror import default_text, set_items
from proxy.rewrite.reasons import Reason
from proxy.rewrite.resolve import Scope, Source, undefined_column
from proxy.rewrite.rules import Rule
from proxy.rewrite.work import Unmirrorable, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident
from proxy.sql.repeatable import repeatable
from proxy.sql.tokens import CLOSE, EQUALS, OPEN


@dataclass(slots=True)
class Assignment:
    """One column of a SET list."""

    column: str
    """Physical name."""
    node: Node
    start: int
    """Where the column's name stands, as a byte offset."""
    partial: bool
    """Whether a subscript or a field is assigned."""


def assignments(work: Work, items: list[Node], target: Source, scope: Scope) -> list[Assignment]:
    """Walk over a SET list, translating the names of a target with a rule."""
    result = []
    for item in items:
        node = item["ResTarget"]
        value = node["val"]
        multiple = value.get("MultiAssignRef")
        if multiple is None:
            work.visit(value, scope)
        elif multiple.get("colno", 1) == 1:
            work.visit(multiple["source"], scope)
        work.visit(node.get("indirection", []), scope)
        if target.rule is None:
            continue
        location = node.get("location", 0)
        column = set_name(work, target, node["name"], location)
        result.append(Assignment(column, value, location, "indirection" in node))
    return result


def set_name(work: Work, target: Source, name: str, location: int) -> str:
    """The physical name of a column that is written, or a virtual one's key; the text is edited where names differ."""
    rule = target.rule
    assert rule is not None
    physical = rule.by_name.get(name)
    if physical is None:
        if rule.translated and name in rule.hidden:
            raise undefined_column(target, f'"{name}" of relation "{rule.model.name}"', location)
        return name
    if physical != name and physical not in rule.virtuals:
        tokens = work.tokens
        at = tokens.at(location)
        work.replace(tokens.starts[at], tokens.ends[at], ident(physical), "translate")
        work.reasons.append(Reason.TRANSLATED)
    return physical


def mirror_set(work: Work, rule: Rule, qualifier: str, assigned: list[Assignment]) -> None:
    """Append the mirrors of a SET list, or leave them to the guard."""
    relevant = [item for item in assigned if item.column in rule.sources]
    if not relevant:
        return
    if not work.dual_write:
        work.leave_to_guard(
            rule, Reason.GUARD_DUAL_WRITE_OFF, "Dual writes are switched off in this sidecar."
        )
        return
    try:
        if not work.inline:
            raise Unmirrorable(Reason.GUARD_PREPARE, "The statement is only prepared here.")
        values = {item.column: _value(work, rule, item) for item in relevant}
        text = set_items(rule, qualifier, values)
    except Unmirrorable as why:
        work.leave_to_guard(rule, why.reason, why.sentence)
        return
    work.insert(_end_of_list(work, assigned[-1]), text, "mirror_set")
    work.mirrored = True
    work.tell(Reason.DUAL_WRITE, f"Changes to {rule.model.qualified} are written to both shapes of the row.")


def _value(work: Work, rule: Rule, item: Assignment) -> str:
    """The SQL text of an assigned expression, if it may be repeated."""
    if item.partial:
        raise Unmirrorable(Reason.GUARD_SUBSCRIPT, f"Only a part of column {item.column} is assigned.")
    if "MultiAssignRef" in item.node:
        raise Unmirrorable(
            Reason.GUARD_MULTI_ASSIGNMENT, f"Column {item.column} is assigned together with others."
        )
    if "SetToDefault" in item.node:
        return default_text(rule.model.column(item.column))
    tokens = work.tokens
    first = tokens.after(EQUALS, tokens.at(item.start))
    end = tokens.item_end(first)
    start, stop = tokens.starts[first], tokens.ends[end - 1]
    if not repeatable(item.node, stop - start):
        raise Unmirrorable(
            Reason.GUARD_VOLATILE_EXPRESSION,
            f"What is assigned to column {item.column} may differ, or cost much, if written twice.",
        )
    return work.rendered(start, stop)


def _end_of_list(work: Work, last: Assignment) -> int:
    """The byte offset after a SET list's last item."""
    tokens = work.tokens
    at = tokens.at(last.start)
    if "MultiAssignRef" in last.node:
        depth = 0
        while depth >= 0:  # out of the parenthesised list of names
            at += 1
            name = tokens.name(at)
            depth += (name in OPEN) - (name in CLOSE)
        at += 1
    return tokens.ends[tokens.item_end(tokens.after(EQUALS, at)) - 1]
