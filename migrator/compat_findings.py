"""What ``plan`` says of compat: what will be lossy, fail or be refused for clients of the old version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from migrator.analysis import Compiled
from migrator.catalog import CatalogColumn, CatalogTable
from migrator.compat import INTEGERS, Lost, Served, every, plain_integer
from migrator.design import Design, Finding, TableDesign
from migrator.replace.design import ReplaceDesign


def judge(design: Design, catalogs: Mapping[int, CatalogTable]) -> list[Finding]:
    """What will be lossy, fail or be refused for clients of the old version."""
    found = [f for one in design.replaces for f in _judge_replaced(one)]
    served = every(design, catalogs)
    for table in design.tables:
        if table.oid in served:
            catalog = catalogs[table.oid]
            found += [f for one in served[table.oid].lost for f in _judge_lost(table, catalog, one)]
            found += _judge_up(table, served[table.oid])
            if served[table.oid].copy is None:
                message = f"{table.label}: COPY FROM of old clients is refused: a column follows from a generated one"
                found.append(_finding("warning", "compat_refused", message))
    return found


def _finding(severity: str, code: str, message: str, hint: str = "") -> Finding:
    return Finding.model_validate(
        {"severity": severity, "code": code, "message": f"compat: {message}", "hint": hint}
    )


def _judge_replaced(table: ReplaceDesign) -> Iterator[Finding]:
    yield _finding(
        "warning", "compat_refused", f"{table.label}: COPY FROM of old clients is refused", "Use INSERT."
    )
    for column in table.columns:
        label = f"{table.label}.{column.name}"
        if column.carried:
            continue
        if column.raw or not column.down.total:
            yield _finding(
                "warning",
                "compat_raises",
                f"{label}: where the old type cannot hold a value, an old client's read fails",
                "Watch the largest value.",
            )
        if not column.raw and not column.up.total:
            yield _finding(
                "warning",
                "compat_raises",
                f"{label}: up is not proved to work for every row; where it fails, so does an old client's write",
            )


def _judge_lost(table: TableDesign, catalog: CatalogTable, lost: Lost) -> Iterator[Finding]:
    label, column, value = f"{table.label}.{lost.label}", lost.column, lost.value
    if value is None:
        seen = "its default" if column.default_kind == "stable" else "NULL"
        message = f"old clients read {label} as {seen}: drop_column has no down"
        yield _finding("warning", "compat_lossy", message, "Give `down`.")
    else:
        if column.not_null and not value.not_null:
            yield _finding(
                "warning",
                "compat_null",
                f"{label} is NOT NULL, and old clients may read NULL where down gives NULL",
                "Give a `down` that is never NULL, e.g. with COALESCE.",
            )
        if value.volatility == "volatile":
            yield _finding(
                "warning", "compat_volatile", f"{label}: down is volatile, each read is another value"
            )
        elif not value.total and not _plain_integers(value, column):
            yield _finding(
                "warning",
                "compat_raises",
                f"{label}: down is not proved to work for every row; where it fails, so does an old client's read",
                "Cover every value.",
            )
    if not lost.written and not column.generated:
        yield _finding(
            "warning", "compat_lossy", f"what old clients write to {label} is lost: no up takes it"
        )
    if column.identity or (column.default_kind == "volatile" and "nextval(" in (column.default or "")):
        yield _finding(
            "warning",
            "compat_default",
            f"{label}: old clients that give no value get NULL, because its sequence may go with the column",
        )
    bound = [c for c in catalog.constraints if column.name in c.columns]
    checks = [c.name for c in bound if c.kind in {"c", "f"}]
    if checks:
        yield _finding(
            "info", "compat_constraints", f"{label}: {', '.join(checks)} binds old clients no more"
        )
    unique = [c.name for c in bound if c.kind in {"u", "x"}]
    unique += [i.name for i in catalog.indexes if i.unique and not i.constraint and column.name in i.columns]
    if unique:
        yield _finding(
            "warning",
            "compat_refused",
            f"{label}: ON CONFLICT by {', '.join(unique)} is refused: the index goes with the column",
        )


def _plain_integers(value: Compiled, column: CatalogColumn) -> bool:
    return column.type in INTEGERS and len(value.sources) == 1 and plain_integer(value)


def _judge_up(table: TableDesign, served: Served) -> Iterator[Finding]:
    labels = {physical: label for label, physical in table.new}
    made = {m.target for m in served.up.mirrors}
    for mirror in table.up.mirrors:
        label = f"{table.label}.{labels.get(mirror.target, mirror.target)}"
        if mirror.target not in made:
            continue
        if mirror.value.volatility == "volatile":
            yield _finding(
                "info",
                "compat_volatile",
                f"{label}: up is volatile and is computed for each write of old clients",
            )
        elif not mirror.value.total:
            yield _finding(
                "warning",
                "compat_raises",
                f"{label}: up is not proved to work for every row; where it fails, so does an old client's write",
                "Cover every value, e.g. with CASE ... ELSE and pg_input_is_valid() before a cast.",
            )
    for constraint in table.up.constraints:
        if not constraint.proved:
            what = "NOT NULL" if constraint.kind == "not_null" else f"check {constraint.name}"
            yield _finding(
                "info",
                "compat_constraints",
                f"{table.label}.{constraint.label}: {what} binds old clients' writes as well",
            )
