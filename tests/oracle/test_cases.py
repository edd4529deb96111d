"""The named cases: what the oracle has found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from migrator.cluster import Cluster
from tests.oracle.cases import CASES, Case
from tests.oracle.runner import Scene, World


@pytest.fixture(scope="module")
def scenes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scene]]:
    """The cases' combinations, by name, behind one sidecar."""
    world = World(cluster, tmp_path_factory.mktemp("oracle"), "oracle_case")
    try:
        found = {}
        for combo in {case.combo.name: case.combo for case in CASES}.values():
            scene = world.add(combo)
            assert scene is not None, world.rejected
            found[combo.name] = scene
        world.serve()
        yield found
    finally:
        world.close()


def _parameter(case: Case) -> object:
    marks = [pytest.mark.xfail(strict=True, reason=case.bug, raises=AssertionError)] if case.bug else []
    return pytest.param(case, id=case.name, marks=marks)


@pytest.mark.parametrize("case", [_parameter(case) for case in CASES])
def test_what_the_oracle_has_found(case: Case, scenes: dict[str, Scene]) -> None:
    outcome = scenes[case.combo.name].run(case.program)
    assert not outcome.differences, "\n".join(outcome.differences)
    assert not outcome.known
    assert not outcome.refusals
