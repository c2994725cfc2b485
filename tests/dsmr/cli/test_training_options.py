"""Every option of train and schedule changes what it says it changes, and both say the same in the same words."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dsmr.cli import schedule, train
from dsmr.model.config import PRESETS, ModelConfig
from dsmr.training import TrainingConfig
from tests.dsmr.cli.commands import SMALL_MODEL, fails, succeeds
from tests.dsmr.cli.test_options import options_of, recorded

SETTINGS: dict[str, tuple[list[object], object]] = {
    "steps": (["--steps", 7], 7),
    "minutes": (["--minutes", 2.5], 2.5),
    "lanes": (["--lanes", 3], 3),
    "accumulate": (["--accumulate", 2], 2),
    "optimizer": (["--optimizer", "adamw"], "adamw"),
    "learning_rate": (["--learning-rate", 0.002], 0.002),
    "min_learning_rate": (["--min-learning-rate", 1e-5], 1e-5),
    "warmup": (["--warmup", 0.25], 0.25),
    "weight_decay": (["--weight-decay", 0], 0.0),
    "betas": (["--betas", 0.8, 0.99], (0.8, 0.99)),
    "clip": (["--clip", 0.5], 0.5),
    "autocast": (["--autocast", "on"], True),
    "compile": (["--compile"], True),
    "semitones": (["--semitones", 0], 0),
    "tempo": (["--tempo", 0.1], 0.1),
    "validations": (["--validations", 3], 3),
    "validation_tokens": (["--validation-tokens", "all"], None),
    "log_every": (["--log-every", 2], 2),
    "seed": (["--seed", 5], 5),
}
"""Options that are fields of `TrainingConfig`, and what they make of them; what those do has tests with training."""

SIZES: dict[str, tuple[list[object], object]] = {
    "segment": (["--segment", 32], 32),
    "width": (["--width", 64], 64),
    "heads": (["--heads", 8], 8),
    "kv_heads": (["--kv-heads", 1], 1),
    "feed_forward": (["--feed-forward", 2], 2),
    "window": (["--window", "token"], "token"),
    "position": (["--position", "sinusoidal"], "sinusoidal"),
    "position_base": (["--position-base", 1000], 1000.0),
    "dropout": (["--dropout", 0.25], 0.25),
    "key_shift": (["--key-shift", "0,1,2,3"], (0, 1, 2, 3)),
    "rotary_share": (["--rotary-share", "1,1,0.5,0"], (1.0, 1.0, 0.5, 0.0)),
    "qk_norm": (["--no-qk-norm"], False),
}
"""Options that are fields of `ModelConfig`."""

SHAPES: dict[str, tuple[str, list[object], list[object]]] = {
    "layers": ("uniform", ["--layers", 3], []),
    "budget": ("uniform", ["--budget", 96], []),
    "horizons": ("explicit", ["--horizons", "64,16"], ["--layers", 2, "--horizons", "32,32"]),
    "long_layers": ("two_scale", ["--long-layers", 2], []),
    "ratio": ("progressive_up", ["--ratio", 4], []),
    "longest": ("full", ["--longest", 128], []),
    "stride": ("selective", ["--stride", 2], []),
    "stride_keep": ("selective", ["--stride", 2, "--stride-keep", "random"], ["--stride", 2]),
}
"""Options that shape a schedule: one that they are for, the option, and what is there without it."""

ELSEWHERE = {"data", "out", "resume", "init_from", "force"}
"""Options of train that have tests of their own, in `test_train`."""
REST: dict[str, tuple[list[object], object]] = {
    "keep": (["--keep", 5], 5),
    "save_minutes": (["--save-minutes", 0.5], 0.5),
    "tensorboard": (["--tensorboard"], True),
}


def configured(monkeypatch: pytest.MonkeyPatch, store: Path, *options: object) -> tuple[Any, Any, dict[str, Any]]:
    """The model's and the training's configuration that `dsmr train` comes to, and what else it tells training."""
    with monkeypatch.context() as patch:
        ((positional, named),) = recorded(
            patch, "dsmr.training.train", "train", "--data", store, "--out", store.parent / "never", *options
        )
    return positional[0].config, positional[2], named


class TestTrain:
    def test_every_field_has_an_option(self) -> None:
        options = set(options_of(train.train))
        assert {field.name for field in fields(TrainingConfig)} == set(SETTINGS) <= options
        sizes = {field.name for field in fields(ModelConfig)}
        assert sizes - {"schedule", "vocab_size"} == set(SIZES) <= options  # the store's tokens are the vocabulary

    def test_every_option_is_tested(self) -> None:
        own = {"context", "preset", "schedule", "device", "fsdp"}
        assert {*SETTINGS, *SIZES, *SHAPES, *REST, *ELSEWHERE, *own} == set(options_of(train.train))

    @pytest.mark.parametrize("name", SETTINGS)
    def test_sets_training(self, name: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options, expected = SETTINGS[name]
        budget = [] if name in ("steps", "minutes") else ["--steps", 1]
        _, config, _ = configured(monkeypatch, store, *budget, *options)
        assert getattr(config, name) == expected != getattr(TrainingConfig(steps=1), name)
        others = {field.name for field in fields(config)} - {name, "steps", "minutes"}
        assert all(getattr(config, other) == getattr(TrainingConfig(steps=1), other) for other in others)

    @pytest.mark.parametrize("name", SIZES)
    def test_sets_the_model(self, name: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options, expected = SIZES[name]
        before, after = (configured(monkeypatch, store, "--steps", 1, *more)[0] for more in ([], options))
        assert getattr(after, name) == expected != getattr(before, name)
        assert after.schedule == before.schedule

    @pytest.mark.parametrize("name", REST)
    def test_sets_what_is_kept(self, name: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options, expected = REST[name]
        (_, _, before), (_, _, after) = (configured(monkeypatch, store, "--steps", 1, *more) for more in ([], options))
        assert after[name] == expected != before[name]

    def test_device_and_preset(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["train", "--data", store, "--out", "never", "--steps", 1, "--device", "cuda:7"]
        with monkeypatch.context() as patch:
            assert recorded(patch, "dsmr.cli.train.choose_device", *arguments) == [(("cuda:7",), {})]
        config, _, _ = configured(monkeypatch, store, "--steps", 1, "--preset", "small")
        assert (config.layers, config.width) == (6, 256)

    def test_another_schedule_has_the_layers_and_the_budget_of_the_presets(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = configured(monkeypatch, store, "--steps", 1, "--preset", "small", "--schedule", "uniform")[0].schedule
        own = PRESETS["small"].schedule
        assert (made.name, len(made.horizons), made.total) == ("uniform", len(own.horizons), own.total)

    def test_fsdp_needs_processes(self, store: Path, tmp_path: Path) -> None:
        assert "--fsdp: expected several processes" in fails(
            "train", "--data", store, "--out", tmp_path, "--steps", 1, "--fsdp"
        )

    @pytest.mark.parametrize(("autocast", "total"), [("off", 1024), ("on", 2048)])
    def test_budget_in_bytes_counts_in_the_type_of_training(
        self, autocast: str, total: int, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An entry of `tiny` is K and V of 128 numbers each, of 4 bytes or 2."""
        options = ["--schedule", "uniform", "--budget", "1MiB", "--autocast", autocast, "--steps", 1]
        assert configured(monkeypatch, store, *options)[0].schedule.total == total

    @pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("steps", "minutes")])
    def test_another_setting_is_refused_where_a_run_is_resumed(
        self, name: str, trained: tuple[Path, str], store: Path
    ) -> None:
        error = fails("train", "--resume", "--data", store, "--out", trained[0], *SETTINGS[name][0])
        assert f"expected to go on with {name}=" in error

    @pytest.mark.parametrize("name", [*SIZES, "ratio", "long_layers"])
    def test_another_model_is_refused_where_a_run_is_resumed(
        self, name: str, trained: tuple[Path, str], store: Path
    ) -> None:
        options = SIZES[name][0] if name in SIZES else SHAPES[name][1]
        error = fails("train", "--resume", "--data", store, "--out", trained[0], *SMALL_MODEL, *options)
        assert f"expected to go on with {name if name in SIZES else 'schedule'}=" in error

    @pytest.mark.parametrize("name", ["preset", *SIZES, *SHAPES])
    def test_model_is_that_of_the_checkpoint_it_begins_with(
        self, name: str, checkpoint: Path, store: Path, tmp_path: Path
    ) -> None:
        options = {"preset": ["--preset", "tiny"], **{name: SIZES[name][0] for name in SIZES}}
        options |= {name: SHAPES[name][1] for name in SHAPES}
        everything = ["train", "--data", store, "--out", tmp_path, "--steps", 1, "--init-from", checkpoint]
        assert "the model is that of --init-from" in fails(*everything, *options[name])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--warmup", 1], "warmup: expected a fraction of the budget below 1, got 1.0"),
            (["--weight-decay", -1], "weight_decay: expected a finite number of at least 0, got -1.0"),
            (["--clip", 0], "clip: expected a finite number above 0, got 0.0"),
            (["--clip", "nan"], "clip: expected a finite number above 0, got nan"),
            (["--betas", 0.9, 1], "betas: expected two numbers from 0 to below 1, got (0.9, 1.0)"),
            (["--autocast", "half"], "--autocast: expected auto, on or off, got 'half'"),
            (["--validation-tokens", "many"], "--validation-tokens: expected a number of tokens, or all, got 'many'"),
            (["--validation-tokens", 0], "validation_tokens: expected at least 1, got 0"),
            (["--log-every", 0], "log_every: expected at least 1, got 0"),
            (["--min-learning-rate", 1], "min_learning_rate: expected 0 to learning_rate=0.01, got 1.0"),
            (["--feed-forward", 0], "feed_forward: expected at least 1, got 0"),
            (["--position-base", 0], "position_base: expected a finite number above 0, got 0.0"),
            (["--key-shift", "0,one"], "--key-shift: expected whole numbers separated by commas, got '0,one'"),
            (["--key-shift", "0,1,1"], "key_shift: expected a number of tokens from 0 to 1,024 for each of 4 KV heads"),
            (["--rotary-share", "1,x"], "--rotary-share: expected numbers separated by commas, got '1,x'"),
            (
                ["--rotary-share", "1,2"],
                "rotary_share: expected a number from 0 to 1 for each of 4 KV heads",
            ),
            (["--ratio", 4], "--ratio: it needs --schedule"),
            (["--long-layers", 4], "--long-layers: it needs --schedule"),
            (["--schedule", "two_scale", "--ratio", 0.5], "ratio: expected at least 1"),
            (["--schedule", "uniform", "--budget", "much"], "--budget: expected a number of tokens, or of bytes"),
            (["--schedule", "uniform", "--stride-keep", "last"], "--stride-keep: expected it together with --stride"),
        ],
        ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
    )
    def test_refuses_bad_values(self, options: list[object], message: str, store: Path, tmp_path: Path) -> None:
        everything = ["train", "--data", store, "--out", tmp_path / "run", "--steps", 1]
        assert message in fails(*everything, *options)
        assert not (tmp_path / "run").exists()


