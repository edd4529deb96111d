"""Two errors in one pipeline.

Guards against proxies that know "in error" as one flag of the connection: the second error clears it, finds it set
already, or is taken for the answer to what stands between them.
"""

from __future__ import annotations

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.conftest import Pooled
from tests.regressions.raw import (
    FLUSH,
    SYNC,
    bind,
    codes,
    connected,
    directly,
    execute,
    extended,
    kinds,
    parse,
    query,
    status,
    values,
)

BAD, WORSE = "SELECT 1/0", "SELECT * FROM nowhere"


def _run(text: str) -> bytes:
    return parse(text) + bind() + execute()


async def test_each_sync_gets_its_own_error(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(
            extended(BAD), extended(WORSE), extended("SELECT 'good'"), extended(WORSE), extended("SELECT 2")
        )
        heard = [await client.ready() for _ in range(5)]
        assert [codes(frames) for frames in heard] == [["22012"], ["42P01"], [], ["42P01"], []]
        assert [values(frames) for frames in heard] == [[], [], ["good"], [], ["2"]]
        await client.in_step()


async def test_of_two_in_one_batch_only_the_first_is_heard(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        answer = await client.ask(_run("SELECT 'one'"), _run(BAD), _run(WORSE), _run("SELECT 'lost'"), SYNC)
        assert (kinds(answer), values(answer), codes(answer)) == ("12DC1EZ", ["one"], ["22012"])
        await client.in_step()


async def test_the_second_may_come_in_the_failed_transaction_of_the_first(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(query("BEGIN"), extended(BAD), extended("SELECT 'lost'"), query(WORSE), query("ROLLBACK"))
        heard = [await client.ready() for _ in range(5)]
        assert [codes(frames) for frames in heard] == [[], ["22012"], ["25P02"], ["25P02"], []]
        assert "".join(status(frames) for frames in heard) == "TEEEI"
        await client.in_step()


async def test_an_error_flushed_and_another_after_the_sync(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(_run(BAD), FLUSH)
        assert kinds(await client.take(2)) == "1E"
        client.send(_run(WORSE), FLUSH, _run("SELECT 'lost'"), FLUSH)
        assert kinds(await client.ask(SYNC)) == "Z"
        client.send(_run(WORSE), FLUSH)
        assert codes(await client.take(1)) == ["42P01"]
        assert kinds(await client.ask(SYNC)) == "Z"
        await client.in_step()


@pytest.mark.parametrize("replicas", [False, True], ids=["primary", "replica"])
async def test_long_pipelines_of_good_and_bad_are_answered_as_by_postgresql(
    database: Database, pooled: Pooled, replicas: bool
) -> None:
    proxy = pooled(1, replicas=replicas)
    parts = [
        extended("SELECT 'one'"),
        extended(BAD),
        query(WORSE),
        _run(BAD) + _run(WORSE) + SYNC,
        _run("SELECT 'two'") + _run(WORSE) + query("SELECT 'lost'") + SYNC,
        query(f"SELECT 'three'; {BAD}; {WORSE}"),
        SYNC,
        parse("SELECT 's'", "s") + _run(BAD) + SYNC,
        bind("s") + execute() + bind("nobody") + SYNC,
    ]
    async with directly(database) as there, connected(proxy) as here:
        for turn in range(len(parts)):
            said = parts[turn:] + parts[:turn]
            answers = []
            for client in (there, here):
                client.send(b"".join(said), query("DEALLOCATE ALL"), query("SELECT 'the end'"))
                frames: list[bytes] = []
                while "the end" not in values(frames[-3:]):
                    frames += await client.ready()
                answers.append((kinds(frames), codes(frames), values(frames)))
                await client.in_step()
            assert answers[1] == answers[0]
