"""A pytest plugin for SQLAlchemy's tests: ask only for the extensions that the server has.

Its testing setup creates ``citext`` and ``hstore`` in whatever it connects to. A server without contrib (the embedded
one) would fail every test for that; with this plugin only the tests that use a missing extension do.
"""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart() -> None:
    """Put our setup in the place of SQLAlchemy's: late enough for its own plugins, before it connects."""
    from sqlalchemy.dialects.postgresql import provision

    wanted = [name for name, _ in provision._extensions]

    @provision.post_configure_engine.for_db("postgresql")
    def create_extensions(url: Any, engine: Any, follower_ident: Any) -> None:
        with engine.begin() as connection:
            found = connection.exec_driver_sql("SELECT name FROM pg_available_extensions").scalars().all()
            for name in wanted:
                if name in found:
                    connection.exec_driver_sql(f"CREATE EXTENSION IF NOT EXISTS {name}")
