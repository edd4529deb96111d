"""Schemas and migrations drawn by chance: tables of slots, each slot one column (or few) of the old and of the new
version.

What the new version looks like is written down here a second time, by hand for each kind of slot, so that the plain
database of the new shape owes nothing to the migrator. Values are texts as PostgreSQL prints them: the same text is a
literal, a parameter and a line of COPY.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE answer AS ENUM ('no', 'yes');
CREATE DOMAIN score AS integer CHECK (VALUE < 1000);
CREATE SEQUENCE tickets;
CREATE FUNCTION ticket() RETURNS integer LANGUAGE sql VOLATILE AS $$ SELECT nextval('public.tickets')::integer $$;
CREATE FUNCTION today() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT '2024-02-29 12:00:00Z'::timestamptz $$;
CREATE FUNCTION shout(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT upper($1) || '!' $$;
CREATE TABLE notes (id integer PRIMARY KEY, word text, amount integer);
"""
"""Made once in a template database, so that the OIDs of the types are the same on all sides."""

NOTES = "INSERT INTO notes VALUES (1, 'é', 2), (2, 'b', 1), (3, NULL, 5), (9, 'b', NULL)"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of one version."""

    name: str
    type: str
    kind: str
    """What expressions fit: int, num, text, bool, enum, time, json, list, uuid, bytes."""
    values: tuple[str, ...]
    """Texts that the type takes, with repetitions where ties are wanted."""
    bad: tuple[str, ...] = ()
    """Texts that it does not take."""
    not_null: bool = False
    default: str | None = None
    identity: str = ""
    generated: str | None = None
    check: str | None = None
    """Name of a CHECK constraint."""
    condition: str | None = None

    @property
    def sql(self) -> str:
        """The name, quoted where it must be."""
        return quoted(self.name)

    @property
    def ddl(self) -> str:
        """The column in CREATE TABLE."""
        parts = [self.sql, self.type]
        if self.identity:
            parts.append(f"GENERATED {self.identity} AS IDENTITY")
        if self.generated:
            parts.append(f"GENERATED ALWAYS AS ({self.generated}) STORED")
        if self.default is not None:
            parts.append(f"DEFAULT {self.default}")
        if self.not_null:
            parts.append("NOT NULL")
        if self.check:
            parts.append(f"CONSTRAINT {self.check} CHECK ({self.condition})")
        return " ".join(parts)

    @property
    def writable(self) -> bool:
        """Whether a statement may give it a value without OVERRIDING."""
        return self.generated is None and self.identity != "ALWAYS"


def quoted(name: str) -> str:
    """An identifier as SQL."""
    return name if name.isidentifier() and name.isascii() and name.islower() else f'"{name}"'


@dataclass(frozen=True, slots=True)
class Slot:
    """A unit of a migration: columns before and after, and what leads from one to the other.

    ``up`` has an expression over old columns for each new column that is not simply an old one (``kept`` names those),
    ``down`` likewise.
    """

    old: tuple[Column, ...]
    new: tuple[Column, ...]
    operations: tuple[dict[str, Any], ...] = ()
    up: tuple[tuple[str, str], ...] = ()
    down: tuple[tuple[str, str], ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    """(old name, new name) of columns that are physically the same."""
    added: bool = False
    """Its new columns come after all others."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table in both versions."""

    name: str
    key: tuple[str, ...]
    slots: tuple[Slot, ...]
    constraints: tuple[str, ...] = ()
    """Of columns that no migration changes."""
    triggers: tuple[str, ...] = ()

    def columns(self, side: str) -> tuple[Column, ...]:
        """The columns of a version in its order."""
        if side == "old":
            return tuple(c for s in self.slots for c in s.old)
        stays = [c for s in self.slots if not s.added for c in s.new]
        return (*stays, *(c for s in self.slots if s.added for c in s.new))

    def ddl(self, side: str) -> list[str]:
        """What makes the table of one version."""
        parts = [c.ddl for c in self.columns(side)]
        parts.append(f"PRIMARY KEY ({', '.join(map(quoted, self.key))})")
        parts += self.constraints
        table = f"CREATE TABLE {self.name} ({', '.join(parts)})"
        sequence = f"{self.name}_id_seq"
        if any(sequence in (c.default or "") for c in self.columns(side)):
            owned = f"ALTER SEQUENCE {sequence} OWNED BY {self.name}.id"
            return [f"CREATE SEQUENCE {sequence}", table, owned, *self.triggers]
        return [table, *self.triggers]

    def column(self, side: str, name: str) -> Column:
        """By name."""
        return next(c for c in self.columns(side) if c.name == name)

    @property
    def up(self) -> list[tuple[str, str]]:
        """(new column, expression over the old ones)."""
        return [pair for s in self.slots for pair in s.up]

    @property
    def down(self) -> list[tuple[str, str]]:
        """(old column, expression over the new ones)."""
        return [pair for s in self.slots for pair in s.down]


