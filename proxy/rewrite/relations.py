"""FROM lists: which relations a level of a statement sees, and the derived tables that replace some of them.

A table whose version differs in its columns' names is replaced, where it stands, by a derived table with the
version's columns (the planner of PostgreSQL always flattens it). A table whose version only has fewer or
reordered columns stays as it is, unless the statement uses it in a way that would show the difference
(NATURAL JOIN, a whole row, ``*`` over merged columns).
"""

from __future__ import annotations

from proxy.rewrite.figure import figure_name
from proxy.rewrite.reasons import Reason
from proxy.rewrite.resolve import Role, Scope, Source, strip_schemas
from proxy.rewrite.rules import UNGROUPABLE, Rule
from proxy.rewrite.work import Refused, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident
from proxy.sql.tokens import LPAREN, RPAREN, STAR


class FromList:
    """The FROM (or USING) items of one level; ``add`` them all, walk the rest of the level, then ``finish``."""

    def __init__(self, work: Work, scope: Scope, outer: Scope, *, grouped: bool = False) -> None:
        self._work = work
        self._scope = scope
        self._outer = outer
        self._grouped = grouped
        self.merges = False
        """Whether a join hides or merges columns, so that ``*`` is not the list of all items' columns."""
        self.tables: list[Source] = []
        """All sources with a rule, those under a join's alias included."""

    def add(self, item: Node) -> None:
        """Take in one FROM item."""
        self._add(item, self._scope)

    def _add(self, item: Node, scope: Scope, sample: Node | None = None) -> None:
        ((kind, node),) = item.items()
        if kind == "RangeVar":
            self._table(node, scope, sample)
        elif kind == "RangeSubselect":
            self._work.visit(node["subquery"], scope if node.get("lateral") else self._outer)
            scope.sources.append(_named(node, columns=_aliased(node, self._outputs(node["subquery"]))))
        elif kind == "JoinExpr":
            self._join(node, scope)
        elif kind == "RangeTableSample":
            self._work.visit(node.get("args", []), scope)
            self._work.visit(node.get("repeatable", {}), scope)
            self._add(node["relation"], scope, node)
        elif kind == "RangeFunction":
            self._work.visit(node.get("functions", []), scope)
            scope.sources.append(_named(node, _function_name(node)))
        else:  # XMLTABLE, JSON_TABLE
            self._work.visit(node, scope)
            scope.sources.append(_named(node))

    def _outputs(self, query: Node) -> tuple[str, ...] | None:
        return self._work.outputs.get(id(query.get("SelectStmt")))

    def _table(self, node: Node, scope: Scope, sample: Node | None) -> None:
        name, schema = node["relname"], node.get("schemaname")
        if schema is None and scope.has_cte(name):
            columns = _aliased(node, scope.cte_columns(name))
            scope.sources.append(_named(node, name, columns=columns))
            return
        rule = self._work.rule_of(node)
        source = _named(node, name, columns=None if rule is None else _aliased(node, rule.names))
        source.base = True
        source.grouped = self._grouped
        if rule is not None:
            source.rule = rule
            source.node = node
            source.sample = sample
            if "alias" not in node:
                source.schema = rule.model.schema
            elif "colnames" in node["alias"]:
                source.derive = True  # the names are given by physical position
            self.tables.append(source)
            twin(self._work, source)
        scope.sources.append(source)

    def _join(self, node: Node, scope: Scope) -> None:
        first = len(self.tables)
        inner = scope
        if "alias" in node:
            inner = Scope(scope)
        self._add(node["larg"], inner)
        self._add(node["rarg"], inner)
        self._work.visit(node.get("quals", {}), inner)
        if node.get("isNatural"):
            for source in self.tables[first:]:
                source.derive = True  # or the shapes' own columns would be joined on
                source.merged.add(None)
        if node.get("isNatural") or "usingClause" in node:
            self.merges = True
            names = {name["String"].get("sval", "") for name in node.get("usingClause", ())}
            for source in self.tables[first:]:
                source.used |= names
                source.merged |= names
        if "join_using_alias" in node:
            scope.sources.append(Source(node["join_using_alias"].get("aliasname")))
        if "alias" in node:
            for source in self.tables[first:]:
                source.derive = source.exact = True  # ``j.*`` cannot be told from outside
            scope.sources.append(_named(node))

    def clear_used(self) -> None:
        """Forget the columns used so far: what follows is what GROUP BY restricts."""
        for source in self.tables:
            source.used.clear()
            source.restricted = self._grouped

    def finish(self) -> None:
        """Make the edits that turn tables into derived tables."""
        for source in self.tables:
            if source.derived:
                derive(self._work, source)


def _named(node: Node, name: str | None = None, columns: tuple[str, ...] | None = None) -> Source:
    alias = node.get("alias")
    return Source(alias.get("aliasname") if alias else name, columns=columns)


