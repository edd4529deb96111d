"""The search_path in the middle of a text: what its statements leave to those behind them."""

from __future__ import annotations

from typing import Any

from proxy.sql.parse import Node, Statement

Path = tuple[str, ...] | None
"""The schemas in order; None where the text does not tell."""

_KEEPS = frozenset({"TRANS_STMT_BEGIN", "TRANS_STMT_START", "TRANS_STMT_SAVEPOINT", "TRANS_STMT_RELEASE"})


def path_after(path: Path, statement: Statement, first: Path) -> Path:
    """The search_path after a statement that was run under ``path``; ``first`` is what the text began with."""
    kind, node = statement.type, statement.node
    if kind == "VariableSetStmt":
        if node["kind"] == "VAR_RESET_ALL" or node.get("name", "").lower() == "search_path":
            return _set_to(node)
        return path
    if kind == "TransactionStmt":
        # What the text has set may have been for the transaction, or is undone with it.
        return path if path == first or node["kind"] in _KEEPS else None
    return None if kind == "DiscardStmt" or _calls_set_config(node) else path


def _set_to(node: Node) -> Path:
    values = [argument.get("A_Const", {}).get("sval", {}).get("sval") for argument in node.get("args", ())]
    if node["kind"] != "VAR_SET_VALUE" or not all(isinstance(value, str) for value in values):
        return None
    names = tuple(map(str, values))
    return None if "$user" in names else names


def _calls_set_config(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_calls_set_config, value))
    if not isinstance(value, dict):
        return False
    call = value.get("FuncCall")
    if call is not None and call["funcname"][-1]["String"].get("sval") == "set_config":
        return True
    return any(map(_calls_set_config, value.values()))
