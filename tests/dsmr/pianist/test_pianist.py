"""The pianist's pieces: playable, repeatable, labelled truly, and like piano music."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.music.tokens import (
    HIGHEST_KEY,
    LOWEST_KEY,
    NOTE_OFF,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    encode,
    encode_indexed,
    fold_pedal,
)
from dsmr.pianist import FEWEST_TOKENS, Composition, Restatement, compose
from dsmr.pianist.character import draw_composer
from dsmr.pianist.dice import Dice
from dsmr.pianist.form import FORMS
from dsmr.pianist.passage import (
    FEWEST_LABELLED,
    Passage,
    Placement,
    assemble,
    find_returns,
    token_count,
    transposed,
)
from dsmr.pianist.workshop import Workshop

CORPUS = tuple((seed, (2_000, 4_000, 8_000, 16_000, 30_000)[seed % 5]) for seed in range(30))


@cache
def piece(seed: int, tokens: int) -> Composition:
    return compose(seed, tokens)


@cache
def tokens_of(seed: int, tokens: int) -> np.ndarray:
    return encode(piece(seed, tokens).performance)


def assert_returns_are_repeats(
    performance_ids: np.ndarray, note_token: np.ndarray, returns: tuple[Restatement, ...]
) -> None:
    for each in returns:
        start, stop, source_start, source_stop = each.token_spans(note_token)
        again = performance_ids[start:stop].astype(int)
        source = performance_ids[source_start:source_stop].astype(int)
        moved = np.where(source < TIME_SHIFT, source + each.semitones, source)
        np.testing.assert_array_equal(again, moved, err_msg=str(each))
        assert (source // NOTE_OFF == again // NOTE_OFF)[source < TIME_SHIFT].all(), each


# The piece


def test_two_processes_compose_the_same_piece() -> None:
    program = (
        "import hashlib; from dsmr.pianist import compose; from dsmr.music.tokens import encode\n"
        "for seed, tokens in ((1, 3000), (2**40 + 7, 9000)):\n"
        "    piece = compose(seed, tokens)\n"
        "    print(hashlib.sha256(encode(piece.performance)).hexdigest(), piece.title, piece.form, piece.returns)"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert hashlib.sha256(encode(compose(1, 3000).performance)).hexdigest() in printed[0]


@pytest.mark.parametrize(("seed", "tokens"), CORPUS, ids=lambda value: str(value))
def test_length_is_the_one_asked_for(seed: int, tokens: int) -> None:
    assert 0.8 * tokens <= len(tokens_of(seed, tokens)) <= 1.2 * tokens


@settings(max_examples=20)
@given(seed=st.integers(0, 2**64), tokens=st.integers(2_000, 12_000))
def test_any_seed_gives_a_playable_piece_with_true_labels(seed: int, tokens: int) -> None:
    composition = compose(seed, tokens)
    notes, pedal = composition.performance.notes, composition.performance.pedal
    ids, note_token = encode_indexed(composition.performance)
    assert 0.8 * tokens <= len(ids) <= 1.2 * tokens
    assert notes["pitch"].min() >= LOWEST_KEY
    assert notes["pitch"].max() <= HIGHEST_KEY
    assert notes["velocity"].min() >= 10
    assert notes["velocity"].max() <= 120
    assert (notes["offset"] - notes["onset"]).min() >= 0.009
    assert list(np.lexsort((notes["pitch"], notes["onset"]))) == list(range(len(notes)))
    for seconds in (notes["onset"], notes["offset"], pedal["time"]):
        np.testing.assert_allclose(seconds * STEPS_PER_SECOND, np.rint(seconds * STEPS_PER_SECOND), atol=1e-6)
    assert not len(pedal) or pedal["value"][-1] == 0
    assert_returns_are_repeats(ids, note_token, composition.returns)


@pytest.mark.parametrize(
    ("seed", "tokens", "error", "message"),
    [
        (-1, 2000, ValueError, "seed: expected at least 0, got -1"),
        (0, FEWEST_TOKENS - 1, ValueError, f"tokens: expected at least {FEWEST_TOKENS}"),
        (0.5, 2000, TypeError, "seed: expected an integer, got float"),
        (0, "2000", TypeError, "tokens: expected an integer, got str"),
        (True, 2000, TypeError, "seed: expected an integer, got bool"),
    ],
    ids=["negative seed", "too short", "seed no integer", "tokens no integer", "bool"],
)
def test_bad_arguments_are_refused(seed: object, tokens: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compose(seed, tokens)  # type: ignore[arg-type]  # that is what is tested


# Returns


@pytest.mark.parametrize(("seed", "tokens"), CORPUS, ids=lambda value: str(value))
def test_labelled_returns_are_token_for_token_repeats(seed: int, tokens: int) -> None:
    composition = piece(seed, tokens)
    assert composition.returns
    assert_returns_are_repeats(*encode_indexed(composition.performance), composition.returns)


def test_labels_are_in_order_disjoint_and_after_their_sources() -> None:
    for seed, tokens in CORPUS:
        returns = piece(seed, tokens).returns
        for each in returns:
            assert 0 <= each.source_start < each.source_stop <= each.start < each.stop
            assert each.stop - each.start == each.source_stop - each.source_start >= FEWEST_LABELLED
            assert (each.kind == "exact") == (each.semitones == 0)
        assert all(before.stop <= after.start for before, after in itertools.pairwise(returns))


def test_returns_lie_at_every_distance() -> None:
    labelled: Counter[str] = Counter()
    by_distance: Counter[int] = Counter()
    total = 0
    for seed, tokens in CORPUS:
        composition = piece(seed, tokens)
        ids, note_token = encode_indexed(composition.performance)
        total += len(ids)
        for each in composition.returns:
            start, stop, source_start, _ = each.token_spans(note_token)
            by_distance[int(start - source_start).bit_length()] += stop - start
            labelled[each.kind] += stop - start
    # Distances of 64..127, 128..255, ..., 16384..32767 tokens.
    for length in range(7, 16):
        assert by_distance[length] > 0.003 * total, length
    far = sum(count for length, count in by_distance.items() if length > 12)
    assert far > 0.05 * total
    assert 0.35 * total < labelled.total() < 0.8 * total
    assert labelled["transposed"] > 0.03 * total


class CellsOfOnePiece:
    """Cells of all textures and places, and a way to put them in any order."""

    def __init__(self, seed: int) -> None:
        dice = Dice(seed)
        workshop = Workshop(dice, draw_composer(dice))
        key = workshop.composer.key
        passage = workshop.section(key, 1500).passage + workshop.section(key, 1500, contrast=True).passage
        self.cells = list(dict.fromkeys(placement.cell for placement in passage))

    def passage(self, order: list[tuple[int, int]]) -> Passage:
        return tuple(
            itertools.chain.from_iterable(
                transposed((Placement(self.cells[index % len(self.cells)], 0),), semitones)
                for index, semitones in order
            )
        )


PIECES_OF_CELLS = [CellsOfOnePiece(seed) for seed in (0, 3, 11)]


@given(
    source=st.sampled_from(PIECES_OF_CELLS),
    order=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 0, 3, -5])), min_size=1, max_size=14),
)
def test_a_cell_encodes_alike_among_any_neighbours(source: CellsOfOnePiece, order: list[tuple[int, int]]) -> None:
    passage = source.passage(order)
    returns = find_returns(passage)
    assert_returns_are_repeats(*encode_indexed(assemble(passage)), returns)

    # Every cell that was there before is labelled, and nothing else; that cells have notes enough is checked, too.
    first_note = np.cumsum([0] + [len(placement.cell.notes) for placement in passage])
    labelled = np.zeros(first_note[-1], bool)
    for each in returns:
        labelled[each.start : each.stop] = True
    seen = set()
    for at, placement in enumerate(passage):
        there_before = placement.cell in seen and len(placement.cell.notes) >= FEWEST_LABELLED
        if there_before or placement.cell not in seen:
            assert labelled[first_note[at] : first_note[at + 1]].all() == there_before
        seen.add(placement.cell)


def test_neighbouring_cells_make_one_return_and_the_nearest_source_counts() -> None:
    a, b, c = PIECES_OF_CELLS[0].cells[:3]
    sizes = [len(cell.notes) for cell in (a, b, c)]
    passage = tuple(Placement(cell, semitones) for cell, semitones in ((a, 0), (b, 0), (c, 0), (a, 2), (b, 2), (b, 2)))
    start = sum(sizes)
    assert find_returns(passage) == (
        Restatement("transposed", 2, start, start + sizes[0] + sizes[1], 0, sizes[0] + sizes[1]),
        Restatement(
            "exact",
            0,
            start + sizes[0] + sizes[1],
            start + sizes[0] + 2 * sizes[1],
            start + sizes[0],
            start + sizes[0] + sizes[1],
        ),
    )


def test_a_transposed_passage_stays_on_the_keyboard() -> None:
    for cells in PIECES_OF_CELLS:
        for cell in cells.cells:
            for semitones in range(-11, 12):
                ((_, moved),) = transposed((Placement(cell, 0),), semitones)
                assert (moved - semitones) % 12 == 0 or moved == 0
                assert cell.notes[:, 2].min() + moved >= LOWEST_KEY
                assert cell.notes[:, 2].max() + moved <= HIGHEST_KEY


def test_counting_a_passage_is_counting_its_tokens() -> None:
    passage = tuple(Placement(cell, 0) for cell in PIECES_OF_CELLS[1].cells)
    assert abs(token_count(passage) - len(encode(assemble(passage)))) <= 2 * len(passage)  # a shift or velocity a seam


# Repetition at every scale, told from the tokens alone


def repeated_share(ids: np.ndarray, length: int, nearest: int, farthest: int) -> float:
    """The share of positions whose last `length` tokens were last seen between `nearest` and `farthest` tokens ago."""
    raw, last, hits = ids.tobytes(), {}, 0
    for end in range(length, len(ids) + 1):
        window = raw[2 * (end - length) : 2 * end]
        hits += nearest <= end - last.get(window, end - farthest - 1) <= farthest
        last[window] = end
    return hits / len(ids)


@pytest.mark.parametrize(
    ("length", "nearest", "farthest", "least"),
    [(3, 1, 128, 0.05), (12, 1, 256, 0.04), (24, 256, 1024, 0.12), (24, 1024, 4096, 0.08), (24, 4096, 32768, 0.05)],
    ids=["motif", "bar", "phrase", "section", "piece"],
)
def test_music_repeats_at_every_scale(length: int, nearest: int, farthest: int, least: float) -> None:
    pieces = [tokens_of(seed, tokens) for seed, tokens in CORPUS if tokens >= 8_000]
    share = np.mean([repeated_share(ids, length, nearest, farthest) for ids in pieces])
    rng = np.random.default_rng(0)
    by_chance = np.mean([repeated_share(rng.permutation(ids), length, nearest, farthest) for ids in pieces[:3]])
    assert share > least
    assert by_chance < 0.01


# Music by numbers


def test_numbers_are_those_of_piano_music() -> None:
    """Compared with real performances (mean over pieces): 11 notes a second, 4.1 tokens a note, 9 % silence."""
    rows = []
    for seed, tokens in CORPUS:
        notes = fold_pedal(piece(seed, tokens).performance).notes
        seconds = notes["offset"].max()
        order = np.argsort(notes["onset"], kind="stable")
        sounding_until = np.maximum.accumulate(notes["offset"][order])
        silence = np.maximum(notes["onset"][order][1:] - sounding_until[:-1], 0).sum()
        rows.append(
            (
                len(notes) / seconds,
                len(tokens_of(seed, tokens)) / len(notes),
                silence / seconds,
                (notes["offset"] - notes["onset"]).sum() / seconds,
                np.median(notes["pitch"]),
                np.percentile(notes["pitch"], 95) - np.percentile(notes["pitch"], 5),
                np.median(notes["velocity"]),
                np.std(notes["velocity"]),
            )
        )
    density, per_note, silence_share, sounding, middle, compass, loudness, dynamics = np.array(rows).T
    assert density.min() > 4
    assert density.max() < 20
    assert 7 < density.mean() < 12
    assert 3.7 < per_note.mean() < 4.4
    assert silence_share.max() < 0.35
    assert 2 < sounding.mean() < 8
    assert 58 < middle.mean() < 70
    assert compass.min() > 24
    assert 48 < loudness.mean() < 76
    assert dynamics.min() > 6


def test_harmony_is_mostly_consonant_and_in_a_key() -> None:
    scales = np.array(
        [[(degree - tonic) % 12 in (0, 2, 4, 5, 7, 9, 11) for degree in range(12)] for tonic in range(12)]
    )
    in_scale, notes_heard = 0, 0
    pairs = np.zeros(12)
    for seed, tokens in CORPUS[:15]:
        notes = piece(seed, tokens).performance.notes
        for window in range(0, int(notes["onset"].max()), 8):
            inside = (notes["onset"] >= window) & (notes["onset"] < window + 8)
            heard = np.bincount(notes["pitch"][inside] % 12, minlength=12)
            in_scale += (scales @ heard).max()
            notes_heard += heard.sum()
            # Which intervals are struck together, within 30 ms.
            onset, pitch = notes["onset"][inside], notes["pitch"][inside].astype(int)
            together = np.triu(np.abs(onset[:, None] - onset) < 0.03, 1)
            pairs += np.bincount(np.abs(pitch[:, None] - pitch)[together] % 12, minlength=12)
    assert in_scale / notes_heard > 0.85  # by chance 0.58, real performances 0.89
    dissonant = pairs[[1, 6, 11]].sum() / pairs.sum()
    assert dissonant < 0.1  # by chance 0.25


def test_tokens_are_no_trivial_signal() -> None:
    counts = np.zeros((NOTE_OFF * 4, NOTE_OFF * 4))
    for seed, tokens in CORPUS:
        ids = tokens_of(seed, tokens)
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    given_last = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    unigram = counts.sum(0) / counts.sum()
    bigram_nll = -np.sum(counts[counts > 0] * np.log(given_last[counts > 0])) / counts.sum()
    unigram_nll = -np.sum(unigram[unigram > 0] * np.log(unigram[unigram > 0]))
    assert 25 < np.exp(bigram_nll) < 60  # real performances: about 50
    assert 100 < np.exp(unigram_nll) < 150  # real performances: about 127


def test_different_seeds_are_different_pieces() -> None:
    compositions = [piece(seed, tokens) for seed, tokens in CORPUS]
    assert len({composition.title for composition in compositions}) == len(CORPUS)
    assert len({composition.title.split(" in ")[-1].split(",")[0] for composition in compositions}) >= 12  # keys
    assert len({composition.form for composition in compositions}) == len(FORMS)
    windows = []
    for seed, tokens in CORPUS:
        raw = tokens_of(seed, tokens).tobytes()
        windows.append({raw[i : i + 32] for i in range(0, len(raw) - 32, 2)})  # of 16 tokens
    for ours, theirs in itertools.combinations(windows, 2):
        assert len(ours & theirs) < 0.01 * min(len(ours), len(theirs))


def test_the_same_seed_at_another_length_is_the_same_composer() -> None:
    short, long = piece(4, 30_000), compose(4, 3_000)
    assert short.title.split(" in ")[1].split(",")[0] == long.title.split(" in ")[1].split(",")[0]
