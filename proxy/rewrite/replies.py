"""What a server's error says, in the words of the client's version.

Two pure steps, each from the fields of an error to those that change. :func:`located` undoes the edits of a rewritten
text: the position, and a name that the message took from an edit. A :class:`Translator` then turns names of the
physical tables into the version's: in the fields that hold one name by themselves (``FIELDS``), and inside the texts
where PostgreSQL is known to print one (``PRINTED``, by SQLSTATE). dualwire's own names are unmistakable and turned
wherever they stand; a column's physical name only where the error names its table.

``q`` and ``p``, the text of an internal query and the position in it, belong to a function's code and stay.

Limits, all of them towards what the server said: DETAIL shows a failing row in the order of the version if its values
can be told apart, the values of columns that only dualwire knows being taken for free of commas, else as it was; a
message in another language than English keeps the physical name of a renamed column where no field of the error
repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from proxy.rewrite.model import NOT_NULL_CHECK, Side, TableModel
from proxy.rewrite.plan import Plan
from proxy.rewrite.rules import INTERNAL_PREFIX
from proxy.sql.quote import ident
from proxy.sql.splice import characters, original_position

Fields = dict[str, str]

SCHEMA, TABLE, COLUMN, CONSTRAINT = "s", "t", "c", "n"
MESSAGE, DETAIL, HINT, WHERE, CODE, POSITION, ROUTINE = "M", "D", "H", "W", "C", "P", "R"
TEXTS = (MESSAGE, DETAIL, HINT, WHERE)
UNIQUE, FOREIGN_KEY, NOT_NULL, CHECK, EXCLUSION = "23505", "23503", "23502", "23514", "23P01"
UNDEFINED_COLUMN = "42703"
MAX_NAME = 63
MAX_CELLS = 20_000
"""Columns times commas of a failing row that is taken apart."""

_FAILING_ROW = re.compile(r"(.*? )?\((.*)\)(\.|。)?", re.DOTALL)
_QUOTED = re.compile(r"[\"«„“‚‘’「『]\s?(.+?)\s?[\"»“”‘’」』]")
_SUGGESTED = re.compile(r'"((?:[^".]|"")+)\.((?:[^".]|"")+)"')
_COPY = re.compile(r"^(COPY )(.+?)(, \S+ \d+)(, \S+ )?(.*)$", re.DOTALL)
_OURS = re.compile(r"\bdualwire\.\w+")
_NAME = re.compile(r'(?:(?:"(?:[^"]|"")+"|[\w$]+)\s*\.\s*)*(?:"((?:[^"]|"")+)"|([\w$]+))')
_SIMPLE = re.compile(r"[a-z_][a-z0-9_$]*\Z")

ANY = re.compile("")
ONE_WORD = re.compile(r"[^ ,]*\Z")
VALUES = {
    "smallint": re.compile(r"-?\d+\Z"),
    "integer": re.compile(r"-?\d+\Z"),
    "bigint": re.compile(r"-?\d+\Z"),
    "oid": re.compile(r"\d+\Z"),
    "boolean": re.compile(r"[tf]\Z"),
    "numeric": re.compile(r"(-?[\d.]+(\.\.\.)?|NaN|-?Infinity)\Z"),
    "real": ONE_WORD,
    "double precision": ONE_WORD,
    "uuid": re.compile(r"[0-9a-f-]{36}\Z"),
    "date": re.compile(r"[^,]*\Z"),
    "timestamp without time zone": re.compile(r"[^,]*\Z"),
    "timestamp with time zone": re.compile(r"[^,]*\Z"),
    "bytea": ONE_WORD,
}
"""How values of a type look in a failing row; those of other types may hold anything."""


def located(plan: Plan, original: bytes, fields: Fields) -> Mapping[str, str]:
    """What the error of a rewritten text says of the client's text."""
    position = fields.get(POSITION, "")
    if not position.isdecimal():
        return {}
    changes = {POSITION: str(original_position(original, plan.edits, int(position)))}
    wanted, begin, kept = int(position) - 1, 0, 0
    for edit in plan.edits:
        begin += characters(original[kept : edit.start])
        if begin > wanted:
            break
        length = characters(edit.text)
        if wanted < begin + length:
            # The message may quote the name that was put in place of the client's.
            ours, theirs = _bare(edit.text), _bare(original[edit.start : edit.end])
            if ours and theirs and ours != theirs:
                changes[MESSAGE] = _swapped(fields.get(MESSAGE, ""), ours, theirs)
            break
        begin += length
        kept = edit.end
    return changes


