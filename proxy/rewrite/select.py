"""SELECT, VALUES and TABLE: stars are spelled out and tables replaced so that the client sees its version only."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.rewrite.compare import sort_key
from proxy.rewrite.figure import field_names, figure_name
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import FromList, group_list, is_star, output_names, with_clause
from proxy.rewrite.resolve import Role, Scope, Source, has_column, reference, strip_for_twin
from proxy.rewrite.work import Refused, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident
from proxy.sql.tokens import CLOSE, LPAREN, OPEN

_RENAMING = frozenset({"translate", "virtual_read"})
"""Recipes after which an expression has another name."""


@dataclass(slots=True)
class Star:
    """An item ``*`` (``source`` None) or ``t.*`` of a select list."""

    location: int
    parts: int
    source: Source | None


def select(work: Work, node: Node, outer: Scope) -> None:
    """Handle one SelectStmt, and those within it."""
    ctes = with_clause(work, node, outer)
    if "larg" in node:
        select(work, node["larg"], ctes)
        select(work, node["rarg"], ctes)
        work.outputs[id(node)] = work.outputs[id(node["larg"])]
        for part in ("limitOffset", "limitCount"):
            work.visit(node.get(part, {}), ctes)
        return
    scope = Scope(ctes)
    level = FromList(work, scope, ctes, grouped="groupClause" in node)
    for item in node.get("fromClause", ()):
        level.add(item)
    work.visit(node.get("valuesLists", []), scope)
    work.visit(node.get("whereClause", {}), scope)
    level.clear_used()
    stars = target_list(work, node.get("targetList", ()), scope)
    for part in ("havingClause", "distinctClause", "windowClause"):
        work.visit(node.get(part, []), scope)
    _sort(work, node, scope)
    expand_stars(work, stars, scope, level)
    _group(work, node, scope, level)
    for part in ("limitOffset", "limitCount"):
        work.visit(node.get(part, {}), scope)
    level.finish()
    work.outputs[id(node)] = _outputs(node, scope, level)


def _outputs(node: Node, scope: Scope, level: FromList) -> tuple[str, ...] | None:
    """The names of a query's output columns, stars included, if all that they stand for is known."""
    static = output_names({"SelectStmt": node})
    if static is not None:
        return static
    names: list[str] = []
    for item in node.get("targetList", ()):
        target = item["ResTarget"]
        fields = target["val"].get("ColumnRef", {}).get("fields", ())
        parts = field_names(fields)
        if not is_star(target["val"]):
            names.append(target["name"] if "name" in target else figure_name(target["val"])[0])
            continue
        if not parts:
            return None  # (t).*, or the like of a function's result
        qualifier = parts[-2] if len(parts) > 1 else None
        sources = scope.sources if qualifier is None else [s for s in scope.sources if s.name == qualifier]
        if not sources or (qualifier is None and level.merges):
            return None
        for source in sources:
            if source.columns is None:
                return None
            names += source.columns
    return tuple(names)


def _sort(work: Work, node: Node, scope: Scope) -> None:
    targets = [item["ResTarget"] for item in node.get("targetList", ())]
    raw = "groupClause" not in node and "distinctClause" not in node
    for item in node.get("sortClause", ()):
        sort_key(work, item["SortBy"]["node"], targets, scope, raw=raw)


def target_list(work: Work, items: list[Node], scope: Scope) -> list[Star]:
    """Walk over a select or RETURNING list; gives its stars, for ``expand_stars``."""
    stars = []
    for item in items:
        target = item["ResTarget"]
        value = target.get("val", {})
        column = value.get("ColumnRef")
        if column is not None:
            names = field_names(column["fields"])
            if names[-1] is None:
                source = None
                if len(names) > 1:
                    source = scope.qualified(names[-2]) if names[-2] is not None else None
                    if source is None or source.rule is None:
                        continue
                    source.used.update(source.columns or ())
                    if len(names) > 2:
                        strip_for_twin(work, source, column.get("location", 0), len(names))
                stars.append(Star(column.get("location", 0), len(names), source))
                continue
            if id(target) in work.compared:
                reference(work, column, scope, compared=True)
                continue
        if _row_star(work, target, value, scope):
            continue
        before = len(work.edits)
        work.wrapped.clear()
        work.visit(value, scope)
        if "name" not in target and any(edit.recipe in _RENAMING for edit in work.edits[before:]):
            _keep_name(work, target)
        elif "name" not in target:
            for source in work.wrapped:
                source.around.append((*_name_place(work, target), f" AS {ident(figure_name(value)[0])}"))
        work.wrapped.clear()
    return stars


