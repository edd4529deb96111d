"""Which table a column reference means, as far as the text can tell, and the edits that follow from it.

Columns of a version's tables are known; those of other relations are not. Where an unqualified name could
belong to a relation that is not known *and* the answer matters, the statement is refused rather than guessed
at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from proxy.rewrite.figure import field_names
from proxy.rewrite.model import Virtual
from proxy.rewrite.reasons import Reason
from proxy.rewrite.rules import SYSTEM_COLUMNS, Rule
from proxy.rewrite.work import Refused, Work
from proxy.sql.parse import Node
from proxy.sql.quote import ident
from proxy.sql.tokens import DOT, LBRACKET, LPAREN, RPAREN


class Role(Enum):
    """How a relation stands in a statement."""

    FROM = "from"
    TARGET = "target"
    EXCLUDED = "excluded"


@dataclass(eq=False, slots=True)
class Source:
    """One relation that column references can mean."""

    name: str | None
    """The name that qualifies its columns."""
    rule: Rule | None = None
    columns: tuple[str, ...] | None = None
    """The names its columns have for the client; None where not known."""
    role: Role = Role.FROM
    node: Node = field(default_factory=dict)
    """The RangeVar, where it is a table of the routing state."""
    schema: str | None = None
    """The schema that may stand before ``name`` (unaliased tables only)."""
    base: bool = False
    """Whether it is a table or view (and so may have system columns)."""
    sample: Node | None = None
    """The TABLESAMPLE clause around it."""
    aliases: frozenset[str] = frozenset()
    """Other qualifiers: ``old`` and ``new`` in RETURNING."""
    grouped: bool = False
    """Whether its SELECT has a GROUP BY."""
    derive: bool = False
    """To be replaced by a derived table with the version's columns."""
    system: list[str] = field(default_factory=list)
    """System columns that the statement uses of it."""
    used: set[str] = field(default_factory=set)
    """Columns referenced by the parts of a SELECT that GROUP BY restricts."""
    bare: bool = False
    """Whether translated references must stay unqualified (ON CONFLICT's index expressions)."""
    schema_qualified: list[tuple[int, int]] = field(default_factory=list)
    """(location, number of parts) of references with a schema."""
    raws: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, physical column) of references that may be to what stands behind a virtual column."""
    around: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, text) of edits that must go with those."""
    rows: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, text) of references to whole rows, with what they must become if it has hidden columns."""
    spelled: bool = False
    """Whether they must become that anyway: the SELECT groups by its columns, not by the row."""
    exact: bool = False
    """Whether its columns must be exactly the version's, because stars that stand for them cannot be spelled out."""
    restricted: bool = False
    """Whether GROUP BY restricts what may be referred to from here on."""
    merged: set[str | None] = field(default_factory=set)
    """Names that stand for a join's column when they are not qualified; with None among them, any name may."""

    @property
    def translated_target(self) -> bool:
        """Whether references to it must be turned into physical names (a target cannot be a derived table)."""
        return self.role is not Role.FROM and self.rule is not None and self.rule.translated

    @property
    def derived(self) -> bool:
        """Whether it becomes a derived table."""
        return self.role is Role.FROM and self.rule is not None and (self.derive or self.rule.translated)


