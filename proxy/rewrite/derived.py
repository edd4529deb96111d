"""The derived form of an INSERT: the client's rows become a derived table, and each is written in both shapes.

It is for rows that come from a query, and for rows of VALUES whose expressions may not be written down twice: the
mirrors refer to a column of the derived table, so that every expression of the client is evaluated once. The rows
keep their order. What the client gives must reach its column by the same assignment as before:

* a bare literal, NULL or parameter of a plain select list (or of a single row of VALUES) takes the type of its column
  only where it is not nested, so it moves to the outer list;
* set operations, stars and nested VALUES settle their types themselves, wherever they stand;
* several rows of VALUES are coerced cell by cell, in a derived table column by column: there each cell is cast, never
  with the type's modifier (a cast cuts silently where an assignment fails), and only to types that are known not to
  be domains or composites, in which a modifier could hide.

Where that does not hold, ``Unmirrorable`` is raised before anything was edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from proxy.rewrite.mirror import default_once
from proxy.rewrite.model import Column
from proxy.rewrite.reasons import Reason
from proxy.rewrite.relations import is_star
from proxy.rewrite.rules import INTERNAL_PREFIX, Rule
from proxy.rewrite.work import Unmirrorable, Work
from proxy.sql.parse import Node
from proxy.sql.repeatable import MAX_CONSTANT
from proxy.sql.tokens import CLOSE, DOT, OPEN, SEMICOLON

ROWS = f"{INTERNAL_PREFIX}rows"
"""The derived table. Nothing of the client's is in its scope, so no name can clash."""

CAST_TYPES = frozenset(
    {
        "bigint", "bit varying", "boolean", "box", "bpchar", "bytea", "character varying", "cidr", "circle", "date",
        "double precision", "inet", "integer", "interval", "json", "jsonb", "line", "lseg", "macaddr", "macaddr8",
        "money", "name", "numeric", "oid", "path", "point", "polygon", "real", "smallint", "text",
        "time with time zone", "time without time zone", "timestamp with time zone",
        "timestamp without time zone", "tsquery", "tsvector", "uuid", "xml",
    }
)  # fmt: skip
"""Built-in types to which a cell may be cast; their arrays too."""

_QUERY_PARTS = frozenset({"limitCount", "limitOffset", "lockingClause", "sortClause", "withClause"})


@dataclass(slots=True)
class Derived:
    """What becomes of a statement's rows; nothing is edited until ``write``."""

    start: int
    """Where the client's query begins, and ``end`` where it ends, as byte offsets."""
    end: int
    fence: bool
    """Whether OFFSET 0 must keep PostgreSQL from merging the query into the outer one, and so from evaluating its
    expressions once for each use."""
    width: int
    """How many columns the derived table has."""
    columns: list[str] = field(default_factory=list)
    """The physical columns that the outer list gives."""
    outputs: list[str] = field(default_factory=list)
    """The SQL text of each of them."""
    cells: dict[str, str | None] = field(default_factory=dict)
    """The same by column, for the mirrors; None for DEFAULT."""
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    """Edits inside the client's query."""
    defaults: list[str] = field(default_factory=list)
    """Defaults of columns that the client does not give, each evaluated once for a row."""

    def give(self, column: str, text: str) -> None:
        """Add a column to the outer list."""
        self.columns.append(column)
        self.outputs.append(text)
        self.cells[column] = text

    def give_defaults(self, rule: Rule) -> None:
        """Spell out the volatile defaults on which mirrors depend, after the columns of the client."""
        for column in rule.model.columns:
            if (
                column.name in rule.sources
                and self.cells.get(column.name) is None
                and column.default_kind == "volatile"
                and not column.identity
            ):
                self.defaults.append(default_once(column))
                self.give(column.name, _column(self.width + len(self.defaults) - 1))

    def write(self, work: Work, added: Sequence[str], recipe: str = "mirror_insert") -> None:
        """Make the edits; ``added`` are the cells for what is written besides the client's columns."""
        head = f"SELECT {', '.join([*self.outputs, *added])} FROM ("
        tail = f"{' OFFSET 0' if self.fence else ''}) AS {_alias(self.width)}"
        if self.defaults and self.width:
            head += f"SELECT {ROWS}.*, {', '.join(self.defaults)} FROM ("
            tail += f" OFFSET 0) AS {_alias(self.width + len(self.defaults))}"
        elif self.defaults:
            head += f"SELECT {', '.join(self.defaults)}"
            tail = f" OFFSET 0) AS {_alias(len(self.defaults))}"
        if not self.width:
            work.replace(self.start, self.end, head + tail, recipe)
            return
        work.insert(self.start, head, recipe)
        for start, end, text in self.edits:
            work.replace(start, end, text, recipe)
        work.insert(self.end, tail, recipe)


