"""Scores of stretches of pieces, each read with a model from an empty memory on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dsmr.corpus.store import TokenStore
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import PAD
from dsmr.progress import Progress
from dsmr_kernels.storage import Storage


@dataclass(frozen=True)
class Stretch:
    """Ids `begin ... stop - 1` of a piece, read with a memory that is empty at `begin`.

    Args:
        piece: its index in the store.
        begin: the first id that is read.
        start: from here on predictions are scored: reading id i predicts id i + 1.
        stop: one past the last id that is read.
        index: what the model takes for the position of `begin`: 0, as if a piece began there, or `begin` itself, if
            only memory is missing and positions go on counting.
    """

    piece: int
    begin: int
    start: int
    stop: int
    index: int = 0


def score(
    model: Transformer,
    store: TokenStore,
    stretches: Sequence[Stretch],
    *,
    lanes: int,
    segment: int | None = None,
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Read stretches side by side and score the predictions that they ask for.

    Segments end where the position is a multiple of `segment`; the first of a stretch may so be a shorter one. Hence a
    token finds itself in the same segment wherever reading began, and all that differs is what is remembered. Results
    do not depend on `lanes`, up to rounding. Dropout is off while this runs; the model's mode is restored. Runs under
    the caller's autocast.

    Args:
        model: on its own device.
        lanes: stretches read side by side; costs memory, saves time.
        segment: tokens a step; None: the model's training segment.
        storage: quantises the memory; None: it keeps the type that keys and values have.
        progress: called after each step.

    Returns:
        For each stretch float32 `[stop - start]`: the NLL in nats of the piece's ids `start + 1 ... stop`.
    """
    segment = segment or model.config.segment
    scores = [np.full(each.stop - each.start, np.nan, dtype=np.float32) for each in stretches]
    total, done = sum(each.stop - each.begin for each in stretches), 0
    lanes = max(1, min(lanes, len(stretches)))
    counts_on = any(each.index for each in stretches)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            device = model.embedding.weight.device
            state = model.new_state(lanes, max_segment=segment, storage=storage)
            for step in _steps(store, stretches, lanes, segment):
                state.reset(torch.tensor([part is not None and part.begins for part in step.parts], device="cpu"))
                origin = torch.tensor(
                    [stretches[part.number].index if part else 0 for part in step.parts], device="cpu"
                )
                logits = model(
                    step.tokens.to(device),
                    state,
                    segment_len=step.segment_len.to(device),
                    origin=origin.to(device) if counts_on else None,
                )
                logits = logits.mT.to(torch.promote_types(logits.dtype, torch.float32))  # [B, V, T]
                nll = F.cross_entropy(logits, step.targets.to(device), reduction="none").float().cpu().numpy()
                for lane, part in enumerate(step.parts):
                    if part is not None:
                        first = max(part.start, stretches[part.number].start)
                        at = first - stretches[part.number].start
                        wanted = nll[lane, first - part.start : part.stop - part.start]
                        scores[part.number][at : at + len(wanted)] = wanted
                        done += part.stop - part.start
                if progress is not None:
                    progress(done, total)
    finally:
        model.train(was_training)
    return scores


@dataclass(frozen=True)
class _Part:
    """What one lane reads in one step: ids `start ... stop - 1` of stretch `number`; whether they are its first."""

    number: int
    start: int
    stop: int
    begins: bool


@dataclass(frozen=True)
class _Step:
    """One call of the model: its tokens, targets and `segment_len`, and what each lane holds (None: nothing)."""

    tokens: torch.Tensor
    targets: torch.Tensor
    segment_len: torch.Tensor
    parts: list[_Part | None]


def _parts(number: int, stretch: Stretch, segment: int) -> Iterator[_Part]:
    """A stretch cut into segments that end where the position is a multiple of `segment`."""
    start = stretch.begin
    while start < stretch.stop:
        position = stretch.index + start - stretch.begin
        stop = min(start + segment - position % segment, stretch.stop)
        yield _Part(number, start, stop, begins=start == stretch.begin)
        start = stop


def _steps(store: TokenStore, stretches: Sequence[Stretch], lanes: int, segment: int) -> Iterator[_Step]:
    """Deal stretches to lanes, the longest first so that lanes end together; one segment of each lane is a step."""
    order = sorted(range(len(stretches)), key=lambda number: stretches[number].begin - stretches[number].stop)
    waiting = deque(_parts(number, stretches[number], segment) for number in order)
    reading: list[Iterator[_Part]] = [iter(())] * lanes
    while True:
        parts: list[_Part | None] = []
        for lane in range(lanes):
            part = next(reading[lane], None)
            if part is None and waiting:
                reading[lane] = waiting.popleft()
                part = next(reading[lane])
            parts.append(part)
        lengths = [part.stop - part.start if part else 0 for part in parts]
        if not any(lengths):
            return
        tokens, targets = (np.full((lanes, max(lengths)), PAD, dtype=np.int64) for _ in range(2))
        for lane, part in enumerate(parts):
            if part is not None:
                ids = store.piece(stretches[part.number].piece)[part.start : part.stop + 1]
                tokens[lane, : lengths[lane]], targets[lane, : lengths[lane]] = ids[:-1], ids[1:]
        yield _Step(torch.from_numpy(tokens), torch.from_numpy(targets), torch.tensor(lengths, device="cpu"), parts)
