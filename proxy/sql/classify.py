"""What every statement of a text is to a session: its kind, its settings, the relations that it names.

READ is proved, never assumed: a plain SELECT, VALUES or TABLE without INTO, row locks and data-modifying
CTEs, that calls only listed functions and names no catalog. Whatever cannot be proved is a WRITE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxy.sql.functions import READ_SAFE, SESSION_STATE, foreign_operator, plain_name
from proxy.sql.kinds import Kind, worst
from proxy.sql.parse import LEAVES, Node, Parsed, Statement

RelationName = tuple[str | None, str]

_TRANSACTION = {
    "TRANS_STMT_BEGIN": Kind.BEGIN,
    "TRANS_STMT_START": Kind.BEGIN,
    "TRANS_STMT_COMMIT": Kind.COMMIT,
    "TRANS_STMT_PREPARE": Kind.COMMIT,
    "TRANS_STMT_ROLLBACK": Kind.ROLLBACK,
    "TRANS_STMT_SAVEPOINT": Kind.SAVEPOINT,
    "TRANS_STMT_RELEASE": Kind.SAVEPOINT,
    "TRANS_STMT_ROLLBACK_TO": Kind.SAVEPOINT,
}
_FIXED = {
    "VariableShowStmt": Kind.SHOW,
    "ConstraintsSetStmt": Kind.SET_LOCAL,
    "ListenStmt": Kind.SESSION,
    "UnlistenStmt": Kind.SESSION,
    "DiscardStmt": Kind.SESSION,
    "DeallocateStmt": Kind.SESSION,
    "PrepareStmt": Kind.SESSION,
    "ExecuteStmt": Kind.SESSION,
    "DeclareCursorStmt": Kind.SESSION,
    "LoadStmt": Kind.SESSION,
    "IndexStmt": Kind.DDL,
    "ViewStmt": Kind.DDL,
    "RuleStmt": Kind.DDL,
    "SecLabelStmt": Kind.DDL,
    "ReassignOwnedStmt": Kind.DDL,
    "RefreshMatViewStmt": Kind.DDL,
    "ReindexStmt": Kind.DDL,
    "VacuumStmt": Kind.DDL,
    "ClusterStmt": Kind.DDL,
}
_DDL_PREFIXES = ("Create", "Alter", "Drop", "Rename", "Define", "Comment", "Grant", "Import", "Composite")
_LEAVES = LEAVES | {"ColumnRef"}
_MODIFYING = frozenset({"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})
_CATALOGS = frozenset({"pg_catalog", "information_schema", "dualwire"})


@dataclass(frozen=True, slots=True)
class Classified:
    """What is known about one statement."""

    kind: Kind
    relations: tuple[RelationName, ...] = ()
    """Every relation named, common table expressions left out, in the order of the tree."""
    settings: tuple[tuple[str, str | None], ...] = ()
    temp_relations: tuple[str, ...] = ()


def classify(statement: Statement, text: bytes) -> Classified:
    """Classify one statement of a parsed text."""
    survey = _Survey()
    survey.root(statement)
    relations = tuple(dict.fromkeys(survey.relations))
    temporary = tuple(survey.temporary)
    kind = _kind(statement, survey)
    settings: tuple[tuple[str, str | None], ...] = ()
    if kind is Kind.SET:
        settings = (_setting(statement, text),)
    if temporary or (survey.session_state and kind is not Kind.SET):
        kind = worst(kind, Kind.SESSION)
    return Classified(kind, relations, settings, temporary)


def worst_kind(classified: tuple[Classified, ...], parsed: Parsed) -> Kind:
    """The kind of a whole text."""
    if parsed.failure is not None:
        return Kind.UNPARSED
    kind = Kind.EMPTY
    for one in classified:
        kind = worst(kind, one.kind)
    return kind


def _kind(statement: Statement, survey: _Survey) -> Kind:
    name, node = statement.type, statement.node
    if name == "SelectStmt":
        if survey.session_state and _set_config(node) is not None:
            return Kind.SET
        return Kind.READ if survey.harmless else Kind.WRITE
    if name == "TransactionStmt":
        # COMMIT PREPARED and ROLLBACK PREPARED end no transaction of this session.
        return _TRANSACTION.get(node["kind"], Kind.WRITE)
    if name == "VariableSetStmt":
        is_local = node.get("is_local") or node.get("name") in ("TRANSACTION", "TRANSACTION SNAPSHOT")
        return Kind.SET_LOCAL if is_local else Kind.SET
    if name == "CopyStmt":
        is_in = node.get("is_from") and "filename" not in node
        return Kind.COPY_IN if is_in else Kind.WRITE
    if name == "CreateTableAsStmt":
        return Kind.DDL
    fixed = _FIXED.get(name)
    if fixed is not None:
        return fixed
    return Kind.DDL if name.startswith(_DDL_PREFIXES) else Kind.WRITE


def _setting(statement: Statement, text: bytes) -> tuple[str, str | None]:
    node = statement.node
    if statement.type == "SelectStmt":
        return _set_config(node) or "", text[statement.start : statement.end].decode(errors="replace").strip()
    name = node.get("name", "all").lower()
    if node["kind"] in ("VAR_RESET", "VAR_RESET_ALL", "VAR_SET_DEFAULT"):
        return name, None
    return name, text[statement.start : statement.end].decode(errors="replace").strip()


class _Survey:
    """One walk over a statement's tree: relations, temporary relations, and whether anything speaks against READ."""

    def __init__(self) -> None:
        self.relations: list[RelationName] = []
        self.temporary: list[str] = []
        self.harmless = True
        self.session_state = False

    def root(self, statement: Statement) -> None:
        self._fields({statement.type: statement.node}, frozenset())

    def _walk(self, value: Any, ctes: frozenset[str]) -> None:
        if isinstance(value, list):
            for item in value:
                self._walk(item, ctes)
        elif isinstance(value, dict):
            self._fields(value, ctes)

    def _fields(self, node: Node, ctes: frozenset[str]) -> None:
        if "relname" in node:
            self._relation(node, ctes)
            return
        if "withClause" in node:
            ctes = self._with(node["withClause"], ctes)
        for key, child in node.items():
            if key in _MODIFYING:
                self.harmless = False
                self._target(child, ctes)
            elif key == "FuncCall":
                self._call(child)
                self._walk(child, ctes)
            elif key == "A_Expr":
                if foreign_operator(child):
                    self.harmless = False
                self._walk(child, ctes)
            elif key == "intoClause" or key == "into":
                self.harmless = False
                self._created(child.get("rel", {}))
            elif key == "lockingClause":
                self.harmless = False  # its relations are aliases of FROM
            elif key in ("CreateStmt", "CreateSeqStmt", "ViewStmt"):
                self._created(child.get("relation", child.get("sequence", child.get("view", {}))))
                self._walk(child, ctes)
            elif key == "withClause":
                continue
            elif type(child) is dict:
                if key not in _LEAVES:
                    self._fields(child, ctes)
            elif type(child) is list:
                self._walk(child, ctes)

    def _target(self, node: Node, ctes: frozenset[str]) -> None:
        """A statement that modifies: its target is never a CTE, even where one has the same name."""
        self._relation(node["relation"], frozenset())
        if "withClause" in node:
            ctes = self._with(node["withClause"], ctes)
        for key, child in node.items():
            if key not in ("relation", "withClause"):
                self._walk({key: child}, ctes)

    def _with(self, clause: Node, ctes: frozenset[str]) -> frozenset[str]:
        entries = [entry["CommonTableExpr"] for entry in clause["ctes"]]
        recursive = bool(clause.get("recursive"))
        if recursive:
            ctes = ctes | {entry["ctename"] for entry in entries}
        for entry in entries:
            self._walk(entry["ctequery"], ctes)
            ctes = ctes | {entry["ctename"]}
        return ctes

    def _relation(self, node: Node, ctes: frozenset[str]) -> None:
        schema, name = node.get("schemaname"), node["relname"]
        if schema is None and name in ctes:
            return
        if schema in _CATALOGS or (schema is None and name.startswith("pg_")):
            self.harmless = False
        self.relations.append((schema, name))

    def _created(self, relation: Node) -> None:
        if relation.get("relpersistence") == "t" or relation.get("schemaname") == "pg_temp":
            self.temporary.append(relation["relname"])

    def _call(self, node: Node) -> None:
        name = plain_name(node["funcname"])
        if name in READ_SAFE:
            return
        self.harmless = False
        if name in SESSION_STATE and not (name == "set_config" and _is_local(node.get("args", []))):
            self.session_state = True


def _set_config(select: Node) -> str | None:
    """The setting's name, where a SELECT is nothing but a call of set_config with constants for the session."""
    targets = select.get("targetList", [])
    if len(targets) != 1 or set(select) - {"targetList", "limitOption", "op"}:
        return None
    call = targets[0]["ResTarget"].get("val", {}).get("FuncCall")
    if call is None or plain_name(call["funcname"]) != "set_config" or len(call.get("args", [])) != 3:
        return None
    name, value, _ = (_constant(argument) for argument in call["args"])
    if name is None or value is None or _is_local(call["args"]):
        return None
    return name.lower()


def _constant(argument: Node) -> str | None:
    if "TypeCast" in argument:
        argument = argument["TypeCast"]["arg"]
    constant = argument.get("A_Const", {})
    value: str | None = constant.get("sval", {}).get("sval", "") if "sval" in constant else None
    return value


def _is_local(arguments: list[Node]) -> bool:
    if len(arguments) != 3:
        return False
    third = arguments[2]
    if "TypeCast" in third:
        third = third["TypeCast"]["arg"]
    constant = third.get("A_Const", {})
    return bool(constant.get("boolval", {}).get("boolval")) or constant.get("sval", {}).get("sval") in (
        "t",
        "true",
    )
