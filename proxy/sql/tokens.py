"""The tokens of a text, with byte offsets, and the few ways to walk over them that splicing needs.

The parser's tree gives where most nodes start, never where they end; the ends are found here. Comments are
left out. Built only for statements that will be rewritten: one scan takes about as long as one parse.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from pglast.parser import scan

OPEN = frozenset({"ASCII_40", "ASCII_91"})
CLOSE = frozenset({"ASCII_41", "ASCII_93"})
LBRACKET = "ASCII_91"
LPAREN = "ASCII_40"
RPAREN = "ASCII_41"
STAR = "ASCII_42"
COMMA = "ASCII_44"
DOT = "ASCII_46"
SEMICOLON = "ASCII_59"
EQUALS = "ASCII_61"
_COMMENTS = frozenset({"SQL_COMMENT", "C_COMMENT"})

CLAUSES = frozenset(
    {
        "INTO", "FROM", "WHERE", "GROUP_P", "HAVING", "WINDOW", "ORDER", "LIMIT", "OFFSET", "FETCH", "FOR",
        "UNION", "INTERSECT", "EXCEPT", "ON", "RETURNING",
    }
)  # fmt: skip
"""Reserved words that end an expression which stands outside parentheses."""

_CASE = {"CASE": 1, "END_P": -1, "THEN": 0, "WHEN": 0}


class UnclearNames(ValueError):
    """The text spells an identifier with UESCAPE: several tokens, which no edit here would take as one."""


class Tokens:
    """Parallel lists: ``names[i]`` stands at ``starts[i]:ends[i]`` of the text."""

    __slots__ = ("ends", "names", "starts")

    def __init__(self, text: bytes) -> None:
        source = text.decode()
        starts: list[int] = []
        ends: list[int] = []
        names: list[str] = []
        # pglast counts characters; the trees count bytes.
        offsets = None if len(source) == len(text) else _byte_offsets(source)
        for token in scan(source):
            if token.name in _COMMENTS:
                continue
            start, end = token.start, token.end + 1
            starts.append(start if offsets is None else offsets[start])
            ends.append(end if offsets is None else offsets[end])
            names.append(token.name)
        if "UIDENT" in names and "UESCAPE" in names:
            raise UnclearNames("an identifier is spelled with UESCAPE")
        self.starts = starts
        self.ends = ends
        self.names = names

    def at(self, offset: int) -> int:
        """The index of the token that starts at a byte offset, or else of the first one after it."""
        return bisect_left(self.starts, offset)

    def name(self, index: int) -> str:
        """The token's name; empty before the first and after the last one."""
        return self.names[index] if 0 <= index < len(self.names) else ""

    def close_of(self, index: int) -> int:
        """The index of the bracket that closes the one at ``index``."""
        depth = 0
        for at in range(index, len(self.names)):
            name = self.names[at]
            if name in OPEN:
                depth += 1
            elif name in CLOSE:
                depth -= 1
                if depth == 0:
                    return at
        raise LookupError("unbalanced brackets")

    def find(self, wanted: str, index: int) -> int:
        """The first token of that name from ``index`` on, at the depth of ``index``; -1 if that level ends first."""
        depth = 0
        for at in range(index, len(self.names)):
            name = self.names[at]
            if depth == 0 and name == wanted:
                return at
            if name in OPEN:
                depth += 1
            elif name in CLOSE:
                depth -= 1
                if depth < 0:
                    return -1
            elif name == SEMICOLON and depth == 0:
                return -1
        return -1

    def after(self, wanted: str, index: int) -> int:
        """The index one past the token that ``find`` finds; it must be there."""
        at = self.find(wanted, index)
        if at < 0:
            raise LookupError(f"no {wanted} after token {index}")
        return at + 1

    def item_end(self, index: int, *, before_when: bool = False) -> int:
        """The index one past the expression (or list item) that starts at ``index``.

        It ends before a comma, a clause's reserved word, a closing bracket or a semicolon, all at its own
        depth; and, where ``before_when`` says so, before a WHEN that belongs to no CASE.
        """
        depth = cases = 0
        names = self.names
        for at in range(index, len(names)):
            name = names[at]
            if name in OPEN:
                depth += 1
            elif name in CLOSE:
                depth -= 1
                if depth < 0:
                    return at
            elif depth == 0:
                if name in (COMMA, SEMICOLON):
                    return at
                if name in CLAUSES and not self._inside(at):
                    return at
                if before_when and name in _CASE and self.name(at - 1) not in (DOT, "AS"):
                    if name == "WHEN" and cases == 0:
                        return at
                    cases += _CASE[name]
        return len(names)

    def items(self, index: int) -> list[tuple[int, int]]:
        """The byte offsets of the expressions between the bracket at ``index`` and the one that closes it."""
        spans = []
        close = self.close_of(index)
        first = index + 1
        while first <= close:
            end = self.item_end(first)
            spans.append((self.starts[first], self.ends[end - 1]))
            first = end + 1
        return spans

    def outside_case(self, wanted: str, index: int) -> Iterator[int]:
        """The indexes, from ``index`` on and at its depth, of each token of that name that belongs to no CASE."""
        depth = cases = 0
        for at in range(index, len(self.names)):
            name = self.names[at]
            if name in OPEN:
                depth += 1
            elif name in CLOSE:
                depth -= 1
                if depth < 0:
                    return
            elif depth == 0 and name == SEMICOLON:
                return
            elif depth == 0 and name in _CASE and self.name(at - 1) not in (DOT, "AS"):
                if name == wanted and cases == 0:
                    yield at
                cases += _CASE[name]

    def _inside(self, index: int) -> bool:
        """Whether a clause's word at ``index`` is part of an expression: a label, or IS DISTINCT FROM and the like."""
        before = self.name(index - 1)
        if before in (DOT, "AS"):
            return True
        name = self.names[index]
        return (name == "FROM" and before == "DISTINCT") or (name == "GROUP_P" and before == "WITHIN")

    def dotted_end(self, index: int) -> int:
        """The index of the last part of the dotted name that starts at ``index``."""
        while self.name(index + 1) == DOT and index + 2 < len(self.names):
            index += 2
        return index


def _byte_offsets(source: str) -> list[int]:
    offsets = [0]
    at = 0
    for character in source:
        code = ord(character)
        at += 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
        offsets.append(at)
    return offsets