class Scope:
    """The relations and common table expressions that one level of a statement sees; levels nest."""

    __slots__ = ("ctes", "parent", "sources")

    def __init__(self, parent: Scope | None = None) -> None:
        self.parent = parent
        self.sources: list[Source] = []
        self.ctes: dict[str, tuple[str, ...] | None] = {}

    def levels(self) -> Iterator[Scope]:
        """This level, then those around it."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def has_cte(self, name: str) -> bool:
        """Whether an unqualified relation name means a common table expression."""
        return any(name in level.ctes for level in self.levels())

    def cte_columns(self, name: str) -> tuple[str, ...] | None:
        """The column names of a common table expression, where known."""
        for level in self.levels():
            if name in level.ctes:
                return level.ctes[name]
        return None

    def qualified(self, qualifier: str) -> Source | None:
        """The relation that a qualifier means."""
        for level in self.levels():
            for source in level.sources:
                if source.name == qualifier:
                    return source
            for source in level.sources:
                if qualifier in source.aliases:
                    return source
        return None


def column_ref(work: Work, node: Node, scope: Scope) -> None:
    """Handle one column reference that is not an item ``*`` or ``t.*`` of a select list."""
    reference(work, node, scope, compared=False)


def reference(work: Work, node: Node, scope: Scope, *, compared: bool) -> Virtual | None:
    """Handle one column reference; ``compared`` says that only the order and the equality of its values count.

    Gives the virtual column whose place its raw column may then have taken.
    """
    parts = field_names(node["fields"])
    location = node.get("location", 0)
    if len(parts) == 1:
        return None if parts[0] is None else _unqualified(work, parts[0], location, scope, compared)
    qualifier = parts[-2]
    source = scope.qualified(qualifier) if qualifier is not None else None
    if source is None or source.rule is None:
        return None
    if len(parts) > 2:
        if not _schema_fits(source, parts[:-2]):
            return None
        strip_for_twin(work, source, location, len(parts))
    if parts[-1] is None:
        whole_row(work, source, location, len(parts))
        return None
    return _column_of(work, source, parts[-1], location, len(parts), compared)


def indirection(work: Work, node: Node, scope: Scope) -> None:
    """``(t).column``: names a column of a whole row; other shapes are walked as usual."""
    argument = node["arg"].get("ColumnRef")
    selected = node["indirection"][0].get("String")
    if argument is not None and selected is not None and len(argument["fields"]) == 1:
        parts = field_names(argument["fields"])
        source = scope.qualified(parts[0]) if parts[0] is not None else None
        if source is not None and source.rule is not None and not has_column(scope, source.name):
            if not source.derived and not source.rule.translated:
                return  # the version's names are the physical ones
            if source.role is not Role.FROM:
                raise Refused(
                    Reason.REFUSED_CONSTRUCT,
                    f"a field of a whole row of {source.rule.model.qualified} cannot be translated",
                    hint=f"Write {source.name}.{selected.get('sval', '')} without the parentheses.",
                )
            if _without_parentheses(work, argument["location"]):
                source.used.add(selected.get("sval", ""))
                work.visit(node["indirection"], scope)
                return
    work.visit(node["arg"], scope)
    work.visit(node["indirection"], scope)


def _without_parentheses(work: Work, location: int) -> bool:
    """Turn ``(t).column`` into ``t.column``, which does not need the whole row."""
    tokens = work.tokens
    at = tokens.at(location)
    if tokens.name(at - 1) != LPAREN or tokens.name(at + 1) != RPAREN or tokens.name(at + 2) != DOT:
        return False
    work.replace(tokens.starts[at - 1], tokens.ends[at - 1], "", "whole_row")
    work.replace(tokens.starts[at + 1], tokens.ends[at + 1], "", "whole_row")
    return True


def row_expr(work: Work, node: Node, scope: Scope) -> None:
    """``ROW(t.*)`` has the columns as its fields; a modified table's are spelled out."""
    for argument in node.get("args", ()):
        names = field_names(argument.get("ColumnRef", {}).get("fields", ()))
        source = scope.qualified(names[-2] or "") if len(names) == 2 and names[-1] is None else None
        if source is None or source.rule is None:
            work.visit(argument, scope)
            continue
        tokens = work.tokens
        first = tokens.at(argument["ColumnRef"].get("location", 0))
        qualifier = work.slice(tokens.starts[first], tokens.ends[first])
        start, end = tokens.starts[first], tokens.ends[first + 2]
        if source.role is Role.FROM:
            source.derive = True
            source.used.update(source.columns or ())
            source.rows.append((start, end, _listed(source, qualifier)))
            continue
        work.replace(start, end, source.rule.values(qualifier), "expand_star")
        work.reasons.append(Reason.EXPAND_STAR)


def _listed(source: Source, qualifier: str) -> str:
    return ", ".join(f"{qualifier}.{ident(name)}" for name in source.columns or ())