def _row_star(work: Work, target: Node, value: Node, scope: Scope) -> bool:
    """``(t).*`` of a table with a rule is spelled out like ``t.*``."""
    node = value.get("A_Indirection", {})
    fields = node.get("arg", {}).get("ColumnRef", {}).get("fields", ())
    if len(fields) != 1 or "A_Star" not in node["indirection"][0]:
        return False
    name = field_names(fields)[0]
    source = scope.qualified(name) if name is not None else None
    if source is None or source.rule is None or source.role is Role.EXCLUDED:
        return False
    if source.role is Role.FROM and has_column(scope, name):
        return False
    source.used.update(source.columns or ())
    tokens = work.tokens
    first = tokens.at(target.get("location", 0))
    end = tokens.item_end(first) - 1
    work.replace(tokens.starts[first], tokens.ends[end], _columns(source, ident(name or "")), "expand_star")
    _tell(work, [source])
    return True


def _keep_name(work: Work, target: Node) -> None:
    """An output column took its name from a reference that was translated: say the name."""
    name, _ = figure_name(target["val"])
    if name == "?column?":
        return
    work.insert(_name_place(work, target)[0], f" AS {ident(name)}", "keep_name")


def _name_place(work: Work, target: Node) -> tuple[int, int]:
    """Where the name of an output column would stand."""
    tokens = work.tokens
    end = tokens.ends[tokens.item_end(tokens.at(target.get("location", 0))) - 1]
    return end, end


def expand_stars(work: Work, stars: list[Star], scope: Scope, level: FromList | None) -> None:
    """Spell out the stars of one level where they would show other columns than the version's."""
    merges = level.merges if level is not None else False
    for star in stars:
        if star.source is None:
            _expand_all(work, star, scope, merges)
    for star in stars:
        if star.source is not None:
            _expand_one(work, star, star.source)


def _in_place(source: Source) -> bool:
    """Whether a star over this source must be spelled out."""
    if source.rule is None:
        return False
    return not source.derived or bool(source.system) or (bool(source.raws) and not source.exact)


def _expand_all(work: Work, star: Star, scope: Scope, merges: bool) -> None:
    tables = [
        source for source in scope.sources if source.rule is not None and source.role is not Role.EXCLUDED
    ]
    for source in tables:
        source.used.update(source.columns or ())
    visible = [source for source in scope.sources if source.role is not Role.EXCLUDED]
    names = [source.name for source in visible]
    if star.location < 0:
        _spell_table(work, scope)
        return
    if merges or None in names or len(set(names)) != len(names):
        for source in tables:
            if source.role is Role.FROM:
                source.derive = source.exact = True
        if any(_in_place(source) for source in tables):
            raise Refused(
                Reason.REFUSED_CONSTRUCT,
                "this * cannot be spelled out while a migration is in progress",
                hint="Name the columns, or qualify them with their tables' aliases.",
            )
        return
    if not any(_in_place(source) for source in tables):
        return
    items = [_columns(source, ident(source.name or "")) for source in visible]
    at = work.tokens.at(star.location)
    work.replace(star.location, work.tokens.ends[at], ", ".join(filter(None, items)), "expand_star")
    _tell(work, tables)


