"""SQLAlchemy 2, with psycopg and with asyncpg: models of the old and of the new version on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Identity,
    Integer,
    Numeric,
    SmallInteger,
    String,
    Text,
    create_engine,
    delete,
    func,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, attributes, declarative_base, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from tests.orms.conftest import UP, Shop


def model(side: str) -> Any:
    """The orders of one version; the attributes ``value`` and ``who`` are the columns that differ."""
    value = mapped_column("status", SmallInteger) if side == "old" else mapped_column("state", String(10))
    base: Any = declarative_base()
    return type(
        f"Order{side.title()}",
        (base,),
        {
            "__tablename__": "orders",
            "id": mapped_column(BigInteger, Identity(), primary_key=True),
            "value": value,
            "who": mapped_column("customer" if side == "old" else "buyer", String(40)),
            "amount": mapped_column(Numeric(10, 2), server_default="0"),
            "note": mapped_column(Text),
            "version": (version := mapped_column(Integer, nullable=False)),
            "__mapper_args__": {"version_id_col": version},
        },
    )


Old, New = model("old"), model("new")


@pytest.fixture
def engines(shop: Shop) -> Iterator[dict[str, Engine]]:
    made = {side: create_engine(shop.url(side, "psycopg")) for side in ("old", "new")}
    yield made
    for engine in made.values():
        engine.dispose()


def every(row: Any) -> None:
    """Have the ORM save all columns of a row, changed or not."""
    for attribute in inspect(row).mapper.column_attrs:
        if attribute.key not in ("id", "version"):
            attributes.flag_modified(row, attribute.key)


def test_rows_of_many_are_inserted_at_once_and_both_versions_see_them(
    shop: Shop, engines: dict[str, Engine]
) -> None:
    with Session(engines["old"]) as old, Session(engines["new"]) as new:
        rows = [Old(value=n % 3, who=f"o{n}", note="insertmanyvalues") for n in range(50)]
        old.add_all(rows)
        old.commit()
        keys = [row.id for row in rows]
        seen = new.scalars(select(New).where(New.id.in_(keys)).order_by(New.id)).all()
        assert [row.value for row in seen] == [UP[row.value] for row in rows]
        assert {row.amount for row in seen} == {Decimal(0)}
        more = [
            New(value=["new", "paid", "sent"][n % 3], who=f"n{n}", note="insertmanyvalues") for n in range(50)
        ]
        new.add_all(more)
        new.commit()
        old.expire_all()
        seen = old.scalars(select(Old).where(Old.id.in_([row.id for row in more])).order_by(Old.id)).all()
        assert [UP[row.value] for row in seen] == [row.value for row in more]
        assert [row.who for row in seen] == [f"n{n}" for n in range(50)]


@pytest.mark.parametrize("whole", [False, True], ids=["changed columns", "all columns"])
def test_what_only_one_version_can_say_outlives_the_other_s_saves(
    shop: Shop, engines: dict[str, Engine], whole: bool
) -> None:
    with Session(engines["old"]) as old, Session(engines["new"]) as new:
        theirs = New(value="returned", who="n")
        new.add(theirs)
        new.commit()
        assert shop.row(theirs.id) == (2, "returned")
        row = old.get_one(Old, theirs.id)
        assert row.value == 2
        row.note = "seen by the old version"
        if whole:
            every(row)
        old.commit()
        assert shop.row(theirs.id) == (2, "returned")

        ours = Old(value=7, who="o")
        old.add(ours)
        old.commit()
        assert shop.row(ours.id) == (7, "unknown")
        row = new.get_one(New, ours.id)
        assert row.value == "unknown"
        row.note = "seen by the new version"
        if whole:
            every(row)
        new.commit()
        assert shop.row(ours.id) == (7, "unknown")

        row.value = "paid"
        new.commit()
        old.expire_all()
        assert ours.value == 1
        assert (ours.note, ours.version) == ("seen by the new version", 3)


def test_a_version_number_counts_across_versions_of_the_schema(engines: dict[str, Engine]) -> None:
    with Session(engines["old"]) as old, Session(engines["new"]) as new:
        ours = Old(value=0, who="o")
        old.add(ours)
        old.commit()
        key = ours.id
        theirs = new.get_one(New, key)
        ours.value = 1
        old.commit()
        theirs.value = "sent"
        with pytest.raises(StaleDataError):
            new.commit()
        new.rollback()
        assert theirs.value == "paid"
        assert ours.value == 1  # loaded, and out of date in a moment
        theirs.value = "sent"
        new.commit()
        old.delete(ours)
        with pytest.raises(StaleDataError):
            old.commit()
        old.rollback()
        assert ours.value == 2
        old.delete(ours)
        old.commit()
        with Session(engines["new"]) as later:
            assert later.get(New, key) is None


@pytest.mark.parametrize("side", ["old", "new"])
def test_statements_of_the_core_mean_the_same_in_both_versions(engines: dict[str, Engine], side: str) -> None:
    table, values = (Old, [0, 1, 2]) if side == "old" else (New, ["new", "paid", "sent"])
    other, seen = (New, ["new", "paid", "sent"]) if side == "old" else (Old, [0, 1, 2])
    there = engines["new" if side == "old" else "old"]
    with Session(engines[side]) as session, Session(there) as reader:

        def told(key: int) -> Any:
            reader.rollback()
            return reader.scalar(select(other.value).where(other.id == key))

        key = session.scalar(insert(table).values(value=values[0], who="core", version=1).returning(table.id))
        session.commit()
        assert told(key) == seen[0]
        upsert = insert(table).values(id=key, value=values[1], who="core", version=1)
        upsert = upsert.on_conflict_do_update(
            index_elements=["id"],
            set_={"amount": table.amount + 1, table.value.name: upsert.excluded[table.value.name]},
        )
        session.execute(upsert)
        session.commit()
        assert told(key) == seen[1]
        got = session.execute(
            update(table)
            .where(table.value == values[1], table.who == "core")
            .values(value=values[2])
            .returning(table.id, table.value)
        ).all()
        assert got == [(key, values[2])]
        session.commit()
        assert told(key) == seen[2]
        session.execute(update(table), [{"id": key, "value": values[0], "version": 1}])
        session.commit()
        assert told(key) == seen[0]
        locked = session.scalars(select(table).where(table.id == key).with_for_update(of=table)).one()
        assert locked.amount == 1
        counted = session.execute(select(table.value, func.count()).group_by(table.value)).all()
        assert (values[0], 1) in [(value, min(count, 1)) for value, count in counted]
        assert session.execute(delete(table).where(table.value == values[0], table.id == key)).rowcount == 1
        session.commit()
        assert told(key) is None


@pytest.mark.parametrize("side", ["old", "new"])
def test_rows_are_streamed_with_a_cursor_on_the_server(engines: dict[str, Engine], side: str) -> None:
    table = Old if side == "old" else New
    with Session(engines[side]) as session:
        expected = session.execute(select(table.id, table.value).order_by(table.id)).all()
        query = select(table.id, table.value).order_by(table.id).execution_options(yield_per=7)
        assert session.execute(query).all() == expected
        assert len(expected) >= 20


@pytest.mark.parametrize("side", ["old", "new"])
async def test_the_same_with_asyncpg(shop: Shop, side: str) -> None:
    pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    table, values = (Old, [0, 1, 2]) if side == "old" else (New, ["new", "paid", "sent"])
    engine = create_async_engine(shop.url(side, "asyncpg"))
    try:
        async with AsyncSession(engine) as session:
            rows = [table(value=values[n % 3], who=f"async {side}") for n in range(30)]
            session.add_all(rows)
            await session.commit()
            for row in rows:
                await session.refresh(row)
                row.value = values[2]
                every(row)
            await session.commit()
            query = select(table).where(table.who == f"async {side}").order_by(table.id)
            streamed = [
                row async for row in await session.stream_scalars(query.execution_options(yield_per=8))
            ]
            assert [row.value for row in streamed] == [values[2]] * 30
            assert {row.version for row in streamed} == {2}
            both = {shop.row(row.id) for row in rows[:3]}
            assert both == {(2, "sent")}
            for row in streamed:
                await session.delete(row)
            await session.commit()
    finally:
        await engine.dispose()
