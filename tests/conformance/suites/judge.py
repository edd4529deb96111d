"""One suite judged: run directly, run through a sidecar, compared, and the verdict told.

The rule: a test that passes directly passes through the sidecar, or stands in the suite's list of allowed differences.
Before a difference counts, the tests that differ are run directly `REPETITIONS` times more: one that fails in any of
these runs is unstable by itself and says nothing about the sidecar. A failure through the sidecar is never tried again
until it passes, unless the list says that the difference is one of timing: then it has to pass once in as many runs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.suites import allowed, results, servers, sources
from tests.conformance.suites.results import Difference, Outcome, Result
from tests.conformance.suites.servers import Endpoint, Setting
from tests.conformance.suites.sources import Sdist, SuiteError

REPETITIONS = 10
PASSES = {"direct": "directly", "through": "through the sidecar"}
"""The passes that count, by the names of their reports."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a suite, as its command is made from it.

    ``directory`` is what `Suite.lay_out` filled and the command's working directory. The JUnit XML is expected at
    ``report``: a file, or a directory of them. ``only`` are ids of tests to run; empty stands for all.
    """

    python: Path
    directory: Path
    endpoint: Endpoint
    report: Path
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute; ``variables`` are added to a clean environment."""

    arguments: Sequence[str]
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite: what to fetch, what it needs, how it is run, and what is allowed.

    ``lay_out(source, directory)`` copies from the unpacked source what the suite runs from. ``databases`` are the names
    that the sidecar serves. ``prepare`` is SQL for a fresh server, as pairs of database and statement. Fewer passes
    than ``least`` directly mean that the suite did not run as it should, and are an error.
    """

    name: str
    sdist: Sdist
    requirements: tuple[str, ...]
    lay_out: Callable[[Path, Path], None]
    command: Callable[[Run], Command]
    allowed: Path
    least: int
    databases: tuple[str, ...] = ("postgres",)
    prepare: tuple[tuple[str, str], ...] = ()
    timeout: float = 900.0


@dataclass(slots=True)
class Judgement:
    """What came of it. ``complaints`` are about the sidecar, see `servers.Sidecar`."""

    unexpected: list[Difference] = field(default_factory=list)
    permitted: list[Difference] = field(default_factory=list)
    unstable: list[Difference] = field(default_factory=list)
    better: list[Difference] = field(default_factory=list)
    stale: list[allowed.Entry] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the sidecar but what is allowed."""
        return not self.unexpected and not self.complaints


def judge(suite: Suite, setting: Setting, only: tuple[str, ...] = ()) -> Judgement:
    """Run a suite both ways and compare; progress and verdict go to standard output."""
    permitted = allowed.read(suite.allowed)
    _say(suite, f"fetching {suite.sdist.name} {suite.sdist.version} and what it needs")
    trial = Trial.set_up(suite)

    with servers.server(suite.prepare) as cluster:
        direct = trial.run("direct", servers.directly(cluster), only)
    passes = sum(result.outcome is Outcome.PASSED for result in direct.values())
    if not only and passes < suite.least:
        raise SuiteError(
            f"only {passes} tests of {suite.name} passed against PostgreSQL itself, {suite.least} are expected: "
            f"see {trial.output}/direct.log"
        )
    with (
        servers.server(suite.prepare, setting.replicas) as cluster,
        servers.sidecar(cluster, setting, trial.output) as running,
    ):
        through = trial.run("through", running.endpoint, only)
        comparison = results.compare(direct, through)
        worse = {difference.test: difference for difference in comparison.worse}
        sometimes = [test for test in worse if permitted.sometimes(test)]
        never = set(sometimes) - trial.passing(running.endpoint, sometimes)

    suspects = [test for test in worse if permitted.reason(test) is None]
    if suspects:
        _say(suite, f"{len(suspects)} tests differ, running them directly {REPETITIONS} times more")
        with servers.server(suite.prepare) as cluster:
            unstable = trial.failing(servers.directly(cluster), suspects)
    else:
        unstable = set()
    unexpected = never | (set(suspects) - unstable)
    judgement = Judgement(
        unexpected=[worse[test] for test in worse if test in unexpected],
        permitted=[worse[test] for test in worse if test not in unexpected | unstable],
        unstable=[worse[test] for test in worse if test in unstable],
        better=comparison.better,
        stale=[] if only else permitted.stale(worse),
        complaints=running.complaints,
    )
    _tell(suite, judgement, permitted, trial.output)
    return judgement


