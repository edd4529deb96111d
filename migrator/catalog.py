"""What the catalog says about a table: one frozen value, read in one go.

Lint judges it, ``designer`` builds SQL from it, ``models`` turns it into the sidecars' ``TableModel`` and ``drift``
compares two of them. Reads only; names in expressions come back qualified because ``search_path`` is ``pg_catalog``
while they are printed.
"""

from __future__ import annotations

import json
from typing import Literal

import asyncpg
from pydantic import BaseModel, ConfigDict

DefaultKind = Literal["none", "stable", "volatile"]


class Frozen(BaseModel):
    """Base of catalog values."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class CatalogColumn(Frozen):
    """One live column."""

    name: str
    number: int
    type: str
    type_full: str
    type_oid: int
    typmod: int
    kind: str
    """pg_type.typtype: b base, e enum, d domain, c composite, r range, m multirange."""
    not_null: bool
    default: str | None
    default_kind: DefaultKind
    identity: str
    generated: str
    collation: str | None
    """Qualified and quoted, where it is not the type's default."""
    exact: bool
    """Values that compare equal are the same value (no case-insensitive type or collation)."""
    equality: bool
    """The type has a default btree or hash operator class."""
    extension: bool
    """The type comes from an extension: its operators are not found under a pinned search_path."""
    comment: str | None
    grants: list[list[str]]
    """Column privileges as (grantee, privilege); grantee is SQL text."""


class CatalogCheck(Frozen):
    """A constraint of the table."""

    name: str
    kind: str
    """pg_constraint.contype: c check, p primary key, u unique, f foreign key, x exclusion, n not null."""
    columns: list[str]
    definition: str
    validated: bool
    inherited: bool
    """A partition's, which is the parent's as well."""


class CatalogIndex(Frozen):
    """An index."""

    name: str
    definition: str
    columns: list[str]
    """Every column that it mentions, in keys, INCLUDE, expressions or predicate."""
    plain: bool
    """Neither expressions nor a predicate."""
    unique: bool
    constraint: bool
    valid: bool
    inherited: bool
    """A partition's part of the parent's index."""


class CatalogTrigger(Frozen):
    """A trigger that is not internal."""

    name: str
    definition: str
    enabled: str
    before_row: bool
    function: str
    language: str
    source: str
    """The function's text, or a symbol where it is no text."""
    inserts: bool
    updates: bool
    update_columns: list[str]
    """Those of UPDATE OF; empty where any column fires it."""
    arguments: list[str]
    pinned: bool
    """Its function has a search_path of its own, so it works whoever's statement fires it."""


class Dependent(Frozen):
    """An object outside the table that uses one of its columns."""

    column: str
    object: str
    kind: str


class CatalogTable(Frozen):
    """A table."""

    oid: int
    schema_name: str
    name: str
    kind: str
    persistence: str
    partition: bool
    inherits: bool
    row_security: bool
    has_rules: bool
    instead_rules: bool
    ancestors: list[int]
    """The partitioned tables above it."""
    partition_key: list[str]
    rows: int
    bytes: int
    columns: list[CatalogColumn]
    constraints: list[CatalogCheck]
    indexes: list[CatalogIndex]
    triggers: list[CatalogTrigger]
    shadows: list[str]
    """Other schemas that hold a relation of the same name."""
    dependents: list[Dependent] = []
    foreign: list[str] = []
    """Foreign keys of other tables that point here, as ``table.constraint (columns here)``."""
    publications: list[str] = []
    whole_row: list[str] = []
    """Functions whose signature or views whose text use the table's row type."""

    @property
    def qualified(self) -> str:
        """``schema.name``, unquoted."""
        return f"{self.schema_name}.{self.name}"

    @property
    def primary_key(self) -> list[str]:
        """The key's columns in key order."""
        for constraint in self.constraints:
            if constraint.kind == "p":
                return constraint.columns
        return []

    def column(self, name: str) -> CatalogColumn:
        """The column of that name; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


async def find_table(conn: asyncpg.Connection, schema: str, name: str) -> int | None:
    """The OID of a relation by exact names."""
    value = await conn.fetchval(
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        schema,
        name,
    )
    return None if value is None else int(value)


async def read_table(conn: asyncpg.Connection, oid: int, *, brief: bool = False) -> CatalogTable:
    """Everything about one table, in one round trip. Leaves ``search_path`` as it was.

    Args:
        brief: leave out what other objects have to do with it; for steps that hold locks.
    """
    query = _BRIEF if brief else _EVERYTHING
    document = json.loads(await conn.fetchval(query, oid))
    if document["path"] != "pg_catalog":
        await conn.execute("SELECT set_config('search_path', 'pg_catalog', false)")
        try:
            document = json.loads(await conn.fetchval(query, oid))
        finally:
            await conn.execute("SELECT set_config('search_path', $1, false)", document["path"])
    return CatalogTable.model_validate(document["table"] | document["parts"])


_TABLE = """
SELECT json_build_object(
  'oid', c.oid::bigint, 'schema_name', n.nspname, 'name', c.relname, 'kind', c.relkind,
  'persistence', c.relpersistence, 'partition', c.relispartition, 'row_security', c.relrowsecurity,
  'inherits', EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid OR i.inhparent = c.oid),
  'has_rules', EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'),
  'instead_rules', EXISTS (
    SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN' AND r.is_instead),
  'ancestors', coalesce((
    SELECT json_agg(a.relid::oid::bigint) FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid), '[]'),
  'partition_key', coalesce((
    SELECT json_agg(a.attname) FROM pg_attribute a JOIN pg_depend d ON d.objsubid = a.attnum
    WHERE a.attrelid = c.oid AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
      AND d.objid = c.oid AND d.refobjid = c.oid AND d.refobjsubid = 0 AND d.deptype = 'i'), '[]'),
  'rows', greatest(c.reltuples, 0)::bigint,
  'bytes', CASE WHEN c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) ELSE 0 END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1
