"""A plan that follows from a template is exactly the plan that the text itself would get."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from orders import CLOSED, COMPLETED, FROZEN, ORDERS
from test_derived import FROM_QUERIES, VALUES
from test_differential import NEW_STATEMENTS, OLD_STATEMENTS
from test_never_raises import SQL

from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.plan import Plan
from proxy.rewrite.planner import Planner
from proxy.rewrite.template import Family, pinned
from proxy.session.book import PlanBook
from proxy.sql.literals import BIGINT, COMMENT, INTEGER, NUMERIC, STRING, split
from proxy.stats import Stats

MODELS: Sequence[tuple[TableModel, Side]] = (
    (ORDERS, "old"),
    (ORDERS, "new"),
    (FROZEN, "old"),
    (CLOSED, "new"),
    (COMPLETED, "old"),
)

TEXTS = st.one_of(
    st.sampled_from(
        ["", "x", "''", "%", "%s", "{}", "é", "größe", "a\nb", "--", "/*", '"', "dw", "orders", "$1"]
    ),
    st.text(st.characters(exclude_characters="'\\\0", exclude_categories=["Cs"]), max_size=40),
    st.integers(0, 9000).map(lambda n: "y" * n),
)
LITERALS = {
    STRING: TEXTS.map(lambda text: "'" + text.replace("''", "'").replace("'", "''") + "'"),
    INTEGER: st.integers(0, 2**31 - 1).map(str),
    BIGINT: st.integers(2**31, 2**63 - 1).map(str),
    NUMERIC: st.one_of(
        st.decimals(0, 10**6, places=2).map("{:f}".format),
        st.tuples(st.integers(0, 99), st.integers(-9, 9)).map(lambda pair: f"{pair[0]}e{pair[1]}"),
        st.integers(2**63, 10**40).map(str),
    ),
    COMMENT: st.text("abcé '%-\n", max_size=60).map("/*{}*/".format),
}


class Shown:
    """A book of plans that is told apart from planning each text."""

    def __init__(self, model: TableModel, side: Side) -> None:
        self.stats = Stats()
        self.book = PlanBook(1, [model], True, self.stats)
        self.planner = Planner([model], side)
        self.side: Side = side

    def check(self, text: str) -> Plan:
        """The book's plan of a text, which is the planner's."""
        plan = self.book.plan(text.encode(), self.side, ("public",), frozenset())
        assert plan == self.planner.plan(text.encode()), text
        return plan

    @property
    def followed(self) -> int:
        """How many plans followed from templates."""
        return self.stats.plan_templates


@st.composite
def _alike(draw: st.DrawFn, texts: st.SearchStrategy[str], count: int = 4) -> list[str]:
    """Texts of one shape."""
    text = draw(texts)
    parts = split(text.encode())
    if parts is None:
        return [text]
    alike = [text]
    for _ in range(count):
        literals = [
            draw(LITERALS[kind]) if draw(st.integers(0, 9)) else literal.decode()
            for kind, literal in zip(parts.kinds, parts.literals, strict=True)
        ]
        pieces = [piece.decode() for piece in parts.pieces]
        alike.append(
            "".join(part for pair in zip(pieces, literals, strict=False) for part in pair) + pieces[-1]
        )
    return alike


KNOWN = [
    line
    for text in (OLD_STATEMENTS, NEW_STATEMENTS, FROM_QUERIES, VALUES)
    for line in text.splitlines()
    if line
]


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(_alike(st.sampled_from(KNOWN)), st.sampled_from(MODELS))
def test_known_statements_with_other_literals_get_their_own_plans(
    texts: list[str], model: tuple[TableModel, Side]
) -> None:
    shown = Shown(*model)
    for text in texts:
        shown.check(text)


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(_alike(SQL), st.sampled_from(MODELS))
@example(["SELECT * FROM orders ORDER BY 1", "SELECT * FROM orders ORDER BY 2"], MODELS[1])
def test_any_statements_with_other_literals_get_their_own_plans(
    texts: list[str], model: tuple[TableModel, Side]
) -> None:
    shown = Shown(*model)
    for text in texts:
        shown.check(text)


@pytest.mark.slow
@settings(deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck))
@given(_alike(SQL | st.sampled_from(KNOWN), 6), st.sampled_from(MODELS))
def test_very_many_statements_with_other_literals_get_their_own_plans(
    texts: list[str], model: tuple[TableModel, Side]
) -> None:
    shown = Shown(*model)
    for text in texts:
        shown.check(text)


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE orders SET status = '{s}', amount = {i}.50 WHERE id = {i}",
        "UPDATE orders SET amount = -{i} WHERE id = - {i}",
        "INSERT INTO orders (status, amount, note) VALUES ('{s}', {i}, 'n'), ('x', 5, '{s}')",
        "INSERT INTO orders VALUES ({i}, '{s}', {i}.5)",
        "INSERT INTO orders (status) SELECT '{s}' FROM items WHERE qty > {i} LIMIT {i}",
        "SELECT * FROM orders WHERE status IN ('{s}', 'x') AND created > '2024-01-0{d}'::timestamptz LIMIT {i}",
        'UPDATE "orders" SET "status" = CASE WHEN ("orders"."id" = {i}) THEN \'{s}\' WHEN ("orders"."id" = 2)'
        ' THEN \'two\' ELSE NULL END WHERE "orders"."id" IN ({i}, 2)',
        "DELETE FROM orders WHERE note LIKE '%{s}%' /*traceparent='00-{i}',route='%2Forders'*/",
        "SELECT coalesce(note, '{s}') FROM orders WHERE id = {i} GROUP BY id, note ORDER BY 1",
    ],
)
def test_the_third_text_of_a_shape_follows_from_a_template(text: str) -> None:
    shown = Shown(ORDERS, "old")
    for number in range(20):
        string = ["é", "it''s", "", "x" * number][number % 4]
        shown.check(text.format(s=string, i=number * 37, d=number % 9 + 1))
    assert shown.followed >= 15


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("SELECT status, amount, count(*) FROM orders GROUP BY 1, 2 ORDER BY {}", ["1", "2", "3"]),
        ("SELECT id, note FROM orders GROUP BY {}", ["1", "2"]),
        ("SELECT DISTINCT ON ({}) status, note FROM orders", ["1", "2"]),
        ("SELECT set_config('{}', 'x', false)", ["search_path", "work_mem"]),
        ("SELECT '{}'::regclass", ["orders", "items"]),
        ("SELECT nextval('{}')", ["a", "b"]),
        ("SELECT note::varchar({}) FROM orders", ["1", "2"]),
        ("INSERT INTO orders (status) SELECT 'x' UNION ALL SELECT 'y' ORDER BY {}", ["1", "2"]),
    ],
)
def test_a_value_that_decides_something_is_never_replaced(text: str, values: list[str]) -> None:
    shown = Shown(ORDERS, "old")
    for _ in range(3):
        for value in values:
            shown.check(text.format(value))
    first = text.format(values[0]).encode()
    parts = split(first)
    assert parts is not None
    fixed = pinned(first, parts)
    assert fixed
    assert parts.offsets[fixed[-1]] >= first.index(b"{}".join(text.encode().split(b"{}")[:1])) - 1


@pytest.mark.parametrize(
    "text",
    [
        "SET work_mem = '{}'",
        "COPY orders FROM STDIN WITH (DELIMITER '{}')",
        "DO 'BEGIN {} END'",
        "CREATE TABLE x (a varchar(10) DEFAULT '{}')",
        "VACUUM (PARALLEL 2) orders /* {} */",
    ],
)
def test_what_is_no_plain_statement_has_no_template(text: str) -> None:
    shown = Shown(ORDERS, "old")
    for value in "abcde":
        shown.check(text.format(value))
    assert shown.followed == 0


def test_a_literal_too_long_to_be_written_twice_is_planned_for_itself() -> None:
    shown = Shown(ORDERS, "old")
    text = "INSERT INTO orders (status, note) VALUES ('{}', 'x')"
    for length in (1, 2, 3, 8100, 8189, 8190, 8191, 8192, 8193, 9000, 4, 100):
        shown.check(text.format("x" * length))
    assert shown.followed >= 2


def test_an_expression_that_becomes_too_long_is_planned_for_itself() -> None:
    shown = Shown(ORDERS, "old")
    text = "UPDATE orders SET status = status || '{}' || '{}' WHERE id = 1"
    for length in (1, 2, 3, 4, 30, 100, 200, 230, 240, 245, 250, 300, 5, 6, 500, 501, 7, 100):
        shown.check(text.format("x" * length, "y" * length))
    assert shown.followed >= 4


def test_longer_literals_widen_a_template() -> None:
    shown = Shown(ORDERS, "old")
    text = "UPDATE orders SET note = '{}' WHERE id = 1"
    for length in (1, 2, 3, 1000, 1001, 1002, 5, 1900):
        shown.check(text.format("x" * length))
    assert shown.followed == 5  # all but the first two, and the one that widened it


def test_numbers_of_different_types_do_not_share_a_template() -> None:
    shapes = {
        split(f"SELECT {number}".encode()).shape  # type: ignore[union-attr]
        for number in ("1", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1.0")
    }
    assert len(shapes) == 3


def test_templates_of_a_shape_are_few() -> None:
    family = Family()
    planner = Planner([ORDERS], "old")
    for number in range(1, 40):
        text = f"SELECT * FROM orders ORDER BY {number}".encode()
        parts = split(text)
        assert parts is not None
        family.learn(planner.plan, text, parts, planner.plan(text))
    assert len(family.templates) <= 8


@pytest.mark.parametrize(
    "text",
    [
        "E'a'", "b'1'", "U&'a'", "N'a'", r"'a\'", "$$a$$", "$1a 'x'", "0x1F", "007", "1_000", ".5", "5.", "1e",
        "/* /* */ */ 1", "'a", '"a 1', "1 /*", "a.5", "5'x'", "'x' \0",
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_not_taken_apart(text: str) -> None:
    assert split(text.encode()) is None


@given(
    st.lists(
        st.sampled_from(["'", '"', "''", "a", "1", ".", "$", "-", "/*", "*/", "\n", "é", " ", "e", "\\"])
    )
)
def test_what_is_taken_apart_is_the_text(words: list[str]) -> None:
    text = "".join(words).encode()
    parts = split(text)
    if parts is not None:
        whole = b"".join(
            piece + literal for piece, literal in zip(parts.pieces, (*parts.literals, b""), strict=True)
        )
        assert whole == text
        assert len(parts.kinds) == len(parts.literals) == len(parts.pieces) - 1
        assert all(
            text[at:].startswith(literal) for at, literal in zip(parts.offsets, parts.literals, strict=True)
        )
