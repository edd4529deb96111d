"""Writes and reads in the middle of a migration: rewritten, with each guard, beside triggers and a plain table.

One table of ``BENCH_ROWS`` rows (default 100,000), one column that is retyped. The ways: the table as it is, and so
through a sidecar; a pair of triggers as view-based tools install them (one for each direction, in plpgsql, deciding by
the search_path, keeping a needs_backfill column); a sidecar with guard sync, check and off, and with an ``up`` that
must be trapped. What is measured is the CPU of the server's process (on-CPU time of the scheduler's books), and the
time that the client waited; rounds go by turns, ratios are to the plain table in the same round.
``test_single_rows_of_many_clients`` is pgbench, with triggers behind PgBouncer.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from migrator.cluster import Cluster
from migrator.cluster.cluster import client_program
from tests.bench import runs
from tests.bench.ways import Setup, Way

ROWS = int(os.environ.get("BENCH_ROWS", "100000"))
SINGLE = 2_000
Task = Callable[[Any], Awaitable[object]]
"""Something done on a client's connection."""

pytestmark = [pytest.mark.bench, pytest.mark.timeout(0)]

TABLE = f"""
CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, amount int NOT NULL, note text);
CREATE TABLE parts (id int PRIMARY KEY, item_id int NOT NULL);
INSERT INTO items SELECT n, 'item ' || n, n % 1000, 'a note of some length' FROM generate_series(1, {ROWS}) n;
INSERT INTO parts SELECT n, n * 7 % {ROWS} + 1 FROM generate_series(1, {ROWS} / 4) n;
"""
MIGRATION = """
guard: {guard}
operations:
  - alter_column:
      table: items
      column: amount
      type: bigint
      up: {up}
      down: {down}
"""
PROVED = ("amount::bigint", "amount::int")
TRAPPED = ("amount::bigint * 100", "(amount / 100)::int")
"""An ``up`` that dualwire cannot prove unable to fail runs in a function that traps errors."""
MIGRATING = {
    "guard sync": ("sync", *PROVED),
    "guard check": ("check", *PROVED),
    "guard off": ("off", *PROVED),
    "guard sync, up trapped": ("sync", *TRAPPED),
}
TRIGGERS = """
ALTER TABLE items ADD COLUMN amount_next bigint, ADD COLUMN needs_backfill boolean DEFAULT true;
UPDATE items SET amount_next = amount::bigint, needs_backfill = false;
CREATE FUNCTION carry_up() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  id items.id%TYPE := NEW.id; name items.name%TYPE := NEW.name; amount items.amount%TYPE := NEW.amount;
  note items.note%TYPE := NEW.note; path text;
BEGIN
  SELECT setting INTO path FROM current_setting('search_path') AS setting;
  IF path <> 'next' THEN
    NEW.amount_next := amount::bigint;
  END IF;
  NEW.needs_backfill := false;
  RETURN NEW;
END $$;
CREATE FUNCTION carry_down() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  id items.id%TYPE := NEW.id; name items.name%TYPE := NEW.name; amount items.amount_next%TYPE := NEW.amount_next;
  note items.note%TYPE := NEW.note; path text;
BEGIN
  SELECT setting INTO path FROM current_setting('search_path') AS setting;
  IF path = 'next' THEN
    NEW.amount := amount::int;
  END IF;
  NEW.needs_backfill := false;
  RETURN NEW;
END $$;
CREATE TRIGGER carry_up BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION carry_up();
CREATE TRIGGER carry_down BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION carry_down();
"""


@dataclass(frozen=True)
class Place:
    """A database with the table in one of the ways, and how its clients reach it."""

    name: str
    database: str
    way: Way
    migration: str | None = None
    new: bool = False
    """Whether clients speak the new version."""

    async def connect(self) -> asyncpg.Connection:
        settings = {"options": f"-c dualwire.version={self.migration}"} if self.new else {}
        return await asyncpg.connect(
            host="127.0.0.1",
            port=self.way.port,
            user=self.way.user,
            database=self.way.database,
            password=self.way.password,
            server_settings=settings,
            statement_cache_size=0 if self.way.name.startswith("pgbouncer") else 100,
        )


@pytest.fixture(scope="module")
def places(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Place]]:
    """All ways."""
    directory = tmp_path_factory.mktemp("rewrite")
    found: list[Place] = []
    with ExitStack() as stack:
        for number, name in enumerate(("plain", "plain, sidecar", "triggers", *MIGRATING)):
            database = f"rewrite_{number}"
            cluster.create_database(database)
            cluster.primary.sql(TABLE, database=database)
            setup = Setup(cluster, database, directory)
            if name == "triggers":
                cluster.primary.sql(TRIGGERS, database=database)
            if name in MIGRATING:
                found.append(
                    Place(name, database, _migrating(cluster, setup, name, stack), f"amounts_{number}")
                )
            elif name == "plain, sidecar":
                found.append(Place(name, database, stack.enter_context(setup.dualwire())))
            else:
                found.append(Place(name, database, setup.direct()))
            cluster.primary.sql("VACUUM ANALYZE", database=database)
        yield found


