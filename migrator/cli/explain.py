"""``dualwire explain``: how statements would be treated, by whom, and why. Changes nothing.

Which version speaks, and what is published, comes from the database (``--dsn``), from a sidecar's own configuration
(``--config``), or from a running sidecar (``--sidecar``); with ``--migration`` it is the state which that migration
would publish at ``--phase``, so that its effect on the statements of an application can be seen before it is started.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import quote, urlencode

import asyncpg
import typer

from migrator import engine, explanation
from migrator.cli import options as opt
from migrator.cli.output import Format, perform, show
from migrator.control import publish, store
from migrator.errors import NotObtained, Refused, Usage
from migrator.explanation import Document
from migrator.foresight import foreseen
from migrator.spec import load
from migrator.sqltext import ident, literal
from proxy import config
from proxy.control.routing import Phase, Routing
from proxy.dsn import Dsn
from proxy.rewrite.model import Side
from proxy.rewrite.plan import Refusal

PHASES = ("prepared", "expanded", "verified", "cutover")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)


@dataclass(frozen=True, slots=True)
class Speaker:
    """Whose statements they are."""

    dsn: str | None
    version: str
    dual_write: bool = True
    epoch: tuple[str, int] | None = None
    """What a running sidecar acts under."""


def explain(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(help="The statements; - reads them from stdin.")] = "",
    file: Annotated[Path | None, typer.Option("--file", help="Read the statements from a file.")] = None,
    version: Annotated[
        str, typer.Option("--version", help="The version that the client speaks: a name, old, new or auto.")
    ] = "",
    search_path: Annotated[
        str, typer.Option("--search-path", help="The client's search_path: schemas, with commas between.")
    ] = "public",
    sidecar: Annotated[
        str, typer.Option("--sidecar", help="A running sidecar's admin address: its version is taken.")
    ] = "",
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="A sidecar's configuration: its version and its primary are taken."),
    ] = None,
    database: Annotated[
        str, typer.Option("--database", help="Which database of the sidecar, if it has several.")
    ] = "",
    migration: Annotated[
        Path | None,
        typer.Option("--migration", help="As it would be during this migration, not started yet."),
    ] = None,
    phase: Annotated[
        str, typer.Option("--phase", help=f"With --migration: {', '.join(PHASES)}.")
    ] = "verified",
    check: Annotated[
        bool, typer.Option("--check", help="Have the server parse the texts (nothing is executed).")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also the bodies of the functions that are called.")
    ] = False,
    dsn: opt.Dsn = None,
    schema: opt.Schema = "public",
    output: opt.Output = Format.text,
) -> None:
    """How statements would be treated: version, route, rewritten text, guard, reason."""
    if phase not in PHASES:
        raise typer.BadParameter(f"{phase!r} is not one of {', '.join(PHASES)}")
    if check and migration is not None:
        raise typer.BadParameter("--check needs the new shape in the database: leave out --migration")
    if sidecar and config_file is not None:
        raise typer.BadParameter("give --sidecar or --config, not both")
    text = _read(sql, file)
    source = context.get_parameter_source("dsn")
    if config_file is not None and (source is None or source.name != "COMMANDLINE"):
        dsn = None  # what the configuration names goes before the environment

    async def work() -> Document:
        statements = explanation.statements_of(text)
        if not statements:
            raise Usage("give a statement, or - to read from stdin")
        speaker = _speaker(sidecar, config_file, database, dsn, version)
        path = tuple(name.strip().strip('"') for name in search_path.split(",") if name.strip())
        async with engine.reading(speaker.dsn) as conn:
            routing = await publish.current(conn)
            notes = _notes(routing, speaker)
            bodies: dict[str, str] = {}
            if migration is not None:
                routing, bodies = await _during(conn, migration, cast(Phase, phase), schema)
            side = _side(routing, speaker.version)
            state = f"{migration.stem} would be at {phase}" if migration is not None else ""
            documents = [
                {
                    **explanation.explain(routing, side, one, path, speaker.dual_write),
                    "phase": routing.phase,
                    "migration": routing.migration,
                    "state": state,
                }
                for one in statements
            ]
            for document in documents:
                document["check"] = await checked(conn, document, path) if check else None
            found = explanation.functions_of(documents) if verbose else []
            called = {name: bodies[name] for name in found if name in bodies}
            called |= await _functions(conn, [name for name in found if name not in bodies])
        whole = documents[0] if len(documents) == 1 else {"statements": documents}
        return {**whole, "notes": notes, "functions": called}

    document = perform(work(), output)
    show(document, _as_text(document), output)


def _read(sql: str, file: Path | None) -> str:
    if file is not None and sql:
        raise typer.BadParameter("give a statement or --file, not both")
    if file is not None and str(file) != "-":
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"cannot read {file}: {error}") from error
    return sys.stdin.read() if sql == "-" or file is not None else sql


def _as_text(document: Document) -> str:
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    mark = explanation.coloured if colours else explanation.bracketed
    several: Sequence[Document] = document.get("statements") or [document]
    blocks = [f"note: {note}" for note in document["notes"]]
    for number, one in enumerate(several, 1):
        head = f"statement {number}: {one['statement']}\n" if len(several) > 1 else ""
        blocks.append(head + explanation.as_text(one, mark))
    blocks += document["functions"].values()
    return "\n\n".join(blocks)


# -- who speaks ------------------------------------------------------------------------------------------------


def _speaker(sidecar: str, path: Path | None, database: str, dsn: str | None, version: str) -> Speaker:
    if path is not None:
        try:
            settings = config.load(path)
        except config.ConfigError as error:
            raise Usage(f"{path}: {error.message}", hint=error.hint) from error
        name = _one_of(sorted(settings.databases), database)
        chosen = settings.databases[name]
        return Speaker(
            dsn or _uri(chosen.primary),
            version or chosen.schema_version,
            chosen.dual_write.enabled,
        )
    if sidecar:
        found = _status(sidecar)["databases"]
        known = found[_one_of(sorted(found), database)]
        if not dsn:
            raise Usage(
                "a sidecar does not tell the address of its primary",
                hint="Give --dsn too, or the sidecar's --config instead.",
            )
        epoch = (known["routing"]["epoch_id"], known["routing"]["epoch"])
        return Speaker(dsn, version or known["schema_version"], known["dual_write_enabled"], epoch)
    return Speaker(dsn, version or "auto")


def _uri(dsn: Dsn) -> str:
    given = {
        "sslmode": dsn.sslmode,
        "sslrootcert": dsn.sslrootcert,
        "sslcert": dsn.sslcert,
        "sslkey": dsn.sslkey,
    }
    password = dsn.password_or_default()
    where = f"{quote(dsn.user, safe='')}{'' if password is None else ':' + quote(password, safe='')}@"
    if dsn.is_unix:
        given |= {"host": dsn.host, "port": str(dsn.port)}
    else:
        host = f"[{dsn.host}]" if ":" in dsn.host else dsn.host
        where += f"{host}:{dsn.port}"
    options = urlencode({key: value for key, value in given.items() if value})
    return f"postgresql://{where}/{quote(dsn.database, safe='')}?{options}"


def _one_of(names: list[str], wanted: str) -> str:
    if wanted in names:
        return wanted
    if wanted or len(names) != 1:
        raise Usage(f"choose a database of the sidecar with --database: {', '.join(names)}")
    return names[0]


def _status(address: str) -> dict[str, Any]:
    url = address if "://" in address else f"http://{address}"
    if not url.startswith(("http://", "https://")):
        raise Usage(f"{address} is not an http address")
    url = url.rstrip("/").removesuffix("/status") + "/status"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
            return status
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise NotObtained(f"cannot ask the sidecar at {url}: {error}") from error


def _notes(routing: Routing, speaker: Speaker) -> list[str]:
    notes = []
    if speaker.epoch is not None and speaker.epoch != (routing.epoch_id, routing.epoch):
        notes.append(
            f"the sidecar acts under epoch {speaker.epoch[1]}, the database has published {routing.epoch}"
        )
    if not speaker.dual_write:
        notes.append("dual writes are switched off in this sidecar: the guard does them")
    return notes


def _side(routing: Routing, version: str) -> Side:
    if version in ("old", "new"):
        version = routing.version(cast(Side, version))
    side = routing.resolve(version, 1)
    if isinstance(side, Refusal):
        raise Refused(side.message, sqlstate=side.sqlstate, detail=side.detail, hint=side.hint)
    return side


async def _during(
    conn: asyncpg.Connection, path: Path, phase: Phase, schema: str
) -> tuple[Routing, dict[str, str]]:
    """What a migration would publish, and the bodies of its functions."""
    migration = load(path)
    active = await store.active(conn)
    if active is not None:
        raise Refused(
            f"migration {active.name} is under way (phase {active.phase})",
            hint="Leave out --migration to see its present state.",
        )
    design = await engine.design_of(conn, migration, schema)
    engine.refuse_errors(design)
    return await foreseen(conn, await publish.current(conn), design, phase)


# -- what the server knows -----------------------------------------------------------------------------------


async def _functions(conn: asyncpg.Connection, names: list[str]) -> dict[str, str]:
    rows = await conn.fetch(
        "SELECT proname, pg_get_functiondef(oid) AS body FROM pg_proc"
        " WHERE pronamespace = to_regnamespace('dualwire') AND proname = ANY($1)",
        names,
    )
    return {row["proname"]: row["body"] for row in rows}


async def checked(conn: asyncpg.Connection, document: Document, path: tuple[str, ...]) -> Document:
    """Have the server parse the texts, in the order in which a sidecar does: nothing is executed."""
    nothing: Document = {"sends": None, "of": "", "error": None, "parameters": [], "why": ""}
    if document["refusal"]:
        return {**nothing, "why": "the statement is refused"}
    fallback = document["fallback"]["text"] if document["fallback"] else document["statement"]
    original = document["twin"] or (fallback if document["rewritten"] else document["text"])
    transaction = conn.transaction()
    await transaction.start()
    try:
        await conn.execute(f"SELECT set_config('search_path', {_listed(path)}, true)")
        types, error = await _prepared(conn, original, [])
        if error is not None and error["sqlstate"] == "42601" and document["kind"] not in ("read", "write"):
            return {
                **nothing,
                "why": "only SELECT, INSERT, UPDATE, DELETE, MERGE and VALUES can be parsed alone",
            }
        if error is not None:
            return {**nothing, "of": "the client's text", "error": error}
        sends = "the text"
        if document["rewritten"]:
            _, error = await _prepared(conn, document["rewritten"], types)
            sends = "the rewritten text"
            if error is not None and document["fallback"] is None:
                return {**nothing, "of": "the rewritten text", "error": error}
            if error is not None:
                sends = f"the fallback (of the rewritten text the server says {error['message']})"
        return {**nothing, "sends": sends, "parameters": types}
    finally:
        await transaction.rollback()


def _listed(path: tuple[str, ...]) -> str:
    return literal(", ".join(map(ident, path)))


async def _prepared(
    conn: asyncpg.Connection, text: str, types: list[str]
) -> tuple[list[str], dict[str, str] | None]:
    """The parameter types that the server finds in a text, or what it has against it."""
    listed = f" ({', '.join(types)})" if types else ""
    try:
        async with conn.transaction():
            await conn.execute(f"PREPARE dualwire_explain{listed} AS {text}")
            found = await conn.fetchval(
                "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'dualwire_explain'"
            )
            await conn.execute("DEALLOCATE dualwire_explain")
            return list(found or []), None
    except asyncpg.PostgresError as error:
        return [], {"sqlstate": error.sqlstate or "", "message": str(error)}
