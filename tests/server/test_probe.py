"""Trying rewritten texts on a real server before a client's statement depends on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from proxy.backend.pool import Pool
from proxy.backend.probe import NOT_TRIED, ProbeVerdict, SessionProber, Verdicts
from proxy.dsn import parse
from proxy.rewrite.plan import Kind, Plan
from proxy.wire import messages as m
from tests.conftest import Database

ORIGINAL = b"UPDATE t SET a = $1 WHERE id = $2 RETURNING id"


@dataclass
class Stage:
    """A prober on a table, and the pool that it uses."""

    prober: SessionProber
    pool: Pool

    async def verdict(self, text: bytes, original: bytes = ORIGINAL) -> ProbeVerdict:
        """What the prober says of a text whose fallback is ``original``."""
        plan = Plan(
            text, Kind.WRITE, "dual_write", mirrored=True, fallback=Plan(original, Kind.WRITE, "guard_other")
        )
        return await self.judged(plan)

    async def twin(self, text: str, twin: str, *, guard: bool = False, statements: int = 1) -> ProbeVerdict:
        """What it says of a text over columns that only ``twin``'s table has."""
        fallback = Plan(b"SELECT 1", Kind.WRITE, "guard_other") if guard else None
        plan = Plan(
            text.encode(),
            Kind.WRITE,
            "translated",
            fallback=fallback,
            twin=twin.encode(),
            statements=statements,
        )
        return await self.judged(plan)

    async def judged(self, plan: Plan) -> ProbeVerdict:
        answered: asyncio.Future[ProbeVerdict] = asyncio.get_running_loop().create_future()
        key = ("old", ("public",), "user", (), plan.text)
        self.prober.probe(key, plan, (), answered.set_result)
        verdict = await asyncio.wait_for(answered, 10)
        assert self.prober.known(key, plan) == verdict
        return verdict


@pytest.fixture
async def stage(database: Database) -> AsyncIterator[Stage]:
    """A table ``t`` and a prober."""
    async with database.connection() as direct:
        await direct.execute("CREATE TABLE t (id bigint PRIMARY KEY, a int, b text)")
        await direct.execute("CREATE TABLE t_twin (id bigint PRIMARY KEY, v varchar(9))")
    dsn = parse(database.dsn)
    pool = Pool(dsn, size=1, connect_timeout=5, wait_timeout=5, idle_timeout=60)
    parameters = {"user": dsn.user, "database": dsn.database}
    yield Stage(SessionProber(Verdicts(), pool, parameters, dsn.password), pool)
    await pool.close()


async def test_a_good_text_is_mirrored_with_the_types_of_the_original(stage: Stage) -> None:
    text = b"UPDATE t SET a = $1, b = CAST($1 AS text) WHERE id = $2 RETURNING id"
    assert await stage.verdict(text) == ProbeVerdict(True, (23, 20))


@pytest.mark.parametrize(
    "text",
    [
        b"UPDATE t SET a = $1, missing = $1 WHERE id = $2 RETURNING id",
        b"UPDATE t SET a = $1, b = 'x' WHERE id = $2 RETURNING id, a",
    ],
    ids=["rejected", "other result"],
)
async def test_a_text_that_the_server_rejects_or_describes_otherwise_is_left_to_the_guard(
    stage: Stage, text: bytes
) -> None:
    assert not (await stage.verdict(text)).mirrored
    # The connection is as good as before.
    assert (await stage.verdict(ORIGINAL + b"")).mirrored


async def test_where_the_original_fails_the_client_gets_its_own_error(stage: Stage) -> None:
    assert not (await stage.verdict(b"UPDATE t SET a = 1", b"UPDATE nowhere SET a = 1")).mirrored


