"""Evaluation: every token scored once, as a token-by-token reading scores it; intervals, positions, the bigram."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.evaluation.baselines import Bigram
from dsmr.evaluation.bootstrap import compare_bins
from dsmr.evaluation.pieces import BEGINNING, Evaluation, PositionBin, choose_beginnings, count_steps, evaluate_pieces
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, END, PAD, VOCAB_SIZE
from dsmr.training import TrainingConfig

LENGTHS = (70, 16, 33, 1, 47)  # events; segments are 16 tokens and horizons 24 and 8, so memories wrap and overflow
ALL = list(range(len(LENGTHS)))
FLOAT32 = 2**-22 + 1e-9  # NLLs from 4 to 8 nats are kept in float32, whose half spacing is that; models are float64

WINDOWS = pytest.mark.parametrize("window", ["segment", "token"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write(
        tmp_path_factory.mktemp("store") / "corpus.dsmr",
        [np.random.default_rng(n).integers(0, PAD, n) for n in LENGTHS],
    )


def write(path: Path, pieces: list[np.ndarray]) -> TokenStore:
    with StoreWriter(path) as writer:
        for number, ids in enumerate(pieces):
            writer.add(np.concatenate([[BEGIN], ids, [END]]), split="test", title=str(number))
    return TokenStore.open(path)


def make_model(window: str = "segment", **changes: object) -> Transformer:
    torch.manual_seed(0)
    schedule = make_schedule("explicit", 2, horizons=[24, 8])
    sizes = {"width": 16, "heads": 2, "kv_heads": 1, "segment": 16, "window": window, "schedule": schedule}
    return Transformer(ModelConfig(**{**sizes, **changes})).double()


@torch.no_grad()
def read_one_by_one(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """The NLL of ids[1:], fed a token at a time from an empty memory on."""
    model.eval()
    state = model.new_state(1)
    nll = []
    for token, target in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        logits = model(torch.tensor([[token]]), state, segment_size=model.config.segment)[0, 0]
        nll.append(float(logits.logsumexp(0) - logits[target]))
    return np.array(nll)


@WINDOWS
@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_tokens_score_as_read_one_by_one_whatever_the_lanes(store: TokenStore, window: str, lanes: int) -> None:
    model = make_model(window)
    found = evaluate_pieces(model, store, ALL, lanes=lanes)
    for index, nll in zip(found.pieces, found.token_nll, strict=True):
        np.testing.assert_allclose(nll, read_one_by_one(model, store.piece(index)), rtol=0, atol=FLOAT32)


def test_every_token_but_begin_is_scored_once(store: TokenStore) -> None:
    found = evaluate_pieces(make_model(), store, [3, 0, 4])
    assert found.pieces == (3, 0, 4)
    assert found.piece_tokens.tolist() == [store.pieces[i].length - 1 for i in (3, 0, 4)]
    assert found.tokens == sum(store.pieces[i].length - 1 for i in (3, 0, 4))


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity(store: TokenStore) -> None:
    model = make_model()
    torch.nn.init.zeros_(model.embedding.weight)
    found = evaluate_pieces(model, store, ALL)
    assert found.ppl == pytest.approx(VOCAB_SIZE, rel=FLOAT32)
    assert found.nll_sum == pytest.approx(found.tokens * math.log(VOCAB_SIZE), rel=FLOAT32)


@pytest.mark.parametrize("crop", [5, 16, 23, 40])
def test_a_reset_context_is_a_fresh_start_in_the_middle_of_the_piece(store: TokenStore, crop: int) -> None:
    model = make_model()
    found = evaluate_pieces(model, store, ALL, lanes=2, reset_every=crop)
    for index, nll in zip(found.pieces, found.token_nll, strict=True):
        ids = store.piece(index)
        crops = [read_one_by_one(model, ids[i : i + crop + 1]) for i in range(0, len(ids) - 1, crop)]
        np.testing.assert_allclose(nll, np.concatenate(crops), rtol=0, atol=FLOAT32)


def test_a_reset_that_never_comes_changes_nothing(store: TokenStore) -> None:
    model = make_model()
    whole, reset = (evaluate_pieces(model, store, ALL, reset_every=every) for every in (None, 10**6))
    assert all(map(np.array_equal, whole.token_nll, reset.token_nll))


def test_max_tokens_scores_the_same_part_of_the_same_pieces_in_each_call(store: TokenStore) -> None:
    model = make_model()
    whole = evaluate_pieces(model, store, ALL)
    for limit in (1, 40, 100, whole.tokens, 10**6):
        part, again = (evaluate_pieces(model, store, ALL, max_tokens=limit) for _ in range(2))
        assert part.tokens == min(limit, whole.tokens)
        assert part.pieces == again.pieces
        for index, nll in zip(part.pieces, part.token_nll, strict=True):
            np.testing.assert_allclose(nll, whole.token_nll[index][: len(nll)], rtol=0, atol=FLOAT32)


@given(lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=60), limit=st.integers(1, 100_000))
def test_max_tokens_takes_the_beginnings_of_as_many_pieces_as_make_sense(lengths: list[int], limit: int) -> None:
    store = SimpleNamespace(pieces=[SimpleNamespace(length=length + 1) for length in lengths])
    chosen = choose_beginnings(store, range(len(lengths)), limit)
    assert sum(chosen.values()) == min(limit, sum(lengths))
    assert list(chosen) == sorted(chosen)
    cut = [count for index, count in chosen.items() if count < lengths[index]]
    uncut = [count for index, count in chosen.items() if count == lengths[index]]
    assert max(cut, default=0) - min(cut, default=0) <= 1  # equally long
    assert max(uncut, default=0) <= min(cut, default=5000)  # and no piece is cut that is shorter than another's part
    if len(chosen) < len(lengths):  # left out is a piece only where the others have no more than a beginning each
        assert max(cut, default=0) <= BEGINNING
    if sum(min(length, BEGINNING) for length in lengths) <= limit:
        assert len(chosen) == len(lengths)


@pytest.mark.parametrize("limit", [None, 60])
@pytest.mark.parametrize("lanes", [1, 2, 5, 9])
def test_counts_the_models_calls_before_it_makes_them(store: TokenStore, limit: int | None, lanes: int) -> None:
    model, calls = make_model(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    evaluate_pieces(model, store, ALL, lanes=lanes, max_tokens=limit)
    counted = count_steps(store, ALL, limit, lanes, model.config.segment)
    assert counted <= len(calls) <= counted + len(ALL)  # a piece's last segment need not be full


def test_the_default_of_training_validates_on_all_of_22_pieces_and_on_beginnings_of_many() -> None:
    limit = TrainingConfig(steps=1).validation_tokens
    for pieces, expected in ((22, 22), (137, 32)):
        store = SimpleNamespace(pieces=[SimpleNamespace(length=5001)] * pieces)
        assert len(choose_beginnings(store, range(pieces), limit)) == expected


@pytest.mark.parametrize(("max_tokens", "sizes"), [(None, [2, 2, 1]), (60, [1, 1, 0])], ids=["all", "some"])
def test_ranks_share_the_pieces_out(store: TokenStore, max_tokens: int | None, sizes: list[int]) -> None:
    model = make_model()
    whole = evaluate_pieces(model, store, ALL, max_tokens=max_tokens)
    parts = [evaluate_pieces(model, store, ALL, max_tokens=max_tokens, rank=rank, world_size=3) for rank in range(3)]
    assert [len(part.pieces) for part in parts] == sizes
    assert sorted(index for part in parts for index in part.pieces) == sorted(whole.pieces)
    assert sum(part.tokens for part in parts) == whole.tokens
    assert sum(part.nll_sum for part in parts) == pytest.approx(whole.nll_sum, rel=FLOAT32)


def test_another_segment_length_scores_the_same_under_a_token_window(store: TokenStore) -> None:
    model = make_model("token")
    usual, other = (evaluate_pieces(model, store, ALL, segment=segment) for segment in (None, 7))
    for a, b in zip(usual.token_nll, other.token_nll, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32)


def test_dropout_is_off_and_the_mode_restored_even_after_an_error(store: TokenStore) -> None:
    model = make_model(dropout=0.5)
    expected = evaluate_pieces(model.eval(), store, ALL).nll
    assert not model.training
    assert evaluate_pieces(model.train(), store, ALL).nll == expected
    assert model.training

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_pieces(model, store, ALL, progress=interrupt)
    assert model.training


def test_progress_ends_when_all_is_done(store: TokenStore) -> None:
    calls: list[tuple[int, int]] = []
    found = evaluate_pieces(make_model(), store, ALL, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (found.tokens, found.tokens)


def test_training_goes_on_after_an_evaluation(store: TokenStore) -> None:
    model = make_model()
    state = model.new_state(1)
    evaluate_pieces(model, store, ALL)
    model(torch.tensor([[BEGIN, 1, 2]]), state).sum().backward()
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": []}, "indices"),
        ({"indices": [99]}, "below 5, got 99"),
        ({"indices": [1, 1]}, "at most once"),
        ({"lanes": 0}, "lanes: expected at least 1, got 0"),
        ({"segment": -1}, "segment"),
        ({"rank": 2, "world_size": 2}, r"rank: expected 0 to 1 \(world_size 2\), got 2"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"reset_every": 0}, "reset_every"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_arguments_are_named(store: TokenStore, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_pieces(make_model(), store, **{"indices": ALL, **arguments})


def evaluation(*nll: list[float]) -> Evaluation:
    return Evaluation(tuple(range(len(nll))), tuple(np.array(values, dtype=np.float32) for values in nll))


def test_long_pieces_weigh_more() -> None:
    found = evaluation([1.0], [2.0, 2.0, 2.0])
    assert found.piece_nll.tolist() == [1.0, 6.0]
    assert found.nll == 7 / 4
    assert found.ppl == math.exp(7 / 4)


def test_the_interval_of_six_pieces_is_from_the_easiest_to_the_hardest() -> None:
    # Beyond either only the pieces as they are, 1 of 32 splits: nearest to 95 % of what six pieces can say.
    low, high = evaluation(*([nll, nll] for nll in (1.0, 3.0, 2.0, 1.5, 2.5, 2.0))).ppl_interval()
    assert (low, high) == pytest.approx((math.exp(1), math.exp(3)))


def test_the_interval_holds_the_perplexity_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    found = evaluation(*(rng.exponential(2, size=rng.integers(1, 30)).tolist() for _ in range(40)))
    low, high = found.ppl_interval()
    assert low < found.ppl < high
    assert found.ppl_interval() == (low, high)
    wider = found.ppl_interval(confidence=0.99)
    assert wider[0] < low
    assert high < wider[1]


@pytest.mark.parametrize("pieces", range(1, 6))
def test_too_few_pieces_have_no_interval(pieces: int) -> None:
    found = evaluation(*([1.0, 2.0 + number] for number in range(pieces)))
    assert found.ppl_interval() is None
    assert [each.interval for each in found.by_position()] == [None]


def test_one_model_read_in_other_ways_differs_from_itself_by_rounding_alone(store: TokenStore) -> None:
    torch.manual_seed(0)
    model = make_model().float()
    one, other = (evaluate_pieces(model, store, ALL, lanes=lanes) for lanes in (1, 3))
    (found,) = compare_bins(one.sums, other.sums)
    assert found.value == 0.0
    assert 0 < max(np.abs(a - b).max() for a, b in zip(one.token_nll, other.token_nll, strict=True)) < 1e-4


@pytest.mark.parametrize("bad", [1.0, 0.0])
def test_a_bad_confidence_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="confidence: expected between 0 and 1"):
        evaluation([1.0], [2.0]).ppl_interval(confidence=bad)


def test_positions_count_from_the_beginning_of_each_piece() -> None:
    found = evaluation([1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 4.0, 9.0])
    first, second, third = found.by_position(2)
    assert first == PositionBin(0, 4, 2.5, None)  # two pieces are too few
    assert second == PositionBin(2, 3, 16 / 3, None)
    assert third == PositionBin(4, 1, 5.0, None)
    with pytest.raises(ValueError, match="width"):
        found.by_position(0)


def test_the_dictionary_is_json_and_adds_up(store: TokenStore) -> None:
    found = evaluate_pieces(make_model(), store, ALL, reset_every=20)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["reset_every"] == 20
    assert sum(piece["nll_sum"] for piece in read["pieces"]) / read["tokens"] == pytest.approx(read["nll"])
    assert sum(b["nll"] * b["tokens"] for b in read["by_position"]) / read["tokens"] == pytest.approx(read["nll"])
    assert read["ppl_interval_95"] == (found.ppl_interval() and list(found.ppl_interval()))


pieces_of_few_tokens = st.lists(hnp.arrays(np.uint16, st.integers(0, 30), elements=st.integers(0, 5)), min_size=1)


@given(pieces_of_few_tokens)
def test_bigram_rows_are_distributions_that_exclude_nothing(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[np.ndarray]
) -> None:
    store = write(tmp_path_factory.mktemp("bigram") / "corpus.dsmr", pieces)
    bigram = Bigram.fit(store, range(len(pieces)))
    assert np.isfinite(bigram.log_probability).all()
    np.testing.assert_allclose(np.exp(bigram.log_probability).sum(1), 1, rtol=1e-12)


def test_bigram_probabilities_follow_the_formula(tmp_path: Path) -> None:
    ids = [1, 2, 1, 2, 1, 3, 2]
    store = write(tmp_path / "corpus.dsmr", [np.array(ids)])
    pairs = Counter(zip([BEGIN, *ids], [*ids, END], strict=True))
    # BEGIN-1, 1-3, 3-2 and 2-END occur once; 1-2 and 2-1 twice.
    discount = 4 / (4 + 2 * 2)
    assert Counter(pairs.values()) == {1: 4, 2: 2}
    before = Counter(token for _, token in pairs)  # how many different tokens precede each
    for first, second in [(1, 2), (1, 3), (2, 1), (2, END), (1, 77), (BEGIN, 1), (3, 3)]:
        total = sum(count for (a, _), count in pairs.items() if a == first)
        kinds = sum(1 for a, _ in pairs if a == first)
        unigram = (before[second] + 1) / (len(pairs) + VOCAB_SIZE)
        expected = max(pairs[first, second] - discount, 0) / total + discount * kinds / total * unigram
        assert math.exp(Bigram.fit(store, [0]).log_probability[first, second]) == pytest.approx(expected, rel=1e-12)
    # After a token never seen there is the unigram alone.
    assert math.exp(Bigram.fit(store, [0]).log_probability[50, 2]) == pytest.approx(3 / (len(pairs) + VOCAB_SIZE))


def test_bigram_comes_close_to_the_entropy_of_a_markov_chain(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.full(20, 0.3), size=20)
    pieces = []
    for _ in range(25):
        ids = [0]
        for _ in range(1999):
            ids.append(rng.choice(20, p=chain[ids[-1]]))
        pieces.append(np.array(ids))
    store = write(tmp_path / "corpus.dsmr", pieces)
    held_out = [20, 21, 22, 23, 24]
    found = Bigram.fit(store, range(20)).evaluate(store, held_out)
    # Without a piece's first and last prediction, which the chain does not make.
    nll = np.concatenate([piece[1:-1] for piece in found.token_nll]).mean(dtype=np.float64)
    truth = np.concatenate([-np.log(chain[pieces[i][:-1], pieces[i][1:]]) for i in held_out]).mean()
    # 40,000 tokens to learn 380 free numbers from cost about 380 / 80,000 nats; the rest is for smoothing and END.
    assert truth <= nll < truth + 0.02


def test_bigram_scores_the_tokens_that_a_model_scores(store: TokenStore) -> None:
    model, bigram = evaluate_pieces(make_model(), store, [4, 1]), Bigram.fit(store, ALL).evaluate(store, [4, 1])
    assert bigram.pieces == model.pieces
    assert bigram.piece_tokens.tolist() == model.piece_tokens.tolist()


def test_bigram_of_nothing_is_refused(store: TokenStore) -> None:
    with pytest.raises(ValueError, match="indices"):
        Bigram.fit(store, [])
