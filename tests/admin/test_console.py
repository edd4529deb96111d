"""The SQL console as operators and drivers meet it: through the sidecar's listener, with real clients beside it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from tests.conftest import Database, Sidecar, SidecarFactory
from tests.server.handshake import make_pki

CONSOLE = "dualwire"
MODES = pytest.mark.parametrize("mode", ["session", "transaction"])
Eventually = Callable[..., None]


def _console(sidecar: Sidecar, user: str | None = None, password: str | None = None) -> Any:
    """A psycopg connection to the console."""
    return psycopg.connect(
        sidecar.dsn(user, CONSOLE, password), autocommit=True, row_factory=psycopg.rows.dict_row
    )


def _rows(sidecar: Sidecar, what: str) -> list[dict[str, Any]]:
    with _console(sidecar) as console:
        rows: list[dict[str, Any]] = console.execute(f"SHOW {what}").fetchall()
        return rows


def _primary(sidecar: Sidecar) -> dict[str, Any]:
    """The row of the primary's pool."""
    (row,) = [row for row in _rows(sidecar, "POOLS") if row["role"] == "primary"]
    return row


async def _admin(sidecar: Sidecar) -> Any:
    return await asyncpg.connect(sidecar.dsn(database=CONSOLE))


def _with_mode(sidecar: SidecarFactory, mode: str, extra: str = "") -> Sidecar:
    return sidecar(extra=f'pool_mode = "{mode}"\n{extra}')


async def _until(condition: Callable[[], bool]) -> None:
    """Waits without holding up the tasks of the test."""
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


# -- drivers -----------------------------------------------------------------------------------------------------------


def test_psql_is_served(sidecar: SidecarFactory) -> None:
    proxy = sidecar()
    command = ["psql", "-X", "-A", "-t", proxy.dsn(database=CONSOLE)]
    asked = subprocess.run([*command, "-c", "SHOW DATABASES"], capture_output=True, text=True, timeout=20)
    assert asked.stdout.startswith("shop|127.0.0.1|"), asked.stderr
    wrong = subprocess.run([*command, "-c", "\\d"], capture_output=True, text=True, timeout=20)
    assert "the console of the sidecar knows no tables" in wrong.stderr
    assert "SHOW HELP" in wrong.stderr


def test_psycopg_is_served_by_both_protocols(sidecar: SidecarFactory) -> None:
    proxy = sidecar()
    with _console(proxy) as console:
        simple = console.execute("SHOW CONFIG").fetchall()
        prepared = console.execute("SHOW CONFIG", prepare=True).fetchall()
        binary = console.execute("SHOW CONFIG", binary=True).fetchall()
        assert simple == prepared == binary
        assert {"key", "value", "default", "changeable"} == set(simple[0])
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            console.execute("KILL_CLIENT nobody")
        with pytest.raises(psycopg.errors.ProtocolViolation):
            console.execute("RECONNECT %s", ["shop"])
        assert console.execute("SELECT version()").fetchone()["version"].startswith("PostgreSQL")
    with psycopg.connect(proxy.dsn(database=CONSOLE)) as transaction:
        assert transaction.execute("SHOW DATABASES").fetchone() is not None
        with pytest.raises(psycopg.errors.SyntaxError):
            transaction.execute("nonsense")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            transaction.execute("SHOW DATABASES")
        transaction.rollback()
        assert transaction.execute("SHOW DATABASES").fetchone() is not None


async def test_asyncpg_is_served(sidecar: SidecarFactory) -> None:
    proxy = sidecar()
    async with asyncpg.create_pool(proxy.dsn(database=CONSOLE), min_size=1) as pool:
        for _ in range(2):
            rows = await pool.fetch("SHOW POOLS")
            assert [(row["database"], row["sv_login"]) for row in rows] == [("shop", 0)] * 2
        with pytest.raises(asyncpg.InvalidCatalogNameError, match="not configured"):
            await pool.execute("RECONNECT elsewhere")
        async with pool.acquire() as connection, connection.transaction():
            cursor = await connection.cursor("SHOW CONFIG")
            assert len(await cursor.fetch(3)) == 3


