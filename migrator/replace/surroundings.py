"""What belongs to a table beyond its own definition and must be carried to the one that replaces it.

One frozen value, read in one query; ``search_path`` must be ``pg_catalog`` so that names come back qualified.
"""

from __future__ import annotations

import json

import asyncpg
from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of the values."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Grant(Frozen):
    """A privilege on the table; the grantee is SQL text."""

    grantee: str
    privilege: str
    grantable: bool


class ForeignKey(Frozen):
    """A foreign key, of the table or pointing at it."""

    name: str
    definition: str
    validated: bool
    self: bool
    schema_name: str
    """Of the table that has it."""
    table: str
    oid: int
    kind: str
    referenced: list[str]
    """The columns that it points at."""


class Sequence(Frozen):
    """A sequence that a column owns."""

    column: str
    schema_name: str
    name: str
    type: str
    options: str
    """As after AS IDENTITY."""


class Publication(Frozen):
    """A publication that names the table itself."""

    name: str
    columns: list[str] | None
    condition: str | None


class Surroundings(Frozen):
    """Everything of one table."""

    owner: str
    mine: bool
    """The migrator's role owns it."""
    tablespace: str | None
    options: list[str]
    replica_identity: str
    replica_index: str | None
    comment: str | None
    policies: int
    grants: list[Grant]
    outgoing: list[ForeignKey]
    incoming: list[ForeignKey]
    sequences: list[Sequence]
    publications: list[Publication]
    not_nulls: dict[str, str]
    """Names of NOT NULL constraints by column (PostgreSQL 18)."""
    generated: dict[str, str]
    """Expressions of generated columns."""
    alterations: list[str]
    """ALTER TABLE actions for storage and statistics of columns."""
    partitions: list[tuple[str, str]]
    dependents: list[str]
    """Objects that use the table as a whole or any column of it, in words."""
    deferrable: list[str]
    """Deferrable keys."""
    subscribed: bool
    """Rows come by logical replication, which fires no triggers of statements."""


async def read(conn: asyncpg.Connection, oid: int) -> Surroundings:
    """Read them."""
    document = json.loads(await conn.fetchval(_QUERY, oid))
    return Surroundings.model_validate(document)


async def grants(conn: asyncpg.Connection, table: str) -> list[Grant]:
    """Privileges of others than the owner on a table."""
    text = await conn.fetchval(f"SELECT {_GRANTS} FROM pg_class c WHERE c.oid = $1::text::regclass", table)
    return [Grant.model_validate(g) for g in json.loads(text)]


_GRANTS = """coalesce((
    SELECT json_agg(json_build_object(
      'grantee', CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END,
      'privilege', x.privilege_type, 'grantable', x.is_grantable) ORDER BY x.grantee, x.privilege_type)
    FROM aclexplode(c.relacl) x WHERE x.grantee <> c.relowner), '[]')"""

_FOREIGN = """
  SELECT coalesce(json_agg(json_build_object(
    'name', o.conname, 'definition', pg_get_constraintdef(o.oid), 'validated', o.convalidated,
    'self', o.confrelid = o.conrelid, 'schema_name', tn.nspname, 'table', t.relname, 'oid', t.oid::bigint,
    'kind', t.relkind, 'referenced', (
      SELECT json_agg(a.attname ORDER BY k.place) FROM unnest(o.confkey) WITH ORDINALITY k(number, place)
      JOIN pg_attribute a ON a.attrelid = o.confrelid AND a.attnum = k.number)) ORDER BY o.conname), '[]')
  FROM pg_constraint o JOIN pg_class t ON t.oid = o.conrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
  WHERE o.contype = 'f' AND o.conparentid = 0 AND o."""