MEMORY: dict[str, list[object]] = {
    "kv_heads": ["--kv-heads", 2],
    "head_dim": ["--head-dim", 32],
    "storage": ["--storage", "int8"],
    "segment": ["--segment", 512],
    "window": ["--window", "token"],
    "key_shift": ["--key-shift", "0,0,0,0,1,1,1,1"],
}
"""Options of schedule alone: what an entry costs, and what reach follows from. In train those are the model's."""


class TestSchedule:
    def test_every_option_is_tested(self) -> None:
        own = {"name", "png", "force", "as_json"}
        assert {*SHAPES, *MEMORY, *own} == set(options_of(schedule.schedule))

    @pytest.mark.parametrize("option", MEMORY)
    def test_changes_the_numbers(self, option: str) -> None:
        for form in (["--json"], []):
            assert succeeds("schedule", "uniform", *form) != succeeds("schedule", "uniform", *MEMORY[option], *form)

    @pytest.mark.parametrize("option", SHAPES)
    def test_shapes_what_training_takes(self, option: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name, changed, plain = SHAPES[option]
        kept: dict[str, list[object]] = {"layers": ["--layers", 4], "budget": ["--budget", 4096]}
        if option in ("horizons", "longest"):
            kept = {"layers": ["--layers", 2]}
        common = [each for kind, values in kept.items() if kind != option for each in values]
        default = kept.get(option, [])
        found = []
        for options in ([*common, *changed], [*common, *default, *plain]):
            printed = json.loads(succeeds("schedule", name, *options, "--json"))
            config, _, _ = configured(monkeypatch, store, "--steps", 1, "--schedule", name, *options)
            assert config.schedule.to_dict() == {key: printed[key] for key in ("name", "horizons", "retention")}
            found.append(config.schedule)
        assert found[0] != found[1]
