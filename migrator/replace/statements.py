"""SQL of a replaced table but its mirror: the new table, its keys and indexes, the flip, the swap, the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pglast import ast, parse_sql
from pglast.stream import RawStream

from migrator.catalog import CatalogColumn, CatalogIndex, CatalogTable
from migrator.operations.replace_table import ReplacedColumn, ReplaceTable
from migrator.replace.design import Incoming, Rename
from migrator.replace.surroundings import ForeignKey, Grant, Surroundings
from migrator.replace.surroundings import Sequence as OwnedSequence
from migrator.sqltext import cut, ident, literal, names, qualified

INTEGERS = ("smallint", "integer", "bigint")
ENABLE = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What all statements are made from."""

    migration: int
    number: int
    spec: ReplaceTable
    catalog: CatalogTable
    extra: Surroundings
    order: Sequence[str]
    printed: str
    """The old table's name as the server prints it in definitions."""

    @property
    def schema(self) -> str:
        return self.catalog.schema_name

    @property
    def temporary(self) -> str:
        return cut("_dualwire_new_", self.catalog.name)

    @property
    def old(self) -> str:
        return qualified(self.schema, self.catalog.name)

    @property
    def new(self) -> str:
        return qualified(self.schema, self.temporary)

    @property
    def partitioned(self) -> bool:
        return self.spec.partition_by is not None

    def given(self, name: str) -> ReplacedColumn | None:
        return next((c for c in self.spec.columns if c.name == name), None)

    @property
    def primary_key(self) -> list[str]:
        return list(self.spec.primary_key) or self.catalog.primary_key

    def own(self, kind: str, index: int) -> str:
        return f"_dualwire_{kind}_{self.migration}_{self.number}_{index}"

    @property
    def primary_key_name(self) -> str:
        return self.own("pk", 0)


# -- the new table -------------------------------------------------------------------------------------------


def create(plan: Plan) -> list[str]:
    """The new table with everything that an empty table can have at no cost."""
    catalog, extra = plan.catalog, plan.extra
    parts = [_column(plan, catalog.column(name)) for name in plan.order]
    parts += [
        f"CONSTRAINT {ident(c.check.name)} CHECK ({c.check.constraint})" for c in plan.spec.columns if c.check
    ]
    parts += [
        f"CONSTRAINT {ident(c.name)} {c.definition.removesuffix(' NOT VALID')}"
        for c in catalog.constraints
        if c.kind == "c"
    ]
    parts.append(f"CONSTRAINT {ident(plan.primary_key_name)} PRIMARY KEY ({names(plan.primary_key)})")
    parts += [
        f"CONSTRAINT {ident(temporary)} {definition}"
        for temporary, _, definition in _unique_constraints(plan)
    ]
    kind = "UNLOGGED TABLE" if catalog.persistence == "u" and not plan.partitioned else "TABLE"
    storage = f" WITH ({', '.join(extra.options)})" if extra.options else ""
    place = f" TABLESPACE {extra.tablespace}" if extra.tablespace else ""
    body = "(\n  " + ",\n  ".join(parts) + "\n)"
    statements = []
    if plan.partitioned:
        statements.append(f"CREATE {kind} {plan.new} {body} PARTITION BY {plan.spec.partition_by}{place}")
        statements += [
            f"CREATE TABLE {qualified(plan.schema, p.name)} PARTITION OF {plan.new} {p.bound}{storage}{place}"
            for p in plan.spec.partitions
        ]
    else:
        statements.append(f"CREATE {kind} {plan.new} {body}{storage}{place}")
    statements += [f"ALTER TABLE {plan.new} {action}" for action in extra.alterations]
    statements += _comments(plan)
    if extra.replica_identity in "fn":
        kind = "FULL" if extra.replica_identity == "f" else "NOTHING"
        statements += [f"ALTER TABLE {table} REPLICA IDENTITY {kind}" for table in _whole(plan)]
    statements += _user_triggers(plan)
    if plan.partitioned:
        statements += [r.sql for r in indexes(plan)]
    return statements


