"""What the judges of whole suites decide: which outcomes count as a difference, and which may differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.__main__ import SUITES, load
from tests.conformance.suites import allowed, results
from tests.conformance.suites.results import Outcome, Result
from tests.conformance.suites.sources import SuiteError

PASSED, SKIPPED, FAILED = Result(Outcome.PASSED), Result(Outcome.SKIPPED), Result(Outcome.FAILED)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_a_readable_list_of_allowed_differences(name: str) -> None:
    suite = load(name)
    assert suite.name == name
    assert all(entry.reason for entry in allowed.read(suite.allowed).entries)


@pytest.mark.parametrize(
    ("direct", "sidecar", "worse", "better"),
    [
        (PASSED, PASSED, False, False),
        (PASSED, FAILED, True, False),
        (PASSED, SKIPPED, True, False),
        (PASSED, None, True, False),
        (SKIPPED, FAILED, True, False),
        (SKIPPED, PASSED, False, False),
        (FAILED, FAILED, False, False),
        (FAILED, PASSED, False, True),
        (None, FAILED, True, False),
    ],
)
def test_only_what_the_sidecar_makes_worse_counts(
    direct: Result | None, sidecar: Result | None, worse: bool, better: bool
) -> None:
    found = results.compare({"t": direct} if direct else {}, {"t": sidecar} if sidecar else {})
    assert (bool(found.worse), bool(found.better)) == (worse, better)


def test_the_worst_report_of_a_test_is_its_outcome(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_pool.py").touch()
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.test_pool.TestPool" name="test_a[x.y]"/>'
        '<testcase classname="tests.test_pool.TestPool" name="test_a[x.y]"><error message="at teardown"/></testcase>'
        '<testcase classname="backends.tests.Case" name="test_b"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    assert results.read(report, tmp_path) == {
        "tests/test_pool.py::TestPool::test_a[x.y]": Result(Outcome.ERROR, "at teardown"),
        "backends.tests.Case.test_b": Result(Outcome.SKIPPED),
    }


def test_a_list_says_which_tests_may_differ_and_why(tmp_path: Path) -> None:
    path = tmp_path / "allowed.txt"
    path.write_text(
        "# comment\n\na.py::T::* -- a whole class\nb.py::t -- of one -- kind\n~ c.py::t -- a race\n"
    )
    listed = allowed.read(path)
    assert listed.reason("a.py::T::test") == "a whole class"
    assert listed.reason("b.py::t") == "of one -- kind"
    assert listed.reason("c.py::t") == "a race"
    assert listed.reason("c.py::other") is None
    assert (listed.sometimes("c.py::t"), listed.sometimes("a.py::T::test")) == (True, False)


def test_an_entry_that_differs_no_more_is_stale_unless_it_is_a_matter_of_timing(tmp_path: Path) -> None:
    path = tmp_path / "allowed.txt"
    path.write_text("a.py::t -- one\nb.py::* -- two\n~ c.py::t -- three\n")
    assert [entry.pattern for entry in allowed.read(path).stale({"b.py::x"})] == ["a.py::t"]


@pytest.mark.parametrize("line", ["a.py::t", "a.py::t -- ", " -- reason", "a.py::t -- x\na.py::t -- y"])
def test_an_entry_without_a_reason_or_twice_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "allowed.txt"
    path.write_text(line + "\n")
    with pytest.raises(SuiteError):
        allowed.read(path)
