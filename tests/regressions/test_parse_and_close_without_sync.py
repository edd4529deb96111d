"""A batch of Parse and Close without Sync.

Guards against proxies that answer some messages themselves and forward others: their own answers wait for a server's
that never comes, overtake it, or belong to a statement whose name the proxy has given to another one meanwhile.
"""

from __future__ import annotations

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled
from tests.regressions.raw import (
    FLUSH,
    SYNC,
    Raw,
    bind,
    close,
    codes,
    connected,
    describe,
    directly,
    execute,
    kinds,
    parse,
    query,
    values,
)

# What is said, and the kinds of what comes before any Sync is sent.
BATCHES = [
    (parse("SELECT 'a'", "s") + close("s"), "13"),
    (close("s") + parse("SELECT 'a'", "s"), "31"),
    (close("nobody"), "3"),
    (close("", "P"), "3"),
    (close("s") + close("s") + close("s"), "333"),
    (parse("SELECT 'a'", "s") + close("s") + parse("SELECT 'b'", "s") + close("s"), "1313"),
    (parse("SELECT 'a'", "s") + describe("s") + close("s"), "1tT3"),
    (parse("SELECT 'a'", "s") + bind("s") + execute() + close("s"), "12DC3"),
    (parse("SELECT 'a'", "s") + parse("SELECT 'b'", "s2") + close("s") + bind("s2") + execute(), "1132DC"),
    (parse("SELECT 'a'") + close(), "13"),
]


@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
async def test_its_answers_come_in_order_and_without_a_sync(
    database: Database, pooled: Pooled, replicas: bool
) -> None:
    proxy = pooled(1, replicas=replicas)
    async with directly(database) as there, connected(proxy) as here:
        for said, expected in BATCHES:
            answers = []
            for client in (there, here):
                client.send(said, FLUSH)
                frames = await client.take(len(expected))
                frames += await client.ask(close("s"), close("s2"), SYNC)
                answers.append((kinds(frames), values(frames)))
                await client.in_step()
            assert answers[1] == answers[0]
            assert answers[1][0] == expected + "33Z"


async def test_the_name_is_free_for_another_statement_at_once(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(parse("SELECT 'first'", "s"), close("s"), FLUSH)
        assert kinds(await client.take(2)) == "13"
        answer = await client.ask(parse("SELECT 'second'", "s"), bind("s"), execute(), SYNC)
        assert (kinds(answer), values(answer)) == ("12DCZ", ["second"])
        answer = await client.ask(bind("s"), execute(), SYNC)
        assert values(answer) == ["second"]


async def test_a_statement_closed_in_the_batch_that_made_it_is_gone(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(parse("SELECT 'gone'", "s"), close("s"), FLUSH)
        assert kinds(await client.take(2)) == "13"
        answer = await client.ask(bind("s"), execute(), SYNC)
        assert (kinds(answer), codes(answer)) == ("EZ", ["26000"])


async def test_the_batch_may_end_in_a_query_or_a_goodbye(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(parse("SELECT 'a'", "s"), close("s"), query("SELECT 'q'"))
        answer = await client.ready()
        assert (kinds(answer), values(answer)) == ("13TDCZ", ["q"])
        client.send(parse("SELECT 'a'", "s"), close("s"))
        await client.leave()
    async with connected(proxy) as other:
        await _nothing_prepared(other)


async def test_closing_again_and_again_leaves_nothing_prepared(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        for number in range(300):
            client.send(parse(f"SELECT {number}", "s"), close("s"), FLUSH)
        frames = await client.take(600)
        assert kinds(frames) == "13" * 300
        assert kinds(await client.ask(SYNC)) == "Z"
        await _nothing_prepared(client)


async def _nothing_prepared(client: Raw) -> None:
    answer = await client.ask(bind("s"), execute(), SYNC)
    assert (kinds(answer), codes(answer)) == ("EZ", ["26000"])
    await client.in_step()
