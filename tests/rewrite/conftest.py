"""Fixtures of the tests that compare a migrated table with a plain one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from orders import ITEMS, REFERENCE_NEW, REFERENCE_OLD, SCHEMA
from pairs import Pair

from proxy.rewrite.model import Side


@asynccontextmanager
async def _pair(database: Any, side: Side) -> AsyncIterator[Pair]:
    reference = REFERENCE_OLD if side == "old" else REFERENCE_NEW
    database.sql(SCHEMA + reference + ITEMS.format(schema="public") + ITEMS.format(schema="plain"))
    async with database.connection() as migrated, database.connection() as plain:
        await plain.execute("SET search_path = plain, public")
        yield Pair(side, migrated, plain)


@pytest.fixture
async def old(database: Any) -> Any:
    async with _pair(database, "old") as pair:
        yield pair


@pytest.fixture
async def new(database: Any) -> Any:
    async with _pair(database, "new") as pair:
        yield pair


@pytest.fixture(params=["old", "new"])
async def pair(request: pytest.FixtureRequest, database: Any) -> Any:
    """Once for each version."""
    async with _pair(database, request.param) as made:
        yield made