@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_encrypted_clients_are_served_and_can_cancel(
    sidecar: SidecarFactory, tmp_path: Path, version: str, eventually: Eventually
) -> None:
    config = sidecar.default_config().replace("[listen]\n", f"[listen]\n{make_pki(tmp_path).listen()}")
    proxy = sidecar(config)
    client = psycopg.connect(proxy.dsn(), autocommit=True)
    with psycopg.connect(
        proxy.dsn(database=CONSOLE),
        autocommit=True,
        sslmode="require",
        min_protocol_version=version,
        max_protocol_version=version,
    ) as console:
        assert console.pgconn.ssl_in_use
        assert len(console.execute("SHOW CONFIG").fetchall()) > 20
        with ThreadPoolExecutor(1) as thread:
            pausing = thread.submit(console.execute, "PAUSE")
            eventually(lambda: _primary(proxy)["paused"] == "yes")
            console.cancel_safe()
            with pytest.raises(psycopg.errors.QueryCanceled):
                pausing.result(10)
        assert console.execute("SHOW DATABASES").fetchall()[0][12] == 0
    client.close()


# -- who is let in -----------------------------------------------------------------------------------------------------


SCRAM = """
[listen]
address = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
users = ["boss"]
stats_users = ["viewer"]
[auth]
method = "scram-sha-256"
users_file = "users.txt"
[databases.shop]
primary = "{dsn}"
"""


def test_with_passwords_only_listed_users_are_let_in(
    sidecar: SidecarFactory, database: Database, tmp_path: Path
) -> None:
    (tmp_path / "users.txt").write_text('"boss" "b"\n"viewer" "v"\n"app" "a"\n')
    (tmp_path / "users.txt").chmod(0o600)
    proxy = sidecar(SCRAM.format(dsn=database.dsn))
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        _console(proxy, "app", "a")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        _console(proxy, "boss", "x")
    with _console(proxy, "viewer", "v") as viewer:
        assert viewer.execute("SHOW STATS").fetchall()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            viewer.execute("RECONNECT")
    with _console(proxy, "boss", "b") as boss:
        boss.execute("RECONNECT")


def test_a_list_of_admins_holds_for_trusted_clients_too(
    sidecar: SidecarFactory, database: Database, eventually: Eventually
) -> None:
    proxy = sidecar()
    with _console(proxy, "anybody") as console:
        text = proxy.config.read_text().replace("[auth]", 'users = ["boss"]\n[auth]')
        proxy.config.write_text(text)
        console.execute("RELOAD")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        _console(proxy, "anybody")
    _console(proxy, "boss").close()


# -- what it shows -----------------------------------------------------------------------------------------------------


@MODES
async def test_pools_and_servers_show_who_has_what(sidecar: SidecarFactory, mode: str) -> None:
    proxy = _with_mode(sidecar, mode)
    client = await proxy.connect()
    transaction = client.transaction()
    await transaction.start()
    pid = await client.fetchval("SELECT pg_backend_pid()")
    row = await asyncio.to_thread(_primary, proxy)
    assert (row["pool_mode"], row["sv_active"], row["cl_waiting"]) == (mode, 1, 0)
    servers = await asyncio.to_thread(_rows, proxy, "SERVERS")
    assert ("active", "primary") in {
        (server["state"], server["role"]) for server in servers if server["remote_pid"] == pid
    }
    await transaction.rollback()
    await client.close()
    await _until(lambda: _primary(proxy)["sv_idle"] == 1)


@MODES
async def test_clients_show_every_client_and_the_console_itself(sidecar: SidecarFactory, mode: str) -> None:
    proxy = _with_mode(sidecar, mode)
    client = await proxy.connect()
    await client.fetchval("SELECT 1")
    rows = await asyncio.to_thread(_rows, proxy, "CLIENTS")
    assert sorted(row["database"] for row in rows) == ["dualwire", "shop"]
    (row,) = [row for row in rows if row["database"] == "shop"]
    assert (row["speaks"], row["version"], row["epoch"], row["in_transaction"]) == ("auto", "base", 0, "no")
    assert row["port"] == client._transport.get_extra_info("sockname")[1]
    assert row["id"] is not None


