"""A run's folder: somebody else's files are left alone, no link is followed, and one process writes at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsmr.corpus.store import TokenStore
from dsmr.model.checkpoint import CheckpointError, read_info
from dsmr.training import OccupiedError, RunFolder, SaveError, train
from dsmr.training.folder import RUN_MARK
from tests.dsmr.training.small import config, from_training_call, model, untimed

SHORT = config(steps=4, validations=2)


@pytest.fixture(scope="module")
def made(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run."""
    path = tmp_path_factory.mktemp("runs") / "made"
    train(model(), store, SHORT, path, tensorboard=True, keep=9)
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """The same, had it been killed after step 2."""
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    return tmp_path / "run"


def contents(folder: Path) -> dict[bytes, bytes | str]:
    """All that lies in a folder, by name: files' bytes, and what links say."""
    found: dict[bytes, bytes | str] = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[os.fsencode(path.relative_to(folder))] = os.readlink(path)
        elif path.is_file():
            found[os.fsencode(path.relative_to(folder))] = path.read_bytes()
    return found


FOREIGN = [
    "checkpoints/resnet50-epoch90.pt",
    "checkpoints/step-0000001/notes.txt",
    "tensorboard/events.out.tfevents.1",
    "best",
    "last/model.safetensors",
    "metrics.jsonl",
    "train.py",
    "my notes, $HOME {1} ^2.txt",
    os.fsdecode(b"not utf-8 \xff\xfe"),
]


@pytest.mark.parametrize("name", FOREIGN, ids=lambda name: ascii(name))
@pytest.mark.parametrize("way", ["begin", "force", "resume"])
def test_a_folder_of_somebody_else_is_left_alone(store: TokenStore, tmp_path: Path, name: str, way: str) -> None:
    file = tmp_path / "project" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"three weeks of GPU time")
    before = contents(tmp_path / "project")
    with pytest.raises((OccupiedError, CheckpointError), match=r"expected (an empty folder|a run to resume)"):
        train(model(), store, SHORT, tmp_path / "project", force=way == "force", resume=way == "resume")
    assert contents(tmp_path / "project") == before


def test_a_run_is_replaced_and_nothing_beside_it(store: TokenStore, run: Path) -> None:
    mine = ["checkpoints/resnet50.pt", "checkpoints/mine/model.pt", "tensorboard/events.out.tfevents.1", "notes.txt"]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name)
    done = train(model(), store, config(steps=1, validations=1), run, force=True)
    assert (done.step, RunFolder(run).steps()) == (1, [0, 1])
    assert [row["step"] for row in untimed(run)] == [1]
    assert [(run / name).read_text() for name in mine] == mine
    assert [path.name for path in (run / "tensorboard").iterdir()] == ["events.out.tfevents.1"]


def test_a_file_in_the_folder_of_a_state_is_not_removed_with_it(store: TokenStore, run: Path) -> None:
    notes = run / "checkpoints" / "step-0000000" / "notes.txt"
    notes.write_text("the first")
    before = contents(run)
    with pytest.raises(OccupiedError, match=r"notes\.txt: expected a state's own files there alone; move it elsewhere"):
        train(model(), store, SHORT, run, force=True)
    assert contents(run) == before
    train(model(), store, SHORT, run, resume=True, keep=1)
    assert RunFolder(run).steps() == [0, 4] or RunFolder(run).steps() == [0, 2, 4]  # 2 if it is the best
    assert notes.read_text() == "the first"


