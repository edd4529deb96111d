"""COPY: missing column lists are supplied, given ones translated."""

from __future__ import annotations

from proxy.rewrite.assign import set_name
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import named_table, retarget
from proxy.rewrite.resolve import Scope, Source
from proxy.rewrite.rules import Rule
from proxy.rewrite.work import Refused, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident, idents


def copy(work: Work, node: Node, scope: Scope) -> None:
    """Handle one CopyStmt."""
    if "query" in node:
        work.visit(node["query"], scope)
        return
    target = named_table(work, node["relation"])
    rule = target.rule
    if rule is None:
        work.visit(node.get("whereClause", {}), scope)
        return
    if node.get("is_from"):
        _copy_from(work, node, target, rule)
    else:
        _copy_to(work, node, rule)


def _copy_from(work: Work, node: Node, target: Source, rule: Rule) -> None:
    foreign = bool(rule.virtuals) or (rule.side == "new" and rule.mirroring)
    view = rule.model.copy_view(rule.side)
    if view is not None:
        _copy_into_view(work, node, rule, view)
        return
    if foreign:
        raise Refused(
            Reason.REFUSED_STATEMENT,
            f"COPY into {rule.model.qualified} is not translated while a migration is in progress",
            hint="Use INSERT, or COPY into another table and INSERT ... SELECT from it.",
        )
    if rule.translated and ("whereClause" in node or _names_columns(node)):
        raise Refused(
            Reason.REFUSED_CONSTRUCT,
            f"this COPY into {rule.model.qualified} is not translated while a migration is in progress",
            hint="Leave out WHERE and the options that name columns.",
        )
    retarget(work, node["relation"], rule, alias=False)
    _list(work, node, target, rule)
    work.leave_to_guard(rule, Reason.GUARD_COPY, "The rows of COPY are not looked into.")


def _copy_into_view(work: Work, node: Node, rule: Rule, view: tuple[str, str]) -> None:
    """The view has the version's columns, so nothing but the name and a missing list differs."""
    tokens = work.tokens
    first = tokens.at(node["relation"].get("location", 0))
    last = tokens.dotted_end(first)
    columns = tuple(c.name for c in rule.columns if not rule.column(c.column).generated)
    listed = "" if "attlist" in node else f" ({idents(columns)})"
    work.replace(
        tokens.starts[first], tokens.ends[last], f"{'.'.join(map(ident, view))}{listed}", "copy_view"
    )
    work.tell(
        Reason.COPY_VIEW, f"The rows go into {rule.model.qualified} through a view that writes both shapes."
    )


def _copy_to(work: Work, node: Node, rule: Rule) -> None:
    if not rule.translated:
        _supply_list(work, node, rule)
        return
    given = [name["String"].get("sval", "") for name in node.get("attlist", ())]
    wanted = given or [column.name for column in rule.columns if not rule.column(column.column).generated]
    items = []
    for name in wanted:
        key = rule.by_name.get(name)
        if key is None:
            raise Refused(
                Reason.REFUSED_UNDEFINED_COLUMN,
                f'column "{name}" of relation "{rule.model.name}" does not exist',
                sqlstate="42703",
            )
        value = rule.read(key, "")
        items.append(value if value == ident(name) else f"{value} AS {ident(name)}")
    tokens = work.tokens
    first = tokens.at(node["relation"].get("location", 0))
    last = tokens.dotted_end(first)
    table = rule.relation or f"ONLY {work.slice(tokens.starts[first], tokens.ends[last])}"
    end = tokens.close_of(last + 1) if given else last
    # A header line must show the version's names, so a query it is.
    work.replace(
        tokens.starts[first], tokens.ends[end], f"(SELECT {', '.join(items)} FROM {table})", "copy_query"
    )
    work.tell(
        Reason.VIRTUAL_READ if rule.virtuals else Reason.TRANSLATED,
        f"{rule.model.qualified} is copied through a query with its version's columns.",
    )


def _supply_list(work: Work, node: Node, rule: Rule) -> None:
    if "attlist" in node:
        return
    tokens = work.tokens
    last = tokens.dotted_end(tokens.at(node["relation"].get("location", 0)))
    columns = tuple(c.column for c in rule.columns if not rule.column(c.column).generated)
    work.insert(tokens.ends[last], f" ({idents(columns)})", "expand_list")
    work.tell(Reason.EXPAND_STAR, f"The column list of the version of {rule.model.qualified} is supplied.")


def _list(work: Work, node: Node, target: Source, rule: Rule) -> None:
    _supply_list(work, node, rule)
    tokens = work.tokens
    at = tokens.dotted_end(tokens.at(node["relation"].get("location", 0))) + 2
    for name in node.get("attlist", ()):
        set_name(work, target, name["String"].get("sval", ""), tokens.starts[at])
        at = tokens.item_end(at) + 1


def _names_columns(node: Node) -> bool:
    for option in node.get("options", ()):
        element = option["DefElem"]
        name = element.get("defname", "")
        if name.startswith("force_"):
            return True
        value = element.get("arg", {}).get("String", {}).get("sval", "")
        if name == "header" and value == "match":
            return True
    return False
