"""CopyDone after an error.

Guards against proxies that believe the end of a copy to be the client's CopyDone. The server may have ended it long
before, with an error; data, CopyDone and CopyFail that were already on their way must go nowhere and be answered by
nothing, and nobody else may get them.
"""

from __future__ import annotations

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.raw import (
    COPY_DONE,
    FLUSH,
    SYNC,
    bind,
    codes,
    connected,
    copy_data,
    copy_fail,
    execute,
    kinds,
    parse,
    query,
    values,
)

ROW, BAD = copy_data("1\n"), copy_data("x\n")


@pytest.fixture(autouse=True)
def table(database: Database) -> None:
    """A table to copy to."""
    database.sql("CREATE TABLE t (id int)")


@pytest.mark.parametrize("end", [COPY_DONE, copy_fail()], ids=["done", "fail"])
async def test_the_end_of_a_simple_copy_that_has_failed_is_ignored(
    database: Database, proxy: Sidecar, end: bytes
) -> None:
    async with connected(proxy) as client:
        client.send(query("COPY t FROM STDIN"))
        assert kinds(await client.take(1)) == "G"
        # The server finds the error when it reads a row's end, and is ready again by itself.
        answer = await client.ask(BAD, ROW * 1000)
        assert (kinds(answer), codes(answer)) == ("EZ", ["22P02"])
        client.send(ROW, end, query("SELECT 'next'"))
        answer = await client.ready()
        assert (kinds(answer), values(answer)) == ("TDCZ", ["next"])
        await client.in_step()
    assert database.sql("SELECT count(*) FROM t") == "0"


@pytest.mark.parametrize("end", [COPY_DONE, copy_fail()], ids=["done", "fail"])
async def test_the_end_of_an_extended_copy_that_has_failed_waits_for_the_sync(
    proxy: Sidecar, end: bytes
) -> None:
    async with connected(proxy) as client:
        client.send(parse("COPY t FROM STDIN"), bind(), execute(), FLUSH)
        assert kinds(await client.take(3)) == "12G"
        client.send(BAD, ROW * 1000)
        assert codes(await client.take(1)) == ["22P02"]
        client.send(ROW, end, parse("SELECT 'skipped'"), bind(), execute())
        assert kinds(await client.ask(SYNC)) == "Z"
        await client.in_step()


@pytest.mark.parametrize("rest", [b"", ROW * 100], ids=["nothing", "data"])
async def test_a_sync_after_the_error_is_answered_without_any_end_of_the_copy(
    proxy: Sidecar, rest: bytes
) -> None:
    async with connected(proxy) as client:
        client.send(parse("COPY t FROM STDIN"), bind(), execute(), FLUSH)
        assert kinds(await client.take(3)) == "12G"
        client.send(BAD)
        assert codes(await client.take(1)) == ["22P02"]
        assert kinds(await client.ask(rest, SYNC)) == "Z"
        await client.in_step()


async def test_nothing_of_a_failed_copy_reaches_the_next_client(proxy: Sidecar) -> None:
    async with connected(proxy) as first:
        first.send(query("COPY t FROM STDIN"))
        assert kinds(await first.take(1)) == "G"
        assert kinds(await first.ask(BAD, ROW)) == "EZ"
        first.send(ROW * 100, COPY_DONE, ROW * 100)
        await first.leave()
    async with connected(proxy) as second:
        second.send(query("COPY t FROM STDIN"))
        assert kinds(await second.take(1)) == "G"
        second.send(ROW, COPY_DONE)
        assert kinds(await second.ready()) == "CZ"
        assert await second.value("SELECT count(*) FROM t") == "1"
        await second.in_step()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("COPY nowhere FROM STDIN", "42P01"),
        ("COPY t FROM STDIN WITH (nonsense)", "42601"),
        ("COPY t FROM STDOUT", ""),
    ],
    ids=["no-table", "bad-option", "fine"],
)
async def test_a_copy_sent_blindly_with_its_data(proxy: Sidecar, text: str, code: str) -> None:
    """Drivers that pipeline send the data without waiting for the server to want it."""
    async with connected(proxy) as client:
        for said in (
            query(text) + ROW + COPY_DONE,
            parse(text) + bind() + execute() + ROW + COPY_DONE + SYNC,
            parse(text) + bind() + execute() + ROW + copy_fail() + SYNC,
        ):
            client.send(said, query("SELECT 'next'"))
            assert codes(await client.ready()) == ([code] if code else [] if COPY_DONE in said else ["57014"])
            answer = await client.ready()
            assert (kinds(answer), values(answer)) == ("TDCZ", ["next"])
        await client.in_step()


async def test_a_cancelled_copy_ignores_the_rest_of_its_data(proxy: Sidecar, database: Database) -> None:
    database.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(30); RETURN NEW; END'; "
        "CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    async with connected(proxy) as client:
        client.send(query("COPY t FROM STDIN"))
        assert kinds(await client.take(1)) == "G"
        client.send(ROW * 2000)
        await client.cancel()
        client.send(COPY_DONE)
        answer = await client.ready()
        assert (kinds(answer), codes(answer)) == ("EZ", ["57014"])
        await client.in_step()
    assert database.sql("SELECT count(*) FROM t") == "0"
