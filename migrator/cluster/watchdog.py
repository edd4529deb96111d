"""Stops the embedded servers and removes their directory as soon as the process that owns them is gone.

Run as ``python -m migrator.cluster.watchdog DIRECTORY``, in a session of its own, with a pipe to the owner as
standard input. The end of the pipe (a regular stop, an exception, SIGKILL: the kernel closes it in any case)
or another parent process starts the one and only way of tearing down: SIGKILL of the processes that the owner
had named by a line ``adopt PID`` (sidecars, workloads), immediate shutdown of every postmaster below the
directory, SIGKILL of PostgreSQL's other programs at work there, removal. Only the standard library is used,
and nothing is assumed about how far the owner had got when it died.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
PROGRAMS = frozenset({"postgres", "initdb", "pg_basebackup", "pg_ctl", "pg_rewind"})


@dataclass(frozen=True, slots=True)
class Adopted:
    """A process of the owner's; its birth tells it from a later one with the same number."""

    pid: int
    born: str


def main(directory: str) -> None:
    """Waits for the owner's end, then tears down."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    owner = os.getppid()
    adopted: list[Adopted] = []
    pending = b""
    # A forked child of the owner may hold the pipe open for longer than the owner lives: look at the parent
    # too.
    while os.getppid() == owner:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], POLL_SECONDS)
        if not readable:
            continue
        got = os.read(sys.stdin.fileno(), 4096)
        if not got:
            break
        *lines, pending = (pending + got).split(b"\n")
        for line in lines:
            word, _, number_text = line.partition(b" ")
            if word == b"adopt" and number_text.isdigit():
                adopted.append(Adopted(int(number_text), _birth(int(number_text))))
    for process in adopted:
        if process.born and _birth(process.pid) == process.born:
            _send(process.pid, signal.SIGKILL)
    tear_down(Path(directory))


def tear_down(root: Path) -> None:
    """Stops PostgreSQL's programs that run on ``root`` and removes it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    asked: set[int] = set()
    quiet = 0
    # Twice nothing in a row: a program that the owner was just starting may not have become itself yet.
    while quiet < 2:
        pids = programs_on(root)
        quiet = 0 if pids else quiet + 1
        postmasters = {_first_pid(path) for path in root.glob("*/postmaster.pid")}
        for pid in pids:
            if pid in postmasters and time.monotonic() < deadline:
                if pid not in asked:
                    asked.add(pid)
                    _send(pid, signal.SIGQUIT)
            else:
                _send(pid, signal.SIGKILL)
        time.sleep(0.05)
    for _ in range(50):
        shutil.rmtree(root, ignore_errors=True)
        if not root.exists():
            return
        time.sleep(0.1)


def programs_on(root: Path) -> set[int]:
    """PostgreSQL's programs that name a path below ``root`` in their arguments; never anybody's editor or
    tail.
    """
    needle = f"{root}/"
    return {
        pid
        for pid, command in _commands()
        if command
        and os.path.basename(command[0]) in PROGRAMS
        and any(needle in f"{argument}/" for argument in command[1:])
    }


def _commands() -> list[tuple[int, list[str]]]:
    if Path("/proc/self/cmdline").exists():
        seen = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    raw = Path("/proc", entry, "cmdline").read_bytes()
                except OSError:
                    continue
                seen.append((int(entry), raw.decode(errors="replace").rstrip("\0").split("\0")))
        return seen
    listing = subprocess.run(
        ["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=False
    )
    split = (line.strip().partition(" ") for line in listing.stdout.splitlines())
    return [(int(pid), command.split()) for pid, _, command in split if pid.isdigit()]


def _birth(pid: int) -> str:
    """When a process was started, in whatever unit the system has; empty when there is no such process."""
    stat = Path("/proc", str(pid), "stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return ""
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _first_pid(path: Path) -> int:
    try:
        return int(path.read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        return -1


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


if __name__ == "__main__":
    main(sys.argv[1])
