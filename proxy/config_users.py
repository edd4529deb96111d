"""The users file: ``"name" "secret"`` a line, the format that PgBouncer's users have.

A secret is a SCRAM verifier as ``pg_authid.rolpassword`` holds it, or a plain password. MD5 hashes are
refused when the file is read, because no client could log in with one. Messages name the line, never a
secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scramp import ScramException

from proxy.config import ConfigError
from proxy.wire.scram import Verifier

_LINE: Final = re.compile(r'\s*"((?:[^"]|"")*)"\s+"((?:[^"]|"")*)"\s*(?:[;#].*)?')
_SCRAM: Final = "SCRAM-SHA-256$"
_MD5: Final = re.compile(r"md5[0-9a-f]{32}")
_FORMAT_HINT: Final = (
    'each line is "name" "SCRAM-SHA-256$..." (from pg_authid.rolpassword) or "name" "password"'
)


@dataclass(frozen=True, slots=True)
class User:
    """One line of the users file; equal to another if the file says the same."""

    name: str
    secret: str = field(repr=False)
    """As in the file: a verifier or a plain password."""
    verifier: Verifier = field(repr=False, compare=False)
    """What a client is checked against; made with a fresh salt where the file holds a plain password."""

    @property
    def password(self) -> str | None:
        """The plain password, where the file holds one."""
        return None if self.secret.startswith(_SCRAM) else self.secret


def load_users(path: Path) -> Mapping[str, User]:
    """The users of a file by name; ConfigError names the file, the line and what to do."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the users file {path}: {error.strerror}",
            "correct auth.users_file in the configuration",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the users file {path} is not UTF-8", _FORMAT_HINT) from error
    return parse_users(text, str(path))


def parse_users(text: str, source: str = "users file") -> Mapping[str, User]:
    """The users that a text lists; blank lines and lines that start with ``;`` or ``#`` are skipped."""
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{source}, line {number}"
        if not line.strip() or line.lstrip()[0] in ";#":
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{where}: not a user", _FORMAT_HINT)
        name, secret = (part.replace('""', '"') for part in match.groups())
        if not name:
            raise ConfigError(f"{where}: the name is empty", _FORMAT_HINT)
        if name in users:
            raise ConfigError(f'{where}: the user "{name}" is listed twice', "remove one of the lines")
        users[name] = _user(name, secret, where)
    return users


def _user(name: str, secret: str, where: str) -> User:
    if not secret:
        raise ConfigError(f'{where}: the secret of "{name}" is empty', _FORMAT_HINT)
    if _MD5.fullmatch(secret):
        raise ConfigError(
            f'{where}: the secret of "{name}" is an MD5 hash, which SCRAM cannot check',
            "set password_encryption = scram-sha-256 on the server, set the password anew, copy its verifier",
        )
    try:
        if secret.startswith(_SCRAM):
            return User(name, secret, Verifier.parse(secret))
        return User(name, secret, Verifier.from_password(secret))
    except (ValueError, ScramException) as error:
        raise ConfigError(f'{where}: the secret of "{name}" cannot be used', _FORMAT_HINT) from error
