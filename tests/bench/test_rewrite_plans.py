"""What a plan costs: of a text seen for the first time, of the same text, of one that differs in its literals only.

In CPU time of this process, so that others on the machine matter little. "Cold" is a planner that was just made. The
last column is how long the event loop of a sidecar would stand still; above ``LARGE_TEXT`` it does not, because another
process plans.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from statistics import median

import pytest

from proxy.rewrite.planner import Planner
from proxy.session.book import LARGE_TEXT, PlanBook
from proxy.stats import Stats
from tests.bench import runs
from tests.rewrite.orders import ORDERS

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]

REPEAT = 200
STATEMENTS = {
    "Django get": 'SELECT "orders"."id", "orders"."status", "orders"."amount", "orders"."note", "orders"."created"'
    ' FROM "orders" WHERE ("orders"."status" = \'paid\' AND "orders"."id" = 12) ORDER BY "orders"."created" LIMIT 21',
    "UPDATE, literals": "UPDATE orders SET status = 'paid', amount = 12.5 WHERE id = 17",
    "UPDATE, parameters": 'UPDATE "orders" SET "status" = $1, "amount" = $2 WHERE "orders"."id" = $3',
    "INSERT, parameters": 'INSERT INTO "orders" ("status", "amount", "note", "created") VALUES ($1, $2, $3, $4)'
    ' RETURNING "id"',
    "INSERT, 10 rows": "INSERT INTO orders (status, amount, note) VALUES "
    + ", ".join(f"('paid', {n}.50, 'note {n}')" for n in range(10)),
    "INSERT, 100 rows": "INSERT INTO orders (status, amount, note) VALUES "
    + ", ".join(f"('paid', {n}.50, 'note {n}')" for n in range(100)),
    "insertmanyvalues, 10 rows": "INSERT INTO orders (status, amount, note) SELECT p0::VARCHAR, p1::NUMERIC,"
    " p2::VARCHAR FROM (VALUES "
    + ", ".join(
        f"(${3 * n + 1}::VARCHAR, ${3 * n + 2}::NUMERIC, ${3 * n + 3}::VARCHAR, {n})" for n in range(10)
    )
    + ") AS imp_sen(p0, p1, p2, sen_counter) ORDER BY sen_counter RETURNING orders.id, orders.id AS id__1",
    "bulk_update, 100 rows": 'UPDATE "orders" SET "status" = CASE '
    + " ".join(f'WHEN ("orders"."id" = {n}) THEN \'paid{n}\'' for n in range(100))
    + f' ELSE NULL END WHERE "orders"."id" IN ({", ".join(map(str, range(100)))})',
    "join of three tables": "SELECT o.id, o.status, c.name, sum(i.qty) AS q FROM orders o JOIN customers c ON"
    " c.id = o.customer_id LEFT JOIN items i ON i.order_id = o.id WHERE o.created > $1 AND c.country = 'de'"
    " GROUP BY o.id, o.status, c.name HAVING sum(i.qty) > 3 ORDER BY q DESC LIMIT 50",
    "another table": "SELECT a.id, a.name FROM accounts a WHERE a.id = 12 AND a.deleted IS NULL ORDER BY a.name"
    " LIMIT 10",
}


def _cost(work: Callable[[int], object], repeat: int) -> float:
    """Microseconds of CPU for one call."""
    began = time.process_time()
    for number in range(repeat):
        work(number)
    return (time.process_time() - began) / repeat * 1e6


def _with_other_literals(text: str, rounds: int) -> list[bytes]:
    chosen = random.Random(1)
    return [
        re.sub(
            r"(?<![\w$])\d+(?!\w)", lambda _: str(chosen.randint(11, 99)), text.replace("paid", f"st{n}")
        ).encode()
        for n in range(rounds)
    ]


def _round(text: str) -> tuple[float, float, float, float, float]:
    """Cold, miss, same text, template, and the share of texts that a template took."""
    fresh = [Planner([ORDERS], "old") for _ in range(20)]
    cold = _cost(lambda n: fresh[n].plan(text.encode()), len(fresh))
    planner = Planner([ORDERS], "old")
    miss = _cost(lambda _: planner.plan(text.encode()), 50)
    stats = Stats()
    book = PlanBook(1, [ORDERS], True, stats)
    others = _with_other_literals(text, REPEAT)
    for first in others[:3]:
        book.plan(first, "old", ("public",), frozenset())
    same = _cost(lambda _: book.plan(others[0], "old", ("public",), frozenset()), 5_000)
    before = stats.plan_templates
    template = _cost(lambda n: book.plan(others[3 + n], "old", ("public",), frozenset()), REPEAT - 3)
    return cold, miss, same, template, (stats.plan_templates - before) / (REPEAT - 3)


def test_cost_of_a_plan() -> None:
    made = runs.table(
        f"microseconds of CPU for a plan, {runs.ROUNDS} rounds",
        ("which", "bytes", "cold", "miss", "same text", "other literals", "by a template"),
    )
    for name, text in STATEMENTS.items():
        cold, miss, same, template, share = map(
            median, zip(*[_round(text) for _ in range(runs.ROUNDS)], strict=True)
        )
        varies = len(set(_with_other_literals(text, 5))) > 1
        made.add_row(
            name,
            f"{len(text):,}",
            f"{cold:,.0f}",
            f"{miss:,.0f}",
            f"{same:.2f}",
            f"{template:,.1f}" if varies else "",
            f"{share:.0%}" if varies else "",
        )
    runs.show(made)


def test_cost_of_a_large_text() -> None:
    """How long a plan takes by the size of the text, and what becomes of it: on the loop, or in another process."""
    made = runs.table("INSERT of many rows", ("rows", "bytes", "ms of CPU", "planned"))
    planner = Planner([ORDERS], "old")

    def cost(text: bytes) -> float:
        return median(_cost(lambda _: planner.plan(text), 1) for _ in range(runs.ROUNDS))

    for rows in (100, 400, 1_000, 10_000):
        text = (
            "INSERT INTO orders (status, amount, note) VALUES "
            + ", ".join(f"('paid', {n}.50, 'note {n}')" for n in range(rows))
        ).encode()
        where = "on the loop" if len(text) <= LARGE_TEXT else "elsewhere"
        made.add_row(f"{rows:,}", f"{len(text):,}", f"{cost(text) / 1000:,.1f}", where)
    runs.show(made)
