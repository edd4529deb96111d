"""Random programs on three sides: whatever a client does under a migration, it sees what it would see without one.

``DUALWIRE_ORACLE_PROGRAMS`` says how many programs the slow run plays, ``DUALWIRE_ORACLE_SEED`` where the numbers
begin; both runs print theirs. A failure is printed as a program and a combination that ``cases`` takes as they are.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from migrator.cluster import Cluster
from tests.oracle.programs import mixed, programs
from tests.oracle.runner import Outcome, Scene, World
from tests.oracle.schemas import draw
from tests.oracle.steps import Mixed, Program

COMBINATIONS = 5
PROGRAMS = 300
SLOW_PROGRAMS = int(os.environ.get("DUALWIRE_ORACLE_PROGRAMS", "20000"))
PROGRAMS_PER_COMBINATION = 1000
"""In the slow run, before others are drawn."""


class Tally:
    """What all programs of a run gave, for the report and for the proof that something was tested."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        """One more program."""
        self.counts["programs"] += 1
        self.counts["steps"] += outcome.steps
        self.counts["failed steps"] += outcome.failed
        self.counts["waived"] += outcome.waived
        self.counts.update(f"refused: {r}" for r in outcome.refusals)
        self.counts.update(f"known: {r}" for r in outcome.known)


Played = TypeVar("Played", Program, Mixed)


def play(
    scene: Scene,
    strategy: SearchStrategy[Played],
    run: Callable[[Played], Outcome],
    number: int,
    count: int,
    tally: Tally,
) -> None:
    """So many programs; the first that shows a difference is shrunk and reported."""
    last: list[tuple[Played, Outcome]] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategy)
    def test(program: Played) -> None:
        outcome = run(program)
        tally.add(outcome)
        if outcome.differences:
            last[:] = [(program, outcome)]
            raise AssertionError("a difference")

    try:
        test()
    except AssertionError:
        if not last:
            raise
        program, outcome = last[0]
        found = "\n".join(outcome.differences)
        plans = scene.explain(program) if isinstance(program, Program) else ""
        pytest.fail(
            f"number {number}, {scene.combo.name}:\n{scene.combo}\n{program}\n{found}\n{plans}", pytrace=False
        )


def run(world: World, number: int, count: int) -> Tally:
    """Programs on all scenes of a world, as many of old as of new speakers, with the sidecar's counters.

    A fifth more are of clients of all kinds in turns.
    """
    tally = Tally()
    turns = [(scene, speaker) for scene in world.scenes for speaker in scene.combo.speakers]
    for turn, (scene, speaker) in enumerate(turns):
        play(scene, programs(scene.combo, speaker), scene.run, number + turn, -(-count // len(turns)), tally)
    for scene in world.scenes:
        play(scene, mixed(scene.combo), scene.run_mixed, number, -(-count // 5 // len(world.scenes)), tally)
    tally.counts.update(world.counts())
    print(f"oracle: seed {number}: " + ", ".join(f"{k} {v}" for k, v in sorted(tally.counts.items())))
    return tally


def assert_not_evaded(tally: Tally) -> None:
    """Most writes were mirrored, few refused: otherwise the programs would have proved little."""
    counts = tally.counts
    refused = sum(v for k, v in counts.items() if k.startswith("refused:"))
    assert counts["mirrored"] > 1.5 * counts["guarded"], counts
    assert refused < 0.01 * counts["steps"], counts
    assert counts["failed steps"] < 0.5 * counts["steps"], counts
    assert sum(v for k, v in counts.items() if k.startswith("known:")) < 0.1 * counts["programs"], counts


@pytest.fixture
def worlds(cluster: Cluster, tmp_path: Path) -> Iterator[list[World]]:
    """Worlds that are ended with the test."""
    found: list[World] = []
    yield found
    for world in found:
        world.close()


def make(worlds: list[World], cluster: Cluster, directory: Path, number: int, count: int) -> World:
    """A world of so many combinations, with the sidecar running."""
    world = World(cluster, directory)
    worlds.append(world)
    while len(world.scenes) < count:
        world.add(draw(number))
        number += 1
    world.serve()
    return world


@pytest.mark.timeout(600)
def test_programs_see_what_they_would_see_without_a_migration(
    cluster: Cluster, worlds: list[World], tmp_path: Path
) -> None:
    number = int(os.environ.get("DUALWIRE_ORACLE_SEED", "1000"))
    world = make(worlds, cluster, tmp_path, number, COMBINATIONS)
    assert_not_evaded(run(world, number, PROGRAMS))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_programs_see_what_they_would_see_without_a_migration(
    cluster: Cluster, worlds: list[World], tmp_path: Path
) -> None:
    number = int(os.environ.get("DUALWIRE_ORACLE_SEED", "0")) or random.randrange(10**6)
    print(f"oracle: DUALWIRE_ORACLE_SEED={number}")
    played = 0
    while played < SLOW_PROGRAMS:
        world = make(worlds, cluster, tmp_path, number, COMBINATIONS)
        count = min(PROGRAMS_PER_COMBINATION * COMBINATIONS, SLOW_PROGRAMS - played)
        assert_not_evaded(run(world, number, count))
        worlds.pop().close()
        played += count
        number += 100
