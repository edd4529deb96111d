"""Random bytes and spoilt messages from several connections at once, while healthy clients watch.

The sidecar must never end, leak a connection, or let one session's bytes reach another; and whoever it accepts is
answered, or closed with an error that says why. ``FUZZ_SECONDS`` is the length of the long run (``-m slow``), and
``FUZZ_SEED`` repeats a run's choices (not its timing).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import random
import secrets
import time
from collections.abc import Callable

import pytest

from proxy.wire import messages as m
from tests.conftest import Database, Sidecar, SidecarFactory

ATTACKERS = 10
POOL = 20
PATIENCE = 30.0
FINAL_SYNC = m.frame(m.COPY_FAIL, b"enough\0") + m.SYNC_FRAME
SSL_REQUEST, GSS_REQUEST = (m.frame(0, code.to_bytes(4, "big"))[1:] for code in (80877103, 80877104))
ERRORS_IN_LOG = ("Traceback", "a task failed", "Exception in callback", "Task exception was never retrieved")

TEXTS = (
    "SELECT 1",
    "SELECT n FROM generate_series(1, 3000) AS s(n)",
    "SELECT 1/0",
    "SELEC",
    "",
    ";;",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "SET work_mem = '1MB'",
    "SET search_path TO nowhere",
    "SELECT set_config('my.own', 'theirs', false)",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "CREATE TEMP TABLE IF NOT EXISTS theirs (id int)",
    "COPY (SELECT 1) TO STDOUT",
    "COPY fuzzed FROM STDIN",
    "INSERT INTO fuzzed VALUES (1) RETURNING id",
    "LISTEN c",
    "NOTIFY c",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "SELECT pg_advisory_lock(1), pg_advisory_unlock(1)",
    "SELECT pg_sleep(0.01)",
    "\N{GREEK SMALL LETTER ALPHA} /* '",
)
FOR_OLD_CLIENTS = b"EFATAL:  unsupported frontend protocol"
"""The beginning of an error in the form of protocols before 3.0, which is what their clients understand."""
NAMES = (b"", b"a", b"b", b"p")


def message(chance: random.Random) -> bytes:
    """A valid message of any kind that a client may send."""
    name, portal = chance.choice(NAMES), chance.choice(NAMES)
    text = chance.choice(TEXTS).encode()
    return chance.choice(
        (
            lambda: m.query(text),
            lambda: m.query(text + b";" + chance.choice(TEXTS).encode()),
            lambda: m.parse(name, text, ()),
            lambda: m.parse(name, b"SELECT $1", (chance.choice((0, 23, 25, 999_999)),)),
            lambda: m.frame(m.BIND, portal + b"\0" + name + b"\0\0\0\0\0\0\0"),
            lambda: m.frame(m.BIND, portal + b"\0" + name + b"\0\0\1\0\1\0\1\0\0\0\4abcd\0\1\0\1"),
            lambda: m.frame(m.EXECUTE, portal + b"\0" + chance.randrange(3).to_bytes(4, "big")),
            lambda: m.frame(m.DESCRIBE, chance.choice((b"S", b"P", b"x")) + name + b"\0"),
            lambda: m.frame(m.CLOSE, chance.choice((b"S", b"P", b"x")) + name + b"\0"),
            lambda: m.SYNC_FRAME,
            lambda: m.SYNC_FRAME,
            lambda: m.FLUSH_FRAME,
            lambda: m.frame(m.COPY_DATA, chance.choice((b"1\n", b"x\n", b"", b"1"))),
            lambda: m.frame(m.COPY_DONE, b""),
            lambda: m.frame(m.COPY_FAIL, b"no\0"),
            lambda: m.frame(m.FUNCTION_CALL, b"\0\0\x05\x1d\0\0\0\0\0\0"),
        )
    )()


def spoil(data: bytes, chance: random.Random) -> bytes:
    """The same with something wrong in it."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(spoilt)) if spoilt else 0
        how = chance.randrange(7)
        if how == 0 and spoilt:
            spoilt[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del spoilt[at : at + chance.randint(1, 8)]
        elif how == 2:
            spoilt[at:at] = chance.randbytes(chance.randint(1, 8))
        elif how == 3:
            spoilt[at + 1 : at + 5] = chance.choice(
                (0, 3, 4, 5, 0x7FFFFFFF, 0xFFFFFFFF, 0x3FFFFFFF)
            ).to_bytes(4, "big")
        elif how == 4:
            spoilt[at:] = b""
        elif how == 5:
            spoilt += spoilt[at:]
        elif spoilt:
            spoilt[at] = chance.choice(b"QPBEDCHSFdcfXpRZ\0\xff")
    return bytes(spoilt)


class Run:
    """One run: attackers, watchers, and what became of everyone."""

    def __init__(self, proxy: Sidecar, seed: int) -> None:
        self.proxy = proxy
        self.seed = seed
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.checks = 0
        self.over = False

    # -- attackers -----------------------------------------------------------------------------------------------

    async def attack(self, number: int) -> None:
        """Attack after attack until the run is over."""
        chance = random.Random(f"{self.seed}/{number}")
        attacks = (
            self._before_login,
            self._spoilt,
            self._spoilt,
            self._shuffled,
            self._shuffled,
            self._cancel,
        )
        while not self.over:
            attack = chance.choice(attacks)
            reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
            try:
                outcome = await attack(chance, reader, writer)
            except ConnectionError:
                # What we had sent and nobody read makes the kernel drop what was said to us.
                outcome = "reset"
            self.outcomes[f"{attack.__name__.strip('_')}: {outcome}"] += 1
            await self._leave(chance, writer)

    async def _before_login(
        self, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        startup = m.startup({"user": self.proxy.user, "database": self.proxy.database})
        request = chance.choice((SSL_REQUEST, GSS_REQUEST))
        said = chance.choice(
            (
                lambda: chance.randbytes(chance.randint(1, 300)),
                lambda: spoil(startup, chance),
                lambda: request + startup,
                lambda: request + spoil(startup, chance),
                lambda: request + chance.randbytes(30),
                lambda: startup[: chance.randrange(len(startup))],
                lambda: startup[:-1] + b"options\0-c nonsense=\xff\0replication\0maybe\0\0",
            )
        )()
        writer.write(said)
        heard, closed = await _hear(reader, chance.choice((0.02, 0.2)))
        heard = heard.lstrip(b"N")
        if closed and heard and not heard.startswith(FOR_OLD_CLIENTS):
            _explained(heard, said)
        return "closed" if closed else "open"

    async def _spoilt(
        self, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        await self._login(reader, writer)
        messages = [message(chance) for _ in range(chance.randint(1, 12))]
        victim = chance.randrange(len(messages))
        messages[victim] = spoil(messages[victim], chance)
        if chance.random() < 0.2:
            messages.append(chance.randbytes(chance.randint(1, 200)))
        said = b"".join(messages)
        writer.write(said)
        heard, closed = await _hear(reader, chance.choice((0.02, 0.3)))
        if closed and not _says_goodbye(said):
            _explained(heard, said)
        return "closed" if closed else "open"

    async def _shuffled(
        self, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        """Valid messages in no sensible order: each one is answered, or the connection is ended with a reason."""
        await self._login(reader, writer)
        said = b"".join(message(chance) for _ in range(chance.randint(1, 20)))
        mark = secrets.token_hex(8).encode()
        writer.write(said + FINAL_SYNC)
        asked = asyncio.get_running_loop().time()
        heard = b""
        # A Sync may be swallowed by a copy that it found running: ask until we are answered.
        while mark not in heard:
            assert asyncio.get_running_loop().time() < asked + PATIENCE, (
                f"no answer to {said!r}, only {heard[-200:]!r}"
            )
            writer.write(FINAL_SYNC + m.query(b"ROLLBACK") + m.query(b"SELECT '" + mark + b"'"))
            more, closed = await _hear(reader, 0.3)
            heard += more
            if closed:
                _explained(heard, said)
                return "closed"
        return "answered"

    async def _cancel(
        self, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        request = m.cancel_request(
            chance.randrange(1 << 31), chance.randbytes(chance.choice((4, 4, 32, 256, 0)))
        )
        writer.write(spoil(request, chance) if chance.random() < 0.3 else request)
        _, closed = await _hear(reader, 0.05)
        return "closed" if closed else "open"

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(m.startup({"user": self.proxy.user, "database": self.proxy.database}))
        await asyncio.wait_for(reader.readuntil(m.ready_for_query(b"I")), PATIENCE)

    async def _leave(self, chance: random.Random, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            if chance.random() < 0.3:
                writer.write(m.TERMINATE_FRAME)
            if chance.random() < 0.5:
                writer.transport.abort()
            writer.close()

    # -- watchers ------------------------------------------------------------------------------------------------

    async def watch_one_session(self) -> None:
        """A session that stays: its settings, its temporary table and its answers are its own."""
        connection = await self.proxy.connect()
        mine = secrets.token_hex(8)
        await connection.execute(
            f"SET application_name = '{mine}'; CREATE TEMP TABLE mine AS SELECT '{mine}' AS own"
        )
        while not self.over:
            asked = secrets.token_hex(8)
            row = await connection.fetchrow(
                "SELECT $1::text, current_setting('application_name'), own, current_setting('my.own', true) FROM mine",
                asked,
            )
            assert tuple(row) == (asked, mine, mine, row[3])
            assert row[3] in (None, "")
            async with connection.transaction():
                assert await connection.fetchval(f"SELECT '{asked}'") == asked
            self.checks += 1
            await asyncio.sleep(0.005)
        await connection.close()

    async def watch_new_sessions(self) -> None:
        """Sessions that come and go: each begins as on a fresh connection."""
        while not self.over:
            connection = await self.proxy.connect()
            asked = secrets.token_hex(8)
            row = await connection.fetchrow(
                "SELECT $1::text, current_setting('work_mem'), current_setting('search_path'), "
                "to_regclass('pg_temp.theirs')::text, current_setting('my.own', true), "
                "(SELECT count(*) FROM pg_prepared_statements WHERE name <> ''), "
                "(SELECT count(*) FROM pg_cursors WHERE name = 'c')",
                asked,
            )
            assert tuple(row)[:4] == (asked, "4MB", '"$user", public', None)
            assert row[4] in (None, "")
            assert row[5] <= 1, "only this very statement is prepared"
            assert row[6] == 0
            self.checks += 1
            await connection.close()

    async def go(self, duration: float) -> None:
        """Everyone at once, for that long."""
        async with asyncio.TaskGroup() as everyone:
            for number in range(ATTACKERS):
                everyone.create_task(self.attack(number))
            everyone.create_task(self.watch_one_session())
            everyone.create_task(self.watch_new_sessions())
            end = time.monotonic() + duration
            while time.monotonic() < end:
                await asyncio.sleep(0.1)
                assert self.proxy.process.poll() is None, self.proxy.log[-4000:]
            self.over = True


async def _hear(reader: asyncio.StreamReader, patience: float) -> tuple[bytes, bool]:
    """What comes until nothing has come for that long; and whether the peer has closed."""
    heard = b""
    while True:
        try:
            more = await asyncio.wait_for(reader.read(65536), patience)
        except TimeoutError:
            return heard, False
        if not more:
            return heard, True
        heard += more


def _says_goodbye(said: bytes) -> bool:
    """Whether there is a Terminate among the messages; nobody minds what else is in it."""
    at = 0
    while at + 5 <= len(said):
        length = int.from_bytes(said[at + 1 : at + 5], "big")
        if said[at] == m.TERMINATE or length < 4:
            return length >= 4
        at += 1 + length
    return False


def _explained(heard: bytes, said: bytes) -> None:
    """The last thing that is said before a connection is closed is a whole error, and a fatal one."""
    last, at = b"", 0
    while at + 5 <= len(heard):
        end = at + 1 + int.from_bytes(heard[at + 1 : at + 5], "big")
        last, at = heard[at:end], end
    assert last[:1] == b"E", f"closed after {heard[-200:]!r}, having heard {said!r}"
    fields = m.error_fields(last)
    assert fields["V"] in (b"FATAL", b"PANIC")
    assert len(fields["C"]) == 5
    assert fields["M"]


def _fuzz(
    database: Database,
    sidecar: SidecarFactory,
    eventually: Callable[..., None],
    pool_mode: str,
    duration: float,
) -> None:
    database.sql("CREATE TABLE fuzzed (id int)")
    database.wait_replayed()
    proxy = sidecar(sidecar.default_config(extra=f'pool_mode = "{pool_mode}"\npool_size = {POOL}\n'))
    descriptors = f"/proc/{proxy.process.pid}/fd"
    before = len(os.listdir(descriptors))
    seed = int(os.environ.get("FUZZ_SEED") or secrets.randbelow(1 << 32))
    run = Run(proxy, seed)
    try:
        asyncio.run(run.go(duration))
    except BaseException:
        print(f"FUZZ_SEED={seed}")
        raise
    finally:
        print(f"{dict(sorted(run.outcomes.items()))}, {run.checks} checks")

    def clients() -> int:
        status = json.loads(proxy.get("/status")[1])["databases"]["shop"]
        return sum(status["clients"].values())

    def sessions(condition: str) -> int:
        return int(
            database.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                f"AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND ({condition})"
            )
        )

    try:
        eventually(lambda: clients() == 0, timeout=60.0, what="the end of all clients")
        eventually(
            lambda: ' state="active"' not in _pool(proxy) and _active(proxy) == 0,
            timeout=60.0,
            what="an idle pool",
        )
    except AssertionError:
        print(f"FUZZ_SEED={seed}", *proxy.get("/status"), _pool(proxy))
        raise
    eventually(lambda: sessions("state <> 'idle'") == 0, timeout=60.0, what="idle servers")
    assert sessions("true") <= POOL + 4, "the pool, the control link and the prober"
    # Every client's socket is closed: what is left are the pools' own.
    eventually(
        lambda: len(os.listdir(descriptors)) <= before + 2 * POOL,
        timeout=60.0,
        what="closed file descriptors",
    )
    assert proxy.process.poll() is None
    assert run.checks > 0
    assert not [text for text in ERRORS_IN_LOG if text in proxy.log], proxy.log[-4000:]
    assert proxy.terminate() == 0


def _pool(proxy: Sidecar) -> str:
    return "\n".join(
        line
        for line in proxy.get("/metrics")[1].splitlines()
        if line.startswith("dualwire_pool_connections{")
    )


def _active(proxy: Sidecar) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in _pool(proxy).splitlines() if 'state="active"' in line
    )


@pytest.mark.parametrize("pool_mode", ["session", "transaction"], ids=["session-pool", "transaction-pool"])
def test_a_few_seconds_of_random_bytes(
    database: Database, sidecar: SidecarFactory, eventually: Callable[..., None], pool_mode: str
) -> None:
    _fuzz(database, sidecar, eventually, pool_mode, 5.0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pool_mode", ["session", "transaction"], ids=["session-pool", "transaction-pool"])
def test_ten_minutes_of_random_bytes(
    database: Database, sidecar: SidecarFactory, eventually: Callable[..., None], pool_mode: str
) -> None:
    _fuzz(database, sidecar, eventually, pool_mode, float(os.environ.get("FUZZ_SECONDS", "600")))
