"""A run's folder: saved states that exist whole or not at all.

    RUN/checkpoints/step-0001200/   a checkpoint like any other, and `training.safetensors` (see `state.py`)
    RUN/last, RUN/best              relative symbolic links to two of them: the newest, and that of the lowest PPL
    RUN/metrics.jsonl               the measurements
    RUN/tensorboard/                the same, if wanted

A state is written into a hidden folder, flushed to the disk, and then renamed: a crash at any moment leaves the states
that were there before, and possibly a hidden folder, which the next writer removes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsmr.checkpoint import CheckpointError, CheckpointInfo, flush_folder, load_checkpoint, save_checkpoint
from dsmr.model import Transformer
from dsmr.training.state import TrainingState, load_state, save_state

METRICS_FILE, TENSORBOARD = "metrics.jsonl", "tensorboard"
BEST, LAST = "best", "last"
CHECKPOINTS = "checkpoints"

_STEP = "step-"


class SaveError(OSError):
    """A run's folder cannot be written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, an OSError means that `path` cannot be written: it becomes a `SaveError` that says so."""
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"{path}: cannot be written: {error.strerror or error}; what was saved before is as it was"
        ) from error


class RunFolder:
    """Where a run keeps its states.

    Args:
        path: the folder; made when something is written.
        keep: how many of the newest states to keep, besides the best.

    Raises:
        ValueError: `keep` below 1.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        self.path, self.keep = Path(path), keep
        self._checkpoints = self.path / CHECKPOINTS

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
            if (expected := state.document["weights"]) != info.digest:
                raise CheckpointError(f"{checkpoint}: expected weights of SHA-256 {expected}, got {info.digest}")
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
        partial = self._checkpoints / f".{final.name}.partial"
        with writing(self._checkpoints):
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        with writing(final):
            try:
                known = {name: state.document[name] for name in ("store", "config")}
                info = save_checkpoint(partial, model, {**run, **known})
                save_state(partial, TrainingState({**state.document, "weights": info.digest}, state.tensors))
                os.rename(partial, final)
                flush_folder(self._checkpoints)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)  # to leave room; the error to report is the first one
                raise
        self.point(run["best_step"])
        with writing(self._checkpoints):
            self._prune(run["best_step"])

    def point(self, best_step: int | None) -> None:
        """Let `last` name the newest state and `best` that of `best_step`."""
        for name, step in ((LAST, self.steps()[-1]), (BEST, best_step)):
            if step is not None:
                link = self.path / f".{name}.partial"
                with writing(self.path / name):
                    link.unlink(missing_ok=True)
                    link.symlink_to(self.checkpoint(step).relative_to(self.path), target_is_directory=True)
                    os.replace(link, self.path / name)
                    flush_folder(self.path)

    def clear(self) -> None:
        """Remove a run, and nothing else that is in the folder."""
        for name in (LAST, BEST, METRICS_FILE, CHECKPOINTS, TENSORBOARD):
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _prune(self, best_step: int | None) -> None:
        for step in self.steps()[: -self.keep]:
            if step != best_step:
                removed = self._checkpoints / f".{self.checkpoint(step).name}.removed"
                os.rename(self.checkpoint(step), removed)  # a crash must not leave half of a state under its name
                shutil.rmtree(removed)

    def _remove_leftovers(self) -> None:
        """What a crash left while a state was written or removed."""
        for path in self._checkpoints.glob(f".{_STEP}*"):
            shutil.rmtree(path)
