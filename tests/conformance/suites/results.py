"""What a pass of a suite came to, read from its JUnit XML, and how two passes compare.

A test that is reported more than once (its teardown failed after it had passed, one of its subtests failed) has the
worst of its outcomes. Ids are pytest's (``tests/test_pool.py::TestPool::test_x[a]``) where the module named is a file
of the suite, else the dotted name, as unittest gives it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from xml.etree import ElementTree

from tests.conformance.suites.sources import SuiteError


class Outcome(IntEnum):
    """From the best to the worst."""

    PASSED = 0
    SKIPPED = 1
    MISSING = 2
    FAILED = 3
    ERROR = 4

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Result:
    """One test's outcome and the first words on why."""

    outcome: Outcome
    message: str = ""


ABSENT = Result(Outcome.MISSING, "the test was not run")
Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that went otherwise through the sidecar."""

    test: str
    direct: Result
    sidecar: Result


@dataclass(slots=True)
class Comparison:
    """``worse``: what passed (or was skipped) directly and did not do so through the sidecar. ``better``: what failed
    only directly, which says something about the suite and nothing about the sidecar."""

    worse: list[Difference] = field(default_factory=list)
    better: list[Difference] = field(default_factory=list)


def read(reports: Path, directory: Path) -> dict[str, Result]:
    """The results of a JUnit file, or of all in a directory; ``directory`` is where the suite ran."""
    files = sorted(reports.glob("*.xml")) if reports.is_dir() else [reports]
    results: dict[str, Result] = {}
    for path in files:
        try:
            tree = ElementTree.parse(path)
        except (OSError, ElementTree.ParseError) as error:
            raise SuiteError(f"the suite left no readable report: {error}") from error
        for case in tree.iter("testcase"):
            test = _identifier(case.get("classname", ""), case.get("name", ""), directory)
            result = _result(case)
            if result.outcome >= results.get(test, result).outcome:
                results[test] = result
    return results


def compare(direct: Results, sidecar: Results) -> Comparison:
    """The tests whose outcomes differ."""
    comparison = Comparison()
    for test in sorted(direct.keys() | sidecar.keys()):
        before, after = direct.get(test, ABSENT), sidecar.get(test, ABSENT)
        if before.outcome >= Outcome.FAILED:
            if after.outcome is Outcome.PASSED:
                comparison.better.append(Difference(test, before, after))
        elif after.outcome > before.outcome:
            comparison.worse.append(Difference(test, before, after))
    return comparison


def tally(results: Iterable[Result]) -> str:
    """The outcomes counted: ``303 passed, 63 skipped``."""
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome]) or "no tests"


def _result(case: ElementTree.Element) -> Result:
    for tag, outcome in (
        ("error", Outcome.ERROR),
        ("failure", Outcome.FAILED),
        ("skipped", Outcome.SKIPPED),
    ):
        found = case.find(tag)
        if found is not None:
            return Result(outcome, _summary(found))
    return Result(Outcome.PASSED)


def _summary(report: ElementTree.Element) -> str:
    """One line: pytest says it in the message, or, with native tracebacks, in the last line that is not indented."""
    said = (report.get("message") or "").strip()
    if not said or said.endswith(("Traceback (most recent call last):", ":")):
        lines = [line for line in (report.text or "").splitlines() if line.strip() and not line[0].isspace()]
        said = lines[-1] if lines else said
    return said.splitlines()[0][:200] if said else ""


def _identifier(classname: str, name: str, directory: Path) -> str:
    parts = classname.split(".")
    for length in range(len(parts), 0, -1):
        path = Path(*parts[:length]).with_suffix(".py")
        if (directory / path).is_file():
            return "::".join([path.as_posix(), *parts[length:], name])
    return f"{classname}.{name}" if classname else name
