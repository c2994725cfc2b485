"""Run the cases of a command: check every contender, time those that are right, write what came out."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bench import models
from bench.attention.contenders import contender as contenders
from bench.attention.cases import Case, cases
from bench.attention.contenders.contender import Contender
from bench.harness import machine, measure
from bench.harness.measure import Limits, Trial
from bench.harness.results import Row, Run

Part = tuple[Any, Callable[[], list[Row]]]
"""A case to name what is skipped for want of time, and a function that measures it, and what takes turns with it."""


@dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    device: torch.device
    quick: bool = False
    shapes: tuple[str, ...] = ()
    contenders: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    seconds: float = float("inf")  # no new case after this


def run(command: str, settings: Settings, show: Callable[[Row], None], peaks: machine.Peaks | None = None) -> Run:
    """Measure every case of `command`; `show` is called with each row as it is ready."""
    begin, moment = time.monotonic(), machine.Moment.now()
    device = settings.device
    described = machine.describe(device)
    peaks = peaks or machine.measure_peaks(
        device, 0 if settings.quick else described.cache_bytes, settings.limits.seconds
    )
    made = Run(
        command=command,
        device=device.type,
        threads=torch.get_num_threads(),
        machine=vars(described),
        machine_name=described.name,
        versions=machine.versions(),
        commit=machine.commit(),
        peaks=peaks.as_dict(),
        quick=settings.quick,
    )
    for case, measured in _parts(command, settings, described.cache_bytes):
        over = time.monotonic() - begin > settings.seconds
        rows = [new_row(case, None, "skipped", f"the time for {command} was over")] if over else measured()
        for row in rows:
            made.rows.append(row)
            show(row)
    if moment is not None:
        made.others, made.steal = moment.shares()
    return made


def _parts(command: str, settings: Settings, cache_bytes: int) -> list[Part]:
    """What a command measures, one after another: each case of its own, but for whole models, which take turns."""
    if command == "roof":  # what every command measures at first is all of this one
        return []
    if command in models.COMMANDS:
        if settings.shapes:
            raise ValueError(f"--shapes: {command} has no shapes to choose")
        return importlib.import_module(f"bench.models.{command}").parts(settings)
    listed = cases(command, settings.device, settings.quick, settings.shapes)
    return [
        (case, partial(weigh, case, settings) if case.memory else partial(time_case, case, settings, cache_bytes))
        for case in listed
    ]


def time_case(case: Case, settings: Settings, cache_bytes: int) -> list[Row]:
    """Check all contenders, then time those that are right: a row each, in the registry's order."""
    device = settings.device
    rows: dict[str, Row] = {}
    right: list[Contender] = []
    for contender in contenders.for_case(case, device, settings.contenders):
        status, reason = judge(case, contender, device)
        rows[contender.name] = new_row(case, contender, status, reason)
        if status == "right":
            right.append(contender)
    inputs = case.inputs(device, 1 if case.hot else measure.copies(case.input_bytes, cache_bytes))
    trials = []
    for contender in right:
        try:
            trial = _trial(case, contender, inputs)
            measure.once(trial, device)
            trials.append(trial)
        except RuntimeError as error:  # a step that cannot be captured, or too little memory for all copies
            rows[contender.name].status, rows[contender.name].reason = "failed", first_line(error)
    samples = measure.rounds(trials, device, case.hot, settings.limits) if trials else {}
    bases = [contender.name for contender in right if contender.ours and contender.name in samples]
    subtracted = {contender.minus for contender in right}
    for contender in right:
        if contender.name in samples:
            _fill(rows[contender.name], case, contender, samples, bases)
            if contender.name in subtracted:  # the time is of something else than the case's work
                rows[contender.name].work = {}
    return list(rows.values())


def weigh(case: Case, settings: Settings) -> list[Row]:
    """The peak of memory in each contender's first call of this size; a wrong one's is not reported.

    A call of a tiny size comes before: what a library allocates once and for all does not count, what a contender
    keeps for the next call of this size does.
    """
    device, rows = settings.device, []
    tiny = case.tiny()
    for contender in contenders.for_case(case, device, settings.contenders):
        status, reason = judge(tiny, contender, device)
        peak = None
        if status == "right":
            prepared = contender.prepare(case, case.inputs(device, 1)[0])
            with prepared.context():
                peak = measure.peak_bytes(prepared.step, device)
            del prepared
            status, reason = judge(case, contender, device)
        row = new_row(case, contender, status, reason)
        if status == "right":
            row.status, row.peak_bytes = "weighed", peak
        rows.append(row)
    return rows


def judge(case: Case, contender: Contender, device: torch.device) -> tuple[str, str]:
    """`("right", "")`, or unavailable, failed or wrong and why."""
    if reason := contender.unavailable(case, device):
        return "unavailable", reason
    try:
        reason = case.wrong(contender, device)
    except Exception as error:  # whatever a library, its compiler or its absence raises: reported, and never timed
        return "failed", first_line(error)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return ("wrong", reason) if reason else ("right", "")


def _trial(case: Case, contender: Contender, inputs: Sequence[Any]) -> Trial:
    prepared = [contender.prepare(case, one) for one in inputs]
    steps = [p.step for p in prepared]
    if case.graph:
        with prepared[0].context():
            steps = [measure.captured(step) for step in steps]
    context = contextlib.nullcontext if case.graph else prepared[0].context
    return Trial(contender.name, steps, context, contender.like_for_like)


def new_row(case: Case, contender: Contender | None, status: str, reason: str) -> Row:
    """What is known of a contender in a case before it is timed; of a whole case if there is none."""
    return Row(
        task=case.task,
        case=case.name,
        fields=case.fields,
        contender=contender.name if contender else "",
        version=contender.version if contender else "",
        ours=contender.ours if contender else False,
        like_for_like=contender.like_for_like if contender else False,
        storage=contender.storage if contender else None,
        status=status,
        reason=reason,
    )


def _fill(
    row: Row,
    case: Case,
    contender: Contender,
    samples: dict[str, list[float]],
    bases: Sequence[str],
) -> None:
    own = samples[contender.name]
    row.status = "timed"
    row.rounds = len(own)
    row.seconds = measure.Quantiles.of(own).rounded()
    row.work = case.work(contender.storage)._asdict()
    row.against = {base: measure.ratio(own, samples[base]).rounded() for base in bases if base != contender.name}
    if contender.minus in samples:
        row.beyond = measure.difference(own, samples[contender.minus]).rounded()


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]
