"""Plans for texts that differ from a planned one in their literals only, without parsing them.

A template says how a plan follows from a text's literals. It is never guessed at. Which literals may vary, the tree
says: constants in places where no value can decide anything (``_SAFE``); positions in ORDER BY, type modifiers,
options, names and the like are *pinned*, and belong to the key. What becomes of the others, the planner itself says: it
plans the text with a mark in the place of each, as long as any that the template will take, and where the marks come
out is where literals go. Planning decides by no more of a constant than how long its text is, and by comparing that
with bounds; so a template is kept only if it also gives exactly what the planner gives for the shortest literals, and
for those of the text in hand.

Contract: ``Template.plan(split(text))`` equals ``Planner.plan(text)`` in every field, or there is no template.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import accumulate
from typing import Any, final

from proxy.rewrite.plan import Plan
from proxy.sql.functions import SESSION_STATE, plain_name
from proxy.sql.literals import BIGINT, COMMENT, INTEGER, NUMERIC, STRING, Split
from proxy.sql.parse import Node, parse
from proxy.sql.splice import Edit

MAX_LITERAL = 8192
"""Bytes of a literal that a template takes: as many as may be written twice (``proxy.sql.repeatable``)."""
MAX_MARKED = 1 << 17
"""Bytes of the text with marks, which is planned once for each template."""
MAX_LITERALS = 5_000
_LENGTHS = (32, 128, 512, 2048, MAX_LITERAL)
"""Templates take literals up to one of these lengths, so that few are needed for one shape."""

_STATEMENTS = frozenset({"DeleteStmt", "InsertStmt", "MergeStmt", "SelectStmt", "UpdateStmt"})
_SAFE = frozenset(
    {
        ("A_ArrayExpr", "elements"), ("A_Expr", "lexpr"), ("A_Expr", "rexpr"), ("BoolExpr", "args"),
        ("BooleanTest", "arg"), ("CaseExpr", "arg"), ("CaseExpr", "defresult"), ("CaseWhen", "expr"),
        ("CaseWhen", "result"), ("CoalesceExpr", "args"), ("CollateClause", "arg"), ("FuncCall", "args"),
        ("MergeWhenClause", "values"), ("MinMaxExpr", "args"), ("NullTest", "arg"),
        ("ResTarget", "val"), ("RowExpr", "args"), ("SelectStmt", "limitCount"), ("SelectStmt", "limitOffset"),
        ("SelectStmt", "valuesLists"), ("SubLink", "testexpr"), ("TypeCast", "arg"),
    }
)  # fmt: skip
"""(node, field) in which a constant's value means nothing to planning; those within lists are meant too."""
_NAMING = SESSION_STATE | {
    "currval", "nextval", "setval", "pg_get_serial_sequence", "to_regclass", "to_regtype", "current_setting",
}  # fmt: skip
"""Functions to which a constant may be a name, or decide what becomes of a session."""

_EMPTY = {STRING: b"''", COMMENT: b"/**/", INTEGER: b"1", BIGINT: b"3000000000", NUMERIC: b"0.5"}
_LONGEST = {INTEGER: 10, BIGINT: 19}
_MARK = re.compile(
    rb"'dw~(\d{5})~x*'|/\*dw~(\d{5})~x*\*/|19\d{3}(\d{5})|80{13}(\d{5})|70{8,}(\d{5})\.5", re.ASCII
)


def _mark(number: int, kind: int, length: int) -> bytes:
    """A literal that stands nowhere else, ``length`` bytes long."""
    if kind == INTEGER:
        return b"19000%05d" % number
    if kind == BIGINT:
        return b"80000000000000%05d" % number
    if kind == NUMERIC:
        return b"7%s%05d.5" % (b"0" * (length - 8), number)
    body = b"dw~%05d~" % number
    if kind == STRING:
        return b"'%s'" % body.ljust(length - 2, b"x")
    return b"/*%s*/" % body.ljust(length - 4, b"x")


class Unfit(Exception):
    """No template can be made of a text."""


@final
class Form:
    """A text with holes for literals."""

    __slots__ = ("_fixed", "_holes", "text")

    def __init__(self, marked: bytes, marks: dict[int, bytes]) -> None:
        parts: list[bytes] = []
        holes: list[int] = []
        at = 0
        for match in _MARK.finditer(marked):
            number = int(match[match.lastindex or 0])
            if marks.get(number) != match.group():
                continue
            parts.append(marked[at : match.start()].replace(b"%", b"%%"))
            holes.append(number)
            at = match.end()
        parts.append(marked[at:].replace(b"%", b"%%"))
        self._fixed = b"%b".join(parts)
        if b"dw~" in self._fixed:
            raise Unfit("a literal comes out as something else")
        self._holes = tuple(holes)
        self.text = None if holes else marked
        """The text itself where it has no holes."""

    def fill(self, literals: tuple[bytes, ...]) -> bytes:
        if self.text is not None:
            return self.text
        return self._fixed % tuple([literals[at] for at in self._holes])


