"""What a connection string may say of TLS and of the protocol's version, by libpq's names and rules."""

from __future__ import annotations

import pytest

from proxy.backend.tls import Way, ways
from proxy.dsn import parse


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (Way.ASK, Way.PLAIN)),
        ("sslmode=disable", (Way.PLAIN,)),
        ("sslmode=allow", (Way.PLAIN, Way.ASK)),
        ("sslmode=prefer", (Way.ASK, Way.PLAIN)),
        ("sslmode=require", (Way.ASK,)),
        ("sslmode=verify-ca", (Way.ASK,)),
        ("sslmode=verify-full&sslnegotiation=postgres", (Way.ASK,)),
        ("sslmode=require&sslnegotiation=direct", (Way.DIRECT,)),
        ("sslrootcert=system", (Way.ASK,)),
        ("host=/run/postgresql&sslmode=require&sslnegotiation=direct", (Way.PLAIN,)),
    ],
)
def test_the_attempts_follow_from_the_mode(query: str, expected: tuple[Way, ...]) -> None:
    assert ways(parse(f"postgresql://shop@db/shop?{query}")) == expected


def test_everything_is_read() -> None:
    dsn = parse(
        "postgresql://shop@db/shop?sslrootcert=system&sslcert=a.crt&sslkey=a.key&sslcrl=a.crl&max_protocol_version=3.2"
    )
    assert (dsn.sslmode, dsn.sslrootcert) == ("verify-full", "system")
    assert (dsn.sslcert, dsn.sslkey, dsn.sslcrl, dsn.sslsni, dsn.minor) == (
        "a.crt",
        "a.key",
        "a.crl",
        True,
        2,
    )
    assert not parse("postgresql://shop@db/shop?sslsni=0").sslsni
    assert parse("postgresql://shop@db/shop").minor == 0
    assert parse("postgresql://shop@db/shop?max_protocol_version=latest").minor == 2


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("sslnegotiation=direct", "too weak"),
        ("sslmode=allow&sslnegotiation=direct", "too weak"),
        ("sslmode=require&sslrootcert=system", "too weak"),
        ("sslmode=require&sslnegotiation=gss", "postgres or direct"),
        ("sslmode=verify-full&sslsni=0", "sslsni=0"),
        ("sslsni=no", "0 or 1"),
        ("max_protocol_version=3.1", "3.0, 3.2, latest"),
        ("max_protocol_version=4.0", "3.0, 3.2, latest"),
    ],
)
def test_what_libpq_would_refuse_is_refused(query: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(f"postgresql://shop@db/shop?{query}")
