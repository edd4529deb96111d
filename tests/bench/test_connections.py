"""A new connection for each transaction (``pgbench -S -C``): connections a second and the proxy's CPU for each.

Clients log in by trust or with SCRAM against the same verifier in both proxies, with and without TLS. The proxy's CPU
is the figure to look at: with SCRAM most of the time goes by in the client, which derives the key from the password.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from migrator.cluster import ClusterError
from tests.bench import runs
from tests.bench.ways import Access, Setup, Way
from tests.conformance.run_pgbench import pgbench as find_pgbench

CLIENTS = 8

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]


@dataclass(frozen=True)
class Entry:
    """One way to log in, through one way to the server."""

    login: str
    way: Way
    tls: bool = False
    password: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return (f"{self.login}, TLS" if self.tls else self.login, self.way.name)


def _certificate(directory: Path) -> tuple[Path, Path]:
    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate, key = directory / "bench.crt", directory / "bench.key"
    leaf.cert_chain_pems[0].write_to_path(str(certificate))
    leaf.private_key_pem.write_to_path(str(key))
    # Read by PgBouncer's unprivileged user.
    key.chmod(0o644)
    return certificate, key


def _scram(setup: Setup) -> tuple[str, str] | None:
    """The password of the server's user and a users file with its verifier, where the server lets us see it."""
    primary = setup.cluster.primary
    user = primary.address.user
    password = primary.address.password or primary.passwords.get(user)
    try:
        verifier = primary.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'")
    except ClusterError:
        return None
    if password is None or not verifier.startswith("SCRAM-SHA-256$"):
        return None
    return password, f'"{user}" "{verifier}"\n'


def test_connections_a_second(setup: Setup) -> None:
    encrypting = find_pgbench(True)
    # One program for all: its own share of the work differs from build to build.
    program = encrypting or find_pgbench(False)
    assert program is not None
    certificate = _certificate(setup.directory)
    logins: list[tuple[str, Access, str | None]] = [("trust", Access(certificate=certificate), None)]
    secret = _scram(setup)
    notes = [] if secret else ["SCRAM: the verifier of the server's user cannot be read here"]
    notes += [] if encrypting else ["TLS: no pgbench here can do it"]
    if secret is not None:
        logins.append(("SCRAM", Access("scram-sha-256", secret[1], certificate), secret[0]))
    with ExitStack() as stack:
        entries = [Entry("trust", setup.direct())]
        for login, access, password in logins:
            for way in (
                stack.enter_context(setup.pgbouncer("session", access)),
                stack.enter_context(setup.dualwire("session", access)),
                stack.enter_context(setup.pgbouncer("transaction", access)),
                stack.enter_context(setup.dualwire("transaction", access)),
            ):
                for tls in (False, True) if encrypting else (False,):
                    if way is not None:
                        entries.append(Entry(login, way, tls, password))
        pool = stack.enter_context(setup.pgpool())
        if pool is not None:
            entries.append(Entry("trust", pool))
        entries.sort(key=lambda entry: (entry.login != "trust", entry.tls))
        found = runs.rounds(
            [entry.key for entry in entries],
            lambda key: _run(next(entry for entry in entries if entry.key == key), program),
        )
    made = runs.table(
        f"pgbench -S -C, {CLIENTS} clients, {runs.ROUNDS} rounds",
        ("login", "way", "connections/s", "CPU µs/connection", "rate ratio", "CPU ratio"),
    )
    for (login, name), figures in found.items():
        reference = found.get((login, name.replace("dualwire", "pgbouncer")), [])
        cpu = [figure.cpu for figure in figures]
        compared = name.startswith("dualwire") and reference
        made.add_row(
            login,
            name,
            runs.spread(figure.tps for figure in figures).text(),
            runs.spread(cpu).text() if any(cpu) else "",
            runs.ratios([f.tps for f in figures], [f.tps for f in reference]).text(".2f") if compared else "",
            runs.ratios(cpu, [f.cpu for f in reference]).text(".2f")
            if compared and all(f.cpu for f in reference)
            else "",
        )
    runs.show(made, notes)
    assert all(figure.tps > 0 for figures in found.values() for figure in figures)


def _run(entry: Entry, program: Path) -> runs.Figure:
    return runs.pgbench(
        entry.way,
        "simple",
        CLIENTS,
        seconds=runs.SECONDS / 2,
        reconnect=True,
        program=program,
        tls=entry.tls,
        password=entry.password,
    )
