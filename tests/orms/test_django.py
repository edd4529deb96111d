"""Django 5: what its ORM sends by itself, with models of the old and of the new version on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import Sidecar
from tests.orms.conftest import UP, Shop

django = pytest.importorskip("django", reason="Django is not installed")

from django.apps import apps  # noqa: E402
from django.conf import settings  # noqa: E402
from django.db import connections, models, transaction  # noqa: E402

VALUES = {"old": [0, 1, 2], "new": ["new", "paid", "sent"]}


def address(sidecar: Sidecar) -> dict[str, Any]:
    """A database for Django's settings."""
    parts = urlsplit(sidecar.dsn())
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path[1:],
        "USER": parts.username,
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname,
        "PORT": str(parts.port),
    }


def model(side: str) -> Any:
    """The orders of one version."""
    value = (
        models.SmallIntegerField(db_column="status")
        if side == "old"
        else models.CharField(db_column="state", max_length=10)
    )
    return type(
        f"Order{side.title()}",
        (models.Model,),
        {
            "__module__": __name__,
            "id": models.BigAutoField(primary_key=True),
            "value": value,
            "who": models.CharField(db_column="customer" if side == "old" else "buyer", max_length=40),
            "amount": models.DecimalField(max_digits=10, decimal_places=2, default=0),
            "placed": models.DateTimeField(auto_now_add=True),
            "note": models.TextField(null=True),
            "version": models.IntegerField(default=1),
            "Meta": type("Meta", (), {"app_label": "orms", "db_table": "orders", "managed": False}),
        },
    )


@pytest.fixture(scope="module")
def rows(shop: Shop) -> Iterator[dict[str, Any]]:
    """The managers of both versions, each bound to its sidecar."""
    databases = {"old": address(shop.old), "new": address(shop.new)}
    if not settings.configured:
        settings.configure(
            DATABASES={"default": {}, **databases},
            USE_TZ=True,
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        )
        django.setup()
    for side, database in databases.items():
        connections[side].settings_dict.update(database)
    found = {side: apps.all_models["orms"].get(f"order{side}") or model(side) for side in databases}
    yield {side: found[side].objects.using(side) for side in databases}
    for side in databases:
        connections[side].close()


def other(side: str) -> str:
    return "new" if side == "old" else "old"


@pytest.mark.parametrize("side", ["old", "new"])
def test_many_rows_are_created_and_updated_at_once(rows: dict[str, Any], side: str) -> None:
    ours, theirs = rows[side], rows[other(side)]
    made = ours.bulk_create(
        [ours.model(value=VALUES[side][n % 3], who=f"bulk {side}", amount=n) for n in range(40)]
    )
    keys = [row.pk for row in made]
    assert None not in keys
    expected = [VALUES[other(side)][n % 3] for n in range(40)]
    assert list(theirs.filter(pk__in=keys).order_by("pk").values_list("value", flat=True)) == expected
    for n, row in enumerate(made):
        row.value, row.note = VALUES[side][(n + 1) % 3], f"note {n}"
    assert ours.bulk_update(made, ["value", "note"], batch_size=15) == 40
    expected = [VALUES[other(side)][(n + 1) % 3] for n in range(40)]
    assert list(theirs.filter(pk__in=keys).order_by("pk").values_list("value", flat=True)) == expected
    again = [ours.model(pk=key, value=VALUES[side][2], who="again", amount=5) for key in keys[:10]]
    ours.bulk_create(again, update_conflicts=True, update_fields=["value", "who"], unique_fields=["id"])
    seen = theirs.filter(pk__in=keys[:10])
    assert {(row.value, row.who) for row in seen} == {(VALUES[other(side)][2], "again")}
    assert {row.amount for row in seen} == {Decimal(n) for n in range(10)}
    assert ours.filter(pk__in=keys).delete() == (40, {f"orms.Order{side.title()}": 40})


@pytest.mark.parametrize("fields", [None, ["note"]], ids=["all columns", "changed columns"])
def test_what_only_one_version_can_say_outlives_the_other_s_saves(
    shop: Shop, rows: dict[str, Any], fields: list[str] | None
) -> None:
    theirs = rows["new"].create(value="returned", who="n")
    row = rows["old"].get(pk=theirs.pk)
    assert row.value == 2
    row.note = "seen by the old version"
    row.save(using="old", update_fields=fields)
    assert shop.row(theirs.pk) == (2, "returned")
    ours = rows["old"].create(value=7, who="o")
    row = rows["new"].get(pk=ours.pk)
    assert row.value == "unknown"
    row.note = "seen by the new version"
    row.save(using="new", update_fields=fields)
    assert shop.row(ours.pk) == (7, "unknown")
    row.value = "paid"
    row.save(using="new")
    ours.refresh_from_db(using="old")
    assert (ours.value, ours.note) == (1, "seen by the new version")


def undone(rows: Any, key: int, side: str) -> None:
    """A change behind a savepoint that is rolled back."""
    with transaction.atomic(using=side):
        rows.filter(pk=key).update(value=VALUES[side][2])
        raise ZeroDivisionError


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_row_is_locked_and_changed_in_a_transaction(rows: dict[str, Any], side: str) -> None:
    ours, theirs = rows[side], rows[other(side)]
    key = ours.create(value=VALUES[side][0], who="locked").pk
    with transaction.atomic(using=side):
        row = ours.select_for_update(of=("self",)).get(pk=key)
        row.value = VALUES[side][1]
        row.save(using=side)
        with pytest.raises(ZeroDivisionError):
            undone(ours, key, side)
    assert theirs.get(pk=key).value == VALUES[other(side)][1]
    assert ours.filter(pk=key).update(value=VALUES[side][2], amount=models.F("amount") + 2) == 1
    seen = theirs.get(pk=key)
    assert (seen.value, seen.amount) == (VALUES[other(side)][2], 2)
    made, new = ours.get_or_create(pk=key, defaults={"value": VALUES[side][0], "who": "x"})
    assert (made.value, new) == (VALUES[side][2], False)
    made, new = ours.update_or_create(pk=key, defaults={"value": VALUES[side][0]})
    assert (theirs.get(pk=key).value, new) == (VALUES[other(side)][0], False)


@pytest.mark.parametrize("side", ["old", "new"])
def test_rows_are_read_through_cursors_on_the_server(rows: dict[str, Any], side: str) -> None:
    ours = rows[side]
    everything = list(ours.order_by("pk").values_list("pk", "value"))
    assert len(everything) >= 20
    assert list(ours.order_by("pk").values_list("pk", "value").iterator(chunk_size=7)) == everything
    with transaction.atomic(using=side):
        read = ours.order_by("pk").iterator(chunk_size=5)
        first = next(read)
        first.note = "in the middle of it"
        first.save(using=side)
        assert [row.pk for row in read] == [key for key, _ in everything[1:]]
    grouped = (
        ours.values("value").annotate(count=models.Count("id"), most=models.Max("amount")).order_by("value")
    )
    assert sum(group["count"] for group in grouped) == len(everything)
    assert ours.filter(value=VALUES[side][0]).exists()
    assert UP[0] in VALUES["new"]
