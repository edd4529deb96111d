"""Connection strings and where a password comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.dsn import Dsn, parse


def test_all_parts_are_read() -> None:
    dsn = parse("postgresql://shop%40eu:p%3Aw%2Fd@db.internal:6000/my%20shop?sslmode=require")
    assert dsn == Dsn("db.internal", 6000, "shop@eu", "my shop", "p:w/d", "require")
    assert dsn.label == "db.internal:6000"


def test_what_is_left_out_has_defaults() -> None:
    assert parse("postgres://shop@/") == Dsn("localhost", 5432, "shop", "shop")


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://shop@/store?host=/run/My%20PG&port=7000",
        "postgresql://shop@%2Frun%2FMy%20PG:7000/store",
    ],
)
def test_a_unix_socket_keeps_the_case_of_its_directory(text: str) -> None:
    dsn = parse(text)
    assert dsn.is_unix
    assert dsn.socket_path == "/run/My PG/.s.PGSQL.7000"


def test_an_ipv6_host_comes_without_brackets() -> None:
    assert parse("postgresql://shop@[::1]:7000/store").host == "::1"


def test_text_and_repr_never_show_the_password() -> None:
    dsn = parse("postgresql://shop:hunter2@db/store")
    assert "hunter2" not in f"{dsn} {dsn!r}"
    assert parse(str(dsn)).database == "store"


@pytest.mark.parametrize(
    "text", ["postgresql://shop@[::1]:7000/a", "postgresql://shop@/a?host=/run/PG&port=7"]
)
def test_text_can_be_read_back(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mysql://a@b/c", "must start with postgresql://"),
        ("host=db user=shop", "must start with postgresql://"),
        ("postgresql://db/store", "names no user"),
        ("postgresql://shop@db:port/store", "host or port"),
        ("postgresql://shop@db/store?sslmode=maybe", "sslmode must be one of"),
        ("postgresql://shop@db/store?timeout=3", "unknown connection parameter 'timeout'"),
        ("postgresql://shop@a,b/store", "names one host"),
        ("postgresql://shop@/store?port=0", "port must be"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(text)


def test_the_password_comes_from_where_libpq_looks(tmp_path: Path) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text(
        "# comment\nother:*:*:*:wrong\ndb:5432:store:shop:from\\:file\n*:*:*:*:any\nlocalhost:*:*:*:unix\n"
    )
    passfile.chmod(0o600)
    environment = {"PGPASSFILE": str(passfile)}
    dsn = parse("postgresql://shop@db/store")
    assert parse("postgresql://shop:mine@db/store").password_or_default({"PGPASSWORD": "theirs"}) == "mine"
    assert dsn.password_or_default({**environment, "PGPASSWORD": "theirs"}) == "theirs"
    assert dsn.password_or_default(environment) == "from:file"
    assert parse("postgresql://shop@elsewhere/store").password_or_default(environment) == "any"


def test_a_password_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:*:any\n")
    passfile.chmod(0o644)
    assert parse("postgresql://shop@db/a").password_or_default({"PGPASSFILE": str(passfile)}) is None