@dataclass(frozen=True, slots=True)
class Combo:
    """A schema with a migration."""

    name: str
    tables: tuple[Table, ...]
    seeds: tuple[str, ...] = ()
    """INSERTs of the old version: the rows that every program begins with."""
    speakers: tuple[str, ...] = ("old", "new")

    @property
    def migration(self) -> str:
        """The migration file, as JSON (which is YAML)."""
        operations = []
        for table in self.tables:
            for slot in table.slots:
                for operation in slot.operations:
                    [(kind, body)] = operation.items()
                    operations.append({kind: {"table": table.name, **body}})
        return json.dumps({"operations": operations}, ensure_ascii=False, indent=1)

    def ddl(self, side: str) -> list[str]:
        """What makes all tables of one version."""
        return [text for table in self.tables for text in table.ddl(side)]

    def __str__(self) -> str:
        lines = [f"-- combination {self.name}: old", *self.ddl("old"), "-- new", *self.ddl("new")]
        return "\n".join([*lines, *self.seeds, "-- migration", self.migration])


# -- columns -------------------------------------------------------------------------------------------------------

INTS = ("0", "1", "2", "-3", "7", "2147483647")
BIGINTS = (*INTS[:5], "3000000000")
NUMS = ("0", "1.5", "2.25", "-3.10", "100", "1.5")
TEXTS = ("a", "b", "", "héllo", "A b", "it's", "7", "longer than six")
CODES = ("a", "b", "", "é", "A b", "12")
MOODS = ("sad", "ok", "happy")
TIMES = ("2020-01-01 00:00:00+00", "1999-12-31 23:59:59.5+00", "2024-06-01 12:00:00+00", "infinity")
JSONS = ("{}", '{"a": 1}', "[1, 2]", '"x"', "null")
LISTS = ("{}", "{1}", "{2,3}", "{NULL,1}")
UUIDS = (
    "00000000-0000-0000-0000-000000000001",
    "00000000-0000-0000-0000-000000000002",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
)
BYTES = ("\\x", "\\x00ff", "\\x6162")


def _kinds() -> dict[str, Column]:
    return {
        c.name: c
        for c in (
            Column("int", "integer", "int", INTS, ("x", "99999999999")),
            Column("small", "smallint", "int", ("0", "1", "2", "-3", "7"), ("x", "99999")),
            Column("big", "bigint", "int", BIGINTS, ("1.5e",)),
            Column("num", "numeric(8,2)", "num", NUMS, ("x", "1234567.8")),
            Column("text", "text", "text", TEXTS),
            Column("code", "varchar(6)", "text", CODES, ("far too long",)),
            Column("char", "char(3)", "text", ("a", "abc", "", "é"), ("abcd",)),
            Column("bool", "boolean", "bool", ("t", "f"), ("maybe",)),
            Column("mood", "mood", "enum", MOODS, ("angry",)),
            Column("time", "timestamptz", "time", TIMES, ("yesterdayish",)),
            Column("json", "jsonb", "json", JSONS, ("{",)),
            Column("list", "integer[]", "list", LISTS, ("{x}",)),
            Column("uuid", "uuid", "uuid", UUIDS, ("zz",)),
            Column("bytes", "bytea", "bytes", BYTES, ("\\xzz",)),
            Column("score", "score", "int", ("0", "1", "2", "-3", "7"), ("1000", "x")),
            Column("real", "double precision", "num", ("0", "1.5", "-2.25", "1e+20"), ("x",)),
        )
    }


