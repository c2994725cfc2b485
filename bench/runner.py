"""The runner: the parts of a command, one after another, and what ran them."""

from __future__ import annotations

import importlib
import time

import torch

from bench import models
from bench.attention import race
from bench.harness import machine, roof
from bench.harness.case import new_row
from bench.harness.results import Run
from bench.harness.roof import Roof
from bench.harness.settings import Part, Settings


def measure_roof(settings: Settings) -> Roof:
    """The roof of the device that was chosen; a quick one is over memory that a cache may hold."""
    cache_bytes = 0 if settings.quick else machine.describe(settings.device).cache_bytes
    return roof.measure(settings.device, cache_bytes, settings.limits.seconds)


def run(command: str, settings: Settings, known: Roof | None = None) -> Run:
    """Measure every part of `command`, and first, if it is not `known`, the roof."""
    begin, moment = time.monotonic(), machine.Moment.now()
    described = machine.describe(settings.device)
    made = Run(
        command=command,
        device=settings.device.type,
        threads=torch.get_num_threads(),
        machine=vars(described),
        machine_name=described.name,
        versions=machine.versions(),
        commit=machine.commit(),
        roof=(known or measure_roof(settings))._asdict(),
        quick=settings.quick,
    )
    for case, measured in _parts(command, settings):
        over = time.monotonic() - begin > settings.seconds
        made.rows += [new_row(case, None, "skipped", f"the time for {command} was over")] if over else measured()
    if moment is not None:
        made.others, made.steal = moment.shares()
    return made


def _parts(command: str, settings: Settings) -> list[Part]:
    """What a command measures: each case of its own, but for whole models, which take turns."""
    if command == "roof":  # what every command measures at first is all of this one
        return []
    if command in models.COMMANDS:
        if settings.shapes:
            raise ValueError(f"--shapes: {command} has no shapes to choose")
        return importlib.import_module(f"bench.models.{command}").parts(settings)
    return race.parts(command, settings)