async def test_stats_count_and_plans_are_shown(sidecar: SidecarFactory) -> None:
    proxy = sidecar()
    client = await proxy.connect()
    await client.fetchval("SELECT 40 + 2")
    (stats,) = await asyncio.to_thread(_rows, proxy, "STATS")
    assert stats["total_query_count"] >= 1
    assert stats["total_received"] > 0
    assert stats["to_primary"] + stats["to_replica"] >= 1
    plans = await asyncio.to_thread(_rows, proxy, "PLANS")
    (plan,) = [plan for plan in plans if plan["statement"] == "SELECT 40 + 2"]
    assert (plan["kind"], plan["rewritten"], plan["refused"]) == ("read", "no", None)
    for number in (3, 4, 4):
        await client.fetchval(f"SELECT 40 + {number}")
    plans = await asyncio.to_thread(_rows, proxy, "PLANS")
    (template,) = [plan for plan in plans if plan["statement"] == "SELECT ? + ?"]
    assert (template["found_by"], template["kind"]) == ("template", "read")
    caches = {row["cache"]: row for row in await asyncio.to_thread(_rows, proxy, "CACHES")}
    assert caches["plans"]["entries"] >= 2
    assert caches["plans"]["bytes"] > 0
    assert caches["templates"]["entries"] >= 1
    (migration,) = await asyncio.to_thread(_rows, proxy, "MIGRATIONS")
    assert (migration["database"], migration["migration"], migration["old"]) == ("shop", None, "base")


def test_config_shows_values_and_hides_passwords(sidecar: SidecarFactory, database: Database) -> None:
    role = f"hidden_{database.name}"
    dsn = database.role(role, "very-secret")
    proxy = sidecar(sidecar.default_config().replace(database.dsn, dsn))
    rows = {row["key"]: row for row in _rows(proxy, "CONFIG")}
    assert "very-secret" not in str(rows)
    assert rows["databases.shop.primary"]["value"].startswith(f"postgresql://{role}@")
    assert rows["databases.shop.pool_size"] | {"key": ""} == {
        "key": "",
        "value": "100",
        "default": "100",
        "changeable": "yes",
    }
    assert rows["listen.address"]["changeable"] == "no"


@MODES
async def test_a_running_sidecar_keeps_the_minimum_open(sidecar: SidecarFactory, mode: str) -> None:
    proxy = _with_mode(sidecar, mode, "min_pool_size = 3\n")
    client = await proxy.connect()
    await client.fetchval("SELECT 1")
    await client.close()
    await _until(lambda: _primary(proxy)["sv_idle"] == 3)
    admin = await _admin(proxy)
    await admin.execute("RECONNECT")
    await _until(lambda: _primary(proxy)["sv_idle"] == 3)


# -- what it does ------------------------------------------------------------------------------------------------------


def test_reload_says_what_is_wrong_and_what_needs_a_restart(sidecar: SidecarFactory) -> None:
    proxy = sidecar()
    text = proxy.config.read_text()
    with _console(proxy) as console:
        notices: list[str] = []
        console.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        proxy.config.write_text(text + "pool_size = 7\n[log]\nformat = 'json'\n")
        console.execute("RELOAD")
        assert notices == ["these changes need a restart: log.format"]
        assert console.execute("SHOW DATABASES").fetchone()["pool_size"] == 7
        proxy.config.write_text(text + "pool_sice = 7\n")
        with pytest.raises(psycopg.errors.ConfigFileError) as refused:
            console.execute("RELOAD")
        assert "pool_sice" in str(refused.value)
        assert "did you mean databases.shop.pool_size" in refused.value.diag.message_hint
        assert console.execute("SHOW DATABASES").fetchone()["pool_size"] == 7


