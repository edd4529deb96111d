"""A table that another one replaces: both versions read and write the one that has the rows, by keys of either type."""

from __future__ import annotations

from typing import Any

import pytest
from pairs import statements
from virtuals import AFTER_FLIP, BEFORE_FLIP, VirtualPair, accounts_schema

from proxy.rewrite.model import Side

COMMON = """
INSERT INTO accounts (name, {b}) VALUES ('ann', 10), ('bob', DEFAULT), ('cy', NULL) RETURNING *
INSERT INTO accounts (id, name, {b}) VALUES (40, 'dot', 5), (DEFAULT, 'eve', 6) RETURNING id
INSERT INTO accounts DEFAULT VALUES RETURNING id, {b}
INSERT INTO accounts (id) VALUES (DEFAULT) RETURNING *
INSERT INTO accounts (id, kind) VALUES (6 + (random() * 0)::int, random()::text IS NULL) RETURNING id
INSERT INTO accounts VALUES (50, 'f', 7, 'k') RETURNING accounts.*
INSERT INTO public.accounts AS a VALUES (51, 'g') RETURNING a.id, a.{b}
INSERT INTO accounts (id, name) SELECT account_id + 60, owner FROM owners WHERE account_id = 9 RETURNING id
INSERT INTO accounts (name, {b}) SELECT owner || '2', 3 FROM owners ORDER BY owner RETURNING *
INSERT INTO accounts (id, name) VALUES (40, 'x') ON CONFLICT (id) DO NOTHING
INSERT INTO accounts (id, name, {b}) VALUES (40, 'dora', 9) ON CONFLICT (id) DO UPDATE SET name = excluded.name, {b} = accounts.{b} + excluded.{b} WHERE accounts.id = excluded.id RETURNING *
INSERT INTO accounts (id, name) VALUES (41, 'dora') ON CONFLICT (name) DO UPDATE SET id = excluded.id RETURNING id
INSERT INTO accounts (id, name) VALUES ('no', 'x')
INSERT INTO accounts (id, name) VALUES (41, 'dup')
UPDATE accounts SET {b} = {b} + 1 WHERE id = 1 RETURNING *
UPDATE accounts SET id = 45 WHERE id = 41 RETURNING id, name
UPDATE accounts SET id = id + 1000, {b} = 1 WHERE id BETWEEN 50 AND 59 RETURNING id, {b}
UPDATE accounts SET id = (id + random() * 0)::int WHERE id = 45 RETURNING id
UPDATE accounts SET (id, {b}) = (46, 2) WHERE id = 45 RETURNING id
UPDATE accounts SET (id, name) = (SELECT 47, 'h') WHERE id = 46 RETURNING *
UPDATE accounts SET id = DEFAULT WHERE id = 47 RETURNING id
UPDATE public.accounts SET kind = public.accounts.id::text WHERE public.accounts.id IN (1, 2) RETURNING public.accounts.*
UPDATE accounts a SET kind = o.owner FROM owners o WHERE o.account_id = a.id AND o.owner <> 'cy' RETURNING a.id, o.owner
UPDATE ONLY accounts SET kind = 'only' WHERE id = 1
UPDATE accounts SET kind = x.name FROM (SELECT * FROM accounts WHERE id = 2) x WHERE accounts.id = 1 RETURNING accounts.id, accounts.kind
DELETE FROM accounts WHERE id = 1050 RETURNING *
DELETE FROM accounts a USING owners o WHERE o.account_id = a.id AND a.id = 9
DELETE FROM ONLY public.accounts WHERE id = 1051
WITH i AS (INSERT INTO accounts (id, name) VALUES (70, 'w') RETURNING id), d AS (DELETE FROM accounts WHERE id = 40 RETURNING id) SELECT * FROM i, d
SELECT * FROM accounts ORDER BY id
SELECT * FROM accounts WHERE id = 1
SELECT * FROM accounts WHERE id = '1'
SELECT id, name FROM accounts WHERE id IN ('1', 2) OR id = ANY('{{3,4}}') ORDER BY id
SELECT a.id, o.owner FROM accounts a JOIN owners o ON o.account_id = a.id ORDER BY a.id, o.owner
SELECT * FROM accounts a JOIN accounts c ON a.id = c.id AND c.{b} > 0 ORDER BY a.id
SELECT * FROM accounts JOIN (SELECT account_id AS id, owner FROM owners) o USING (id) ORDER BY id, owner
SELECT accounts.*, count(*) FROM accounts LEFT JOIN owners ON account_id = id GROUP BY id ORDER BY id
SELECT id, max(owner) FROM accounts JOIN owners ON account_id = accounts.id WHERE id > 0 GROUP BY id HAVING id < 100 ORDER BY id
SELECT id FROM accounts WHERE id > '1' ORDER BY id DESC LIMIT 2
SELECT id FROM accounts WHERE id = '99999999999999'
SELECT id FROM accounts WHERE (id, name) >= (2, 'a') ORDER BY 1 LIMIT 1
SELECT id FROM accounts WHERE id IN (SELECT account_id FROM owners) ORDER BY id
SELECT owner FROM owners WHERE account_id IN (SELECT id FROM accounts) ORDER BY 1
SELECT owner FROM owners WHERE (account_id, owner) IN (SELECT id, 'ann' FROM accounts LIMIT 99) ORDER BY 1
SELECT owner FROM owners WHERE account_id NOT IN (SELECT DISTINCT id FROM accounts) ORDER BY 1
SELECT owner FROM owners WHERE account_id > ALL (SELECT id FROM accounts WHERE id < 2 UNION SELECT 0) ORDER BY 1
SELECT '2' IN (SELECT id FROM accounts), 1 = ANY (SELECT (a).id FROM accounts a)
SELECT owner FROM owners o WHERE EXISTS (SELECT FROM accounts WHERE id = o.account_id) ORDER BY 1
SELECT owner FROM owners o WHERE EXISTS (SELECT FROM accounts WHERE accounts.id = account_id) ORDER BY 1
SELECT max(id), min(id), sum(id), count(id), pg_typeof(max(id)) FROM accounts
SELECT max(id) FROM accounts
SELECT min(id)::text, coalesce(max(a.id), 0), max(id) AS m FROM accounts a WHERE id > 1
SELECT (SELECT max(id) FROM accounts), (SELECT min(x.id) FROM accounts x WHERE x.id > 1)
SELECT id, max(id) FROM accounts GROUP BY id ORDER BY max(id)
SELECT row_to_json(a), a.ctid IS NULL, a.* FROM accounts a WHERE a.id < 3 ORDER BY a.id
SELECT a.id, (a).name, row_to_json(ROW(a.*)), count(a.*) FROM accounts a WHERE a.id < 3 GROUP BY a.id ORDER BY a.id
SELECT (a).*, (a).id FROM accounts a WHERE a.id = 1
SELECT count(*) FROM accounts a, accounts b WHERE a = b AND a.id = 1
SELECT a IS NULL, a.tableoid IS NULL FROM accounts a WHERE a.id = 1
SELECT a::text, count(*) FROM accounts a WHERE a.id < 3 GROUP BY a ORDER BY 1
SELECT id + 1, id::text, abs(id), pg_typeof(id) FROM accounts ORDER BY id LIMIT 1
SELECT nothing FROM accounts
SELECT id FROM public.accounts FOR UPDATE
SELECT accounts::text FROM accounts WHERE id = 1
SELECT row_to_json(a) FROM accounts a WHERE a.id = 1
TABLE accounts
"""  # noqa: E501


def statements_of(side: Side) -> list[str]:
    """The statements in the words of one version."""
    return statements(COMMON.format(b="balance" if side == "old" else "total"))


@pytest.mark.parametrize(("side", "model"), [("new", BEFORE_FLIP), ("old", AFTER_FLIP)])
def test_each_version_sees_a_plain_table_of_its_own(database: Any, side: Side, model: Any) -> None:
    database.sql(accounts_schema(side))
    pair = VirtualPair(database.dsn, model, side)
    try:
        for sql in statements_of(side):
            pair.run(sql)
    finally:
        pair.close()
