from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.corpus.store import StoreWriter, TokenStore
from dsmr.corpus.stream import Batch, LaneStream
from dsmr.music.tokens import BEGIN, END, PAD
from dsmr_kernels import MemoryStack


def make_store(lengths: list[int], path: Path) -> TokenStore:
    """Pieces of the given numbers of ids, each of its own random events."""
    rng = np.random.default_rng(len(lengths))
    with StoreWriter(path) as writer:
        for length in lengths:
            writer.add([BEGIN, *rng.integers(0, PAD, length - 2), END], split="train", title="")
    return TokenStore.open(path)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return make_store([2, 9, 17, 5, 30, 8, 16, 3, 41, 12], tmp_path / "store")


def stream_of(store: TokenStore, **options: object) -> LaneStream:
    return LaneStream(store, **{"pieces": store.indices("train"), "lanes": 3, "segment": 8, **options})


def take(stream: LaneStream, count: int) -> list[Batch]:
    return list(itertools.islice(stream, count))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def lengthen_some(ids: np.ndarray, piece: int, epoch: int) -> np.ndarray:
    """A transformation that changes lengths: every third piece, in turns, is played twice."""
    return np.concatenate([ids[:-1], ids[1:]]) if (piece + epoch) % 3 == 0 else ids


def check_lane(batches: list[Batch], b: int, pieces: dict[int, np.ndarray], segment: int) -> list[int]:
    """Compare all that lane b was given with its pieces laid end to end; returns which pieces it began, in order."""
    real = [slice(0, int(batch.segment_len[b])) for batch in batches]

    def seen(name: str) -> np.ndarray:
        return np.concatenate([getattr(batch, name)[b, s].numpy() for batch, s in zip(batches, real, strict=True)])

    tokens, piece = seen("tokens"), seen("piece")
    begins = np.flatnonzero(tokens == BEGIN)
    order = piece[begins].tolist()
    laid = [pieces[i] for i in order]
    own = np.concatenate([np.full(len(ids) - 1, i) for i, ids in zip(order, laid, strict=True)])[: len(tokens)]
    np.testing.assert_array_equal(tokens, np.concatenate([ids[:-1] for ids in laid])[: len(tokens)])
    np.testing.assert_array_equal(seen("targets"), np.concatenate([ids[1:] for ids in laid])[: len(tokens)])
    np.testing.assert_array_equal(piece, own)

    starts = seen("segment_start")
    for position in range(len(tokens)):
        piece_begin = begins[begins <= position][-1]
        segment_begin = position // segment * segment
        assert starts[position] == max(piece_begin - segment_begin, 0)
    for number, batch in enumerate(batches):
        assert bool(batch.reset[b]) == (number * segment in begins)
        padding = slice(int(batch.segment_len[b]), None)
        assert (batch.tokens[b, padding] == PAD).all()
        assert (batch.targets[b, padding] == PAD).all()
        assert (batch.piece[b, padding] == -1).all()
        row = batch.segment_start[b]
        assert (row.diff() >= 0).all()
        assert ((row >= 0) & (row <= torch.arange(segment))).all()
    return order


cases = {
    "lengths": st.lists(st.integers(2, 40), min_size=1, max_size=8),
    "lanes": st.integers(1, 4),
    "segment": st.integers(1, 16),
    "seed": st.integers(0, 3),
}


@settings(deadline=None, max_examples=60)
@given(**cases)
def test_endless_lanes_are_whole_pieces_end_to_end_without_padding(lengths, lanes, segment, seed):
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(lengths, Path(folder) / "store")
        stream = stream_of(store, lanes=lanes, segment=segment, seed=seed)
        batches = take(stream, 12)
        pieces = {i: store.piece(i) for i in range(len(lengths))}
        begun = Counter(itertools.chain(*(check_lane(batches, b, pieces, segment) for b in range(lanes))))
        del store, pieces
    assert all((batch.segment_len == segment).all() for batch in batches)
    assert stream.waste == 0
    counts = [begun[i] for i in range(len(lengths))]
    assert max(counts) - min(counts) <= 1  # nobody begins an epoch while a piece of the last one is left


