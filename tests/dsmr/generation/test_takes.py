"""Generation: streaming equals training, takes are their own, ids stay canonical, memory does not grow."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from dsmr.generation.grammar import Grammar
from dsmr.generation.sampling import Sampling, aim_releases
from dsmr.generation.takes import NO_TOKEN, AtEnd, Pace, generate, stream
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import (
    BEGIN,
    END,
    NOTE_DTYPE,
    NOTE_OFF,
    PEDAL_DTYPE,
    TIME_SHIFT,
    VELOCITY,
    Performance,
    decode,
    duration_seconds,
    encode,
    fold_pedal,
)

SEGMENT = 16
FLOAT32 = 2**-24 * 2  # relative: the sampler gets float32 logits of float64 models, rounded once, compared once

WINDOWS = pytest.mark.parametrize("window", ["segment", "token"])
SHORT = np.array([VELOCITY + 12, 60, TIME_SHIFT + 49, NOTE_OFF + 60])
LONG = np.tile(np.array([60, TIME_SHIFT + 9, NOTE_OFF + 60, TIME_SHIFT + 4]), 14)  # 3.5 segments
PROMPTS = [None, SHORT, LONG, LONG[: 2 * SEGMENT - 1]]  # with BEGIN the last one fills two segments exactly


def make_model(window: str = "segment", horizons: Sequence[int] = (24, 8), **changes: object) -> Transformer:
    """Logits with a deviation of about 1, in float64."""
    torch.manual_seed(0)
    schedule = make_schedule("explicit", len(horizons), horizons=list(horizons))
    sizes = {"width": 16, "heads": 2, "kv_heads": 1, "segment": SEGMENT, "window": window, "schedule": schedule}
    model = Transformer(ModelConfig(**{**sizes, **changes})).double()
    torch.nn.init.normal_(model.embedding.weight, std=0.25)
    return model


@dataclass(frozen=True)
class Recording(Sampling):
    """Keeps the logits of every draw."""

    seen: list[np.ndarray] = field(default_factory=list)

    def draw(self, logits: np.ndarray, allowed: np.ndarray, uniform: float) -> int:
        self.seen.append(logits.copy())
        return super().draw(logits, allowed, uniform)


@dataclass(frozen=True)
class Hasty(Recording):
    """Plays one note of 100 ms and then ends the piece, if it may."""

    def draw(self, logits: np.ndarray, allowed: np.ndarray, uniform: float) -> int:
        self.seen.append(logits.copy())
        return next(token for token in (END, NOTE_OFF + 60, 60, VELOCITY + 20, TIME_SHIFT + 9) if allowed[token])


@torch.no_grad()
def read_in_segments(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """Logits `[n, V]` after each id, read as in training: whole segments of a piece that begins one."""
    model.eval()
    state = model.new_state(1)
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    return torch.cat([model(part, state)[0] for part in tokens.split(model.config.segment, 1)]).numpy()


# Streaming equals training


@WINDOWS
@pytest.mark.parametrize("prompts", [[None], PROMPTS, PROMPTS[::-1]], ids=["no prompt", "ragged", "ragged reversed"])
def test_every_draw_is_from_the_logits_that_training_would_see(window: str, prompts: list[np.ndarray | None]) -> None:
    model = make_model(window)
    sampling = Recording()
    takes = generate(model, prompts, tokens=3 * SEGMENT + 5, sampling=sampling, at_end="forbid", include_prompt=True)
    for i, take in enumerate(takes):
        expected = read_in_segments(model, np.concatenate([[BEGIN], take.ids[:-1]]))[take.prompt_tokens :]
        drawn = np.stack(sampling.seen[i :: len(takes)])
        np.testing.assert_allclose(drawn, expected, rtol=FLOAT32, atol=1e-12)


def test_a_lane_that_has_ended_leaves_the_others_alone() -> None:
    model = make_model()
    sampling = Recording()
    # The prompts' lanes reach the limit of seconds at different steps.
    takes = generate(model, PROMPTS, seconds=9, sampling=sampling, at_end="forbid", include_prompt=True)
    assert len({take.tokens for take in takes}) > 1
    drawn = iter(sampling.seen)
    expected = [
        iter(read_in_segments(model, np.concatenate([[BEGIN], take.ids[:-1]]))[take.prompt_tokens :]) for take in takes
    ]
    for step in range(max(take.tokens for take in takes)):
        for take, logits in zip(takes, expected, strict=True):
            if step < take.tokens:
                np.testing.assert_allclose(next(drawn), next(logits), rtol=FLOAT32, atol=1e-12)
    assert next(drawn, None) is None


@WINDOWS
def test_a_new_piece_in_a_lane_is_a_fresh_start(window: str) -> None:
    model = make_model(window)
    sampling = Hasty()
    take = generate(model, [LONG], tokens=12, sampling=sampling, at_end="restart")[0]
    begins = np.flatnonzero(take.ids == BEGIN)
    assert len(begins) >= 1
    ids = np.concatenate([[BEGIN], LONG, take.ids])
    pieces = np.split(ids, np.flatnonzero(ids == BEGIN)[1:])
    expected = [read_in_segments(model, piece[:-1]) for piece in pieces]  # END or the last token: nothing follows
    expected[0] = expected[0][len(LONG) :]
    np.testing.assert_allclose(np.stack(sampling.seen), np.concatenate(expected), rtol=FLOAT32, atol=1e-12)


# Takes


def test_equal_seeds_give_equal_takes_and_others_do_not() -> None:
    model = make_model()
    first, again, other = (generate(model, [None], tokens=80, seed=seed)[0].ids for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_take_does_not_depend_on_how_many_there_are() -> None:
    model = make_model()  # float64: rounding does not reach a draw
    alone, four = generate(model, [SHORT], tokens=80), generate(model, [SHORT] * 4, tokens=80)
    assert np.array_equal(alone[0].ids, four[0].ids)
    assert len({take.ids.tobytes() for take in four}) == 4


def test_temperature_zero_takes_the_best_allowed_token() -> None:
    sampling = Recording(temperature=0)
    take = generate(make_model(), [None], tokens=40, sampling=sampling)[0]
    grammar = Grammar()
    for token, logits in zip(take.ids.tolist(), sampling.seen, strict=True):
        allowed = grammar.allowed(end=True)
        assert token == np.where(allowed, aim_releases(logits, allowed), -np.inf).argmax()
        grammar.accept(token)


@pytest.mark.parametrize("prompt", [None, SHORT, np.insert(SHORT, 0, BEGIN)], ids=["none", "events", "with BEGIN"])
def test_a_take_holds_the_prompt_if_it_is_asked_for(prompt: np.ndarray | None) -> None:
    model = make_model()
    new, whole = (generate(model, [prompt], seconds=8, include_prompt=x, at_end="forbid")[0] for x in (False, True))
    events = [] if prompt is None else SHORT
    assert np.array_equal(whole.ids, np.concatenate([events, new.ids]))
    assert (whole.prompt_tokens, new.prompt_tokens) == (len(events), 0)
    assert new.seconds == whole.seconds == pytest.approx(8)
    assert duration_seconds(new.ids) == new.seconds
    assert np.array_equal(whole.performance.notes, decode(whole.ids).notes)
    shift = duration_seconds(events)
    kept = whole.performance.notes[0 if prompt is None else 1 :]
    assert len(new.performance.notes) > 0
    for name, tolerance in {"onset": 1e-9, "offset": 1e-9, "pitch": 0, "velocity": 0}.items():
        moved = kept[name] - shift if tolerance else kept[name]
        np.testing.assert_allclose(new.performance.notes[name], moved, rtol=0, atol=tolerance)


def played(pedal: list[tuple[float, int]]) -> Performance:
    """A prompt with notes off the grid, that overlap on one key and end after one another."""
    notes = [(0.0, 0.123, 60, 71), (0.05, 0.9, 64, 33), (0.5, 1.234, 60, 99), (0.7, 1.0, 60, 50)]
    return Performance(np.array(notes, NOTE_DTYPE), np.array(pedal, PEDAL_DTYPE))


@pytest.mark.parametrize(
    ("pedal", "begins"),
    [
        ([], 1.23),
        ([(0.1, 127), (0.8, 20)], 1.23),
        ([(0.1, 127), (2.0, 60), (2.5, 40), (2.6, 63), (3.0, 1)], 2.5),  # holds the last note; then a foot that rests
        ([(2.0, 90), (4.0, 0)], 4.0),  # pressed when all is silent
        ([(0.1, 127), (2.0, 64)], 2.0),  # left down
    ],
    ids=["none", "lifted-early", "holds-the-last", "pressed-after-the-last", "left-down"],
)
def test_a_take_holds_the_prompt_as_it_was_played(pedal: list[tuple[float, int]], begins: float) -> None:
    prompt, model = played(pedal), make_model()
    new, whole = (generate(model, [prompt], seconds=8, include_prompt=x, at_end="forbid")[0] for x in (False, True))
    assert np.array_equal(whole.ids, np.concatenate([encode(prompt), new.ids]))
    assert whole.prompt_seconds == pytest.approx(begins, abs=0.01)
    assert new.prompt_seconds == 0
    own, after = np.split(whole.performance.notes, [len(prompt.notes)])
    assert np.array_equal(own, prompt.notes)
    assert np.array_equal(whole.performance.pedal[: len(pedal)], prompt.pedal)
    np.testing.assert_allclose(after["onset"], new.performance.notes["onset"] + whole.prompt_seconds)
    sounding = fold_pedal(whole.performance).notes  # the prompt sounds as it did, and its pedal holds no new note
    alone = fold_pedal(prompt).notes["offset"]
    np.testing.assert_allclose(sounding["offset"][: len(alone)], alone, atol=0.005)
    np.testing.assert_allclose(
        sounding["offset"][len(alone) :], new.performance.notes["offset"] + whole.prompt_seconds, atol=1e-9
    )


def test_a_prompt_of_notes_and_one_of_ids_are_continued_alike() -> None:
    prompt = played([(0.1, 127), (2.0, 0)])
    one, other = generate(make_model(), [prompt, encode(prompt)], tokens=30)
    alone = [generate(make_model(), [each], tokens=30)[0].ids for each in (prompt, encode(prompt))]
    assert np.array_equal(*alone)
    assert (one.prompt_tokens, other.prompt_tokens) == (0, 0)


def test_the_velocity_in_force_after_the_prompt_reaches_the_first_new_note() -> None:
    @dataclass(frozen=True)
    class Strike(Sampling):
        def draw(self, logits: np.ndarray, allowed: np.ndarray, uniform: float) -> int:
            return 64 if allowed[64] else super().draw(logits, allowed, uniform)

    take = generate(make_model(), [np.append(SHORT, TIME_SHIFT)], tokens=1, sampling=Strike())[0]
    assert take.ids.tolist() == [64]
    assert take.performance.notes["velocity"].tolist() == decode(SHORT).notes["velocity"].tolist()


# Ends


@pytest.mark.parametrize("seconds", [0.01, 1.0, 7.77])
def test_seconds_end_a_take_to_the_step(seconds: float) -> None:
    for take in generate(make_model(), PROMPTS, seconds=seconds, at_end="forbid"):
        assert take.stopped == "seconds"
        assert take.seconds == duration_seconds(take.ids) == pytest.approx(seconds, abs=1e-9)


def test_tokens_end_a_take() -> None:
    for take in generate(make_model(), PROMPTS, tokens=7, seconds=1000):
        assert take.stopped == "tokens"
        assert take.tokens == len(take.ids) == 7


@pytest.mark.parametrize(("at_end", "stopped"), [("stop", "end"), ("restart", "tokens"), ("forbid", "tokens")])
def test_end_does_what_it_was_told(at_end: AtEnd, stopped: str) -> None:
    take = generate(make_model(), [None], tokens=23, sampling=Hasty(), at_end=at_end)[0]
    assert take.stopped == stopped
    pieces = {"stop": 1, "restart": 4, "forbid": 0}[at_end]  # five tokens a piece
    assert np.count_nonzero(take.ids == END) == pieces
    assert np.count_nonzero(take.ids == BEGIN) == (pieces if at_end == "restart" else 0)
    if at_end == "stop":
        assert take.ids.tolist() == [VELOCITY + 20, 60, TIME_SHIFT + 9, NOTE_OFF + 60, END]


def test_takes_end_each_by_itself() -> None:
    steps = list(stream(make_model(), PROMPTS, seconds=6, at_end="forbid"))
    table = np.stack(steps)  # [steps, takes]
    for column, take in zip(table.T, generate(make_model(), PROMPTS, seconds=6, at_end="forbid"), strict=True):
        assert column[: take.tokens].tolist() == take.ids.tolist()
        assert (column[take.tokens :] == NO_TOKEN).all()
    assert (table[-1] != NO_TOKEN).any()


def test_a_stream_without_limits_goes_on() -> None:
    endless = stream(make_model(horizons=[8]), at_end="restart")
    assert sum(1 for _, _ in zip(range(300), endless, strict=False)) == 300


@pytest.mark.parametrize("training", [True, False])
def test_the_model_evaluates_while_it_plays_and_returns_to_its_mode(training: bool) -> None:
    model = make_model(dropout=0.5).train(training)
    steps = stream(model)
    assert model.training is training
    next(steps)
    assert not model.training
    steps.close()
    assert model.training is training
    generate(model, tokens=3)
    assert model.training is training


def test_an_interrupted_model_returns_to_its_mode() -> None:
    def interrupt(_: Pace) -> None:
        raise KeyboardInterrupt

    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        generate(model, tokens=2, progress=interrupt)
    assert model.training


def test_nobody_else_is_put_into_inference_mode() -> None:
    steps = stream(make_model())
    next(steps)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_progress_counts_all_takes_and_ends_with_none_running() -> None:
    calls: list[Pace] = []
    takes = generate(make_model(), PROMPTS, seconds=3, progress=calls.append)
    last = calls[-1]
    assert (last.lanes, last.running) == (len(takes), 0)
    assert last.tokens == sum(take.tokens for take in takes)
    assert last.music_seconds == pytest.approx(sum(take.seconds for take in takes))
    assert last.tokens_per_second == pytest.approx(last.tokens / last.wall_seconds)
    assert last.real_time_factor == pytest.approx(last.music_seconds / last.wall_seconds / last.lanes)
    assert max(take.wall_seconds for take in takes) == pytest.approx(last.wall_seconds)
    assert all(take.real_time_factor == pytest.approx(take.seconds / take.wall_seconds) for take in takes)
    assert all(take.tokens_per_second == pytest.approx(take.tokens / take.wall_seconds) for take in takes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "at least one limit"),
        ({"tokens": 0}, "tokens: expected at least 1"),
        ({"seconds": 0.0}, "seconds: expected a finite number of at least 0.01"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"tokens": 1, "prompts": []}, "prompts"),
        ({"tokens": 1, "prompts": [[60, END]]}, "prompt: expected events of one piece after BEGIN, got END"),
        ({"tokens": 1, "prompts": [[391]]}, "0..390"),
        ({"tokens": 1, "at_end": "never"}, "at_end"),
        ({"tokens": 1, "seed": -1}, "seed"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(make_model(), **arguments)


def test_a_broken_model_is_noticed() -> None:
    model = make_model()
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="logits: expected finite numbers"):
        generate(model, tokens=1)


# Memory


def test_memory_does_not_grow() -> None:
    """As many tensors of as many bytes are alive after 1,500 steps as after 300, and as many Python objects."""

    def alive() -> tuple[int, int, int]:
        gc.collect()
        objects = gc.get_objects()
        tensors = [x for x in objects if issubclass(type(x), torch.Tensor)]
        return len(tensors), sum(x.nbytes for x in tensors), len(objects)

    found = []
    for count, _ in enumerate(stream(make_model(horizons=[24]), [None, LONG], at_end="restart")):
        if count in (300, 900, 1500):
            found.append(alive())
        if count == 1500:
            break
    (tensors, nbytes, objects), *later = found
    for each in later:
        assert each[:2] == (tensors, nbytes)
        assert each[2] - objects < 20  # those that this test keeps
