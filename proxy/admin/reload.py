"""Reload of the configuration: on SIGHUP, or when the file, the users file or the certificate changes.

Contract: a reload either takes effect as a whole or not at all. What does not validate is logged and shown in
``/status``, and the old configuration stays in force; keys that cannot change while the process runs keep
their old values, are named, and the others take effect. Several changes within a moment are one reload.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog
from watchfiles import awatch

from proxy.admin.view import ReloadResult, ReloadView
from proxy.config import ConfigError, Settings, load
from proxy.config_changes import diff, keep_restart_keys
from proxy.config_users import User, load_users
from proxy.server.tls import fingerprint, server_context

DEBOUNCE_SECONDS: Final = 0.3
# A file system that cannot tell of changes (NFS, some container mounts) is asked this often.
POLL_SECONDS: Final = 5.0

Users = Mapping[str, User]
Signature = tuple[bytes | None, ...]
Apply = Callable[[Settings, Users], None]


def read(path: Path) -> tuple[Settings, Users]:
    """The settings of a file and the users that they name; ConfigError if they or the certificate cannot be used."""
    settings = load(path)
    server_context(settings.listen)
    users_file = settings.auth.users_file
    return settings, {} if users_file is None else load_users(users_file)


class Reloader:
    """Keeps the configuration in force in step with its files, from ``start`` to ``stop``.

    ``apply`` is called with settings of which only keys that may change live differ from those in force, and
    with the users. It must not fail.
    """

    def __init__(self, path: Path, settings: Settings, users: Users, apply: Apply) -> None:
        self._path = path
        self._settings = settings
        self._users = users
        self._certificate = fingerprint(settings.listen)
        self._apply = apply
        self._log = structlog.get_logger("dualwire.reload")
        self._view = ReloadView()
        self._totals: Counter[str] = Counter()
        self._requested = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    def view(self) -> ReloadView:
        """The outcome of the last reload."""
        return self._view

    def start(self) -> None:
        """Begin to listen to SIGHUP and to watch the files; needs a running event loop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.request)
        self._tasks = [
            loop.create_task(self._serve(), name="reload"),
            loop.create_task(self._watch(), name="reload watch"),
        ]

    async def stop(self) -> None:
        """End the watch and the handler."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def request(self) -> None:
        """Ask for a reload; it happens within a moment, together with others asked for in it."""
        self._requested.set()

    def reload(self) -> ReloadView:
        """Read, validate and apply now."""
        try:
            settings, users = read(self._path)
        except ConfigError as error:
            self._log.error("configuration rejected, the old one stays", error=error.message, hint=error.hint)
            return self._finish("rejected", error=str(error))
        changes = diff(self._settings, settings)
        waiting = tuple(change.path for change in changes if not change.live)
        live = tuple(change.path for change in changes if change.live)
        effective = keep_restart_keys(self._settings, settings)
        if effective.auth.users_file != settings.auth.users_file:
            users = self._users
        if waiting:
            self._log.warning("these changes need a restart", keys=list(waiting))
        certificate = fingerprint(effective.listen)
        if not live and users == self._users and certificate == self._certificate:
            return self._finish("unchanged", waiting=waiting)
        self._apply(effective, users)
        self._settings, self._users, self._certificate = effective, users, certificate
        self._log.info("configuration reloaded", keys=list(live))
        return self._finish("applied", waiting=waiting)

    def _finish(
        self, result: ReloadResult, error: str = "", waiting: tuple[str, ...] | None = None
    ) -> ReloadView:
        self._totals[result] += 1
        self._view = ReloadView(
            at=time.time(),
            result=result,
            error=error,
            pending_restart=self._view.pending_restart if waiting is None else waiting,
            totals=dict(self._totals),
        )
        return self._view

    async def _serve(self) -> None:
        while True:
            await self._requested.wait()
            await asyncio.sleep(DEBOUNCE_SECONDS)
            self._requested.clear()
            self.reload()

    async def _watch(self) -> None:
        seen = _signature(self._files())
        while True:
            directories = {path.parent for path in self._files()}
            try:
                # Directories, because editors and Kubernetes replace a file by renaming another (or a
                # symlink); contents are compared, because a directory tells of every other file in it too.
                async for _changes in awatch(
                    *directories,
                    watch_filter=None,
                    recursive=False,
                    rust_timeout=int(POLL_SECONDS * 1000),
                    yield_on_timeout=True,
                ):
                    seen = self._compare(seen)
                    if directories != {path.parent for path in self._files()}:
                        break
            except (OSError, RuntimeError) as error:
                # Out of inotify watches, or the directory is gone: asking now and then still works.
                self._log.debug("files cannot be watched, polling", error=str(error))
                await asyncio.sleep(POLL_SECONDS)
                seen = self._compare(seen)

    def _compare(self, seen: Signature) -> Signature:
        now = _signature(self._files())
        if now != seen:
            self.request()
        return now

    def _files(self) -> tuple[Path, ...]:
        listen = self._settings.listen
        named = (self._settings.auth.users_file, listen.tls_cert, listen.tls_key)
        return (self._path, *(path for path in named if path is not None))


def _signature(files: tuple[Path, ...]) -> Signature:
    """The files' contents in short; a file that cannot be read has none."""
    found: list[bytes | None] = []
    for path in files:
        try:
            found.append(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            found.append(None)
    return tuple(found)