@dataclass(frozen=True, slots=True)
class Trial:
    """A suite that was fetched and laid out; logs and reports of its passes are left in ``output``."""

    suite: Suite
    python: Path
    directory: Path
    output: Path

    @classmethod
    def set_up(cls, suite: Suite) -> Trial:
        """Fetch it and lay it out."""
        source = sources.fetch(suite.sdist)
        python = sources.environment(suite.name, suite.requirements)
        output = sources.cache_directory() / "results" / suite.name
        output.mkdir(parents=True, exist_ok=True)
        directory = output / "suite"
        suite.lay_out(source, directory)
        return cls(suite, python, directory, output)

    def run(self, label: str, endpoint: Endpoint, only: Collection[str] = ()) -> dict[str, Result]:
        """One pass, told about if it is one of `PASSES`."""
        report = self.output / f"{label}.xml"
        log_path = self.output / f"{label}.log"
        _remove(report)
        command = self.suite.command(Run(self.python, self.directory, endpoint, report, tuple(only)))
        began = time.monotonic()
        with open(log_path, "wb") as log:
            try:
                subprocess.run(
                    command.arguments,
                    cwd=self.directory,
                    env=servers.clean_environment(**command.variables),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=self.suite.timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise SuiteError(
                    f"{self.suite.name} was not done within {self.suite.timeout:g} s ({label}): see {log_path}"
                ) from None
        if not report.exists():
            raise SuiteError(f"{self.suite.name} left no report ({label}): see {log_path}")
        found = results.read(report, self.directory)
        if label in PASSES:
            seconds = time.monotonic() - began
            _say(self.suite, f"{PASSES[label]}: {results.tally(found.values())} in {seconds:.0f} s")
        return found

    def failing(self, endpoint: Endpoint, tests: Collection[str]) -> set[str]:
        """Which of these tests do not pass every time."""
        found: set[str] = set()
        for _ in range(REPETITIONS):
            again = self.run("again", endpoint, tests)
            found |= {test for test in tests if again.get(test, results.ABSENT).outcome >= Outcome.MISSING}
        return found

    def passing(self, endpoint: Endpoint, tests: Collection[str]) -> set[str]:
        """Which of these tests pass at least once."""
        found: set[str] = set()
        for _ in range(REPETITIONS):
            left = [test for test in tests if test not in found]
            if not left:
                break
            again = self.run("again", endpoint, left)
            found |= {test for test in left if again.get(test, results.ABSENT).outcome is Outcome.PASSED}
        return found


def _tell(suite: Suite, judgement: Judgement, permitted: allowed.Allowed, output: Path) -> None:
    for difference in judgement.permitted:
        _say(suite, f"allowed: {difference.test} ({permitted.reason(difference.test)})")
    for difference in judgement.better:
        _say(suite, f"only directly {difference.direct.outcome}: {difference.test}")
    for difference in judgement.unstable:
        _say(suite, f"unstable without the sidecar too: {difference.test}")
    for entry in judgement.stale:
        _say(
            suite,
            f"WARNING: allowed, but no longer different: {entry.pattern}; take it out of {suite.allowed.name}",
        )
    for difference in judgement.unexpected:
        _say(
            suite,
            f"DIFFERENT: {difference.test}: {difference.direct.outcome} directly, "
            f"{difference.sidecar.outcome} through the sidecar: {difference.sidecar.message}",
        )
    if judgement.unexpected:
        _say(
            suite,
            f"FAILED: {len(judgement.unexpected)} unexpected differences; reports and logs are in {output}",
        )
    else:
        _say(suite, f"passed: {len(judgement.permitted)} allowed differences, no other")


def _remove(report: Path) -> None:
    if report.is_dir():
        for path in report.glob("*.xml"):
            path.unlink()
    else:
        report.unlink(missing_ok=True)


def _say(suite: Suite, text: str) -> None:
    print(f"[{suite.name}] {text}", file=sys.stdout, flush=True)