async def test_pause_waits_for_a_session_to_leave(sidecar: SidecarFactory) -> None:
    proxy = _with_mode(sidecar, "session")
    client, admin = await proxy.connect(), await _admin(proxy)
    pausing = asyncio.create_task(admin.execute("PAUSE shop"))
    await _until(lambda: _primary(proxy)["paused"] == "yes")
    # Who was there before goes on.
    assert await client.fetchval("SELECT 1") == 1
    late = asyncio.create_task(proxy.connect())
    await _until(lambda: _primary(proxy)["cl_waiting"] == 1)
    assert not pausing.done()
    await client.close()
    assert await pausing == "PAUSE"
    row = await asyncio.to_thread(_primary, proxy)
    assert (row["sv_active"], row["sv_idle"]) == (0, 0)
    assert not late.done()
    assert await admin.execute("RESUME shop") == "RESUME"
    assert await (await late).fetchval("SELECT 2") == 2


async def test_pause_waits_for_a_transaction_to_end(sidecar: SidecarFactory) -> None:
    proxy = _with_mode(sidecar, "transaction")
    client, other, admin = await proxy.connect(), await proxy.connect(), await _admin(proxy)
    transaction = client.transaction()
    await transaction.start()
    await client.execute("CREATE TEMPORARY TABLE t (a int) ON COMMIT DROP")
    pausing = asyncio.create_task(admin.execute("PAUSE"))
    await _until(lambda: _primary(proxy)["paused"] == "yes")
    late = asyncio.create_task(other.fetchval("SELECT pg_backend_pid()"))
    await _until(lambda: _primary(proxy)["cl_waiting"] == 1)
    assert await client.fetchval("SELECT 1") == 1
    assert not pausing.done()
    assert not late.done()
    await transaction.commit()
    assert await pausing == "PAUSE"
    assert not late.done()
    assert await admin.execute("RESUME") == "RESUME"
    assert await late > 0
    assert await client.fetchval("SELECT 2") == 2


@MODES
async def test_resume_on_another_connection_ends_a_pause_that_waits(
    sidecar: SidecarFactory, mode: str
) -> None:
    proxy = _with_mode(sidecar, mode)
    client, admin, other = await proxy.connect(), await _admin(proxy), await _admin(proxy)
    async with client.transaction():
        await client.execute("SELECT txid_current()")
        pausing = asyncio.create_task(admin.execute("PAUSE"))
        await _until(lambda: _primary(proxy)["paused"] == "yes")
        await other.execute("RESUME")
        with pytest.raises(asyncpg.QueryCanceledError, match="ended by RESUME"):
            await pausing
    assert await (await proxy.connect()).fetchval("SELECT 1") == 1


@MODES
@pytest.mark.parametrize("how", ["cancel", "disconnect"])
async def test_a_pause_that_nobody_waits_for_any_more_is_over(
    sidecar: SidecarFactory, mode: str, how: str
) -> None:
    proxy = _with_mode(sidecar, mode)
    client, admin = await proxy.connect(), await _admin(proxy)
    async with client.transaction():
        await client.execute("SELECT txid_current()")
        pausing = asyncio.create_task(admin.execute("PAUSE"))
        await _until(lambda: _primary(proxy)["paused"] == "yes")
        if how == "cancel":
            # asyncpg sends a CancelRequest for a task that is cancelled.
            pausing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pausing
        else:
            admin.terminate()
            with pytest.raises(asyncpg.PostgresConnectionError):
                await pausing
        await _until(lambda: _primary(proxy)["paused"] == "no")
    assert await (await proxy.connect()).fetchval("SELECT 1") == 1


@MODES
async def test_reconnect_replaces_connections_when_they_are_not_in_use(
    sidecar: SidecarFactory, mode: str
) -> None:
    proxy = _with_mode(sidecar, mode)
    client, admin = await proxy.connect(), await _admin(proxy)
    async with client.transaction():
        before = await client.fetchval("SELECT pg_backend_pid()")
        await admin.execute("RECONNECT shop")
        assert await client.fetchval("SELECT pg_backend_pid()") == before
    if mode == "session":
        await client.close()
        client = await proxy.connect()
    async with client.transaction():
        await client.execute("SELECT txid_current()")
        assert await client.fetchval("SELECT pg_backend_pid()") != before