_QUERY = f"""
SELECT json_build_object(
  'owner', quote_ident(pg_get_userbyid(c.relowner)), 'mine', pg_get_userbyid(c.relowner) = current_user,
  'tablespace', (SELECT quote_ident(spcname) FROM pg_tablespace s WHERE s.oid = c.reltablespace),
  'options', coalesce(to_json(c.reloptions), '[]'),
  'replica_identity', c.relreplident, 'comment', obj_description(c.oid, 'pg_class'),
  'replica_index', (SELECT i.indexrelid::regclass::text FROM pg_index i
                    WHERE i.indrelid = c.oid AND i.indisreplident),
  'policies', (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid),
  'grants', {_GRANTS},
  'outgoing', ({_FOREIGN}conrelid = c.oid),
  'incoming', ({_FOREIGN}confrelid = c.oid AND o.conrelid <> c.oid),
  'sequences', coalesce((
    SELECT json_agg(json_build_object(
      'column', a.attname, 'schema_name', n.nspname, 'name', s.relname, 'type', format_type(q.seqtypid, NULL),
      'options', format('START %s INCREMENT %s MINVALUE %s CACHE %s%s%s', q.seqstart, q.seqincrement, q.seqmin,
                        q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' ELSE '' END,
                        CASE WHEN q.seqmax NOT IN (32767, 2147483647, 9223372036854775807)
                          THEN ' MAXVALUE ' || q.seqmax ELSE '' END)) ORDER BY a.attnum)
    FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
    JOIN pg_namespace n ON n.oid = s.relnamespace JOIN pg_sequence q ON q.seqrelid = s.oid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
    WHERE d.refobjid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')), '[]'),
  'publications', coalesce((
    SELECT json_agg(json_build_object(
      'name', quote_ident(p.pubname), 'condition', pg_get_expr(r.prqual, r.prrelid),
      'columns', (SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attnum = ANY (r.prattrs::int2[]))))
    FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = c.oid), '[]'),
  'not_nulls', coalesce((
    SELECT json_object_agg(a.attname, o.conname) FROM pg_constraint o
    JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = o.conkey[1]
    WHERE o.conrelid = c.oid AND o.contype = 'n'), '{{}}'),
  'generated', coalesce((
    SELECT json_object_agg(a.attname, pg_get_expr(d.adbin, d.adrelid)) FROM pg_attribute a
    JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = c.oid AND a.attgenerated <> ''), '{{}}'),
  'alterations', coalesce((
    SELECT json_agg(x.action) FROM (
      SELECT format('ALTER COLUMN %I SET STORAGE %s', a.attname, CASE a.attstorage
               WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'x' THEN 'EXTENDED' ELSE 'MAIN' END) AS action
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> t.typstorage
      UNION ALL
      SELECT format('ALTER COLUMN %I SET STATISTICS %s', a.attname, a.attstattarget)
      FROM pg_attribute a
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget >= 0) x), '[]'),
  'partitions', coalesce((
    SELECT json_agg(json_build_array(n.nspname, p.relname) ORDER BY p.relname)
    FROM pg_partition_tree(c.oid) r JOIN pg_class p ON p.oid = r.relid
    JOIN pg_namespace n ON n.oid = p.relnamespace
    WHERE c.relkind = 'p' AND p.oid <> c.oid), '[]'),
  'dependents', coalesce((
    SELECT json_agg(DISTINCT CASE WHEN d.classid = 'pg_rewrite'::regclass
        THEN CASE v.relkind WHEN 'm' THEN 'materialized view ' ELSE 'view ' END || v.oid::regclass
        ELSE pg_describe_object(d.classid, d.objid, 0) END)
    FROM pg_depend d
    LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_class v ON v.oid = r.ev_class
    WHERE (d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.deptype = 'n'
           AND (d.classid IN ('pg_proc'::regclass) OR (d.classid = 'pg_rewrite'::regclass AND v.oid <> c.oid)))
       OR (d.refclassid = 'pg_type'::regclass AND d.deptype = 'n' AND d.refobjid IN (
             c.reltype, (SELECT t.typarray FROM pg_type t WHERE t.oid = c.reltype)))), '[]'),
  'subscribed', EXISTS (SELECT FROM pg_subscription_rel r WHERE r.srrelid = c.oid),
  'deferrable', coalesce((
    SELECT json_agg(o.conname) FROM pg_constraint o
    WHERE o.conrelid = c.oid AND o.contype IN ('p', 'u', 'x') AND o.condeferrable), '[]'))::text
FROM pg_class c WHERE c.oid = $1
"""
