"""The sidecar's configuration: one TOML file, overridable from the environment, validated as a whole.

``load`` gives a frozen ``Settings`` or raises ``ConfigError`` with what is wrong, where (the key's path) and
what to do; it never gives a half-valid configuration. Environment variables are named after the path:
``DUALWIRE_`` and the parts joined by ``__``, e.g. ``DUALWIRE_LISTEN__ADDRESS`` or
``DUALWIRE_DATABASES__SHOP__PRIMARY``.

What changed between two configurations, and what of it can take effect live, is ``proxy.config_changes``'s.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from proxy.dsn import Dsn
from proxy.dsn import parse as parse_dsn

ENV_PREFIX: Final = "DUALWIRE_"
ENV_DELIMITER: Final = "__"
CONSOLE_DATABASE: Final = "dualwire"
"""The database name under which clients reach the admin console."""

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|m|h)\s*")
_SIZES: Final = {"": 1, "B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3}
_SIZE: Final = re.compile(r"\s*(\d+)\s*(B|kB|MB|GB|)\s*")


class ConfigError(Exception):
    """A configuration that cannot be used: ``message`` says what and where, ``hint`` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        self.message = message
        self.hint = hint


def duration(value: Any) -> Any:
    """Seconds from a string with a unit (``500ms``, ``1s``, ``5min``); zero needs none."""
    if isinstance(value, float) and not isinstance(value, bool):
        return value
    if value in (0, "0") and not isinstance(value, bool):
        return 0.0
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f'a duration is a number with a unit, such as "500ms", "1s" or "5min", not {value!r}'
        )
    return float(match[1]) * _UNITS[match[2]]


