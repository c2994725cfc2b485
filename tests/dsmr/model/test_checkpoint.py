"""Checkpoints: what is saved comes back, damage is noticed, a failed write harms nothing, nothing is unpickled."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsmr.model.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    read_info,
    save_checkpoint,
)
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import Schedule, make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import CODEC, VOCAB_SIZE
from dsmr.pretrained import shipped
from dsmr.version import __version__
from dsmr_kernels import Retention

SELECTIVE = make_schedule("selective", 2, budget_tokens=16, retention=Retention(2, "random"))


def small(schedule: Schedule = SELECTIVE, **changes: Any) -> Transformer:
    return Transformer(ModelConfig(width=16, heads=2, kv_heads=1, schedule=schedule, segment=8, **changes))


def logits(model: Transformer) -> Tensor:
    """Over two segments, so that the memory counts."""
    model.eval()
    state = model.new_state(2)
    tokens = torch.arange(32).view(2, 16) * 11
    with torch.no_grad():
        return torch.cat([model(tokens[:, :8], state), model(tokens[:, 8:], state)], 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint."""
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "model", small(), {"step": 7})
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    """Pass a checkpoint's weights and document through `change`, leaving everything else as it was."""
    file = folder / WEIGHTS_FILE
    weights, document = load_file(file), json.loads((folder / CONFIG_FILE).read_text())
    change(weights, document)
    save_file(weights, file, {"dsmr": json.dumps(document)})


@pytest.mark.parametrize("position", ["sinusoidal", "rotary"])
def test_loaded_model_computes_the_same_bit_for_bit(tmp_path: Path, position: str) -> None:
    model = small(position=position)
    save_checkpoint(tmp_path, model)
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_weights_of_16_bits_are_loaded_exactly_and_computed_with_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small(key_shift=(1,)).to(dtype)
    info = save_checkpoint(tmp_path, model)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS_FILE).values()} == {dtype}
    loaded, read = load_checkpoint(tmp_path)
    assert read == info
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.new_state(1)[0].k.dtype == torch.float32
    rounded = copy.deepcopy(model).float()
    assert torch.equal(logits(loaded), logits(rounded))
    assert torch.equal(logits(loaded.to(dtype)), logits(model))


def test_float64_stays_float64(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small().double())
    assert load_checkpoint(tmp_path)[0].embedding.weight.dtype == torch.float64


def test_loaded_model_can_be_trained_on(folder: Path) -> None:
    model, _ = load_checkpoint(folder)
    assert not model.training
    model(torch.zeros(1, 8, dtype=torch.int64), model.new_state(1)).sum().backward()
    assert all(parameter.grad is not None and parameter.is_leaf for parameter in model.parameters())


def test_info_says_what_the_checkpoint_is(folder: Path) -> None:
    info = read_info(folder)
    assert (info.codec, info.vocab_size, info.dsmr_version) == (CODEC, VOCAB_SIZE, __version__)
    assert info.training == {"step": 7}
    assert info.config.schedule == SELECTIVE
    assert load_checkpoint(folder)[1] == info


def test_config_json_is_the_same_document_and_is_not_needed(folder: Path) -> None:
    assert json.loads((folder / CONFIG_FILE).read_text()) == read_info(folder).to_dict()
    (folder / CONFIG_FILE).unlink()
    load_checkpoint(folder)


def test_equal_weights_have_equal_digests_and_others_not(tmp_path: Path) -> None:
    model = small()
    first, again = save_checkpoint(tmp_path / "a", model, {"step": 1}), save_checkpoint(tmp_path / "b", model)
    assert first.digest == again.digest
    with torch.no_grad():
        model.norm.bias[3] += 1
    assert save_checkpoint(tmp_path / "c", model).digest != first.digest


def test_tied_embedding_is_stored_once_and_stays_tied(folder: Path) -> None:
    sizes = [tensor.numel() for tensor in load_file(folder / WEIGHTS_FILE).values()]
    model, _ = load_checkpoint(folder)
    assert sum(sizes) == model.parameters_count
    assert [size for size in sizes if size == VOCAB_SIZE * 16] == [model.embedding.weight.numel()]
    before = logits(model)
    with torch.no_grad():
        model.embedding.weight[350] += 1  # an id that is never read here: only its logit can change
    changed = (logits(model) != before).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == [350]


def test_random_numbers_are_left_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_replaces_an_older_checkpoint(folder: Path) -> None:
    save_checkpoint(folder, model := small(make_schedule("uniform", 3, budget_tokens=30)), {"step": 8})
    assert torch.equal(logits(load_checkpoint(folder)[0]), logits(model))
    assert read_info(folder).training == {"step": 8}
    assert sorted(os.listdir(folder)) == [CONFIG_FILE, WEIGHTS_FILE]


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "model.safetensors"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match=f"expected an empty folder or that of a checkpoint, got one with {name}"):
        save_checkpoint(tmp_path, small())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_weights_of_somebody_else_are_not_replaced(tmp_path: Path) -> None:
    save_file({"embedding.weight": torch.zeros(2)}, tmp_path / WEIGHTS_FILE, {"format": "pt"})
    before = (tmp_path / WEIGHTS_FILE).read_bytes()
    with pytest.raises(FileExistsError, match="expected an empty folder or that of a checkpoint"):
        save_checkpoint(tmp_path, small())
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == before


