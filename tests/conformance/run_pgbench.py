"""pgbench through a sidecar: every transaction of every way to run it succeeds.

``python -m tests.conformance pgbench`` runs ``pgbench`` for some seconds in each combination of pool mode, TLS,
protocol (simple, extended, prepared), number of clients (1, 8, 64) and script (TPC-B, SELECT only), and SELECT only
once more with a new connection for each transaction (``-C``). A run passes if pgbench's exit status is 0 and it
reports that no transaction failed; of every other, pgbench's own words are printed. Nothing is measured here. In
transaction mode there are fewer server connections than clients, so that these share them.

Exit status: 0 all passed, 1 some did not, 2 there is no pgbench, or the sidecar or the server did not start.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme

from migrator.cluster import Cluster, ClusterError, start_cluster
from migrator.cluster.cluster import client_program
from tests.conformance.suites.servers import Endpoint, Setting, clean_environment, sidecar
from tests.conformance.suites.sources import SuiteError, cache_directory

DATABASE = "bench"
PROTOCOLS = ("simple", "extended", "prepared")
CLIENTS = (1, 8, 64)
SCALE = 10
SHARED = 20
"""Server connections in transaction mode."""
_DONE = re.compile(r"number of transactions actually processed: (\d+)")
_FAILED = re.compile(r"number of failed transactions: (\d+) ")


@dataclass(frozen=True, slots=True)
class Run:
    """One combination."""

    pool_mode: str
    tls: bool
    protocol: str
    clients: int
    script: str
    connect: bool = False

    def __str__(self) -> str:
        words = [self.pool_mode, "TLS" if self.tls else "plain", self.protocol, f"{self.clients} clients"]
        return ", ".join([*words, self.script, *(["-C"] if self.connect else [])])


def matrix(pool_mode: str, tls: bool) -> Iterator[Run]:
    """The runs through one sidecar."""
    for protocol, clients in itertools.product(PROTOCOLS, CLIENTS):
        yield Run(pool_mode, tls, protocol, clients, "tpcb-like")
        yield Run(pool_mode, tls, protocol, clients, "select-only")
        yield Run(pool_mode, tls, protocol, clients, "select-only", connect=True)


def judge(run: Run, program: Path, endpoint: Endpoint, seconds: int) -> tuple[int, str]:
    """The number of transactions, and what went wrong: nothing if the text is empty."""
    # With -M prepared each client of a thread blocks the others while it prepares. Where there are fewer servers than
    # clients, those of the blocked ones are never given back: pgbench would wait for itself.
    threads = run.clients if run.pool_mode == "transaction" else 2
    try:
        done = subprocess.run(
            [
                str(program),
                *("-n", "-M", run.protocol, "-b", run.script, "-c", str(run.clients), "-j", str(threads)),
                *("-T", str(seconds), *(["-C"] if run.connect else []), DATABASE),
            ],
            env=clean_environment(
                **endpoint.variables(DATABASE),
                PGSSLMODE="require" if run.tls else "disable",
                PGGSSENCMODE="disable",
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0, "pgbench was not done a minute after its time"
    processed, failed = _DONE.search(done.stdout), _FAILED.search(done.stdout)
    said = f"status {done.returncode}\n{done.stdout}{done.stderr}"
    if done.returncode != 0 or processed is None:
        return 0, said
    # Before version 15 pgbench does not count failures: one ends the client, and the status tells.
    if failed is not None and int(failed.group(1)):
        return 0, said
    return int(processed.group(1)), "" if int(processed.group(1)) else said


def pgbench(tls: bool) -> Path | None:
    """A pgbench whose libpq can do what is asked: the embedded package's may be built without TLS."""
    found = []
    with contextlib.suppress(ClusterError):
        found.append(client_program("pgbench"))
    if (in_path := shutil.which("pgbench")) is not None:
        found.append(Path(in_path))
    for program in found:
        # Without TLS libpq refuses the setting before it connects anywhere.
        tried = subprocess.run(
            [str(program), "-n", "-t", "1", "-h", "127.0.0.1", "-p", "1", "none"],
            env=clean_environment(PGSSLMODE="require" if tls else "disable"),
            capture_output=True,
            text=True,
            check=False,
        )
        if "SSL support is not compiled in" not in tried.stderr:
            return program
    return None


def certificate(directory: Path) -> str:
    """A certificate and its key for the sidecar, as TOML for its section ``[listen]``."""
    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate, key = directory / "server.crt", directory / "server.key"
    leaf.cert_chain_pems[0].write_to_path(str(certificate))
    leaf.private_key_pem.write_to_path(str(key))
    return f"tls_cert = {json.dumps(str(certificate))}\ntls_key = {json.dumps(str(key))}"


def through_one_sidecar(
    cluster: Cluster, pool_mode: str, tls: bool, seconds: int, replicas: int
) -> tuple[int, int]:
    """All runs of a pool mode with or without TLS; gives how many there were and how many failed."""
    program = pgbench(tls)
    if program is None:
        _say(f"skipped: no pgbench here can do {'TLS' if tls else 'anything'}")
        return 0, 0
    directory = cache_directory() / "results" / "pgbench" / f"{pool_mode}-{'tls' if tls else 'plain'}"
    directory.mkdir(parents=True, exist_ok=True)
    extra = f"pool_size = {SHARED}\n" if pool_mode == "transaction" else ""
    listen = certificate(directory) if tls else ""
    setting = Setting((DATABASE,), pool_mode, replicas, extra=extra, listen=listen)
    runs = failed = 0
    with sidecar(cluster, setting, directory) as running:
        for run in matrix(pool_mode, tls):
            runs += 1
            count, wrong = judge(run, program, running.endpoint, seconds)
            failed += bool(wrong)
            _say(f"{run}: {'FAILED: ' + wrong if wrong else f'{count} transactions, none failed'}")
    for complaint in running.complaints:
        failed += 1
        _say(f"WRONG: {complaint}")
    return runs, failed


def _say(text: str) -> None:
    print(f"[pgbench] {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance pgbench")
    parser.add_argument("--seconds", type=int, default=5, help="of each run")
    parser.add_argument("--pool-mode", choices=("session", "transaction"), help="default: both")
    parser.add_argument("--tls", choices=("on", "off"), help="default: both")
    parser.add_argument("--replicas", type=int, default=0, metavar="N")
    chosen = parser.parse_args(arguments)
    modes = [chosen.pool_mode] if chosen.pool_mode else ["session", "transaction"]
    encrypted = [chosen.tls == "on"] if chosen.tls else [False, True]
    program = pgbench(False)
    if program is None:
        print("[pgbench] there is no pgbench", file=sys.stderr)
        return 2
    runs = failed = 0
    try:
        with start_cluster(replicas=chosen.replicas, trust=True) as cluster:
            cluster.create_database(DATABASE)
            subprocess.run(
                [str(program), "-i", "-q", "-s", str(SCALE), cluster.primary.dsn(database=DATABASE)],
                env=clean_environment(),
                capture_output=True,
                check=True,
            )
            cluster.wait_replayed()
            for pool_mode, tls in itertools.product(modes, encrypted):
                more, wrong = through_one_sidecar(cluster, pool_mode, tls, chosen.seconds, chosen.replicas)
                runs, failed = runs + more, failed + wrong
    except (SuiteError, ClusterError) as error:
        print(f"[pgbench] {error}", file=sys.stderr)
        return 2
    _say(f"{runs} runs, {failed} with an error")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
