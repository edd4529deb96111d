"""Statements that write, of one version."""

from __future__ import annotations

from tests.oracle.reading import Reader
from tests.oracle.schemas import Column, Table


class Writer(Reader):
    """Writes statements of every kind that has a plan of its own."""

    # -- INSERT ------------------------------------------------------------------------------------------------

    def cell(self, column: Column) -> str:
        if self.chance(12):
            return "DEFAULT"
        return self.expression(column, "", None)

    def insert(self, returning: bool = True) -> str:
        """An INSERT."""
        table = self.table()
        columns = [c for c in self.columns(table) if c.writable or self.chance(3)]
        overriding = ""
        identity = next((c for c in self.columns(table) if c.identity), None)
        alias = self.pick(("", "", " AS t"))
        if identity is not None and self.chance(40):
            overriding = self.pick((" OVERRIDING SYSTEM VALUE", " OVERRIDING USER VALUE"))
            if identity not in columns:
                columns.insert(0, identity)
        chosen = self.pick(("values", "values", "values", "values", "nolist", "select", "default", "unnest"))
        if chosen == "default":
            body = " DEFAULT VALUES"
        elif chosen == "nolist":
            listed = self.columns(table)[: 1 + self.below(len(self.columns(table)))]
            body = f"{overriding} VALUES " + self.rows(list(listed), generated=True)
        else:
            required = [c for c in columns if c.not_null and c.default is None]
            chosen_columns = [c for c in columns if c in required or self.chance(50)]
            if self.chance(10):
                chosen_columns.reverse()
            if not chosen_columns:
                chosen_columns = [columns[-1]]
            if "id" in [c.name for c in columns] and self.chance(50) and columns[0] not in chosen_columns:
                chosen_columns.insert(0, columns[0])
            names = f" ({', '.join(c.sql for c in chosen_columns)})" + overriding
            if chosen == "values":
                body = f"{names} VALUES {self.rows(chosen_columns)}"
            elif chosen == "unnest":
                chosen_columns = [c for c in chosen_columns if c.kind != "list"] or [columns[0]]
                body = (
                    f" ({', '.join(c.sql for c in chosen_columns)})"
                    + overriding
                    + self.unnest(chosen_columns)
                )
            else:
                body = names + self.insert_select(table, chosen_columns)
        text = f"INSERT INTO {self.name(table)}{alias}{body}"
        if self.chance(30):
            text += self.conflict(table, alias.strip() or "")
        if returning:
            text += self.returning(table, alias.strip())
        return text

    def rows(self, columns: list[Column], generated: bool = False) -> str:
        count = self.pick((1, 1, 2, 3))
        rows = []
        self.text.bad = count == 1  # of several errors, which one is told first is no promise
        for _ in range(count):
            cells = ["DEFAULT" if (generated and not c.writable) else self.cell(c) for c in columns]
            rows.append(f"({', '.join(cells)})")
        return ", ".join(rows)

    def insert_select(self, table: Table, columns: list[Column]) -> str:
        source = self.table()
        items = []
        self.text.bad = False  # such a constant fails while it is planned, ours perhaps for rows only
        for column in columns:
            if column.name == "id":
                items.append("s.id + 10")
            else:
                items.append(self.expression(column, "s.", source, 1))
        return f" SELECT {', '.join(items)} FROM {source.name} s WHERE {self.predicate(source, 's.')}"

    def unnest(self, columns: list[Column]) -> str:
        arrays = []
        for column in columns:
            value = self.pick(column.values)
            arrays.append(f"ARRAY[{self.quote(value)}, {self.quote(column.values[0])}]::{column.type}[]")
        return f" SELECT * FROM unnest({', '.join(arrays)})"

    def conflict(self, table: Table, alias: str) -> str:
        around = self.around(table, alias)
        target = self.pick(("(id)", "(id)", f"ON CONSTRAINT {table.name}_pkey", ""))
        if target == "" or self.chance(30):
            return f" ON CONFLICT {target} DO NOTHING"
        columns = [c for c in self.columns(table) if c.generated is None and c.name != "id"]
        items = []
        for column in self.some(columns)[:3]:
            value = self.pick(
                (
                    f"excluded.{column.sql}",
                    self.function(column.kind, f"excluded.{column.sql}", column),
                    self.expression(column, around, table),
                )
            )
            items.append(f"{column.sql} = {value}")
        text = f" ON CONFLICT {target} DO UPDATE SET {', '.join(items)}"
        if self.chance(30):
            text += f" WHERE {self.predicate(table, around)}"
        return text

    # -- UPDATE, DELETE, MERGE ---------------------------------------------------------------------------------

    def assignments(self, table: Table, around: str, source: Table | None = None) -> str:
        columns = [c for c in self.columns(table) if (c.writable and c.name != "id") or self.chance(2)]
        chosen = self.some(columns)[:4]
        if len(chosen) >= 2 and self.chance(20):
            pair = chosen[:2]
            names = ", ".join(c.sql for c in pair)
            values = ", ".join(self.expression(c, around, table, 1) for c in pair)
            how = self.pick((f"({values})", f"ROW({values})", f"(SELECT {values})"))
            items = [f"({names}) = {how}"]
            chosen = chosen[2:]
        else:
            items = []
        for column in chosen:
            if self.chance(10):
                value = "DEFAULT"
            elif column.kind == "list" and self.chance(25):
                items.append(f"{column.sql}[1] = 9")
                continue
            else:
                value = self.expression(column, around, table)
            items.append(f"{column.sql} = {value}")
        if self.chance(6):
            items.append(f"id = {around}id + {self.pick((10, 20))}")
        return ", ".join(items)

    def update(self, current: str = "") -> str:
        """An UPDATE; ``current``: the cursor whose row it changes."""
        table = self.table()
        alias = self.alias()
        around = self.around(table, alias)
        only = "ONLY " if self.chance(5) else ""
        text = f"UPDATE {only}{self.name(table)} {alias} SET {self.assignments(table, around)}"
        if self.chance(20):
            text += f" FROM notes n WHERE n.id = {around}id AND n.id <> {self.pick((2, 7))}"
            if self.chance(50):
                text = text.replace(" FROM notes", ", id = n.id FROM notes") if self.chance(10) else text
        else:
            text += self.where(table, around)
        return text + self.returning(table, alias).replace("RETURNING *", f"RETURNING {around}*")

    def delete(self) -> str:
        """A DELETE."""
        table = self.table()
        alias = self.alias()
        around = self.around(table, alias)
        using = ""
        where = f" WHERE {self.predicate(table, around)}"
        if self.chance(25):
            using, where = " USING notes n", f" WHERE n.id = {around}id AND {self.predicate(table, around)}"
        return f"DELETE FROM {self.name(table)} {alias}{using}{where}" + self.returning(table, alias)

    def merge(self) -> str:
        """A MERGE."""
        table = self.table()
        columns = [c for c in self.columns(table) if c.writable]
        required = [c for c in columns if c.not_null and c.default is None and c.name != "id"]
        chosen = [c for c in columns if c in required or self.chance(40)]
        if not chosen:
            chosen = [columns[-1]]
        names = ", ".join(c.sql for c in chosen)
        values = ", ".join("n.id + 20" if c.name == "id" else self.expression(c, "", None, 1) for c in chosen)
        actions = [
            f"WHEN MATCHED THEN UPDATE SET {self.assignments(table, 't.')}",
            f"WHEN MATCHED AND {self.predicate(table, 't.')} THEN DELETE",
            "WHEN MATCHED THEN DO NOTHING",
            f"WHEN NOT MATCHED BY SOURCE THEN UPDATE SET {self.assignments(table, 't.')}",
        ]
        first = self.pick(actions)
        second = self.pick(
            (
                f" WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})",
                " WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
                "",
            )
        )
        text = f"MERGE INTO {self.name(table)} t USING notes n ON n.id = t.id {first}{second}"
        if self.chance(40):
            self.text.rows = True
            text += f" RETURNING {self.pick(('merge_action(), t.*', 't.id', 'n.word, t.id'))}"
        return text

    def modifying(self) -> str:
        """A data-modifying CTE."""
        inner = self.pick((self.insert, self.update, self.delete))()
        self.text.rows = True
        table = self.table()
        if " RETURNING " in inner:
            return f"WITH w AS ({inner}) SELECT * FROM w"
        return f"WITH w AS ({inner}) SELECT id FROM {table.name}"

    def truncate(self) -> str:
        """A TRUNCATE."""
        table = self.table()
        how = self.pick((" CASCADE", " RESTART IDENTITY CASCADE", ""))
        return f"TRUNCATE {self.pick(('TABLE ', ''))}{table.name}{how}"

    def statement(self) -> str:
        """Any of them."""
        return self.pick(
            (
                self.select,
                self.update,
                self.insert,
                self.insert,
                self.update,
                self.select,
                self.delete,
                self.merge,
                self.modifying,
            )
        )()