def _bare(text: bytes) -> str:
    """The last part of a name as messages print it, unquoted and folded; nothing for what is no name."""
    match = _NAME.fullmatch(text.decode("utf-8", "surrogateescape").strip())
    if match is None:
        return ""
    return match[2].lower() if match[1] is None else match[1].replace('""', '"')


def _swapped(text: str, ours: str, theirs: str) -> str:
    return re.sub(rf"(?<![\w$]){re.escape(ours)}(?![\w$])", lambda _: theirs, text, count=1)


class Translator:
    """The errors of all tables that differ, as one version's clients are to read them."""

    def __init__(self, tables: Sequence[TableModel], side: Side) -> None:
        self._tables = [_Table(model, side) for model in tables]
        self._relations = {relation: table for table in self._tables for relation in table.relations}
        ours: dict[str, str] = {}
        for table in self._tables:
            for sent, meant in chain(table.labels.items(), table.columns.items(), table.renamed):
                if sent.startswith(INTERNAL_PREFIX):
                    ours.setdefault(sent, meant)
        self._ours = ours
        self._our_names = _any_of(ours) if ours else None

    def error(self, fields: Fields, named: tuple[str, ...] = ()) -> Mapping[str, str | None]:
        """The fields that change; ``named`` are the tables of the plans that may have failed, ``schema.name``."""
        told: dict[str, str | None] = {}
        said = dict(fields)
        own = said.get(ROUTINE) == "exec_stmt_raise" and _OURS.search(said.get(WHERE, "").partition("\n")[0])
        table = self._table(said)
        if own:
            pass  # raised by the guard, in the words of the version
        elif table is not None:
            table.translate(said, told)
            said.update({key: value for key, value in told.items() if value is not None})
        else:
            candidates = [one for one in self._tables if one.qualified in named]
            _translate_unnamed(candidates, said, told)
            said.update({key: value for key, value in told.items() if value is not None})
        if said.get(CODE) == FOREIGN_KEY and DETAIL in said:
            _foreign_key(self._tables, said, told)
        if WHERE in said:
            self._context(said[WHERE], said, told)
        for key in (*TEXTS, COLUMN, CONSTRAINT):
            text = told.get(key, fields.get(key))
            if text and INTERNAL_PREFIX in text and self._our_names is not None:
                told[key] = self._our_names.sub(lambda match: self._ours[match.group()], text)
        return told

    def _table(self, said: Fields) -> _Table | None:
        return self._relations.get((said.get(SCHEMA, ""), said.get(TABLE, "")))

    def _context(self, context: str, said: Fields, told: dict[str, str | None]) -> None:
        """Lines of the guard's own functions go; COPY lines name the client's table and column."""
        lines = context.split("\n")
        ours = [
            at for at, line in enumerate(lines) if _OURS.search(line) and '"' not in line.partition("(")[0]
        ]
        if ours:
            lines = lines[ours[-1] + 1 :]
        for at, line in enumerate(lines):
            match = _COPY.match(line)
            table = self._copied(match[2], said) if match else None
            if match is None or table is None:
                continue
            rest = table.in_copy(match[5]) if match[4] else match[5]
            lines[at] = f"{match[1]}{table.model.name}{match[3]}{match[4] or ''}{rest}"
        text = "\n".join(lines)
        if text != context:
            told[WHERE] = text or None

    def _copied(self, name: str, said: Fields) -> _Table | None:
        found = {id(table): table for (_, known), table in self._relations.items() if known == name}
        return next(iter(found.values())) if len(found) == 1 else self._table(said)


