"""Runs programs on three sides: a migrating database behind a sidecar, and a plain database of either version.

``World`` is set up once for a number of combinations: databases, the migrator's work, one sidecar. ``Scene`` is one
combination; its ``run`` plays one program and says what was different.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from migrator.cluster import Cluster
from migrator.control import store
from migrator.database import connect
from migrator.design import Design
from migrator.errors import DualwireError
from migrator.sqltext import ident
from proxy.control.routing import from_document
from proxy.rewrite.planner import Planner
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.migrator.conftest import Migrator
from tests.oracle.compare import Names, differences, told, unsorted_copy
from tests.oracle.known import known
from tests.oracle.refusals import allowed
from tests.oracle.schemas import NOTES, TYPES, Combo, quoted
from tests.oracle.state import State, functions
from tests.oracle.steps import Batch, CopyIn, Mixed, Program, Query, Step
from tests.oracle.wire import Client, Heard, Lost, error, rows

TEMPLATE = "oracle_types"
COUNTED = (
    (r'dualwire_rewrites_total\{.*reason="(\w+)"', "plan {}"),
    (r'dualwire_refusals_total\{.*reason="(\w+)"', "plan {}"),
    (r"dualwire_mirrored_statements_total", "mirrored"),
    (r"dualwire_guarded_statements_total", "guarded"),
    (r"dualwire_guard_fallbacks_total", "fallbacks"),
    (r"dualwire_mirror_failures_total", "mirror_f"),
    (r"dualwire_tables_handed_to_guard", "tables handed to the guard"),
)
"""Metrics of the sidecar, and what they are called in the report."""


INTERNAL = re.compile(r"^XX|^0A000|dualwire")
"""What no client may ever be told: bugs, refusals that are not listed, names of ours."""


class Rejected(Exception):
    """The migrator does not take this combination."""


@dataclass
class Outcome:
    """What a program gave."""

    differences: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    steps: int = 0
    waived: int = 0
    failed: int = 0
    """Steps that failed on both sides."""


def sql(client: Client, text: str) -> list[tuple[str | None, ...]]:
    """Runs SQL of ours; an error is an error of the oracle."""
    heard = client.ask(Query(text).frames())
    wrong = error(heard)
    if wrong is not None:
        raise AssertionError(f"{wrong['C']} {wrong['M']}\nin {text}")
    return rows(heard)


class Scene:
    """One combination, set up."""

    def __init__(self, cluster: Cluster, combo: Combo, prefix: str) -> None:
        self.cluster = cluster
        self.combo = combo
        self.databases = {side: f"{prefix}_{side}" for side in ("both", "old", "new")}
        self.clients: dict[tuple[str, str], Client] = {}
        self.proxy: Sidecar | None = None
        self.tables = {t.name: t for t in combo.tables}
        self.not_null = {
            side: frozenset(
                c.name for t in combo.tables for c in t.columns(side) if c.not_null or c.name in t.key
            )
            for side in ("old", "new")
        }

    # -- setting up --------------------------------------------------------------------------------------------

    def dsn(self, side: str) -> str:
        """Past the sidecar."""
        return self.cluster.primary.dsn(database=self.databases[side])

    def make(self, directory: Path) -> None:
        """The databases, and the migration up to where both versions are served."""
        for name in self.databases.values():
            self.cluster.primary.sql(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        for side, shape in (("both", "old"), ("old", "old"), ("new", "new")):
            sql(self.direct(side), "; ".join([NOTES, *self.combo.ddl(shape)]))
        for side in ("both", "old"):
            sql(self.direct(side), "; ".join(["SELECT", *self.combo.seeds]))
        path = directory / "0001_oracle.json"
        path.write_text(self.combo.migration)
        try:
            self.design = asyncio.run(self._migrate(path, directory))
        except DualwireError as refused:
            raise Rejected(f"{refused} {refused.hint or ''}") from refused
        self.designs = {t.name: t for t in self.design.tables}
        self.waived = {
            name
            for table in self.design.tables
            for mirror in table.down.mirrors
            if mirror.keeps
            for name, physical in [*table.old, *table.new]
            if physical in (mirror.target, *mirror.value.sources)
        }
        self.state = State(self.combo, self.designs, self.physical)
        self._seed()

    async def _migrate(self, path: Path, directory: Path) -> Design:
        migrator = Migrator(self.dsn("both"), directory)
        await migrator.init()
        outcome = await migrator.start(path, "backfilled")
        conn = await connect(self.dsn("both"))
        try:
            # Problems among the first rows are wanted; only a clean verification would serve the new version.
            await conn.execute("SET search_path = public")
            row = await store.active(conn)
            assert row is not None, outcome
            await conn.execute("CREATE SCHEMA seed; CREATE TABLE seed.problem AS TABLE dualwire.problem")
            for table in self.combo.tables:
                await conn.execute(f"CREATE TABLE seed.{table.name} AS TABLE {table.name}")
            await conn.execute(f"TRUNCATE {', '.join(self.tables)}")
            await conn.execute("DELETE FROM dualwire.problem")
        finally:
            await conn.close()
        await migrator.start(path, "verified")
        return row.design

    def _seed(self) -> None:
        """What every program begins with, on each side."""
        both = self.direct("both")
        sql(
            self.direct("old"),
            "CREATE SCHEMA seed"
            + "".join(f"; CREATE TABLE seed.{name} AS TABLE {name}" for name in self.tables),
        )
        new = self.direct("new")
        sql(new, "CREATE SCHEMA seed")
        for name in self.tables:
            wanted = ", ".join(f"{p} AS {quoted(n)}" for n, p in self.physical(name, "new"))
            sql(new, f"CREATE TABLE seed.{name} AS TABLE {name}")
            lines = both.ask(Query(f"COPY (SELECT {wanted} FROM seed.{name}) TO STDOUT").frames())
            data = tuple(h.content for h in lines if h.kind == "d")
            heard = new.ask(CopyIn(f"COPY seed.{name} FROM STDIN", data).frames())
            assert error(heard) is None, error(heard)
        for side in ("old", "new"):
            sql(self.direct(side), "; ".join(["SELECT", *functions(self.combo, side)]))
        self.resets = {
            (base, side): self._reset_text(base, side) for side in ("old", "new") for base in ("both", side)
        }
        self.names = {side: self._names(side) for side in ("both", "old", "new")}

    def physical(self, table: str, side: str) -> list[tuple[str, str]]:
        """(logical name, physical column as SQL) of a version in the migrating database."""
        design = self.designs.get(table)
        if design is None:
            return [(c.name, quoted(c.name)) for c in self.tables[table].columns(side)]
        return [(n, ident(p)) for n, p in (design.old if side == "old" else design.new)]

    def _reset_text(self, base: str, side: str) -> str:
        """What makes a database as every program of a version finds it.

        Rows that cannot be carried over are there for old speakers only: a database of the new shape cannot hold them.
        """
        client = self.direct(base)
        texts = ["BEGIN", "SET LOCAL session_replication_role = 'replica'"]
        texts.append(f"TRUNCATE {', '.join([*self.tables, 'notes'])}")
        texts.append(NOTES)
        for name in self.tables:
            columns = sql(
                client,
                "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute"
                f" WHERE attrelid = '{name}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
            )[0][0]
            texts.append(
                f"INSERT INTO {name} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM seed.{name}"
                + (self._without_problems(name) if side == "new" else "")
            )
        for (sequence,) in sql(
            client,
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S'"
            " AND relnamespace = 'public'::regnamespace",
        ):
            texts.append(f"SELECT setval('{sequence}', 101, false)")
        if base == "both":
            texts.append("DELETE FROM dualwire.problem")
            if side == "old":
                texts.append("INSERT INTO dualwire.problem SELECT * FROM seed.problem")
        return "; ".join([*texts, "COMMIT"])

    def _without_problems(self, table: str) -> str:
        wanted = f"SELECT key->>'id' FROM seed.problem WHERE table_name = 'public.{table}'"
        keys = [str(k) for (k,) in sql(self.direct("both"), wanted)]
        parts = [f"id NOT IN ({', '.join(keys)})"] if keys else []
        if any(c.name == "parent_id" for c in self.tables[table].columns("new")):
            parents = self._without_problems(self.combo.tables[0].name)
            parts.append(f"(parent_id IS NULL OR parent_id IN (SELECT id FROM seed.item{parents}))")
        return f" WHERE {' AND '.join(parts)}" if parts else ""

    def _names(self, side: str) -> dict[str, Names]:
        client = self.direct(side)
        types = {
            int(o or 0): str(n)
            for o, n in sql(client, "SELECT oid, format_type(oid, -1) FROM pg_type WHERE oid >= 16384")
        }
        tables = {
            int(o or 0): str(n)
            for o, n in sql(client, "SELECT oid, relname FROM pg_class WHERE oid >= 16384")
        }
        found = {}
        for version in ("old", "new"):
            logical = {}
            for table in self.tables:
                back = {p: n for n, p in self.physical(table, version)} if side == "both" else {}
                for oid, number, column in sql(
                    client,
                    f"SELECT attrelid, attnum, attname"
                    f" FROM pg_attribute WHERE attrelid = '{table}'::regclass",
                ):
                    logical[int(oid or 0), int(number or 0)] = back.get(ident(str(column)), str(column))
            found[version] = Names(types, tables, logical)
        return found

    # -- clients -----------------------------------------------------------------------------------------------

    def direct(self, side: str) -> Client:
        """A superuser past the sidecar."""
        if ("direct", side) not in self.clients:
            self.clients["direct", side] = Client(self.dsn(side))
        return self.clients["direct", side]

    def speaker(self, side: str) -> Client:
        """The client of the sidecar that speaks a version."""
        if ("sidecar", side) not in self.clients:
            assert self.proxy is not None
            version = "base" if side == "old" else "0001_oracle"
            dsn = self.proxy.dsn(database=self.databases["both"])
            self.clients["sidecar", side] = Client(dsn, f"-c dualwire.version={version}")
        return self.clients["sidecar", side]

    def plain(self, side: str) -> Client:
        """The client of the plain database of a version."""
        if ("plain", side) not in self.clients:
            self.clients["plain", side] = Client(self.dsn(side))
        return self.clients["plain", side]

    def close(self) -> None:
        """Everybody leaves."""
        for client in self.clients.values():
            with contextlib.suppress(OSError):
                client.close()
        self.clients.clear()

    # -- programs ----------------------------------------------------------------------------------------------

    def run(self, program: Program) -> Outcome:
        """Plays a program on both sides and compares everything."""
        outcome = Outcome()
        side = program.speaker
        try:
            sql(self.direct("both"), self.resets["both", side])
            sql(self.direct(side), self.resets[side, side])
            for step in program.steps:
                if not self._step(step, program, outcome):
                    break
            for client in (self.speaker(side), self.plain(side)):
                client.ask(Query("ROLLBACK").frames())
                client.ask(Query("DISCARD ALL").frames())
            if not (outcome.differences or outcome.known or outcome.waived):
                found = self.state.differences(
                    side, partial(sql, self.direct("both")), partial(sql, self.direct(side))
                )
                for text in found:
                    name = known(str(program), text)
                    (outcome.known if name else outcome.differences).append(name or text)
        except Lost as lost:
            activity = self._activity()
            self.close()
            raise AssertionError(f"{lost}\n{program}\n{activity}") from lost
        except BaseException:
            self.close()
            raise
        if outcome.differences or outcome.known or outcome.waived:
            self.close()
        return outcome

    def _activity(self) -> str:
        """Who waits for whom in the migrating database."""
        wanted = (
            "SELECT pid, application_name, state, wait_event_type, wait_event, pg_blocking_pids(pid), query"
            " FROM pg_stat_activity WHERE datname = current_database()"
        )
        client = Client(self.dsn("both"))
        try:
            return "\n".join(map(str, sql(client, wanted)))
        finally:
            client.close()

    def run_mixed(self, mixed: Mixed) -> Outcome:
        """Plays the turns of several clients: every row must be right by its direction, or a listed problem."""
        outcome = Outcome()
        past = self.direct("both")
        sql(past, self.resets["both", "old"])
        for who, step in mixed.turns:
            client = past if who == "past" else self.speaker(who)
            heard = client.ask(step.frames())
            outcome.steps += 1
            wrong = error(heard)
            outcome.failed += wrong is not None
            told = (
                wrong is not None
                and "dualwire" not in repr(step)
                and INTERNAL.search(f"{wrong['C']} {wrong['M']}")
            )
            if told and who != "past":
                outcome.differences.append(f"{who} {step!r}: {wrong}")
            if heard[-1].content != "I":
                client.ask(Query("ROLLBACK").frames())
        outcome.differences += self.state.right(partial(sql, past))
        for side in ("old", "new"):
            for name in self.tables:
                listed = ", ".join(f"{p} AS {quoted(n)}" for n, p in self.physical(name, side))
                expected = sql(past, f"SELECT {listed} FROM {name} ORDER BY id")
                got = sql(self.speaker(side), f"SELECT * FROM {name} ORDER BY id")
                if got != expected:
                    outcome.differences.append(f"{side} reads {got!r} in {name}, it holds {expected!r}")
        if outcome.differences:
            self.close()
        return outcome

    def _step(self, step: Step, program: Program, outcome: Outcome) -> bool:
        """Whether the program can go on."""
        side = program.speaker
        got = self.speaker(side).ask(step.frames())
        outcome.steps += 1
        wrong = error(got)
        if wrong is not None and wrong["C"] == "0A000" and (reason := allowed(wrong["M"])):
            outcome.refusals.append(reason)
            if isinstance(step, Batch) and len(step.calls) > 1:
                return False
            if got[-1].content == "E":
                self.plain(side).ask(Query("SELECT 1/0").frames())
            return True
        expected = self.plain(side).ask(step.frames())
        outcome.failed += wrong is not None
        found = compared(
            step, got, expected, self.names["both"][side], self.names[side][side], self.not_null[side]
        )
        shown = self._shown(step, program)
        name = next(filter(None, (known(shown, text) for text in found)), None)
        if name is not None:
            outcome.known.append(name)
        elif found and wrong is not None and self._waived(side, wrong):
            outcome.waived += 1
        else:
            outcome.differences += [f"{step!r}: {text}" for text in found]
        return not found

    def _waived(self, side: str, wrong: dict[str, str]) -> bool:
        """`plan` has said that a new speaker cannot write what the NOT NULL column of the old version cannot hold."""
        return side == "new" and wrong["C"] == "23502" and wrong.get("c") in self.waived

    @staticmethod
    def _shown(step: Step, program: Program) -> str:
        """A step with the texts of the statements that it names."""
        parts = [repr(step)]
        for other in program.steps:
            if isinstance(step, Query) and isinstance(other, Query) and other.text.startswith("PREPARE"):
                name = other.text.split()[1]
                parts += [other.text] if step.text == f"EXECUTE {name}" else []
            if isinstance(step, Batch) and isinstance(other, Batch):
                named = {c.name for c in step.calls if c.name and c.text is None}
                parts += [c.text for c in other.calls if c.text is not None and c.name in named]
        return "\n".join(parts)

    def explain(self, program: Program) -> str:
        """The plans of a program's texts, for the report of a failure."""
        [(document,)] = sql(self.direct("both"), "SELECT dualwire.routing_document()")
        tables = from_document(json.loads(str(document))).tables
        planner = Planner(tables, program.speaker)  # type: ignore[arg-type]
        lines = []
        for step in program.steps:
            texts = [c.text for c in step.calls] if isinstance(step, Batch) else [step.text]
            for text in texts:
                if text is not None:
                    plan = planner.plan(text.encode())
                    lines.append(f"{plan.reason}, mirrored {plan.mirrored}: {plan.text.decode()}")
        return "\n".join(lines)


