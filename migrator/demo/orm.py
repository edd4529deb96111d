"""A service instance that speaks SQLAlchemy's ORM over psycopg, as most Python shops do.

It sends what an ORM sends: loads before updates, only changed columns, INSERT ... SELECT FROM (VALUES ...)
for several rows, prepared statements after the fifth use.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Integer,
    SmallInteger,
    Text,
    case,
    create_engine,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, declarative_base, mapped_column

from .ledger import Side
from .operations import Operation, WrongAnswer
from .shop import NEXT_STATE, ORDERS, Table


def _classes() -> dict[tuple[str, Side], Any]:
    """One mapped class for each table and side; the changing column is always the attribute ``value``."""
    classes = {}
    for side in Side:
        base: Any = declarative_base()
        order_value: Any = ("status", SmallInteger) if side is Side.OLD else ("state", Text)
        classes["orders", side] = type(
            f"Order{side.name.title()}",
            (base,),
            {
                "__tablename__": "orders",
                "id": mapped_column(BigInteger, primary_key=True),
                "customer_id": mapped_column(BigInteger),
                "value": mapped_column(*order_value),
                "total_cents": mapped_column(Integer),
                "reference": mapped_column(Text),
            },
        )
        classes["customers", side] = type(
            f"Customer{side.name.title()}",
            (base,),
            {
                "__tablename__": "customers",
                "id": mapped_column(BigInteger, primary_key=True),
                "name": mapped_column(Text),
                "value": mapped_column("email", Text, nullable=side is Side.OLD),
                "points": mapped_column(Integer),
            },
        )
    return classes


CLASSES = _classes()


class OrmClient:
    """One engine with one connection; blocking, for a thread of its own."""

    def __init__(self, dsn: str, name: str) -> None:
        self._engine: Engine = create_engine(
            dsn.replace("postgresql://", "postgresql+psycopg://", 1),
            pool_size=1,
            max_overflow=0,
            connect_args={"application_name": name, "connect_timeout": 20},
        )
        self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    def connect(self) -> None:
        """Connects anew."""
        self._engine.dispose()
        with self._engine.connect() as connection:
            connection.rollback()

    def close(self) -> None:
        """Says goodbye."""
        self._engine.dispose()

    def abandon(self) -> None:
        """Drops the connection as it is."""
        self._engine.dispose()

    def perform(self, operation: Operation) -> list[int] | None:
        """Sends one operation; gives the keys of fresh rows."""
        kind = {"star": "row", "save": "set", "plain": "set", "plain_row": "row", "insert_many": "insert"}
        keys: list[int] | None = getattr(self, f"_{kind.get(operation.kind, operation.kind)}")(operation)
        return keys

    def probe(self, table: Table, side: Side) -> None:
        """A read that only succeeds where the side's version is served."""
        with Session(self._reading) as session:
            session.get(CLASSES[table.name, side], 1)

    def _row(self, operation: Operation) -> None:
        with Session(self._reading) as session:
            self._loaded(session, operation, operation.key)

    def _summary(self, operation: Operation) -> None:
        record = operation.before[0]
        customer = record.plain[0] if record else 0
        mapped = CLASSES["orders", operation.side]
        with Session(self._reading) as session:
            query = (
                select(mapped.value, func.count())
                .where(mapped.customer_id == customer)
                .group_by(mapped.value)
            )
            values = [row[0] for row in session.execute(query)]
        mine = record.value(operation.side) if record else None
        if mine not in values:
            raise WrongAnswer(
                f"orders of customer {customer}: no {mine!r} in {values}, order {operation.key} has it"
            )

    def _insert(self, operation: Operation) -> list[int]:
        mapped = self._mapped(operation)
        with Session(self._engine) as session:
            rows = [mapped(**_attributes(operation, plain, value)) for plain, value in operation.fresh]
            session.add_all(rows)
            session.flush()
            keys = [row.id for row in rows]
            session.commit()
        return keys

    def _upsert(self, operation: Operation) -> None:
        ((key, (plain, value)),) = operation.values.items()
        columns = [*operation.table.plain_columns, operation.column]
        cells = dict(zip(columns, (*plain, value), strict=True))
        statement = pg_insert(self._mapped(operation).__table__).values(id=key, **cells)
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={name: statement.excluded[name] for name in columns}
        )
        self._execute(operation, statement, 1)

    def _set(self, operation: Operation) -> None:
        with Session(self._engine) as session:
            self._change(session, operation)
            session.commit()

    _pair = _set

    def _cancel(self, operation: Operation) -> None:
        with Session(self._engine) as session:
            self._change(session, operation)
            session.flush()
            session.rollback()

    def _step(self, operation: Operation) -> None:
        mapped = self._mapped(operation)
        if operation.table is not ORDERS:
            expression: Any = func.upper(mapped.value)
        elif operation.side is Side.OLD:
            expression = case((mapped.value < 3, mapped.value + 1), else_=mapped.value)
        else:
            expression = case(NEXT_STATE, value=mapped.value, else_=mapped.value)
        self._execute(operation, update(mapped).where(mapped.id == operation.key).values(value=expression), 1)

    def _many(self, operation: Operation) -> None:
        mapped = self._mapped(operation)
        value = next(iter(operation.values.values()))[1]
        keys = list(operation.values)
        self._execute(operation, update(mapped).where(mapped.id.in_(keys)).values(value=value), len(keys))

    def _delete(self, operation: Operation) -> None:
        mapped = self._mapped(operation)
        self._execute(operation, delete(mapped).where(mapped.id == operation.key), 1)

    def _execute(self, operation: Operation, statement: Any, rows: int) -> None:
        with Session(self._engine) as session:
            options = {"synchronize_session": False, "preserve_rowcount": True}
            result: Any = session.execute(statement, execution_options=options)
            session.commit()
            operation.expect_count(result.rowcount, rows)

    def _change(self, session: Session, operation: Operation) -> None:
        for number, (key, (plain, value)) in enumerate(operation.values.items()):
            row = self._loaded(session, operation, key, number)
            for name, cell in _attributes(operation, plain, value).items():
                setattr(row, name, cell)

    def _loaded(self, session: Session, operation: Operation, key: int, number: int = 0) -> Any:
        row = session.get(self._mapped(operation), key)
        if row is None:
            raise WrongAnswer(f"{operation.table.name} {key} is missing")
        plain = tuple(getattr(row, name) for name in operation.table.plain_columns)
        operation.expect_row(plain, row.value, number)
        return row

    @staticmethod
    def _mapped(operation: Operation) -> Any:
        return CLASSES[operation.table.name, operation.side]


def _attributes(operation: Operation, plain: tuple[Any, ...], value: Any) -> dict[str, Any]:
    return {**dict(zip(operation.table.plain_columns, plain, strict=True)), "value": value}
