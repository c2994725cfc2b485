"""Every option of prepare, evaluate and generate changes what it says it changes: one test an option."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsmr.cli import app, evaluate, generate, prepare
from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.store import TokenStore
from dsmr.model.checkpoint import load_checkpoint, save_checkpoint
from tests.dsmr.cli.commands import fails, succeeds

Options = dict[str, list[object]]


def options_of(command: Callable[..., None]) -> list[str]:
    return list(inspect.signature(command).parameters)


def flatten(options: Options) -> list[object]:
    return [each for values in options.values() for each in values]


def without_times(values: Any) -> Any:
    """JSON values without what differs from run to run."""
    if isinstance(values, dict):
        times = ("wall_seconds", "tokens_per_second", "real_time_factor", "file")
        return {name: without_times(value) for name, value in values.items() if name not in times}
    return [without_times(value) for value in values] if isinstance(values, list) else values


def recorded(monkeypatch: pytest.MonkeyPatch, target: str, *arguments: object) -> list[tuple[Any, Any]]:
    """Run a command; returns the positional and named arguments of its calls of `target`, which end it."""
    calls: list[tuple[Any, Any]] = []

    def record(*positional: Any, **named: Any) -> None:
        calls.append((positional, named))
        raise KeyboardInterrupt

    monkeypatch.setattr(target, record)
    assert app.run([*map(str, arguments)]) == 130
    return calls


FOLDER: Options = {"validation": ["--validation", 0.2], "test": ["--test", 0.2], "workers": ["--workers", 0]}
CHANGED_FOLDER: Options = {
    "path": ["more"],
    "validation": ["--validation", 0.6],
    "test": ["--test", 0.6],
    "group_by": ["--group-by", "parent"],
}
PIANIST: Options = {
    "tokens": ["--tokens", 3000],
    "shortest": ["--shortest", 1000],
    "longest": ["--longest", 1300],
    "workers": ["--workers", 0],
}
CHANGED_PIANIST: Options = {
    "tokens": ["--tokens", 6000],
    "shortest": ["--shortest", 1200],
    "longest": ["--longest", 3000],
    "seed": ["--seed", 1],
}
ELSEWHERE = {"out", "workers", "force", "as_json", "download"}
"""Options that change no store; `TestPrepare` has a test for each of these, too."""


class TestPrepare:
    @pytest.mark.parametrize("option", [name for name in options_of(prepare.folder) if name not in ELSEWHERE])
    def test_folder(self, option: str, music: Path, tmp_path: Path) -> None:
        stores = []
        for number, changed in enumerate(({}, {option: CHANGED_FOLDER[option]})):
            options = {"path": [music], **FOLDER, **changed}
            if option == "path" and changed:
                options["path"] = [music / "more"]
            succeeds("prepare", "folder", *flatten(options), "--out", tmp_path / str(number))
            store = TokenStore.open(tmp_path / str(number))
            stores.append([(piece.source, piece.split) for piece in store.pieces])
        assert stores[0] != stores[1]

    @pytest.mark.parametrize("option", [name for name in options_of(prepare.pianist) if name not in ELSEWHERE])
    def test_pianist(self, option: str, tmp_path: Path) -> None:
        for number, changed in enumerate(({}, {option: CHANGED_PIANIST[option]})):
            succeeds("prepare", "pianist", *flatten({**PIANIST, **changed}), "--out", tmp_path / str(number))
        assert (tmp_path / "0").read_bytes() != (tmp_path / "1").read_bytes()

    def test_maestro_has_no_other_options(self) -> None:
        assert set(options_of(prepare.maestro)) == {"path", *ELSEWHERE}

    @pytest.mark.parametrize("kind", [["folder", "MUSIC"], ["pianist"]], ids=lambda kind: kind[0])
    def test_workers(self, kind: list[str], music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["prepare", kind[0], *[music for _ in kind[1:]], "--out", tmp_path / "x", "--workers", 3]
        ((positional, _),) = recorded(monkeypatch, "dsmr.corpus.prepare.map_in_order", *arguments)
        assert positional[2] == 3

    def test_maestros_workers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        columns = "canonical_composer,canonical_title,split,midi_filename\nBach,Air,train,a.mid\n"
        (tmp_path / "table.csv").write_text(columns)
        (tmp_path / "a.mid").write_bytes(b"")
        arguments = ["prepare", "maestro", tmp_path, "--out", tmp_path / "x", "--workers", 3]
        ((positional, _),) = recorded(monkeypatch, "dsmr.corpus.prepare.map_in_order", *arguments)
        assert positional[2] == 3

    def test_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["prepare", "maestro", tmp_path / "here", "--download", "--out", tmp_path / "x"]
        ((positional, _),) = recorded(monkeypatch, "dsmr.corpus.download.download_maestro", *arguments)
        assert positional[0] == tmp_path / "here"

    @pytest.mark.parametrize("kind", [["folder", "MUSIC"], ["pianist", "--tokens", 9]], ids=lambda kind: kind[0])
    def test_out_force_and_json(self, kind: list[object], music: Path, tmp_path: Path) -> None:
        arguments = ["prepare", *[music if each == "MUSIC" else each for each in kind], "--workers", 0]
        for path in (tmp_path / "a", tmp_path / "b"):
            assert json.loads(succeeds(*arguments, "--out", path, "--json"))["store"] == str(path)
            assert TokenStore.open(path).pieces
        assert "exists already" in fails(*arguments, "--out", tmp_path / "a")
        assert str(tmp_path / "a") in succeeds(*arguments, "--out", tmp_path / "a", "--force")


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the pianist's, with returns."""
    path = tmp_path_factory.mktemp("stores") / "pianist.tokens"
    prepare_pianist(path, seed=3, tokens=16_000, shortest=1_500, longest=2_500, validation=0.3, test=0.3, workers=0)
    return path