def _whole(plan: Plan) -> list[str]:
    """The new table and its partitions."""
    return [plan.new, *(qualified(plan.schema, p.name) for p in plan.spec.partitions)]


def _column(plan: Plan, column: CatalogColumn) -> str:
    given = plan.given(column.name)
    text = f"{ident(column.name)} "
    if given is not None and given.type is not None:
        text += given.type
    else:
        text += column.type_full + (f" COLLATE {column.collation}" if column.collation else "")
    if column.generated:
        kind = "STORED" if column.generated == "s" else "VIRTUAL"
        text += f" GENERATED ALWAYS AS ({plan.extra.generated[column.name]}) {kind}"
    else:
        default = default_of(plan, column)
        text += "" if default is None else f" DEFAULT {default}"
    nullable = given.nullable if given is not None and given.nullable is not None else not column.not_null
    if not nullable or column.name in plan.primary_key:
        name = plan.extra.not_nulls.get(column.name, f"{plan.catalog.name}_{column.name}_not_null")
        text += f" CONSTRAINT {ident(cut('', name))} NOT NULL"
    return text


def default_of(plan: Plan, column: CatalogColumn) -> str | None:
    """The new column's default; what draws from a sequence goes on drawing from the same one."""
    given = plan.given(column.name)
    if given is not None and given.given("default"):
        return given.default
    if column.identity:
        sequence = next(s for s in plan.extra.sequences if s.column == column.name)
        return f"nextval({literal(qualified(sequence.schema_name, sequence.name))}::regclass)"
    return column.default


def _unique_constraints(plan: Plan) -> list[tuple[str, str, str]]:
    """(temporary name, final name, definition)."""
    found = [c for c in plan.catalog.constraints if c.kind in {"u", "x"}]
    return [(plan.own("key", i), c.name, c.definition) for i, c in enumerate(found)]


def _comments(plan: Plan) -> list[str]:
    statements = []
    if plan.extra.comment is not None:
        statements.append(f"COMMENT ON TABLE {plan.new} IS {literal(plan.extra.comment)}")
    for name in plan.order:
        given, comment = plan.given(name), plan.catalog.column(name).comment
        if given is not None and given.given("comment"):
            comment = given.comment
        if comment is not None:
            statements.append(f"COMMENT ON COLUMN {plan.new}.{ident(name)} IS {literal(comment)}")
    return statements


def _user_triggers(plan: Plan) -> list[str]:
    """Triggers fire where the authoritative rows are: on the new table not before the flip."""
    statements = []
    for trigger in plan.catalog.triggers:
        place = f" ON {plan.printed} "
        head, _, tail = trigger.definition.partition(place)
        statements += [
            f"{head} ON {plan.new} {tail}",
            f"ALTER TABLE {plan.new} DISABLE TRIGGER {ident(trigger.name)}",
        ]
    return statements


def privileges(plan: Plan, present: Sequence[Grant]) -> list[str]:
    """The old table's owner and privileges; what default privileges gave beyond them is taken away."""
    extra = plan.extra
    wanted = {(g.grantee, g.privilege) for g in extra.grants}
    statements = [
        f"REVOKE {g.privilege} ON {plan.new} FROM {g.grantee}"
        for g in present
        if (g.grantee, g.privilege) not in wanted
    ]
    for grant in extra.grants:
        option = " WITH GRANT OPTION" if grant.grantable else ""
        statements.append(f"GRANT {grant.privilege} ON {plan.new} TO {grant.grantee}{option}")
    for column in plan.catalog.columns:
        for grantee, privilege in column.grants:
            statements.append(f"GRANT {privilege} ({ident(column.name)}) ON {plan.new} TO {grantee}")
    for sequence, grantees in _identity_users(plan):
        statements += [f"GRANT USAGE ON SEQUENCE {sequence} TO {g}" for g in grantees]
    if not extra.mine:
        statements += [f"ALTER TABLE {table} OWNER TO {extra.owner}" for table in _whole(plan)]
    return statements