@settings(deadline=None, max_examples=60)
@given(**cases, world_size=st.integers(1, 3))
def test_one_pass_predicts_every_token_once(lengths, lanes, segment, seed, world_size):
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(lengths, Path(folder) / "store")
        predicted: dict[int, list[int]] = {i: [] for i in range(len(lengths))}
        given_out = 0
        for rank in range(world_size):
            stream = stream_of(
                store, lanes=lanes, segment=segment, seed=seed, epochs=1, rank=rank, world_size=world_size
            )
            batches = list(stream)
            for b in range(lanes):
                for batch in batches:
                    for i, target in zip(batch.piece[b].tolist(), batch.targets[b].tolist(), strict=True):
                        if i >= 0:
                            predicted[i].append(target)
                if any(batch.segment_len[b] for batch in batches):
                    check_lane(batches, b, {i: store.piece(i) for i in range(len(lengths))}, segment)
            real = sum(int(batch.segment_len.sum()) for batch in batches)
            given_out += real
            assert stream.waste == pytest.approx(1 - real / (len(batches) * lanes * segment) if batches else 0)
            # Each piece goes to the lane dealt least: no lane ends later than the mean plus one piece (Graham 1966).
            mean = sum(n - 1 for n in lengths) / (world_size * lanes)
            assert len(batches) * segment < mean + max(lengths) - 1 + segment
        assert predicted == {i: store.piece(i)[1:].tolist() for i in range(len(lengths))}
        assert given_out == stream.epoch_positions == sum(n - 1 for n in lengths)
        del stream, store


@pytest.mark.parametrize("transform", [None, lengthen_some], ids=["plain", "lengths-change"])
def test_every_epoch_begins_every_piece_once_over_all_ranks(store, transform):
    begun: Counter[tuple[int, int]] = Counter()

    def recording(ids, piece, epoch):
        begun[epoch, piece] += 1
        return transform(ids, piece, epoch) if transform else ids

    for rank in range(2):
        take(stream_of(store, rank=rank, world_size=2, transform=recording), 40)
    whole_epochs = {(epoch, piece) for epoch in range(5) for piece in range(len(store.pieces))}
    assert whole_epochs <= begun.keys()
    assert set(begun.values()) == {1}


@pytest.mark.parametrize("transform", [None, lengthen_some], ids=["plain", "lengths-change"])
@pytest.mark.parametrize("epochs", [None, 1], ids=["endless", "one-pass"])
def test_one_rank_of_four_lanes_is_two_ranks_of_two(store, epochs, transform):
    whole = take(stream_of(store, lanes=4, epochs=epochs, transform=transform), 30)
    ranks = [
        take(stream_of(store, lanes=2, rank=rank, world_size=2, epochs=epochs, transform=transform), 30)
        for rank in range(2)
    ]
    for name in vars(whole[0]):
        one = torch.cat([getattr(batch, name) for batch in whole])
        assert len(one) > 0
        for rank, batches in enumerate(ranks):
            mine = [getattr(batch, name)[2 * rank : 2 * rank + 2] for batch in whole]
            torch.testing.assert_close(
                torch.cat([getattr(batch, name) for batch in batches]), torch.cat(mine[: len(batches)])
            )
    for rank, batches in enumerate(ranks):  # a rank that stopped earlier had nothing left
        assert not any(batch.segment_len[2 * rank : 2 * rank + 2].any() for batch in whole[len(batches) :])


def test_a_changed_piece_is_streamed_whole(store):
    batches = take(stream_of(store, lanes=2, epochs=1, transform=lengthen_some), 50)
    changed = {i: lengthen_some(store.piece(i), i, 0) for i in range(len(store.pieces))}
    orders = [check_lane(batches, b, changed, 8) for b in range(2)]
    assert sorted(itertools.chain(*orders)) == list(range(len(store.pieces)))


