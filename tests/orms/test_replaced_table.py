"""An ORM whose keys are integers and one whose keys are bigints, on a table that is being replaced by another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import BigInteger, ForeignKey, Integer, String, Text, create_engine, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, declarative_base, mapped_column, relationship

from tests.orms.conftest import Shop


def models(key: Any) -> tuple[Any, Any]:
    """Items and notes with keys of that type."""
    base: Any = declarative_base()

    class Item(base):  # type: ignore[misc]
        __tablename__ = "items"
        id = mapped_column(key, primary_key=True)
        code = mapped_column(String(20))
        qty = mapped_column(Integer, server_default="1")
        note = mapped_column(Text)
        version = mapped_column(Integer, nullable=False)
        notes = relationship("Note", cascade="all, delete-orphan", passive_deletes=True)
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    class Note(base):  # type: ignore[misc]
        __tablename__ = "notes"
        id = mapped_column(Integer, primary_key=True)
        item = mapped_column(ForeignKey("items.id"))
        text = mapped_column(Text)

    return Item, Note


MODELS = {"old": models(Integer), "new": models(BigInteger)}


@pytest.fixture
def engines(replaced: Shop) -> Iterator[dict[str, Engine]]:
    made = {side: create_engine(replaced.url(side, "psycopg")) for side in ("old", "new")}
    yield made
    for engine in made.values():
        engine.dispose()


def same(shop: Shop) -> bool:
    """Whether the two tables hold the same rows."""
    one, other = (
        "SELECT id, code, qty, note, version FROM items",
        'SELECT id, code, qty, note, version FROM "_dualwire_new_items"',
    )
    return (
        shop.database.sql(
            f"SELECT NOT EXISTS (({one} EXCEPT ALL {other}) UNION ALL ({other} EXCEPT ALL {one}))"
        )
        == "t"
    )


@pytest.mark.parametrize("side", ["old", "new"])
def test_rows_live_through_insert_update_and_delete(
    replaced: Shop, engines: dict[str, Engine], side: str
) -> None:
    (ours, note), (theirs, _) = MODELS[side], MODELS["new" if side == "old" else "old"]
    with Session(engines[side]) as session, Session(engines["new" if side == "old" else "old"]) as reader:
        rows = [ours(code=f"{side}{n}", notes=[note(text="mine")]) for n in range(30)]
        session.add_all(rows)
        session.commit()
        keys = [row.id for row in rows]
        assert [
            row.code for row in reader.scalars(select(theirs).where(theirs.id.in_(keys)).order_by(theirs.id))
        ] == [f"{side}{n}" for n in range(30)]
        for row in rows:
            row.qty = row.qty + 1
        session.commit()
        assert {row.version for row in rows} == {2}
        locked = session.scalars(select(ours).where(ours.id == keys[0]).with_for_update()).one()
        locked.note = "locked"
        session.commit()
        upsert = insert(ours).values(code=f"{side}0", qty=7, version=1)
        session.execute(
            upsert.on_conflict_do_update(index_elements=["code"], set_={"qty": upsert.excluded.qty})
        )
        got = session.execute(
            update(ours).where(ours.id == keys[1]).values(note="x").returning(ours.id, ours.qty)
        ).all()
        assert got == [(keys[1], 2)]
        session.execute(update(ours), [{"id": keys[2], "qty": 5, "version": 2}])
        session.commit()
        reader.rollback()
        seen = dict(reader.execute(select(theirs.id, theirs.qty).where(theirs.id.in_(keys[:3]))).all())
        assert seen == {keys[0]: 7, keys[1]: 2, keys[2]: 5}
        assert same(replaced)
        session.delete(rows[3])
        session.commit()
        assert session.execute(delete(ours).where(ours.id.in_(keys[4:10]))).rowcount == 6
        session.commit()
        reader.rollback()
        assert reader.scalars(select(theirs.id).where(theirs.id.in_(keys[3:10]))).all() == []
        assert same(replaced)
        streamed = session.execute(select(ours.id).order_by(ours.id).execution_options(yield_per=6)).all()
        assert len(streamed) >= 40


@pytest.mark.parametrize("side", ["old", "new"])
def test_an_error_is_what_an_orm_knows(engines: dict[str, Engine], side: str) -> None:
    ours, _ = MODELS[side]
    with Session(engines[side]) as session:
        session.add(ours(code="i1"))
        with pytest.raises(IntegrityError) as failed:
            session.commit()
        told = failed.value.orig.diag
        assert (told.table_name, told.constraint_name) == ("items", "items_code")
        assert told.message_detail == "Key (code)=(i1) already exists."
        session.rollback()
        assert session.scalar(select(ours.qty).where(ours.code == "i1")) == 1