def _ours_last(lines: list[str]) -> int:
    """How many lines of a context stand for the guard and what it called; the outermost call is the last."""
    return max(
        (at + 1 for at, line in enumerate(lines) if _OURS.search(line) and '"' not in line.partition("(")[0]),
        default=0,
    )


def _any_of(names: Mapping[str, str]) -> re.Pattern[str]:
    listed = sorted(names, key=len, reverse=True)
    return re.compile(r"(?<![\w$])(?:" + "|".join(map(re.escape, listed)) + r")(?![\w$])")


class _Table:
    """One table and what its physical names are called in a version."""

    def __init__(self, model: TableModel, side: Side) -> None:
        self.model = model
        self.qualified = model.qualified
        self.relations = [
            (model.schema, model.name),
            *filter(None, (model.relation, model.twin_old, model.twin_new, model.copy_old, model.copy_new)),
        ]
        logical = model.logical(side)
        self.names = [column.name for column in logical]
        equal = {virtual.column.name: virtual.raw for virtual in model.virtuals if virtual.raw is not None}
        self.physical = [equal.get(column.column, column.column) for column in logical]
        self.columns = _columns(model, side)
        self.renamed = [(sent, meant) for sent, meant in self.columns.items() if sent != meant]
        self.labels = dict(model.labels)
        self._patterns = {
            sent: re.compile(rf"(?<![\w$]){re.escape(sent)}(?![\w$])") for sent, _ in self.renamed
        }

    def translate(self, said: Fields, told: dict[str, str | None]) -> None:
        """The fields of an error that names this table."""
        if (said[SCHEMA], said[TABLE]) != (self.model.schema, self.model.name):
            told[SCHEMA], told[TABLE] = self.model.schema, self.model.name
            if MESSAGE in said:
                told[MESSAGE] = said[MESSAGE] = said[MESSAGE].replace(
                    f'"{said[TABLE]}"', f'"{self.model.name}"', 1
                )
        column = said.get(COLUMN)
        if column is not None and self.columns.get(column, column) != column:
            told[COLUMN] = self.columns[column]
            told[MESSAGE] = _quoted(said.get(MESSAGE, ""), column, self.columns[column])
        label = self.labels.get(said.get(CONSTRAINT, ""))
        if label is not None:
            told[CONSTRAINT] = label
            told[MESSAGE] = _quoted(said.get(MESSAGE, ""), said[CONSTRAINT], label)
            self._as_not_null(said, told)
        change = PRINTED.get(said.get(CODE, ""))
        if change is not None and DETAIL in said:
            detail = change(self, said[DETAIL])
            if detail != said[DETAIL]:
                told[DETAIL] = detail

    def _as_not_null(self, said: Fields, told: dict[str, str | None]) -> None:
        """A check that stands in for NOT NULL until the swap fails as NOT NULL does."""
        name = said.get(CONSTRAINT, "")
        if said.get(CODE) != CHECK or not name.startswith(NOT_NULL_CHECK):
            return
        for column in self.names:
            if (NOT_NULL_CHECK + column).encode()[:MAX_NAME].decode("utf-8", "ignore") == name:
                told.update({CODE: NOT_NULL, COLUMN: column, CONSTRAINT: None})
                told[MESSAGE] = (
                    f'null value in column "{column}" of relation "{self.model.name}" violates not-null constraint'
                )

    def row(self, detail: str) -> str:
        """``Failing row contains (...)`` with the version's columns in its order."""
        match = _FAILING_ROW.fullmatch(detail)
        columns = [column.name for column in self.model.columns]
        if match is None or self.physical == columns:
            return detail
        named, parting, given = match[2].partition(") = (")
        shown = named.split(", ")
        if parting and set(shown) <= set(columns) and len(shown) == given.count(", ") + 1:
            # To a role that may not read all columns, only those it may are shown, with their names.
            values = dict(zip(shown, given.split(", "), strict=True))
            return f"{match[1] or ''}({self._part(values)}){match[3] or ''}"
        parts, types = match[2].split(", "), [column.type for column in self.model.columns]
        parted = _parted(parts, [VALUES.get(known) for known in types])
        if parted is None:
            ours = [name.startswith(INTERNAL_PREFIX) or name not in self.physical for name in columns]
            parted = _parted(
                parts,
                [VALUES.get(known, ANY if our else None) for known, our in zip(types, ours, strict=True)],
            )
        if parted is None:
            return detail
        values = dict(zip(columns, parted, strict=True))
        if not values.keys() >= set(self.physical):
            # The version has columns that the table has not: it is shown those that are there.
            return f"{match[1] or ''}({self._part(values)}){match[3] or ''}"
        return f"{match[1] or ''}({', '.join(values[name] for name in self.physical)}){match[3] or ''}"

    def _part(self, values: Mapping[str, str]) -> str:
        """Those columns of the version of which there are values, as PostgreSQL shows a part of a row."""
        pairs = [(name, values[c]) for name, c in zip(self.names, self.physical, strict=True) if c in values]
        return ") = (".join((", ".join(name for name, _ in pairs), ", ".join(value for _, value in pairs)))

    def key(self, detail: str) -> str:
        """``Key (a, b)=(1, 2) ...`` with the version's names."""
        begin, end = detail.find("("), detail.find(")=(")
        if not 0 <= begin < end:
            return detail
        columns = detail[begin + 1 : end]
        # An exclusion constraint's says them twice.
        return detail.replace(f"({columns})=(", f"({self.expression(columns)})=(", 2)

    def expression(self, text: str) -> str:
        """Columns in a piece of SQL as the server prints it."""
        changes = {sent: meant for sent, meant in self.renamed if self._patterns[sent].search(text)}
        if not changes:
            return text
        listed = sorted(changes, key=len, reverse=True)
        # All at once: a version may have two columns' names exchanged.
        any_name = re.compile(
            "|".join(rf'{re.escape(ident(sent))}|(?<![\w$"]){re.escape(sent)}(?![\w$"])' for sent in listed)
        )
        return any_name.sub(
            lambda match: _printed(changes[match.group().strip('"').replace('""', '"')]), text
        )

    def in_copy(self, text: str) -> str:
        """``status: "x"``, the end of a COPY line."""
        name, colon, rest = text.partition(":")
        return f"{self.columns.get(name, name)}{colon}{rest}"


