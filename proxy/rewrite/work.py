"""The state of planning one text: its edits so far, what they were for, and the walk over its trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proxy.rewrite.plan import Edit, Refusal
from proxy.rewrite.reasons import Reason
from proxy.rewrite.rules import INTERNAL_PREFIX, Catalog, Rule
from proxy.sql.parse import LEAVES, Node
from proxy.sql.repeatable import repeatable
from proxy.sql.splice import ordered, render
from proxy.sql.tokens import Tokens

if TYPE_CHECKING:
    from proxy.rewrite.resolve import Scope, Source

Handler = Callable[["Work", Node, "Scope"], None]

MIRROR_RECIPES = frozenset({"mirror_insert", "mirror_set"})
"""Recipes whose edits only serve the other shape: a plan's fallback is the text without them."""

FALLBACK = "fallback"
"""The recipe of edits that only the fallback has, where the text itself does the same in another way."""


class Refused(Exception):
    """Planning ends: the client gets an error instead."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        hint: str = "",
        sqlstate: str = "0A000",
        detail: str = "",
        location: int = -1,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.location = location
        """The byte offset of what is refused, if it has one place."""
        self.refusal = Refusal(sqlstate, message, detail, hint)


class Unmirrorable(Exception):
    """A write cannot carry its mirror inline; the guard must."""

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


def _typed(value: Any, declared: frozenset[int]) -> bool:
    """Whether each parameter in an expression is cast or declared."""
    if isinstance(value, list):
        return all(_typed(item, declared) for item in value)
    if not isinstance(value, dict):
        return True
    for key, child in value.items():
        if key == "ParamRef":
            if child.get("number") not in declared:
                return False
        elif key == "TypeCast" and "ParamRef" in child["arg"]:
            continue
        elif not _typed(child, declared):
            return False
    return True


class Work:
    """Planning of one text under one version."""

    def __init__(
        self,
        text: bytes,
        catalog: Catalog,
        handlers: Mapping[str, Handler],
        search_path: tuple[str, ...],
        temporary: frozenset[str],
        dual_write: bool,
    ) -> None:
        self.text = text
        self.catalog = catalog
        self.search_path: tuple[str, ...] | None = search_path
        """None: an earlier statement of the text sets it to what the text does not tell."""
        self.temporary = temporary
        self.dual_write = dual_write
        self.declared: frozenset[int] | None = None
        """Inside PREPARE, whose text no prober tries: the numbers of the parameters that have declared types."""
        self.named: dict[str, Rule] = {}
        """The tables with rules that the statement in hand names."""
        self.compares = False
        """Whether one of them has a virtual column that another may stand for in comparisons."""
        self.compared: set[int] = set()
        """Items of select lists, by identity, whose values are only compared."""
        self.wrapped: list[Source] = []
        """Relations whose pending edits may change the name of the output column in hand."""
        self.edits: list[Edit] = []
        self.twin_edits: list[Edit] = []
        """What makes of the client's text one over tables of its version's shape."""
        self.outputs: dict[int, tuple[str, ...] | None] = {}
        """The output columns of the SELECTs walked so far, by the identity of their nodes; None where not known."""
        self.reasons: list[Reason] = []
        self.explanations: list[str] = []
        self.mirrored = False
        self.guarded = False
        self._handlers = handlers
        self._tokens: Tokens | None = None
        self._names = 0

    @property
    def tokens(self) -> Tokens:
        """The text's tokens, scanned when first needed."""
        if self._tokens is None:
            self._tokens = Tokens(self.text)
        return self._tokens

    def may_repeat(self, node: Node, length: int) -> bool:
        """Whether an expression that is assigned to a column may be written down twice.

        Its second place is in a cast to the column's type. So a parameter that stands alone has that type in both; one
        within an expression might get another one, unless it is cast or declared, or the prober gives all types.
        """
        if not repeatable(node, length):
            return False
        return self.declared is None or "ParamRef" in node or _typed(node, self.declared)

    def rule_of(self, relation: Node) -> Rule | None:
        """The rule of the table that a RangeVar means (which the caller knows to be no CTE)."""
        return self.find(relation.get("schemaname"), relation["relname"])

    def find(self, schema: str | None, name: str) -> Rule | None:
        """The rule of the table that a name means in the statement in hand."""
        if self.search_path is None:
            return self._find_anywhere(schema, name)
        return self.catalog.find(schema, name, self.search_path, self.temporary)

    def _find_anywhere(self, schema: str | None, name: str) -> Rule | None:
        """The same where the search_path is not known: only what means one table under any."""
        rules = [rule for rule in self.catalog.rules if rule.model.name == name]
        schemas = {other for rule in rules for other in (rule.model.schema, *rule.model.shadows)}
        if schema is None and len(schemas) > 1 and name not in self.temporary:
            raise Refused(
                Reason.REFUSED_AMBIGUOUS,
                f'relation "{name}" cannot be resolved while a migration is in progress',
                hint="Set search_path in a query of its own, or write the schema's name.",
            )
        return self.catalog.find(schema, name, tuple(schemas), self.temporary)

    def visit(self, value: Any, scope: Scope) -> None:
        """Walk over a part of a tree, giving each node that has a handler to it."""
        if type(value) is list:
            for item in value:
                self.visit(item, scope)
        elif type(value) is dict:
            for key, child in value.items():
                handler = self._handlers.get(key)
                if handler is not None:
                    handler(self, child, scope)
                elif (type(child) is dict or type(child) is list) and key not in LEAVES:
                    self.visit(child, scope)

    def slice(self, start: int, end: int) -> str:
        """A part of the client's text."""
        return self.text[start:end].decode()

    def rendered(self, start: int, end: int) -> str:
        """A part of the client's text with the edits made so far."""
        edits = ordered(edit for edit in self.edits if edit.recipe != FALLBACK)
        return render(self.text, edits, start, end).decode()

    def replace(self, start: int, end: int, text: str, recipe: str) -> None:
        """Ask for an edit."""
        self.edits.append(Edit(start, end, text.encode(), recipe))

    def insert(self, at: int, text: str, recipe: str) -> None:
        """Ask for an insertion."""
        self.edits.append(Edit(at, at, text.encode(), recipe))

    def in_twin(self, start: int, end: int, text: str, recipe: str) -> None:
        """Ask for an edit in the text over twins."""
        self.twin_edits.append(Edit(start, end, text.encode(), recipe))

    def take(self, start: int, end: int) -> str:
        """A part of the client's text with the edits made so far, which are given up: it will stand elsewhere."""
        text = self.rendered(start, end)
        self.edits[:] = [edit for edit in self.edits if not (start <= edit.start and edit.end <= end)]
        return text

    def fresh(self) -> str:
        """A name (SQL text) that nothing else in the statement has."""
        self._names += 1
        return f"{INTERNAL_PREFIX}raw_{self._names}"

    def only_in_fallback(self, start: int, end: int) -> None:
        """Give up the edits made so far within a part of the text, except in the fallback."""
        self.edits[:] = [
            replace(edit, recipe=FALLBACK) if start <= edit.start and edit.end <= end else edit
            for edit in self.edits
        ]

    def tell(self, reason: Reason, sentence: str) -> None:
        """Note why, for metrics and for people."""
        self.reasons.append(reason)
        if sentence not in self.explanations:
            self.explanations.append(sentence)

    def leave_to_guard(self, rule: Rule, reason: Reason, sentence: str) -> None:
        """Note that the guard must carry this write over; refuse where there is none."""
        if not rule.mirroring:
            return
        if rule.model.guard != "sync" and self.dual_write:
            raise Refused(
                Reason.REFUSED_GUARD_OFF,
                f"this statement cannot be carried over to both shapes of {rule.model.qualified}",
                hint="Use plain INSERT ... VALUES and UPDATE, or run the migration with guard sync.",
                detail=sentence,
            )
        self.guarded = True
        self.tell(reason, sentence)
