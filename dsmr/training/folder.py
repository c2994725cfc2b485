"""Run folder: saved states that exist whole or not at all, and one writer at a time.

    RUN/dsmr-run.lock               by which a run's folder is known; locked while a process writes there
    RUN/checkpoints/step-0001200/   a checkpoint like any other, and `training.safetensors` (see `state.py`)
    RUN/last, RUN/best              relative symbolic links to two of them: the newest, and that of the lowest PPL
    RUN/metrics.jsonl               the measurements
    RUN/tensorboard/*.dsmr          the same, if wanted

A state is written into a hidden folder, flushed to the disk, and then renamed: a crash at any moment leaves the states
that were there before, and possibly a hidden folder, which the next writer removes. Whatever else lies in the folder is
somebody else's: it is neither replaced nor removed, and no link, symbolic or hard, is followed to write.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dsmr.claim import OccupiedError, claimed, is_dropping, is_file, is_folder, is_single_file, kind, saving
from dsmr.fields import shown
from dsmr.files import HALF_WRITTEN, flush_folder
from dsmr.model.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    CheckpointInfo,
    load_checkpoint,
    save_checkpoint,
)
from dsmr.model.transformer import Transformer
from dsmr.training.state import STATE_FILE, TrainingState, load_state, save_state

RUN_MARK = "dsmr-run.lock"
METRICS_FILE, TENSORBOARD, EVENTS = "metrics.jsonl", "tensorboard", ".dsmr"
BEST, LAST = "best", "last"
CHECKPOINTS = "checkpoints"

_STEP = "step-"
_STATE = re.compile(rf"{_STEP}\d+|\.{_STEP}\d+\.(partial|removed)")
"""Folders in `checkpoints`: whole states, and what a crash left."""
_FILES = (WEIGHTS_FILE, CONFIG_FILE, STATE_FILE)


class RunFolder:
    """Where a run keeps its states.

    Args:
        path: the folder; made when it is claimed.
        keep: how many of the newest states to keep, besides the best.

    Raises:
        ValueError: `keep` below 1.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        self.path, self.keep = Path(path), keep
        self._checkpoints = self.path / CHECKPOINTS

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within, this process is the only one that writes here; see `dsmr.claim.claimed`.

        Raises:
            OccupiedError: the folder is not a run's and not empty, somebody is writing there, or something that no run
                wrote lies where a run would write.
        """
        with claimed(self.path, RUN_MARK, "a run"):
            self._check()
            yield

    def _check(self) -> None:
        right: dict[Path, Callable[[Path], bool]] = {self.path / METRICS_FILE: is_single_file}
        right |= {self.path / name: Path.is_symlink for name in (LAST, BEST)}
        folders = [self._checkpoints, self.path / TENSORBOARD]
        right |= {path: is_folder for path in (*folders, *self._states()) if not path.name.startswith(".")}
        for path, is_right in right.items():
            if os.path.lexists(path) and not is_right(path):
                raise OccupiedError(f"{path}: expected what a run writes there, got {kind(path)}; move it elsewhere")

    @property
    def holds_run(self) -> bool:
        """Whether there are states or measurements."""
        metrics = self.path / METRICS_FILE
        return bool(self.steps()) or (metrics.exists() and metrics.stat().st_size > 0)

    def steps(self) -> list[int]:
        """Steps whose states are there, the oldest first."""
        if not self._checkpoints.is_dir():
            return []
        names = [path.name.removeprefix(_STEP) for path in self._checkpoints.glob(f"{_STEP}*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def checkpoint(self, step: int) -> Path:
        """Where the state of a step lies, or would."""
        return self._checkpoints / f"{_STEP}{step:07d}"

    def newest(self) -> Path:
        """The newest state; CheckpointError if there is none."""
        if not (steps := self.steps()):
            raise CheckpointError(f"{self.path}: expected a run to resume, with states in {CHECKPOINTS}; there is none")
        return self.checkpoint(steps[-1])

    def load(self, checkpoint: Path) -> tuple[Transformer, CheckpointInfo, TrainingState]:
        """Read a state, every byte verified.

        Raises:
            CheckpointError: it is damaged, incomplete, or of a version or vocabulary that is not this one's. What to do
                about it is said, and no other state is taken in its place.
        """
        try:
            model, info = load_checkpoint(checkpoint)
            state = load_state(checkpoint)
            if (expected := state.document.get("weights")) != info.digest:
                raise CheckpointError(
                    f"{checkpoint}: expected weights of SHA-256 {str(expected)[:64]}, got {info.digest}"
                )
            run = state.document.get("run")
            step = run.get("step") if isinstance(run, dict) else None
            if step != int(checkpoint.name.removeprefix(_STEP)):
                raise CheckpointError(f"{checkpoint}: expected the state of that step, got that of step {shown(step)}")
        except (CheckpointError, FileNotFoundError) as error:
            others = [step for step in self.steps() if self.checkpoint(step) != checkpoint]
            before = f"; to go on from step {others[-1]}, remove {checkpoint}" if others else ""
            raise CheckpointError(f"{error}{before}") from error
        return model, info, state

    def save(self, model: Transformer, state: TrainingState) -> None:
        """Add the state of a step, make `last` and `best` name what they should, and remove what is not to be kept.

        Raises:
            SaveError: the folder cannot be written; no state that was there before is touched.
        """
        run = state.document["run"]
        final = self.checkpoint(run["step"])
        with saving(self._checkpoints):
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            if not is_folder(self._checkpoints):
                raise NotADirectoryError(None, f"expected a folder, got {kind(self._checkpoints)}")
            self._remove_leftovers()
        with saving(final):
            if is_folder(
                final
            ):  # the weights of a step are the same whenever it is saved, and each file is replaced whole
                self._write(final, model, state)
            else:
                self._write_anew(final, model, state)
        self.point(run["best_step"])
        with saving(self._checkpoints):
            self._prune(run["best_step"])

    def _write_anew(self, final: Path, model: Transformer, state: TrainingState) -> None:
        partial = self._checkpoints / f".{final.name}.partial"
        partial.mkdir()
        try:
            self._write(partial, model, state)
            os.rename(partial, final)
            flush_folder(self._checkpoints)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # to leave room; the error to report is the first one
            raise

    def _write(self, folder: Path, model: Transformer, state: TrainingState) -> None:
        known = {name: state.document[name] for name in ("store", "config", "initial_weights")}
        info = save_checkpoint(folder, model, {**state.document["run"], **known})
        save_state(folder, TrainingState({**state.document, "weights": info.digest}, state.tensors))

    def point(self, best_step: int | None) -> None:
        """Let `last` name the newest state and `best` that of `best_step`."""
        for name, step in ((LAST, self.steps()[-1]), (BEST, best_step)):
            if step is not None:
                link = self.path / f".{name}.partial"
                with saving(self.path / name):
                    if os.path.lexists(self.path / name) and not (self.path / name).is_symlink():
                        raise FileExistsError(None, f"expected a link, got {kind(self.path / name)}")
                    if link.is_symlink():  # a crash left it
                        link.unlink()
                    link.symlink_to(self.checkpoint(step).relative_to(self.path), target_is_directory=True)
                    os.replace(link, self.path / name)
                    flush_folder(self.path)

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else that is in the folder.

        Raises:
            OccupiedError: a state's folder holds something else, too; nothing has been removed.
        """
        states = list(self._states())
        for state in states:
            if strangers := _strangers(state):
                raise OccupiedError(f"{strangers[0]}: expected a state's own files there alone; move it elsewhere")
        events = [path for path in (self.path / TENSORBOARD).glob(f"*{EVENTS}") if is_file(path)]
        with saving(self.path):
            for file in (self.path / LAST, self.path / BEST, self.path / METRICS_FILE, *events):
                file.unlink(missing_ok=True)
            for state in states:
                shutil.rmtree(state)
            for folder in (self._checkpoints, self.path / TENSORBOARD):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def remove(self) -> None:
        """Remove what a run wrote and, if nothing else is there, the folder; raises as `claimed` and `clear` do."""
        with self.claimed():
            self.clear()
            with saving(self.path):
                if [path.name for path in self.path.iterdir()] == [RUN_MARK]:
                    (self.path / RUN_MARK).unlink()
                    self.path.rmdir()

    def _prune(self, best_step: int | None) -> None:
        for step in self.steps()[: -self.keep]:
            state = self.checkpoint(step)
            if step != best_step and not _strangers(state):
                removed = self._checkpoints / f".{state.name}.removed"
                os.rename(state, removed)  # a crash must not leave half of a state under its name
                shutil.rmtree(removed)

    def _remove_leftovers(self) -> None:
        """What a crash left while a state was written or removed."""
        for path in self._states():
            if path.is_symlink() and path.name.startswith("."):
                path.unlink()
            elif path.name.startswith(".") and not _strangers(path):
                shutil.rmtree(path)

    def _states(self) -> Iterator[Path]:
        """All folders of states, whole or not."""
        if is_folder(self._checkpoints):
            yield from (path for path in sorted(self._checkpoints.iterdir()) if _STATE.fullmatch(path.name))


def _strangers(state: Path) -> list[Path]:
    """What lies in a state's folder, or in its place, and is not of a run."""
    if not is_folder(state):
        return [state]
    own = (
        path for path in state.iterdir() if is_dropping(path) or (is_file(path) and _file_of_state(path.name) in _FILES)
    )
    return sorted({*state.iterdir()} - {*own})


def _file_of_state(name: str) -> str:
    """Which file a name is, or was to become when a process was killed."""
    return half["file"] if (half := HALF_WRITTEN.fullmatch(name)) else name