def test_what_a_crash_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.4242.partial").write_bytes(b"half of it")
    save_checkpoint(tmp_path, small())
    load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [os.fsdecode(b"not utf-8 \xff\xfe"), "$HOME {1} ^2 %s", "[red]", "two\nlines", " ", "-", "\u4e2d", "e\u0301"],
    ids=ascii,
)
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    model = small()
    save_checkpoint(tmp_path / name, model)
    assert torch.equal(logits(load_checkpoint(tmp_path / name)[0]), logits(model))
    assert read_info(tmp_path / name).config == model.config


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, small())
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_crash_between_the_files_leaves_the_new_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def fail_at_config(source: Path, target: Path) -> None:
        if target.name == CONFIG_FILE:
            raise OSError("power cut")
        replace(source, target)

    model = small(make_schedule("uniform", 3, budget_tokens=30))
    monkeypatch.setattr(os, "replace", fail_at_config)
    with pytest.raises(OSError, match="power cut"):
        save_checkpoint(folder, model)
    assert torch.equal(logits(load_checkpoint(folder)[0]), logits(model))


@pytest.mark.parametrize("keep", [0, 5, 100, 5_000, -1], ids=lambda keep: f"{keep}-bytes")
def test_truncated_file(folder: Path, keep: int) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a whole safetensors file"):
        load_checkpoint(folder)


def test_damaged_weights(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected weights of SHA-256 .*damaged"):
        load_checkpoint(folder)


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="expected a whole safetensors file"):
        load_checkpoint(tmp_path)


def test_weights_of_somebody_else(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="expected the metadata of a dsmr checkpoint"):
        read_info(tmp_path)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent: expected a checkpoint, a folder with model\.safetensors"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        read_info(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "expected version 1 of the checkpoint format, got 2"),
        ("codec", "remi/3", "expected the codec 'performance-388.*' of 391 ids, got 'remi/3' of 391"),
        ("vocab_size", 500, "of 391 ids, got 'performance-388.*' of 500"),
        ("colour", "red", r"expected a document of .*, got \[.*'colour'"),
        ("config", {"width": 16}, "expected a model configuration, got .*config: expected the fields .*'heads'"),
        ("config", None, "expected a model configuration, got "),
    ],
    ids=["version", "codec", "vocabulary", "unknown-field", "short-config", "no-config"],
)
def test_other_documents(folder: Path, field: str, value: Any, message: str) -> None:
    rewrite(folder, lambda _, document: document.update({field: value}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_document_with_a_field_missing(folder: Path) -> None:
    rewrite(folder, lambda _, document: document.pop("dsmr_version"))
    with pytest.raises(CheckpointError, match=r"expected a document of .*'dsmr_version'"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format_version": 1', '"format_version": 2, "format_version": 1', "the field 'format_version' twice"),
        ('"width": 16', '"width": 16, "width": 16', "the field 'width' twice"),
        ('"step": 7', '"step": 1e999', "the number '1e999', which no float can hold"),
        ('"step": 7', '"step": -Infinity', "the number -Infinity, which JSON does not have"),
        ('"position": "rotary"', f'"position": "{"x" * 100_000}"', r"'sinusoidal' or 'rotary', got 'x+\.\.\.x+'"),
        ('"digest": "', f'"digest": "{"x" * 100_000}', "expected weights of SHA-256 x{64}, got"),
    ],
    ids=["twice", "twice-inside", "overflow", "infinity", "long-name", "long-digest"],
)
def test_documents_that_say_too_much(folder: Path, old: str, new: str, message: str) -> None:
    document = json.dumps(json.loads((folder / CONFIG_FILE).read_text()))
    assert old in document
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, {"dsmr": document.replace(old, new)})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("document", ["", "[]", "{}", '"x"'])
def test_documents_that_are_none(folder: Path, document: str) -> None:
    save_file(load_file(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE, {"dsmr": document})
    with pytest.raises(CheckpointError, match="expected a JSON document with a format version"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.bias"), r"expected the tensor 'norm\.bias' \(1 are missing\)"),
        (lambda w: w.update(head=torch.zeros(2)), "expected no tensor 'head' in this model"),
        (lambda w: w.update({"norm.bias": torch.zeros(17)}), r"expected 'norm\.bias' of shape \[16\], got \[17\]"),
        (lambda w: w.update({"norm.bias": torch.zeros(16).half()}), "one floating-point type, got .*float16"),
        (lambda w: w.update({name: x.int() for name, x in w.items()}), "one floating-point type, got .*int32"),
    ],
    ids=["missing", "unknown", "shape", "mixed-types", "integers"],
)
def test_other_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    rewrite(folder, lambda weights, _: change(weights))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_other_vocabulary_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: expected the 391 ids .* got vocab_size=5"):
        save_checkpoint(tmp_path, small(vocab_size=5))


def test_training_values_that_json_cannot_hold(folder: Path) -> None:
    before = (folder / WEIGHTS_FILE).read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(folder, small(), {"ppl": float("nan")})
    assert (folder / WEIGHTS_FILE).read_bytes() == before


def test_hub_id_is_fetched_without_anything_but_the_two_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(folder)
    model, _ = load_checkpoint("someone/a-model")
    assert torch.equal(logits(model), logits(load_checkpoint(folder)[0]))
    assert asked == [("someone/a-model", [WEIGHTS_FILE, CONFIG_FILE])]


def test_hub_that_has_nothing_or_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"someone/a-model: no such folder here.*no connection"):
        load_checkpoint("someone/a-model")


def test_names_of_models_that_ship(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("pianist") == shipped()
    assert find_checkpoint(Path("pianist")) == Path("pianist")
    assert find_checkpoint("./pianist") == Path("pianist")
    folder.rename("pianist")  # what exists wins
    assert find_checkpoint("pianist") == Path("pianist")
    assert read_info("pianist").training == {"step": 7}
    Path("pianist", WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^pianist: expected a checkpoint.*that ships is in {shipped()}$"):
        load_checkpoint("pianist")


def test_paths_are_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in ("runs/best", Path("owner/name"), "a/b/c", "/owner/name", "name"):
        with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
            load_checkpoint(source)
