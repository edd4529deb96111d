"""A catalogue of SQL expressions that cannot raise an error, whatever the row holds.

``prove`` walks a parse tree and answers from tables of known operators, functions and casts; anything that is not
in the tables is *not proved*, never assumed. Literals are not looked into: the server coerces them when it analyses
the expression, so a wrong one has failed before. What is proved total runs inline; the rest runs in a function that
traps errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALIASES = {
    "int2": "smallint",
    "int4": "integer",
    "int": "integer",
    "int8": "bigint",
    "bool": "boolean",
    "varchar": "character varying",
    "bpchar": "character",
    "float4": "real",
    "float8": "double precision",
    "decimal": "numeric",
    "timestamptz": "timestamp with time zone",
    "timestamp": "timestamp without time zone",
    "timetz": "time with time zone",
    "time": "time without time zone",
}
TEXTUAL = frozenset({"text", "character varying"})
INTEGERS = {
    "smallint": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
}
SCALARS = (
    frozenset(
        {
            "boolean",
            "numeric",
            "real",
            "double precision",
            "date",
            "timestamp with time zone",
            "timestamp without time zone",
            "time without time zone",
            "uuid",
            "bytea",
            "name",
            "character",
        }
    )
    | TEXTUAL
    | INTEGERS.keys()
)
"""Built-in types whose comparison and output functions never raise."""
WIDENS = {
    "smallint": {"integer", "bigint", "numeric", "real", "double precision"},
    "integer": {"bigint", "numeric", "real", "double precision"},
    "bigint": {"numeric", "real", "double precision"},
    "real": {"double precision"},
    "text": {"character varying"},
    "character varying": {"text"},
    "boolean": {"integer"},
}
COMPARISONS = frozenset({"=", "<>", "!=", "<", ">", "<=", ">="})
FUNCTIONS: dict[str, tuple[frozenset[str], str | None]] = {
    # name -> (types that every argument must have, result type; None: the first argument's)
    "lower": (TEXTUAL, "text"),
    "upper": (TEXTUAL, "text"),
    "initcap": (TEXTUAL, "text"),
    "btrim": (TEXTUAL, "text"),
    "ltrim": (TEXTUAL, "text"),
    "rtrim": (TEXTUAL, "text"),
    "reverse": (TEXTUAL, "text"),
    "replace": (TEXTUAL, "text"),
    "translate": (TEXTUAL, "text"),
    "length": (TEXTUAL, "integer"),
    "char_length": (TEXTUAL, "integer"),
    "character_length": (TEXTUAL, "integer"),
    "octet_length": (TEXTUAL, "integer"),
    "strpos": (TEXTUAL, "integer"),
    "starts_with": (TEXTUAL, "boolean"),
    "floor": (frozenset({"numeric", "double precision"}), None),
    "ceil": (frozenset({"numeric", "double precision"}), None),
    "ceiling": (frozenset({"numeric", "double precision"}), None),
}


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What is known of a column that an expression refers to."""

    type: str
    """Without modifier, as ``format_type(oid, -1)`` prints it."""
    not_null: bool = False
    enum: bool = False


@dataclass(frozen=True, slots=True)
class Proof:
    """What is known of an expression. ``type`` is None where it could not be followed."""

    total: bool
    type: str | None = None
    not_null: bool = False
    enum: bool = False

    @property
    def textual(self) -> bool:
        """Whether it is text or a bare literal."""
        return self.type in TEXTUAL or self.type == "unknown"

    @property
    def comparable(self) -> bool:
        """Whether comparing it cannot raise."""
        return self.enum or self.type in SCALARS or self.type in {"unknown", "null"}


UNPROVED = Proof(total=False)


def canonical(name: str) -> str:
    """The type's name as ``format_type`` prints it."""
    return ALIASES.get(name, name)


