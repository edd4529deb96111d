"""Queries of one version: every way in which a table can be named and read."""

from __future__ import annotations

from tests.oracle.pen import Pen
from tests.oracle.schemas import Table


class Reader(Pen):
    """Writes queries."""

    def select(self) -> str:
        """A query."""
        self.text.rows = True
        table = self.table()
        chosen = self.pick(
            (
                "plain",
                "plain",
                "plain",
                "join",
                "group",
                "groupkey",
                "set",
                "sub",
                "window",
                "lock",
                "cte",
                "values",
                "table",
                "lateral",
                "aliased",
                "sample",
                "distinct",
                "natural",
                "leftjoin",
                "scalar",
                "view",
            )
        )
        return str(getattr(self, f"select_{chosen}")(table))

    def select_view(self, table: Table) -> str:
        if not any(text.startswith("CREATE VIEW") for text in table.triggers):
            return self.plain_query(table)
        return (
            f"SELECT v.* FROM {table.name}_view v JOIN {table.name} t ON t.id = v.id{self.where(table, 't.')}"
        )

    def plain_query(self, table: Table, lock: str = "") -> str:
        alias = self.alias()
        around = self.around(table, alias)
        text = (
            f"SELECT {self.output(table, around)} FROM {self.name(table)} {alias}{self.where(table, around)}"
        )
        if self.chance(60):
            self.text.ordered = True
            text += f" ORDER BY {around}id{self.pick(('', ' DESC'))}"
            if self.chance(30):
                text += f" LIMIT {self.below(3)}" + (" OFFSET 1" if self.chance(30) else "")
        return text + lock

    def select_plain(self, table: Table) -> str:
        return self.plain_query(table)

    def select_lock(self, table: Table) -> str:
        lock = self.pick(
            (" FOR UPDATE", " FOR NO KEY UPDATE SKIP LOCKED", " FOR SHARE NOWAIT", " FOR KEY SHARE")
        )
        if self.chance(30):
            lock = lock.removesuffix(" SKIP LOCKED").removesuffix(" NOWAIT")
            return f"SELECT * FROM {table.name} o WHERE {self.predicate(table, 'o.')}{lock} OF o"
        return self.plain_query(table, lock)

    def select_join(self, table: Table) -> str:
        other = self.table()
        return (
            f"SELECT {self.output(table, 'a.')}, {self.output(other, 'b.')} FROM {table.name} a"
            f" JOIN {other.name} b ON a.id = b.id WHERE {self.predicate(table, 'a.')}"
        ).replace("SELECT *,", "SELECT a.*,")

    def select_leftjoin(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        return (
            f"SELECT n.*, t.{column.sql}, {self.pick(('t.*', 't', 't.id'))} FROM notes n"
            f" {self.pick(('LEFT', 'FULL', 'RIGHT'))} JOIN {table.name} t ON t.id = n.id{self.where(table, 't.')}"
        )

    def select_natural(self, table: Table) -> str:
        how = self.pick(("NATURAL JOIN notes", "JOIN notes USING (id)", "CROSS JOIN notes n"))
        return f"SELECT * FROM {table.name} {how}"

    def select_group(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        value = self.pick(("max(id)", f"count({column.sql})", "array_agg(id ORDER BY id)"))
        return (
            f"SELECT {column.sql}, count(*), {value} FROM {self.name(table)} GROUP BY {self.pick((column.sql, '1'))}"
            f"{self.pick(('', ' HAVING count(*) > 1', f' HAVING {column.sql} IS NOT NULL'))}"
        )

    def select_groupkey(self, table: Table) -> str:
        columns = self.some(self.columns(table))
        listed = ", ".join(f"t.{c.sql}" for c in columns)
        return (
            f"SELECT {self.pick((listed, 't.*'))}, count(n.id) FROM {table.name} t LEFT JOIN notes n ON n.id <= t.id"
            f" GROUP BY {self.pick(('t.id', 't.id, n.word'))}"
        )

    def select_set(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        word = self.pick(("UNION", "UNION ALL", "INTERSECT", "EXCEPT"))
        what = self.pick(("*", f"id, {column.sql}"))
        return (
            f"SELECT {what} FROM {table.name}{self.where(table, '')} {word}"
            f" SELECT {what} FROM {table.name}{self.where(table, '')}"
        )

    def select_sub(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        return (
            f"SELECT s.* FROM (SELECT {self.pick(('*', f'id, {column.sql}', f'{column.sql} AS v, id'))}"
            f" FROM {table.name}{self.where(table, '')}) s"
        )

    def select_scalar(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        return (
            f"SELECT id, (SELECT {self.pick(('x.' + column.sql, 'count(*)'))} FROM {table.name} x WHERE x.id = o.id"
            f"{self.pick(('', ' LIMIT 1'))}), EXISTS (SELECT * FROM {table.name} WHERE {self.predicate(table)}),"
            f" ARRAY(SELECT id FROM {table.name} ORDER BY {column.sql}, id) FROM {table.name} o"
        )

    def select_window(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        return (
            f"SELECT id, row_number() OVER (PARTITION BY {column.sql} ORDER BY id),"
            f" {self.pick(('lag', 'first_value', 'count'))}({column.sql}) OVER w FROM {table.name}"
            " WINDOW w AS (ORDER BY id)"
        )

    def select_cte(self, table: Table) -> str:
        name = self.pick(("w", table.name))
        text = f"WITH {name} AS ({self.plain_query(table)}) SELECT * FROM {name}"
        self.text.ordered = False
        return text

    def select_values(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        values = f"{self.constant(column)}, {self.constant(column)}"
        return f"SELECT {column.sql} FROM {self.name(table)} WHERE {column.sql} IN ({values})"

    def select_table(self, table: Table) -> str:
        return f"TABLE {self.name(table)}"

    def select_lateral(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        return (
            f"SELECT n.id, l.* FROM notes n {self.pick((',', 'CROSS JOIN'))} LATERAL"
            f" (SELECT {column.sql} FROM {table.name} t WHERE t.id = n.id) l"
        )

    def select_aliased(self, table: Table) -> str:
        count = min(len(self.columns(table)), 2)
        names = ", ".join(f"c{i}" for i in range(count))
        return f"SELECT {self.pick(('*', 'c0', 'v.c0, v.*'))} FROM {table.name} AS v ({names})"

    def select_sample(self, table: Table) -> str:
        source = f"{self.pick(('ONLY ', ''))}{table.name} TABLESAMPLE SYSTEM (100)"
        return f"SELECT {self.pick(('*', 'count(*)'))} FROM {source}"

    def select_distinct(self, table: Table) -> str:
        column = self.pick(self.columns(table))
        what = self.pick((column.sql, f"ON ({column.sql}) {column.sql}"))
        return f"SELECT DISTINCT {what} FROM {table.name} ORDER BY 1"
