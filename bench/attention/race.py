"""Races: the contenders of one of attention's cases checked, then timed in turns or weighed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bench.attention.cases import AttentionCase, cases
from bench.attention.contenders.contender import AttentionContender
from bench.attention.contenders.registry import registry
from bench.attention.shapes import Inputs
from bench.harness import machine, measure, memory
from bench.harness.case import first_line, judge
from bench.harness.measure import Trial
from bench.harness.results import Row
from bench.harness.settings import Part, Settings


def parts(command: str, settings: Settings) -> list[Part]:
    """One part a case."""
    listed = cases(command, settings.device, settings.quick, settings.shapes)
    return [(case, partial(weigh if case.memory else time_case, case, settings)) for case in listed]


def contending(case: AttentionCase, settings: Settings) -> list[AttentionContender]:
    """The contenders of a case's task, of those that were asked for."""
    return settings.chosen(contender for contender in registry(settings.device) if case.task in contender.tasks)


def time_case(case: AttentionCase, settings: Settings) -> list[Row]:
    """Check all contenders, then time those that are right: a row each, in the registry's order."""
    device = settings.device
    listed = contending(case, settings)
    rows = {contender.name: judge(case, contender, device) for contender in listed}
    right = [contender for contender in listed if rows[contender.name].status == "right"]
    copies = 1 if case.hot else measure.copies(case.input_bytes, machine.describe(device).cache_bytes)
    inputs = case.inputs(device, copies)
    trials = []
    for contender in right:
        try:
            trial = _trial(case, contender, inputs)
            measure.once(trial, device)
            trials.append(trial)
        except RuntimeError as error:  # a step that cannot be captured, or too little memory for all copies
            rows[contender.name].status, rows[contender.name].reason = "failed", first_line(error)
    samples = measure.rounds(trials, device, case.hot, settings.limits) if trials else {}
    ours = {name: own for name, own in samples.items() if rows[name].ours}
    subtracted = {contender.minus for contender in right}
    for contender in right:
        if contender.name not in samples:
            continue
        row, own = rows[contender.name], samples[contender.name]
        # The time of what is subtracted is that of something else than the case's work.
        row.time(own, {} if contender.name in subtracted else case.work(contender.storage)._asdict(), ours)
        if contender.minus in samples:
            row.beyond = measure.difference(own, samples[contender.minus]).rounded()
    return list(rows.values())


def weigh(case: AttentionCase, settings: Settings) -> list[Row]:
    """The peak of memory in each contender's first call of this size; a wrong one's is not reported.

    A call of a tiny size comes before: what a library allocates once and for all does not count, what a contender
    keeps for the next call of this size does.
    """
    device, rows = settings.device, []
    for contender in contending(case, settings):
        row = judge(case.tiny(), contender, device)
        if row.status == "right":
            prepared = contender.prepare(case, case.inputs(device, 1)[0])
            with prepared.context():
                peak = memory.peak_resident(prepared.step, device)
            del prepared
            row = judge(case, contender, device)
            if row.status == "right":
                row.status, row.peak_bytes = "weighed", peak
        rows.append(replace(row, case=case.name, fields=case.fields))
    return rows


def _trial(case: AttentionCase, contender: AttentionContender, inputs: Sequence[Inputs]) -> Trial:
    prepared = [contender.prepare(case, one) for one in inputs]
    steps = [p.step for p in prepared]
    if case.graph:
        with prepared[0].context():
            steps = [measure.captured(step) for step in steps]
    context = contextlib.nullcontext if case.graph else prepared[0].context
    return Trial(contender.name, steps, context, contender.like_for_like)
