"""Decoding: which engine makes steps, that both make the same takes, and what fewer bits change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsmr.generation.decoding import Decoder, Decoding
from dsmr.generation.sampling import Sampling
from dsmr.generation.takes import generate
from dsmr.model import native
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, END, NOTE_OFF, PAD, TIME_SHIFT

SEGMENT = 16
PROMPT = np.tile(np.array([60, TIME_SHIFT + 9, NOTE_OFF + 60, TIME_SHIFT + 4]), 14)  # 3.5 segments

needs_native = pytest.mark.skipif(native.absence() is not None, reason=str(native.absence()))


def make_model(dtype: torch.dtype = torch.float32, **changes: object) -> Transformer:
    torch.manual_seed(0)
    schedule = make_schedule("explicit", 2, horizons=[24, 8])
    sizes = {"width": 32, "heads": 2, "kv_heads": 1, "segment": SEGMENT, "schedule": schedule}
    model = Transformer(ModelConfig(**{**sizes, **changes})).to(dtype).eval()
    torch.nn.init.normal_(model.embedding.weight, std=0.25)
    return model


@needs_native
@pytest.mark.parametrize("key_shift", [None, (1,)])
def test_both_engines_make_the_same_takes(key_shift: tuple[int, ...] | None) -> None:
    """Many pieces a lane, one after a prompt; a draw would have to fall within rounding to differ."""
    model = make_model(key_shift=key_shift)
    arguments = {"tokens": 300, "at_end": "restart", "sampling": Sampling(temperature=1.3)}
    native_takes, python_takes = (
        generate(model, [None, PROMPT, None], decoding=Decoding(engine), **arguments) for engine in ("native", "python")
    )
    for ours, theirs in zip(native_takes, python_takes, strict=True):
        assert np.array_equal(ours.ids, theirs.ids)


BOUNDS = {"float32": 0.0, "bf16": 0.005, "int8": 0.02, "float8_e4m3": 0.02}
"""Nats a token that storing a model's weights or memory so may cost on real pieces."""


PAIRS = [(weights, memory) for weights in ("float32", "bf16", "int8") for memory in BOUNDS][1:]  # not float32 twice


@needs_native
@pytest.mark.parametrize(("weights", "memory"), PAIRS)
def test_fewer_bits_cost_little(weights: str, memory: str) -> None:
    """Through a prompt of several segments, single tokens and new pieces; one lane stands still now and then."""
    model = make_model()
    decoding = Decoding(weights=weights, memory=None if memory == "float32" else memory)
    prompts = [np.insert(PROMPT, 0, BEGIN).astype(np.uint16), np.array([BEGIN], dtype=np.uint16)]
    ours, exact = (_nll(Decoder(model, each), prompts) for each in (decoding, Decoding("python")))
    difference = np.abs(ours - exact)
    assert difference.max() > 2**-16, "nothing was rounded but float32"
    assert difference.mean() <= max(BOUNDS[weights], BOUNDS[memory])


def _nll(decoder: Decoder, prompts: list[np.ndarray]) -> np.ndarray:
    """Of random tokens fed one by one, float32 `[n]`: those of lanes that ran only."""
    random = np.random.default_rng(0)
    logits, found = decoder.read(prompts), []
    for i in range(100):
        tokens = random.integers(PAD, size=2)
        tokens[random.random(2) < 0.05] = END
        running = np.array([True, i % 4 != 3])
        nll = np.logaddexp.reduce(logits, 1) - logits[[0, 1], tokens]
        found.append(nll[running])
        after = decoder.step(tokens, running)
        logits = np.where(running[:, None], after, logits)
    return np.concatenate(found)


@needs_native
def test_memory_in_bf16_keeps_the_shifted_keys_of_the_prompt() -> None:
    model = make_model(key_shift=(2,))
    decoders = [Decoder(model, Decoding(memory=memory)) for memory in (None, "bf16")]
    for decoder in decoders:
        decoder.read([PROMPT.astype(np.uint16)])
    for exact, rounded in zip(*(decoder._state for decoder in decoders), strict=True):
        assert exact.tail.any()
        assert torch.equal(rounded.tail, exact.tail.bfloat16())


def test_the_choice_of_an_engine_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    assert Decoding("python").choose(model) == ("python", "as asked for")
    assert Decoding().choose(make_model(torch.float64)).engine == "python"
    monkeypatch.setattr(native, "absence", lambda: "it was never built")
    assert Decoding().choose(model) == ("python", "it was never built")
    for wanted, message in {
        Decoding("native"): "engine: the native step cannot be had: it was never built",
        Decoding(weights="bf16"): "engine: weights in bf16 cannot be had: it was never built",
        Decoding(memory="bf16"): "engine: memory in bf16 cannot be had: it was never built",
    }.items():
        with pytest.raises(ValueError, match=message):
            wanted.choose(model)


@needs_native
def test_cpus_get_the_native_step() -> None:
    choice = Decoding().choose(make_model())
    assert choice.engine == "native"
    assert choice.reason.endswith("weights in float32")


def test_quantised_memory_needs_no_native_step() -> None:
    takes = [generate(make_model(), tokens=40, decoding=Decoding("python", memory=m))[0] for m in ("int8", None)]
    assert [take.tokens for take in takes] == [40, 40]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "fast"}, "engine: expected 'auto', 'native' or 'python', got 'fast'"),
        ({"weights": "int4"}, "weights: expected one of float32, bf16, int8, got 'int4'"),
        ({"memory": "fp4"}, "memory: expected None, bf16 or one of int8, float8_e4m3, got 'fp4'"),
        ({"engine": "python", "weights": "bf16"}, "engine: 'python' cannot have weights in bf16"),
        ({"engine": "python", "memory": "bf16"}, "engine: 'python' cannot have memory in bf16"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**arguments)
