"""SET leaking to the next client.

Guards against proxies that give a server connection on with what its last client has set: a role, a search_path, a
timeout. Also when it was set inside a transaction that was rolled back (the proxy that follows SETs believes it, the
server has forgotten it, or the other way round), and also through ``set_config``, ``options`` and ``SET LOCAL``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import Database, Sidecar
from tests.regressions.raw import (
    SYNC,
    Raw,
    bind,
    codes,
    connect,
    connected,
    execute,
    extended,
    parse,
    query,
    status,
)

WATCHED = (
    "work_mem",
    "search_path",
    "statement_timeout",
    "role",
    "session_authorization",
    "application_name",
    "DateStyle",
    "TimeZone",
    "default_transaction_read_only",
    "default_transaction_isolation",
    "extra_float_digits",
    "standard_conforming_strings",
)
_PARTS = " || '|' || ".join(f"current_setting('{name}')" for name in WATCHED)
STATE = f"SELECT {_PARTS} || '|' || coalesce(current_setting('my.own', true), '') || '|' || current_user"

# What is said, one query each; every one must leave nothing to the next client.
LEFT_BEHIND = {
    "a set": ["SET work_mem = '77MB'"],
    "several in one text": [
        "SET work_mem = '77MB'; SET statement_timeout = '9min'; SET search_path TO hidden"
    ],
    "reported ones": [
        "SET application_name = 'leaky'",
        "SET DateStyle = 'German'",
        "SET TimeZone = 'Asia/Tokyo'",
    ],
    "a role": ["SET ROLE pg_read_all_data"],
    "a session authorization": ["SET SESSION AUTHORIZATION pg_read_all_data"],
    "a setting of one's own": ["SET my.own = 'mine'"],
    "set_config": ["SELECT set_config('work_mem', '77MB', false), set_config('my.own', 'mine', false)"],
    "set_config in a block": ["DO $$ BEGIN PERFORM set_config('work_mem', '77MB', false); END $$"],
    "session characteristics": [
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE"
    ],
    "in a committed transaction": ["BEGIN", "SET work_mem = '77MB'", "SET search_path TO hidden", "COMMIT"],
    "in a rolled-back transaction": [
        "BEGIN",
        "SET work_mem = '77MB'",
        "SET search_path TO hidden",
        "ROLLBACK",
    ],
    "in a failed transaction": ["BEGIN", "SET work_mem = '77MB'", "SELECT 1/0", "COMMIT"],
    "rolled back to a savepoint": [
        "BEGIN",
        "SAVEPOINT s",
        "SET work_mem = '77MB'",
        "ROLLBACK TO s",
        "COMMIT",
    ],
    "in a failed query of several": ["SET work_mem = '77MB'; SELECT 1/0"],
    "in a rolled-back query": ["BEGIN; SET work_mem = '77MB'; SET ROLE pg_read_all_data; ROLLBACK"],
    "local": ["BEGIN", "SET LOCAL work_mem = '77MB'", "COMMIT"],
    "local, and then for good": ["BEGIN", "SET LOCAL work_mem = '66MB'", "SET work_mem = '77MB'", "COMMIT"],
    "in an open transaction": ["BEGIN", "SET work_mem = '77MB'"],
    "in a transaction that has failed": ["BEGIN", "SET ROLE pg_read_all_data", "SELECT 1/0"],
    "set and reset": ["SET work_mem = '77MB'", "RESET work_mem", "SET search_path TO hidden", "RESET ALL"],
    "set over a rolled-back set": ["SET work_mem = '66MB'", "BEGIN", "SET work_mem = '77MB'", "ROLLBACK"],
}


@pytest.fixture(autouse=True)
def hidden(database: Database) -> None:
    """A schema to name in search_path."""
    database.sql("CREATE SCHEMA hidden")


async def _said(client: Raw, texts: list[str], wrap: bool) -> None:
    for text in texts:
        if wrap and ";" not in text:
            await client.ask(extended(text))
        else:
            await client.query(text)


@pytest.mark.parametrize("protocol", ["simple", "extended"])
@pytest.mark.parametrize("end", ["goodbye", "vanish"])
async def test_nothing_of_it_reaches_the_client_after(proxy: Sidecar, protocol: str, end: str) -> None:
    async with connected(proxy) as fresh:
        state, pid = await fresh.value(STATE), await fresh.pid()
        await fresh.leave()
    shared = 0
    for what, texts in LEFT_BEHIND.items():
        client = await connect(proxy)
        await _said(client, texts, protocol == "extended")
        if end == "goodbye":
            await client.leave()
        else:
            client.vanish()
        async with connected(proxy) as other:
            assert await other.value(STATE) == state, what
            shared += await other.pid() == pid
            await other.leave()
    if end == "goodbye":
        assert shared > 0, "no server connection was ever handed on: it is no test"


async def test_nothing_of_it_reaches_a_client_beside(
    proxy: Sidecar,
    pool_mode: str,
    waiting: Callable[[Sidecar], int],
    soon: Callable[..., Awaitable[None]],
) -> None:
    """Transaction mode: both are connected, and take turns on the only server connection."""
    if pool_mode == "session":
        pytest.skip("in session mode two clients never share a server connection")
    async with connected(proxy) as watcher:
        state, shared = await watcher.value(STATE), 0
        for what, texts in LEFT_BEHIND.items():
            async with connected(proxy) as client:
                await _said(client, texts, wrap=False)
                if "in an open" in what or "that has failed" in what:
                    await client.query("ROLLBACK")
                mine = await client.value(STATE)
                asking = asyncio.create_task(watcher.value(STATE))
                # Whoever has set what cannot be followed keeps the server for himself; the other one waits.
                await soon(lambda asking=asking: asking.done() or waiting(proxy), what)
                if asking.done():
                    shared += 1
                    assert await client.value(STATE) == mine, what
                await client.leave()
                assert await asking == state, what
        assert shared > len(LEFT_BEHIND) // 2, "hardly anything was shared: it is no test"


@pytest.mark.parametrize("text", ["SET work_mem = '77MB'", "SELECT set_config('work_mem', '77MB', false)"])
async def test_what_a_rolled_back_transaction_set_is_gone_for_its_own_client_too(
    proxy: Sidecar, text: str
) -> None:
    async with connected(proxy) as client:
        before = await client.value("SHOW work_mem")
        for said in (
            ["BEGIN", text, "ROLLBACK"],
            ["BEGIN", text, "SELECT 1/0", "COMMIT"],
            [f"BEGIN; {text}; ROLLBACK"],
        ):
            await _said(client, said, wrap=False)
            assert await client.value("SHOW work_mem") == before
        await client.query("SET work_mem = '66MB'")
        await _said(client, ["BEGIN", text, "ROLLBACK"], wrap=False)
        assert await client.value("SHOW work_mem") == "66MB"
        await _said(client, ["BEGIN", text, "COMMIT"], wrap=False)
        assert await client.value("SHOW work_mem") == "77MB"
        await _said(
            client, ["BEGIN", "SAVEPOINT s", "SET work_mem = '88MB'", "ROLLBACK TO s", "COMMIT"], wrap=False
        )
        assert await client.value("SHOW work_mem") == "77MB"


async def test_settings_of_the_startup_packet_are_their_clients_only(proxy: Sidecar) -> None:
    async with connected(proxy) as fresh:
        state = await fresh.value(STATE)
        await fresh.leave()
    mine = {
        "options": "-c work_mem=77MB -c my.own=mine",
        "application_name": "leaky",
        "search_path": "hidden",
    }
    for _ in range(2):
        async with connected(proxy, **mine) as client:
            assert await client.value("SHOW work_mem") == "77MB"
            assert await client.value("SHOW search_path") == "hidden"
            assert await client.value("SHOW application_name") == "leaky"
            assert (await client.query("SET work_mem = '66MB'"))[-1]
            await client.query("RESET work_mem")
            assert await client.value("SHOW work_mem") == "77MB"
            await client.leave()
        async with connected(proxy) as other:
            assert await other.value(STATE) == state
            await other.leave()


async def test_a_setting_in_a_pipeline_is_in_force_for_what_follows(proxy: Sidecar) -> None:
    async with connected(proxy) as client:
        client.send(
            query("SET work_mem = '77MB'"),
            extended("SHOW work_mem"),
            query("BEGIN"),
            parse("SET work_mem = '88MB'") + bind() + execute() + SYNC,
            query("SELECT 1/0"),
            query("ROLLBACK"),
            extended("SHOW work_mem"),
        )
        heard = [await client.ready() for _ in range(7)]
        assert b"77MB" in b"".join(heard[1])
        assert codes(heard[4]) == ["22012"]
        assert status(heard[5]) == "I"
        assert b"77MB" in b"".join(heard[6])
        await client.in_step()
