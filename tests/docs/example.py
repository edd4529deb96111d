"""The tables of the examples in docs/rewriting.md, as the migrator publishes such."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, Side, TableModel, Virtual

VARCHAR = "character varying"


def _logical(**columns: str) -> tuple[LogicalColumn, ...]:
    return tuple(LogicalColumn(name, column) for name, column in columns.items())


ORDERS = TableModel(
    schema="public",
    name="orders",
    oid=16384,
    columns=(
        Column("id", "integer", "integer", not_null=True),
        Column("status", "smallint", "smallint", not_null=True),
        Column("customer", VARCHAR, f"{VARCHAR}(20)"),
        Column("note", "text", "text"),
        Column("_dualwire_new_state", VARCHAR, f"{VARCHAR}(10)"),
        Column("_dualwire_mark", "smallint", "smallint"),
    ),
    primary_key=("id",),
    old=_logical(id="id", status="status", customer="customer", note="note"),
    new=_logical(id="id", state="_dualwire_new_state", buyer="customer", note="note"),
    up=Direction((Mirror("_dualwire_new_state", "dualwire.up_1_1", ("status",)),)),
    down=Direction((Mirror("status", "dualwire.down_1_1", ("_dualwire_new_state",)),)),
    mark="_dualwire_mark",
    copy_old=("dualwire", "copy_1_1_old"),
    copy_new=("dualwire", "copy_1_1_new"),
)
"""``status`` becomes ``state``, of another type, and ``customer`` is renamed to ``buyer``."""

CUSTOMERS = TableModel(
    schema="public",
    name="customers",
    oid=16390,
    columns=(Column("id", "integer", "integer", not_null=True), Column("email", "text", "text")),
    primary_key=("id",),
    old=_logical(id="id", email="email"),
    new=_logical(id="id", mail="email"),
)
"""``email`` is renamed to ``mail``."""

TICKETS = TableModel(
    schema="public",
    name="tickets",
    oid=16400,
    columns=(
        Column("id", "integer", "integer", not_null=True),
        Column(
            "token",
            "uuid",
            "uuid",
            not_null=True,
            default="pg_catalog.gen_random_uuid()",
            default_kind="volatile",
        ),
        Column("tags", "text[]", "text[]"),
        Column("_dualwire_new_token", "text", "text"),
        Column("_dualwire_new_tags", "jsonb", "jsonb"),
        Column("_dualwire_mark", "smallint", "smallint"),
    ),
    primary_key=("id",),
    old=_logical(id="id", token="token", tags="tags"),
    new=_logical(id="id", token="_dualwire_new_token", tags="_dualwire_new_tags"),
    up=Direction(
        (
            Mirror("_dualwire_new_token", "dualwire.up_1_2", ("token",)),
            Mirror("_dualwire_new_tags", "dualwire.up_1_3", ("tags",)),
        )
    ),
    down=Direction(
        (
            Mirror("token", "dualwire.down_1_2", ("_dualwire_new_token",)),
            Mirror("tags", "dualwire.down_1_3", ("_dualwire_new_tags",)),
        )
    ),
    mark="_dualwire_mark",
)
"""A column with a volatile default and an array, which change their types."""

VISITS = TableModel(
    schema="public",
    name="visits",
    oid=16405,
    columns=(
        Column("id", "integer", "integer", not_null=True, identity="a"),
        Column("page", "text", "text"),
        Column("_dualwire_new_number", "text", "text"),
        Column("_dualwire_mark", "smallint", "smallint"),
    ),
    primary_key=("id",),
    old=_logical(id="id", page="page"),
    new=_logical(id="id", page="page", number="_dualwire_new_number"),
    up=Direction((Mirror("_dualwire_new_number", "dualwire.up_1_4", ("id",)),)),
    mark="_dualwire_mark",
)
"""A column is added that follows from an identity column."""

GONE = TableModel(
    schema="public",
    name="orders",
    oid=16384,
    columns=(
        Column("id", "integer", "integer", not_null=True),
        Column("buyer", VARCHAR, f"{VARCHAR}(20)"),
        Column("note", "text", "text"),
        Column("state", VARCHAR, f"{VARCHAR}(10)", not_null=True),
    ),
    primary_key=("id",),
    old=_logical(id="id", status="_dualwire_old_status", customer="buyer", note="note"),
    new=_logical(id="id", state="state", buyer="buyer", note="note"),
    up=Direction((Mirror("state", "dualwire.up_1_1", ("_dualwire_old_status",)),)),
    guard="off",
    virtuals=(
        Virtual(
            Column("_dualwire_old_status", "smallint", "smallint", not_null=True),
            "dualwire.down_1_1",
            ("state",),
        ),
    ),
    twin_old=("dualwire", "twin_1_1"),
)
"""The same table after the old columns are gone (``compat``)."""

REPLACED = TableModel(
    schema="public",
    name="items",
    oid=16410,
    columns=(
        Column("id", "integer", "integer", not_null=True),
        Column("code", "text", "text"),
        Column("qty", "integer", "integer"),
    ),
    primary_key=("id",),
    old=_logical(id="id", code="code", qty="qty"),
    new=_logical(id="_dualwire_virtual_id", code="code", qty="qty"),
    down=Direction((Mirror("id", "dualwire.down_1_9", ("_dualwire_virtual_id",)),)),
    virtuals=(
        Virtual(
            Column("_dualwire_virtual_id", "bigint", "bigint", not_null=True),
            "dualwire.up_1_9",
            ("id",),
            raw="id",
        ),
    ),
    twin_new=("public", "_dualwire_new_items"),
)
"""A table whose key becomes a bigint by ``replace_table``, before authority is flipped."""


@dataclass(frozen=True)
class State:
    """Tables at one moment, and who speaks."""

    title: str
    tables: tuple[TableModel, ...]
    side: Side
    dual_write: bool = True


MIGRATING = (ORDERS, CUSTOMERS, TICKETS, VISITS)
OLD = State("the old version, while both are served", MIGRATING, "old")
NEW = State("the new version, while both are served", MIGRATING, "new")
OLD_SWITCHED_OFF = State("the old version, dual writes switched off", MIGRATING, "old", dual_write=False)
OLD_UNGUARDED = State("the old version, guard `off`", (replace(ORDERS, guard="off"),), "old")
OLD_TRIGGERED = State(
    "the old version of a table whose BEFORE triggers may change the row",
    (replace(ORDERS, inline=False),),
    "old",
)
OLD_GONE = State("the old version, after its columns are gone (`compat`)", (GONE,), "old")
NEW_OF_REPLACED = State("the new version of a table that is being replaced", (REPLACED,), "new")
