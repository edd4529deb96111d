"""One PostgreSQL server as its users see it: DSNs, SQL through psql, replay positions; and control where it
is ours.

`Server` alone stands for a server that somebody else runs: asking it to stop is an error. Subclasses own a
process (`embedded`) or a container (`docker`).
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from .binaries import ClusterError, NotOurs

StopMode = Literal["smart", "fast", "immediate"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens and who we are there; ``options`` is the query part of its DSN, kept as it was
    given.
    """

    host: str
    port: int
    user: str
    password: str | None
    database: str
    options: str = ""

    @classmethod
    def parse(cls, dsn: str) -> Address:
        """Takes a URI apart; the key-value form has no agreed way to swap one part and is refused."""
        parts = urlsplit(dsn)
        if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
            raise ClusterError(f"write the DSN as postgresql://user:password@host:port/database, not {dsn!r}")
        user = unquote(parts.username or "postgres")
        return cls(
            host=parts.hostname,
            port=parts.port or 5432,
            user=user,
            password=None if parts.password is None else unquote(parts.password),
            database=unquote(parts.path.lstrip("/")) or user,
            options=parts.query,
        )

    def dsn(self) -> str:
        """The URI that libpq, asyncpg and SQLAlchemy's drivers all take."""
        secret = "" if self.password is None else f":{quote(self.password, safe='')}"
        query = f"?{self.options}" if self.options else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, database = quote(self.user, safe=""), quote(self.database, safe="")
        return f"postgresql://{user}{secret}@{host}:{self.port}/{database}{query}"


@dataclass
class Server:
    """A primary or a replica. ``passwords`` is shared by a cluster's servers: role name to password."""

    name: str
    address: Address
    psql: Path
    passwords: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return self.address.host

    @property
    def port(self) -> int:
        return self.address.port

    def dsn(self, user: str | None = None, database: str | None = None, password: str | None = None) -> str:
        """A URI for this server; without arguments the superuser's. Passwords of the cluster's roles are
        known.
        """
        address = self.address
        if user is not None and user != address.user:
            address = replace(address, user=user, password=self.passwords.get(user))
        if database is not None:
            address = replace(address, database=database)
        if password is not None:
            address = replace(address, password=password)
        return address.dsn()

    def sql(self, statement: str, database: str | None = None, user: str | None = None) -> str:
        """Runs SQL through psql and gives its rows, unaligned (``a|b`` lines); an SQL error is a
        `ClusterError`.
        """
        command = [
            str(self.psql),
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.dsn(user=user, database=database),
            "-f",
            "-",
        ]
        done = subprocess.run(
            command, input=statement, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise ClusterError(f"{self.name}: {done.stderr.strip()}")
        return done.stdout.strip()

    def current_lsn(self) -> str:
        """The primary's insert position: what a replica must have replayed to show everything done so far."""
        return self.sql("SELECT pg_current_wal_insert_lsn()")

    def wait_replayed(self, lsn: str, timeout: float = 30.0) -> None:
        """Waits until this replica has replayed up to ``lsn``."""
        deadline = time.monotonic() + timeout
        while self.sql(f"SELECT coalesce(pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn, false)") != "t":
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} did not replay up to {lsn} within {timeout:g} s")
            time.sleep(0.02)

    def pause_replay(self) -> None:
        """Makes this replica stand still until `resume_replay`."""
        self.sql("SELECT pg_wal_replay_pause()")
        deadline = time.monotonic() + 10
        while self.sql("SELECT pg_get_wal_replay_pause_state()") != "paused":
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} did not pause")
            time.sleep(0.01)

    def resume_replay(self) -> None:
        """Lets a paused replica go on."""
        self.sql("SELECT pg_wal_replay_resume()")

    @property
    def running(self) -> bool:
        """Whether the server runs, as far as we control it."""
        return True

    def start(self) -> None:
        """Starts the server and waits until it accepts connections."""
        raise self._not_ours()

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops the server; its data and its port stay."""
        raise self._not_ours()

    def kill(self) -> None:
        """Kills the server as a crash would (SIGKILL); `start` brings it back through recovery."""
        raise self._not_ours()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stops and starts the server on the same port."""
        self.stop(mode)
        self.start()

    def _not_ours(self) -> NotOurs:
        return NotOurs(
            f"{self.name} at {self.host}:{self.port} was given by DSN: it is not ours to start or stop"
        )
