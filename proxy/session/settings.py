"""What a session has set: enough to bring a replica connection to the same state, or to know that we cannot.

When a setting takes effect is decided in ``proxy.session.effects``; what is set in ways that cannot be followed makes
the session's state unknown to us, for good or until ``DISCARD ALL``.

``search_path`` is reported by PostgreSQL 18 and later; for older servers it is taken from the SET statement.
"""

from __future__ import annotations

import re
from typing import Final, final

from proxy.session.blank import tangled

DEFAULT_SEARCH_PATH = '"$user", public'
_VALUE = re.compile(r"\s*SET\s+(?:SESSION\s+)?search_path\s*(?:=|\bTO\b)(.*)", re.IGNORECASE | re.DOTALL)
_UTF8 = frozenset(("", "UTF8", "UNICODE", "SQL_ASCII"))
_ASCII_ONLY = re.compile(rb"[\x00-\x7f]*\Z")

_CONTROL = rb"BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE|EXECUTE|CALL|LOCAL"
_DIVIDES = re.compile(rb"\b(?:" + _CONTROL + rb")\b", re.IGNORECASE)
_SETS_UNSEEN = re.compile(rb"\b(?:DO|set_config)\b", re.IGNORECASE)
_ENDS_IN_RESET = re.compile(rb";\s*RESET\s+ALL\s*;?\s*\Z", re.IGNORECASE)
_NOT_RESET = re.compile(rb"\brole\b|authorization", re.IGNORECASE)
_DOLLAR_QUOTED = re.compile(rb"\$(\w*)\$.*?\$\1\$", re.DOTALL)

_ROLES = ("session_authorization", "role")
"""What RESET ALL leaves as it is."""

Setting = tuple[str, str | None]
NOTHING: Final[dict[str, str]] = {}
"""No settings at all: one object, so that sessions and connections without any are told from others at a glance."""
DISCARDED: tuple[Setting, ...] = (("discard all", None),)
"""A DISCARD ALL took effect."""


@final
class SessionSettings:
    """The settings of one session; ``reported`` is what the server said at login."""

    __slots__ = (
        "_default_path",
        "_path_reported",
        "_user",
        "applied",
        "escapes",
        "scope",
        "search_path",
        "temp",
        "unknown",
        "utf8",
    )

    def __init__(self, user: str, reported: dict[str, str], default_path: str = DEFAULT_SEARCH_PATH) -> None:
        self._user = user
        self._default_path = default_path
        self.applied = NOTHING
        """Setting name to the SET statement that a replica connection must run."""
        self.unknown = False
        """Something was set in a way that we could not follow."""
        self.temp: frozenset[str] = frozenset()
        """Names of temporary relations that the session made."""
        self.search_path: tuple[str, ...] = ()
        self.scope: tuple[str, ...] = ()
        """What decides which relations a text names: the same object as long as it is the same."""
        self.utf8 = True
        self.escapes = False
        """A backslash in a string escapes what comes next: ``standard_conforming_strings`` is off."""
        self._path_reported = "search_path" in reported
        self.report("search_path", reported.get("search_path", ""))
        self.report("client_encoding", reported.get("client_encoding", ""))
        self.report("standard_conforming_strings", reported.get("standard_conforming_strings", ""))

    @property
    def portable(self) -> bool:
        """Whether another connection can be brought to this state."""
        return not self.unknown and not self.temp

    def _note_scope(self) -> None:
        scope = (*self.search_path, *(self.applied.get(name, "") for name in _ROLES))
        if scope != self.scope:
            self.scope = scope

    def report(self, name: str, value: str) -> None:
        """The server reported a setting (ParameterStatus)."""
        if name == "search_path":
            self.search_path = parse_search_path(value or self._default_path, self._user)
            self._note_scope()
        elif name == "client_encoding":
            self.utf8 = value.upper().replace("-", "") in _UTF8
        elif name == "standard_conforming_strings":
            self.escapes = value == "off"

    def misread(self, text: bytes) -> str:
        """Why a parser that takes UTF-8 and standard strings would misread a text; empty if it would not."""
        if self.escapes and b"\\" in text:
            return "it has a backslash while standard_conforming_strings is off"
        if not self.utf8 and _ASCII_ONLY.match(text) is None:
            return "it is neither UTF-8 nor ASCII"
        return ""

    def apply(self, settings: tuple[Setting, ...]) -> None:
        """These SET and RESET statements took effect; a text of None is a RESET."""
        # Never changed in place: server connections remember which settings they have by this very object.
        applied = dict(self.applied)
        for name, text in settings:
            if name == "discard all":
                self.discard()
                applied = NOTHING
            elif name == "all" and text is None:
                applied = {name: applied[name] for name in _ROLES if name in applied}
            else:
                applied.pop(name, None)
                if text is not None:
                    applied[name] = text
            if name in ("search_path", "all") and not self._path_reported:
                self._read_search_path(text)
        if applied != self.applied:
            self.applied = applied or NOTHING
            self._note_scope()

    def _read_search_path(self, text: str | None) -> None:
        match = None if text is None else _VALUE.fullmatch(text)
        value = "" if match is None else match[1].strip().removesuffix(";").rstrip()
        if text is None or value.upper() == "DEFAULT":
            self.report("search_path", "")
        elif match is not None:
            self.report("search_path", value.replace("'", '"'))

    def discard(self) -> None:
        """DISCARD ALL took effect."""
        self.applied = NOTHING
        self.temp = frozenset()
        self.unknown = False
        self._note_scope()
        if not self._path_reported:
            self.report("search_path", "")


def divides(text: bytes) -> bool:
    """Whether a text may begin or end transactions, so that its statements may not stand or fall together."""
    return tangled(text) or _DIVIDES.search(_DOLLAR_QUOTED.sub(b"''", text)) is not None


def sets_as_one(text: bytes) -> bool:
    """Whether the settings that a text names are all that it leaves set, and take effect together or not at all.

    So it is outside a transaction for a text without transaction control: several statements of one Query are one
    implicit transaction. A final ``RESET ALL`` undoes whatever was set unseen before it, but for the role: so end the
    texts with which drivers' pools reset a session.
    """
    if divides(text):
        return False
    bare = _DOLLAR_QUOTED.sub(b"''", text)
    if _ENDS_IN_RESET.search(bare) is not None:
        return _NOT_RESET.search(text) is None
    return _SETS_UNSEEN.search(bare) is None


def parse_search_path(value: str, user: str) -> tuple[str, ...]:
    """The schemas of a ``search_path`` setting in order, ``$user`` replaced (value: as PostgreSQL reports it)."""
    names: list[str] = []
    index = 0
    while index < len(value):
        if value[index] in ", \t\n":
            index += 1
        elif value[index] == '"':
            name, index = _quoted(value, index + 1)
            names.append(name)
        else:
            end = index
            while end < len(value) and value[end] not in ", \t\n":
                end += 1
            names.append(value[index:end].lower())
            index = end
    return tuple(user if name == "$user" else name for name in names)


def _quoted(value: str, index: int) -> tuple[str, int]:
    """The quoted name that begins at ``index``, and the offset after its closing quote."""
    name: list[str] = []
    while index < len(value):
        if value[index] == '"':
            if value[index + 1 : index + 2] != '"':
                break
            index += 1
        name.append(value[index])
        index += 1
    return "".join(name), index + 1