def test_a_file_where_a_folder_is_meant(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for way in ({}, {"force": True}):
        with pytest.raises(OccupiedError, match=r"file: expected a folder, got a file$"):
            train(model(), store, SHORT, tmp_path / "file", **way)
    with pytest.raises(SaveError, match="file/run: cannot be written: Not a directory"):
        train(model(), store, SHORT, tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "precious"


def plant(run: Path, name: str, target: Path) -> None:
    """A link to `target` in the place of what a run writes."""
    place = run / name
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


LINKS = [
    "metrics.jsonl",
    "checkpoints",
    "tensorboard",
    "best",
    "last",
    ".best.partial",
    ".last.partial",
    "checkpoints/.step-0000004.partial",
    "checkpoints/.step-0000002.removed",
    "checkpoints/step-0000004",
    RUN_MARK,
]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("to", ["file", "folder", "nothing"])
@pytest.mark.parametrize("way", ["resume", "force"])
def test_no_link_is_followed_for_writing(store: TokenStore, run: Path, name: str, to: str, way: str) -> None:
    outside = run.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("not a run's")
    target = {"file": outside / "precious", "folder": outside, "nothing": outside / "new"}[to]
    plant(run, name, target)
    try:
        train(model(), store, SHORT, run, tensorboard=True, **{way: True})
    except (OccupiedError, SaveError, CheckpointError) as error:
        said = str(error)
        assert str(run) in said  # some links are in nobody's way
        assert Path(name).name in said
    assert contents(outside) == {b"precious": b"not a run's"}


@pytest.mark.parametrize("way", ["resume", "force"])
def test_no_file_is_appended_to_that_has_another_name(store: TokenStore, run: Path, way: str) -> None:
    os.link(run / "metrics.jsonl", run.parent / "copy.jsonl")
    before = contents(run)
    with pytest.raises(OccupiedError, match=r"metrics\.jsonl: expected .* got a file that has another name, too; move"):
        train(model(), store, SHORT, run, **{way: True})
    assert contents(run) == before


def test_other_things_in_the_place_of_links_are_kept(store: TokenStore, run: Path) -> None:
    (run / "best").unlink()
    (run / "best").write_text("my notes")
    before = contents(run)
    for way in ("resume", "force"):
        with pytest.raises(OccupiedError, match="best: expected what a run writes there, got a file; move it elsew"):
            train(model(), store, SHORT, run, **{way: True})
    assert contents(run) == before


# One writer


def at_step(number: int, action: Callable[[], None]) -> Any:
    """A model that does something else in its `number`-th training segment."""
    net, done = model(), []

    def once(logits: Any) -> Any:
        if not done:
            done.append(action())
        return logits

    net.register_forward_hook(from_training_call(number, once))
    return net


@pytest.mark.parametrize("way", [{}, {"resume": True}, {"force": True}], ids=["begin", "resume", "force"])
def test_a_second_writer_is_refused_and_the_first_ends_in_order(
    store: TokenStore, made: Path, tmp_path: Path, way: dict[str, bool]
) -> None:
    def intrude() -> None:
        with pytest.raises(OccupiedError, match="expected a folder that nobody writes into, got one that a run is us"):
            train(model(), store, SHORT, tmp_path, **way)

    train(at_step(4, intrude), store, SHORT, tmp_path)
    assert untimed(tmp_path) == untimed(made)
    assert read_info(tmp_path / "last").digest == read_info(made / "last").digest
    train(model(), store, config(steps=1), tmp_path, force=True)  # and the folder is free again


def test_a_folder_is_free_after_an_error(store: TokenStore, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(at_step(3, fail), store, SHORT, tmp_path)
    train(model(), store, SHORT, tmp_path, resume=True)


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_what_a_desktop_drops_is_nobodys(store: TokenStore, tmp_path: Path, name: str) -> None:
    """Whoever looks at a folder has it there; it neither makes the folder a stranger's nor keeps a state from going."""
    path = tmp_path / "run"
    path.mkdir()
    (path / name).write_bytes(b"where icons lie")
    train(model(), store, config(steps=2), path)
    for folder in (path / "checkpoints", *(path / "checkpoints").iterdir()):
        (folder / name).write_bytes(b"where icons lie")
    train(model(), store, config(steps=4, validations=4), path, force=True, keep=1)
    assert RunFolder(path, 1).steps() in ([4], [1, 4], [2, 4], [3, 4])  # the newest, and the best if it is another
    (path / name).unlink()
    (path / name).mkdir()
    (path / "dsmr-run.lock").unlink()
    with pytest.raises(OccupiedError):  # a folder of that name is somebody's
        train(model(), store, config(steps=2), path)
