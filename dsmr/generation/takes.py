"""Takes of new music, token by token, in memory that stays constant however long it gets.

`stream` yields tokens as they are sampled, `generate` collects whole takes. Each take has a lane of its own, with its
own seed, grammar and end. What is sampled is canonical: `encode(decode(ids))` gives back the ids of every finished
piece, so no token is spent on an event that says nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsmr.generation.decoding import Decoder, Decoding
from dsmr.generation.grammar import Grammar
from dsmr.generation.sampling import Sampling
from dsmr.model.transformer import Transformer
from dsmr.music.continuation import continued
from dsmr.music.tokens import (
    BEGIN,
    END,
    NOTE_OFF,
    PAD,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    Ids,
    Performance,
    decode,
    duration_seconds,
    encode,
    token_name,
)

AtEnd = Literal["stop", "restart", "forbid"]
"""What END does: it ends the take; a new piece begins in the same lane, with an empty memory; it is never sampled."""

NO_TOKEN = -1
"""In what `stream` yields: this lane's take has ended."""


Prompt = Performance | ArrayLike | None
"""Music to continue: a performance, or the ids of its events, integers `[n]`, with or without BEGIN; None: no music."""

PROGRESS_SECONDS = 0.1  # between two calls of a progress callback


@dataclass(frozen=True)
class Pace:
    """How far generation is, all lanes together, and how fast it is.

    `tokens` sampled, `music_seconds` of music in them, `wall_seconds` they took (reading prompts not counted), `lanes`
    takes, of which `running` have not ended.
    """

    tokens: int
    music_seconds: float
    wall_seconds: float
    lanes: int
    running: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens sampled in a second, all lanes together."""
        return self.tokens / self.wall_seconds

    @property
    def real_time_factor(self) -> float:
        """Seconds of music that a lane makes in a second, on average over lanes; above 1 it can be played live."""
        return self.music_seconds / self.wall_seconds / self.lanes


@dataclass(frozen=True, eq=False)
class Take:
    """One generated performance.

    Args:
        ids: uint16 `[n]`: the prompt, if it was to be included, and what was sampled; without the first BEGIN.
        performance: the notes of `ids`; those of a prompt that was given as a performance are its own, with its pedal,
            and time goes on when all of them have ended and the pedal is up. If the prompt was left out, time begins
            where it ends, and notes have the velocity that was in force then, which `ids` may not state.
        prompt_tokens: how many of `ids` are the prompt's.
        prompt_seconds: how long they last.
        tokens: number of sampled tokens.
        seconds: of music sampled: the sum of its time shifts.
        wall_seconds: that sampling took; other takes were made in the same time.
        stopped: what ended it: "end" (END was sampled), "seconds" or "tokens" (its limits).
    """

    ids: Ids
    performance: Performance
    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float
    wall_seconds: float
    stopped: str

    @property
    def tokens_per_second(self) -> float:
        """Tokens of this take that were sampled in a second."""
        return self.tokens / self.wall_seconds

    @property
    def real_time_factor(self) -> float:
        """Seconds of music made in a second; above 1 it can be played live."""
        return self.seconds / self.wall_seconds


def stream(
    model: Transformer,
    prompts: Sequence[Prompt] = (None,),
    *,
    seconds: float | None = None,
    tokens: int | None = None,
    at_end: AtEnd = "stop",
    sampling: Sampling | None = None,
    decoding: Decoding | None = None,
    seed: int = 0,
) -> Generator[NDArray[np.int64], None, None]:
    """Read prompts, then sample token after token as they are asked for, in constant memory.

    Prompts are read in whole segments and what then remains, and sampled tokens fill up segments in their turn: every
    token sees what it would see in training on a piece that begins a segment. The model is in evaluation mode while the
    generator is in use, that is until it is exhausted or closed.

    Args:
        model: what to sample from, on its own device.
        prompts: one for each take; `[prompt] * 3` makes three takes of one prompt.
        seconds: ends a take after so much new music, to the codec's step; the last time shift is cut. None: no limit.
        tokens: ends a take after so many new tokens. None: no limit.
        at_end: whether END ends a take ("stop"), is followed by a new piece in the same lane with an empty memory
            ("restart"), or is never sampled ("forbid").
        sampling: None samples from the model's distribution as it is.
        decoding: how steps are computed; None: natively on CPUs, where the native step can serve the model.
        seed: equal seeds give equal takes. Take i depends on the seed and i, not on how many takes there are, but for
            the rounding of sums, whose order may change with the number of lanes.

    Returns:
        A generator of steps: int64 `[takes]`, the token sampled for each take, or `NO_TOKEN` where it has ended.

    Raises:
        ValueError, TypeError: an argument is wrong; while iterating, the model's logits are not finite.
    """
    lanes = _lanes(prompts, seconds, tokens, at_end, seed)
    return _begin(model, lanes, sampling or Sampling(), decoding or Decoding())


def generate(
    model: Transformer,
    prompts: Sequence[Prompt] = (None,),
    *,
    seconds: float | None = None,
    tokens: int | None = None,
    at_end: AtEnd = "stop",
    sampling: Sampling | None = None,
    decoding: Decoding | None = None,
    seed: int = 0,
    include_prompt: bool = False,
    progress: Callable[[Pace], None] | None = None,
) -> list[Take]:
    """Make a take of each prompt, all side by side, and return them in that order.

    Args:
        model, prompts, at_end, sampling, decoding, seed: as for `stream`.
        seconds, tokens: as for `stream`, but one of them is needed: a model need never end a piece.
        include_prompt: takes begin with their prompts; else with what follows them.
        progress: called a few times a second and at the end.

    Raises:
        ValueError, TypeError: an argument is wrong, or the model's logits are not finite.
    """
    if seconds is None and tokens is None:
        raise ValueError("seconds, tokens: expected at least one limit, got neither")
    lanes = _lanes(prompts, seconds, tokens, at_end, seed)
    steps = _begin(model, lanes, sampling or Sampling(), decoding or Decoding())
    sampled: list[list[int]] = [[] for _ in lanes]
    wall_seconds = [0.0] * len(lanes)
    begun = shown = time.perf_counter()
    with closing(steps):
        for step in steps:
            now = time.perf_counter()
            for i, token in enumerate(step.tolist()):
                if token != NO_TOKEN:
                    sampled[i].append(token)
                    wall_seconds[i] = now - begun
            if progress is not None and (now - shown > PROGRESS_SECONDS or all(lane.stopped for lane in lanes)):
                progress(_pace(lanes, now - begun))
                shown = now
    return [_take(*each, include_prompt) for each in zip(lanes, sampled, wall_seconds, strict=True)]


class _Lane:
    """One take in the making: what may come next, what it was made with, how far it is and whether it has ended."""

    def __init__(
        self, prompt: Prompt, random: np.random.Generator, limit_steps: float, limit_tokens: float, at_end: AtEnd
    ) -> None:
        self.played = prompt if isinstance(prompt, Performance) else None
        self.prompt, self.random, self.at_end = _with_begin(prompt), random, at_end
        self.limit_steps, self.limit_tokens = limit_steps, limit_tokens
        self.steps = self.tokens = 0
        self.stopped: str | None = None
        self.grammar = Grammar()
        for token in self.prompt[1:].tolist():
            self.grammar.accept(token)

    def sample(self, logits: NDArray[np.float32], sampling: Sampling) -> int:
        """Draw the next token; a time shift is cut to end where the limit is."""
        allowed = self.grammar.allowed(end=self.at_end != "forbid")
        token = sampling.draw(logits, allowed, self.random.random())
        if TIME_SHIFT <= token < VELOCITY:
            shift = int(min(token - TIME_SHIFT + 1, self.limit_steps - self.steps))
            self.steps += shift
            token = TIME_SHIFT + shift - 1
        self.tokens += 1
        if token == END:
            self.grammar = Grammar()
        else:
            self.grammar.accept(token)
        if token == END and self.at_end == "stop":
            self.stopped = "end"
        elif self.steps >= self.limit_steps:
            self.stopped = "seconds"
        elif self.tokens >= self.limit_tokens:
            self.stopped = "tokens"
        return token


def _lanes(
    prompts: Sequence[Prompt], seconds: float | None, tokens: int | None, at_end: AtEnd, seed: int
) -> list[_Lane]:
    """A lane for each prompt, all arguments checked."""
    if at_end not in ("stop", "restart", "forbid"):
        raise ValueError(f"at_end: expected 'stop', 'restart' or 'forbid', got {at_end!r}")
    if len(prompts) == 0:
        raise ValueError("prompts: expected one for each take, got none")
    if seconds is not None and not 1 <= seconds * STEPS_PER_SECOND < math.inf:
        raise ValueError(f"seconds: expected a finite number of at least {1 / STEPS_PER_SECOND}, got {seconds}")
    if tokens is not None and not tokens >= 1:
        raise ValueError(f"tokens: expected at least 1, got {tokens}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    limit_steps = math.inf if seconds is None else round(seconds * STEPS_PER_SECOND)
    limit_tokens = math.inf if tokens is None else tokens
    return [
        _Lane(prompt, np.random.default_rng([seed, i]), limit_steps, limit_tokens, at_end)
        for i, prompt in enumerate(prompts)
    ]


def _with_begin(prompt: Prompt) -> Ids:
    """BEGIN and the events of a prompt, uint16."""
    if prompt is None:
        return np.array([BEGIN], dtype=np.uint16)
    if isinstance(prompt, Performance):
        prompt = encode(prompt)
    duration_seconds(prompt)  # raises for what is no sequence of ids
    ids = np.asarray(prompt).astype(np.uint16)
    if len(ids) == 0 or ids[0] != BEGIN:
        ids = np.insert(ids, 0, BEGIN)
    stray = np.flatnonzero(ids[1:] >= PAD)
    if len(stray):
        raise ValueError(f"prompt: expected events of one piece after BEGIN, got {token_name(ids[stray[0] + 1])}")
    return ids


@contextmanager
def _evaluating(model: Transformer) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _begin(
    model: Transformer, lanes: list[_Lane], sampling: Sampling, decoding: Decoding
) -> Generator[NDArray[np.int64], None, None]:
    """Read the lanes' prompts now, sample when asked."""
    with _evaluating(model):
        decoder = Decoder(model, decoding)
        logits = decoder.read([lane.prompt for lane in lanes])
    return _sample(model, lanes, sampling, decoder, logits)


