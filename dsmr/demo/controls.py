"""Controls: what the verdict on order says of music that is certainly noise, and of music that certainly is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsmr.corpus.store import SPLITS, TokenStore
from dsmr.evaluation.baselines import Bigram
from dsmr.music.analysis.order import UsualOrder, measure_order, shuffled_notes
from dsmr.music.analysis.statistics import excerpts
from dsmr.music.tokens import decode

BIGRAM_TAKES = 10


@dataclass(frozen=True)
class Controls:
    """Shares that are called noise: of music by a bigram, of held-out pieces with their notes shuffled, and of these
    pieces as they are. NaN where there is no music to judge.
    """

    bigram: float
    shuffled: float
    held_out: float


def control(order: UsualOrder, store: TokenStore, seconds: float, seed: int = 0) -> Controls:
    """Judge the controls, each as long as the excerpts that `order` is made from.

    Args:
        order: of the training split, which the bigram is fitted to.
        store: the beginnings of the pieces of its other splits are what is held out.
        seconds: the excerpts' length.
        seed: of the bigram's music and of the shuffling.
    """
    bigram = Bigram.fit(store, store.indices("train"))
    played = [decode(bigram.play(seconds, seed=seed + number)).notes for number in range(BIGRAM_TAKES)]
    pieces = [store.piece(index) for split in SPLITS if split != "train" for index in store.indices(split)]
    held_out = [next(excerpts(decode(piece).notes, seconds))[0] for piece in pieces]
    rng = np.random.default_rng(seed)
    shuffled = [shuffled_notes(notes, rng) for notes in held_out]
    return Controls(*(_called_noise(order, music) for music in (played, shuffled, held_out)))


def _called_noise(order: UsualOrder, music: Iterable[NDArray[np.void]]) -> float:
    verdicts = [order.judge(measure_order(notes)).ordered for notes in music]
    return float(np.mean([verdict is False for verdict in verdicts])) if verdicts else float("nan")
