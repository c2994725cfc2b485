"""Results of a study: a JSON line for each variant and seed, with enough of every piece to compare variants afterwards.

The first line is the frame: which store, which pieces, and how many tokens of each piece every bin of every probe
holds. These are the same for all variants, since all are asked the same questions, so the other lines hold sums alone.

    {"kind": "frame", "study": ..., "store": ..., "split": ..., "questions": {...}, "pieces": [...], "counts": {...}}
    {"kind": "result", "variant": "two-scale", "seed": 0, "settings": {...}, "training": {...}, ..., "totals": {...}}

`counts` has for each probe a list of lists, a row a piece and a column a bin; `totals` has the sums, in nats, of those
bins that hold tokens, row by row, rounded to `DECIMALS`. The file is replaced whole, so a killed study leaves no half
of a line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsmr.evaluation.bootstrap import PieceSums
from dsmr.evaluation.models import Probed
from dsmr.evaluation.probes.returns import KINDS
from dsmr.files import write_durably
from dsmr.model.config import ModelConfig
from dsmr.study.config import Study, Variant
from dsmr.training import TrainingConfig

RESULTS = "results.jsonl"
DECIMALS = 3
"""Half a thousandth of a nat in the sum of a bin of 64 tokens is 8e-6 nats per token: what rounding leaves anyway."""


@dataclass(frozen=True, eq=False)
class Result:
    """What one variant came to with one seed.

    Args:
        variant, seed: which.
        settings: everything it was trained and probed with, as plain values.
        facts: every other value of its line: the training's counters, bytes, speeds.
        sums: what each probe found, by the probe's name; see `sums_of`.
    """

    variant: str
    seed: int
    settings: dict[str, Any]
    facts: dict[str, Any]
    sums: dict[str, PieceSums]


def settings_of(variant: Variant, seed: int) -> dict[str, Any]:
    """Everything that a variant is trained and probed with, as plain JSON values."""
    return _settings(variant.model, replace(variant.training, seed=seed), variant.evaluates, variant.storage)


def _settings(
    model: ModelConfig, training: TrainingConfig, evaluates: str | None, storage: str | None
) -> dict[str, Any]:
    values = {"model": model.to_dict(), "training": asdict(training), "evaluates": evaluates, "storage": storage}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _settings_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a file, with the defaults of fields that were not there when it was written."""
    model, training = ModelConfig.from_dict(values["model"]), TrainingConfig.from_dict(values["training"])
    return _settings(model, training, values["evaluates"], values["storage"])


def sums_of(probed: Probed) -> dict[str, PieceSums]:
    """What every probe found, a row a piece: `nll`; `krcu`; `keep K` of each context; `gain KIND`; `recall KIND`."""
    found = {"nll": probed.assessment.whole.sums}
    if probed.krcu is not None:
        found["krcu"] = probed.krcu.sums
    if probed.truncation is not None:
        keeps = probed.truncation.cuts.keeps
        found |= {f"keep {keep}": sums for keep, sums in zip(keeps, probed.truncation.sums, strict=True)}
    if probed.returns is not None:
        found |= {f"gain {kind}": probed.returns.by_distance(kind) for kind in KINDS}
    if probed.recall is not None:
        found |= {f"recall {kind}": probed.recall.sums[kind] for kind in KINDS}
    return found


def frame_of(study: Study, store: str, probed: Probed) -> dict[str, Any]:
    """The frame that a variant's probes give, the same whichever variant it is."""
    return {
        "kind": "frame",
        "study": study.name,
        "store": store,
        "split": study.split,
        "questions": _questions(study),
        "pieces": list(probed.assessment.whole.pieces),
        "counts": {name: sums.count.tolist() for name, sums in sums_of(probed).items()},
    }


def totals_of(probed: Probed) -> dict[str, list[float]]:
    """The sums of the bins that hold tokens, row by row, rounded."""
    return {
        name: [round(total, DECIMALS) for total in sums.total[sums.count > 0].tolist()]
        for name, sums in sums_of(probed).items()
    }