def _columns(model: TableModel, side: Side) -> dict[str, str]:
    """What each physical column is called: by the version, or for want of it by what it is computed from."""
    names: dict[str, str] = {}
    other: Side = "new" if side == "old" else "old"
    for column in model.logical(other):
        names[column.column] = column.name
    own = {column.column: column.name for column in model.logical(side)}
    for virtual in model.virtuals:
        if virtual.raw is not None and virtual.column.name in own:
            names[virtual.raw] = own[virtual.column.name]
    for mirror in model.direction(side).mirrors:
        if len(mirror.sources) == 1 and mirror.sources[0] in own:
            names[mirror.target] = own[mirror.sources[0]]
    return {**names, **own}


def _parted(parts: list[str], types: list[re.Pattern[str] | None]) -> list[str] | None:
    """The values of a row, if there is one way only in which what the commas part can make them.

    ``types`` say how a column's value looks, None where it may have commas in it.
    """
    if len(parts) == len(types):
        return parts
    if len(parts) < len(types) or len(parts) * len(types) > MAX_CELLS:
        return None
    # ways[n][b]: in how many ways the parts from b on make the columns from n on (2: in more than one).
    ways = [[0] * (len(parts) + 1) for _ in range(len(types) + 1)]
    ways[-1][len(parts)] = 1
    for at in range(len(types) - 1, -1, -1):
        pattern, after = types[at], ways[at + 1]
        rest = after[len(parts)]
        for begin in range(len(parts) - 1, -1, -1):
            if pattern is None:
                ways[at][begin] = min(2, rest)
                rest += after[begin]
            elif parts[begin] == "null" or pattern.match(parts[begin]) is not None:
                ways[at][begin] = after[begin + 1]
    if ways[0][0] != 1:
        return None
    values, begin = [], 0
    for at in range(len(types)):
        end = begin + 1
        while not ways[at + 1][end]:
            end += 1
        values.append(", ".join(parts[begin:end]))
        begin = end
    return values