KINDS = _kinds()

DEFAULTS = {
    "int": ("5", "ticket()", "1 + 1"),
    "small": ("5",),
    "big": ("5",),
    "num": ("1.5",),
    "text": ("'none'", "'x' || 'y'"),
    "code": ("'c'",),
    "bool": ("false",),
    "mood": ("'ok'",),
    "time": ("today()", "'2020-01-01 00:00:00+00'"),
    "json": ("'{}'",),
    "list": ("'{}'",),
    "score": ("3",),
}


class Names:
    """Names of columns: plain ones, some that need quotes."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.count = 0

    def next(self, base: str) -> str:
        self.count += 1
        if self.chance.random() < 0.12:
            return self.chance.choice(
                (f"{base.title()}{self.count}", f"{base} {self.count}", f"é{base}{self.count}")
            )
        return f"{base}{self.count}"


def _drawn(chance: random.Random, names: Names, kind: str | None = None) -> Column:
    base = kind or chance.choice(list(KINDS))
    column = replace(KINDS[base], name=names.next(base))
    if base in DEFAULTS and chance.random() < 0.4:
        column = replace(column, default=chance.choice(DEFAULTS[base]))
    if chance.random() < 0.25:
        column = replace(column, not_null=True)
    return column


def _keep(chance: random.Random, names: Names) -> Slot:
    column = _drawn(chance, names)
    return Slot((column,), (column,), kept=((column.name, column.name),))


def _rename(chance: random.Random, names: Names) -> Slot:
    column = _drawn(chance, names)
    new = replace(column, name=names.next("re_" + column.kind))
    operation = {"rename_column": {"from": column.name, "to": new.name}}
    return Slot((column,), (new,), (operation,), kept=((column.name, new.name),))


def _retype(
    kind: str,
    target: Column,
    up: str,
    down: str,
    default: Callable[[str], str | None] = lambda text: None,
    only: tuple[str, ...] = (),
) -> Callable[[random.Random, Names], Slot]:
    """``up`` and ``down`` have ``{}`` for the column; ``default`` gives the new default for the old one; ``only`` are
    values that only the new version can hold."""

    def make(chance: random.Random, names: Names) -> Slot:
        column = replace(KINDS[kind], name=names.next(kind))
        if chance.random() < 0.25:
            column = replace(column, not_null=True)
        if kind in DEFAULTS and chance.random() < 0.4:
            column = replace(column, default=DEFAULTS[kind][0])
        body: dict[str, Any] = {"column": column.name, "type": target.type}
        name = column.name
        if chance.random() < 0.4:
            name = body["name"] = names.next("x_" + target.kind)
        new = replace(target, name=name, not_null=column.not_null)
        if column.not_null:
            # The waiver that `plan` prints as down_null: what the old version cannot hold, nobody can write.
            new = replace(new, values=tuple(v for v in new.values if v not in only))
        if column.default is not None:
            text = default(column.default)
            new = replace(new, default=text)
            body["default"] = text
        up_text = up.replace("{}", column.sql)
        down_text = down.replace("{}", new.sql, down.count("{}") - ("'{}'" in down))
        body |= {"up": up_text, "down": down_text}
        return Slot(
            (column,), (new,), ({"alter_column": body},), ((new.name, up_text),), ((column.name, down_text),)
        )

    return make


def _text(values: tuple[str, ...], bad: tuple[str, ...] = ()) -> Column:
    return Column("", "text", "text", values, bad)


_same: Callable[[str], str | None] = lambda text: text  # noqa: E731

RETYPES: dict[str, Callable[[random.Random, Names], Slot]] = {
    "int_big": _retype("int", KINDS["big"], "{}", "{}", _same, ("3000000000",)),
    "small_int": _retype("small", KINDS["int"], "{}", "{}", _same, ("2147483647",)),
    "int_text": _retype(
        "int", _text(("1", "2", "-3", "x", "7")), "{}::text", "{}::integer", lambda t: f"'{t}'", ("x",)
    ),
    "text_int": _retype("text", KINDS["int"], "{}::integer", "{}::text"),
    "bool_answer": _retype(
        "bool",
        Column("", "answer", "enum", ("no", "yes"), ("maybe",)),
        "CASE WHEN {} THEN 'yes'::answer WHEN NOT {} THEN 'no'::answer END",
        "{} = 'yes'",
        lambda t: "'no'",
    ),
    "num_cents": _retype(
        "num",
        replace(KINDS["int"], values=("0", "150", "225", "-310", "7")),
        "({} * 100)::integer",
        "{} / 100.0",
    ),
    "code_text": _retype("code", _text((*CODES, "longer than six")), "{}", "left({}, 6)", _same),
    "code_wide": _retype("code", replace(KINDS["code"], type="varchar(20)", bad=()), "{}", "{}", _same),
    "text_lower": _retype("text", _text(TEXTS), "lower({})", "{}", _same),
    "text_mood": _retype("text", KINDS["mood"], "{}::mood", "{}::text"),
    "mood_text": _retype(
        "mood", _text(("sad", "ok", "happy", "angry")), "{}::text", "{}::mood", _same, ("angry",)
    ),
    "time_epoch": _retype(
        "time",
        replace(KINDS["num"], type="numeric", values=("0", "1577836800", "946684799.5")),
        "extract(epoch FROM {})",
        "to_timestamp({}::double precision)",
    ),
    "json_text": _retype("json", _text((*JSONS, "{")), "{}::text", "{}::jsonb", _same, ("{",)),
    "list_json": _retype(
        "list",
        replace(KINDS["json"], values=("[]", "[1]", "[2, 3]", "{}")),
        "to_jsonb({})",
        "translate({}::text, '[]', '{}')::integer[]",
    ),
    "uuid_text": _retype("uuid", _text((*UUIDS, "none")), "{}::text", "{}::uuid", only=("none",)),
    "score_big": _retype("score", KINDS["big"], "{}", "{}::integer::score", _same, ("3000000000",)),
    "bytes_text": _retype(
        "bytes", _text(("", "00ff", "6162", "zz")), "encode({}, 'hex')", "decode({}, 'hex')", only=("zz",)
    ),
}


def _not_null(chance: random.Random, names: Names) -> Slot:
    kind = chance.choice(("int", "text", "num", "bool"))
    column = replace(KINDS[kind], name=names.next(kind))
    fill = {"int": "0", "text": "''", "num": "0", "bool": "false"}[kind]
    up = f"coalesce({column.sql}, {fill})" if chance.random() < 0.6 else column.sql
    new = replace(column, not_null=True)
    body = {"column": column.name, "nullable": False, "up": up, "down": column.sql}
    return Slot((column,), (new,), ({"alter_column": body},), ((new.name, up),), ((column.name, column.sql),))


def _check(chance: random.Random, names: Names) -> Slot:
    kind = chance.choice(("int", "text"))
    column = replace(KINDS[kind], name=names.next(kind))
    condition, mend = {
        "int": (f"{column.sql} > 0", f"greatest({column.sql}, 1)"),
        "text": (f"{column.sql} <> ''", f"coalesce(nullif({column.sql}, ''), 'none')"),
    }[kind]
    up = mend if chance.random() < 0.5 else column.sql
    check = f"check_{names.count}"
    new = replace(column, check=check, condition=condition)
    body = {
        "column": column.name,
        "check": {"name": check, "constraint": condition},
        "up": up,
        "down": column.sql,
    }
    return Slot((column,), (new,), ({"alter_column": body},), ((new.name, up),), ((column.name, column.sql),))


def _split(chance: random.Random, names: Names) -> Slot:
    full = replace(KINDS["text"], name=names.next("full"), values=("a b", "c d", "Ann Lee", "solo", ""))
    first = replace(KINDS["text"], name=names.next("first"), values=("a", "c", "Ann", "x y", ""))
    last = replace(KINDS["text"], name=names.next("last"), values=("b", "d", "Lee", ""))
    up = tuple((c.name, f"split_part({full.sql}, ' ', {i})") for i, c in enumerate((first, last), 1))
    down = f"{first.sql} || ' ' || {last.sql}"
    operations: list[dict[str, Any]] = [
        {"add_column": {"column": {"name": c.name, "type": c.type, "nullable": True}, "up": text}}
        for c, (_, text) in zip((first, last), up, strict=True)
    ]
    operations.append({"drop_column": {"column": full.name, "down": down}})
    return Slot((full,), (first, last), tuple(operations), up, ((full.name, down),), added=True)


def _merge(chance: random.Random, names: Names) -> Slot:
    one = replace(KINDS["code"], name=names.next("one"), values=("a", "b", "", "é"))
    two = replace(KINDS["int"], name=names.next("two"), values=("0", "1", "2", "7"))
    both = replace(KINDS["text"], name=names.next("both"), values=("a/1", "b/2", "/7", "x"))
    up = f"{one.sql} || '/' || {two.sql}"
    downs = (
        (one.name, f"split_part({both.sql}, '/', 1)"),
        (two.name, f"split_part({both.sql}, '/', 2)::integer"),
    )
    operations: list[dict[str, Any]] = [
        {"add_column": {"column": {"name": both.name, "type": "text", "nullable": True}, "up": up}},
        *({"drop_column": {"column": name, "down": text}} for name, text in downs),
    ]
    return Slot((one, two), (both,), tuple(operations), ((both.name, up),), downs, added=True)


def _add(chance: random.Random, names: Names) -> Slot:
    column = replace(KINDS["int"], name=names.next("added"), values=("0", "1", "2", "20"))
    spec: dict[str, Any] = {"name": column.name, "type": column.type, "nullable": True}
    up: tuple[tuple[str, str], ...] = ()
    body: dict[str, Any] = {"column": spec}
    how = chance.choice(("nothing", "default", "up", "both"))
    if how in {"default", "both"}:
        column = replace(column, default="3", not_null=True)
        spec |= {"default": "3", "nullable": False}
    if how in {"up", "both"}:
        body["up"] = "id::integer * 10"
        up = ((column.name, body["up"]),)
    return Slot((), (column,), ({"add_column": body},), up, added=True)


def _drop(chance: random.Random, names: Names) -> Slot:
    column = replace(_drawn(chance, names), not_null=False)
    body: dict[str, Any] = {"column": column.name}
    down: tuple[tuple[str, str], ...] = ()
    if chance.random() < 0.6:
        literal = "'" + column.values[0].replace("'", "''") + f"'::{column.type}"
        body["down"] = literal
        down = ((column.name, literal),)
    return Slot((column,), (), ({"drop_column": body},), (), down)


def _generated(chance: random.Random, names: Names) -> Slot:
    column = Column(names.next("twice"), "bigint", "int", BIGINTS, generated="id::bigint * 2")
    return Slot((column,), (column,), kept=((column.name, column.name),))


CHANGES: tuple[Callable[[random.Random, Names], Slot], ...] = (
    _rename,
    _not_null,
    _check,
    _split,
    _merge,
    _add,
    _drop,
)


def _key(chance: random.Random) -> Slot:
    ids = ("1", "2", "3", "4", "5", "6", "77")
    column = chance.choice(
        (
            Column("id", "integer", "int", ids, ("x",), True),
            Column("id", "bigint", "int", ids, ("x",), True, identity="BY DEFAULT"),
            Column("id", "integer", "int", ids, ("x",), True, identity="ALWAYS"),
            Column("id", "integer", "int", ids, ("x",), True, default="nextval('{table}_id_seq')"),
        )
    )
    return Slot((column,), (column,), kept=(("id", "id"),))


def _table(chance: random.Random, name: str, parent: str | None) -> Table:
    names = Names(chance)
    key = _key(chance)
    column = key.old[0]
    if column.default is not None:
        column = replace(column, default=column.default.format(table=name))
        key = Slot((column,), (column,), kept=(("id", "id"),))
    slots = [key]
    constraints = []
    if parent is not None:
        reference = Column("parent_id", "integer", "int", ("1", "2", "3"), ("x",))
        slots.append(Slot((reference,), (reference,), kept=(("parent_id", "parent_id"),)))
        action = chance.choice(("CASCADE", "SET NULL", "NO ACTION"))
        constraints.append(
            f"CONSTRAINT {name}_parent FOREIGN KEY (parent_id) REFERENCES {parent} (id)"
            f" ON DELETE {action} ON UPDATE CASCADE"
        )
    body: list[Slot] = [_keep(chance, names) for _ in range(chance.randint(1, 3))]
    if chance.random() < 0.4:
        body.append(_generated(chance, names))
    retypes = chance.sample(list(RETYPES.values()), chance.randint(1, 3))
    body += [make(chance, names) for make in retypes]
    body += [make(chance, names) for make in chance.sample(CHANGES, chance.randint(1, 3))]
    chance.shuffle(body)
    unique = [
        s.old[0]
        for s in body
        if s.kept and s.old[0].name == s.new[0].name and s.old[0].kind in {"int", "text"}
    ]
    if unique and chance.random() < 0.5:
        constraints.append(f"CONSTRAINT {name}_only UNIQUE ({unique[0].sql})")
    return Table(name, ("id",), (*slots, *body), tuple(constraints), tuple(_extras(chance, name, body)))


def _extras(chance: random.Random, name: str, body: list[Slot]) -> list[str]:
    """Triggers and a view of columns that no migration changes."""
    same = [s.old[0] for s in body if s.kept and s.old[0].name == s.new[0].name and not s.old[0].generated]
    texts = [c for c in same if c.type == "text"]
    made = []
    if chance.random() < 0.3:
        made.append(
            f"CREATE VIEW {name}_view AS SELECT {', '.join(['id', *(c.sql for c in same)])} FROM {name}"
        )
    if chance.random() < 0.25:
        # What happens to a row is written down elsewhere, by statement so that repairs are not seen.
        made.append(
            f"CREATE FUNCTION {name}_log() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN"
            " INSERT INTO notes VALUES ((SELECT max(id) + 1 FROM notes), TG_OP, (SELECT count(*) FROM fresh));"
            " RETURN NULL; END $$"
        )
        made.append(
            f"CREATE TRIGGER {name}_log AFTER INSERT ON {name} REFERENCING NEW TABLE AS fresh"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {name}_log()"
        )
    if texts and chance.random() < 0.3:
        column = texts[0].sql
        made.append(
            f"CREATE FUNCTION {name}_trim() RETURNS trigger LANGUAGE plpgsql SET search_path = public AS $$ BEGIN"
            f" NEW.{column} := btrim(NEW.{column}); RETURN NEW; END $$"
        )
        made.append(
            f"CREATE TRIGGER {name}_trim BEFORE INSERT OR UPDATE ON {name}"
            f" FOR EACH ROW EXECUTE FUNCTION {name}_trim()"
        )
    return made


def draw(seed: int) -> Combo:
    """The combination of a number."""
    chance = random.Random(seed)
    tables = [_table(chance, "item", None)]
    if chance.random() < 0.7:
        tables.append(_table(chance, "part", "item"))
    seeds = [text for table in tables for text in _seeds(chance, table)]
    return Combo(f"seed{seed}", tuple(tables), tuple(seeds))


def _seeds(chance: random.Random, table: Table) -> list[str]:
    columns = [c for c in table.columns("old") if c.generated is None]
    rows = []
    for number in range(1, 4):
        cells = []
        for column in columns:
            if column.name == "id":
                cells.append(str(number))
            elif not column.not_null and chance.random() < 0.2:
                cells.append("NULL")
            elif any(f"({column.sql})" in c and "UNIQUE" in c for c in table.constraints):
                cells.append("'" + column.values[number - 1].replace("'", "''") + "'")
            else:
                cells.append("'" + chance.choice(column.values).replace("'", "''") + "'")
        rows.append(f"({', '.join(cells)})")
    names = ", ".join(c.sql for c in columns)
    return [f"INSERT INTO {table.name} ({names}) OVERRIDING SYSTEM VALUE VALUES {', '.join(rows)}"]
