"""Laws of the orders, against lists that are really shuffled; and the golden vectors of order version 1."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.order.orders import (
    ORDER_NAMES,
    ORDER_VERSION,
    BlockShuffle,
    Order,
    PlannedRange,
    Random,
    Sequential,
    Shuffle,
    num_windows,
)
from shardstream.order.permutation import Permutation

GOLDEN = json.loads((Path(__file__).parent / "golden" / "v1.json").read_text("utf-8"))
# What ORDER.md gives the mixing of.
BLOCK_TOKENS, BUFFER_BLOCKS = 2**20, 64
SMALL_BLOCKS = {"block_tokens": 70, "buffer_blocks": 3, "lanes": 1}


def order_of(name: str, num_tokens: int, context_length: int, seed: int, **parameters: int) -> Order:
    if name == "sequential":
        return Sequential(num_tokens, context_length)
    if name == "shuffle":
        return Shuffle(num_tokens, context_length, seed)
    if name == "random":
        return Random(num_tokens, context_length, seed)
    return BlockShuffle(num_tokens, context_length, seed, **parameters)


def starts_of(order: Order, samples: Iterable[int]) -> list[int]:
    starts: list[int] = order.starts(np.fromiter(samples, dtype=np.int64)).tolist()
    return starts


def samples_per_epoch(order: Order) -> int:
    assert order.samples_per_epoch is not None
    return order.samples_per_epoch


def epoch_of(order: Order, epoch: int) -> list[int]:
    length = samples_per_epoch(order)
    return starts_of(order, range(epoch * length, (epoch + 1) * length))


def permuted(items: list[Any], key: str) -> list[Any]:
    return [items[place] for place in Permutation(len(items), key)(np.arange(len(items)))] if items else []


def cut(items: list[Any], length: int) -> list[list[Any]]:
    return [items[first : first + length] for first in range(0, len(items), length)]


class ListShuffle:
    """Block shuffle as it is said: lists of starts, cut, shuffled and dealt."""

    def __init__(self, num_tokens: int, context_length: int, seed: int, **parameters: int) -> None:
        self.windows = [start for start in range(num_tokens) if self.is_window(start, num_tokens, context_length)]
        self.key = f"shardstream order 1/{seed}"
        self.block_windows = parameters["block_tokens"] // context_length
        self.buffer_windows = self.block_windows * parameters["buffer_blocks"]
        self.lanes = parameters["lanes"]

    @staticmethod
    def is_window(start: int, num_tokens: int, context_length: int) -> bool:
        return start % context_length == 0 and start + context_length < num_tokens

    def lanes_of_epoch(self, epoch: int) -> list[list[int]]:
        """The lanes' parts of the block sequence, in which nothing is mixed yet."""
        blocks = permuted(cut(self.windows, self.block_windows), f"{self.key}/{epoch}/blocks")
        sequence = list(itertools.chain.from_iterable(blocks))
        length = len(sequence) // self.lanes
        return cut(sequence, length)[: self.lanes] if length else []

    def epoch(self, epoch: int) -> list[int]:
        dealt = [
            [
                start
                for number, buffer in enumerate(cut(part, self.buffer_windows))
                for start in permuted(buffer, f"{self.key}/{epoch}/buffer/{lane}/{number}")
            ]
            for lane, part in enumerate(self.lanes_of_epoch(epoch))
        ]
        return [start for row in zip(*dealt, strict=True) for start in row]


@st.composite
def block_shuffles(draw: st.DrawFn) -> dict[str, int]:
    """Arguments of a small block shuffle that has at least one window in each lane."""
    context_length = draw(st.integers(1, 5))
    lanes = draw(st.integers(1, 4))
    windows = draw(st.integers(lanes, 60))
    return {
        "num_tokens": windows * context_length + 1 + draw(st.integers(0, context_length - 1)),
        "context_length": context_length,
        "seed": draw(st.integers(-3, 2**64)),
        "block_tokens": context_length * draw(st.integers(1, 8)),
        "buffer_blocks": draw(st.integers(1, 4)),
        "lanes": lanes,
    }


@st.composite
def orders(draw: st.DrawFn) -> tuple[Order, int, int]:
    """Any small order, its dataset's length and its context length."""
    arguments = draw(block_shuffles())
    num_tokens, context_length = arguments["num_tokens"], arguments["context_length"]
    return order_of(draw(st.sampled_from(ORDER_NAMES)), **arguments), num_tokens, context_length