def compared(
    step: Step, got: list[Heard], expected: list[Heard], here: Names, there: Names, not_null: frozenset[str]
) -> list[str]:
    """What differs between two answers to a step."""
    ordered = isinstance(step, Query) and step.ordered
    ordered = ordered or (isinstance(step, Batch) and all(c.ordered for c in step.calls))
    if isinstance(step, CopyIn) and step.fail and error(got) and error(expected):
        return []  # what it fails for depends on how many rows are inserted at once
    text = step.text if isinstance(step, Query) else ""
    if text.startswith("EXPLAIN"):
        kinds = [[h.kind for h in side if h.kind != "D"] for side in (got, expected)]
        return [] if kinds[0] == kinds[1] else [f"got {kinds[0]}, expected {kinds[1]}"]
    if not ordered:
        got, expected = unsorted_copy(got), unsorted_copy(expected)
    return differences(told(got, here, ordered), told(expected, there, ordered), not_null)


class World:
    """All scenes of a run, and the sidecar that serves them."""

    def __init__(self, cluster: Cluster, directory: Path, prefix: str = "oracle") -> None:
        self.cluster = cluster
        self.directory = directory
        self.prefix = prefix
        self.scenes: list[Scene] = []
        self.rejected: list[tuple[Combo, str]] = []
        self.factory: SidecarFactory | None = None
        cluster.primary.sql(f"DROP DATABASE IF EXISTS {TEMPLATE}")
        cluster.create_database(TEMPLATE)
        cluster.primary.sql(TYPES, database=TEMPLATE)

    def add(self, combo: Combo) -> Scene | None:
        """Sets up a combination; None if the migrator refuses it."""
        scene = Scene(self.cluster, combo, f"{self.prefix}_{len(self.scenes) + len(self.rejected)}")
        try:
            scene.make(self.directory)
        except Rejected as refused:
            self.rejected.append((combo, str(refused)))
            self._drop(scene)
            return None
        self.scenes.append(scene)
        return scene

    def serve(self) -> Sidecar:
        """One sidecar for all scenes."""
        config = [
            '[listen]\naddress = "127.0.0.1:0"\n[admin]\naddress = "127.0.0.1:0"\n[auth]\nmethod = "trust"\n'
        ]
        config += [f'[databases.{s.databases["both"]}]\nprimary = "{s.dsn("both")}"\n' for s in self.scenes]
        database = Database(self.cluster, self.scenes[0].databases["both"])
        self.factory = SidecarFactory(database, self.directory)
        proxy = self.factory("".join(config), database=self.scenes[0].databases["both"])
        for scene in self.scenes:
            scene.proxy = proxy
        return proxy

    def counts(self) -> dict[str, int]:
        """Rewritten and refused statements by reason, from the sidecar's metrics."""
        assert self.factory is not None
        found: dict[str, int] = {}
        for sidecar in self.factory.started:
            for line in sidecar.get("/metrics")[1].splitlines():
                for pattern, label in COUNTED:
                    match = re.match(pattern, line)
                    if match:
                        key = label.format(*match.groups())
                        found[key] = found.get(key, 0) + int(float(line.rsplit(" ", 1)[1]))
        return found

    def _drop(self, scene: Scene) -> None:
        scene.close()
        for name in scene.databases.values():
            self.cluster.drop_database(name)

    def close(self) -> None:
        """Ends what was started."""
        for scene in self.scenes:
            scene.close()
        if self.factory is not None:
            for sidecar in self.factory.started:
                sidecar.terminate()
        for scene in self.scenes:
            self._drop(scene)
        self.cluster.drop_database(TEMPLATE)