def from_query(
    work: Work,
    rule: Rule,
    node: Node,
    columns: list[str],
    width: int | None,
    first: int,
    *,
    assumed: bool = False,
) -> Derived:
    """The derived form of INSERT ... SELECT, whose query starts with the token ``first``.

    ``width`` is how many columns the query has, as far as the text tells. Where that is ``assumed`` and there is no
    column list, the server must find more columns to be an error, as they were.
    """
    query: Node = node["selectStmt"]["SelectStmt"]
    if width is None:
        raise _unmirrorable("The rows come from a query whose columns cannot be told from the text.")
    if width != len(columns) or not columns:
        raise _unmirrorable("The rows come from a query with another number of columns.")
    constants = _constants(query, width)
    spread = assumed and "cols" not in node
    if spread and constants:
        raise _unmirrorable("The rows come from a query whose columns cannot be told apart.")
    end = query_end(work, node, first)
    tokens = work.tokens
    fence = "limitCount" not in query and "limitOffset" not in query
    derived = Derived(tokens.starts[first], tokens.ends[end - 1], fence, width)
    for at, column in enumerate(columns):
        _give(work, rule, derived, column, at, constants.get(at))
    if spread:
        derived.outputs = [f"{ROWS}.*"]
    return derived


def from_defaults(start: int, end: int) -> Derived:
    """The derived form of INSERT ... DEFAULT VALUES, which stands at these offsets."""
    return Derived(start, end, False, 0)


def from_rows(
    work: Work,
    rule: Rule,
    node: Node,
    columns: list[str],
    cells: list[list[tuple[int, int]]],
    start: int,
    end: int,
) -> Derived:
    """The derived form of INSERT ... VALUES; ``cells`` are the byte offsets of each row's cells."""
    query: Node = node["selectStmt"]["SelectStmt"]
    rows: list[list[Node]] = [row["List"]["items"] for row in query["valuesLists"]]
    if any(len(row) != len(columns) for row in rows):
        raise _unmirrorable("The rows of VALUES have another number of columns.")
    derived = Derived(start, end, True, len(columns))
    for at, column in enumerate(columns):
        if all("SetToDefault" in row[at] for row in rows):
            # DEFAULT cannot stand in a derived table; not naming the column means the same.
            derived.cells[column] = None
            derived.edits += [(*spans[at], "NULL") for spans in cells]
        elif len(rows) == 1:
            _give(work, rule, derived, column, at, rows[0][at] if _bare(rows[0][at]) else None)
        else:
            derived.give(column, _column(at))
            for row, spans in zip(rows, cells, strict=True):
                derived.edits += _cast(rule, column, row[at], spans[at])
    return derived


def _unmirrorable(sentence: str) -> Unmirrorable:
    return Unmirrorable(Reason.GUARD_INSERT_SELECT, sentence)


def stands_alone(query: Node) -> bool:
    """Whether VALUES is all there is: otherwise it is a query of its own, and its types are settled like one's."""
    return _QUERY_PARTS.isdisjoint(query)


def _column(at: int) -> str:
    return f"{ROWS}.{INTERNAL_PREFIX}{at + 1}"


def _alias(width: int) -> str:
    return f"{ROWS}({', '.join(f'{INTERNAL_PREFIX}{at + 1}' for at in range(width))})"


def _give(work: Work, rule: Rule, derived: Derived, column: str, at: int, constant: Node | None) -> None:
    """Give a column of the derived table, or in its place the constant that stands there."""
    if constant is None:
        derived.give(column, _column(at))
        return
    ((kind, value),) = constant.items()
    tokens = work.tokens
    first = last = tokens.at(value.get("location", 0))
    if tokens.name(first + 1) == "UESCAPE":
        last += 2
    start, end = tokens.starts[first], tokens.ends[last]
    if kind == "A_Const" and end - start > MAX_CONSTANT and column in rule.sources:
        derived.give(column, _column(at))  # written down once only
        derived.edits += _cast(rule, column, constant, (start, end))
        return
    derived.give(column, work.slice(start, end))
    derived.edits.append((start, end, "NULL"))  # what is nested would become a text