async def test_what_the_server_says_of_one_literal_is_not_believed_of_others_for_long(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.backend.probe.RETRY_SECONDS", 0.05)
    plan = Plan(b"", Kind.WRITE, "x", mirrored=True, fallback=Plan(b"UPDATE t SET a = 'x'", Kind.WRITE, "y"))
    key = ("old", ("public",), "user", (), b"UPDATE t SET a = \0\0'")
    answered: asyncio.Future[ProbeVerdict] = asyncio.get_running_loop().create_future()
    stage.prober.probe(key, plan, (), answered.set_result)
    assert not (await answered).mirrored
    async with asyncio.timeout(10):
        while stage.prober.known(key, plan) is not None:
            await asyncio.sleep(0.01)


async def test_a_server_that_cannot_be_asked_leaves_the_text_to_the_guard(stage: Stage) -> None:
    taken = await stage.pool.acquire(
        {"user": stage.pool.dsn.user, "database": stage.pool.dsn.database}, stage.pool.dsn.password
    )
    stage.pool.wait_timeout = 0.2
    assert not (await stage.verdict(ORIGINAL)).mirrored
    stage.pool.release(taken, reusable=True)


# -- columns that the table has not


async def test_types_come_from_the_twin_and_descriptions_must_agree_but_for_the_table(stage: Stage) -> None:
    right = "SELECT id, CAST(b AS varchar(9)) AS v FROM t WHERE b = $1"
    assert await stage.twin(right, "SELECT id, v FROM t_twin WHERE v = $1") == ProbeVerdict(True, (25,))
    for other in (
        "SELECT id, b AS v FROM t WHERE b = $1",
        "SELECT id, CAST(b AS varchar(8)) AS v FROM t WHERE b = $1",
        "SELECT id, CAST(b AS varchar(9)) AS w FROM t WHERE b = $1",
        "UPDATE t SET b = $1",
    ):
        verdict = await stage.twin(other, "SELECT id, v FROM t_twin WHERE v = $1")
        assert verdict.refusal is not None
        assert verdict.refusal.sqlstate == "0A000"
        guarded = await stage.twin(other, "SELECT id, v FROM t_twin WHERE v = $1", guard=True)
        assert guarded == ProbeVerdict(False)


async def test_what_the_twin_gets_is_the_clients_error_for_this_very_text(stage: Stage) -> None:
    plan = Plan(b"SELECT 1", Kind.READ, "translated", twin=b"SELECT x FROM t_twin")
    verdict = await stage.judged(plan)
    fields = m.error_fields(verdict.error)
    assert (fields["C"], fields["P"]) == (b"42703", b"8")
    other = replace(plan, twin=b"SELECT v FROM t_twin")
    assert stage.prober.known(("old", ("public",), "user", (), plan.text), other) is None


async def test_a_rejected_text_is_refused_where_no_guard_can_take_it(stage: Stage) -> None:
    verdict = await stage.twin("SELECT missing AS v FROM t", "SELECT v FROM t_twin")
    assert verdict.refusal is not None
    assert '"missing" does not exist (SQLSTATE 42703)' in verdict.refusal.detail
    assert (await stage.twin("SELECT missing FROM t", "SELECT v FROM t_twin", guard=True)) == ProbeVerdict(
        False
    )


async def test_a_twin_that_is_gone_is_our_trouble_and_not_the_clients(stage: Stage) -> None:
    verdict = await stage.twin("SELECT b AS v FROM t", "SELECT v FROM dualwire.twin_1")
    assert (verdict.error, verdict.refusal) == (b"", NOT_TRIED)


async def test_statements_of_one_query_are_tried_one_by_one(stage: Stage) -> None:
    good = "BEGIN; SELECT id AS v FROM t; COMMIT"
    assert await stage.twin(good, "BEGIN; SELECT id AS v FROM t_twin; COMMIT", statements=3) == ProbeVerdict(
        True
    )
    different = await stage.twin(good, "BEGIN; SELECT v FROM t_twin; COMMIT", statements=3)
    assert different.refusal is not None
    wrong = await stage.twin("SELECT 1; COMMIT", "SELECT w FROM t_twin; COMMIT", statements=2)
    assert m.error_fields(wrong.error)["C"] == b"42703"
    # What is missing may be made by what stands before.
    text = "CREATE TEMP TABLE u (v int); SELECT u.v FROM u, {}"
    assert await stage.twin(text.format("t"), text.format("t_twin"), statements=2) == ProbeVerdict(True)


async def test_mirrored_statements_of_one_query_are_tried_one_by_one(stage: Stage) -> None:
    def plan(text: str, original: str) -> Plan:
        fallback = Plan(original.encode(), Kind.WRITE, "guard_other", statements=3)
        return replace(fallback, text=text.encode(), mirrored=True, fallback=fallback)

    original = "BEGIN; UPDATE t SET a = 1 RETURNING id; COMMIT"
    for text, mirrored in (
        ("BEGIN; UPDATE t SET a = 1, b = 'x' RETURNING id; COMMIT", True),
        ("BEGIN; UPDATE t SET a = 1, b = 'x' RETURNING id, b; COMMIT", False),
        ("BEGIN; UPDATE t SET a = 1, missing = 'x' RETURNING id; COMMIT", False),
    ):
        assert (await stage.judged(plan(text, original))).mirrored == mirrored
    made = "CREATE TEMP TABLE u (v int); INSERT INTO t (id) SELECT v FROM u; COMMIT"
    assert await stage.judged(plan(made.replace("v FROM", "v FROM (TABLE u)"), made)) == ProbeVerdict(False)


async def test_a_server_that_cannot_be_asked_refuses_what_no_guard_can_take(stage: Stage) -> None:
    taken = await stage.pool.acquire(
        {"user": stage.pool.dsn.user, "database": stage.pool.dsn.database}, stage.pool.dsn.password
    )
    stage.pool.wait_timeout = 0.2
    assert (await stage.twin("SELECT 1", "SELECT 1")).refusal == NOT_TRIED
    stage.pool.release(taken, reusable=True)


async def test_a_table_that_the_client_has_locked_itself_is_not_waited_for(
    stage: Stage, database: Database
) -> None:
    assert (await stage.verdict(ORIGINAL + b" -- before")).mirrored
    connections = list(stage.pool.pids)
    async with database.connection() as client, client.transaction():
        await client.execute("TRUNCATE t")
        assert not (await stage.verdict(ORIGINAL + b" -- meanwhile")).mirrored
        # The server gave up, and not the prober, which would have had to end the connection.
        assert list(stage.pool.pids) == connections