def whole_row(work: Work, source: Source, location: int, parts: int = 1) -> None:
    """A reference to a row as one value: it must have the version's fields only."""
    rule = source.rule
    assert rule is not None
    tokens = work.tokens
    table = tokens.at(location) + 2 * max(parts - 2, 0)
    last = tokens.dotted_end(table)
    qualifier = work.slice(tokens.starts[table], tokens.ends[table])
    if source.role is Role.FROM and (rule.translated or not source.grouped):
        source.derive = True
        source.used.update(source.columns or ())
        row = f"(SELECT {qualifier} FROM (SELECT {_listed(source, qualifier)}) AS {qualifier})"
        source.rows.append((tokens.starts[table], tokens.ends[last], row))
        if parts > 2:
            _strip_schema(work, location, parts)
        return
    work.replace(location, tokens.ends[last], rule.whole_row(qualifier), "whole_row")
    work.tell(
        Reason.EXPAND_STAR,
        f"A whole row of {rule.model.qualified} is put together from its version's columns.",
    )


def _schema_fits(source: Source, prefix: list[str | None]) -> bool:
    return source.schema is not None and prefix[-1] == source.schema


def has_column(scope: Scope, name: str | None) -> bool:
    """Whether some relation in scope has a column of that name, as far as is known."""
    return any(
        source.columns is not None and name in source.columns
        for level in scope.levels()
        for source in level.sources
    )


def _column_of(
    work: Work, source: Source, name: str, location: int, parts: int, compared: bool
) -> Virtual | None:
    rule = source.rule
    assert rule is not None
    if source.translated_target:
        return _translate(work, source, name, location, parts, compared)
    if source.role is not Role.FROM:
        return None
    source.used.add(name)
    if name in SYSTEM_COLUMNS and name not in source.system and name not in rule.by_name:
        source.system.append(name)
    if parts > 2:
        if rule.translated:
            _strip_schema(work, location, parts)
        else:
            # Only if it becomes a derived table after all: then the schema has no meaning any more.
            source.schema_qualified.append((location, parts))
    return _raw(work, source, name, location, parts) if compared else None


def _raw(work: Work, source: Source, name: str, location: int, parts: int) -> Virtual | None:
    tokens = work.tokens
    first = tokens.at(location)
    last = tokens.dotted_end(first) if parts > 1 else first
    return raw_reference(source, name, tokens.starts[first + 2 * max(parts - 2, 0)], tokens.ends[last])


def raw_reference(source: Source, name: str, start: int, end: int) -> Virtual | None:
    """Note that a reference may be replaced by one to a hidden column of the derived table."""
    virtual = None if source.rule is None or source.role is not Role.FROM else source.rule.virtual(name)
    if virtual is None or virtual.raw is None or source.restricted:
        return None
    if "colnames" in source.node.get("alias", ()):
        return None
    source.raws.append((start, end, virtual.raw))
    return virtual


def _strip_schema(work: Work, location: int, parts: int) -> None:
    tokens = work.tokens
    table = tokens.at(location) + 2 * (parts - 2)
    work.replace(location, tokens.starts[table], "", "strip_schema")


def strip_for_twin(work: Work, source: Source, location: int, parts: int) -> None:
    """Take the schema off a reference in the text over twins, where the table has its own name as an alias."""
    if source.rule is not None and source.rule.twin is not None:
        tokens = work.tokens
        table = tokens.at(location) + 2 * (parts - 2)
        work.in_twin(location, tokens.starts[table], "", "strip_schema")


def strip_schemas(work: Work, source: Source) -> None:
    """Take the schema off all references to a source that becomes a derived table."""
    for location, parts in source.schema_qualified:
        _strip_schema(work, location, parts)


def _translate(
    work: Work, source: Source, name: str, location: int, parts: int, compared: bool
) -> Virtual | None:
    """Turn a reference to a column of a modified table into its physical name, or into what computes it."""
    rule = source.rule
    assert rule is not None
    key = rule.by_name.get(name)
    if key is None and name in rule.hidden:
        raise undefined_column(source, f"{source.name}.{name}" if parts > 1 else f'"{name}"', location)
    virtual = rule.virtuals.get(key or "")
    tokens = work.tokens
    first = tokens.at(location)
    last = tokens.dotted_end(first) if parts > 1 else first
    if virtual is not None:
        return _compute(work, source, virtual, first, last, compared)
    if parts > 2 and rule.relation is not None:
        _strip_schema(work, location, parts)
    if key is None or key == name:
        return None  # a system column, or an error that is the server's to report
    text = ident(key)
    if parts == 1 and source.name is not None and not source.bare:
        text = f"{ident(source.name)}.{text}"
    work.replace(tokens.starts[last], tokens.ends[last], text, "translate")
    work.reasons.append(Reason.TRANSLATED)
    return None


