"""Replication connections: passed straight through, never pooled, never rewritten."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.cluster import Cluster, start_cluster
from proxy.wire import messages as m
from proxy.wire.scram import Verifier
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.server.handshake import Peer, error, kinds, make_pki, row, with_listen


@pytest.fixture(scope="module")
def logical() -> Iterator[Cluster]:
    """A server that decodes its log."""
    with start_cluster(replicas=0) as started:
        started.primary.sql("ALTER SYSTEM SET wal_level = 'logical'")
        started.primary.restart()
        started.create_database("changes")
        yield started


@pytest.fixture
def proxy(logical: Cluster, database: Database, sidecar: SidecarFactory) -> Sidecar:
    """A sidecar in front of it."""
    return sidecar(_config(logical, database, sidecar))


def _config(logical: Cluster, database: Database, sidecar: SidecarFactory) -> str:
    config = sidecar.default_config().replace(database.dsn, logical.primary.dsn(database="changes"))
    return re.sub(r"^replicas = .*\n", "", config, flags=re.MULTILINE)


def _stats(proxy: Sidecar) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(proxy.get("/status")[1])["databases"]["shop"]
    return found


async def _sender(proxy: Sidecar, replication: str, database: str = "shop", **options: str) -> Peer:
    peer = await Peer.dial("127.0.0.1", proxy.port)
    frames = await peer.login(
        {"user": proxy.user, "database": database, "replication": replication, **options}, minor=2
    )
    assert kinds(frames)[-1] == "Z", frames
    return peer


async def test_every_spelling_of_yes_makes_a_wal_sender(proxy: Sidecar, logical: Cluster) -> None:
    system = logical.primary.sql("SELECT system_identifier FROM pg_control_system()")
    for word in ("true", "1", "on", "yes", "t", "YES"):
        # PostgreSQL ignores the database then; clients name "replication".
        peer = await _sender(proxy, word, "replication")
        identity = row(await peer.ask("IDENTIFY_SYSTEM"))
        assert (identity[0], identity[3]) == (system, None)
        assert error(await peer.ask("SELECT 1"))[0] == "0A000"
        peer.close()
    peer = await _sender(proxy, "database")
    assert row(await peer.ask("IDENTIFY_SYSTEM"))[3] == "changes"
    peer.close()
    for word in ("false", "off", "no", "0", "f"):
        peer = await _sender(proxy, word)
        assert error(await peer.ask("IDENTIFY_SYSTEM"))[0] == "42601"
        peer.close()


async def test_a_database_that_is_not_configured_is_refused(proxy: Sidecar) -> None:
    peer = await Peer.dial("127.0.0.1", proxy.port)
    frames = await peer.login({"user": proxy.user, "database": "nonsense", "replication": "database"})
    assert error(frames)[0] == "3D000"


async def test_what_is_reported_is_what_the_server_reports(proxy: Sidecar, logical: Cluster) -> None:
    options = {"application_name": "walther", "options": "-c work_mem=3MB", "DateStyle": "German"}
    ours = await _sender(proxy, "database", **options)
    address = logical.primary.address
    direct = await Peer.dial(address.host, address.port)
    await direct.login(
        {"user": address.user, "database": "changes", "replication": "database", **options},
        password=address.password,
    )
    assert ours.parameters == direct.parameters
    assert row(await ours.ask("SHOW work_mem")) == ["3MB"]
    assert row(await ours.ask("SHOW application_name")) == ["walther"]
    ours.close()
    direct.close()


async def test_plain_sql_and_a_logical_stream(proxy: Sidecar, logical: Cluster) -> None:
    logical.primary.sql(
        "CREATE TABLE t (id int, note text); CREATE PUBLICATION p FOR TABLE t", database="changes"
    )
    peer = await _sender(proxy, "database")
    assert row(await peer.ask("SELECT count(*) FROM t")) == ["0"]
    created = row(await peer.ask("CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL pgoutput"))
    assert (created[0], created[3]) == ("s", "pgoutput")
    logical.primary.sql("INSERT INTO t VALUES (1, 'one'), (2, repeat('x', 200000))", database="changes")
    peer.say(
        m.query(
            f"START_REPLICATION SLOT s LOGICAL {created[1]} (proto_version '1', publication_names 'p')".encode()
        )
    )
    assert (await peer.frame())[0] == m.COPY_BOTH_RESPONSE
    changes: list[bytes] = []
    while not changes or changes[-1][:1] != b"C":
        frame = await peer.frame()
        assert frame[0] == m.COPY_DATA
        if frame[5:6] == b"w":
            changes.append(frame[30:])
    assert [change[:1] for change in changes] == [b"B", b"R", b"I", b"I", b"C"]
    assert b"x" * 200_000 in changes[3]
    # A status message of the client's, and the end from its side.
    position = changes[-1][10:18]
    peer.say(m.frame(m.COPY_DATA, b"r" + position * 3 + bytes(8) + b"\1"))
    assert (await peer.until(m.COPY_DATA))[-1][5:6] in (b"k", b"w")
    peer.say(m.frame(m.COPY_DONE, b""))
    assert kinds(await peer.until(m.READY_FOR_QUERY)).lstrip("d").startswith("c")
    assert row(await peer.ask("SELECT count(*) FROM t")) == ["2"]
    peer.close()


async def test_a_connection_of_its_own_is_counted_and_ends_with_its_client(
    proxy: Sidecar, logical: Cluster, eventually: Callable[..., None]
) -> None:
    senders = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walther'"
    peer = await _sender(proxy, "true", application_name="walther")
    assert logical.primary.sql(senders) == "1"
    assert _stats(proxy)["replication"] == 1
    assert all(pool["active"] == 0 for pool in _stats(proxy)["pools"])
    # An ordinary client does not get it, and it gets no ordinary one's.
    ordinary = await Peer.dial("127.0.0.1", proxy.port)
    await ordinary.login({"user": proxy.user, "database": "shop", "application_name": "walther"})
    assert row(
        await ordinary.ask("SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    ) == ["client backend"]
    ordinary.close()
    peer.close()

    def gone() -> bool:
        kept = logical.primary.sql(senders + " AND backend_type = 'walsender'")
        return kept == "0" and _stats(proxy)["replication"] == 0

    await asyncio.to_thread(eventually, gone, what="the end of the WAL sender")


async def test_a_cancel_request_reaches_it(proxy: Sidecar) -> None:
    sleeper, bystander = await _sender(proxy, "database"), await _sender(proxy, "database")
    assert len(sleeper.key[1]) == 32
    for peer in (sleeper, bystander):
        peer.say(m.query(b"SELECT pg_sleep(60)"))
    await asyncio.sleep(0.3)
    for secret in (sleeper.key[1][:4], sleeper.key[1]):
        canceller = await Peer.dial("127.0.0.1", proxy.port)
        canceller.say(m.cancel_request(sleeper.key[0], secret))
        assert await canceller.rest() == b""
    assert error(await sleeper.until(m.READY_FOR_QUERY))[0] == "57014"
    assert row(await sleeper.ask("SELECT 1")) == ["1"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bystander.reader.readexactly(1), 0.3)
    sleeper.close()
    bystander.close()


async def test_the_end_of_the_server_is_told(proxy: Sidecar, logical: Cluster) -> None:
    peer = await _sender(proxy, "database")
    pid = row(await peer.ask("SELECT pg_backend_pid()"))[0]
    logical.primary.sql(f"SELECT pg_terminate_backend({pid})")
    assert error(await peer.until(m.READY_FOR_QUERY))[0] == "57P01"
    assert await peer.rest() == b""


async def test_a_shutdown_ends_a_stream_at_once(proxy: Sidecar) -> None:
    peer = await _sender(proxy, "true")
    position = row(await peer.ask("IDENTIFY_SYSTEM"))[2]
    peer.say(m.query(f"START_REPLICATION PHYSICAL {position}".encode()))
    assert (await peer.frame())[0] == m.COPY_BOTH_RESPONSE
    status = asyncio.create_task(asyncio.to_thread(proxy.terminate))
    await peer.rest()
    assert await status == 0


async def test_what_is_sent_ahead_of_the_logins_end_is_not_lost(proxy: Sidecar) -> None:
    peer = await Peer.dial("127.0.0.1", proxy.port)
    who = {"user": proxy.user, "database": "shop", "replication": "database"}
    peer.say(m.startup(who) + m.query(b"SELECT 1") + m.query(b"SELECT 2"))
    await peer.until(m.READY_FOR_QUERY)
    assert row(await peer.until(m.READY_FOR_QUERY)) == ["1"]
    assert row(await peer.until(m.READY_FOR_QUERY)) == ["2"]
    peer.close()


def _resident(pid: int) -> int:
    """Kilobytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