def _identity_users(plan: Plan) -> list[tuple[str, list[str]]]:
    """Nobody needs a privilege on an identity's sequence; a default that draws from it does need one."""
    grantees = {g.grantee for g in plan.extra.grants if g.privilege == "INSERT"}
    grantees |= {g for c in plan.catalog.columns for g, p in c.grants if p == "INSERT"}
    return [
        (qualified(s.schema_name, s.name), sorted(grantees))
        for s in plan.extra.sequences
        if plan.catalog.column(s.column).identity
    ]


# -- indexes and keys ----------------------------------------------------------------------------------------


def indexes(plan: Plan) -> list[Rename]:
    """Indexes that belong to no constraint; CONCURRENTLY where the table is not partitioned."""
    result = []
    plain = [i for i in plan.catalog.indexes if not i.constraint]
    for number, index in enumerate(plain):
        name = f"_dualwire_index_{plan.migration}_r{plan.number}_{number}"
        sql = _index(index, name, plan.schema, plan.temporary, concurrent=not plan.partitioned)
        result.append(Rename(name=name, final=index.name, sql=sql))
    return result


def _index(index: CatalogIndex, name: str, schema: str, relation: str, *, concurrent: bool) -> str:
    [raw] = parse_sql(index.definition)
    statement: Any = raw.stmt
    assert isinstance(statement, ast.IndexStmt)
    statement.idxname = name
    statement.concurrent = concurrent
    target: Any = statement.relation
    target.schemaname, target.relname, target.inh = schema, relation, True
    return str(RawStream()(statement))


def foreign_keys(plan: Plan) -> tuple[list[str], list[str]]:
    """Foreign keys of the new table and their validation."""
    add, validate = [], []
    for key in plan.extra.outgoing:
        definition = _retargeted(plan, key) if key.self else key.definition
        definition = definition.removesuffix(" NOT VALID")
        suffix = "" if plan.partitioned else " NOT VALID"
        add.append(f"ALTER TABLE {plan.new} ADD CONSTRAINT {ident(key.name)} {definition}{suffix}")
        if key.validated and not plan.partitioned:
            validate.append(f"ALTER TABLE {plan.new} VALIDATE CONSTRAINT {ident(key.name)}")
    return add, validate


def _retargeted(plan: Plan, key: ForeignKey) -> str:
    return key.definition.replace(f" REFERENCES {plan.printed}(", f" REFERENCES {plan.new}(", 1)


def incoming(plan: Plan) -> list[Incoming]:
    """Foreign keys of other tables get a twin that points at the new table."""
    result = []
    for number, key in enumerate(plan.extra.incoming):
        child = qualified(key.schema_name, key.table)
        temporary = plan.own("fk", number)
        definition = _retargeted(plan, key).removesuffix(" NOT VALID")
        validate = f"ALTER TABLE {child} VALIDATE CONSTRAINT {ident(temporary)}" if key.validated else ""
        result.append(
            Incoming(
                schema_name=key.schema_name,
                table=key.table,
                oid=key.oid,
                name=key.name,
                temporary=temporary,
                create=f"ALTER TABLE {child} ADD CONSTRAINT {ident(temporary)} {definition} NOT VALID",
                validate_sql=validate,
            )
        )
    return result


def replica_identity(plan: Plan) -> list[str]:
    """Where it is an index of its own, that index of the new table."""
    if plan.extra.replica_identity != "i":
        return []
    built = {r.final: r.name for r in indexes(plan)} | {f: t for t, f, _ in _unique_constraints(plan)}
    for final, temporary in built.items():
        if qualified(plan.schema, final) == plan.extra.replica_index or final == _last(
            plan.extra.replica_index
        ):
            return [f"ALTER TABLE {plan.new} REPLICA IDENTITY USING INDEX {ident(temporary)}"]
    return []


def _last(printed: str | None) -> str:
    return (printed or "").rsplit(".", 1)[-1].strip('"')


# -- flip, swap, way back ------------------------------------------------------------------------------------


