"""The demo's ledger and check: what they expect, and that they find what is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from migrator.demo import shop
from migrator.demo.check import Expected, Findings, Visible, compare, table_rows, visible_shape
from migrator.demo.ledger import Claim, Ledger, Side, merged
from migrator.demo.shop import ORDERS

ROWS = 200
PLAIN = (1, 500, "seed-2")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(ROWS, index=0, owners=2, seed=1)


def claim(ledger: Ledger, key: int) -> Claim:
    claimed = ledger.claim_key("orders", key)
    assert claimed is not None
    return claimed


def write(ledger: Ledger, key: int, side: Side, value: Any) -> None:
    ledger.written(claim(ledger, key), side, {key: (PLAIN, value)})


def expected(ledger: Ledger) -> Expected:
    ledger.begin_check()
    return Expected.parse(merged([ledger.expectations()], "orders"), ROWS)


def shapes(ledger: Ledger, key: int) -> tuple[Any, Any]:
    record, _ = expected(ledger).rows[key]
    return record.old, record.new


def test_an_old_write_sets_both_shapes(ledger: Ledger) -> None:
    write(ledger, 2, Side.OLD, 3)
    assert shapes(ledger, 2) == (3, "delivered")


def test_a_new_write_may_hold_what_the_old_shape_cannot(ledger: Ledger) -> None:
    write(ledger, 2, Side.NEW, "refunded")
    assert shapes(ledger, 2) == (4, "refunded")


def test_an_old_write_of_the_same_value_leaves_the_new_shape_alone(ledger: Ledger) -> None:
    write(ledger, 2, Side.NEW, "refunded")
    write(ledger, 2, Side.OLD, 4)
    assert shapes(ledger, 2) == (4, "refunded")
    write(ledger, 2, Side.OLD, 1)
    assert shapes(ledger, 2) == (1, "paid")


def test_a_claimed_row_belongs_to_nobody_else(ledger: Ledger) -> None:
    first = claim(ledger, 2)
    assert ledger.claim_key("orders", 2) is None
    ledger.untouched(first)
    assert ledger.claim_key("orders", 2) is not None


def test_random_claims_give_only_own_and_existing_rows(ledger: Ledger) -> None:
    ledger.deleted(claim(ledger, 4))
    for _ in range(300):
        claimed = ledger.claim_some("orders", 1)
        assert claimed is not None
        assert claimed.keys[0] % 2 == 0
        assert claimed.keys[0] != 4
        ledger.untouched(claimed)


def test_rows_in_flight_around_the_snapshot_are_left_out(ledger: Ledger) -> None:
    before = claim(ledger, 2)
    ledger.begin_check()
    ledger.written(before, Side.OLD, {2: (PLAIN, 1)})
    ledger.written(claim(ledger, 4), Side.OLD, {4: (PLAIN, 1)})
    fresh = ledger.claim_new("orders", 1)
    seen = Expected.parse(merged([ledger.expectations()], "orders"), ROWS)
    assert seen.excluded == {2, 4}
    assert seen.references == set(fresh.references)
    assert not seen.rows


def test_a_row_whose_insert_was_acknowledged_around_the_snapshot_is_left_out(ledger: Ledger) -> None:
    fresh = ledger.claim_new("orders", 1)
    ledger.begin_check()
    ledger.written(fresh, Side.OLD, {ROWS + 1: ((1, 1, fresh.references[0]), 1)})
    seen = Expected.parse(merged([ledger.expectations()], "orders"), ROWS)
    assert seen.excluded == {ROWS + 1}
    assert expected(ledger).rows.keys() == {ROWS + 1}


def test_rows_with_an_unknown_outcome_are_never_checked(ledger: Ledger) -> None:
    ledger.lost_sight(claim(ledger, 2))
    assert 2 in expected(ledger).excluded
    assert ledger.claim_key("orders", 2) is None


async def batches(rows: dict[int, tuple[tuple[Any, ...], Any, Any]]) -> AsyncIterator[list[Any]]:
    yield [(key, *row) for key, row in rows.items()]


def database_of(ledger: Ledger) -> dict[int, tuple[tuple[Any, ...], Any, Any]]:
    """What a database holds in which all is well."""
    rows: dict[int, tuple[tuple[Any, ...], Any, Any]] = {}
    for key in range(1, ROWS + 1):
        plain, old = ORDERS.seeded(key)
        rows[key] = (plain, old, ORDERS.up(old))
    seen = expected(ledger)
    for key, (record, _) in seen.rows.items():
        rows[key] = (record.plain, record.old, record.new)
    for key in seen.gone:
        del rows[key]
    return rows


@pytest.fixture
def lived(ledger: Ledger) -> Ledger:
    """A ledger after some traffic: rows 2 (old) and 4 (new) written, 6 deleted."""
    write(ledger, 2, Side.OLD, 1)
    write(ledger, 4, Side.NEW, "refunded")
    ledger.deleted(claim(ledger, 6))
    return ledger


async def check(ledger: Ledger, rows: dict[int, Any], visible: Visible = Visible.BOTH) -> Findings:
    return await compare(ORDERS, visible, expected(ledger), batches(rows))


async def test_a_right_database_passes(lived: Ledger) -> None:
    found = await check(lived, database_of(lived))
    assert (found.lost, found.diverged, found.checked) == (set(), set(), ROWS - 1)


@pytest.mark.parametrize(
    ("key", "row", "kind"),
    [
        pytest.param(2, (PLAIN, 2, "shipped"), "lost", id="an acknowledged value is not there"),
        pytest.param(2, (PLAIN, 1, "new"), "diverged", id="the new shape was not mirrored"),
        pytest.param(4, (PLAIN, 3, "refunded"), "diverged", id="the old shape was not mirrored"),
        pytest.param(
            4, (PLAIN, 4, "cancelled"), "lost", id="a value of the new shape was overwritten by its image"
        ),
        pytest.param(2, ((1, 501, "seed-2"), 1, "paid"), "lost", id="another column is wrong"),
        pytest.param(2, None, "lost", id="the row is missing"),
        pytest.param(100, None, "lost", id="a row that nobody touched is missing"),
        pytest.param(6, (PLAIN, 1, "paid"), "lost", id="a deleted row is back"),
        pytest.param(900, (PLAIN, 1, "paid"), "diverged", id="a row that nobody wrote"),
        pytest.param(101, ((102, 3737, "seed-101"), 1, None), "diverged", id="an old row was not backfilled"),
    ],
)
async def test_one_wrong_row_is_found(lived: Ledger, key: int, row: Any, kind: str) -> None:
    rows = database_of(lived)
    if row is None:
        del rows[key]
    else:
        rows[key] = row
    found = await check(lived, rows)
    assert (found.lost, found.diverged) == (
        ({("orders", key)}, set()) if kind == "lost" else (set(), {("orders", key)})
    )


async def test_before_the_backfill_only_rows_written_since_expand_must_have_both_shapes(
    ledger: Ledger,
) -> None:
    write(ledger, 2, Side.OLD, 1)
    ledger.mirrored_from_now(shop.ORDER_STATE)
    write(ledger, 4, Side.OLD, 1)
    rows = {key: (plain, old, None) for key, (plain, old, _) in database_of(ledger).items()}
    found = await check(ledger, rows, Visible.MIRRORED)
    assert found.diverged == {("orders", 4)}
    assert not found.lost


async def test_a_check_reads_the_shapes_that_a_database_really_has(ledger: Ledger, database: Any) -> None:
    database.sql(shop.SCHEMA + shop.seed_sql(ROWS))
    connection = await database.connect()

    async def run(completed: bool = False) -> tuple[Visible, Findings]:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            visible = await visible_shape(connection, ORDERS, backfilled=True, completed=completed)
            return visible, await compare(
                ORDERS, visible, expected(ledger), table_rows(connection, ORDERS, visible)
            )

    visible, found = await run()
    assert (visible, found.lost, found.diverged) == (Visible.OLD, set(), set())
    database.sql(
        "ALTER TABLE orders ADD _dualwire_new_state text;"
        "UPDATE orders SET _dualwire_new_state = "
        "(ARRAY['new', 'paid', 'shipped', 'delivered', 'cancelled'])[status + 1]"
    )
    visible, found = await run()
    assert (visible, found.lost, found.diverged) == (Visible.BOTH, set(), set())
    database.sql("UPDATE orders SET _dualwire_new_state = 'wrong' WHERE id = 7")
    assert (await run())[1].diverged == {("orders", 7)}
    database.sql(
        "UPDATE orders SET _dualwire_new_state = 'shipped' WHERE id = 7;"
        "ALTER TABLE orders DROP status;"
        "ALTER TABLE orders RENAME _dualwire_new_state TO state"
    )
    visible, found = await run(completed=True)
    assert (visible, found.lost, found.diverged) == (Visible.NEW, set(), set())
    await connection.close()
