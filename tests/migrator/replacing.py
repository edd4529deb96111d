"""What the tests of ``replace_table`` share: tables, migrations, and a comparison of the two tables."""

from __future__ import annotations

from typing import Any

TABLES = """
CREATE TABLE customers (id int PRIMARY KEY, name text);
INSERT INTO customers SELECT i, 'c' || i FROM generate_series(1, 20) i;
CREATE TABLE items (
    id serial PRIMARY KEY,
    customer int REFERENCES customers ON DELETE CASCADE ON UPDATE CASCADE,
    code varchar(20) NOT NULL CONSTRAINT items_code UNIQUE,
    qty int NOT NULL DEFAULT 1 CONSTRAINT qty_positive CHECK (qty > 0),
    total numeric GENERATED ALWAYS AS (qty * 2) STORED,
    created_at timestamptz NOT NULL DEFAULT '2026-03-01 00:00+00',
    data jsonb
);
CREATE INDEX items_customer ON items (customer DESC) WHERE qty > 1;
COMMENT ON TABLE items IS 'what we sell';
COMMENT ON COLUMN items.qty IS 'how many';
CREATE TABLE notes (id int PRIMARY KEY, item int CONSTRAINT notes_item REFERENCES items ON DELETE CASCADE);
INSERT INTO items (customer, code, qty, created_at)
SELECT 1 + i % 20, 'i' || i, 1 + i % 7, timestamptz '2026-01-01 00:00+00' + i * interval '3 hours'
FROM generate_series(1, 500) i;
INSERT INTO notes SELECT i, i FROM generate_series(1, 30) i;
"""

BIGINT = """
operations:
  - replace_table:
      table: items
      columns:
        - {name: id, type: bigint}
      down: {id: "id::int4"}
"""

PARTITIONED = """
operations:
  - replace_table:
      table: items
      primary_key: [id, created_at]
      partition_by: RANGE (created_at)
      partitions:
        - {name: items_q1, values: "FROM ('2026-01-01 00:00+00') TO ('2026-02-01 00:00+00')"}
        - {name: items_rest, default: true}
"""

COLUMNS = "id, customer, code, qty, total, created_at, data"


async def rows(db: Any, table: str) -> list[Any]:
    """All rows, by key."""
    return [tuple(r) for r in await db.fetch(f"SELECT {COLUMNS} FROM {table} ORDER BY id, created_at")]


async def same(db: Any) -> bool:
    """Whether both tables hold the same rows, in one snapshot."""
    return bool(
        await db.fetchval(
            "SELECT NOT EXISTS ((TABLE a EXCEPT ALL TABLE b) UNION ALL (TABLE b EXCEPT ALL TABLE a))".replace(
                "TABLE a", f"SELECT {COLUMNS} FROM items"
            ).replace("TABLE b", f'SELECT {COLUMNS} FROM "_dualwire_new_items"')
        )
    )


async def problems(db: Any) -> list[tuple[Any, ...]]:
    """All listed problems."""
    found = await db.fetch("SELECT key::text, direction, reason FROM dualwire.problem ORDER BY key")
    return [tuple(r) for r in found]