def flip(plan: Plan, kinds: dict[str, str]) -> tuple[list[str], list[str]]:
    """User triggers move, sequences get the new columns' range; and the reverse."""
    forward, backward = [], []
    for trigger in plan.catalog.triggers:
        if trigger.enabled == "D":
            continue
        name, mode = ident(trigger.name), ENABLE[trigger.enabled]
        forward.append(f"ALTER TABLE {plan.old} DISABLE TRIGGER {name}")
        forward.append(f"ALTER TABLE {plan.new} {mode} TRIGGER {name}")
        backward.append(f"ALTER TABLE {plan.new} DISABLE TRIGGER {name}")
        backward.append(f"ALTER TABLE {plan.old} {mode} TRIGGER {name}")
    for sequence in plan.extra.sequences:
        target = kinds.get(sequence.column, sequence.type)
        if _rank(target) > _rank(sequence.type) >= 0:
            name = qualified(sequence.schema_name, sequence.name)
            forward.append(f"ALTER SEQUENCE {name} AS {target}")
            backward.append(_narrow(sequence, name))
    return forward, backward


def _rank(kind: str) -> int:
    return INTEGERS.index(kind) if kind in INTEGERS else -1


def _narrow(sequence: OwnedSequence, name: str) -> str:
    """Back to the former type, unless the sequence has gone beyond it."""
    top = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}[sequence.type]
    return (
        f"DO $dualwire$ BEGIN IF (SELECT last_value FROM {name}) <= {top} THEN"
        f" ALTER SEQUENCE {name} AS {sequence.type}; END IF; END $dualwire$"
    )


def identities(plan: Plan) -> list[tuple[str, str, str, str]]:
    """(column, schema, sequence, how) of identity columns."""
    how = {"a": "ALWAYS", "d": "BY DEFAULT"}
    return [
        (s.column, s.schema_name, s.name, f"{how[plan.catalog.column(s.column).identity]}|{s.options}")
        for s in plan.extra.sequences
        if plan.catalog.column(s.column).identity
    ]


def swap(plan: Plan) -> tuple[list[str], list[str]]:
    """What comes before the old table is dropped, and after it."""
    before = [
        f"ALTER TABLE {qualified(k.schema_name, k.table)} DROP CONSTRAINT {ident(k.name)}"
        for k in plan.extra.incoming
    ]
    for sequence in plan.extra.sequences:
        if not plan.catalog.column(sequence.column).identity:
            name = qualified(sequence.schema_name, sequence.name)
            before.append(f"ALTER SEQUENCE {name} OWNED BY {plan.new}.{ident(sequence.column)}")
    after = [f"ALTER TABLE {plan.new} RENAME TO {ident(plan.catalog.name)}"]
    for temporary, final in renames(plan):
        if any(r.name == temporary for r in indexes(plan)):
            after.append(f"ALTER INDEX {qualified(plan.schema, temporary)} RENAME TO {ident(final)}")
        else:
            after.append(f"ALTER TABLE {plan.old} RENAME CONSTRAINT {ident(temporary)} TO {ident(final)}")
    for key in incoming(plan):
        child = qualified(key.schema_name, key.table)
        after.append(f"ALTER TABLE {child} RENAME CONSTRAINT {ident(key.temporary)} TO {ident(key.name)}")
    for publication in plan.extra.publications:
        columns = "" if publication.columns is None else f" ({names(publication.columns)})"
        condition = "" if publication.condition is None else f" WHERE ({publication.condition})"
        after.append(f"ALTER PUBLICATION {publication.name} ADD TABLE {plan.old}{columns}{condition}")
    return before, after


def renames(plan: Plan) -> list[tuple[str, str]]:
    """(temporary, final) names of constraints and indexes."""
    primary = next((c.name for c in plan.catalog.constraints if c.kind == "p"), f"{plan.catalog.name}_pkey")
    return [
        (plan.primary_key_name, primary),
        *((temporary, final) for temporary, final, _ in _unique_constraints(plan)),
        *((r.name, r.final) for r in indexes(plan)),
    ]


def shrink(plan: Plan) -> list[str]:
    """What else a rollback undoes than the mirror."""
    statements = [f"DROP TABLE IF EXISTS {plan.new}"]
    for sequence, grantees in _identity_users(plan):
        statements += [f"REVOKE USAGE ON SEQUENCE {sequence} FROM {g}" for g in grantees]
    return statements