def _sample(
    model: Transformer, lanes: list[_Lane], sampling: Sampling, decoder: Decoder, logits: NDArray[np.float32]
) -> Generator[NDArray[np.int64], None, None]:
    with _evaluating(model):
        while True:
            sampled = np.full(len(lanes), NO_TOKEN)
            for i, lane in enumerate(lanes):
                if lane.stopped is None:
                    sampled[i] = lane.sample(logits[i], sampling)
            yield sampled
            running = np.array([lane.stopped is None for lane in lanes])
            if not running.any():
                return
            logits = decoder.step(sampled, running)


def _pace(lanes: list[_Lane], wall_seconds: float) -> Pace:
    return Pace(
        tokens=sum(lane.tokens for lane in lanes),
        music_seconds=sum(lane.steps for lane in lanes) / STEPS_PER_SECOND,
        wall_seconds=wall_seconds,
        lanes=len(lanes),
        running=sum(lane.stopped is None for lane in lanes),
    )


def _take(lane: _Lane, sampled: list[int], wall_seconds: float, include_prompt: bool) -> Take:
    prompt = lane.prompt[1:]
    new = np.array(sampled, dtype=np.uint16)
    if lane.at_end == "restart":  # the model was fed BEGIN after each END but the last token
        new = np.insert(new, np.flatnonzero(new[:-1] == END) + 1, BEGIN)
    ids = np.concatenate([prompt, new])
    performance = decode(ids)
    prompt_ends = duration_seconds(prompt)
    new_notes = performance.notes[np.count_nonzero(prompt < NOTE_OFF) :].copy()
    for field in ("onset", "offset"):
        new_notes[field] -= prompt_ends
    if not include_prompt:
        performance = Performance(new_notes)
    elif lane.played is not None:
        performance, prompt_ends = continued(lane.played, prompt_ends, new_notes)
    assert lane.stopped is not None
    return Take(
        ids=ids if include_prompt else new,
        performance=performance,
        prompt_tokens=len(prompt) if include_prompt else 0,
        prompt_seconds=prompt_ends if include_prompt else 0.0,
        tokens=lane.tokens,
        seconds=lane.steps / STEPS_PER_SECOND,
        wall_seconds=wall_seconds,
        stopped=lane.stopped,
    )
