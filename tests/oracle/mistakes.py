"""Statements that are wrong, each in one way: what PostgreSQL says of them, and where, must reach the client."""

from __future__ import annotations

from tests.oracle.schemas import Table
from tests.oracle.writing import Writer


class Blunderer(Writer):
    """Writes statements that fail while they are parsed or analysed."""

    def mistake(self) -> str:
        """A statement with one mistake."""
        table = self.table()
        column = self.pick([c for c in self.columns(table) if c.name != "id"])
        other = self.pick(self.columns(table))
        # An old speaker can name what the table holds for the new version: nobody does without wanting to.
        hidden = "_dualwire_mark" if self.side == "new" else "nosuch"
        wrong = self.pick(("nosuch", column.name[:-1] + "x", hidden, "Id"))
        bad = f'"{wrong}"'
        return self.pick(
            (
                f"SELECT {bad} FROM {table.name}",
                f"SELECT id FROM {table.name} t WHERE t.{bad} = 1",
                f"SELECT t.id FROM {table.name}",
                f"UPDATE {table.name} SET {bad} = 1",
                f"UPDATE {table.name} SET {column.sql} = {bad}",
                f"UPDATE {table.name} t SET t.{column.sql} = DEFAULT",
                f"UPDATE {table.name} SET {column.sql} = DEFAULT, {column.sql} = DEFAULT",
                f"INSERT INTO {table.name} (id, {bad}) VALUES (50, 1)",
                f"INSERT INTO {table.name} (id, id) VALUES (50, 1)",
                f"INSERT INTO {table.name} (id, {column.sql}) VALUES (50)",
                f"INSERT INTO {table.name} (id) VALUES (50, 1)",
                f"INSERT INTO {table.name} (id) VALUES (50), (51, 1)",
                f"INSERT INTO {table.name} (id) SELECT 50, {other.sql} FROM {table.name}",
                f"INSERT INTO {table.name} (id) VALUES (50) RETURNING {bad}",
                f"INSERT INTO {table.name} (id) VALUES (1) ON CONFLICT ({column.sql}) DO NOTHING",
                f"INSERT INTO {table.name} (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET {bad} = 1",
                f"INSERT INTO {table.name} (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET id = excluded.{bad}",
                f"INSERT INTO {table.name} VALUES ({', '.join('NULL' for _ in self.columns(table))}, NULL)",
                f"DELETE FROM {table.name} WHERE {bad} IS NULL",
                f"SELECT {column.sql}, count(*) FROM {table.name}",
                f"SELECT {column.sql} FROM {table.name} a, {table.name} b",
                f"SELECT * FROM {table.name} ORDER BY {bad}",
                f"SELECT * FROM {table.name} GROUP BY {column.sql}",
                f"SELECT * FROM {table.name} WHERE {column.sql}",
                f"SELECT * FROM {table.name} WHERE id = 'x'",
                f"SELECT * FROM {table.name} UNION SELECT id FROM {table.name}",
                f"SELECT * FROM {table.name} x JOIN notes USING ({column.sql})",
                f"SELECT * FROM {table.name} FOR UPDATE OF nobody",
                f"SELECT {table.name}.* FROM {table.name} t",
                f"SELECT nosuch(t) FROM {table.name} t",
                f"SELECT {column.sql} + {other.sql} FROM {table.name}",
                f"SELECT 1 / (id - id) FROM {table.name}",
                f"SELECT * FROM nosuch.{table.name}",
                f"SELECT * FROM {table.name} WHERE id = ",
                f"SELEC {column.sql} FROM {table.name}",
                f"UPDATE {table.name} SET id = 1 WHERE id = 2",
                f"UPDATE {table.name} SET {column.sql} = (SELECT 1, 2)",
                f"UPDATE {table.name} SET ({column.sql}, id) = (1, 2, 3)",
                f"MERGE INTO {table.name} t USING notes n ON n.id = t.id WHEN MATCHED THEN UPDATE SET {bad} = 1",
                f"COPY {table.name} (id, {bad}) TO STDOUT",
                f"COPY {table.name} (id, {bad}) FROM STDIN",
                f"TRUNCATE {table.name}, nosuch",
                f"EXPLAIN SELECT {bad} FROM {table.name}",
                f"DECLARE c CURSOR FOR SELECT {bad} FROM {table.name}",
                f"PREPARE wrong AS SELECT {bad} FROM {table.name}",
                f"PREPARE wrong (integer) AS UPDATE {table.name} SET {column.sql} = $2 WHERE id = $1",
                f"WITH w AS (UPDATE {table.name} SET {column.sql} = DEFAULT RETURNING {bad}) SELECT * FROM w",
                f"WITH w AS (SELECT {column.sql} FROM {table.name}) SELECT id FROM w",
            )
        )

    def other_side(self, table: Table) -> str:
        """The name of a column that only the other version has."""
        mine = {c.name for c in self.columns(table)}
        others = [c.sql for c in table.columns("new" if self.side == "old" else "old") if c.name not in mine]
        return self.pick(others or ["nosuch"])

    def foreign(self) -> str:
        """A statement in the other version's words."""
        table = self.table()
        name = self.other_side(table)
        return self.pick(
            (
                f"SELECT {name} FROM {table.name}",
                f"UPDATE {table.name} SET {name} = DEFAULT",
                f"INSERT INTO {table.name} (id, {name}) VALUES (50, DEFAULT)",
                f"DELETE FROM {table.name} t WHERE t.{name} IS NULL",
                f"SELECT * FROM {table.name} ORDER BY {name}",
                f"COPY {table.name} ({name}) TO STDOUT",
                f"UPDATE {table.name} SET id = id RETURNING {name}",
            )
        )