EVALUATE: Options = {
    "split": ["--split", "test"],
    "reset_every": ["--reset-every", 200],
    "krcu": ["--krcu"],
    "reset_at": ["--reset-at", 256],
    "krcu_bin": ["--krcu-bin", 128],
    "krcu_end": ["--krcu-end", 768],
    "truncation": ["--truncation"],
    "context": ["--context", "64,128"],
    "buckets": ["--buckets", "256,512,1024"],
    "block": ["--block", 64],
    "blocks": ["--blocks", 2],
    "returns": ["--returns"],
    "recall": ["--recall", 1],
    "skip": ["--skip", 4],
}
CHANGED_EVALUATE: Options = {
    "split": ["--split", "train"],
    "reset_every": ["--reset-every", 300],
    "krcu": [],
    "reset_at": ["--reset-at", 384],
    "krcu_bin": ["--krcu-bin", 256],
    "krcu_end": ["--krcu-end", 512],
    "truncation": [],
    "context": ["--context", "64"],
    "buckets": ["--buckets", "256,1024"],
    "block": ["--block", 32],
    "blocks": ["--blocks", 1],
    "returns": [],
    "recall": ["--recall", 0],
    "skip": ["--skip", 8],
}
SEEN_OTHERWISE = {"checkpoints", "pieces", "data", "lanes", "device", "png", "out", "force", "as_json", "baseline"}
"""Options that change other things than a model's numbers; each has its own test."""


@pytest.fixture(scope="module")
def usual(checkpoint: Path, composed: Path) -> Any:
    """What `evaluate` prints with the options above."""
    return json.loads(succeeds("evaluate", checkpoint, "--data", composed, *flatten(EVALUATE), "--json"))


