"""Old speakers after contract: what they get from the new columns is what a plain table of their version gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pairs import statements
from virtuals import ORDERS, SCHEMA, VirtualPair


@pytest.fixture
def orders(database: Any) -> Iterator[VirtualPair]:
    database.sql(SCHEMA)
    pair = VirtualPair(database.dsn, ORDERS, "old")
    yield pair
    pair.close()


WRITES = """
INSERT INTO orders (status, amount, first, last) VALUES ('paid', 12.345, 'Ada', 'L')
INSERT INTO orders (status, note) VALUES ('new', 'n'), (DEFAULT, DEFAULT), (NULL, 'z')
INSERT INTO orders (note) VALUES ('only what both have')
INSERT INTO orders (first) VALUES ('Bob') RETURNING *
INSERT INTO orders (last, place, code) VALUES ('C', 'Rome,00100', 'abc') RETURNING id, last, place, upper(place), code AS c, kind
INSERT INTO public.orders AS o (place) VALUES ('Oslo') RETURNING o.*, o.place || '!', row_to_json(o)
INSERT INTO public.orders (place) VALUES ('Oslo,1') RETURNING public.orders.place, orders.id
INSERT INTO orders DEFAULT VALUES RETURNING *
INSERT INTO orders VALUES (100, 'sent', 1, 'a', 'b', 'p', DEFAULT, 'cde', 'n', 'gift') RETURNING *
INSERT INTO orders VALUES (101, 'sent'), (102, DEFAULT)
INSERT INTO orders (status) VALUES ('far too long for it')
INSERT INTO orders (code) VALUES ('wide')
INSERT INTO orders (code) VALUES ('ab   ')
INSERT INTO orders (amount) VALUES ('no number')
INSERT INTO orders (amount) VALUES (123456789.5)
INSERT INTO orders (kind) VALUES ('nonsense')
INSERT INTO orders (kind) VALUES ('gift') RETURNING kind
INSERT INTO orders (code) VALUES ('abc')
INSERT INTO orders (status, amount) VALUES ('new')
INSERT INTO orders (nothing) VALUES (1)
INSERT INTO orders (cents) VALUES (1)
INSERT INTO orders (status, status) VALUES ('new', 'new')
INSERT INTO orders (place, note) VALUES (many(1), 'volatile')
INSERT INTO orders (place, note) VALUES (many(2), 'volatile'), ('Bonn', DEFAULT)
INSERT INTO orders (status, amount) SELECT 'paid', qty FROM items ORDER BY sku RETURNING status, amount
INSERT INTO orders (place, first) SELECT sku || ',7', 'Z' FROM items
INSERT INTO orders (place) SELECT many(qty) FROM items RETURNING place
INSERT INTO orders SELECT 200, 'sent', 3.5
INSERT INTO orders (id, status) SELECT id + 1000, status FROM orders WHERE status = 'sent' AND id < 200
INSERT INTO orders (id, note) VALUES (1, 'x') ON CONFLICT DO NOTHING
INSERT INTO orders (id, status, amount) VALUES (1, 'sent', 3) ON CONFLICT (id) DO UPDATE SET status = excluded.status, amount = orders.amount + excluded.amount RETURNING *
INSERT INTO orders (id, first, last) VALUES (1, 'E', 'F') ON CONFLICT (id) DO UPDATE SET last = excluded.last || orders.last WHERE orders.first <> excluded.first RETURNING first, last
INSERT INTO orders (code, place) VALUES ('abc', 'Rome,2') ON CONFLICT (code) DO UPDATE SET place = excluded.place, note = excluded.code RETURNING place, note, code
INSERT INTO orders (id, place) VALUES (2, 'Lima,3') ON CONFLICT (id) DO UPDATE SET place = many(5) RETURNING place
WITH n AS (INSERT INTO orders (status) VALUES ('paid') RETURNING *) SELECT status, first FROM n
UPDATE orders SET status = 'paid' WHERE id = 1
UPDATE orders SET status = status, amount = amount, first = first, last = last, place = place, note = 'same', kind = kind, code = code
UPDATE orders SET amount = amount * 1.5, note = 'half' WHERE id IN (2, 3) RETURNING *
UPDATE orders SET first = 'X' WHERE id = 1 RETURNING first, last
UPDATE orders SET first = last, last = first WHERE first IS NOT NULL RETURNING first, last
UPDATE orders o SET place = o.first || ',' || o.last WHERE o.last = 'F' RETURNING o.*
UPDATE orders SET place = many(id::int) WHERE id < 4 RETURNING id, place
UPDATE orders SET place = 'a,b', status = DEFAULT, note = DEFAULT WHERE id = 2 RETURNING *
UPDATE orders SET (status, amount) = ('sent', 4) WHERE id = 2
UPDATE orders SET (status, note, place) = ROW('paid', DEFAULT, 'q') WHERE id = 2 RETURNING *
UPDATE orders SET (place, note) = (SELECT 'r,' || max(qty), 'sub' FROM items WHERE order_id = orders.id), first = 'S' WHERE id < 4 RETURNING *
UPDATE orders SET (note, amount) = (SELECT sku, qty FROM items WHERE order_id = 77) WHERE id = 3 RETURNING *
UPDATE orders SET amount = (SELECT sum(qty) FROM items WHERE order_id = orders.id) WHERE id = 1
UPDATE orders o SET amount = i.qty + o.amount, note = i.sku FROM items i WHERE i.order_id = o.id AND i.sku <> 'b' RETURNING o.*, i.*
UPDATE orders SET note = x.status FROM (SELECT id AS i, status FROM orders) x WHERE x.i = orders.id AND orders.status = 'sent' RETURNING orders.note
UPDATE orders SET status = 'much too long a value'
UPDATE orders SET code = 'long'
UPDATE orders SET code = 'xyz' WHERE code = 'abc' RETURNING code
UPDATE orders SET code = code || random()::text WHERE id = 0
UPDATE orders SET kind = 'gift' WHERE kind = 'plain' RETURNING kind
UPDATE orders SET kind = 'bad'
UPDATE orders SET legacy = DEFAULT, note = 'l'
UPDATE orders SET cents = 3
UPDATE orders SET note = name
UPDATE orders SET amount = NULL WHERE id = 1 RETURNING amount
UPDATE orders SET note = 'n' WHERE (status, code) = ('paid', 'xyz') RETURNING id, note
UPDATE ONLY orders * SET note = 'm' WHERE id = 1
UPDATE ONLY orders SET first = 'only' WHERE id = 1 RETURNING public.orders.first
DELETE FROM orders WHERE place = 'Oslo' RETURNING *, place
DELETE FROM orders USING items WHERE items.order_id = orders.id AND orders.status = 'sent' RETURNING orders.*
DELETE FROM public.orders WHERE public.orders.place = 'Oslo,1' RETURNING public.orders.*
WITH moved AS (UPDATE orders SET status = 'new' WHERE id = 2 RETURNING *), gone AS (DELETE FROM orders WHERE id = 3 RETURNING *) SELECT * FROM moved UNION ALL SELECT * FROM gone
UPDATE orders SET status = 'sent' WHERE id > 99 RETURNING old.status, new.status, new.*
"""  # noqa: E501

ROWS = """
INSERT INTO orders (id, status, amount, first, last, place, code, note) VALUES (1, 'new', 1.5, 'Ada', 'L', 'Rome,1', 'abc', 'n'), (2, 'paid', 20, 'Bo', NULL, 'Oslo', 'b', NULL), (3, NULL, NULL, NULL, 'Q', NULL, NULL, 'm'), (4, 'sent', 0, 'Cy', 'D', 'Bonn,2', 'cc', 'm')
"""  # noqa: E501

READS = """
SELECT * FROM orders ORDER BY id
TABLE orders ORDER BY id
TABLE public.orders ORDER BY 1
SELECT o.*, 1 AS one FROM orders o ORDER BY id DESC LIMIT 2
SELECT public.orders.id, public.orders.status FROM public.orders ORDER BY public.orders.status, 1
SELECT public.orders.* FROM public.orders ORDER BY id
SELECT status, count(*), sum(amount) FROM orders GROUP BY status ORDER BY 1
SELECT o.status, o.place, count(i) FROM orders o LEFT JOIN items i ON i.order_id = o.id GROUP BY o.id ORDER BY o.id
SELECT *, o.id FROM items i JOIN orders o ON o.id = i.order_id ORDER BY 2, 1
SELECT * FROM orders JOIN (SELECT order_id AS id, sku FROM items) x USING (id) ORDER BY id, sku
SELECT * FROM orders NATURAL JOIN (SELECT order_id AS id, sku AS code FROM items) x ORDER BY id
SELECT * FROM orders a JOIN orders b USING (code) ORDER BY a.id
SELECT row_to_json(o) FROM orders o ORDER BY id
SELECT row_to_json(o), count(*) FROM orders o GROUP BY o.id ORDER BY o.id
SELECT (o).status, (o).* FROM orders o ORDER BY id
SELECT count(o), count(DISTINCT o.code) FROM orders o
SELECT x.* FROM (SELECT * FROM orders WHERE code = 'abc') x
WITH w AS (SELECT * FROM orders) SELECT * FROM w WHERE amount > 1 ORDER BY 1
SELECT * FROM orders WHERE status = 'paid' UNION SELECT * FROM orders WHERE code <> 'abc' ORDER BY id
SELECT EXISTS (SELECT * FROM orders WHERE place LIKE 'R%'), ARRAY(SELECT status FROM orders ORDER BY id)
SELECT * FROM orders AS o(x, y) WHERE y = 'new' ORDER BY x
SELECT * FROM orders ORDER BY id FOR UPDATE SKIP LOCKED
SELECT id FROM orders o WHERE o.code = 'b' FOR NO KEY UPDATE OF o
SELECT code AS s, * FROM orders ORDER BY s NULLS FIRST, id
SELECT code FROM orders ORDER BY code DESC
SELECT code AS id, id AS code FROM orders ORDER BY id, code
SELECT * FROM orders ORDER BY code, id
SELECT id, code FROM orders ORDER BY 2, 1
SELECT DISTINCT code FROM orders ORDER BY code
SELECT DISTINCT ON (code) code, id FROM orders ORDER BY code, id
SELECT code, count(*) FROM orders WHERE code > 'a' GROUP BY code HAVING code < 'z' ORDER BY code
SELECT code = 'abc', code IN ('b', 'cc'), code BETWEEN 'a' AND 'b', code = ANY('{b,cc}'), code IS NULL FROM orders ORDER BY id
SELECT a.id FROM orders a, orders b WHERE a.code = b.code AND a.code IN (SELECT code FROM orders WHERE id < 3) ORDER BY 1
SELECT id FROM orders WHERE (code, id) > ('b', 1) ORDER BY code, id
SELECT id FROM orders WHERE code = 'wider than it may be'
SELECT (SELECT max(x.code) FROM orders x WHERE x.code <= o.code) FROM orders o ORDER BY id
SELECT o.code, (SELECT count(*) FROM items WHERE sku = o.code) FROM orders o GROUP BY o.code ORDER BY 1
SELECT o::text FROM orders o WHERE o.code = 'b'
SELECT j.* FROM (orders o JOIN items i ON o.id = i.order_id AND o.code = 'abc') AS j ORDER BY sku
SELECT tableoid = 'orders'::regclass AS mine, * FROM orders ORDER BY id
SELECT orders.ctid IS NOT NULL, orders.* FROM orders ORDER BY id
SELECT * FROM orders TABLESAMPLE system (100) REPEATABLE (1) ORDER BY code
SELECT * FROM ONLY orders WHERE code = 'b'
SELECT * FROM ONLY (orders) o, orders * p WHERE o.code = p.code AND p.code = 'b'
SELECT o.status, i.* FROM orders o LEFT JOIN LATERAL (SELECT sku FROM items WHERE order_id = o.id AND o.amount > 0 ORDER BY sku LIMIT 1) i ON true ORDER BY o.id
SELECT cents FROM orders
SELECT o.name FROM orders o
SELECT id, nothing FROM orders
SELECT max(amount), min(code), string_agg(status, ',' ORDER BY id) FROM orders
SELECT legacy, length(legacy), pg_typeof(legacy), pg_typeof(code), pg_typeof(kind) FROM orders
SELECT CASE WHEN code = 'abc' THEN code END, nullif(code, 'abc'), code || 'x', code::text FROM orders ORDER BY id
SELECT row_number() OVER (PARTITION BY status ORDER BY code) FROM orders ORDER BY 1
SELECT rank() OVER w, code FROM orders WINDOW w AS (ORDER BY code DESC) ORDER BY 1
VALUES ((SELECT max(status) FROM orders)), ('x')
SELECT id FROM orders WHERE EXISTS (SELECT 1 FROM items WHERE code = sku) ORDER BY id
SELECT id FROM orders WHERE NOT code IS DISTINCT FROM 'abc' AND 'abc' = code
"""  # noqa: E501


def test_writes_reach_the_columns_that_the_table_has(orders: VirtualPair) -> None:
    reasons = {orders.run(sql).reason for sql in statements(WRITES)}
    assert {"virtual_read", "virtual_write", "refused_undefined_column"} <= reasons


def test_reads_show_the_version(orders: VirtualPair) -> None:
    for sql in statements(ROWS):
        orders.run(sql)
    reasons = {orders.run(sql).reason for sql in statements(READS)}
    assert "virtual_read" in reasons