"""

_COLUMNS = """
SELECT json_build_object(
  'name', a.attname, 'number', a.attnum, 'type', format_type(a.atttypid, -1),
  'type_full', format_type(a.atttypid, a.atttypmod), 'type_oid', a.atttypid::bigint, 'typmod', a.atttypmod,
  'kind', t.typtype, 'not_null', a.attnotnull, 'identity', a.attidentity, 'generated', a.attgenerated,
  'default', CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END,
  'default_kind', CASE WHEN d.oid IS NULL OR a.attgenerated <> '' THEN 'none'
    WHEN EXISTS (
      SELECT FROM regexp_matches(d.adbin::text, ':(?:funcid|opfuncid) (\\d+)', 'g') m
      JOIN pg_proc p ON p.oid = m[1]::oid WHERE p.provolatile = 'v')
      OR d.adbin::text LIKE '%{NEXTVALUEEXPR%' THEN 'volatile' ELSE 'stable' END,
  'collation', CASE WHEN a.attcollation <> t.typcollation
    THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
  'exact', t.typname <> 'citext' AND coalesce(co.collisdeterministic, true),
  'equality', EXISTS (
    SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
    WHERE m.amname IN ('btree', 'hash') AND o.opcdefault
      AND (o.opcintype = coalesce(nullif(t.typbasetype, 0), t.oid)
           OR (o.opcintype = 'anyenum'::regtype AND t.typtype = 'e')
           OR (o.opcintype = 'anyrange'::regtype AND t.typtype = 'r')
           OR (o.opcintype = 'text'::regtype AND t.typname IN ('varchar'))
           OR (o.opcintype = 'inet'::regtype AND t.typname IN ('cidr'))))
    OR (t.typcategory = 'A' AND EXISTS (
        SELECT FROM pg_opclass o JOIN pg_type e ON e.oid = t.typelem
        WHERE o.opcdefault AND (o.opcintype = e.oid OR e.typname = 'varchar' OR e.typtype = 'e'))),
  'extension', bt.typtype = 'b' AND bt.typcategory <> 'A' AND bt.typnamespace <> 'pg_catalog'::regnamespace,
  'comment', col_description(a.attrelid, a.attnum),
  'grants', coalesce((
    SELECT json_agg(json_build_array(
      CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END, x.privilege_type))
    FROM aclexplode(a.attacl) x), '[]'))
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type bt ON bt.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_collation co ON co.oid = a.attcollation
LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

_CONSTRAINTS = """
SELECT json_build_object(
  'name', o.conname, 'kind', o.contype, 'definition', pg_get_constraintdef(o.oid),
  'validated', o.convalidated, 'inherited', o.coninhcount > 0 OR o.conparentid <> 0,
  'columns', coalesce((
    SELECT json_agg(a.attname ORDER BY k.place)
    FROM unnest(o.conkey) WITH ORDINALITY k(number, place)
    JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.number), '[]'))
FROM pg_constraint o WHERE o.conrelid = $1 AND o.contype IN ('c', 'p', 'u', 'f', 'x') ORDER BY o.conname
"""

_INDEXES = """
SELECT json_build_object(
  'name', c.relname, 'definition', pg_get_indexdef(i.indexrelid), 'unique', i.indisunique,
  'plain', i.indexprs IS NULL AND i.indpred IS NULL, 'valid', i.indisvalid,
  'inherited', EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid),
  'constraint', EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid),
  'columns', coalesce((
    SELECT json_agg(DISTINCT a.attname) FROM pg_attribute a
    WHERE a.attrelid = i.indrelid AND a.attnum > 0 AND (
      a.attnum = ANY (i.indkey::int2[]) OR EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
          AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))),
    '[]'))
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1 ORDER BY c.relname
"""

