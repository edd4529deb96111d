"""A text as fixed pieces and the literals between them: what texts that differ in literals only have in common.

One pass of one regular expression, in time linear in the text. Quoted identifiers, parameters and line comments are
part of the pieces; strings, numbers and block comments come apart. Whatever could be read in two ways makes a text
*unclear*, and then it is not taken apart at all: backslashes, dollar quotes, strings with a prefix (``E''``, ``U&''``,
``B''``), numbers in any other than their usual spelling, nested comments, bytes outside of ASCII that are not UTF-8.

Two texts of the same shape have the same tokens but for the values of their literals, and so the same tree but for
those values: a number's *kind* says which type it gets and is part of the shape.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SPLIT = re.compile(
    rb"""
    ((?:
        [^\w'"$/\\\-.\0\x80-\xff]++
      | [A-Za-z_\x80-\xff][\w$\x80-\xff]*+ (?!['"]|&['"])
      | "[^"\\\0]*+"
      | \. (?!\d)
      | \$ \d++ (?![\w$.'"\x80-\xff])
      | - (?!-)
      | / (?!\*)
      | -- [^\n\r\\\0]*+ (?=\n|\Z)
    )*+)
    (?:
      ( ' [^'\\\0]*+ (?: '' [^'\\\0]*+ )*+ '
      | (?: 0 | [1-9]\d*+ ) (?: \. \d++ )?+ (?: [eE] [+-]?+ \d++ )?+ (?![\w$.'"\x80-\xff])
      | /\* (?: [^*/\\\0]++ | \* (?!/) | / (?!\*) )*+ \*/
      | \Z )
    | (.++) )
    """,
    re.VERBOSE | re.DOTALL,
)

STRING, COMMENT = ord("'"), ord("/")
INTEGER, BIGINT, NUMERIC = ord("i"), ord("l"), ord("n")
_MAX_INTEGER, _MAX_BIGINT = b"2147483647", b"9223372036854775807"


class Split(NamedTuple):
    """A text taken apart: piece, literal, piece, ..., piece."""

    pieces: tuple[bytes, ...]
    literals: tuple[bytes, ...]
    kinds: bytes
    """A byte for each literal."""

    @property
    def shape(self) -> bytes:
        """What texts that differ in literals only have in common; unlike any text, because of its NUL bytes."""
        return b"\0".join(self.pieces) + b"\0" + self.kinds

    @property
    def offsets(self) -> list[int]:
        """Where each literal begins, in bytes of the text."""
        offsets = []
        at = 0
        for piece, literal in zip(self.pieces, self.literals, strict=False):
            at += len(piece)
            offsets.append(at)
            at += len(literal)
        return offsets


def split(text: bytes) -> Split | None:
    """Take a text apart; None if it is unclear or has no literals."""
    found = _SPLIT.findall(text)
    pieces, literals, unclear = zip(*found, strict=True)
    if any(unclear):
        return None
    if not literals[-1]:  # the text's end; behind a piece there is an empty one more
        last = -2 if len(literals) > 1 and not literals[-2] else -1
        literals = literals[:last]
        pieces = pieces[: len(literals) + 1]
    if not literals:
        return None
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return None
    kinds = bytes(
        [
            first
            if (first := literal[0]) < 48  # a quote or a slash
            else INTEGER
            if len(literal) < 10 and literal.isdigit()
            else _number(literal)
            for literal in literals
        ]
    )
    return Split(pieces, literals, kinds)


def _number(literal: bytes) -> int:
    """The kind of a number: what the server takes for an integer, for a bigint, or for a numeric."""
    if not literal.isdigit():
        return NUMERIC
    for kind, largest in ((INTEGER, _MAX_INTEGER), (BIGINT, _MAX_BIGINT)):
        if (len(literal), literal) <= (len(largest), largest):
            return kind
    return NUMERIC
