"""What the demo measures: quantiles that can be added up, and stalls around flips."""

from __future__ import annotations

import json
import time

import pytest

from migrator.demo.meter import Histogram, Meter, Phase, merge_phases


def test_quantiles_are_right_within_two_percent_also_after_merging() -> None:
    low, high = Histogram(), Histogram()
    for number in range(1, 51):
        low.add(number / 1000)
        high.add((number + 50) / 1000)
    low.merge(Histogram.from_json(json.loads(json.dumps(high.to_json()))))
    assert low.quantile(0.5) == pytest.approx(0.050, rel=0.025)
    assert low.quantile(0.99) == pytest.approx(0.099, rel=0.025)


def test_no_operation_has_no_latency() -> None:
    assert Histogram().quantile(0.99) == 0.0


def test_operations_count_for_the_phase_that_they_end_in() -> None:
    meter = Meter()
    meter.enter_phase("one")
    begun = meter.begin(1)
    meter.enter_phase("two")
    meter.done(1, begun, write=True)
    meter.done(1, meter.begin(1), write=False)
    meter.done(1, meter.begin(1), write=None)
    meter.failed(1, meter.begin(1), "broken")
    phases = merge_phases([meter.report(), meter.report()], ["one", "two"])
    assert [(p.name, p.writes, p.reads, p.errors) for p in phases] == [("one", 0, 0, 0), ("two", 2, 2, 2)]


def test_a_phase_that_comes_back_goes_on_counting() -> None:
    meter = Meter()
    for name in ("one", "two", "one"):
        meter.enter_phase(name)
        meter.done(1, meter.begin(1), write=True)
    one, two = merge_phases([meter.report()], ["one", "two"])
    assert (one.writes, two.writes) == (2, 1)


def test_a_stall_is_the_longest_operation_that_overlaps_the_flip() -> None:
    meter = Meter()
    meter.done(1, meter.begin(1) - 5, write=True)
    long = meter.begin(1) - 0.5
    meter.open_window("flip")
    meter.close_window("flip")
    meter.done(1, long, write=True)
    meter.done(1, meter.begin(1), write=True)
    assert meter.report()["stalls"]["flip"] == pytest.approx(0.5, abs=0.1)


def test_an_operation_that_still_hangs_at_the_end_counts_as_a_stall() -> None:
    meter = Meter()
    meter.open_window("flip")
    meter.begin(1)
    time.sleep(0.05)
    assert meter.report()["stalls"]["flip"] >= 0.05


def test_phases_survive_the_way_between_processes() -> None:
    phase = Phase("one", writes=1, reads=2, errors=3, longest=0.5)
    phase.latency.add(0.1)
    assert Phase.from_json(json.loads(json.dumps(phase.to_json()))).to_json() == phase.to_json()