def test_every_small_dataset_is_covered_exactly() -> None:
    """Promise 12: for all small T and m there are (T - 1) // m windows, and an epoch has each token as target once."""
    for num_tokens, context_length in itertools.product(range(40), range(1, 8)):
        windows = max(0, num_tokens - 1) // context_length
        assert num_windows(num_tokens, context_length) == windows
        if not windows:
            continue
        block_shuffle = BlockShuffle(
            num_tokens, context_length, 5, block_tokens=3 * context_length, buffer_blocks=2, lanes=1
        )
        for order in (Shuffle(num_tokens, context_length, 5), block_shuffle, Sequential(num_tokens, context_length)):
            targets = [start + 1 + i for start in epoch_of(order, 1) for i in range(context_length)]

            assert sorted(targets) == list(range(1, windows * context_length + 1))


@given(block_shuffles(), st.integers(0, 3))
def test_block_shuffle_is_lists_cut_and_shuffled(arguments: dict[str, int], epoch: int) -> None:
    """Block shuffle is blocks permuted, cut into lanes, cut into buffers, each buffer permuted, and lanes dealt in turn."""
    order = BlockShuffle(**arguments)

    assert epoch_of(order, epoch) == ListShuffle(**arguments).epoch(epoch)


@given(block_shuffles(), st.integers(0, 3))
def test_each_lane_draws_its_own_part(arguments: dict[str, int], epoch: int) -> None:
    """Lane l draws each window of the l-th N-th of the block sequence once; fewer than N windows wait."""
    order = BlockShuffle(**arguments)

    starts = epoch_of(order, epoch)

    parts = ListShuffle(**arguments).lanes_of_epoch(epoch)
    lanes = order.lanes
    assert [sorted(starts[lane::lanes]) for lane in range(lanes)] == [sorted(part) for part in parts]
    assert 0 <= num_windows(arguments["num_tokens"], arguments["context_length"]) - len(set(starts)) < lanes


@given(block_shuffles(), st.integers(0, 3))
def test_shuffle_is_a_list_shuffled(arguments: dict[str, int], epoch: int) -> None:
    """Shuffle draws the windows in the order of a permutation of all; sequential draws them as they stand."""
    num_tokens, context_length, seed = (arguments[name] for name in ("num_tokens", "context_length", "seed"))
    windows = ListShuffle(**arguments).windows

    shuffled = epoch_of(Shuffle(num_tokens, context_length, seed), epoch)
    in_sequence = epoch_of(Sequential(num_tokens, context_length), epoch)

    assert shuffled == permuted(windows, f"shardstream order 1/{seed}/{epoch}/windows")
    assert in_sequence == windows


@given(orders(), st.lists(st.integers(0, 300)))
def test_many_samples_are_answered_like_each_alone(case: tuple[Order, int, int], samples: list[int]) -> None:
    """Any samples in any order, of any epochs, have the starts that each has alone; their shape is kept."""
    order, num_tokens, context_length = case

    together = starts_of(order, samples)

    assert together == [starts_of(order, [sample])[0] for sample in samples]
    assert all(0 <= start < num_tokens - context_length for start in together)
    column = np.array(samples, dtype=np.int64)[:, None]
    assert order.starts(column).tolist() == [[start] for start in together]


@pytest.mark.parametrize("name", ["shuffle", "block-shuffle"])
def test_another_epoch_or_seed_is_another_order(name: str) -> None:
    """No two epochs and no two seeds draw the windows in one order."""
    epochs = [
        tuple(epoch_of(order_of(name, 1001, 10, seed, **SMALL_BLOCKS), epoch))
        for seed in (-1, 0, 1, 2**70)
        for epoch in range(8)
    ]

    assert len(set(epochs)) == len(epochs)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((0, 1), (1, 0), id="seed-epoch-exchanged"),
        pytest.param((0, 0), (0, 1), id="next-epoch"),
        pytest.param((0, 0), (1, 0), id="next-seed"),
        pytest.param((1, 11), (11, 1), id="digits-exchanged"),
    ],
)
def test_seed_and_epoch_are_not_added(one: tuple[int, int], other: tuple[int, int]) -> None:
    """The order of seed 0 in epoch 1 is not that of seed 1 in epoch 0, nor a shift of it; matches are as rare as chance."""
    windows = 2**16 + 1

    first, second = (np.array(epoch_of(Shuffle(windows + 1, 1, seed), epoch)) for seed, epoch in (one, other))

    shifts = (np.argsort(second)[first] - np.arange(windows)) % windows
    # Matches at one shift are one on average, by Poisson's law: 13 at any of 65,537 shifts, 4 times in a million.
    assert np.bincount(shifts).max() < 13