def prove(node: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    """What the catalogue says about a parse tree."""
    [(kind, body)] = node.items()
    rule = _RULES.get(kind)
    return UNPROVED if rule is None else rule(body, columns)


def prove_cast(node: Mapping[str, Any], target: str, columns: Mapping[str, ColumnType]) -> Proof:
    """What the catalogue says about ``CAST(node AS target)``, target without modifier."""
    return _cast(prove(node, columns), node, target)


def _cast(inner: Proof, node: Mapping[str, Any], target: str) -> Proof:
    if not inner.total:
        return UNPROVED
    result = Proof(True, target, inner.not_null)
    if inner.type in {"null", "unknown", target}:
        return Proof(True, target, inner.not_null, inner.enum and inner.type == target)
    if target in TEXTUAL and (inner.comparable or inner.type == "boolean"):
        return result
    if inner.type is not None and target in WIDENS.get(inner.type, ()):
        return result
    if target in INTEGERS:
        values = _integers(node)
        low, high = INTEGERS[target]
        if values is not None and all(low <= v <= high for v in values):
            return result
    return UNPROVED


def _integers(node: Mapping[str, Any]) -> list[int] | None:
    """The integer constants that the expression can give; None if it can give anything else than them or NULL."""
    [(kind, body)] = node.items()
    if kind == "A_Const":
        if body.get("isnull"):
            return []
        return [body["ival"].get("ival", 0)] if "ival" in body else None
    if kind == "A_Expr" and _operator(body) == "-" and "lexpr" not in body:
        inner = _integers(body["rexpr"])
        return None if inner is None else [-v for v in inner]
    branches: list[Mapping[str, Any]] = []
    if kind == "CaseExpr":
        branches = [w["CaseWhen"]["result"] for w in body["args"]]
        branches += [body["defresult"]] if "defresult" in body else []
    elif kind == "CoalesceExpr":
        branches = body["args"]
    else:
        return None
    gathered: list[int] = []
    for branch in branches:
        inner = _integers(branch)
        if inner is None:
            return None
        gathered += inner
    return gathered


def _column(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    known = columns.get(body["fields"][-1].get("String", {}).get("sval", ""))
    return UNPROVED if known is None else Proof(True, known.type, known.not_null, known.enum)


def _constant(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    if body.get("isnull"):
        return Proof(True, "null")
    if "ival" in body:
        return Proof(True, "integer", True)
    if "fval" in body:
        return Proof(True, "numeric", True)
    if "boolval" in body:
        return Proof(True, "boolean", True)
    return Proof(True, "unknown", True) if "sval" in body else UNPROVED


def _type_cast(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    name = body["typeName"]
    if name.get("typmods") or name.get("arrayBounds") or "names" not in name:
        return UNPROVED
    target = canonical(name["names"][-1]["String"]["sval"])
    inner = prove(body["arg"], columns)
    if target not in SCALARS:
        return UNPROVED
    return _cast(inner, body["arg"], target)


def _case(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    results = []
    subject = prove(body["arg"], columns) if "arg" in body else None
    if subject is not None and not (subject.total and subject.comparable):
        return UNPROVED
    for item in body["args"]:
        when = item["CaseWhen"]
        condition = prove(when["expr"], columns)
        if not condition.total or (subject is not None and not condition.comparable):
            return UNPROVED
        results.append(prove(when["result"], columns))
    results.append(prove(body["defresult"], columns) if "defresult" in body else Proof(True, "null"))
    return _union(results)


def _union(results: list[Proof]) -> Proof:
    """The common type of branches, where it is one type (literals and NULL follow it)."""
    if not all(r.total for r in results):
        return UNPROVED
    not_null = all(r.not_null for r in results)
    types = {r.type for r in results} - {"unknown", "null"}
    if not types:
        return Proof(True, "text" if any(r.type == "unknown" for r in results) else "null", not_null)
    if len(types) == 1:
        return Proof(True, types.pop(), not_null, any(r.enum for r in results))
    if types <= {"smallint", "integer", "bigint", "numeric"}:
        order = ["smallint", "integer", "bigint", "numeric"]
        return Proof(True, max((t for t in types if t), key=order.index), not_null)
    return UNPROVED


def _coalesce(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    results = [prove(a, columns) for a in body["args"]]
    joined = _union(results)
    return Proof(joined.total, joined.type, any(r.not_null for r in results), joined.enum)


def _minmax(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    results = [prove(a, columns) for a in body["args"]]
    joined = _union(results)
    if not joined.total or not joined.comparable:
        return UNPROVED
    return Proof(True, joined.type, any(r.not_null for r in results), joined.enum)


def _null_test(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    return Proof(prove(body["arg"], columns).total, "boolean", True)


def _bool(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    parts = [prove(a, columns) for a in body["args"]]
    if not all(p.total and p.type in {"boolean", "unknown", "null"} for p in parts):
        return UNPROVED
    return Proof(True, "boolean", all(p.not_null for p in parts))


def _operator(body: Mapping[str, Any]) -> str:
    names = body.get("name", [])
    return str(names[0]["String"]["sval"]) if len(names) == 1 else ""


def _a_expr(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    kind, operator = body.get("kind"), _operator(body)
    if "lexpr" not in body:
        inner = prove(body["rexpr"], columns)
        constant = (
            operator in {"-", "+"} and "A_Const" in body["rexpr"] and inner.type in {"integer", "numeric"}
        )
        return Proof(True, inner.type, True) if constant else UNPROVED
    left = prove(body["lexpr"], columns)
    if kind == "AEXPR_IN":
        items = [prove(i, columns) for i in body["rexpr"]["List"]["items"]]
        total = all(p.total and p.comparable for p in [left, *items])
        return Proof(True, "boolean", all(p.not_null for p in [left, *items])) if total else UNPROVED
    if not isinstance(body.get("rexpr"), Mapping):
        return UNPROVED
    right = prove(body["rexpr"], columns)
    if not (left.total and right.total):
        return UNPROVED
    both = left.not_null and right.not_null
    if kind == "AEXPR_OP":
        if operator in COMPARISONS and left.comparable and right.comparable:
            return Proof(True, "boolean", both)
        if operator == "||" and left.textual and right.textual:
            return Proof(True, "text", both)
        return UNPROVED
    if not (left.comparable and right.comparable):
        return UNPROVED
    if kind in {"AEXPR_DISTINCT", "AEXPR_NOT_DISTINCT"}:
        return Proof(True, "boolean", True)
    if kind == "AEXPR_NULLIF":
        return Proof(True, "text" if left.type == "unknown" else left.type, False, left.enum)
    return UNPROVED


def _function(body: Mapping[str, Any], columns: Mapping[str, ColumnType]) -> Proof:
    names = [n["String"]["sval"] for n in body["funcname"]]
    plain = {"funcname", "args", "funcformat", "location"}
    if len(names) > 2 or (len(names) == 2 and names[0] != "pg_catalog") or set(body) - plain:
        return UNPROVED
    name = names[-1]
    arguments = [prove(a, columns) for a in body.get("args", [])]
    if not arguments or not all(a.total for a in arguments):
        return UNPROVED
    if name == "concat" and all(a.comparable for a in arguments):
        return Proof(True, "text", True)
    if name not in FUNCTIONS:
        return UNPROVED
    accepted, result = FUNCTIONS[name]
    if not all(a.type in accepted or (a.type == "unknown" and accepted is TEXTUAL) for a in arguments):
        return UNPROVED
    return Proof(True, result or arguments[0].type, all(a.not_null for a in arguments))


_RULES = {
    "ColumnRef": _column,
    "A_Const": _constant,
    "TypeCast": _type_cast,
    "CaseExpr": _case,
    "CoalesceExpr": _coalesce,
    "MinMaxExpr": _minmax,
    "NullTest": _null_test,
    "BooleanTest": _null_test,
    "BoolExpr": _bool,
    "A_Expr": _a_expr,
    "FuncCall": _function,
}
