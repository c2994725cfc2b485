"""Checkpoints from strangers: refused by field, before anything is built, whatever they ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsmr.cli import app
from dsmr.model import checkpoint
from dsmr.model.checkpoint import WEIGHTS_FILE, CheckpointError, load_checkpoint, read_info, save_checkpoint
from dsmr.model.config import MOST_LAYERS, MOST_TOKENS, ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.training import TrainingConfig
from dsmr_kernels import Retention

SCHEDULE = make_schedule("selective", 2, budget_tokens=16, retention=Retention(2, "random"))
CONFIG = ModelConfig(width=16, heads=2, kv_heads=1, schedule=SCHEDULE, segment=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_checkpoint(tmp_path, Transformer(CONFIG), {"step": 7})
    return tmp_path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers the models had that were built for real or on the meta device."""
    layers: list[int] = []

    class Watched(Transformer):
        def __init__(self, config: ModelConfig) -> None:
            layers.append(config.layers)
            super().__init__(config)

    monkeypatch.setattr(checkpoint, "Transformer", Watched)
    return layers


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any], weights: dict[str, Tensor] | None = None) -> None:
    """Pass a checkpoint's document through `change`, and give it the digest of its weights, as a forger would."""
    file = folder / WEIGHTS_FILE
    weights = load_file(file) if weights is None else weights
    document = read_info(folder).to_dict()
    document["digest"] = checkpoint.digest_tensors(weights)
    changed = change(document)
    text = changed if isinstance(changed, str) else json.dumps(document)
    save_file(weights, file, {"dsmr": text})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def config(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["config"].update(changes)


def schedule(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["config"]["schedule"].update(changes)


DOCUMENTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "20,000 layers": (
        schedule(horizons=[8] * 20_000),
        f"schedule: expected at most {MOST_LAYERS:,} layers, got 20",
    ),
    "more layers than weights": (schedule(horizons=[8] * 1000), r"the tensor 'blocks\.2\..*' \(10978 are missing\)"),
    "fewer layers": (schedule(horizons=[8]), r"expected no tensor 'blocks\.1\..*' in this model, got 11 unknown"),
    "no layers": (schedule(horizons=[]), "horizons: expected one per layer, got none"),
    "a huge horizon": (schedule(horizons=[8, 2**62]), f"schedule: expected at most {MOST_TOKENS:,} tokens, got 4,611"),
    "a horizon beyond 64 bits": (schedule(horizons=[8, 10**30]), "expected a list of integers for horizons, got"),
    "a negative horizon": (schedule(horizons=[8, -1]), r"horizons\[1\]: expected at least 0, got -1"),
    "a float horizon": (schedule(horizons=[8, 8.0]), "expected a list of integers for horizons"),
    "a true horizon": (schedule(horizons=[8, True]), "expected a list of integers for horizons"),
    "horizons in words": (schedule(horizons="88"), "expected a list of integers for horizons, got '88'"),
    "a schedule by name": (lambda d: d["config"].update(schedule="full"), "schedule: expected its fields by name"),
    "a schedule without a name": (lambda d: [d["config"]["schedule"].pop("name")], "got none called 'name'"),
    "a schedule of lists": (schedule(name=nested(3)), r"for name, got \[\[\[1\]\]\]"),
    "another schedule": (schedule(name="spiral"), "schedule: expected one of full, .* for name, got 'spiral'"),
    "a schedule's colour": (
        schedule(colour="red"),
        "expected the fields of this version, got 'colour', which only",
    ),
    "no retention but 0": (schedule(retention=0), "retention: expected its fields by name, got 0"),
    "a true stride": (schedule(retention={"stride": True}), "retention: expected an integer for stride, got True"),
    "a huge stride": (
        schedule(retention={"stride": 2**40}),
        r"stride: expected an integer of at least 1 and below 2\^31",
    ),
    "another keep": (schedule(retention={"stride": 2, "keep": "first"}), "keep: expected 'last' or 'random'"),
    "a token window with a stride": (config(window="token"), "window: 'token' needs every token kept"),
    "a huge width": (config(width=2**50, heads=1), r"expected 'embedding\.weight' of shape \[391, 1125899906842624\]"),
    "a float width": (config(width=16.0), "width: expected an integer of 64 bits, got 16.0"),
    "a true width": (config(width=True), "width: expected an integer of 64 bits, got True"),
    "a width in words": (config(width="16"), "width: expected an integer of 64 bits, got '16'"),
    "a width beyond 64 bits": (config(width=10**400), "width: expected an integer of 64 bits, got 1000"),
    "no width": (config(width=None), "width: expected an integer of 64 bits, got None"),
    "a nested width": (config(width=nested(9)), "width: expected an integer of 64 bits"),
    "a negative number of heads": (config(heads=-2), "heads: expected at least 1, got -2"),
    "an odd head": (config(heads=16), "heads: expected a divisor of width=16 with an even quotient, got 16"),
    "no KV heads": (config(kv_heads=0), "kv_heads: expected at least 1, got 0"),
    "a huge feed-forward": (config(feed_forward=2**55), r"expected 'blocks\.0\.up\.weight' of shape \[5764"),
    "a huge segment": (config(segment=2**40), f"segment: expected at most {MOST_TOKENS:,} tokens"),
    "dropout in words": (config(dropout="a little"), "dropout: expected a number, got 'a little'"),
    "all dropped": (config(dropout=1), "dropout: expected a probability below 1, got 1"),
    "a base of 0": (config(position_base=0.0), "position_base: expected a finite number above 0, got 0.0"),
    "another window": (config(window=["segment"]), "window: expected 'segment' or 'token', got"),
    "another position": (config(position="absolute"), "position: expected 'sinusoidal' or 'rotary', got 'absolute'"),
    "shifts in words": (config(key_shift="01"), "key_shift: expected a tuple of values"),
    "shifts of other heads": (config(key_shift=[1] * 9), "key_shift: expected a number of tokens from 0 to 1,024"),
    "a huge shift": (config(key_shift=[2**62]), "key_shift: expected a number of tokens from 0 to 1,024"),
    "nested shifts": (config(key_shift=[[1]]), "key_shift: expected a tuple of values"),
    "shares in words": (config(rotary_share="1"), "rotary_share: expected a tuple of values, each a number or None"),
    "shares of other heads": (config(rotary_share=[0.5] * 9), "rotary_share: expected a number from 0 to 1 for each"),
    "a normalisation in words": (config(qk_norm="yes"), "qk_norm: expected True, False, got 'yes'"),
    "a newer field": (config(mixture_of_experts=8), "got 'mixture_of_experts', which only a newer one can know"),
    "another vocabulary": (config(vocab_size=391.0), "vocab_size: expected an integer of 64 bits, got 391.0"),
    "NaN": (config(dropout=float("nan")), "JSON document .*the number NaN"),
    "infinity": (config(position_base=float("inf")), "JSON document .*the number Infinity"),
    "a config that is a list": (lambda d: d.update(config=[1]), r"config: expected its fields by name, got \[1\]"),
    "a version that is true": (
        lambda d: d.update(format_version=True),
        "expected version 1 of .* format, got True",
    ),
    "a version that is a float": (lambda d: d.update(format_version=1.0), "expected version 1 of .* format, got 1.0"),
    "a version in words": (lambda d: d.update(format_version="1"), "expected version 1 of the .* format, got '1'"),
    "a version that is nested": (lambda d: d.update(format_version=nested(3)), r"got \[\[\[1\]\]\]"),
    "a writer that is a number": (lambda d: d.update(dsmr_version=3), "dsmr_version: expected text, got 3"),
    "a digest that is a number": (lambda d: d.update(digest=3), "digest: expected text, got 3"),
    "training that is a list": (lambda d: d.update(training=[]), r"training: expected dict, got \[\]"),
    "training that is nested": (lambda d: d.update(training={"a": nested(50)}), "one that is nested too deeply"),
    "nesting without end": (lambda d: "[" * 500_000, "JSON document .*(nested too deeply|Expecting)"),
    "a document of a megabyte": (lambda d: d.update(training={"a": "x" * (1 << 20)}), "more than 1,048,576"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_of_strangers(folder: Path, built: list[int], name: str) -> None:
    change, message = DOCUMENTS[name]
    reseal(folder, change)
    for read in (load_checkpoint, read_info):
        with pytest.raises(CheckpointError, match=message) as refusal:
            read(folder)
        assert len(str(refusal.value)) < 1000 + len(str(folder))
    assert set(built) <= {1}  # one block, of sizes that the file's own weights have


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["norm.bias"].fill_(torch.nan), r"expected finite weights, got others in 'norm\.bias'"),
        (
            lambda w: w["blocks.1.out.weight"].fill_(torch.inf),
            r"finite weights, got others in 'blocks\.1\.out\.",
        ),
        (lambda w: w.update({"norm.bias": torch.zeros(16, 1)}), r"'norm\.bias' of shape \[16\], got \[16, 1\]"),
        (lambda w: w.update({"norm.bias": torch.zeros(0)}), r"'norm\.bias' of shape \[16\], got \[0\]"),
        (lambda w: w.update({n: x.to(torch.float8_e4m3fn) for n, x in w.items()}), "one floating-point type, got f8_"),
        (lambda w: w.update({n: x.bool() for n, x in w.items()}), "one floating-point type, got bool"),
        (lambda w: w.update({"blocks.02.norm": torch.zeros(1)}), r"expected no tensor 'blocks\.02\.norm'"),
        (lambda w: w.pop("embedding.weight"), r"the tensor 'embedding\.weight' of shape \[391, 16\], got none"),
    ],
    ids=["nan", "inf", "shape", "empty", "float8", "bool", "name", "missing"],
)
def test_weights_of_strangers(folder: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    reseal(folder, lambda document: None, weights)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def refused(make: Callable[[Any], object], values: Any) -> str | None:
    """Why these values cannot be had, or None."""
    try:
        make(values)
    except ValueError as error:
        return str(error)
    return None


@given(st.sampled_from(sorted(ModelConfig.__dataclass_fields__)), json_values)
def test_a_configuration_takes_any_value_or_names_the_field(name: str, value: Any) -> None:
    refusal = refused(ModelConfig.from_dict, {**CONFIG.to_dict(), name: value})
    assert refusal is None or any(known in refusal for known in (name, "heads", "retention", "horizons"))


@given(st.sampled_from(sorted(TrainingConfig.__dataclass_fields__)), json_values)
def test_settings_take_any_value_or_name_the_field(name: str, value: Any) -> None:
    refusal = refused(TrainingConfig.from_dict, {"steps": 1, name: value})
    assert refusal is None or name in refusal


def test_the_commands_say_so_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reseal(folder, schedule(horizons=[8] * 20_000))
    assert app.run(["generate", str(folder), "--out", str(tmp_path / "x.mid")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected at most 1,024 layers, got 20,000" in error


def test_a_document_of_an_older_version_lacks_what_has_a_default(folder: Path) -> None:
    defaults = ("window", "dropout", "position_base", "key_shift", "rotary_share", "qk_norm")
    reseal(folder, lambda document: [document["config"].pop(name) for name in defaults])
    assert read_info(folder).config == CONFIG