Place = tuple[int, int]
"""An offset less the literals before it, and how many those are."""
EditForm = tuple[Place, Place, Form, str]


@final
class Template:
    """Plans for all texts of one shape whose pinned literals are the same, and none of whose literals is too long."""

    __slots__ = ("_lengths", "_values", "_varying", "size")

    def __init__(self, marked: Plan, text: bytes, parts: Split, marks: dict[int, bytes]) -> None:
        """``marked`` is the plan of ``text``, of which ``parts`` are the pieces; the literals in ``marks`` vary."""
        self._lengths = tuple(map(len, parts.literals))
        self._values, self._varying = _fields(marked, text, parts, marks)
        self.size = 2 * len(text) + sum(len(form._fixed) for form in _forms(self._varying))

    @property
    def example(self) -> Plan:
        """A plan that has marks for literals."""
        return Plan(*self._values)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How long each literal may be."""
        return self._lengths

    def takes(self, literals: tuple[bytes, ...]) -> bool:
        """Whether the literals are short enough."""
        return all(map(operator.le, map(len, literals), self._lengths))

    def plan(self, text: bytes, literals: tuple[bytes, ...]) -> Plan:
        """The plan of a text that has these literals, which the template takes."""
        before = [0, *accumulate(map(len, literals))]
        return _filled(self._values, self._varying, text, literals, before)


Varying = list[tuple[int, str, Any]]


def _fields(marked: Plan, text: bytes, parts: Split, marks: dict[int, bytes]) -> tuple[list[Any], Varying]:
    """A plan's fields, and what in them depends on literals: (index, how, form)."""
    values: list[Any] = []
    varying: Varying = []
    for index, field in enumerate(fields(marked)):
        value = getattr(marked, field.name)
        values.append(value)
        if isinstance(value, bytes):
            varying.append((index, "same", None) if value == text else (index, "bytes", Form(value, marks)))
        elif isinstance(value, Plan):
            varying.append((index, "plan", _fields(value, text, parts, marks)))
        elif isinstance(value, tuple) and value and isinstance(value[0], Edit):
            varying.append((index, "edits", _edits(value, parts, marks)))
        elif "dw~" in repr(value):
            raise Unfit("a literal comes out in what a plan says of a text")
    return values, varying


def _edits(edits: tuple[Edit, ...], parts: Split, marks: dict[int, bytes]) -> list[EditForm]:
    spans = [(at, at + len(literal)) for at, literal in zip(parts.offsets, parts.literals, strict=True)]
    ends = [end for _, end in spans]
    before = [0, *accumulate(map(len, parts.literals))]

    def place(offset: int) -> Place:
        passed = _count(ends, offset)
        if passed < len(spans) and spans[passed][0] < offset:
            raise Unfit("an edit within a literal")
        return offset - before[passed], passed

    return [(place(edit.start), place(edit.end), Form(edit.text, marks), edit.recipe) for edit in edits]


def _count(ends: list[int], offset: int) -> int:
    """How many of the ascending ``ends`` are not beyond an offset."""
    return bisect_right(ends, offset)


def _forms(varying: Varying) -> Iterator[Form]:
    for _, how, form in varying:
        if how == "bytes":
            yield form
        elif how == "edits":
            yield from (form for _, _, form, _ in form)
        elif how == "plan":
            yield from _forms(form[1])


def _filled(
    values: list[Any], varying: Varying, text: bytes, literals: tuple[bytes, ...], before: list[int]
) -> Plan:
    values = values.copy()
    for index, how, form in varying:
        if how == "same":
            values[index] = text
        elif how == "bytes":
            values[index] = form.fill(literals)
        elif how == "edits":
            values[index] = tuple(
                [
                    Edit(start + before[passed], end + before[left], inserted.fill(literals), recipe)
                    for (start, passed), (end, left), inserted, recipe in form
                ]
            )
        else:
            values[index] = _filled(form[0], form[1], text, literals, before)
    return Plan(*values)


# -- making them -------------------------------------------------------------------------------------------------------


def pinned(text: bytes, parts: Split) -> tuple[int, ...] | None:
    """The literals of a text on whose values its plan may depend; None if that cannot be told."""
    parsed = parse(text)
    if parsed.failure is not None or any(one.type not in _STATEMENTS for one in parsed.statements):
        return None
    places: set[int] = set()
    for statement in parsed.statements:
        _constants(statement.type, statement.node, places)
    negated = {_after_sign(text, at) for at in places if text[at : at + 1] == b"-"}
    free = places | negated
    return tuple(
        [
            number
            for number, (at, kind) in enumerate(zip(parts.offsets, parts.kinds, strict=True))
            if kind != COMMENT and at not in free
        ]
    )


