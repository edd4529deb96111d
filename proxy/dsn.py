"""Connection strings: ``postgresql://user:password@host:port/db?sslmode=...`` into a frozen ``Dsn``.

Pure but for ``Dsn.password_or_default``, which looks where libpq looks (PGPASSWORD, then PGPASSFILE or
~/.pgpass). A password never shows in ``repr`` or ``str``: both are safe to log.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
DEFAULT_PORT: Final = 5432

_PARAMETERS: Final = frozenset(
    {
        *("host", "port", "user", "password", "dbname", "application_name", "max_protocol_version"),
        *("sslmode", "sslnegotiation", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslsni"),
    }
)
_MINOR_VERSIONS: Final = {"3.0": 0, "3.2": 2, "latest": 2}


@dataclass(frozen=True, slots=True)
class Dsn:
    """Where a server is and who connects to it. ``host`` starting with ``/`` is a unix socket directory."""

    host: str
    port: int
    user: str
    database: str
    password: str | None = field(default=None, repr=False)
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    """A file, or ``system`` for the certificates that the operating system trusts."""
    sslnegotiation: str = "postgres"
    sslcert: str | None = None
    sslkey: str | None = None
    sslcrl: str | None = None
    sslsni: bool = True
    minor: int = 0
    """The minor version of protocol 3 to ask for; libpq calls it ``max_protocol_version``."""

    @property
    def is_unix(self) -> bool:
        """Whether the server is reached over a unix socket."""
        return self.host.startswith("/")

    @property
    def socket_path(self) -> str:
        """The path of the unix socket; only meaningful where ``is_unix``."""
        return f"{self.host}/.s.PGSQL.{self.port}"

    @property
    def label(self) -> str:
        """``host:port``, for logs and metric labels."""
        return f"{self.host}:{self.port}"

    def __str__(self) -> str:
        """The connection string without its password."""
        user = quote(self.user, safe="")
        database = quote(self.database, safe="")
        if self.is_unix:
            return f"postgresql://{user}@/{database}?host={quote(self.host, safe='/')}&port={self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{user}@{host}:{self.port}/{database}"

    def password_or_default(self, environ: Mapping[str, str] | None = None) -> str | None:
        """The password to log in with: the connection string's, else PGPASSWORD, else the password file's."""
        environ = os.environ if environ is None else environ
        if self.password is not None:
            return self.password
        if (from_environment := environ.get("PGPASSWORD")) is not None:
            return from_environment
        path = environ.get("PGPASSFILE")
        return self._from_passfile(Path(path) if path else Path("~/.pgpass").expanduser())

    def _from_passfile(self, path: Path) -> str | None:
        try:
            # As libpq: a file that others may read is not trusted with a password.
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                return None
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return None
        host = "localhost" if self.is_unix else self.host
        wanted = (host, str(self.port), self.database, self.user)
        for line in lines:
            if not line or line.startswith("#"):
                continue
            fields = _pgpass_fields(line)
            if len(fields) == 5 and all(
                f in ("*", w) or (i == 0 and f == self.host)
                for i, (f, w) in enumerate(zip(fields[:4], wanted, strict=True))
            ):
                return fields[4]
        return None


def parse(text: str) -> Dsn:
    """The ``Dsn`` that a URI describes; ValueError says what is wrong with it, never quoting the password."""
    scheme, separator, _ = text.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ValueError("a connection string must start with postgresql://")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError("the host or port of the connection string cannot be read") from error
    parameters: dict[str, str] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _PARAMETERS:
            raise ValueError(
                f"unknown connection parameter {key!r} (known: {', '.join(sorted(_PARAMETERS))})"
            )
        parameters[key] = value
    if "," in parts.netloc or "," in parameters.get("host", ""):
        raise ValueError("a connection string names one host: list replicas one by one")
    host = parameters.get("host") or _host(parts.netloc) or "localhost"
    user = unquote(parts.username or "") or parameters.get("user", "")
    if not user:
        raise ValueError("the connection string names no user (postgresql://user@host/database)")
    database = unquote(parts.path.lstrip("/")) or parameters.get("dbname", "") or user
    if "port" in parameters:
        if not parameters["port"].isdecimal() or not 0 < int(parameters["port"]) < 65536:
            raise ValueError(f"port must be a number within 1..65535, not {parameters['port']!r}")
        port = int(parameters["port"])
    tls = _tls(parameters)
    max_version = parameters.get("max_protocol_version", "3.0")
    if max_version not in _MINOR_VERSIONS:
        raise ValueError(
            f"max_protocol_version must be one of {', '.join(_MINOR_VERSIONS)}, not {max_version!r}"
        )
    password = unquote(parts.password) if parts.password is not None else parameters.get("password")
    return Dsn(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        user=user,
        database=database,
        password=password,
        minor=_MINOR_VERSIONS[max_version],
        **tls,
    )


def _tls(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The fields that say how to encrypt; combinations that libpq refuses as too weak are refused."""
    rootcert = parameters.get("sslrootcert")
    sslmode = parameters.get("sslmode") or ("verify-full" if rootcert == "system" else "prefer")
    if sslmode not in SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(SSL_MODES)}, not {sslmode!r}")
    if rootcert == "system" and sslmode != "verify-full":
        raise ValueError(f'sslmode {sslmode!r} is too weak for sslrootcert=system (use "verify-full")')
    negotiation = parameters.get("sslnegotiation", "postgres")
    if negotiation not in ("postgres", "direct"):
        raise ValueError(f"sslnegotiation must be postgres or direct, not {negotiation!r}")
    if negotiation == "direct" and sslmode in ("disable", "allow", "prefer"):
        raise ValueError(f'sslmode {sslmode!r} is too weak for sslnegotiation=direct (use "require" or more)')
    sni = parameters.get("sslsni", "1")
    if sni not in ("0", "1"):
        raise ValueError(f"sslsni must be 0 or 1, not {sni!r}")
    if sni == "0" and sslmode == "verify-full":
        raise ValueError("sslsni=0 cannot be used with sslmode=verify-full")
    return {
        "sslmode": sslmode,
        "sslrootcert": rootcert,
        "sslnegotiation": negotiation,
        "sslcert": parameters.get("sslcert"),
        "sslkey": parameters.get("sslkey"),
        "sslcrl": parameters.get("sslcrl"),
        "sslsni": sni == "1",
    }


def _host(netloc: str) -> str:
    """The host of ``user:password@host:port``, its case kept: it may be a percent-encoded socket
    directory."""
    address = netloc.rpartition("@")[2]
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return unquote(address.partition(":")[0])


def _pgpass_fields(line: str) -> list[str]:
    """The fields of one line of a password file: colons separate, a backslash takes the next character as it
    is."""
    fields = [""]
    characters = iter(line)
    for character in characters:
        if character == "\\":
            fields[-1] += next(characters, "")
        elif character == ":" and len(fields) < 5:
            fields.append("")
        else:
            fields[-1] += character
    return fields
