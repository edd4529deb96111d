"""How a statement would be treated, as a document and as text for people. Pure, except for what the caller looks up.

The document's keys are an interface: they are added to, never changed. Offsets in it count characters from 0 in the
statement's own text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pglast.parser import ParseError

from migrator.sqltext import GUARD_TRIGGER
from proxy.control.routing import Routing
from proxy.rewrite.model import Side
from proxy.rewrite.plan import Edit, Kind, Plan
from proxy.rewrite.planner import Planner
from proxy.sql.parse import parse
from proxy.sql.splice import characters
from proxy.sql.tokens import SEMICOLON, Tokens

Document = dict[str, Any]
Mark = Callable[[str, str], str]
"""Marks what an edit takes away and what it brings in."""

_FUNCTION = re.compile(r'"?dualwire"?\."?(\w+)"?\s*\(')


def statements_of(text: str) -> list[str]:
    """The statements of a text, each with the comments before it; a text that does not parse is cut at semicolons."""
    raw = text.encode()
    parsed = parse(raw)
    if parsed.failure is None:
        ends = [one.end for one in parsed.statements]
    else:
        try:
            tokens = Tokens(raw)
        except (ParseError, ValueError):
            return [text.strip()]
        ends = [start for name, start in zip(tokens.names, tokens.starts, strict=True) if name == SEMICOLON]
        ends.append(len(raw))
    parts = [
        raw[start:end].decode().strip() for start, end in zip([0, *(e + 1 for e in ends)], ends, strict=False)
    ]
    return [part for part in parts if part]


def explain(
    routing: Routing, side: Side, text: str, search_path: tuple[str, ...], dual_write: bool = True
) -> Document:
    """One statement under one version."""
    plan = Planner(routing.tables, side, routing.dual_write and dual_write).plan(text.encode(), search_path)
    original = text.encode()
    refusal = plan.refusal
    tables = [t for t in routing.tables if t.qualified in plan.tables]
    guarding = [t for t in tables if t.mark]
    return {
        "version": routing.version(side),
        "side": side,
        "statement": text,
        "kind": str(plan.kind),
        "route": "replica or primary" if plan.kind is Kind.READ else "primary",
        "reason": plan.reason,
        "rewritten": _text(plan.text) if plan.rewritten else None,
        "text": _text(plan.text),
        "tables": list(plan.tables),
        "mirrored": plan.mirrored,
        "guard": next((t.guard for t in guarding), None),
        "guards": [
            {
                "table": t.qualified,
                "mode": t.guard,
                "trigger": GUARD_TRIGGER if t.guard == "sync" else None,
                "writes": plan.kind is not Kind.READ,
            }
            for t in guarding
        ],
        "guarded": plan.guarded,
        "refusal": None
        if refusal is None
        else {
            "sqlstate": refusal.sqlstate,
            "message": refusal.message,
            "detail": refusal.detail,
            "hint": refusal.hint,
            "position": refusal.position or None,
        },
        "explanations": list(plan.explanations),
        "edits": _edits(original, plan.edits),
        "recipes": list(dict.fromkeys(edit.recipe for edit in plan.edits)),
        "fallback": _fallback(plan),
        "twin": None if plan.twin is None else _text(plan.twin),
    }


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _edits(original: bytes, edits: Iterable[Edit]) -> list[Document]:
    return [
        {
            "start": characters(original[: edit.start]),
            "end": characters(original[: edit.end]),
            "original": _text(original[edit.start : edit.end]),
            "text": _text(edit.text),
            "recipe": edit.recipe,
        }
        for edit in edits
    ]


def _fallback(plan: Plan) -> Document | None:
    """What is sent if the server rejects the rewritten text."""
    if plan.fallback is None:
        return None
    return {
        "text": _text(plan.fallback.text),
        "reason": plan.fallback.reason,
        "guarded": plan.fallback.guarded,
    }


def functions_of(documents: Iterable[Document]) -> list[str]:
    """The names, in schema dualwire, of the functions that rewritten texts call."""
    found = [
        name
        for document in documents
        for edit in document["edits"]
        for name in _FUNCTION.findall(edit["text"])
    ]
    return list(dict.fromkeys(found))


def bracketed(taken: str, brought: str) -> str:
    """Marks for where there are no colours: ``[-taken-]{+brought+}``."""
    return (f"[-{taken}-]" if taken else "") + (f"{{+{brought}+}}" if brought else "")


def coloured(taken: str, brought: str) -> str:
    """Marks for a terminal: red and struck through, and green."""
    return (f"\x1b[9;31m{taken}\x1b[0m" if taken else "") + (f"\x1b[32m{brought}\x1b[0m" if brought else "")


def marked(document: Document, mark: Mark) -> str:
    """The statement with its edits marked."""
    text, parts, at = document["statement"], [], 0
    for edit in document["edits"]:
        parts += [text[at : edit["start"]], mark(edit["original"], edit["text"])]
        at = edit["end"]
    return "".join([*parts, text[at:]])


def as_text(document: Document, mark: Mark) -> str:
    """One statement's document for people."""
    lines = [f"version: {document['version']} ({document['side']})"]
    if document.get("state"):
        lines[0] += f", as {document['state']}"
    refusal = document["refusal"]
    if refusal:
        lines.append(f"refused: {refusal['sqlstate']} {refusal['message']}")
        lines += [f"  {refusal[k]}" for k in ("detail", "hint") if refusal[k]]
    lines.append(f"kind: {document['kind']}, route: {document['route']}, reason: {document['reason']}")
    if document["tables"]:
        lines.append(f"tables: {', '.join(document['tables'])}")
    lines.append(
        f"mirrored: {_yes(document['mirrored'])}, guard: {_guards(document)},"
        f" left to the guard: {_yes(document['guarded'])}"
    )
    if document["rewritten"]:
        lines.append(f"rewritten: {marked(document, mark)}")
        lines.append(f"recipes: {', '.join(document['recipes'])}")
    elif not refusal:
        lines.append("sent as it is")
    if document["fallback"]:
        fallback = document["fallback"]
        same = "sent as it is" if fallback["text"] == document["statement"] else fallback["text"]
        lines.append(f"if the server rejects that: {same} ({fallback['reason']})")
    if document["twin"]:
        lines.append(f"types are asked of: {document['twin']}")
    lines += [f"- {e}" for e in document["explanations"] if not refusal]
    lines += _checked(document.get("check"))
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _guards(document: Document) -> str:
    needed = [g for g in document["guards"] if g["writes"]]
    if not needed:
        return "none needed"
    return ", ".join(
        g["mode"] + (f" (trigger {g['trigger']} on {g['table']})" if g["trigger"] else "") for g in needed
    )


def _checked(check: Mapping[str, Any] | None) -> list[str]:
    if check is None:
        return []
    if check["error"]:
        error = check["error"]
        return [f"the server says: {error['sqlstate']} {error['message']} ({check['of']})"]
    if check["sends"] is None:
        return [f"the server was not asked: {check['why']}"]
    types: Sequence[str] = check["parameters"]
    listed = f", parameters: {', '.join(types)}" if types else ""
    return [f"the server accepts it; {check['sends']} would be sent{listed}"]
