"""A failed PREPARE followed by EXECUTE.

Guards against proxies that write a statement into their books when it is sent and not when it was accepted. The
EXECUTE then finds a statement that no server has, or worse, the one that had the name or the text before.
"""

from __future__ import annotations

from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled
from tests.regressions.raw import (
    SYNC,
    bind,
    close,
    codes,
    connected,
    describe,
    execute,
    kinds,
    parse,
    query,
    status,
    values,
)


async def test_sql_execute_after_a_failed_prepare_finds_nothing(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        for text, code in (
            ("PREPARE p AS SELEC", "42601"),
            ("PREPARE p AS SELECT * FROM nowhere", "42P01"),
            ("PREPARE p (nonsense) AS SELECT $1", "42704"),
        ):
            assert codes(await client.query(text)) == [code]
            answer = await client.query("EXECUTE p")
            assert (kinds(answer), codes(answer)) == ("EZ", ["26000"])
        assert kinds(await client.query("PREPARE p AS SELECT 'good'")) == "CZ"
        assert values(await client.query("EXECUTE p")) == ["good"]
        # The name is taken: the first one stays.
        assert codes(await client.query("PREPARE p AS SELECT 'bad'")) == ["42P05"]
        assert values(await client.query("EXECUTE p")) == ["good"]
        assert kinds(await client.query("DEALLOCATE p")) == "CZ"
        assert codes(await client.query("EXECUTE p")) == ["26000"]
        await client.in_step()


async def test_the_same_in_one_pipeline(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(query("PREPARE p AS SELEC"), query("EXECUTE p"), query("SELECT 'end'"))
        assert codes(await client.ready()) == ["42601"]
        assert codes(await client.ready()) == ["26000"]
        assert values(await client.ready()) == ["end"]


async def test_binding_after_a_failed_parse_finds_nothing(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        for text, code in (("SELEC", "42601"), ("SELECT * FROM nowhere", "42P01")):
            assert codes(await client.ask(parse(text, "s"), SYNC)) == [code]
            for said in (bind("s") + execute(), describe("s")):
                answer = await client.ask(said, SYNC)
                assert (kinds(answer), codes(answer)) == ("EZ", ["26000"])
            # As one pipeline of several batches too.
            client.send(parse(text, "s"), SYNC, bind("s"), execute(), SYNC, query("SELECT 'end'"))
            assert codes(await client.ready()) == [code]
            assert codes(await client.ready()) == ["26000"]
            assert values(await client.ready()) == ["end"]


async def test_a_failed_parse_does_not_bring_back_an_earlier_statement_of_that_name(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        await client.ask(parse("SELECT 'old'", "s"), SYNC)
        await client.ask(close("s"), SYNC)
        assert codes(await client.ask(parse("SELEC", "s"), SYNC)) == ["42601"]
        assert codes(await client.ask(bind("s"), execute(), SYNC)) == ["26000"]
        # Unnamed: even a failed Parse ends the one before.
        await client.ask(parse("SELECT 'old'"), SYNC)
        assert codes(await client.ask(parse("SELEC"), SYNC)) == ["42601"]
        assert codes(await client.ask(bind(), execute(), SYNC)) == ["26000"]
        await client.in_step()


async def test_a_close_that_the_server_skipped_closes_nothing(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        await client.ask(parse("SELECT 'kept'", "s"), SYNC)
        assert kinds(await client.ask(parse("SELEC"), close("s"), SYNC)) == "EZ"
        answer = await client.ask(bind("s"), execute(), SYNC)
        assert (kinds(answer), values(answer)) == ("2DCZ", ["kept"])


async def test_a_text_that_failed_once_can_succeed_later_and_for_another_client(
    database: Database, pooled: Pooled
) -> None:
    """Statements of one text are prepared once for all clients: its failure must not be remembered."""
    proxy = pooled(2)
    text = "SELECT count(*)::text FROM later"
    async with connected(proxy) as one, connected(proxy) as two:
        assert codes(await one.ask(parse(text, "s"), SYNC)) == ["42P01"]
        assert codes(await two.ask(bind("s"), execute(), SYNC)) == ["26000"]
        database.sql("CREATE TABLE later (id int)")
        for client in (two, one):
            answer = await client.ask(parse(text, "s"), bind("s"), execute(), SYNC)
            assert (kinds(answer), values(answer)) == ("12DCZ", ["0"])
            answer = await client.ask(bind("s"), execute(), SYNC)
            assert values(answer) == ["0"]


async def test_a_failed_prepare_fails_its_transaction_and_leaves_no_statement(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        await client.query("BEGIN")
        answer = await client.ask(parse("SELEC", "s"), SYNC)
        assert (codes(answer), status(answer)) == (["42601"], "E")
        assert codes(await client.query("EXECUTE s")) == ["25P02"]
        assert status(await client.query("ROLLBACK")) == "I"
        assert codes(await client.query("EXECUTE s")) == ["26000"]
        # A statement survives the rollback of the transaction that prepared it.
        client.send(query("BEGIN"), parse("SELECT 'kept'", "s"), SYNC, query("ROLLBACK"))
        for _ in range(3):
            await client.ready()
        assert values(await client.ask(bind("s"), execute(), SYNC)) == ["kept"]
