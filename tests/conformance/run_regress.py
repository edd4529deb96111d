"""PostgreSQL's own regression SQL through a sidecar with rewriting on and no rule.

``python -m tests.conformance regress DIRECTORY`` takes ``src/test/regress`` of a PostgreSQL source tree
(``REGRESS_DIR`` where no directory is given) and the programs of the same version (``DUALWIRE_PG_BIN``), makes a fresh
server for each pass, and lets ``pg_regress`` run the schedule twice: on the server itself, and through a sidecar that
serves the database ``regression``. What counts is that the outputs of both passes are equal; whether they equal the
expected files as well is told beside it, since that depends on the platform. A test whose outputs differ passes if
pg_regress found one of its expected files in both passes (tests in parallel groups may print either), or if it stands
in ``regress_allowed.txt`` with a reason.

Exit status: 0 no unexpected difference, 1 there are some, 2 the directory or a program is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from migrator.cluster import Cluster, ClusterError, start_cluster
from migrator.cluster.binaries import find_binaries, server_account
from tests.conformance.suites import allowed
from tests.conformance.suites.servers import Endpoint, Setting, clean_environment, directly, sidecar
from tests.conformance.suites.sources import SuiteError, cache_directory

DATABASE = "regression"
ALLOWED = Path(__file__).with_name("regress_allowed.txt")
SHOWN = 40
"""Lines of a difference that are printed; the whole is in the output directory."""
# As pg_regress makes the database itself, where it is not told to use an existing one.
DATABASE_SETTINGS = {
    "lc_messages": "C",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "bytea_output": "hex",
    "timezone_abbreviations": "Default",
}
# "test x ... ok" up to version 15, TAP since.
_OLD = re.compile(r"^(?:test)?\s+(\S+)\s+\.\.\. (ok|FAILED|failed)")
_TAP = re.compile(r"^(ok|not ok)\s+\d+\s+[-+]\s+(\S+)")


@dataclass(frozen=True, slots=True)
class Pass:
    """One run: what pg_regress said of each test, and the directory with what each printed."""

    verdicts: dict[str, bool]
    results: Path

    def output(self, test: str) -> list[str]:
        """The lines that a test printed; none if it was not run."""
        path = self.results / f"{test}.out"
        return path.read_text(errors="replace").splitlines() if path.exists() else []


def run(source: Path, setting: Setting, schedule: Path, library: Path) -> int:
    """Both passes and the verdict."""
    permitted = allowed.read(ALLOWED)
    kept = cache_directory() / "results" / "regress"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    passes: list[Pass] = []
    complaints: list[str] = []
    for label in ("direct", "sidecar"):
        began = time.monotonic()
        with (
            _server(setting.replicas) as cluster,
            contextlib.ExitStack() as stack,
        ):
            endpoint = directly(cluster)
            if setting.control_schema and label == "direct":
                install_control_schema(cluster)
            if label == "sidecar":
                running = stack.enter_context(sidecar(cluster, setting, kept))
                endpoint, complaints = running.endpoint, running.complaints
            done = _pass(source, schedule, library, endpoint, kept / label)
        passes.append(done)
        good = sum(done.verdicts.values())
        _say(f"{label}: {good} of {len(done.verdicts)} as expected in {time.monotonic() - began:.0f} s")
    direct, through = passes
    if not direct.verdicts:
        raise SuiteError(f"pg_regress ran no test: see {kept}/direct")
    differing = [test for test in direct.verdicts if _differs(test, direct, through)]
    unexpected = [test for test in differing if permitted.reason(test) is None]
    for test in differing:
        if (reason := permitted.reason(test)) is not None:
            _say(f"allowed: {test} ({reason})")
    for entry in permitted.stale(differing):
        _say(f"WARNING: allowed, but no longer different: {entry.pattern}")
    for test in unexpected:
        difference = list(
            difflib.unified_diff(direct.output(test), through.output(test), "direct", "sidecar", lineterm="")
        )
        (kept / f"{test}.diff").write_text("\n".join(difference) + "\n")
        _say(f"DIFFERENT: {test}\n" + "\n".join(difference[:SHOWN]))
    for complaint in complaints:
        _say(f"WRONG: {complaint}")
    equal = len(direct.verdicts) - len(differing)
    _say(
        f"{equal} of {len(direct.verdicts)} tests equal, {len(unexpected)} unexpectedly different; see {kept}"
    )
    return 1 if unexpected or complaints else 0


def _differs(test: str, direct: Pass, through: Pass) -> bool:
    if direct.verdicts[test] and through.verdicts.get(test):
        return False
    return not through.output(test) or direct.output(test) != through.output(test)


@contextlib.contextmanager
def _server(replicas: int) -> Iterator[Cluster]:
    """A fresh server with the database that the tests expect."""
    with start_cluster(replicas=replicas, trust=True) as cluster:
        server = cluster.primary
        server.sql(
            f"CREATE DATABASE {DATABASE} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        for name, value in DATABASE_SETTINGS.items():
            server.sql(f"ALTER DATABASE {DATABASE} SET {name} TO '{value}'")
        cluster.wait_replayed()
        yield cluster


def install_control_schema(cluster: Cluster) -> None:
    """The direct pass finds what `sidecar` installs before the other, so that catalogs look the same."""
    command = [
        sys.executable,
        "-m",
        "migrator.cli.main",
        "init",
        "--dsn",
        cluster.primary.dsn(database=DATABASE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SuiteError(f"dualwire init failed:\n{done.stdout}{done.stderr}")


def _pass(source: Path, schedule: Path, library: Path, endpoint: Endpoint, kept: Path) -> Pass:
    """Runs the schedule in a directory that the server's account may read and write, and keeps what came out."""
    account = server_account()
    with tempfile.TemporaryDirectory(prefix="regress-") as scratch:
        place = Path(scratch)
        for part in ("sql", "expected", "data"):
            shutil.copytree(source / part, place / part)
        if (source / "resultmap").exists():
            shutil.copy(source / "resultmap", place)
        libraries = place / "lib"
        libraries.mkdir()
        for name in ("regress.so", "autoinc.so", "refint.so"):
            for origin in (library / name, _package_libraries() / name):
                if origin.exists():
                    shutil.copy(origin, libraries)
                    break
        output = place / "output"
        for path in (
            output,
            output / "results",
            output / "sql",
            output / "expected",
            output / "testtablespace",
        ):
            path.mkdir(exist_ok=True)
        if account is not None:
            for path in (place, *place.rglob("*")):
                os.chown(path, account.uid, account.gid)
        identity = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
        with open(kept.with_suffix(".log"), "wb") as log:
            subprocess.run(
                [
                    str(_pg_regress()),
                    f"--inputdir={place}",
                    f"--outputdir={output}",
                    f"--bindir={find_binaries()}",
                    f"--dlpath={libraries}",
                    f"--schedule={schedule}",
                    f"--dbname={DATABASE}",
                    "--use-existing",
                    f"--host={endpoint.host}",
                    f"--port={endpoint.port}",
                    f"--user={endpoint.user}",
                    "--max-concurrent-tests=20",
                ],
                cwd=place,
                env=clean_environment(HOME=str(place)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=1800,
                check=False,
                **identity,
            )
        shutil.copytree(output, kept)
    # Where the pass was run stands in some outputs.
    for path in (kept / "results").rglob("*.out"):
        text = path.read_text(errors="surrogateescape").replace(str(place), "SCRATCH")
        path.write_text(text, errors="surrogateescape")
    return Pass(verdicts(kept.with_suffix(".log").read_text(errors="replace")), kept / "results")


def verdicts(text: str) -> dict[str, bool]:
    """What pg_regress printed: test to whether its output was an expected one."""
    found: dict[str, bool] = {}
    for line in text.splitlines():
        if (old := _OLD.match(line)) is not None:
            found[old.group(1)] = old.group(2) == "ok"
        elif (tap := _TAP.match(line)) is not None:
            found[tap.group(2)] = tap.group(1) == "ok"
    return found


def _config(question: str) -> Path:
    program = find_binaries() / "pg_config"
    done = subprocess.run([str(program), question], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SuiteError(f"{program} {question} failed: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def _package_libraries() -> Path:
    return _config("--pkglibdir")


def _pg_regress() -> Path:
    found = _config("--pgxs").parents[1] / "test" / "regress" / "pg_regress"
    if not found.exists():
        raise SuiteError(f"there is no {found}: install the development files of this PostgreSQL")
    return found


def _say(text: str) -> None:
    print(f"[regress] {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance regress")
    parser.add_argument("directory", type=Path, nargs="?", help="src/test/regress of the server's version")
    parser.add_argument("--pool-mode", choices=("session", "transaction"), default="session")
    parser.add_argument("--replicas", type=int, default=0, metavar="N")
    parser.add_argument(
        "--control-schema",
        action="store_true",
        help="run `dualwire init` in both passes: rewriting on, with no rule",
    )
    parser.add_argument("--schedule", type=Path, help="default: parallel_schedule of the directory")
    parser.add_argument("--library", type=Path, help="where regress.so is; default: the directory")
    chosen = parser.parse_args(arguments)
    given = chosen.directory or os.environ.get("REGRESS_DIR")
    if not given:
        _say("skipped: name src/test/regress of the server's version (REGRESS_DIR)")
        return 0 if arguments == [] else 2
    source = Path(given).resolve()
    schedule = (chosen.schedule or source / "parallel_schedule").resolve()
    missing = [path for path in (source / "sql", source / "expected", schedule) if not path.exists()]
    if missing:
        print(f"[regress] not there: {', '.join(map(str, missing))}", file=sys.stderr)
        return 2
    setting = Setting((DATABASE,), chosen.pool_mode, chosen.replicas, chosen.control_schema)
    try:
        return run(source, setting, schedule, (chosen.library or source).resolve())
    except (SuiteError, ClusterError) as error:
        print(f"[regress] {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
