"""Random statements of old speakers after contract, and of both versions of a table that another one replaces."""

from __future__ import annotations

import random
from typing import Any

import pytest
from virtuals import AFTER_FLIP, BEFORE_FLIP, ORDERS, SCHEMA, VirtualPair, accounts_schema

Cells = dict[str, list[str]]

ORDER_CELLS: Cells = {
    "status": [
        "'new'",
        "'paid'",
        "NULL",
        "lower('SENT')",
        "'far too long for it'",
        "(SELECT 'sent')",
        "status",
    ],
    "amount": [
        "1",
        "2.345",
        "NULL",
        "10 / 4.0",
        "'7.5'",
        "123456789",
        "ceil(random())",
        "amount + 1",
        "amount",
    ],
    "first": ["'Ada'", "NULL", "'B' || 'o'", "last", "substr('x', 1 + (random() * 0)::int)", "first"],
    "last": ["'L'", "NULL", "first", "upper('q')", "last"],
    "place": ["'Rome,1'", "'Oslo'", "NULL", "many(3)", "first || ',' || last", "place", "(SELECT 'Bonn,2')"],
    "code": ["'abc'", "'x'", "NULL", "'wide'", "substr(md5(random()::text), 1, 0)", "code", "left(first, 3)"],
    "note": ["'n'", "NULL", "place", "random()::int * 0 || ''", "code || status", "note"],
    "kind": ["'gift'", "'plain'", "NULL", "'bad'", "kind", "coalesce(kind, 'gift')"],
}


def account_cells(total: str) -> Cells:
    return {
        "name": ["'ann'", "'bob'", "NULL", "'n' || 'm'", "name", f"left({total}::text, 9)", "md5('x')"],
        total: ["1", "0", "NULL", "'7'", f"{total} + 1", "ceil(random())", "(SELECT 5)", total],
        "kind": ["'k'", "NULL", "id::text", "name", "random()::int * 0 || ''"],
    }


def _write(rng: random.Random, table: str, cells: Cells, reading: bool) -> str:
    """A random write; without ``reading`` the values name no columns."""

    def value(name: str, *more: str) -> str:
        choices = [text for text in cells[name] if reads or not _names(text, cells)]
        return rng.choice([*choices, *more])

    reads = reading
    names = rng.sample(sorted(cells), rng.randint(1, min(4, len(cells))))
    key = rng.randint(1, 9)
    target = rng.choice([table, f"public.{table}", f"{table} AS o"])
    alias = "o" if target.endswith(" o") or " AS " in target else table
    ending = rng.choice(["", " RETURNING *", f" RETURNING id, {names[0]}", f" RETURNING {alias}.*"])
    where = rng.choice(
        [f"id = {key}", f"{alias}.id IN ({key}, {key + 1})", f"{names[0]} IS NOT NULL", "id > 5"]
    )
    kind = rng.randrange(10)
    if kind == 0:
        return f"DELETE FROM {target} WHERE {where}{ending}"
    if kind < 5:
        sets = [f"{name} = {value(name, 'DEFAULT')}" for name in names]
        if len(names) > 1 and rng.random() < 0.4:
            if rng.random() < 0.5:
                given = ", ".join(value(name, "DEFAULT") for name in names[:2])
                sets[:2] = [f"({names[0]}, {names[1]}) = ROW({given})"]
            else:
                given = ", ".join(value(name) for name in names[:2])
                sets[:2] = [f"({names[0]}, {names[1]}) = (SELECT {given})"]
        return f"UPDATE {target} SET {', '.join(sets)} WHERE {where}{ending}"
    reads = False
    listed = ["id", *names]
    ids = rng.sample(range(1, 14), 3)
    if rng.random() < 0.3:
        rows = " UNION ALL ".join(
            f"(SELECT {ids[at]}, {', '.join(value(name) for name in names)})"
            for at in range(rng.randint(1, 2))
        )
    else:
        rows = "VALUES " + ", ".join(
            f"({ids[at]}, {', '.join(value(name, 'DEFAULT') for name in names)})"
            for at in range(rng.randint(1, 3))
        )
    sets = ", ".join(f"{name} = {rng.choice([f'excluded.{name}', f'{alias}.{name}'])}" for name in names)
    conflict = rng.choice(
        [
            "",
            " ON CONFLICT DO NOTHING",
            " ON CONFLICT (id) DO NOTHING",
            f" ON CONFLICT (id) DO UPDATE SET {sets}",
        ]
    )
    return f"INSERT INTO {target} ({', '.join(listed)}) {rows}{conflict}{ending}"


