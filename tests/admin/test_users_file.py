"""The users file: PgBouncer's format, errors that name the line and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import ConfigError
from proxy.config_users import load_users, parse_users
from proxy.wire.scram import Verifier

VERIFIER = str(Verifier.from_password("pencil"))


def test_verifiers_and_plain_passwords_are_read() -> None:
    users = parse_users(f'; a comment\n\n"shop" "{VERIFIER}"\n# another\n"od""d" "se""cret" ; why\n')
    assert list(users) == ["shop", 'od"d']
    assert users["shop"].verifier == Verifier.parse(VERIFIER)
    assert users["shop"].password is None
    assert users['od"d'].password == 'se"cret'


def test_the_same_file_gives_equal_users_whatever_the_salt() -> None:
    assert parse_users('"a" "x"') == parse_users('"a" "x"')
    assert parse_users('"a" "x"') != parse_users('"a" "y"')


def test_a_user_never_shows_its_secret() -> None:
    assert "hunter2" not in repr(parse_users('"a" "hunter2"'))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("shop hunter2", "not a user"),
        ('"shop" "hunter2', "not a user"),
        ('"" "hunter2"', "name is empty"),
        ('"shop" ""', 'secret of "shop" is empty'),
        ('"shop" "md50123456789abcdef0123456789abcdef"', "MD5"),
        ('"shop" "SCRAM-SHA-256$hunter2"', "cannot be used"),
        (f'"shop" "{VERIFIER[:-8]}"', "cannot be used"),
    ],
)
def test_a_bad_line_is_named_without_its_secret(line: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_users(f'"first" "x"\n{line}\n', "users.txt")
    assert "users.txt, line 2" in caught.value.message
    assert complaint in caught.value.message
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_a_user_listed_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="listed twice"):
        parse_users('"a" "x"\n"a" "y"\n')


def test_a_missing_or_unreadable_file_says_what_to_correct(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"users\.txt"):
        load_users(tmp_path / "users.txt")
    (tmp_path / "users.txt").write_bytes(b'"a" "\xff"')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_users(tmp_path / "users.txt")
