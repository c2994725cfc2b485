"""Reference for music: a store as the corpus that `dsmr.music.analysis.comparison` sets music beside."""

from __future__ import annotations

from dsmr.corpus.store import SPLITS, TokenStore
from dsmr.music.analysis.comparison import Corpus
from dsmr.music.analysis.quotation import Source


def corpus_of(store: TokenStore, split: str) -> Corpus:
    """The pieces of a split, and as held out those of all others; ValueError for an unknown split."""
    pieces = [Source(index, store.pieces[index].title, store.piece(index)) for index in store.indices(split)]
    held_out = [store.piece(index) for other in SPLITS if other != split for index in store.indices(other)]
    return Corpus(split, pieces, held_out)
