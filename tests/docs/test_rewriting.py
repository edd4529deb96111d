"""docs/rewriting.md says what the planner does: it is generated, and nothing is left out."""

from __future__ import annotations

from pathlib import Path

from proxy.rewrite.reasons import Reason
from tests.docs.catalogue import ELSEWHERE
from tests.docs.render import document, meanings, plans

PATH = Path(__file__).parents[2] / "docs" / "rewriting.md"


def test_the_document_is_what_is_generated_now() -> None:
    assert PATH.read_text() == document(), "docs/rewriting.md is out of date: run `make docs` and commit it"


def test_every_reason_says_what_it_means() -> None:
    silent = [reason.name for reason in Reason if reason not in meanings()]
    assert silent == [], "give them a docstring in proxy/rewrite/reasons.py"


def test_every_reason_has_an_example() -> None:
    given = {plan.reason for _, plan in plans()} | {reason.value for reason in ELSEWHERE}
    assert [r.value for r in Reason if r.value not in given] == [], (
        "add a statement to tests/docs/catalogue.py"
    )


def test_no_example_is_a_bug() -> None:
    assert [example.sql for example, plan in plans() if plan.reason == Reason.INTERNAL_ERROR.value] == []