def _cast(rule: Rule, column: str, cell: Node, span: tuple[int, int]) -> list[tuple[int, int, str]]:
    """Edits that make a cell have its column's type where it stands."""
    if column not in rule.types:
        raise _unmirrorable(f"There is no column {column}.")  # the server's to report
    known = rule.column(column)  # a virtual one's value is no longer nested when its modifier counts
    if column not in rule.virtuals and not castable(known):
        raise _unmirrorable(f"Values for column {column}, of type {known.type}, cannot be cast in advance.")
    start, end = span
    if "SetToDefault" in cell:
        return [(start, end, f"CAST({default_once(known)} AS {known.type})")]
    return [(start, start, "CAST("), (end, end, f" AS {known.type})")]


def castable(column: Column) -> bool:
    """Whether a cast to the column's type without its modifier surely cuts nothing."""
    return column.type.removesuffix("[]") in CAST_TYPES


def _bare(value: Node) -> bool:
    """Whether an expression has no type of its own."""
    constant = value.get("A_Const", {})
    return "ParamRef" in value or "sval" in constant or "isnull" in constant


def _constants(query: Node, width: int) -> dict[int, Node]:
    """The expressions of a query's list that have no type of their own, by their place among its columns."""
    if "larg" in query or "valuesLists" in query or query.get("distinctClause") == [{}]:
        return {}  # these make texts of them, or what their other rows say, nested or not
    items = [item["ResTarget"] for item in query.get("targetList", ())]
    stars = [at for at, item in enumerate(items) if is_star(item["val"])]
    bare = [at for at, item in enumerate(items) if _bare(item["val"])]
    if not bare:
        return {}
    spread = width - len(items)
    if (spread and not stars) or (stars and any(stars[0] < at < stars[-1] for at in bare)):
        raise _unmirrorable("The rows come from a query whose columns cannot be told apart.")
    places = {at: at if not stars or at < stars[0] else at + spread for at in bare}
    settled: set[int | str] = set(_references(query, ("sortClause", "distinctClause")))
    grouped: set[int | str] = set(_references(query, ("groupClause",)))
    if any(items[at].get("name") in grouped for at in bare):
        raise _unmirrorable("The rows come from a query that is grouped by what may be a constant.")
    settled |= {value for value in grouped if isinstance(value, int)}
    # To be sorted or grouped by, a constant becomes a text, nested or not.
    return {
        place: items[at]["val"]
        for at, place in places.items()
        if place + 1 not in settled and items[at].get("name") not in settled
    }


def _references(query: Node, parts: tuple[str, ...]) -> Iterator[int | str]:
    """The positions and names by which a query sorts or groups."""
    pending: list[Node] = [item for part in parts for item in query.get(part, ())]
    while pending:
        item = pending.pop()
        if "SortBy" in item:
            pending.append(item["SortBy"]["node"])
        elif "GroupingSet" in item:
            pending += item["GroupingSet"].get("content", ())
        elif "A_Const" in item:
            yield item["A_Const"].get("ival", {}).get("ival", 0)
        elif "ColumnRef" in item and len(item["ColumnRef"]["fields"]) == 1:
            yield item["ColumnRef"]["fields"][0].get("String", {}).get("sval", "")


def query_end(work: Work, node: Node, first: int) -> int:
    """The index one past the last token of an INSERT's query that starts at ``first``."""
    tokens = work.tokens
    if "onConflictClause" in node:
        return tokens.at(node["onConflictClause"].get("location", 0))
    depth = 0
    for at in range(first, len(tokens.names)):
        name = tokens.names[at]
        if name in OPEN:
            depth += 1
        elif name in CLOSE:
            depth -= 1
            if depth < 0:
                return at
        elif depth == 0 and (
            name == SEMICOLON
            or (name == "RETURNING" and "returningClause" in node and tokens.name(at - 1) not in (DOT, "AS"))
        ):
            return at
    return len(tokens.names)
