"""Errors of a twin in the client's terms.

A statement over columns that a table has not is parsed against the table's *twin*, an empty table of the version's
shape. What the server says against that text, it would say to the client if the version's table stood alone: only the
position and the table's name are others.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.rewrite.model import TableModel
from proxy.rewrite.plan import Plan, Refusal
from proxy.sql.splice import original_position
from proxy.wire import messages as m

DIFFERENT = Refusal(
    "0A000",
    "this statement cannot be translated for its schema version",
    detail="The server describes another result for the translated text.",
    hint="Simplify the statement, or deploy code for the present version.",
)

_TOLD = ("M", "D", "H")


def rejected(message: str, sqlstate: str) -> Refusal:
    """What a client gets whose translated text the server does not accept."""
    return Refusal(
        DIFFERENT.sqlstate,
        DIFFERENT.message,
        detail=f"The server rejects the translated text: {message} (SQLSTATE {sqlstate}).",
        hint=DIFFERENT.hint,
    )


def as_if_alone(error: bytes, original: bytes, plan: Plan, tables: Sequence[TableModel]) -> bytes:
    """The ErrorResponse with the client's position, and the table where the twin is named."""
    fields = m.error_fields(error)
    changes: dict[str, bytes | None] = {}
    position = fields.get("P")
    if position is not None and position.isdigit():
        changes["P"] = str(original_position(original, plan.twin_edits, int(position))).encode()
    for table in tables:
        if table.qualified not in plan.tables:
            continue
        for twin in (table.twin_old, table.twin_new):
            if twin is None:
                continue
            schema, name = twin[0].encode(), twin[1].encode()
            for code in _TOLD:
                said = changes.get(code) or fields.get(code)
                if said is not None and name in said:
                    said = said.replace(schema + b"." + name, table.name.encode())
                    changes[code] = said.replace(name, table.name.encode())
            if fields.get("t") == name:
                changes["t"], changes["s"] = table.name.encode(), table.schema.encode()
    return m.error_with_fields(error, changes)
