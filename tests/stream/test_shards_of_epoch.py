"""``BatchStream.shards``: what a rank needs of an epoch."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream import BatchStream, TokenDataset
from tests.stream.conftest import DatasetOf

NUM_TOKENS = 1000  # 63 shards of 16


def shards_at(dataset: TokenDataset, positions: "np.ndarray[Any, Any]", length: int) -> set[int]:
    """Numbers of the shards that windows touch."""
    touched = positions[:, None] + np.arange(length)
    return set((np.searchsorted(dataset.bounds, touched.ravel(), side="right") - 1).tolist())


def stream_of(dataset: TokenDataset, *, rank: int = 0, num_ranks: int = 1, **options: Any) -> BatchStream:
    return BatchStream(
        dataset, batch_size=2, context_length=4, dp_rank=rank, dp_world_size=num_ranks, epochs=1, **options
    )


@given(
    num_ranks=st.sampled_from([1, 2, 3]),
    block_tokens=st.sampled_from([16, 32, 48]),
    buffer_blocks=st.integers(1, 4),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_rank_reads_no_shard_that_is_not_named(
    dataset_of: DatasetOf, num_ranks: int, block_tokens: int, buffer_blocks: int, seed: int
) -> None:
    """With a lane for each rank, what a rank reads of the epoch is in the shards that were named, but for edges."""
    dataset = dataset_of(NUM_TOKENS)
    for rank in range(num_ranks):
        options = {"block_tokens": block_tokens, "buffer_blocks": buffer_blocks, "lanes": num_ranks, "seed": seed}
        with stream_of(dataset, rank=rank, num_ranks=num_ranks, order="block-shuffle", **options) as stream:
            named = stream.shards()
            inputs = np.concatenate([stream.positions for _ in stream])

        assert len(named) == len(set(named))
        # Shards of 16 have no edges but of nothing: 1/64 of them is less than a token.
        assert shards_at(dataset, inputs, 5) <= set(named)


@pytest.mark.parametrize("order", ["shuffle", "random"])
def test_an_order_that_reads_anything_needs_all(dataset_of: DatasetOf, order: str) -> None:
    """Orders that mix everything need every shard, in whatever order."""
    dataset = dataset_of(NUM_TOKENS)
    stream = BatchStream(dataset, batch_size=2, context_length=4, order=order, dp_rank=1, dp_world_size=2)

    assert stream.shards() == list(range(63))


def test_a_stream_that_has_gone_on_needs_the_rest_of_its_epoch(dataset_of: DatasetOf) -> None:
    """From the middle of an epoch only what is left of it is named, in the order of need; then the next epoch."""
    stream = BatchStream(dataset_of(321), batch_size=8, context_length=4, order="sequential", epochs=2)
    assert stream.shards() == list(range(21))

    for _ in range(5):
        next(stream)
    rest = stream.shards()
    for _ in range(5):
        next(stream)

    assert rest == list(range(10, 21))
    assert stream.shards() == list(range(21))


def test_an_edge_is_worth_its_shard_only_to_who_reads_everything(write_dataset: Any) -> None:
    """The first token of a shard, a target of the window before it: with lanes of its own a rank does without the shard."""
    dataset = write_dataset(np.arange(513) % 1000, shard_tokens=128)  # four shards, and one of a token
    options: dict[str, Any] = {"order": "block-shuffle", "block_tokens": 128, "buffer_blocks": 1}
    ranks = [stream_of(dataset, rank=rank, num_ranks=2, lanes=2, **options) for rank in range(2)]
    alone = stream_of(dataset, **options)
    read = {next(alone)[0][0, 0].item() // 128 for _ in range(48)}  # of 64 steps, 16 for each block
    [block] = {0, 1, 2, 3} - read
    assert block < 3, "the last shard is one token: no edge, choose another seed"

    assert sorted(ranks[0].shards() + ranks[1].shards()) == [0, 1, 2, 3, 4]
    assert alone.shards() == [block, block + 1]