def _quoted(text: str, sent: str, meant: str) -> str:
    """The first mention of a name between quotation marks, of whatever language, replaced."""
    pattern = rf"(?<=[\"«»„“”‚‘’「『])(\s?){re.escape(sent)}(?=\s?[\"«»“”‘’」』])"
    return re.sub(pattern, lambda match: match[1] + meant, text, count=1)


def _printed(name: str) -> str:
    return name if _SIMPLE.match(name) else ident(name)


def _translate_unnamed(tables: list[_Table], said: Fields, told: dict[str, str | None]) -> None:
    """An error that names no table, of a statement on these."""
    if not tables:
        return
    code = said.get(CODE, "")
    if code == UNDEFINED_COLUMN and HINT in said:
        _suggestions(tables, said, told)
    if code in NAMES_COLUMN:
        for key in (MESSAGE, DETAIL):
            text = said.get(key, "")
            changed = re.sub(
                r'((?:[Cc]olumn|[Cc]olumn reference) )"((?:[^"]|"")+)"',
                lambda match: f'{match[1]}"{_one_name(tables, match[2])}"',
                text,
            )
            if changed != text:
                told[key] = changed


def _one_name(tables: list[_Table], column: str) -> str:
    """The version's name for what can only be a physical one."""
    if any(column in table.names for table in tables):
        return column
    names = {table.columns[column] for table in tables if column in table.columns}
    return names.pop() if len(names) == 1 else column


def _suggestions(tables: list[_Table], said: Fields, told: dict[str, str | None]) -> None:
    """``Perhaps you meant to reference the column "orders.status".``: a column that the version has, or nothing."""
    hint, hidden = said[HINT], False

    def meant(match: re.Match[str]) -> str:
        nonlocal hidden
        name, column = match[1], match[2]
        named = [table for table in tables if table.model.name == name] or tables
        if len(named) != 1 or column in named[0].names:
            return match.group()
        table = named[0]
        if table.columns.get(column) in table.names:
            return f'"{name}.{table.columns[column]}"'
        hidden = hidden or column in table.columns or column.startswith(INTERNAL_PREFIX)
        return match.group()

    text = _SUGGESTED.sub(meant, hint)
    if hidden:
        told[HINT] = None
    elif text != hint:
        told[HINT] = text


def _foreign_key(tables: list[_Table], said: Fields, told: dict[str, str | None]) -> None:
    """The key is that of the table which the message names first; the error's own table is the referencing one."""
    first = _QUOTED.search(said.get(MESSAGE, ""))
    for table in tables:
        if first is not None and first[1] == table.model.name:
            detail = table.key(said[DETAIL])
            if detail != said[DETAIL]:
                told[DETAIL] = detail
            return


NAMES_COLUMN = frozenset({"42701", "42804", "428C9", "42601"})
"""Errors whose message names a column that is written, and no table: no data is quoted in them."""

PRINTED: Mapping[str, Callable[[_Table, str], str]] = {
    NOT_NULL: _Table.row,
    CHECK: _Table.row,
    UNIQUE: _Table.key,
    EXCLUSION: _Table.key,
}
"""What DETAIL shows of an error's table."""
