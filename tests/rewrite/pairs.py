"""A client's statement on the migrated table beside the same one on a plain table of its version."""

from __future__ import annotations

from typing import Any

import asyncpg
from orders import ORDERS

from proxy.rewrite.model import Side
from proxy.rewrite.plan import Plan
from proxy.rewrite.planner import Planner


def statements(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


class Pair:
    """A connection on the migrated table, and one on a plain table of the same version."""

    def __init__(self, side: Side, migrated: Any, plain: Any) -> None:
        self.side = side
        self.migrated = migrated
        self.plain = plain
        self.planner = Planner([ORDERS], side)
        self.any_order = False
        """Whether the order of the rows may differ: that of the heap does, after some updates."""

    async def run(self, sql: str, *arguments: Any) -> Plan:
        """Runs one statement on both and compares everything that a client sees."""
        plan = self.planner.plan(sql.encode())
        assert plan.reason != "internal_error", plan.explanations
        expected = await outcome(self.plain, sql.replace("public.orders", "plain.orders"), arguments)
        repairs = await self.repairs()
        if plan.refusal is not None:
            assert expected == ("error", plan.refusal.sqlstate), plan.refusal
            return plan
        got = await outcome(self.migrated, plan.text.decode(), arguments)
        if self.any_order:
            expected, got = (
                (*some[:-1], sorted(some[-1], key=repr) if some[0] != "error" else some[-1])
                for some in (expected, got)
            )
        assert got == expected, plan.text.decode()
        if plan.mirrored and not plan.guarded and not await self.problems():
            assert await self.repairs() == repairs, "the guard had to repair what was mirrored"
        await self.check()
        return plan

    async def repairs(self) -> int:
        return await self.migrated.fetchval("SELECT last_value FROM dualwire.repairs")

    async def problems(self) -> bool:
        """Whether some row's up failed: it keeps a NULL mark, and so the guard looks at it at every write."""
        return await self.migrated.fetchval(
            "SELECT EXISTS (SELECT FROM public.orders WHERE _dualwire_mark IS NULL)"
        )

    async def check(self) -> None:
        """Both shapes agree, except in rows that are known problems, and the client's shape is the plain table."""
        wrong = await self.migrated.fetch(
            "SELECT * FROM public.orders o WHERE NOT dualwire.consistent(o) AND"
            " (_dualwire_mark IS NOT NULL OR dualwire.up_ok_1_1(status, amount))"
        )
        assert not wrong
        listed = 'id, status, amount, "Paid?", note, "größe", created'
        if self.side == "new":
            listed = (
                "id, _dualwire_new_state AS state, _dualwire_new_cents AS cents, _dualwire_new_paid AS paid,"
                ' note, "größe", created'
            )
        rows = await self.migrated.fetch(f"SELECT {listed} FROM public.orders ORDER BY id")
        assert rows == await self.plain.fetch("SELECT * FROM plain.orders ORDER BY id")


async def outcome(connection: Any, sql: str, arguments: tuple[Any, ...] = ()) -> Any:
    """Rows, columns with their types, parameters and the tag of a statement; or its error's code."""
    try:
        prepared = await connection.prepare(sql)
        rows = await prepared.fetch(*arguments)
    except asyncpg.PostgresError as error:
        return "error", error.sqlstate
    columns = [(column.name, column.type.name) for column in prepared.get_attributes()]
    parameters = [parameter.name for parameter in prepared.get_parameters()]
    return columns, parameters, prepared.get_statusmsg(), [tuple(row) for row in rows]