def _after_sign(text: bytes, at: int) -> int:
    """A negative number's tree stands at its sign."""
    at += 1
    while text[at : at + 1].isspace():
        at += 1
    return at


def _constants(kind: str, node: Node, places: set[int]) -> None:
    """Collect the offsets of constants in safe places."""
    if kind == "FuncCall" and plain_name(node["funcname"]) in _NAMING:
        return
    if kind == "TypeCast" and node["typeName"].get("names", [{}])[-1].get("String", {}).get(
        "sval", ""
    ).startswith("reg"):
        return
    for field, value in node.items():
        if type(value) is dict or type(value) is list:
            _values(kind, field, value, places)


def _values(kind: str, field: str, value: Any, places: set[int]) -> None:
    if type(value) is list:
        for item in value:
            _values(kind, field, item, places)
        return
    if type(value) is not dict:
        return
    for name, child in value.items():
        if name == "A_Const":
            if (kind, field) in _SAFE and "isnull" not in child:
                places.add(child.get("location", 0))
        elif name == "List":
            _values(kind, field, child.get("items", []), places)
        elif name[:1].isupper():
            _constants(name, child, places)
        elif type(child) is dict or type(child) is list:
            # A node that is not wrapped, as those of withClause are: its own fields are no safe places.
            _values(field, name, child, places)


def make(
    plan: Callable[[bytes], Plan],
    text: bytes,
    parts: Split,
    known: Plan,
    fixed: tuple[int, ...],
    lengths: tuple[int, ...] = (),
) -> Template | None:
    """A template from a planned text; ``fixed`` are its pinned literals, ``lengths`` what it should take at least."""
    if len(parts.literals) > MAX_LITERALS or max(map(len, parts.literals)) > MAX_LITERAL or b"dw~" in text:
        return None
    literals = list(parts.literals)
    least = list(parts.literals)
    marks: dict[int, bytes] = {}
    for number, (literal, kind) in enumerate(zip(parts.literals, parts.kinds, strict=True)):
        if number in fixed:
            continue
        wanted = max(len(literal), lengths[number] if lengths else 0)
        length = _LONGEST.get(kind) or next(bound for bound in _LENGTHS if bound >= wanted)
        marks[number] = literals[number] = _mark(number, kind, length)
        least[number] = _EMPTY[kind]
    if not marks:
        return None
    marked = Split(parts.pieces, tuple(literals), parts.kinds)
    long, short = _joined(parts.pieces, literals), _joined(parts.pieces, least)
    if len(long) > MAX_MARKED:
        return None
    try:
        template = Template(plan(long), long, marked, marks)
    except Unfit:
        return None
    if template.plan(text, parts.literals) != known or template.plan(short, tuple(least)) != plan(short):
        return None
    return template


def _joined(pieces: tuple[bytes, ...], literals: list[bytes]) -> bytes:
    return b"".join([part for pair in zip(pieces, literals, strict=False) for part in pair]) + pieces[-1]


MAX_VARIANTS = 8
MAX_TRIES = 12


@final
class Family:
    """The templates of one shape: one for each combination of values of its pinned literals."""

    __slots__ = ("_pinned", "_tries", "templates")

    def __init__(self) -> None:
        self._pinned: tuple[int, ...] | None = None
        self._tries = 0
        self.templates: dict[tuple[bytes, ...], Template] = {}

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return 300 + sum([template.size for template in self.templates.values()])

    @property
    def example(self) -> Plan | None:
        """What one of the templates gives."""
        for template in self.templates.values():
            return template.example
        return None

    def _key(self, literals: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return tuple([literals[at] for at in self._pinned]) if self._pinned else ()

    def plan(self, text: bytes, parts: Split) -> Plan | None:
        """The plan of a text of this shape, if there is a template for it."""
        literals = parts.literals
        template = self.templates.get(self._key(literals))
        if template is None or not template.takes(literals):
            return None
        return template.plan(text, literals)

    def learn(self, plan: Callable[[bytes], Plan], text: bytes, parts: Split, known: Plan) -> None:
        """There was no template for a text, and it has been planned: make one, if that seems worth it."""
        if self._tries >= MAX_TRIES:
            return
        if self._pinned is None:
            self._pinned = pinned(text, parts)
            if self._pinned is None:
                self._tries = MAX_TRIES
                return
        key = self._key(parts.literals)
        narrow = self.templates.get(key)
        if narrow is None and len(self.templates) >= MAX_VARIANTS:
            return
        self._tries += 1
        template = make(plan, text, parts, known, self._pinned, narrow.lengths if narrow is not None else ())
        if template is not None:
            self.templates[key] = template
        elif narrow is None and not self._pinned:
            self._tries = MAX_TRIES
