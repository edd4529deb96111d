"""Every statement of PostgreSQL's regression SQL under the identity mapping: rewritten, it gives what it gives itself.

``python -m tests.conformance corpus DIRECTORY`` takes ``src/test/regress`` of a PostgreSQL source tree
(``REGRESS_DIR`` where no directory is given) and runs its scripts in two databases, statement by statement: in one as
they stand, in the other as the planner rewrites them. There each table gets a column that its version does not have, so
that every read needs a derived table and every list is supplied, and a mirror of each column that is simply a copy of
it; after a mirrored write the copies must agree. Rows, columns with their types and modifiers, tags and SQLSTATEs must
be equal.

What is not compared: statements whose outcome differs by itself (times, OIDs, physical order), what depends on an
object that was made from ``*`` of such a table, and errors' texts. Exit status: 0 no unexpected difference, 1 there
are some.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from pglast.parser import split
from psycopg import pq

from migrator.cluster import start_cluster
from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel
from proxy.rewrite.plan import Kind, Plan
from proxy.rewrite.planner import Planner
from proxy.sql.parse import parse
from proxy.sql.quote import ident
from tests.conformance.suites import allowed

ALLOWED = Path(__file__).with_name("corpus_allowed.txt")
FIRST = ("test_setup", "create_index", "create_misc")
"""Scripts whose tables the others use, in this order."""
LEFT_OUT = frozenset(
    {
        "regproc", "sanity_check", "opr_sanity", "type_sanity", "tablespace", "database", "stats", "stats_ext",
        "vacuum",
        "publication", "subscription", "privileges", "misc_functions", "event_trigger", "oid8", "xid", "psql",
        "psql_crosstab", "prepared_xacts", "guc", "cluster", "amutils", "brin", "gist", "spgist", "object_address",
    }
)  # fmt: skip
"""Scripts about something else than statements on tables, or about the whole server."""
HIDDEN = "zz_hidden"
MARK = "_dualwire_mark"
COMPARED = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})
MIRRORED_TYPES = frozenset(
    {
        "integer",
        "bigint",
        "smallint",
        "text",
        "numeric",
        "boolean",
        "double precision",
        "real",
        "date",
        "character varying",
    }
)
_UNSTABLE = re.compile(
    rb"ctid|xmin|xmax|cmin|tableoid|\boid\b|regclass|random|now\s*\(|current_(?:time|date|user|schema|database)|clock_|"
    rb"localtime|timeofday|pg_|txid|uuid|session_user|'(?:now|today|yesterday|tomorrow)'|nextval|currval|lastval|row_number",
    re.IGNORECASE,
)
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, -1), format_type(a.atttypid, a.atttypmod), a.attnotnull,
  pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated,
  coalesce(pg_get_expr(d.adbin, d.adrelid) ~ '\\(', false)
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_TABLES = """
SELECT c.oid, n.nspname, c.relname,
  ARRAY(SELECT a.attname::text FROM pg_index i, unnest(i.indkey) k, pg_attribute a
        WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND NOT c.relispartition AND c.reloftype = 0
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'dualwire')
  AND NOT EXISTS (SELECT FROM pg_inherits h WHERE c.oid IN (h.inhrelid, h.inhparent))"""


@dataclass(slots=True)
class Side:
    """One of the two databases."""

    connection: psycopg.Connection[Any]

    def run(self, text: bytes) -> Any:
        """The outcome of a statement: kind, columns and rows, tag; or the error's code."""
        result = self.connection.pgconn.exec_(text)
        status = pq.ExecStatus(result.status)
        if status in (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT):
            self.connection.pgconn.put_copy_end(b"not here") if status is pq.ExecStatus.COPY_IN else None
            while self.connection.pgconn.get_result() is not None:
                pass
            return ("copy",)
        if status is pq.ExecStatus.FATAL_ERROR:
            return "error", (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        # OIDs of types that the scripts make differ between the databases.
        columns = [
            (result.fname(at), min(result.ftype(at), 16384), result.fmod(at)) for at in range(result.nfields)
        ]
        rows = [
            tuple(result.get_value(row, at) for at in range(result.nfields)) for row in range(result.ntuples)
        ]
        return "done", columns, sorted(rows, key=repr), result.command_status

    @property
    def failed(self) -> bool:
        """Whether a transaction is open that has failed."""
        return self.connection.info.transaction_status is pq.TransactionStatus.INERROR


@dataclass(slots=True)
class Corpus:
    """The comparison under way."""

    plain: Side
    rewritten: Side
    models: dict[str, TableModel] = field(default_factory=dict)
    tainted: set[bytes] = field(default_factory=set)
    """Names of objects that show the added columns, or that are not the same on both sides any more."""
    dirty: set[str] = field(default_factory=set)
    """Tables written past their mirrors."""
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    differences: list[tuple[str, str]] = field(default_factory=list)
    planner: Planner = field(default_factory=lambda: Planner((), "old"))
    search_path: tuple[str, ...] = ("public",)
    temporary: frozenset[str] = frozenset()

    def statement(self, script: str, text: bytes) -> None:
        """Run one statement on both sides."""
        parsed = parse(text)
        kind = parsed.statements[0].type if len(parsed.statements) == 1 else ""
        if kind == "CopyStmt" and b"/data/" in text:
            plan = self.planner.plan(text, self.search_path, self.temporary)
            self.dirty.update(plan.tables)
            self.plain.run(text)
            self.rewritten.run(plan.text)
            return
        if (
            kind in ("CopyStmt", "NotifyStmt", "ListenStmt", "LoadStmt")
            or self.plain.failed != self.rewritten.failed
        ):
            self.counts["left out"] += 1
            return
        plan = self.planner.plan(text, self.search_path, self.temporary)
        self.reasons[plan.reason] += 1
        if plan.reason == "internal_error":
            self.differences.append((script, f"internal error: {plan.explanations}\n{_shown(text)}"))
            return
        self.temporary |= frozenset(plan.temp_relations)
        expected = self.plain.run(text)
        if plan.refusal is not None and kind in COMPARED and expected[0] == "done":
            self.counts[f"refused ({plan.reason})"] += 1
            self._taint(plan)
        got = self.rewritten.run(text if plan.refusal is not None else plan.text)
        if kind not in COMPARED:
            self._changed(kind, text, plan, expected, got)
            return
        if plan.guarded:
            self.dirty.update(plan.tables)
        if plan.refusal is not None or not plan.tables or self._excused(text):
            return
        self.counts["compared"] += 1
        if got != expected and not (plan.mirrored and got[0] == expected[0] == "error"):
            # (A rewritten text that the server rejects is not what a sidecar would send.)
            told = (
                f"  became   {_shown(plan.text)}",
                f"  expected {_brief(expected)}",
                f"  got      {_brief(got)}",
            )
            self.differences.append((script, "\n".join((_shown(text), *told))))
            self._taint(plan)
        elif plan.mirrored and not plan.guarded and got[0] == "done":
            self.counts["mirrored"] += 1
            self._check_mirrors(script, plan)

    def _excused(self, text: bytes) -> bool:
        if _UNSTABLE.search(text) is not None:
            return True
        return not _words(text).isdisjoint(self.tainted)

    def _taint(self, plan: Plan) -> None:
        self.tainted.update(name.rpartition(".")[2].encode() for name in plan.tables)

    def _check_mirrors(self, script: str, plan: Plan) -> None:
        for name in plan.tables:
            model = self.models[name]
            if name in self.dirty or not model.up.mirrors or self.rewritten.failed:
                continue
            wrong = " OR ".join(
                f"{ident(m.target)} IS DISTINCT FROM {ident(m.sources[0])}" for m in model.up.mirrors
            )
            table = f"{ident(model.schema)}.{ident(model.name)}"
            outcome = self.rewritten.run(f"SELECT count(*) FROM {table} WHERE {wrong}".encode())
            if outcome[0] == "done" and outcome[2] != [(b"0",)]:
                self.differences.append(
                    (script, f"{outcome[2]} rows of {name} diverge after\n{_shown(plan.text)}")
                )
                self.dirty.add(name)

    def _changed(self, kind: str, text: bytes, plan: Plan, expected: Any, got: Any) -> None:
        """After a statement that is not compared: follow what it changed."""
        if expected[0] != got[0] and kind:
            self.counts[f"went apart ({kind})"] += 1
            self.tainted.update(_words(text))
        if plan.refusal is not None and got[0] == "done":
            # A view over *, a rule, LIKE: what it makes shows the columns that were added.
            self.tainted.update(_made(kind, parse(text).statements[0].node))
        if kind == "DropStmt" and got == expected and got[0] == "done":
            self.tainted.difference_update(_words(text))
        if kind == "VariableSetStmt" or plan.kind is Kind.ROLLBACK or b"search_path" in text:
            self._read_path()
        if kind.startswith(("Create", "Alter", "Drop", "Rename", "Transaction", "Truncate", "Rule", "View")):
            self._follow(_words(text))

    def _read_path(self) -> None:
        if self.rewritten.failed:
            return
        outcome = self.rewritten.run(b"SELECT unnest(current_schemas(false))")
        if outcome[0] == "done":
            rows = self.rewritten.connection.pgconn.exec_(b"SELECT unnest(current_schemas(false))")
            self.search_path = tuple(rows.get_value(at, 0).decode() for at in range(rows.ntuples))

    def _follow(self, words: set[bytes]) -> None:
        """Give new tables their columns, and read the models again of those that were named."""
        if self.rewritten.failed:
            return
        execute = self.rewritten.connection.execute
        models = {}
        for oid, schema, name, key in execute(_TABLES).fetchall():
            before = self.models.get(f"{schema}.{name}")
            if before is not None and before.oid == oid and name.encode() not in words:
                models[f"{schema}.{name}"] = before
                continue
            columns = [_column(row) for row in execute(_COLUMNS, (oid,)).fetchall()]
            if HIDDEN not in (c.name for c in columns):
                if (
                    len(columns) > 400
                    or self.rewritten.connection.info.transaction_status is pq.TransactionStatus.INERROR
                ):
                    continue
                mirrored = [c for c in columns if c.type in MIRRORED_TYPES and not c.generated][:3]
                added = [f"ADD COLUMN {HIDDEN} integer", f"ADD COLUMN {MARK} smallint"]
                added += [f"ADD COLUMN {ident('_dualwire_new_' + c.name)} {c.type}" for c in mirrored]
                sql = f"ALTER TABLE {ident(schema)}.{ident(name)} {', '.join(added)}"
                if self.rewritten.run(sql.encode())[0] != "done":
                    continue
                copied = ", ".join(f"{ident('_dualwire_new_' + c.name)} = {ident(c.name)}" for c in mirrored)
                if copied:
                    self.rewritten.run(f"UPDATE {ident(schema)}.{ident(name)} SET {copied}".encode())
                columns = [_column(row) for row in execute(_COLUMNS, (oid,)).fetchall()]
                before = None
            if before is None:
                self.dirty.discard(f"{schema}.{name}")
            models[f"{schema}.{name}"] = _model(oid, schema, name, tuple(key), columns)
        if models != self.models:
            self.models = models
            self.planner = Planner(tuple(models.values()), "old")


def _column(row: tuple[Any, ...]) -> Column:
    name, kind, full, not_null, default, identity, generated, volatile = row
    default_kind: Any = "none" if default is None else "volatile" if volatile else "stable"
    return Column(
        name,
        kind,
        full,
        not_null,
        None if generated else default,
        "none" if generated else default_kind,
        identity,
        bool(generated),
    )


def _model(oid: int, schema: str, name: str, key: tuple[str, ...], columns: list[Column]) -> TableModel:
    names = {c.name for c in columns}
    logical = tuple(
        LogicalColumn(c.name, c.name)
        for c in columns
        if c.name not in (HIDDEN, MARK) and not c.name.startswith("_dualwire_new_")
    )
    mirrors = tuple(
        Mirror("_dualwire_new_" + c.column, "dualwire.same", (c.column,))
        for c in logical
        if "_dualwire_new_" + c.column in names
    )
    return TableModel(
        schema,
        name,
        oid,
        tuple(columns),
        key,
        logical,
        logical,
        Direction(mirrors),
        mark=MARK if mirrors else None,
    )


_COMMON = frozenset(
    b"table create alter column from select where values insert into update delete text integer view".split()
)


def _words(text: bytes) -> set[bytes]:
    return set(re.findall(rb"[a-z_][a-z0-9_]{2,}", text.lower())) - _COMMON


def _made(kind: str, node: dict[str, Any]) -> set[bytes]:
    """The names of what a statement makes out of other tables' columns."""
    if kind == "CreateFunctionStmt":
        return {node["funcname"][-1]["String"].get("sval", "").encode()}
    relation = node.get("view") or (node.get("into") or {}).get("rel")
    if kind == "RuleStmt":
        relation = node.get("relation")
    return set() if relation is None else {relation["relname"].encode()}


def _shown(text: bytes) -> str:
    return text.decode(errors="replace").strip()[:1500]


def _first(difference: str) -> str:
    """What names a difference in the list of those allowed: the statement's beginning."""
    return " ".join(re.sub(r"--[^\n]*\n", " ", difference).split())[:60]


def _brief(outcome: Any) -> str:
    return repr(outcome)[:700]


def statements(script: str, directory: Path) -> Iterator[bytes]:
    """The statements of a psql script, without psql's own commands, their variables, and COPY's data."""
    kept: list[str] = []
    filename = ""
    copying = False
    for line in script.splitlines():
        if copying:
            copying = line != "\\."
            continue
        if re.match(r"\s*copy\b.*\bfrom\s+stdin\b.*;", line, re.IGNORECASE):
            copying = True
            continue
        if (named := re.match(r"\\set filename :abs_srcdir '([^']+)'", line)) is not None:
            filename = f"{directory}{named[1]}"
        line = line.replace(":'filename'", f"'{filename}'")
        kept.append(
            re.sub(r"\\(?:g|gset|gexec|gx|gdesc|crosstabview|;|bind|parse|watch).*$", ";", line)
            if "\\g" in line
            else line
        )
        if line.lstrip().startswith("\\"):
            kept.pop()
    try:
        parts = split("\n".join(kept), with_parser=False)
    except Exception:
        return
    for part in parts:
        yield part.encode()


def run(directory: Path, only: list[str]) -> int:
    """All scripts; the exit status."""
    scripts = sorted(path.stem for path in (directory / "sql").glob("*.sql"))
    ordered = [s for s in FIRST if s in scripts] + [
        s for s in scripts if s not in FIRST and s not in LEFT_OUT
    ]
    permitted = allowed.read(ALLOWED)
    total: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    unexpected = 0
    # Two servers, because roles belong to all databases of one.
    with start_cluster(trust=True) as plain, start_cluster(trust=True) as other:
        sides = []
        for cluster in (plain, other):
            cluster.primary.sql(
                "CREATE DATABASE corpus TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
            )
            connection = psycopg.connect(
                cluster.primary.dsn(database="corpus"), autocommit=True, prepare_threshold=None
            )
            connection.execute("SET statement_timeout = '20s'")
            sides.append(Side(connection))
        sides[1].connection.execute("CREATE SCHEMA dualwire; GRANT USAGE ON SCHEMA dualwire TO PUBLIC")
        sides[1].connection.execute(
            "CREATE FUNCTION dualwire.same(v anyelement) RETURNS anyelement LANGUAGE sql IMMUTABLE AS 'SELECT v'"
        )
        corpus = Corpus(*sides)
        for script in ordered:
            if only and script not in only and script not in FIRST:
                continue
            before = len(corpus.differences)
            text = (directory / "sql" / f"{script}.sql").read_text(errors="replace")
            for statement in statements(text, directory):
                corpus.statement(script, statement)
            for side in sides:
                side.run(b"ROLLBACK")
                side.run(b"SET SESSION AUTHORIZATION DEFAULT; RESET ALL")
                side.run(b"SET statement_timeout = '20s'")
            corpus.temporary = frozenset()
            corpus._read_path()
            corpus._follow(set())
            for where, difference in corpus.differences[before:]:
                if permitted.reason(f"{where}: {_first(difference)}") is None:
                    unexpected += 1
                    print(f"[corpus] DIFFERENT in {where}: {difference}\n", flush=True)
        total.update(corpus.counts)
        reasons.update(corpus.reasons)
    for name, count in sorted(total.items()):
        print(f"[corpus] {name}: {count}")
    print(f"[corpus] reasons: {dict(reasons.most_common())}")
    print(f"[corpus] {unexpected} unexpected differences", flush=True)
    return 1 if unexpected else 0


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance corpus")
    parser.add_argument(
        "directory", type=Path, nargs="?", help="src/test/regress of a PostgreSQL source tree"
    )
    parser.add_argument("--only", action="append", default=[], metavar="SCRIPT")
    chosen = parser.parse_args(arguments)
    given = chosen.directory or os.environ.get("REGRESS_DIR")
    if not given:
        print("[corpus] skipped: name src/test/regress of a PostgreSQL source tree (REGRESS_DIR)")
        return 0 if arguments == [] else 2
    directory = Path(given).resolve()
    if not (directory / "sql").is_dir():
        print(f"[corpus] not there: {directory / 'sql'}", file=sys.stderr)
        return 2
    return run(directory, chosen.only)


if __name__ == "__main__":
    sys.exit(main())
