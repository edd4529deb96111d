"""Message scripts give the same trace through a sidecar as on PostgreSQL itself, field by field.

The corpus is `pgproto/*.data`, interpreted by `proto`. Each script runs once on the server (its trace is the
expectation) and once through each of four sidecars:

- ``session``: the primary alone;
- ``routed``: the primary and a replica that reads are sent to, so that every statement is classified;
- ``transaction``: pooled by transaction;
- ``shuffled``: the same, and other clients see to it that each transaction gets another server connection.

A script that differs for a documented reason names it in its head. Where the difference is the same in every run,
``<script>.<key>.diff`` has it line by line, and the trace may differ by exactly these lines.

Where pgproto itself is at hand (``PGPROTO``, or in PATH), it runs the scripts that it can, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import unified_diff
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from migrator.cluster import Cluster
from proxy.config import ConfigError
from proxy.config import load as load_config
from tests.conformance.proto import Connection, Renderer, Script, Trace, load, parse, play
from tests.conftest import Database, Sidecar, SidecarFactory

CORPUS = Path(__file__).with_name("pgproto")
SCRIPTS = load(CORPUS)
PGPROTO = os.environ.get("PGPROTO") or shutil.which("pgproto")
MODES = ("session", "routed", "transaction", "shuffled")
POOL_MODE = {
    "session": "session",
    "routed": "session",
    "transaction": "transaction",
    "shuffled": "transaction",
}
LINE_IN_SOURCE = re.compile(r"\bL=\d+")
SERVED = "pgproto"
ROLE = "pgproto_role"
END_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND pid IN "
    "(SELECT pid FROM pg_locks WHERE locktype = 'relation' AND "
    "database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)


class ServerError(Exception):
    """The server refused what a test needs."""


def ask(connection: Connection, text: str) -> None:
    """A simple query whose rows nobody reads."""
    body = text.encode() + b"\0"
    connection.send(b"Q" + (len(body) + 4).to_bytes(4, "big") + body)
    refused = None
    while (message := connection.receive(30)).kind != ord("Z"):
        if message.kind in (0, ord("E")):
            refused = message
        if message.kind == 0:
            break
    if refused is not None:
        raise ServerError(f"{text[:60]}: {refused.body!r}")


@dataclass
class Shuffler:
    """Other clients of the pool. Between two transactions of the client under test, one of them begins a
    transaction, which takes a server connection away, and the one before ends its own, which gives another back.
    """

    dsn: str
    clients: list[Connection] = field(default_factory=list)
    turn: int = 0

    def __call__(self) -> None:
        if not self.clients:
            self.clients = [Connection(self.dsn, "other") for _ in range(3)]
        count = len(self.clients)
        ask(self.clients[self.turn % count], "BEGIN")
        ask(self.clients[(self.turn + 1) % count], "ROLLBACK")
        self.turn += 1

    def close(self) -> None:
        for client in self.clients:
            client.close()


@dataclass
class Bench:
    """The database of this module, the sidecars before it, and the traces of the server itself."""

    database: Database
    factory: SidecarFactory
    sidecars: dict[str, Sidecar] = field(default_factory=dict)
    shufflers: dict[str, Shuffler] = field(default_factory=dict)
    expected: dict[str, Trace] = field(default_factory=dict)
    operator: list[Connection] = field(default_factory=list)

    def fresh(self) -> None:
        """The tables as the scripts expect them. A session that a failed script left with locks is ended."""
        if not self.operator:
            self.operator.append(Connection(self.database.dsn, "operator"))
            self._do((CORPUS / "setup.sql").read_text())
            self._do("SET lock_timeout = '3s'")
        tables = (CORPUS / "reset.sql").read_text()
        try:
            self._do(tables)
        except ServerError:
            self._do(END_OTHERS)
            for gid in self.database.sql("SELECT gid FROM pg_prepared_xacts").splitlines():
                self._do(f"ROLLBACK PREPARED '{gid}'")
            self._do(tables)

    def _do(self, statements: str) -> None:
        ask(self.operator[0], statements)

    def direct(self, script: Script) -> Trace:
        """The trace on the server itself, taken once."""
        if script.name not in self.expected:
            self.fresh()
            trace = play(script, self.database.dsn)
            waited = [line for line in trace.lines if line.endswith("<= silence")]
            assert not waited, f"{script.name} waits for what PostgreSQL does not say:\n" + "\n".join(
                trace.lines
            )
            self.expected[script.name] = trace
        return self.expected[script.name]

    def through(self, mode: str) -> tuple[str, Callable[[], None]]:
        """A DSN that leads through the sidecar of that mode, and what to do between transactions."""
        if mode not in self.sidecars:
            config = self._config(mode)
            if not self._accepted(config):
                pytest.skip("this sidecar does not pool by transaction")
            self.sidecars[mode] = self.factory(config)
        dsn = self.sidecars[mode].dsn(database=SERVED)
        if mode == "shuffled":
            return dsn, self.shufflers.setdefault(mode, Shuffler(dsn))
        return dsn, lambda: None

    def _accepted(self, config: str) -> bool:
        path = self.factory.directory / "tried.toml"
        path.write_text(config)
        try:
            load_config(path)
        except ConfigError:
            return False
        return True

    def _config(self, mode: str) -> str:
        pool = "session" if mode in ("session", "routed") else "transaction"
        replicas = f'replicas = ["{self.database.replica_dsn}"]\n' if mode == "routed" else ""
        return (
            '[listen]\naddress = "127.0.0.1:0"\n[admin]\naddress = "127.0.0.1:0"\n[auth]\nmethod = "trust"\n'
            f'[databases.{SERVED}]\nprimary = "{self.database.dsn}"\n{replicas}pool_mode = "{pool}"\n'
        )


@pytest.fixture(scope="module")
def bench(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One database and, as they are asked for, one sidecar of each mode for the whole module."""
    cluster.create_database(SERVED)
    cluster.create_role(ROLE, ROLE)
    database = Database(cluster, SERVED)
    cluster.wait_replayed()
    made = Bench(database, SidecarFactory(database, tmp_path_factory.mktemp("pgproto")))
    try:
        yield made
    finally:
        for operator in made.operator:
            operator.close()
        for shuffler in made.shufflers.values():
            shuffler.close()
        for sidecar in made.factory.started:
            sidecar.process.kill()
            sidecar.process.wait(10)
        cluster.drop_database(SERVED)
        cluster.primary.sql(f"DROP ROLE {ROLE}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_gives_the_trace_of_the_server(bench: Bench, script: Script, mode: str) -> None:
    documented = documented_difference(script, mode)
    expected = bench.direct(script)
    dsn, between = bench.through(mode)
    bench.fresh()
    through = play(script, dsn, expected, between).lines
    if (sqlstate := script.headers.get("cured")) is not None:
        assert any(f"C={sqlstate}" in line for line in expected.lines), (
            f"{script.name} has no {sqlstate} to cure"
        )
        assert not [line for line in through if " ErrorResponse " in line], "\n".join(through)
        return
    difference = list(unified_diff(expected.lines, through, "direct", mode, n=6, lineterm=""))
    if documented is not None:
        shown = "\n".join(difference)
        assert changes(difference) == documented, f"{script.name} differs in another way:\n{shown}"
    else:
        assert not difference, f"{script.name} differs:\n" + "\n".join(difference)


def documented_difference(script: Script, mode: str) -> list[str] | None:
    """The lines by which the trace has to differ in that mode, or None: it has to be equal. Skips the test where the
    head of the script has a reason and no lines, because no two runs differ alike.
    """
    for key in (POOL_MODE[mode], "everywhere"):
        if reason := script.headers.get(key):
            lines = CORPUS / f"{script.name}.{key}.diff"
            if not lines.exists():
                pytest.skip(f"documented difference: {reason}")
            return lines.read_text().splitlines()
    return None


def changes(difference: list[str]) -> list[str]:
    """The lines that differ, of a unified diff, as every version of the server has them."""
    return [LINE_IN_SOURCE.sub("L=*", line) for line in difference[2:] if line.startswith(("-", "+"))]


@pytest.mark.parametrize("mode", MODES)
def test_the_greeting_is_that_of_the_server(bench: Bench, mode: str) -> None:
    """The same parameters with the same values, in any order, and one key."""
    dsn, _ = bench.through(mode)
    renderer = Renderer()

    def greeting(target: str) -> list[str]:
        connection = Connection(target, options="-c DateStyle=German -c my.own=1")
        connection.close()
        return sorted(
            "key" if message.kind == ord("K") else renderer.full(message) for message in connection.greeting
        )

    assert greeting(dsn) == greeting(bench.database.dsn)


@pytest.mark.slow
@pytest.mark.skipif(PGPROTO is None, reason="pgproto is not here: set PGPROTO or put it into PATH")
@pytest.mark.parametrize(
    "script", [script for script in SCRIPTS if script.for_pgproto], ids=lambda script: script.name
)
def test_pgproto_itself_prints_what_the_interpreter_prints(bench: Bench, script: Script) -> None:
    expected = bench.direct(script)
    bench.fresh()
    assert replies(run_pgproto(script, bench.database.dsn)) == replies(
        "\n".join(expected.pgproto).split("\n")
    )


@pytest.mark.slow
@pytest.mark.skipif(PGPROTO is None, reason="pgproto is not here: set PGPROTO or put it into PATH")
@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize(
    "script",
    [script for script in SCRIPTS if script.for_pgproto and "cured" not in script.headers],
    ids=lambda script: script.name,
)
def test_pgproto_sees_no_difference(bench: Bench, script: Script, mode: str) -> None:
    if reason := script.headers.get(mode) or script.headers.get("everywhere"):
        pytest.skip(f"documented difference: {reason}")
    dsn, _ = bench.through(mode)
    printed = []
    for target in (bench.database.dsn, dsn):
        bench.fresh()
        printed.append(run_pgproto(script, target))
    assert printed[0] == printed[1]


def run_pgproto(script: Script, dsn: str) -> list[str]:
    """What pgproto prints of a script, line by line; process ids are zeros."""
    assert PGPROTO is not None
    parts = urlsplit(dsn)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    done = subprocess.run(
        [
            *(PGPROTO, "-h", str(parts.hostname), "-p", str(parts.port), "-u", user),
            *("-d", parts.path.lstrip("/"), "-f", str(CORPUS / f"{script.name}.data")),
        ],
        env={**os.environ, "PGPASSWORD": password, "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    lines = done.stderr.decode(errors="replace").splitlines()
    return [
        line
        if "<= BE Notification" not in line
        else f"{line.split(' pid: ')[0]} pid: 0 {line.split(' ', 6)[6]}"
        for line in lines
    ]


def replies(printed: list[str]) -> list[str]:
    """The server's messages; of one whose fields have several lines the first."""
    return [line for line in printed if line.startswith("<= BE")]


def test_a_script_is_read_as_written() -> None:
    script = parse(
        "example",
        "# pgproto: no\n"
        '\'Q\'\t"SELECT \\"a\\",\\\n1"\n'
        '\'B\'\t"p"\t"s"\t1\t1\t3\t4\tx"0000002a"\t-1\t0\t2\t0\t1\n'
        "\n'@'\t2\n'Y'\n",
    )
    assert not script.for_pgproto
    assert [step.kind for step in script.steps] == ["Q", "B", "@", "Y"]
    assert script.steps[0].data == b'Q\0\0\0\x12SELECT "a",\n1\0'
    assert script.steps[1].data == (
        b"B\0\0\0\x24p\0s\0\0\1\0\1\0\3\0\0\0\4\0\0\0\x2a\xff\xff\xff\xff\0\0\0\0\0\2\0\0\0\1"
    )
    assert script.steps[2].number == 2