def _compute(
    work: Work, source: Source, virtual: Virtual, first: int, last: int, compared: bool
) -> Virtual | None:
    """Replace a reference to a virtual column of a modified table; ``first`` and ``last`` are its tokens."""
    rule, tokens = source.rule, work.tokens
    assert rule is not None
    qualifier = "" if source.bare else ident(source.name or "")
    if last > first:
        qualifier = work.slice(tokens.starts[last - 2], tokens.ends[last - 2])
    raw = virtual.raw if compared or source.bare else None
    if raw is not None:
        text = f"{qualifier}.{ident(raw)}" if qualifier else ident(raw)
    elif source.bare:
        raise no_arbiter(source, virtual)
    else:
        text = rule.read(virtual.column.name, qualifier)
        if tokens.name(last + 1) == LBRACKET:
            text = f"({text})"
    work.replace(tokens.starts[first], tokens.ends[last], text, "virtual_read")
    work.tell(
        Reason.VIRTUAL_READ,
        f"Columns of {rule.model.qualified} that only this version has are computed where they are used.",
    )
    return None if raw is None else virtual


def no_arbiter(source: Source, virtual: Virtual) -> Refused:
    """ON CONFLICT names a column that no index of the table has."""
    assert source.rule is not None
    names = [c.name for c in source.rule.columns if c.column == virtual.column.name]
    return Refused(
        Reason.REFUSED_CONSTRUCT,
        f'ON CONFLICT cannot be decided by column "{names[0]}" of {source.rule.model.qualified}: '
        "the table holds it in another form",
        hint="Name columns that have not changed, or none.",
    )


def undefined_column(source: Source, name: str, location: int) -> Refused:
    """The error that PostgreSQL would give for a column that the version does not have; the name as it prints it."""
    assert source.rule is not None
    return Refused(
        Reason.REFUSED_UNDEFINED_COLUMN,
        f"column {name} does not exist",
        sqlstate="42703",
        location=location,
        hint=f"The version of {source.rule.model.qualified} that this client speaks has the columns "
        f"{', '.join(source.rule.names)}.",
    )


def _unqualified(work: Work, name: str, location: int, scope: Scope, compared: bool) -> Virtual | None:
    uncertain = False
    hidden: Source | None = None
    for level in scope.levels():
        unknown = False
        for source in level.sources:
            if source.role is Role.EXCLUDED:
                continue
            if source.columns is None:
                unknown = True
            elif name in source.columns:
                if not source.translated_target:
                    source.used.add(name)
                    if (
                        not compared
                        or uncertain
                        or source.rule is None
                        or not source.merged.isdisjoint((name, None))
                    ):
                        return None
                    return _raw(work, source, name, location, 1)
                rule = source.rule
                if uncertain and rule is not None and (rule.by_name[name] != name or rule.virtual(name)):
                    raise _ambiguous(name)
                return _translate(work, source, name, location, 1, compared)
            if source.translated_target and source.rule is not None and name in source.rule.hidden:
                hidden = source
        uncertain = uncertain or unknown
        if name in SYSTEM_COLUMNS:
            bases = [source for source in level.sources if source.base]
            if len(bases) == 1 and bases[0].rule is not None and bases[0].role is Role.FROM:
                if name not in bases[0].system:
                    bases[0].system.append(name)
                return None
    if hidden is not None:
        if not uncertain:
            raise undefined_column(hidden, f'"{name}"', location)
        raise _ambiguous(name)
    row = scope.qualified(name)
    if row is not None and row.rule is not None and row.role is not Role.EXCLUDED:
        whole_row(work, row, location)
    return None


def _ambiguous(name: str) -> Refused:
    return Refused(
        Reason.REFUSED_AMBIGUOUS,
        f'column reference "{name}" cannot be resolved while a migration is in progress',
        hint="Qualify the column with its table's name or alias.",
    )
