"""Which shards a stream needs, and when."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstream
from shardstream import TokenDataset
from shardstream.order.orders import BlockShuffle, Sequential, Shuffle
from shardstream.stream import shard_plan
from shardstream.stream.shard_plan import ShardPlan, working_set_bytes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """A thousand tokens behind a URL, in shards of 64."""
    folder = tmp_path_factory.mktemp("plan")
    with shardstream.DatasetWriter(f"memory://{folder}", vocab_size=1000, shard_tokens=64) as writer:
        writer.append(np.arange(1000))
    return shardstream.open(f"memory://{folder}", cache_dir=folder)


class Recorder:
    """In place of a dataset that downloads: notes what is expected."""

    def __init__(self, dataset: TokenDataset) -> None:
        self.manifest, self.bounds, self.cache = dataset.manifest, dataset.bounds, dataset.cache
        self.said: list[dict[str, Any]] = []

    def expect(self, owner: object, **said: Any) -> None:
        del owner
        self.said.append({"coming": (), "pieces": (), **said})


def touched(recorder: Recorder, starts: Sequence[int], length: int) -> set[int]:
    positions = np.asarray(starts)[:, None] + np.arange(length)
    return set((recorder.bounds.searchsorted(positions.ravel(), side="right") - 1).tolist())


@given(data=st.data())
def test_what_a_step_reads_was_expected(data: st.DataObject, dataset: TokenDataset) -> None:
    """At each step of any block-shuffle each shard that it touches is in use, or a piece of it is."""
    recorder = Recorder(dataset)
    m = data.draw(st.integers(1, 20))
    lanes = data.draw(st.sampled_from([1, 2, 3]))
    order = BlockShuffle(
        1000,
        m,
        data.draw(st.integers(0, 9)),
        block_tokens=m * data.draw(st.integers(1, 20)),
        buffer_blocks=data.draw(st.integers(1, 4)),
        lanes=lanes,
    )
    lane = data.draw(st.integers(0, lanes - 1))
    num_rows = lanes * data.draw(st.integers(1, 9))
    first = lanes * data.draw(st.integers(0, 100))
    plan = ShardPlan(recorder, order, [lane], sample=first, stop_sample=first + 20 * num_rows)  # type: ignore[arg-type]
    for sample in range(first, first + 20 * num_rows, num_rows):
        plan.go_to(sample, sample + num_rows, ())
        said = recorder.said[-1]
        samples = np.arange(sample + lane, sample + num_rows, lanes)
        pieces = {shard for shard, _, _ in said["pieces"]}

        assert touched(recorder, order.starts(samples).tolist(), m + 1) <= {*said["in_use"], *pieces, *said["coming"]}
    plan.close()
    assert recorder.said[-1]["in_use"] == ()


def test_the_last_target_of_a_block_is_a_piece(dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache cannot hold all, a token of the next shard is a piece; where it can, that shard just comes."""
    assert dataset.cache is not None
    order = BlockShuffle(1000, 8, 0, block_tokens=64, buffer_blocks=1, lanes=1)
    pieces = []
    for bound in (None, 1999):
        recorder = Recorder(dataset)
        monkeypatch.setattr(dataset.cache, "max_bytes", bound)
        ShardPlan(recorder, order, [0], sample=0, stop_sample=None).go_to(0, 4, ())  # type: ignore[arg-type]
        [said] = recorder.said
        assert len(said["in_use"]) == 1
        edges = {shard + 1 for shard in said["in_use"]}
        assert edges <= set(said["coming"]) or bound
        pieces.append([piece for piece in said["pieces"] if piece[0] in edges])

    [edge] = pieces[1]
    assert pieces[0] == []
    assert edge[1:] == (0, 1)


@pytest.mark.parametrize(("lanes", "groups_ahead"), [(1, 64), (2, 64), (1, 5), (2, 5)])
def test_enough_is_coming_to_keep_the_wire_busy(
    dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch, lanes: int, groups_ahead: int
) -> None:
    """Shards that a cache keeps are no download when they are needed again, so others are coming, in the order of need."""
    monkeypatch.setattr(shard_plan, "_GROUPS_AHEAD", groups_ahead)
    recorder = Recorder(dataset)
    order = BlockShuffle(1000, 8, 3, block_tokens=32, buffer_blocks=1, lanes=lanes)  # two blocks of a shard
    plan = ShardPlan(recorder, order, [0], sample=0, stop_sample=None)  # type: ignore[arg-type]
    groups = itertools.islice(shard_plan._groups(recorder, order, [0], 0, None), 200)  # type: ignore[arg-type]
    # Who reads one lane of two takes what is little of a shard as a piece.
    parts = [(group.sample, [*group.shards, *(e.shard for e in group.edges if lanes == 1)]) for group in groups]
    for number, (sample, _) in enumerate(parts[:60]):
        plan.go_to(sample, sample + lanes, ())
        in_use, coming = recorder.said[number]["in_use"], recorder.said[number]["coming"]
        passed = {shard for _, part in parts[: number + 1] for shard in part}
        following = {shard for _, part in parts[number + 1 : number + 1 + groups_ahead] for shard in part}

        assert len({*coming} - passed) >= min(shard_plan._SHARDS_AHEAD, len(following - passed))
        needed = dict.fromkeys(shard for _, part in parts[number:] for shard in part if shard not in in_use)
        assert coming == list(needed)[: len(coming)]
        assert {*coming} <= {*parts[number][1]} | following


def test_an_order_that_reads_anywhere(dataset: TokenDataset) -> None:
    """A shuffle says once that any shard is in use, and that those of the next steps shall come first."""
    recorder = Recorder(dataset)
    plan = ShardPlan(recorder, Shuffle(1000, 8, 0), [0], sample=0, stop_sample=None)  # type: ignore[arg-type]
    for sample in range(0, 40, 4):
        plan.go_to(sample, sample + 4, [np.array([640, 0]), np.array([128])])

    [said] = recorder.said
    assert said["in_use"] is None
    assert list(said["coming"])[:3] == [10, 0, 2]
    assert sorted(said["coming"]) == list(range(16))
    assert working_set_bytes(dataset, Shuffle(1000, 8, 0), [0], num_rows=4) == 2000


def test_a_working_set_of_steps_longer_than_many_buffers(
    dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that takes more buffers than are looked up needs the shards of all of them."""
    monkeypatch.setattr(shard_plan, "_GROUPS_LOOKED_UP", 2)
    order = BlockShuffle(1000, 8, 0, block_tokens=8, buffer_blocks=1, lanes=1)

    assert working_set_bytes(dataset, order, [0], num_rows=124) >= 1800


def test_shards_so_large_that_all_is_an_edge(tmp_path: Path) -> None:
    """Blocks that are a small part of a shard make the shard their need, not a piece."""
    with shardstream.DatasetWriter(f"memory://{tmp_path}", vocab_size=10, shard_tokens=2**12) as writer:
        writer.append(np.zeros(2**13, dtype=np.uint16))
    dataset = shardstream.open(f"memory://{tmp_path}", cache_dir=tmp_path, max_cache_bytes=2**14 - 1)
    order = BlockShuffle(2**13, 8, 0, block_tokens=8, buffer_blocks=2, lanes=1)

    assert working_set_bytes(dataset, order, [0], num_rows=1) == 2**14
    assert working_set_bytes(dataset, Sequential(2**13, 8), [0], num_rows=1) == 2**14