def test_same_seed_same_stream_other_seed_other_stream(store):
    first, again, other = (take(stream_of(store, seed=seed), 20) for seed in (5, 5, 6))
    assert all(map(same, first, again))
    assert not all(map(same, first, other))


def test_order_is_new_each_epoch(store):
    order: dict[int, list[int]] = {}

    def recording(ids, piece, epoch):
        order.setdefault(epoch, []).append(piece)
        return ids

    take(stream_of(store, lanes=1, transform=recording), 60)
    assert sorted(order[0]) == sorted(order[1]) == list(range(len(store.pieces)))
    assert order[0] != order[1]


def test_one_pass_deals_longest_first_and_measures_its_waste(tmp_path):
    store = make_store([5, 11, 5], tmp_path / "store")  # 4, 10 and 4 positions
    stream = stream_of(store, lanes=2, segment=4, epochs=1)
    assert stream.waste == 0
    batches = list(stream)
    assert [batch.segment_len.tolist() for batch in batches] == [[4, 4], [4, 4], [2, 0]]
    assert [batch.reset.tolist() for batch in batches] == [[True, True], [False, True], [False, False]]
    assert stream.waste == 1 - 18 / 24
    assert "25.00%" in stream.describe()
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("positions", [1, 7, 8, 9, 16, 24], ids=lambda n: f"piece-of-{n}")
def test_one_piece_over_and_over_at_a_segment_of_8(tmp_path, positions):
    store = make_store([positions + 1], tmp_path / "store")
    batches = take(stream_of(store, lanes=1), 12)
    order = check_lane(batches, 0, {0: store.piece(0)}, 8)
    assert len(order) == -(-12 * 8 // positions)


@pytest.mark.parametrize("epochs", [None, 1], ids=["endless", "one-pass"])
def test_the_memory_clock_follows_the_pieces(store, epochs):
    stack = MemoryStack([4], lanes=3, kv_heads=1, head_dim=1, max_segment=8)
    offset = [0, 0, 0]
    for batch in take(stream_of(store, epochs=epochs), 30):
        stack.reset(lanes=batch.reset)
        stack.advance(8, segment_start=batch.segment_start, segment_len=batch.segment_len)
        for b in range(3):
            for token in batch.tokens[b, : batch.segment_len[b]].tolist():
                offset[b] = 1 if token == BEGIN else offset[b] + 1
        assert stack.clock.length.tolist() == offset


@pytest.mark.parametrize("transform", [None, lengthen_some], ids=["plain", "lengths-change"])
@pytest.mark.parametrize("epochs", [None, 1], ids=["endless", "one-pass"])
@pytest.mark.parametrize("after", [0, 1, 3, 11])
def test_a_resumed_stream_continues_identically(store, after, epochs, transform):
    options = {"epochs": epochs, "transform": transform}
    stream = stream_of(store, **options)
    take(stream, after)
    state = json.dumps(stream.state_dict())
    rest = take(stream, 40)
    resumed = stream_of(store, **options)
    resumed.load_state_dict(json.loads(state))
    again = take(resumed, 40)
    assert len(again) == len(rest)
    assert all(map(same, rest, again))
    assert resumed.waste == stream.waste
    assert resumed.state_dict() == stream.state_dict()


def ranks_of(store, lanes_of_each, **options):
    ranks = 4 // lanes_of_each
    return [stream_of(store, lanes=lanes_of_each, rank=r, world_size=ranks, **options) for r in range(ranks)]


def whole_state(ranks):
    states = [stream.state_dict() for stream in ranks]
    return {**states[0], "lanes": [lane for state in states for lane in state["lanes"]]}


@pytest.mark.parametrize("transform", [None, lengthen_some], ids=["plain", "lengths-change"])
@pytest.mark.parametrize("after", [0, 3, 40])
@pytest.mark.parametrize("then", [1, 2, 4], ids="then-{}-lanes-a-rank".format)
@pytest.mark.parametrize("first", [1, 2, 4], ids="{}-lanes-a-rank".format)
def test_lanes_resume_on_any_number_of_ranks(store, first, then, after, transform):
    one = stream_of(store, lanes=4, transform=transform)
    expected = take(one, after + 20)[after:]
    before = ranks_of(store, first, transform=transform)
    for stream in before:
        take(stream, after)
    resumed = ranks_of(store, then, transform=transform)
    for stream in resumed:
        stream.load_state_dict(json.loads(json.dumps(whole_state(before))))
    assert whole_state(resumed) == whole_state(before)
    for batch in expected:
        parts = [next(stream) for stream in resumed]
        assert same(batch, type(batch)(*(torch.cat([getattr(p, name) for p in parts]) for name in vars(batch))))


def test_the_state_of_one_of_several_ranks_is_not_enough(store):
    rank = ranks_of(store, 2)[1]
    with pytest.raises(ValueError, match="must tell of all 4 lanes of all ranks, got 2"):
        rank.load_state_dict(rank.state_dict())


def test_a_state_that_no_deal_leads_to_is_refused_and_changes_nothing(store):
    stream = stream_of(store)
    take(stream, 3)
    state = json.loads(json.dumps(stream.state_dict()))
    before = stream.state_dict()
    reading = next(b for b, lane in enumerate(state["lanes"]) if lane["piece"] >= 0)
    state["lanes"][reading]["begun"] += 1
    with pytest.raises(ValueError, match=rf"reads piece \d+ of epoch \d in lane {reading}, here it would read"):
        stream.load_state_dict(state)
    assert stream.state_dict() == before


def test_a_stream_resumes_at_another_segment_length(store):
    stream = stream_of(store, lanes=1)
    take(stream, 5)
    resumed = stream_of(store, lanes=1, segment=20)
    resumed.load_state_dict(stream.state_dict())
    expected = torch.cat([batch.tokens for batch in take(stream, 10)], dim=1)
    torch.testing.assert_close(torch.cat([batch.tokens for batch in take(resumed, 4)], dim=1), expected)


@pytest.mark.parametrize(
    ("other", "named"),
    [({"lanes": 2}, "lanes"), ({"seed": 1}, "seed"), ({"pieces": [0, 1]}, "pieces"), ({"epochs": 1}, "epochs")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_state_of_another_stream_is_refused(store, other, named):
    with pytest.raises(ValueError, match=f"its {named} is"):
        stream_of(store, **other).load_state_dict(stream_of(store).state_dict())


def test_a_state_from_another_transform_is_refused_when_the_piece_is_too_short(tmp_path):
    store = make_store([10], tmp_path / "store")
    stream = stream_of(store, lanes=1, transform=lengthen_some)
    take(stream, 2)  # 16 positions of the 18 that the piece played twice has
    with pytest.raises(ValueError, match="token 16 of piece 0, which has 10 ids"):
        stream_of(store, lanes=1).load_state_dict(stream.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 0}, "lanes must be at least 1, got 0"),
        ({"segment": 0}, "segment must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0\.\.1 .* got 2"),
        ({"epochs": 3}, "epochs must be None .* or 1 .* got 3"),
        ({"pieces": []}, "at least one piece"),
        ({"pieces": [10]}, "indices below 10, got 10"),
    ],
    ids=["lanes", "segment", "seed", "rank", "epochs", "no-pieces", "unknown-piece"],
)
def test_bad_arguments_are_named(store, options, message):
    with pytest.raises(ValueError, match=message):
        stream_of(store, **options)


def test_a_transform_that_returns_nothing_to_predict_is_refused(store):
    stream = stream_of(store, transform=lambda ids, piece, epoch: ids[:1])
    with pytest.raises(ValueError, match="transform must return at least BEGIN and END, got 1 ids"):
        next(stream)


def test_batch_moves_to_a_device(store):
    batch = next(stream_of(store))
    moved = batch.to("cpu")
    assert same(batch, moved)
    assert batch.to("meta").tokens.device.type == "meta"
    assert [getattr(batch, name).dtype for name in vars(batch)] == [torch.int64] * 4 + [torch.bool, torch.int64]
