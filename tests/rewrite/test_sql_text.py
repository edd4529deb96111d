"""Parsing, classification, splicing and the byte-level name test, each by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sql.classify import classify, worst_kind
from proxy.sql.kinds import Kind
from proxy.sql.names import touches_names
from proxy.sql.parse import MAX_BYTES, Failure, parse
from proxy.sql.repeatable import repeatable
from proxy.sql.splice import Edit, apply, characters, ordered, original_position, render
from proxy.sql.tokens import Tokens, UnclearNames


def kind_of(sql: str) -> Kind:
    parsed = parse(sql.encode())
    return worst_kind(tuple(classify(one, parsed.text) for one in parsed.statements), parsed)


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("", Kind.EMPTY),
        (" -- nothing\n;", Kind.EMPTY),
        ("SELECT 1", Kind.READ),
        ("VALUES (1), ($1)", Kind.READ),
        ("TABLE a", Kind.READ),
        (
            "SELECT count(*), lower(x), now(), pg_catalog.upper(y) FROM a JOIN b USING (c) GROUP BY 2, 4",
            Kind.READ,
        ),
        ("WITH x AS (SELECT 1) SELECT * FROM x, LATERAL generate_series(1, 2)", Kind.READ),
        ("SELECT row_number() OVER (PARTITION BY a) FROM b UNION SELECT sum(c) FROM d", Kind.READ),
        ("SELECT CASE WHEN a ~ 'x' THEN b->>'c' ELSE current_user END FROM d", Kind.READ),
        ("SELECT nextval('s')", Kind.WRITE),
        ("SELECT my_function(1)", Kind.WRITE),
        ("SELECT other.lower(x) FROM a", Kind.WRITE),
        ("SELECT random()", Kind.WRITE),
        ("SELECT txid_current()", Kind.WRITE),
        ("SELECT * FROM a FOR UPDATE", Kind.WRITE),
        ("SELECT * FROM (SELECT * FROM a FOR SHARE) b", Kind.WRITE),
        ("SELECT * INTO x FROM a", Kind.WRITE),
        ("WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x", Kind.WRITE),
        ("SELECT * FROM pg_stat_activity", Kind.WRITE),
        ("SELECT * FROM information_schema.tables", Kind.WRITE),
        ("SELECT 1 OPERATOR(mine.+) 2", Kind.WRITE),
        ("EXPLAIN SELECT 1", Kind.WRITE),
        ("NOTIFY x", Kind.WRITE),
        ("CALL f()", Kind.WRITE),
        ("LOCK a", Kind.WRITE),
        ("COPY a TO STDOUT", Kind.WRITE),
        ("COPY a FROM STDIN", Kind.COPY_IN),
        ("COPY a FROM '/x'", Kind.WRITE),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", Kind.BEGIN),
        ("START TRANSACTION", Kind.BEGIN),
        ("END", Kind.COMMIT),
        ("COMMIT AND CHAIN", Kind.COMMIT),
        ("PREPARE TRANSACTION 'x'", Kind.COMMIT),
        ("COMMIT PREPARED 'x'", Kind.WRITE),
        ("ABORT", Kind.ROLLBACK),
        ("ROLLBACK TO a", Kind.SAVEPOINT),
        ("RELEASE a", Kind.SAVEPOINT),
        ("SET a.b = 1", Kind.SET),
        ("RESET ALL", Kind.SET),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Kind.SET),
        ("SET LOCAL a.b = 1", Kind.SET_LOCAL),
        ("SET TRANSACTION READ ONLY", Kind.SET_LOCAL),
        ("SET TRANSACTION SNAPSHOT '1'", Kind.SET_LOCAL),
        ("SET CONSTRAINTS ALL DEFERRED", Kind.SET_LOCAL),
        ("SHOW search_path", Kind.SHOW),
        ("CREATE TABLE a (b int)", Kind.DDL),
        ("CREATE TABLE a AS SELECT 1", Kind.DDL),
        ("CREATE INDEX ON a (b)", Kind.DDL),
        ("GRANT SELECT ON a TO b", Kind.DDL),
        ("CREATE TEMP TABLE a (b int)", Kind.SESSION),
        ("CREATE TEMP TABLE a AS SELECT 1", Kind.SESSION),
        ("SELECT 1 INTO TEMP a", Kind.SESSION),
        ("CREATE TEMP VIEW a AS SELECT 1", Kind.SESSION),
        ("CREATE TABLE pg_temp.a (b int)", Kind.SESSION),
        ("LISTEN a", Kind.SESSION),
        ("DISCARD ALL", Kind.SESSION),
        ("DEALLOCATE a", Kind.SESSION),
        ("PREPARE a AS SELECT 1", Kind.SESSION),
        ("EXECUTE a", Kind.SESSION),
        ("DECLARE a CURSOR FOR SELECT 1", Kind.SESSION),
        ("LOAD 'x'", Kind.SESSION),
        ("SELECT set_config('a.b', '1', false)", Kind.SET),
        ("SELECT set_config('a.b', '1' || '2', false)", Kind.SESSION),
        ("SELECT set_config('a.b', '1', true)", Kind.WRITE),
        ("SELECT pg_advisory_lock(1)", Kind.SESSION),
        ("SELECT pg_advisory_xact_lock(1)", Kind.WRITE),
        ("SELECT 1; SELECT 2", Kind.READ),
        ("BEGIN; SELECT 1", Kind.BEGIN),
        ("SELECT 1; DELETE FROM a", Kind.WRITE),
        ("SET a.b = 1; LISTEN x", Kind.SESSION),
        ("SELEC 1", Kind.UNPARSED),
    ],
)
def test_kinds(sql: str, kind: Kind) -> None:
    assert kind_of(sql) is kind


@pytest.mark.parametrize(
    ("sql", "relations"),
    [
        ("SELECT * FROM a, s.b, a x", ((None, "a"), ("s", "b"))),
        ("WITH a AS (SELECT * FROM a) SELECT * FROM a, s.a", ((None, "a"), ("s", "a"))),
        ("WITH RECURSIVE a AS (SELECT * FROM a UNION SELECT * FROM c) SELECT * FROM a", ((None, "c"),)),
        (
            "SELECT (SELECT 1 FROM a) FROM (WITH b AS (SELECT 1) SELECT * FROM b) x, b",
            ((None, "a"), (None, "b")),
        ),
        ("WITH a AS (SELECT 1) UPDATE a SET x = 1", ((None, "a"),)),
        ("SELECT * FROM a FOR UPDATE OF a", ((None, "a"),)),
    ],
)
def test_relations_leave_out_common_table_expressions(sql: str, relations: object) -> None:
    (statement,) = parse(sql.encode()).statements
    assert set(classify(statement, sql.encode()).relations) == set(relations)  # type: ignore[call-overload]


def test_settings_carry_the_statements_own_text() -> None:
    sql = b"SET Search_Path TO a, b; reset DateStyle;SET TIME ZONE 'UTC' ; SET x.y TO DEFAULT"
    parsed = parse(sql)
    settings = [setting for one in parsed.statements for setting in classify(one, sql).settings]
    assert settings == [
        ("search_path", "SET Search_Path TO a, b"),
        ("datestyle", None),
        ("timezone", "SET TIME ZONE 'UTC'"),
        ("x.y", None),
    ]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (b"SELECT 1 FROM", Failure.SYNTAX),
        (b"SELECT '\xff'", Failure.ENCODING),
        (b"SELECT 1\0", Failure.ENCODING),
        (b"SELECT '" + b"x" * MAX_BYTES + b"'", Failure.LIMIT),
        (b"SELECT " + b"(" * 20_000, Failure.LIMIT),
        (b"SELECT " + b"1+" * 50_000 + b"1", Failure.LIMIT),
        (b"SELECT " + b"NOT " * 2_000 + b"a", Failure.LIMIT),
    ],
)
def test_what_cannot_be_parsed_says_why(text: bytes, failure: Failure) -> None:
    parsed = parse(text)
    assert parsed.failure is failure
    assert parsed.message
    assert parsed.statements == ()


def test_statements_know_their_bytes() -> None:
    text = "SELECT 'é'; /* ü */ SELECT 2;".encode()
    first, second = parse(text).statements
    assert text[first.start : first.end] == "SELECT 'é'".encode()
    assert text[second.start : second.end].strip().endswith(b"SELECT 2")


def test_tokens_have_byte_offsets() -> None:
    text = 'SELECT \'é€😀\', "ü" /* ß */ FROM "naïve" -- x\n'.encode()
    tokens = Tokens(text)
    assert [text[start:end].decode() for start, end in zip(tokens.starts, tokens.ends, strict=True)] == [
        "SELECT",
        "'é€😀'",
        ",",
        '"ü"',
        "FROM",
        '"naïve"',
    ]
    with pytest.raises(UnclearNames):
        Tokens(b"SELECT U&\"d!0061t\" UESCAPE '!'")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("$1", True),
        ("a.b + 1", True),
        ("CASE WHEN a THEN lower(b) ELSE coalesce(c, 'x') END", True),
        ("cast(a AS numeric(10, 2)) IS DISTINCT FROM (ARRAY[1, 2])[1]", True),
        ("now() - interval '1 day'", True),
        ("current_date", True),
        ("extract(year FROM a)", True),
        ("random()", False),
        ("nextval('s')", False),
        ("mine.lower(a)", False),
        ("(SELECT 1)", False),
        ("count(*) FILTER (WHERE random() > 1)", False),
        ("lower(random()::text)", False),
        ("1 OPERATOR(mine.+) 2", False),
        ("gen_random_uuid()", False),
        ("clock_timestamp()", False),
        ("'" + "x" * 5_000 + "'", True),
        ("'" + "x" * 9_000 + "'", False),
        ("'" + "x" * 600 + "' || a", False),
    ],
)
def test_only_stable_and_short_expressions_may_be_repeated(expression: str, expected: bool) -> None:
    (statement,) = parse(f"SELECT {expression}".encode()).statements
    node = statement.node["targetList"][0]["ResTarget"]["val"]
    assert repeatable(node, len(expression)) is expected


EDITS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.text(max_size=4)), max_size=4)


@given(st.text(max_size=30), EDITS)
def test_splicing_keeps_what_is_not_edited_and_positions_map_back(
    text: str, wanted: list[tuple[int, int, str]]
) -> None:
    edits: list[Edit] = []
    at = 0
    for skip, length, replacement in wanted:
        start = min(at + skip, len(text))
        end = min(start + length, len(text))
        first, last = len(text[:start].encode()), len(text[:end].encode())
        edits.append(Edit(first, last, replacement.encode(), "test"))
        at = end
    original = text.encode()
    edited = apply(original, ordered(edits))
    kept = 0
    result_at = 0
    for edit in edits:
        for offset in range(characters(original[kept : edit.start])):
            place = characters(original[:kept]) + offset
            assert original_position(original, edits, result_at + offset + 1) == place + 1
        result_at += characters(original[kept : edit.start]) + characters(edit.text)
        kept = edit.end
    assert edited.decode().endswith(original[kept:].decode())
    assert original_position(original, edits, characters(edited) + 1) == len(text) + 1
    assert original_position(original, (), 10**6) == len(text) + 1


def test_a_position_in_added_text_maps_to_where_it_was_added() -> None:
    edits = ordered([Edit(5, 5, b"12345", "x"), Edit(2, 3, b"", "x")])
    assert apply(b"abcdefgh", edits) == b"abde12345fgh"
    assert [original_position(b"abcdefgh", edits, at) for at in (1, 2, 3, 4, 5, 9, 10)] == [
        1,
        2,
        4,
        5,
        6,
        6,
        6,
    ]
    assert render(b"abcdefgh", edits, 3, 7) == b"de12345fg"
    with pytest.raises(ValueError, match="overlapping"):
        ordered([Edit(0, 4, b"", "x"), Edit(3, 5, b"", "x")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"SELECT * FROM orders", True),
        (b"select * from ORDERS", True),
        (b'select * from "Gr\xc3\xb6\xc3\x9fe"', True),
        (b'select * from "a""b"', True),
        (b"SELECT 'orders'", True),
        (b"SELECT * FROM items", False),
        (b"SELECT U&'x'", True),
        (b"EXECUTE p", True),
        (b"/* */ do $$ $$", True),
        (b"SELECT domain FROM items", False),
        (b"call f()", True),
    ],
)
@pytest.mark.parametrize("more", [[], [f"table_{at}" for at in range(20)]])
def test_the_name_test_never_misses(text: bytes, expected: bool, more: list[str]) -> None:
    assert touches_names(["orders", "Größe", 'a"b', *more])(text) is expected


def test_without_names_nothing_is_touched() -> None:
    assert touches_names([])(b"EXECUTE orders") is False
