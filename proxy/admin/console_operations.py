"""What the console does to the running sidecar.

Contract: :meth:`Operations.carry_out` returns when the command has taken effect, or raises ConsoleError with what to
do. Cancelled while it waits, PAUSE is as if it had not been given: nobody would know of a pause that came later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from proxy.admin.console import Done
from proxy.admin.console_commands import ConsoleError, Operate
from proxy.admin.console_tables import description
from proxy.admin.view import ReloadView
from proxy.server.database import DatabaseRuntime
from proxy.server.sidecar import Sidecar

log = structlog.get_logger(__name__)


class Operations:
    """See the module's docstring. ``reload`` is the reloader's, ``stop`` begins the shutdown that SIGTERM begins."""

    def __init__(self, sidecar: Sidecar, reload: Callable[[], ReloadView], stop: Callable[[], None]) -> None:
        self._sidecar = sidecar
        self._reload = reload
        self._stop = stop

    async def carry_out(self, command: Operate) -> Done:
        """Do it; raises ConsoleError."""
        log.info("console command", command=command.operation, argument=command.argument)
        match command.operation:
            case "RELOAD":
                return self._reloaded()
            case "SHUTDOWN":
                # The answer first: the shutdown ends this connection too.
                asyncio.get_running_loop().call_soon(self._stop)
            case "KILL_CLIENT":
                self._kill_client(command.argument or "")
            case "PAUSE":
                await self._pause(self._databases(command.argument))
            case "RESUME":
                for database in self._databases(command.argument):
                    database.resume()
            case "RECONNECT":
                for database in self._databases(command.argument):
                    database.reconnect()
            case "KILL":
                for database in self._databases(command.argument):
                    self._kill(database)
        return Done(command.operation)

    def _databases(self, name: str | None) -> Sequence[DatabaseRuntime]:
        if name is None:
            return list(self._sidecar.databases.values())
        database = self._sidecar.databases.get(name)
        if database is None:
            raise ConsoleError(
                "3D000",
                f'database "{name}" is not configured',
                hint=f"This sidecar serves: {', '.join(sorted(self._sidecar.databases))}.",
            )
        return [database]

    async def _pause(self, databases: Sequence[DatabaseRuntime]) -> None:
        already = [database for database in databases if database.paused]
        try:
            paused = await asyncio.gather(*(database.pause() for database in databases))
        except asyncio.CancelledError:
            for database in databases:
                if database not in already:
                    database.resume()
            raise
        if not all(paused):
            raise ConsoleError("57014", "PAUSE was ended by RESUME on another connection")

    def _kill(self, database: DatabaseRuntime) -> None:
        for client in self._sidecar.clients():
            if client.database is database:
                client.fail("57P01", "terminating connection due to administrator command")
        database.kill()

    def _kill_client(self, argument: str) -> None:
        number = argument.removeprefix("c")
        if not number.isdecimal():
            raise ConsoleError("22023", f'"{argument}" is no client id', hint="SHOW CLIENTS has the ids.")
        for client in self._sidecar.clients():
            if description(client).get("id") == int(number):
                client.fail("57P01", "terminating connection due to administrator command")
                return
        raise ConsoleError("42704", f"there is no client {number}", hint="SHOW CLIENTS has the ids.")

    def _reloaded(self) -> Done:
        view = self._reload()
        if view.result == "rejected":
            message, _, hint = view.error.partition("\nhint: ")
            raise ConsoleError(
                "F0000", message, hint=hint, detail="The configuration that was in force stays in force."
            )
        waiting = ", ".join(view.pending_restart)
        return Done("RELOAD", (f"these changes need a restart: {waiting}",) if waiting else ())