def _aliased(node: Node, columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Column names after an alias's column list, which renames the first ones."""
    given = tuple(name["String"].get("sval", "") for name in node.get("alias", {}).get("colnames", ()))
    if columns is None:
        return None
    return given + columns[len(given) :]


def _function_name(node: Node) -> str | None:
    functions = node.get("functions", ())
    if node.get("is_rowsfrom") or len(functions) != 1:
        return None
    call = functions[0]["List"]["items"][0].get("FuncCall")
    if call is None or call.get("funcformat") == "COERCE_SQL_SYNTAX":
        return None
    return str(call["funcname"][-1]["String"].get("sval", ""))


def is_star(value: Node) -> bool:
    """Whether an item of a list stands for any number of columns."""
    parts: list[Node] = (
        value.get("ColumnRef", {}).get("fields") or value.get("A_Indirection", {}).get("indirection") or []
    )
    return bool(parts) and "A_Star" in parts[-1]


def output_names(query: Node) -> tuple[str, ...] | None:
    """The names of a query's output columns, where its select list alone tells them."""
    node = query.get("SelectStmt")
    if node is None:
        return None
    while "larg" in node:
        node = node["larg"]
    if "valuesLists" in node:
        return tuple(f"column{at + 1}" for at in range(len(node["valuesLists"][0]["List"]["items"])))
    names = []
    for item in node.get("targetList", ()):
        target = item["ResTarget"]
        if "name" in target:
            names.append(target["name"])
            continue
        value = target["val"]
        if is_star(value):
            return None
        names.append(figure_name(value)[0])
    return tuple(names)


def with_clause(work: Work, node: Node, outer: Scope) -> Scope:
    """The scope after a statement's WITH: its queries are walked, their names are known."""
    scope = Scope(outer)
    clause = node.get("withClause")
    if clause is None:
        return scope
    entries = [entry["CommonTableExpr"] for entry in clause["ctes"]]
    if clause.get("recursive"):
        for entry in entries:
            scope.ctes[entry["ctename"]] = _cte_columns(entry, output_names(entry["ctequery"]))
    for entry in entries:
        inner = Scope(outer)
        inner.ctes = dict(scope.ctes)
        work.visit(entry["ctequery"], inner)
        scope.ctes[entry["ctename"]] = _cte_columns(
            entry, work.outputs.get(id(entry["ctequery"].get("SelectStmt")))
        )
    return scope


def _cte_columns(entry: Node, columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
    given = tuple(name["String"].get("sval", "") for name in entry.get("aliascolnames", ()))
    if columns is None or "searchClause" in entry or "cycleClause" in entry:
        return None
    return given + columns[len(given) :]


def dml_target(work: Work, relation: Node) -> Source:
    """The relation that an INSERT, UPDATE, DELETE or MERGE modifies; never a common table expression.

    Where another relation holds the table's rows, the text names that one from now on.
    """
    source = named_table(work, relation)
    twin(work, source)
    if source.rule is not None:
        retarget(work, relation, source.rule)
    return source


def named_table(work: Work, relation: Node) -> Source:
    """A table that a statement names other than in a FROM list."""
    rule = work.rule_of(relation)
    source = _named(relation, relation["relname"], columns=None if rule is None else rule.names)
    source.role = Role.TARGET
    source.base = True
    if rule is not None:
        source.rule = rule
        source.node = relation
        if "alias" not in relation:
            source.schema = rule.model.schema
    return source


def retarget(work: Work, relation: Node, rule: Rule, *, alias: bool = True) -> None:
    """Name the relation that holds a table's rows; ``alias`` says whether the table's name must go on to mean it."""
    if rule.relation is None:
        return
    first, last = range_var(work, relation)
    for start, end, text in _renamed(work, relation, rule.relation, first, last)[: 2 if alias else 1]:
        work.replace(start, end, text, "relation")
    if first < work.tokens.at(relation.get("location", 0)):
        _drop_only(work, first, last)
    work.tell(Reason.TRANSLATED, f"The rows of {rule.model.qualified} are in {rule.relation}.")


def range_var(work: Work, node: Node) -> tuple[int, int]:
    """The first and the last token of a table's name, with ONLY, its brackets and ``*``."""
    tokens = work.tokens
    first = tokens.at(node.get("location", 0))
    last = tokens.dotted_end(first)
    if tokens.name(last + 1) == STAR:
        last += 1
    if not node.get("inh"):
        # ONLY t, or ONLY (t)
        if tokens.name(first - 1) == LPAREN and tokens.name(first - 2) == "ONLY":
            first, last = first - 2, last + 1
        elif tokens.name(first - 1) == "ONLY":
            first -= 1
    return first, last


def _renamed(work: Work, node: Node, name: str, first: int, last: int) -> list[tuple[int, int, str]]:
    """Edits that put another table in the place of one, under the same name."""
    tokens = work.tokens
    word = tokens.at(node.get("location", 0))
    edits = [(tokens.starts[word], tokens.ends[tokens.dotted_end(word)], name)]
    if "alias" not in node and tokens.name(first - 1) != "TABLE":
        at = tokens.ends[last]
        edits.append((at, at, f" AS {ident(node['relname'])}"))
    return edits


def _drop_only(work: Work, first: int, last: int) -> None:
    """Take ONLY away: whether the other relation has partitions is nothing that the version shows."""
    tokens = work.tokens
    work.replace(tokens.starts[first], tokens.ends[first], "", "relation")
    if tokens.name(first + 1) == LPAREN:
        work.replace(tokens.starts[first + 1], tokens.ends[first + 1], "", "relation")
        work.replace(tokens.starts[last], tokens.ends[last], "", "relation")


def twin(work: Work, source: Source) -> None:
    """Name a table's twin in the text over twins."""
    rule = source.rule
    if rule is not None and rule.twin is not None:
        first, last = range_var(work, source.node)
        for start, end, text in _renamed(work, source.node, rule.twin, first, last):
            work.in_twin(start, end, text, "twin")


def derive(work: Work, source: Source) -> None:
    """Replace a FROM item by a derived table with the version's columns, under the same name."""
    rule = source.rule
    assert rule is not None
    strip_schemas(work, source)
    tokens = work.tokens
    first, last = range_var(work, source.node)
    inside = "" if source.sample is None else _move_sample(work, source.sample)
    start, end = tokens.starts[first], tokens.ends[last]
    hidden = [*source.system, *_raw_columns(work, source)]
    if hidden or source.spelled:
        for at, until, text in source.rows:
            work.replace(at, until, text, "whole_row")
    columns = ", ".join(filter(None, [rule.select_list, *hidden]))
    alias = "" if "alias" in source.node else f" AS {ident(rule.model.name)}"
    if rule.relation is None:
        work.insert(start, f"(SELECT {columns} FROM ", "derive")
        work.insert(end, f"{inside}){alias}", "derive")
    else:
        work.replace(start, end, f"(SELECT {columns} FROM {rule.relation}{inside}){alias}", "derive")
    if rule.translated:
        work.tell(
            Reason.VIRTUAL_READ if rule.virtuals else Reason.TRANSLATED,
            f"{rule.model.qualified} is read through a derived table with its version's columns.",
        )
    else:
        work.tell(
            Reason.EXPAND_STAR,
            f"{rule.model.qualified} is read through a derived table: the statement would show columns "
            "that its version does not have.",
        )


def _raw_columns(work: Work, source: Source) -> list[str]:
    """Hidden columns for comparisons, which are made to use them."""
    if source.exact or source.name is None:
        return []
    hidden: dict[str, str] = {}
    for start, end, column in source.raws:
        if column not in hidden:
            hidden[column] = work.fresh()
        work.replace(start, end, f"{ident(source.name)}.{hidden[column]}", "virtual_read")
    for start, end, text in source.around if hidden else ():
        work.replace(start, end, text, "virtual_read")
    return [f"{ident(column)} AS {name}" for column, name in hidden.items()]


def _move_sample(work: Work, sample: Node) -> str:
    """Cut a TABLESAMPLE clause out of the text; it belongs inside the derived table."""
    tokens = work.tokens
    at = tokens.at(sample.get("location", 0))
    while tokens.name(at) != "TABLESAMPLE":  # the location is the method's
        at -= 1
        if at < 0:
            raise Refused(Reason.REFUSED_CONSTRUCT, "this TABLESAMPLE clause cannot be translated")
    start = tokens.starts[at]
    end = tokens.close_of(tokens.names.index(LPAREN, at))
    if "repeatable" in sample:
        end = tokens.close_of(tokens.names.index(LPAREN, end))
    assert tokens.name(end) == RPAREN
    moved = " " + work.take(start, tokens.ends[end])
    work.replace(start, tokens.ends[end], "", "derive")
    return moved


def group_list(source: Source, grouped: set[str]) -> list[str]:
    """What must be added to GROUP BY when a table whose key is grouped by becomes a derived table.

    PostgreSQL knows that a base table's key determines its other columns, but not so of a derived table.
    """
    rule = source.rule
    assert rule is not None
    key = _logical_key(rule)
    if source.name is None or not key or not key <= grouped:
        return []
    missing = [name for name in rule.names if name in source.used and name not in grouped]
    for name in missing:
        if rule.column(rule.by_name[name]).type in UNGROUPABLE:
            raise Refused(
                Reason.REFUSED_CONSTRUCT,
                f'"{name}" of {rule.model.qualified} cannot be grouped by while a migration is in progress',
                hint="Read the column in a sub-select, or leave it out.",
            )
    return [f"{ident(source.name)}.{ident(name)}" for name in missing]


def _logical_key(rule: Rule) -> set[str]:
    names = {column.column: column.name for column in rule.columns}
    for virtual in rule.virtuals.values():
        if virtual.raw is not None:
            names.setdefault(virtual.raw, names[virtual.column.name])
    if not all(name in names for name in rule.model.primary_key):
        return set()
    return {names[name] for name in rule.model.primary_key}