def _spell_table(work: Work, scope: Scope) -> None:
    """``TABLE t`` is ``SELECT * FROM t``, and has no place for anything else."""
    source = scope.sources[0]
    if source.rule is None:
        return
    tokens = work.tokens
    at = tokens.at(source.node.get("location", 0)) - 1
    while tokens.name(at) in (LPAREN, "ONLY"):
        at -= 1
    columns = _columns(source, ident(source.name or "")) if _in_place(source) else "*"
    work.replace(tokens.starts[at], tokens.ends[at], f"SELECT {columns} FROM", "expand_star")
    _tell(work, [source])


def _expand_one(work: Work, star: Star, source: Source) -> None:
    tokens = work.tokens
    first = tokens.at(star.location)
    last = tokens.dotted_end(first)
    if not _in_place(source):
        if star.parts > 2:
            work.replace(star.location, tokens.starts[first + 2 * (star.parts - 2)], "", "strip_schema")
        return
    qualifier = work.slice(star.location, tokens.ends[last - 2])
    moved = source.rule is not None and source.rule.relation is not None and star.parts > 2
    if (source.derived or moved) and source.name is not None:
        qualifier = ident(source.name)
    work.replace(star.location, tokens.ends[last], _columns(source, qualifier), "expand_star")
    _tell(work, [source])


def _columns(source: Source, qualifier: str) -> str:
    if source.rule is None:
        return f"{qualifier}.*"
    if source.role is Role.FROM:
        return ", ".join(f"{qualifier}.{ident(name)}" for name in source.columns or ())
    return source.rule.expanded(qualifier)


def _tell(work: Work, tables: list[Source]) -> None:
    for source in tables:
        if source.rule is not None:
            work.tell(
                Reason.EXPAND_STAR,
                f"* is spelled out as the columns of the version of {source.rule.model.qualified}.",
            )


def _group(work: Work, node: Node, scope: Scope, level: FromList) -> None:
    """Walk over GROUP BY; where a derived table's key is grouped by, add the columns that the key stood for."""
    if "groupClause" not in node:
        return
    used = {id(source): set(source.used) for source in level.tables}
    grouped: dict[int, set[str]] = {}
    for item in node["groupClause"]:
        for source in level.tables:
            source.used.clear()
        work.visit(item, scope)
        if "ColumnRef" in item:
            for source in level.tables:
                grouped.setdefault(id(source), set()).update(source.used)
        elif "A_Const" in item:
            _grouped_by_position(node, item["A_Const"], scope, grouped)
    added: list[str] = []
    for source in level.tables:
        source.used = used[id(source)]
        if source.derived:
            missing = group_list(source, grouped.get(id(source), set()))
            source.spelled = source.spelled or bool(missing)
            added += missing
    if added:
        work.insert(_after_group_by(work, node), f" {', '.join(added)},", "group_by_key")


def _grouped_by_position(node: Node, constant: Node, scope: Scope, grouped: dict[int, set[str]]) -> None:
    """``GROUP BY 1`` names an item of the select list."""
    position = constant.get("ival", {}).get("ival", 0)
    targets = node.get("targetList", ())
    if not 0 < position <= len(targets):
        return
    column = targets[position - 1]["ResTarget"].get("val", {}).get("ColumnRef")
    names = field_names(column["fields"]) if column is not None else [None]
    if names[-1] is None:
        return
    for source in scope.sources:
        if (len(names) == 1 and names[0] in (source.columns or ())) or (
            len(names) > 1 and names[-2] == source.name
        ):
            grouped.setdefault(id(source), set()).add(names[-1])


def _after_group_by(work: Work, node: Node) -> int:
    """The byte offset after the words GROUP BY (and DISTINCT or ALL) of a SELECT."""
    first = next(item for item in node["groupClause"] if "ColumnRef" in item or "A_Const" in item)
    ((_, reference),) = first.items()
    tokens = work.tokens
    at = tokens.at(reference.get("location", 0))
    depth = 0
    while at > 0:
        at -= 1
        name = tokens.name(at)
        if name in CLOSE:
            depth += 1
        elif name in OPEN:
            depth -= 1
        elif name == "BY" and depth <= 0 and tokens.name(at - 1) == "GROUP_P":
            break
    if tokens.name(at + 1) in ("DISTINCT", "ALL"):
        at += 1
    return tokens.ends[at]
