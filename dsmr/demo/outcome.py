"""Outcome of a demonstration: every number of it, and what should hold and does not."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dsmr.corpus.prepare import PrepareReport
from dsmr.demo.controls import Controls
from dsmr.evaluation.baselines import Assessment
from dsmr.evaluation.models import Probed
from dsmr.music.analysis.comparison import Group
from dsmr.music.analysis.repetition import Repetition
from dsmr.music.analysis.statistics import Comparison, Statistics
from dsmr.training.trainer import Run
from dsmr.version import __version__


@dataclass(frozen=True)
class Outcome:
    """What came of a demonstration.

    Args:
        corpus: what was prepared.
        run: how training went.
        probed: the best checkpoint on the validation split: its scores, and what its memory does.
        tries: how many takes each model made, of which `takes` are those kept.
        takes: numbers of every take, in order.
        by: for every take who played it; the model just trained comes first.
        music: the numbers of `ESSENTIAL` of every take, beside what is usual in excerpts of the corpus that are as
            long.
        repetition: for every take what it plays again, beside the corpus and its shuffled snippets.
        group: the takes beside the corpus in more numbers, histograms, self-similarity and quotations.
        learns: see `dsmr.demo.run.Plan`.
        controls: what the verdict on order says of music that is certainly noise, and of music that is none.
        seconds: what each stage took.
    """

    corpus: PrepareReport
    run: Run
    probed: Probed
    tries: int
    takes: tuple[Statistics, ...]
    by: tuple[str, ...]
    repetition: tuple[Repetition, ...]
    music: tuple[tuple[Comparison, ...], ...]
    group: Group
    learns: bool
    controls: Controls
    seconds: dict[str, float]

    @property
    def assessment(self) -> Assessment:
        """The best checkpoint's scores on the validation split."""
        return self.probed.assessment

    @property
    def failures(self) -> list[str]:
        """What should hold and does not, for people: the model must predict better than a bigram."""
        assert self.assessment.bigram is not None
        ppl, bigram = self.assessment.whole.ppl, self.assessment.bigram.ppl
        if not self.learns or ppl < bigram:
            return []
        return [f"validation PPL {ppl:.2f} is not below the bigram's {bigram:.2f}"]

    @property
    def remarks(self) -> list[str]:
        """In what the best take is not like the corpus, for people. A small model's may well be so."""
        return list(self._remarks())

    def _remarks(self) -> Iterator[str]:
        for each in self.music[0]:
            if each.within is False:
                yield f"{each.name} {each.value:.3g} is not within {each.low:.3g} .. {each.high:.3g}, as in the corpus"
        order = self.group.music[0].order
        if order.ordered is False:
            yield f"take 1: {order.sentence}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "dsmr": __version__,
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
            "seconds": self.seconds,
            "corpus": {"pieces": self.corpus.pieces, "tokens": self.corpus.tokens, "seconds": self.corpus.seconds},
            "training": {**asdict(self.run), "tokens_per_second": self.run.tokens_per_second},
            "validation": self.probed.to_dict(),
            "tries": self.tries,
            "takes": [
                {
                    "by": by,
                    **numbers.to_dict(),
                    "repeated": repetition.to_dict(),
                    "compared": [{**asdict(each), "within": each.within} for each in compared],
                }
                for by, numbers, repetition, compared in zip(
                    self.by, self.takes, self.repetition, self.music, strict=True
                )
            ],
            "music": self.group.to_dict(),
            "called_noise": {k: None if math.isnan(v) else v for k, v in asdict(self.controls).items()},
            "failures": self.failures,
            "remarks": self.remarks,
        }