class Results:
    """The lines of a file of results; another one can be added.

    Args:
        path: the file; one that is missing has no lines yet.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not what this module writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frame: dict[str, Any] | None = None
        self._lines: list[dict[str, Any]] = []
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                values = json.loads(line)
                if number == 1:
                    _check_frame(values)
                    self.frame = values
                else:
                    self._decoded(values)
                    self._lines.append(values)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}: line {number}: expected a line of a study's results, got: {error}"
                ) from error

    @property
    def all(self) -> list[Result]:
        """All results, in the order in which they came."""
        return [self._decoded(line) for line in self._lines]

    def missing(self, seed: int, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        """Those variants that have no result with this seed yet.

        Raises:
            ValueError: one of them has a result, but of other settings.
        """
        there = {(each.variant, each.seed): each.settings for each in self.all}
        for variant in variants:
            found = there.get((variant.name, seed))
            if found is not None and (named := _first_difference(found, settings_of(variant, seed))):
                raise ValueError(
                    f"{self.path}: variant {variant.name!r}: expected results of {named[0]}={named[2]!r}, got those of "
                    f"{named[1]!r}; give the variant another name, or the study another folder"
                )
        return tuple(variant for variant in variants if (variant.name, seed) not in there)

    def check_frame(self, study: Study, store: str | None = None) -> None:
        """ValueError if the results are of another store, where one is given, or answer other questions."""
        for name, value in (("store", store), ("split", study.split), ("questions", _questions(study))):
            if self.frame is not None and value is not None and self.frame[name] != value:
                raise ValueError(
                    f"{self.path}: expected results of {name} {value}, got those of {self.frame[name]}; "
                    "give the study another folder"
                )

    def add(self, frame: dict[str, Any], line: dict[str, Any]) -> Result:
        """Add a result to the file.

        Raises:
            ValueError: its frame is not that of the others.
            OSError: the file cannot be written; it is as it was.
        """
        if self.frame is not None and self.frame != frame:
            raise ValueError(f"{self.path}: expected a result on the same tokens as the others, got one on others")
        self.frame = frame
        result = self._decoded(line)
        text = "".join(f"{_compact(each)}\n" for each in (frame, *self._lines, line))
        write_durably(self.path, text.encode())
        self._lines.append(line)
        return result

    def _decoded(self, line: dict[str, Any]) -> Result:
        if self.frame is None or line["kind"] != "result":
            raise ValueError("the frame first, and then results")
        counts, totals = self.frame["counts"], line["totals"]
        if counts.keys() != totals.keys():
            raise ValueError(f"expected totals of {', '.join(counts)}, got those of {', '.join(totals)}")
        known = ("kind", "variant", "seed", "settings", "totals")
        return Result(
            line["variant"],
            line["seed"],
            _settings_now(line["settings"]),
            {name: value for name, value in line.items() if name not in known},
            {name: _sums(counts[name], totals[name]) for name in counts},
        )


def _sums(counts: list[list[int]], totals: list[float]) -> PieceSums:
    count = np.array(counts, dtype=np.int64)
    total = np.zeros(count.shape)
    total[count > 0] = totals  # numpy refuses another number of them
    return PieceSums(total, count)


def _check_frame(values: Mapping[str, Any]) -> None:
    if values["kind"] != "frame":
        raise ValueError("the frame first, and then results")
    for name in ("study", "store", "split", "questions", "pieces", "counts"):
        _ = values[name]


def _questions(study: Study) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(study.questions)))
    return plain


def _first_difference(found: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The name of the first setting that differs, with what it was and what it is."""
    for name in sorted(found.keys() | now.keys()):
        was, is_ = found.get(name), now.get(name)
        if was != is_:
            both = isinstance(was, dict) and isinstance(is_, dict)
            return _first_difference(was, is_) if both else (name, was, is_)  # type: ignore[arg-type]
    return None


def _compact(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False, separators=(",", ":"))
