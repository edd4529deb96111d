"""TLS towards a server, as libpq understands ``sslmode``: which ways to try in which order, and the context for them.

Contract: :func:`ways` and :func:`context` only read what the connection string names (files included) and raise
ServerUnavailable where that cannot be used; the bytes are moved by ``proxy.backend.connection``. Contexts are kept and
made anew when one of their files changes, so a renewed certificate needs no restart.
"""

from __future__ import annotations

import os
import ssl
from enum import Enum
from functools import lru_cache
from pathlib import Path

from proxy.backend.errors import ServerUnavailable
from proxy.dsn import Dsn

ALPN = "postgresql"
_DIRECTORY = Path("~/.postgresql")


class Way(Enum):
    """How one attempt to connect begins."""

    PLAIN = "plain"
    ASK = "SSLRequest"
    DIRECT = "direct"


def ways(dsn: Dsn) -> tuple[Way, ...]:
    """The attempts in their order; never TLS over a unix socket, whatever sslmode says."""
    if dsn.is_unix or dsn.sslmode == "disable":
        return (Way.PLAIN,)
    if dsn.sslmode == "allow":
        return (Way.PLAIN, Way.ASK)
    if dsn.sslmode == "prefer":
        return (Way.ASK, Way.PLAIN)
    return (Way.DIRECT if dsn.sslnegotiation == "direct" else Way.ASK,)


def context(dsn: Dsn) -> ssl.SSLContext:
    """The TLS settings of a connection string."""
    root = _named(dsn.sslrootcert, "root.crt")
    certificate = _named(dsn.sslcert, "postgresql.crt")
    key = _named(dsn.sslkey, "postgresql.key") if certificate else None
    crl = _named(dsn.sslcrl, "root.crl")
    if root is None and dsn.sslrootcert != "system" and dsn.sslmode.startswith("verify"):
        raise ServerUnavailable(
            "08001",
            f"the root certificate {_path(dsn.sslrootcert, 'root.crt')} does not exist",
            hint="Set sslrootcert in the connection string, or another sslmode.",
        )
    files = (root, certificate, key, crl)
    return _context(
        dsn.sslmode == "verify-full", dsn.sslrootcert == "system", files, tuple(map(_stamp, files))
    )


def server_name(dsn: Dsn) -> str | None:
    """The name for SNI and for the check of the certificate."""
    return dsn.host if dsn.sslsni else None


def _path(given: str | None, default: str) -> Path:
    return Path(given) if given else (_DIRECTORY / default).expanduser()


def _named(given: str | None, default: str) -> Path | None:
    """A file that exists, or None: as in libpq one that is missing counts as not given."""
    path = _path(given, default)
    return path if path.is_file() else None


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    state = os.stat(path)
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=64)
def _context(
    full: bool, system: bool, files: tuple[Path | None, ...], _stamps: tuple[tuple[int, int] | None, ...]
) -> ssl.SSLContext:
    root, certificate, key, crl = files
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols([ALPN])
    made.check_hostname = full
    made.verify_mode = ssl.CERT_REQUIRED if system or root is not None else ssl.CERT_NONE
    reading = root
    try:
        if system:
            made.load_default_certs()
        elif root is not None:
            made.load_verify_locations(root)
            if crl is not None:
                reading = crl
                made.load_verify_locations(crl)
                made.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
        if certificate is not None:
            reading = certificate
            # Without the callback an encrypted key would be asked for on the terminal.
            made.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as exc:
        raise ServerUnavailable(
            "08001",
            f"cannot use {reading}: {getattr(exc, 'strerror', None) or exc}",
            hint="Correct sslrootcert, sslcert, sslkey or sslcrl in the connection string.",
        ) from exc
    return made