def size(value: Any) -> Any:
    """Bytes from a number or a string with a unit (``64kB``, ``1GB``)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'a size is a number of bytes or a string such as "64kB" or "1GB", not {value!r}')
    return int(match[1]) * _SIZES[match[2]]


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than zero")
    return value


def _dsn(value: Any) -> Any:
    if isinstance(value, Dsn):
        return value
    if not isinstance(value, str):
        raise ValueError("a connection string must be a string")
    return parse_dsn(value)


def _listed(value: Any) -> Any:
    """A list from the file; from the environment a string, its parts separated by blanks."""
    return value.split() if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(duration), AfterValidator(_positive)]
Delay = Annotated[float, BeforeValidator(duration), Field(ge=0)]
Size = Annotated[int, BeforeValidator(size), Field(gt=0)]
Server = Annotated[Dsn, BeforeValidator(_dsn)]
Servers = Annotated[tuple[Server, ...], BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a TCP host and port, or a unix socket directory and the port in the socket's name."""

    host: str
    port: int

    @property
    def is_unix(self) -> bool:
        """Whether it is a unix socket directory."""
        return self.host.startswith("/")

    @property
    def socket_path(self) -> str:
        """The socket's path, named as PostgreSQL names it; only meaningful where ``is_unix``."""
        return f"{self.host}/.s.PGSQL.{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only processes of this machine can connect."""
        if self.is_unix or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(value: Any) -> Any:
    """``host:port``, ``[v6]:port``, or a unix socket directory (``/run/dualwire``,
    ``/run/dualwire:6432``)."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("an address is host:port or a unix socket directory")
    host, separator, port = value.rpartition(":")
    if value.startswith("/") and not (separator and port.isdecimal()):
        return Address(value.rstrip("/") or "/", 6432)
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"an address is host:port or a unix socket directory, not {value!r}")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


ListenAddress = Annotated[Address, BeforeValidator(address)]


class Section(BaseModel):
    """One table of the file: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Listen(Section):
    """Where clients connect."""

    address: ListenAddress = Address("127.0.0.1", 6432)
    tls: Literal["disable", "allow", "require"] | None = None
    """None: ``allow`` where there is a certificate; see ``tls_mode``."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_min_version: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"

    @property
    def tls_mode(self) -> Literal["disable", "allow", "require"]:
        """Whether clients get TLS: never, if they ask for it, or always (but over a unix socket)."""
        return self.tls or ("disable" if self.tls_cert is None else "allow")

    @model_validator(mode="after")
    def _both_or_none(self) -> Listen:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: set both or neither")
        if self.tls_cert is None and self.tls_mode != "disable":
            raise ValueError(f'tls = "{self.tls_mode}" needs tls_cert and tls_key')
        return self


class Admin(Section):
    """Where /metrics, /healthz, /readyz and /status are served, and who may use the SQL console."""

    address: ListenAddress = Address("127.0.0.1", 9432)
    users: Names = ()
    """Who may do everything on the console."""
    stats_users: Names = ()
    """Who may use SHOW there."""

    @field_validator("address")
    @classmethod
    def _tcp(cls, value: Address) -> Address:
        if value.is_unix:
            raise ValueError("the admin address must be host:port")
        return value


class Auth(Section):
    """How clients log in."""

    method: Literal["scram-sha-256", "trust"] = "scram-sha-256"
    users_file: Path | None = None


class Reads(Section):
    """Which reads go to replicas."""

    replica_percent: int = Field(default=100, ge=0, le=100)
    max_lag: Duration = 1.0
    consistency: Literal["session", "primary", "bounded"] = "session"

    @field_validator("consistency")
    @classmethod
    def _available(cls, value: str) -> str:
        if value == "bounded":
            raise ValueError('consistency "bounded" is not available yet: use "session" or "primary"')
        return value


class DualWrite(Section):
    """Inline mirroring; off leaves it to the guard in the database and is recorded."""

    enabled: bool = True


class Database(Section):
    """One database that clients can connect to, by its name in the file."""

    primary: Server
    replicas: Servers = ()
    pool_mode: Literal["session", "transaction"] = "session"
    schema_version: str = Field(default="auto", min_length=1)
    pool_size: int = Field(default=100, ge=1)
    min_pool_size: int = Field(default=0, ge=0)
    reserve_pool_size: int = Field(default=0, ge=0)
    reserve_pool_timeout: Delay = 5.0
    max_prepared_statements: int = Field(default=200, ge=1)
    """Prepared statements that one server connection keeps, in transaction mode."""
    service: str = ""
    """The name in the sidecar registry; empty stands for host/database, see ``service_name``."""
    reads: Reads = Reads()
    dual_write: DualWrite = DualWrite()

    @model_validator(mode="after")
    def _sizes(self) -> Database:
        if self.min_pool_size > self.pool_size:
            raise ValueError(
                f"min_pool_size ({self.min_pool_size}) is more than pool_size ({self.pool_size})"
            )
        return self

    def service_name(self, database: str) -> str:
        """The configured service, or this machine's name and the database's."""
        return self.service or f"{os.uname().nodename}/{database}"


class Limits(Section):
    """Bounds on clients, waits and messages. A delay of zero means: no such bound."""

    max_clients: int = Field(default=10_000, ge=1)
    max_logins: int = Field(default=2_000, ge=1)
    """Clients at the same time that have not proved yet who they are."""
    query_wait_timeout: Delay = 120.0
    idle_transaction_timeout: Delay = 0.0
    client_idle_timeout: Delay = 0.0
    server_connect_timeout: Duration = 15.0
    server_login_retry: Delay = 15.0
    server_idle_timeout: Delay = 600.0
    server_lifetime: Duration = 3600.0
    hold_max: Duration = 2.0
    client_login_timeout: Duration = 60.0
    max_packet: Size = 1024**3
    shutdown_timeout: Delay = 10.0


class Log(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(BaseSettings):
    """The whole configuration. Made by ``load``; frozen."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
    )

    listen: Listen = Listen()
    admin: Admin = Admin()
    auth: Auth = Auth()
    databases: dict[str, Database] = Field(min_length=1)
    limits: Limits = Limits()
    log: Log = Log()

    @model_validator(mode="after")
    def _login(self) -> Settings:
        if self.auth.method == "trust" and not self.listen.address.is_local:
            raise ValueError(
                f'auth.method "trust" lets anyone in: it needs a loopback or unix socket listen.address, '
                f"not {self.listen.address}"
            )
        if self.auth.method == "scram-sha-256" and self.auth.users_file is None:
            raise ValueError('auth.method "scram-sha-256" needs auth.users_file')
        return self

    @field_validator("databases")
    @classmethod
    def _names(cls, value: dict[str, Database], info: ValidationInfo) -> dict[str, Database]:
        if CONSOLE_DATABASE in value:
            raise ValueError(f'the name "{CONSOLE_DATABASE}" is reserved for the admin console')
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over the file, and nothing else (no .env, no secrets directory)."""
        return (_Environment(settings_cls, init_settings()), init_settings)


class _Environment(PydanticBaseSettingsSource):
    """Variables ``DUALWIRE_SECTION__KEY``, as strings under their path; validation turns them into values.

    The stock source drops variables whose path is unknown; here they reach validation and are refused by
    name, as in the file. Database names are matched with the file's without regard to case.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        databases = file.get("databases")
        self._databases = {
            name.lower(): name for name in (databases if isinstance(databases, Mapping) else ())
        }

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Required by the base class; ``__call__`` reads whole paths instead."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in os.environ.items():
            # Every key of the file stands in a section, so a variable without the delimiter is no key.
            if not name.startswith(ENV_PREFIX) or ENV_DELIMITER not in name:
                continue
            path = [part.lower() for part in name.removeprefix(ENV_PREFIX).split(ENV_DELIMITER)]
            if path[0] == "databases" and len(path) > 1:
                path[1] = self._databases.get(path[1], path[1])
            section = found
            for part in path[:-1]:
                section = section.setdefault(part, {})
                if not isinstance(section, dict):
                    raise ConfigError(f"the variable {name} names a key below {part}, which is no section")
            section[path[-1]] = value
        return found