def _migrating(cluster: Cluster, setup: Setup, name: str, stack: ExitStack) -> Way:
    guard, up, down = MIGRATING[name]
    path = setup.directory / f"{setup.database.replace('rewrite', 'amounts')}.yaml"
    path.write_text(MIGRATION.format(guard=guard, up=up, down=down))
    way = stack.enter_context(setup.dualwire())
    for arguments in (["init"], ["start", str(path), "--until", "verified"]):
        subprocess.run(
            [sys.executable, "-m", "migrator.cli.main", *arguments],
            check=True,
            capture_output=True,
            env={**os.environ, "DUALWIRE_DSN": cluster.primary.dsn(database=setup.database)},
        )
    return way


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds of the server's CPU, and seconds that the client waited."""

    cpu: float
    waited: float


def _on_cpu(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def _cost(
    place: Place, work: Callable[[Any], Awaitable[object]], warm: Callable[[Any], Awaitable[object]]
) -> Cost | None:
    """What a task costs; None if it is refused."""
    client = await place.connect()
    try:
        pid = await client.fetchval("SELECT pg_backend_pid()")
        await client.execute("SET synchronous_commit = off")
        await warm(client)
        cpu, began = _on_cpu(pid), time.perf_counter()
        try:
            await work(client)
        except asyncpg.FeatureNotSupportedError:
            return None
        return Cost(_on_cpu(pid) - cpu, time.perf_counter() - began)
    finally:
        await client.close()


def _measure(
    title: str,
    cluster: Cluster,
    places: list[Place],
    tasks: dict[str, tuple[Task, Task]],
    count: int,
    unit: str,
) -> None:
    def run(cell: tuple[str, str]) -> Cost | None:
        place = next(place for place in places if place.name == cell[1])
        cluster.primary.sql(f"DELETE FROM items WHERE id > {ROWS}", database=place.database)
        cluster.primary.sql("VACUUM items", database=place.database)
        return asyncio.run(_cost(place, *tasks[cell[0]]))

    found = runs.rounds([(task, place.name) for task in tasks for place in places], run)
    made = runs.table(
        f"{title}, {runs.ROUNDS} rounds",
        ("what", "way", f"server's CPU, {unit}", "ratio to plain", f"waited, {unit}", "ratio of that"),
    )
    scale = {"µs": 1e6 / count, "ms": 1e3 / count}[unit]
    for (task, name), measured in found.items():
        costs = [cost for cost in measured if cost is not None]
        if len(costs) < len(measured):
            made.add_row(task, name, "refused")
            continue
        control = [cost for cost in found[task, places[0].name] if cost is not None]
        made.add_row(
            task,
            name,
            runs.spread(cost.cpu * scale for cost in costs).text(",.1f"),
            runs.ratios([cost.cpu for cost in costs], [cost.cpu for cost in control]).text(".2f"),
            runs.spread(cost.waited * scale for cost in costs).text(",.1f"),
            runs.ratios([cost.waited for cost in costs], [cost.waited for cost in control]).text(".2f"),
        )
    runs.show(made)


async def _nothing(client: Any) -> None:
    pass


def test_bulk_writes(cluster: Cluster, places: list[Place]) -> None:
    async def update(client: Any) -> None:
        assert await client.execute("UPDATE items SET amount = amount + 1") == f"UPDATE {ROWS}"

    async def update_other(client: Any) -> None:
        assert await client.execute("UPDATE items SET note = name") == f"UPDATE {ROWS}"

    async def insert(client: Any) -> None:
        text = (
            "INSERT INTO items SELECT n, 'item ' || n, n % 1000, 'x' FROM generate_series({0} + 1, {0} * 2) n"
        )
        assert await client.execute(text.format(ROWS)) == f"INSERT 0 {ROWS}"

    async def copy(client: Any) -> None:
        rows = [(number, f"item {number}", number % 1000, "x") for number in range(ROWS + 1, 2 * ROWS + 1)]
        await client.copy_records_to_table("items", records=rows, columns=["id", "name", "amount", "note"])

    _measure(
        f"{ROWS:,} rows",
        cluster,
        places,
        {
            "UPDATE of the column": (update, _nothing),
            "UPDATE of another column": (update_other, _nothing),
            "INSERT ... SELECT": (insert, _nothing),
            "COPY": (copy, _nothing),
        },
        1,
        "ms",
    )


def test_single_rows_prepared(cluster: Cluster, places: list[Place]) -> None:
    async def update(client: Any) -> None:
        statement = await client.prepare("UPDATE items SET amount = $1 WHERE id = $2")
        for number in range(1, SINGLE):
            await statement.fetch(number, number * 31 % ROWS + 1)

    async def insert(client: Any) -> None:
        statement = await client.prepare("INSERT INTO items (id, name, amount, note) VALUES ($1, $2, $3, $4)")
        for number in range(1, SINGLE):
            await statement.fetch(ROWS + number, "name", number, "note")

    tasks = {"UPDATE": (update, _nothing), "INSERT": (insert, _nothing)}
    _measure("one row, prepared, one client", cluster, places, tasks, SINGLE, "µs")


def test_reads_of_the_new_version(cluster: Cluster, places: list[Place]) -> None:
    async def by_key(client: Any) -> None:
        statement = await client.prepare("SELECT id, name, amount, note FROM items WHERE id = $1")
        for number in range(SINGLE):
            await statement.fetch(number * 31 % ROWS + 1)

    async def by_key_simple(client: Any) -> None:
        for number in range(SINGLE):
            await client.execute(
                f"SELECT id, name, amount, note FROM items WHERE id = {number * 31 % ROWS + 1}"
            )

    async def scan(client: Any) -> None:
        for _ in range(10):
            await client.fetchval("SELECT sum(amount) FROM items")

    async def join(client: Any) -> None:
        for _ in range(10):
            await client.fetchval("SELECT sum(i.amount) FROM items i JOIN parts p ON p.item_id = i.id")

    async def steady(client: Any) -> None:
        await client.execute("SET max_parallel_workers_per_gather = 0")

    reading = [places[0], *[replace(place, new=True) for place in places if place.name == "guard sync"]]
    single = {"by key, prepared": (by_key, steady), "by key, simple": (by_key_simple, steady)}
    _measure("reads of the new version", cluster, reading, single, SINGLE, "µs")
    whole = {"sum over the table": (scan, steady), "join with parts": (join, steady)}
    _measure("reads of the new version", cluster, reading, whole, 10, "ms")


SCRIPTS = {
    "UPDATE": f"\\set id random(1, {ROWS})\nUPDATE items SET amount = amount + 1 WHERE id = :id;\n",
    "INSERT": "\\set id random(1000000, 2000000000)\nINSERT INTO items (id, name, amount, note) VALUES (:id, 'name', 5,"
    " 'note') ON CONFLICT DO NOTHING;\n",
}


def test_single_rows_of_many_clients(cluster: Cluster, places: list[Place], tmp_path: Path) -> None:
    """Transactions a second: a sidecar with the guard beside triggers behind PgBouncer, and a plain table behind it."""
    clients = 8
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for place in places:
            if place.name in ("plain", "triggers"):
                setup = Setup(cluster, place.database, tmp_path)
                bouncer = stack.enter_context(setup.pgbouncer("session"))
                if bouncer is not None:
                    ways[f"{place.name}, PgBouncer"] = bouncer
                else:
                    ways[place.name] = setup.direct()
            else:
                ways[f"dualwire, {place.name}"] = place.way
        scripts = {}
        for name, text in SCRIPTS.items():
            scripts[name] = tmp_path / f"{name}.sql"
            scripts[name].write_text(text)

        def run(cell: tuple[str, str, str]) -> float:
            mode, script, name = cell
            way = ways[name]
            output = subprocess.run(
                [
                    *(str(client_program("pgbench")), "-n", "-M", mode, "-c", str(clients), "-j", "1"),
                    *("-T", str(runs.SECONDS), "-f", str(scripts[script])),
                    *("-h", "127.0.0.1", "-p", str(way.port), "-U", way.user, way.database),
                ],
                capture_output=True,
                text=True,
                check=True,
                env={
                    **os.environ,
                    "PGPASSWORD": way.password or "",
                    "PGSSLMODE": "disable",
                    "PGGSSENCMODE": "disable",
                },
            ).stdout
            assert "number of failed transactions: 0 " in output, output
            return float(re.search(r"tps = ([\d.]+)", output)[1])  # type: ignore[index]

        cluster.primary.sql("ALTER SYSTEM SET synchronous_commit = off")
        cluster.primary.sql("SELECT pg_reload_conf()")
        cells = [
            (mode, script, name) for mode in ("simple", "prepared") for script in SCRIPTS for name in ways
        ]
        found = runs.rounds(cells, run)
    made = runs.table(
        f"one row, {clients} clients, {runs.ROUNDS} rounds of {runs.SECONDS} s",
        ("mode", "what", "way", "tps", "ratio to triggers"),
    )
    control = next(name for name in ways if name.startswith("triggers"))
    for (mode, script, name), figures in found.items():
        made.add_row(
            mode,
            script,
            name,
            runs.spread(figures).text(),
            runs.ratios(figures, found[mode, script, control]).text(".2f"),
        )
    runs.show(made)
