"""Statistics and the order of measuring, with a clock that is told what to say."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from bench.harness import machine, measure
from bench.harness.measure import Limits, Quantiles, Trial

CPU = torch.device("cpu")


def test_quantiles_are_the_20_50_and_80_percent_ones():
    assert Quantiles.of([5, 1, 3, 2, 4, 0]) == Quantiles(1, 2.5, 4)


def test_ratio_is_the_median_of_ratios_not_the_ratio_of_medians():
    ours, peer = [1.0, 10.0, 100.0], [2.0, 20.0, 50.0]
    assert measure.ratio(peer, ours).median == 2.0  # medians alone would say 20 / 10; rounds say 2, 2, 0.5
    assert measure.ratio([3.0, 1.0, 8.0], [1.0, 2.0, 4.0]).median == 2.0  # medians alone: 3 / 2


def test_ratio_and_difference_use_the_rounds_that_both_took_part_in():
    assert measure.ratio([2.0, 2.0], [1.0, 1.0, 100.0]).high == 2.0
    assert measure.difference([2.0, 3.0], [1.0, 1.0, 100.0]).median == 1.5


def test_rounded_keeps_four_digits():
    assert Quantiles(1.23456e-5, 2, 3.00004).rounded() == [1.235e-5, 2.0, 3.0]


@pytest.mark.parametrize(("size", "expected"), [(2**20, 64), (2**24, 4), (2**30, 2), (0, 64)])
def test_copies_exceed_twice_the_cache(size, expected):
    assert measure.copies(size, 2**25) == expected


class Clock:
    """Stands in for the timing of one step: runs it and reports what the trial's name says."""

    def __init__(self, monkeypatch, seconds):
        self.log = []
        self.seconds = seconds
        monkeypatch.setattr(measure, "_timed", self.timed)

    def timed(self, trial, number, device):
        trial.steps[number % len(trial.steps)]()
        self.log.append((trial.name, number))
        return lambda: self.seconds[trial.name]


def trial(name, calls, copies=2):
    return Trial(name, [lambda copy=copy: calls.append((name, copy)) for copy in range(copies)])


def test_contenders_take_turns_in_beginning_and_inputs_rotate(monkeypatch):
    clock, calls = Clock(monkeypatch, {"a": 1.0, "b": 1.0, "c": 1.0}), []
    samples = measure.rounds([trial(name, calls) for name in "abc"], CPU, False, Limits(0, least=3, most=3))
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert [name for name, _ in clock.log[6:]] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [copy for _, copy in calls[6:]] == [0] * 3 + [1] * 3 + [0] * 3


def test_hot_calls_the_same_inputs_untimed_first(monkeypatch):
    clock, calls = Clock(monkeypatch, {"a": 1.0}), []
    samples = measure.rounds([trial("a", calls)], CPU, True, Limits(0, least=2, most=2))
    assert len(samples["a"]) == 2
    assert clock.log[2:] == [("a", 0), ("a", 0), ("a", 1), ("a", 1)]


def test_no_first_call_on_a_copy_is_timed(monkeypatch):
    """It was: of at most 100 rounds over 64 copies, 63 timed what a first call on a ring examines and prepares."""
    clock, calls = Clock(monkeypatch, {"a": 1.0, "b": 1.0}), []
    measure.rounds([trial(name, calls, copies=5) for name in "ab"], CPU, False, Limits(0, least=1, most=1))
    assert clock.log == [(name, copy) for name in "ab" for copy in range(5)] + [("a", 0), ("b", 0)]


def test_a_slow_contender_is_measured_in_few_rounds(monkeypatch):
    Clock(monkeypatch, {"fast": 1.0, "slow": 3.5})
    samples = measure.rounds([trial("fast", []), trial("slow", [])], CPU, False, Limits(0, least=6, most=6))
    assert (len(samples["fast"]), len(samples["slow"])) == (6, 3)


def test_what_computes_something_else_says_of_nobody_that_it_is_slow(monkeypatch):
    """Quantised memory reads a quarter of the bytes: exact memory was thrown out of its own comparison for it."""
    Clock(monkeypatch, {"exact": 3.5, "quantised": 1.0})
    quantised = replace(trial("quantised", []), comparable=False)
    samples = measure.rounds([trial("exact", []), quantised], CPU, False, Limits(0, least=6, most=6))
    assert (len(samples["exact"]), len(samples["quantised"])) == (6, 6)


def test_one_slow_call_is_no_slow_contender(monkeypatch):
    clock = Clock(monkeypatch, {"a": 1.0, "b": 1.0})

    def timed(trial, number, device):
        return lambda: 50.0 if (trial.name, number) == ("b", 0) else 1.0

    monkeypatch.setattr(measure, "_timed", timed)
    samples = measure.rounds([trial("a", []), trial("b", [])], CPU, False, Limits(0, least=6, most=6))
    assert not clock.log
    assert len(samples["b"]) == 6


@pytest.mark.parametrize(("limits", "expected"), [(Limits(0.0, 100.0, 5, 9), 5), (Limits(0.0, 0.0, 5, 9), 3)])
def test_it_stops_after_enough_rounds_or_when_patience_ends(monkeypatch, limits, expected):
    Clock(monkeypatch, {"a": 1.0})
    assert len(measure.rounds([trial("a", [])], CPU, False, limits)["a"]) == expected


def test_the_real_clock_counts_the_step_and_not_its_context():
    entered = []

    class Context:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *_):
            entered.append("out")

    seen = []
    one = Trial("a", [lambda: seen.append(list(entered))], Context)
    samples = measure.rounds([one], CPU, False, Limits(0, least=1, most=1))
    assert seen[0] == ["in"]
    assert entered == ["in", "out"] * 2
    assert samples["a"][0] > 0


@pytest.mark.skipif(machine.Moment.now() is None, reason="needs /proc/stat")
def test_shares_are_those_of_others(monkeypatch):
    cores = os.cpu_count()
    then, now = machine.Moment(10.0, 5.0, 1.0, 0.5), machine.Moment(20.0, 5.0 + 4.0 * cores, 1.0 + 3.0 * cores, 1.5)
    monkeypatch.setattr(machine.Moment, "now", lambda: now)
    assert then.shares() == (0.1, pytest.approx(0.1 / cores))


def test_those_that_take_turns_have_as_much_time_as_each_would_have_alone():
    alone = Limits(seconds=2.0, patience=5.0, slow_factor=3.0)
    together = alone.for_all(4)
    assert (together.seconds, together.patience, together.least) == (8.0, 20.0, alone.least)
    assert together.slow_factor == float("inf")