@MODES
async def test_kill_disconnects_everybody_and_lets_nobody_begin(
    sidecar: SidecarFactory, database: Database, mode: str
) -> None:
    proxy = _with_mode(sidecar, mode)
    busy, idle, admin = await proxy.connect(), await proxy.connect(), await _admin(proxy)
    sleeping = asyncio.create_task(busy.execute("SELECT pg_sleep(60)"))
    await _until(lambda: _primary(proxy)["sv_active"] >= 1)
    assert await admin.execute("KILL shop") == "KILL"
    with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
        await sleeping
    await _until(idle.is_closed)
    row = await asyncio.to_thread(_primary, proxy)
    assert (row["paused"], row["sv_active"], row["sv_idle"]) == ("yes", 0, 0)

    async def begin() -> int:
        client = await proxy.connect()
        value: int = await client.fetchval("SELECT 1")
        return value

    late = asyncio.create_task(begin())
    await _until(lambda: _primary(proxy)["cl_waiting"] == 1)
    assert not late.done()
    await admin.execute("RESUME")
    assert await late == 1


@MODES
async def test_kill_client_disconnects_one(sidecar: SidecarFactory, mode: str) -> None:
    proxy = _with_mode(sidecar, mode)
    one, other = await proxy.connect(), await proxy.connect()
    port = one._transport.get_extra_info("sockname")[1]
    (number,) = [row["id"] for row in await asyncio.to_thread(_rows, proxy, "CLIENTS") if row["port"] == port]
    admin = await _admin(proxy)
    await admin.execute(f"KILL_CLIENT {number}")
    await _until(one.is_closed)
    assert await other.fetchval("SELECT 1") == 1
    with pytest.raises(asyncpg.UndefinedObjectError):
        await admin.execute(f"KILL_CLIENT {number}")


@MODES
async def test_shutdown_lets_open_transactions_end(sidecar: SidecarFactory, mode: str) -> None:
    proxy = _with_mode(sidecar, mode)
    client, admin = await proxy.connect(), await _admin(proxy)
    async with client.transaction():
        await client.execute("SELECT txid_current()")
        assert await admin.execute("SHUTDOWN") == "SHUTDOWN"
        await _until(lambda: "stopping" in proxy.log)
        assert await client.fetchval("SELECT 1") == 1
    assert await asyncio.to_thread(proxy.process.wait, 15) == 0


async def test_a_waiting_pause_does_not_hold_up_sigterm(sidecar: SidecarFactory) -> None:
    proxy = sidecar(extra='[limits]\nshutdown_timeout = "100ms"\n')
    client, admin = await proxy.connect(), await _admin(proxy)
    pausing = asyncio.create_task(admin.execute("PAUSE"))
    await _until(lambda: _primary(proxy)["paused"] == "yes")
    proxy.signal(signal.SIGTERM)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await pausing
    assert await asyncio.to_thread(proxy.process.wait, 15) == 0
    client.terminate()


async def test_the_console_is_no_way_around_the_protocol(sidecar: SidecarFactory) -> None:
    proxy = sidecar()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    startup = b"\0\3\0\0user\0me\0database\0dualwire\0\0"
    # A query that comes with the startup packet waits for the login, as with a database.
    writer.write((len(startup) + 4).to_bytes(4, "big") + startup + b"Q\0\0\0\x11SHOW VERSION\0")
    received = b""
    while not received.endswith(b"Z\0\0\0\5I") or b"SHOW\0" not in received:
        received += await asyncio.wait_for(reader.read(65536), 5)
    writer.write(b"\xff\xff\xff\xff\xff")
    assert b"08P01" in await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert await asyncio.to_thread(_rows, proxy, "VERSION")
