"""SET lists, of UPDATE, of ON CONFLICT DO UPDATE and of MERGE alike: names translated, mirrors added."""

from __future__ import annotations

from proxy.rewrite.correlation import correlated
from proxy.rewrite.multiassign import Change, mirror_changes
from proxy.rewrite.reasons import Reason
from proxy.rewrite.resolve import Scope, Source, undefined_column
from proxy.rewrite.rules import Rule
from proxy.rewrite.setlist import Assignment, take_apart
from proxy.rewrite.work import Unmirrorable, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident


def assignments(work: Work, items: list[Node], target: Source, scope: Scope) -> list[Assignment]:
    """Walk over a SET list, translating the names of a target with a rule."""
    result = []
    for item in items:
        node = item["ResTarget"]
        value = node["val"]
        multiple = value.get("MultiAssignRef")
        related = None
        if multiple is None:
            work.visit(value, scope)
        elif multiple.get("colno", 1) == 1:
            work.visit(multiple["source"], scope)
            if target.rule is not None and "SubLink" in multiple["source"]:
                related = correlated(multiple["source"]["SubLink"]["subselect"], scope)
        work.visit(node.get("indirection", []), scope)
        if target.rule is None:
            continue
        location = node.get("location", 0)
        column = set_name(work, target, node["name"], location)
        result.append(Assignment(column, value, location, "indirection" in node, related))
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
    """Add the mirrors to a SET list, or leave them to the guard."""
    try:
        changes = set_changes(work, rule, qualifier, assigned)
    except Unmirrorable as why:
        work.leave_to_guard(rule, why.reason, why.sentence)
        return
    if changes:
        write_changes(work, rule, changes)


def set_changes(
    work: Work, rule: Rule, qualifier: str, assigned: list[Assignment], *, in_merge: bool = False
) -> list[Change]:
    """The edits that mirror a SET list, none of them made; Unmirrorable if that must be left to the guard."""
    if not any(item.column in rule.sources for item in assigned):
        return []
    require_inline(work, rule)
    return mirror_changes(work, rule, qualifier, take_apart(work, assigned, in_merge=in_merge))


def write_changes(work: Work, rule: Rule, changes: list[Change]) -> None:
    """Make the edits of a SET list."""
    for change in changes:
        change.write(work)
    work.mirrored = True
    work.tell(Reason.DUAL_WRITE, f"Changes to {rule.model.qualified} are written to both shapes of the row.")


def require_inline(work: Work, rule: Rule) -> None:
    """Raise Unmirrorable where writes of this table are not mirrored by the statement itself."""
    if not work.dual_write:
        raise Unmirrorable(Reason.GUARD_DUAL_WRITE_OFF, "Dual writes are switched off in this sidecar.")
    if not rule.model.inline:
        raise Unmirrorable(
            Reason.GUARD_BEFORE_TRIGGER,
            f"Triggers of {rule.model.qualified} may overrule what the statement writes.",
        )
    if work.declared is not None and rule.model.guard == "sync":
        raise Unmirrorable(
            Reason.GUARD_PREPARE,
            "What PREPARE makes may outlive the migration, so it must not name the other shape's columns.",
        )
