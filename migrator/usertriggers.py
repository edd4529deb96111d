"""Which of a table's own triggers and rules may overrule what a statement writes.

A BEFORE ROW trigger can change any column after the sidecar has computed the other shape from the statement's text.
The sidecar then leaves the table to the guard (``TableModel.inline``). A trigger is no hindrance if it fires only for
``UPDATE OF`` columns that do not matter, or if its function is seen to leave the columns that matter alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pglast.parser import ParseError, scan

from migrator.catalog import CatalogCheck, CatalogTable, CatalogTrigger
from migrator.design import TableDesign

_HARMLESS = frozenset({"suppress_redundant_updates_trigger"})
_FIRST_ARGUMENT = frozenset(
    {"tsvector_update_trigger", "tsvector_update_trigger_column", "moddatetime", "insert_username", "autoinc"}
)
"""Functions in C that change only the column which their first argument names."""

_CASCADE = re.compile(r"ON (?:UPDATE (?:CASCADE|SET NULL|SET DEFAULT)|DELETE SET (?:NULL|DEFAULT))")


def watched(design: TableDesign) -> set[str]:
    """The columns whose change after rewriting would leave the shapes apart."""
    found = {s for d in (design.up, design.down) for s in (*d.sources, *d.targets, *d.ok_sources)}
    return found | {s for c in design.up.constraints for s in c.condition.sources}


def overruling(catalog: CatalogTable, design: TableDesign) -> list[str]:
    """The names of triggers that may change columns of a row which a statement has given."""
    columns = watched(design)
    return [t.name for t in catalog.triggers if _may_change(t, columns)]


def cascades(catalog: CatalogTable, design: TableDesign) -> list[CatalogCheck]:
    """Foreign keys by which a write to another table changes columns that matter."""
    columns = watched(design)
    return [
        c
        for c in catalog.constraints
        if c.kind == "f" and columns & set(c.columns) and _CASCADE.search(c.definition)
    ]


def _may_change(trigger: CatalogTrigger, columns: set[str]) -> bool:
    if trigger.enabled == "D" or not trigger.before_row:
        return False
    if trigger.update_columns and not trigger.inserts and not columns & set(trigger.update_columns):
        return False
    name = trigger.function.partition("(")[0].rpartition(".")[2]
    if trigger.language in {"internal", "c"}:
        if name in _FIRST_ARGUMENT and trigger.arguments:
            return trigger.arguments[0] in columns
        return name not in _HARMLESS
    if trigger.language != "plpgsql":
        return True
    written = assigned_fields(trigger.source)
    return written is None or bool(written & columns)


def assigned_fields(source: str) -> set[str] | None:
    """The fields of NEW that a plpgsql function mentions, and so may change; None where that cannot be told.

    It cannot where NEW stands as a whole anywhere but in RETURN NEW, or where something else is returned.
    """
    try:
        tokens = [(source[t.start : t.end + 1], t.name) for t in scan(source)]
    except (ParseError, ValueError):
        return None
    words = [_folded(text) for text, kind in tokens if kind not in {"SQL_COMMENT", "C_COMMENT"}]
    fields: set[str] = set()
    for at, word in enumerate(words):
        if word == "return" and words[at + 1 : at + 2] not in (["new"], ["null"]):
            return None
        if word != "new":
            continue
        if at + 2 < len(words) and words[at + 1] == ".":
            fields.add(words[at + 2])
        elif at == 0 or words[at - 1] != "return" or words[at + 1 : at + 2] != [";"]:
            return None
    return fields


def _folded(text: str) -> str:
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        return text[1:-1].replace('""', '"')
    return text.lower()


def listed(names: Iterable[str]) -> str:
    """For messages."""
    return ", ".join(sorted(names))