class TestEvaluate:
    @pytest.mark.parametrize("option", [name for name in options_of(evaluate.evaluate) if name not in SEEN_OTHERWISE])
    def test_changes_the_numbers(self, option: str, usual: Any, checkpoint: Path, composed: Path) -> None:
        options = {**EVALUATE, option: CHANGED_EVALUATE[option]}
        if option == "returns":  # which the recall needs
            options["recall"] = []
        found = json.loads(succeeds("evaluate", checkpoint, "--data", composed, *flatten(options), "--json"))
        assert found != usual

    def test_pieces(self, usual: Any, checkpoint: Path, composed: Path) -> None:
        found = json.loads(succeeds("evaluate", checkpoint, "--data", composed, "--pieces", 1, "--json"))
        assert found["whole"]["tokens"] < usual["whole"]["tokens"]

    def test_data_and_checkpoints(self, trained: tuple[Path, str], composed: Path, store: Path) -> None:
        models = [trained[0] / name for name in ("checkpoints/step-0000002", "last")]
        found = {
            (model, data): json.loads(succeeds("evaluate", model, "--data", data, "--json"))["whole"]["ppl"]
            for model in models
            for data in (composed, store)
        }
        assert len(set(found.values())) == 4

    def test_lanes(self, checkpoint: Path, composed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["evaluate", checkpoint, "--data", composed, "--lanes", 3]
        ((_, named),) = recorded(monkeypatch, "dsmr.evaluation.models.assess", *arguments)
        assert named["lanes"] == 3

    def test_device(self, checkpoint: Path, composed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["evaluate", checkpoint, "--data", composed, "--device", "meta"]
        ((positional, _),) = recorded(monkeypatch, "dsmr.model.checkpoint.load_checkpoint", *arguments)
        assert str(positional[1]) == "meta"

    def test_out_png_force_and_json(self, checkpoint: Path, composed: Path, tmp_path: Path) -> None:
        arguments = ["evaluate", checkpoint, "--data", composed, "--out", tmp_path / "out", "--png", tmp_path / "x.png"]
        printed = json.loads(succeeds(*arguments, "--json"))
        assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == printed
        assert {path.name for path in tmp_path.iterdir()} == {"out", "x.png"}
        assert "exists already" in fails(*arguments)
        assert "PPL" in succeeds(*arguments, "--force")


GENERATE: Options = {"tokens": ["--tokens", 120], "temperature": ["--temperature", 1.3]}
CHANGED_GENERATE: Options = {
    "seconds": ["--seconds", 0.5],
    "tokens": ["--tokens", 60],
    "prompt": ["--prompt", "PROMPT"],
    "include_prompt": ["--prompt", "PROMPT", "--include-prompt"],
    "takes": ["--takes", 2],
    "temperature": ["--temperature", 0.5],
    "top_p": ["--top-p", 0.2],
    "min_p": ["--min-p", 0.8],
    "seed": ["--seed", 1],
    "engine": ["--engine", "python"],
    "weights": ["--weights", "int8"],
    "wav": ["--wav"],
    "png": ["--png"],
    "html": ["--html"],
    "as_json": ["--json"],
}
OTHERWISE = {"checkpoint", "out", "soundfont", "device", "force", "at_end", "storage"}
"""Options of which few tokens tell nothing, or that change other things; each has its own test."""


class TestGenerate:
    @staticmethod
    def outcome(checkpoint: Path, folder: Path, *options: object) -> tuple[Any, dict[str, bytes]]:
        folder.mkdir()
        out = succeeds("generate", checkpoint, "--out", folder / "a.mid", *options)
        printed = without_times(json.loads(out)) if "--json" in options else "text"
        return printed, {path.name: path.read_bytes() for path in folder.iterdir()}

    @pytest.mark.parametrize("option", [name for name in options_of(generate.generate) if name not in OTHERWISE])
    def test_changes_what_comes(self, option: str, checkpoint: Path, music: Path, tmp_path: Path) -> None:
        prompt = [music / "piece 0.mid" if each == "PROMPT" else each for each in CHANGED_GENERATE[option]]
        usual = GENERATE if option == "as_json" else {**GENERATE, "as_json": ["--json"]}
        before = {**usual, "prompt": ["--prompt", music / "piece 0.mid"]} if option == "include_prompt" else usual
        after = {**usual, option: prompt}
        first = self.outcome(checkpoint, tmp_path / "first", *flatten(before))
        assert first != self.outcome(checkpoint, tmp_path / "second", *flatten(after))
        assert first == self.outcome(checkpoint, tmp_path / "again", *flatten(before))

    @pytest.mark.parametrize("end", ["stop", "restart"])
    def test_at_end(self, end: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["generate", checkpoint, "--tokens", 9, "--out", tmp_path / "a.mid", "--at-end", end]
        ((_, named),) = recorded(monkeypatch, "dsmr.generation.takes.generate", *arguments)
        assert named["at_end"] == end

    def test_storage(self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["generate", checkpoint, "--tokens", 9, "--out", tmp_path / "a.mid", "--storage", "int8"]
        ((_, named),) = recorded(monkeypatch, "dsmr.generation.takes.generate", *arguments)
        assert named["decoding"].memory == "int8"

    def test_checkpoint(self, trained: tuple[Path, str], tmp_path: Path) -> None:
        other, _ = load_checkpoint(trained[0] / "last")
        with torch.no_grad():
            other.embedding.weight.copy_(other.embedding.weight.flip(0))
        save_checkpoint(tmp_path / "other", other)
        models = [trained[0] / "last", tmp_path / "other"]
        first, second = (self.outcome(model, tmp_path / f"of-{model.name}", "--tokens", 200)[1] for model in models)
        assert first != second

    def test_soundfont(self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "piano.sf2").write_bytes(b"RIFF")
        arguments = ["generate", checkpoint, "--tokens", 9, "--out", tmp_path / "a.mid"]
        calls = recorded(monkeypatch, "dsmr.music.sound.write_wav", *arguments, "--soundfont", tmp_path / "piano.sf2")
        assert calls[0][0][2] == str(tmp_path / "piano.sf2")

    def test_device(self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["generate", checkpoint, "--out", tmp_path / "a.mid", "--device", "meta"]
        ((positional, _),) = recorded(monkeypatch, "dsmr.model.checkpoint.load_checkpoint", *arguments)
        assert str(positional[1]) == "meta"

    def test_out_and_force(self, checkpoint: Path, tmp_path: Path) -> None:
        arguments = ["generate", checkpoint, "--tokens", 30, "--out", tmp_path / "other.mid"]
        succeeds(*arguments)
        assert "exists already" in fails(*arguments)
        succeeds(*arguments, "--seed", 2, "--force")
        assert [path.name for path in tmp_path.iterdir()] == ["other.mid"]