def load(path: Path) -> Settings:
    """The settings of a file with the environment's overrides; ConfigError says what to do where it is wrong.

    Relative paths in it are relative to the file's directory. The users file is not read here, see
    ``proxy.config_users``.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}",
            "give its path with --config; config/dualwire.toml in the source is a commented sample",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}", "correct the line named") from error
    try:
        settings = Settings(**raw)
    except ValidationError as error:
        raise _explain(error, path) from error
    return _with_absolute_paths(settings, path.absolute().parent)


def _with_absolute_paths(settings: Settings, base: Path) -> Settings:
    listen, auth = settings.listen, settings.auth
    for path in (listen.tls_cert, listen.tls_key):
        if path is not None and not (base / path).is_file():
            raise ConfigError(
                f"listen: the file {base / path} does not exist", "correct tls_cert and tls_key"
            )
    return settings.model_copy(
        update={
            "listen": listen.model_copy(
                update={
                    "tls_cert": listen.tls_cert and base / listen.tls_cert,
                    "tls_key": listen.tls_key and base / listen.tls_key,
                }
            ),
            "auth": auth.model_copy(update={"users_file": auth.users_file and base / auth.users_file}),
        }
    )


def _explain(error: ValidationError, path: Path) -> ConfigError:
    """One ConfigError for all that validation found; its hint belongs to the first."""
    messages: list[str] = []
    hint = ""
    # An unknown key first: it is often the misspelt one that another message misses.
    for found in sorted(
        error.errors(include_url=False, include_input=False), key=lambda e: e["type"] != "extra_forbidden"
    ):
        where = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            messages.append(f"unknown key {where}")
            hint = hint or _nearest(found["loc"])
        elif found["type"] == "missing":
            messages.append(f"missing key {where}")
            hint = hint or f"add {where}; config/dualwire.toml in the source is a commented sample"
        else:
            text = found["msg"].removeprefix("Value error, ")
            messages.append(f"{where}: {text}" if where else text)
            hint = hint or "correct it in the file, or in the environment if a DUALWIRE_ variable sets it"
    return ConfigError(f"{path}: " + "; ".join(messages), hint)


def _nearest(location: tuple[int | str, ...]) -> str:
    known = _keys(location[:-1])
    prefix = ".".join(str(part) for part in location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {prefix + '.' if prefix else ''}{near[0]}?"
    return f"known keys {'of ' + prefix if prefix else 'at the top'}: {', '.join(sorted(known))}"


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at that path may have."""
    kind: Any = Settings
    for part in location:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = kind.model_fields[str(part)].annotation
    return list(kind.model_fields)