async def test_a_slow_reader_makes_the_server_wait(proxy: Sidecar) -> None:
    peer = await _sender(proxy, "database")
    before = _resident(proxy.process.pid)
    # StreamReader stops reading at twice its limit of 64 kB: the rest is somewhere on the way.
    peer.say(m.query(b"SELECT repeat('x', 100000) FROM generate_series(1, 5000)"))
    for _ in range(20):
        await asyncio.sleep(0.1)
        assert _resident(proxy.process.pid) - before < 64 * 1024
    total = 0
    while (frame := await peer.frame())[0] != m.READY_FOR_QUERY:
        total += len(frame)
    assert total > 500_000_000
    peer.close()


def test_postgresqls_own_programs_work_through_it(
    logical: Cluster, database: Database, sidecar: SidecarFactory, tmp_path: Path
) -> None:
    pki = make_pki(tmp_path)
    users = tmp_path / "users.txt"
    users.write_text(f'"postgres" "{Verifier.from_password("s3cret")}"\n')
    config = with_listen(_config(logical, database, sidecar), pki.listen())
    proxy = sidecar(config.replace('method = "trust"', f'method = "scram-sha-256"\nusers_file = "{users}"'))
    dsn = f"host=127.0.0.1 port={proxy.port} user=postgres password=s3cret"
    for program, *arguments in (
        (
            "pg_basebackup",
            "-D",
            str(tmp_path / "backup"),
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
            "-d",
            dsn,
        ),
        ("pg_recvlogical", "-d", f"{dsn} dbname=shop", "-S", "judge", "-P", "pgoutput", "--create-slot"),
        ("pg_recvlogical", "-d", f"{dsn} dbname=shop", "-S", "judge", "--drop-slot"),
    ):
        done = subprocess.run(
            [str(logical.bin(program)), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "backup" / "PG_VERSION").is_file()