def test_all_random_starts_occur_as_often() -> None:
    """Random starts are uniform on [0, T - m): first and last are among them, each as often as by chance."""
    num_starts = 23
    counts = np.bincount(starts_of(Random(num_starts + 7, 7, 1), range(23_000)))

    assert len(counts) == num_starts
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_square < num_starts - 1 + 5 * math.sqrt(2 * (num_starts - 1))


def test_random_starts_of_a_huge_range_are_uniform() -> None:
    """Where a modulo of 64 bits would prefer the first two thirds by one half, random starts are uniform all the same."""
    num_starts = 3 * 2**61

    starts = np.array(starts_of(Random(num_starts + 1, 1, 1), range(30_000)))

    counts = np.bincount(starts // 2**61)
    assert len(counts) == 3
    assert max(abs(counts - 10_000)) < 5 * math.sqrt(30_000 * 2 / 9)


def test_random_starts_are_independent() -> None:
    """A random start says nothing of the next, or of that of another seed."""
    starts, others = (np.array(starts_of(Random(10**12, 1024, seed), range(100_000))) for seed in (0, 1))

    assert abs(np.corrcoef(starts[1:], starts[:-1])[0, 1]) < 5 / math.sqrt(100_000)
    assert abs(np.corrcoef(starts, others)[0, 1]) < 5 / math.sqrt(100_000)
    assert not set(starts.tolist()) & set(others.tolist())


def test_the_only_random_start_is_drawn_always() -> None:
    """Where one window fits, every random start is 0."""
    assert set(starts_of(Random(8, 7, 3), range(100))) == {0}


def groups_of(ranges: Iterator[PlannedRange], last_sample: int) -> list[tuple[int, set[int]]]:
    """Sample numbers of the ranges, and the positions planned at each: up to the last sample, and one beyond."""
    groups: list[tuple[int, set[int]]] = []
    for sample, group in itertools.groupby(ranges, key=lambda planned: planned.sample):
        groups.append((sample, {position for _, start, stop in group for position in range(start, stop)}))
        if sample > last_sample:
            break
    return groups


@given(block_shuffles(), st.sampled_from(["block-shuffle", "sequential"]), st.data())
def test_ranges_are_exactly_what_their_samples_read(arguments: dict[str, int], name: str, data: st.DataObject) -> None:
    """Ranges of one sample number are the windows, in the lanes asked for, of all samples up to the next such number."""
    order, context_length = order_of(name, **arguments), arguments["context_length"]
    first = data.draw(st.integers(0, 3 * samples_per_epoch(order)))
    lanes = data.draw(st.lists(st.integers(0, order.lanes - 1), min_size=1, unique=True))

    groups = groups_of(order.ranges(first, lanes), first + 2 * samples_per_epoch(order))

    assert groups[0][0] <= first
    assert all(sample > first for sample, _ in groups[1:])
    for (sample, positions), (next_sample, _) in itertools.pairwise(groups):
        assert sample < next_sample
        samples = [n for n in range(sample, next_sample) if n % order.lanes in lanes]
        windows = [range(start, start + context_length + 1) for start in starts_of(order, samples)]
        assert positions == set(itertools.chain.from_iterable(windows))


@given(block_shuffles(), st.sampled_from(["block-shuffle", "sequential"]), st.data())
def test_a_planned_range_lies_in_the_dataset(arguments: dict[str, int], name: str, data: st.DataObject) -> None:
    """No planned range is empty or leaves the dataset, and their sample numbers never fall."""
    order = order_of(name, **arguments)
    first = data.draw(st.integers(0, 3 * samples_per_epoch(order)))

    ranges = list(itertools.islice(order.ranges(first, range(order.lanes)), 100))

    assert all(0 <= planned.start < planned.stop <= arguments["num_tokens"] for planned in ranges)
    assert [planned.sample for planned in ranges] == sorted(planned.sample for planned in ranges)


@pytest.mark.parametrize("name", ["shuffle", "random"])
def test_orders_that_read_single_windows_plan_no_ranges(name: str) -> None:
    """Shuffle and random plan no ranges: their windows lie anywhere."""
    order = order_of(name, 1001, 10, 0)

    assert list(order.ranges(0, [0])) == []
    assert order.mixed_samples == 0


def test_long_sequential_reads_are_planned_in_pieces() -> None:
    """Sequential reads are planned about 2**20 tokens at a time, each piece as long as whole windows allow."""
    order = Sequential(2**21 + 500, 1000)

    ranges = list(itertools.islice(order.ranges(5, [0]), 4))

    assert ranges == [
        PlannedRange(5, 5_000, 1_053_001),
        PlannedRange(1053, 1_053_000, 2_097_001),
        PlannedRange(2097, 0, 1_048_001),
        PlannedRange(3145, 1_048_000, 2_096_001),
    ]


@given(block_shuffles())
def test_a_buffer_is_never_more_than_mixed_samples(arguments: dict[str, int]) -> None:
    """From the first sample of a buffer to that of the next are ``mixed_samples``, or fewer at the end of an epoch."""
    order = BlockShuffle(**arguments)

    groups = groups_of(order.ranges(0, [0]), 2 * order.samples_per_epoch)

    lengths = [following - sample for (sample, _), (following, _) in itertools.pairwise(groups)]
    assert max(lengths) == lengths[0] == order.mixed_samples


def test_parameters_tell_orders_apart() -> None:
    """The parameters are those that only this order has, as they were given."""
    assert order_of("block-shuffle", 1001, 10, 0, **SMALL_BLOCKS).parameters == SMALL_BLOCKS
    assert [order_of(name, 1001, 10, 0).parameters for name in ("shuffle", "sequential", "random")] == [{}, {}, {}]
    assert {order_of(name, 1001, 10, 0, **SMALL_BLOCKS).name for name in ORDER_NAMES} == set(ORDER_NAMES)


def test_block_shuffle_mixes_a_buffer_as_if_uniformly() -> None:
    """By default, neighbours come from one block as rarely as 64 blocks allow, and lie as far apart as 98 % of a shuffle."""
    num_tokens, context_length = 2**30 + 1, 1024
    order = BlockShuffle(
        num_tokens,
        context_length,
        0,
        block_tokens=BLOCK_TOKENS,
        buffer_blocks=BUFFER_BLOCKS,
        lanes=1,
    )

    starts = np.array(epoch_of(order, 0))

    blocks, block_windows = starts // BLOCK_TOKENS, BLOCK_TOKENS // context_length
    share = (block_windows - 1) / (BUFFER_BLOCKS * block_windows - 1)
    assert abs((blocks[1:] == blocks[:-1]).mean() - share) < 5 * math.sqrt(share / len(blocks))
    distance = abs(np.diff(starts)).mean() / num_tokens
    # From epoch to epoch the mean distance varies by 0.0013: it is that of 16 buffers, of 64 blocks each.
    assert abs(distance - (1 - share) / 3) < 5 * 0.0013


def test_golden_vectors_cover_every_order() -> None:
    """The golden vectors are those of this version, and no order is without them."""
    assert GOLDEN["order_version"] == ORDER_VERSION
    assert {case["order"] for case in GOLDEN["cases"]} == set(ORDER_NAMES)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{case['order']}-{case['num_tokens']}-{case['seed']}-{case['first_sample']}-{number}")
        for number, case in enumerate(GOLDEN["cases"])
    ],
)
def test_golden_vectors_never_change(case: dict[str, Any]) -> None:
    """Promise 13: the first 16 starts, and the SHA-256 of 10,000 as little-endian int64, are the ones written down."""
    order = order_of(case["order"], case["num_tokens"], case["context_length"], case["seed"], **case["parameters"])

    starts = order.starts(case["first_sample"] + np.arange(10_000))

    assert starts[:16].tolist() == case["starts"]
    assert hashlib.sha256(starts.astype("<i8").tobytes()).hexdigest() == case["sha256"]
