"""What a client asks for in its startup packet, and what it is told: the same as on a connection of its own.

In both pool modes, over TCP and over unix sockets on either side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from migrator.cluster.embedded import EmbeddedServer
from proxy.wire import messages as m
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.server.handshake import Peer, kinds, row

ASKED: list[dict[str, str]] = [
    {},
    {"application_name": "bücher & more", "client_encoding": "UTF8"},
    {"application_name": ""},
    {"client_encoding": "LATIN1", "DateStyle": "German, YMD", "TimeZone": "Asia/Tokyo"},
    {"options": "-c work_mem=7MB -c statement_timeout=12345 --enable_hashjoin=off"},
    {"options": r"-c search_path=a\ b,public -c IntervalStyle=iso_8601", "extra_float_digits": "0"},
    {"search_path": '"$user", "x y"', "lock_timeout": "3s", "default_transaction_read_only": "on"},
    {"options": "-c dualwire.version=base -c work_mem=9MB", "standard_conforming_strings": "off"},
    {"my.own": "value", "is_superuser": "off"},
    {"options": "-c nonsense_setting=1"},
    {"work_mem": "lots"},
    {"options": "-c"},
    {"options": "--"},
    {"client_encoding": "klingon"},
]
SHOWN = (
    *("application_name", "work_mem", "statement_timeout", "enable_hashjoin", "search_path", "lock_timeout"),
    *("client_encoding", "DateStyle", "TimeZone", "IntervalStyle", "extra_float_digits"),
    *("default_transaction_read_only", "standard_conforming_strings"),
)


@pytest.fixture(params=["session", "transaction"])
def proxy(request: pytest.FixtureRequest, sidecar: SidecarFactory) -> Sidecar:
    """A sidecar in each pool mode."""
    return sidecar(sidecar.default_config(extra=f'pool_mode = "{request.param}"\n'))


async def _told(
    peer: Peer, who: dict[str, str], password: str | None
) -> tuple[object, dict[str, str], list[str | None]]:
    """Errors, reported parameters and settings of a login."""
    frames = await peer.login(who, password=password)
    if kinds(frames)[-1] != "Z":
        (refused,) = (frame for frame in frames if frame[0] == m.ERROR_RESPONSE)
        return m.error_fields(refused), {}, []
    expression = ", ".join(f"current_setting('{name}')" for name in SHOWN)
    shown = row(await peer.ask(f"SELECT {expression}, current_setting('my.own', true)"))
    peer.close()
    return kinds(frames).replace("R", "").replace("v", ""), peer.parameters, shown


async def test_they_arrive_and_are_reported_as_on_a_direct_connection(
    database: Database, proxy: Sidecar
) -> None:
    address = database.cluster.primary.address
    for asked in ASKED:
        # Twice: made for this client, then out of the pool.
        through = []
        for _ in range(2):
            peer = await Peer.dial("127.0.0.1", proxy.port)
            through.append(await _told(peer, {"user": proxy.user, "database": proxy.database, **asked}, None))
        direct = await Peer.dial(address.host, address.port)
        wanted = dict(asked)
        if "dualwire" in asked.get("options", ""):
            wanted["options"] = "-c work_mem=9MB"
        expected = await _told(
            direct, {"user": address.user, "database": database.name, **wanted}, address.password
        )
        for found in through:
            assert found == expected, asked


async def test_a_setting_reported_later_reaches_its_own_client_only(proxy: Sidecar) -> None:
    who = {"user": proxy.user, "database": proxy.database}
    one, two = [await Peer.dial("127.0.0.1", proxy.port) for _ in range(2)]
    await one.login(who)
    await two.login({**who, "application_name": "second"})
    assert kinds(await one.ask("SET application_name = 'first'")) == "CSZ"
    assert row(await two.ask("SHOW application_name")) == ["second"]
    assert row(await one.ask("SHOW application_name")) == ["first"]
    one.close()
    three = await Peer.dial("127.0.0.1", proxy.port)
    await three.login(who)
    assert three.parameters["application_name"] == ""
    assert row(await three.ask("SHOW application_name")) == [""]
    two.close()
    three.close()


async def test_unix_sockets_on_both_sides(
    database: Database, sidecar: SidecarFactory, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    primary = database.cluster.primary
    if not isinstance(primary, EmbeddedServer):
        pytest.skip("the server's sockets are out of reach")
    sockets = tmp_path / "s"
    sockets.mkdir()
    server = f"postgresql://postgres@/{database.name}?host={quote(str(primary.sockets))}&port={primary.port}"
    proxy = sidecar(
        # sslmode has no meaning there, as in libpq.
        sidecar.default_config().replace(database.dsn, server + "&sslmode=require&max_protocol_version=3.2"),
        environment={"DUALWIRE_LISTEN__ADDRESS": f"{sockets}:6000"},
    )
    options = {"host": str(sockets), "port": 6000, "user": proxy.user, "dbname": "shop", "autocommit": True}
    for version in ("3.0", "3.2"):
        with psycopg.connect(
            **options,  # type: ignore[arg-type]
            application_name="over a socket",
            options="-c work_mem=5MB",
            max_protocol_version=version,
        ) as connection:
            found = connection.execute(
                "SELECT inet_client_addr() IS NULL, current_setting('application_name'), current_setting('work_mem')"
            ).fetchone()
            assert found == (True, "over a socket", "5MB")
            task = asyncio.create_task(asyncio.to_thread(connection.execute, "SELECT pg_sleep(60)"))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(connection.cancel_safe)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await task
    path = sockets / ".s.PGSQL.6000"
    assert path.is_socket()
    assert await asyncio.to_thread(proxy.terminate) == 0
    assert not path.exists()