def _names(text: str, cells: Cells) -> bool:
    return any(name in text for name in (*cells, "id::"))


def _read(rng: random.Random, table: str, cells: Cells) -> str:
    names = rng.sample(sorted(cells), 2)
    key = rng.randint(1, 9)
    condition = rng.choice(
        [
            f"o.id = {key}", f"o.id = '{key}'", f"o.{names[0]} IS NULL", f"o.id BETWEEN {key} AND 9 AND true",
            f"o.{names[0]} = o.{names[1]}", f"o.id IN (SELECT id FROM {table} WHERE id > {key})",
            f"EXISTS (SELECT FROM {table} x WHERE x.id = o.id + 1)", f"(o.id, 1) > ({key}, 0)",
        ]
    )  # fmt: skip
    return rng.choice(
        [
            f"SELECT * FROM {table} o WHERE {condition} ORDER BY id",
            f"SELECT o.{names[0]}, o.{names[1]}, o.id FROM {table} o WHERE {condition} ORDER BY o.id",
            f"SELECT row_to_json(o), o.id FROM public.{table} o WHERE {condition} ORDER BY 2",
            f"SELECT count(*), max(o.id), min(o.{names[0]}) FROM {table} o WHERE {condition}",
            f"SELECT o.id, o.{names[0]}, count(p.id) FROM {table} o LEFT JOIN {table} p ON p.id <= o.id"
            f" WHERE {condition} GROUP BY o.id ORDER BY o.id",
            f"SELECT o.{names[0]}, count(*) FROM {table} o WHERE {condition} GROUP BY 1 ORDER BY 1",
            f"SELECT DISTINCT o.{names[0]} AS n FROM {table} o WHERE {condition} ORDER BY n",
            f"SELECT o.*, p.{names[0]} FROM {table} o, {table} p WHERE p.id = o.id AND {condition} ORDER BY o.id",
            f"SELECT * FROM {table} o JOIN {table} p USING (id) WHERE {condition} ORDER BY id",
            f"SELECT * FROM {table} o WHERE {condition} UNION SELECT * FROM {table} ORDER BY id",
        ]
    ).replace("min(o.kind)", "min(o.note)" if "note" in cells else "min(o.name)")


@pytest.mark.parametrize("seed", range(2))
def test_random_statements_of_old_speakers_after_contract(database: Any, seed: int) -> None:
    database.sql(SCHEMA)
    _run(VirtualPair(database.dsn, ORDERS, "old"), ORDER_CELLS, seed, 150)


@pytest.mark.parametrize(("side", "model"), [("new", BEFORE_FLIP), ("old", AFTER_FLIP)])
def test_random_statements_on_a_table_that_another_one_replaces(database: Any, side: Any, model: Any) -> None:
    database.sql(accounts_schema(side))
    pair = VirtualPair(database.dsn, model, side)
    cells = account_cells("balance" if side == "old" else "total")
    _run(pair, cells, 1, 150)


def _run(pair: VirtualPair, cells: Cells, seed: int, count: int) -> None:
    rng = random.Random(seed)
    pair.random = True
    try:
        for _ in range(count):
            write = rng.random() < 0.6
            table = pair.model.name
            pair.run(_write(rng, table, cells, True) if write else _read(rng, table, cells))
    finally:
        pair.close()