_TRIGGERS = """
SELECT json_build_object(
  'name', t.tgname, 'definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled,
  'before_row', (t.tgtype & 3) = 3 AND (t.tgtype & 20) <> 0, 'function', t.tgfoid::regprocedure::text,
  'language', (SELECT l.lanname FROM pg_language l WHERE l.oid = p.prolang), 'source', p.prosrc,
  'inserts', (t.tgtype & 4) <> 0, 'updates', (t.tgtype & 16) <> 0,
  'update_columns', coalesce((
    SELECT json_agg(a.attname) FROM pg_attribute a
    WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr::int2[])), '[]'),
  'arguments', to_json(string_to_array(encode(t.tgargs, 'escape'), '\\000')),
  'pinned', p.prolang IN (12, 13) OR EXISTS (SELECT FROM unnest(p.proconfig) AS s WHERE s LIKE 'search_path=%'))
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = $1 AND NOT t.tgisinternal ORDER BY t.tgname
"""

_DEPENDENTS = """
SELECT DISTINCT ON (column_name, kind, object) json_build_object('column', column_name, 'kind', kind, 'object', object)
FROM (
  SELECT a.attname AS column_name,
    CASE d.classid
      WHEN 'pg_rewrite'::regclass THEN
        CASE v.relkind WHEN 'm' THEN 'materialized view' WHEN 'v' THEN 'view' ELSE 'rule' END
      WHEN 'pg_proc'::regclass THEN 'function'
      WHEN 'pg_trigger'::regclass THEN 'trigger'
      WHEN 'pg_policy'::regclass THEN 'policy'
      WHEN 'pg_statistic_ext'::regclass THEN 'statistics'
      WHEN 'pg_publication_rel'::regclass THEN 'publication'
      WHEN 'pg_attrdef'::regclass THEN 'generated column'
      ELSE 'object' END AS kind,
    CASE WHEN d.classid = 'pg_rewrite'::regclass THEN v.oid::regclass::text
      ELSE pg_describe_object(d.classid, d.objid, 0) END AS object
  FROM pg_depend d
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
  LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
  LEFT JOIN pg_class v ON v.oid = r.ev_class
  LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
  WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid > 0
    AND d.classid <> 'pg_constraint'::regclass AND d.deptype <> 'i'
    AND NOT (d.classid = 'pg_class'::regclass)
    AND NOT (d.classid = 'pg_attrdef'::regclass AND f.adrelid = $1 AND f.adnum = d.refobjsubid)
) x ORDER BY column_name, kind, object
"""

_FOREIGN = """
SELECT to_json((o.conrelid::regclass || '.' || o.conname || ' (' || (
  SELECT string_agg(a.attname, ', ') FROM pg_attribute a
  WHERE a.attrelid = o.confrelid AND a.attnum = ANY (o.confkey)) || ')')::text)
FROM pg_constraint o WHERE o.confrelid = $1 AND o.contype = 'f' ORDER BY o.conname
"""

_PUBLICATIONS = """
SELECT to_json(p.pubname)
FROM pg_publication p
WHERE p.puballtables OR EXISTS (
    SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = $1 AND r.prattrs IS NULL)
  OR EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_class c ON c.relnamespace = s.pnnspid
             WHERE s.pnpubid = p.oid AND c.oid = $1)
ORDER BY p.pubname
"""

_WHOLE_ROW = """
SELECT to_json(p.oid::regprocedure::text)
FROM pg_proc p, pg_class c
WHERE c.oid = $1 AND (p.prorettype = c.reltype OR c.reltype = ANY (p.proargtypes)) ORDER BY p.oid
"""

_SHADOWS = """
SELECT to_json(n.nspname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = (SELECT relname FROM pg_class WHERE oid = $1) AND c.oid <> $1
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT LIKE 'pg\\_temp\\_%' ORDER BY n.nspname
"""

_OWN = {
    "columns": _COLUMNS,
    "constraints": _CONSTRAINTS,
    "indexes": _INDEXES,
    "triggers": _TRIGGERS,
    "shadows": _SHADOWS,
}
_AROUND = {
    "dependents": _DEPENDENTS,
    "foreign": _FOREIGN,
    "publications": _PUBLICATIONS,
    "whole_row": _WHOLE_ROW,
}


def _document(parts: dict[str, str]) -> str:
    """One query that gives the table and the parts as one JSON document."""
    listed = ", ".join(
        f"'{key}', (SELECT coalesce(json_agg(part.j), '[]') FROM ({query}) AS part(j))"
        for key, query in parts.items()
    )
    return (
        f"SELECT json_build_object('path', current_setting('search_path'), 'table', ({_TABLE}),"
        f" 'parts', json_build_object({listed}))"
    )


_BRIEF = _document(_OWN)
_EVERYTHING = _document(_OWN | _AROUND)
