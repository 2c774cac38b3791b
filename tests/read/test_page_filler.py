"""Ranges that come into memory before they are read."""

import mmap
import multiprocessing
import os
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import shardstream
from shardstream import TokenDataset
from shardstream.read import mapped_shards, page_filler
from shardstream.read.mapped_shards import MappedShards
from shardstream.read.page_filler import PageFiller
from tests.page_cache import cached_pages, drop

SHARD_TOKENS = 2**22  # 8 MiB
MIB_TOKENS = 2**19
MIB_PAGES = 2**20 // mmap.PAGESIZE

needs_filling = pytest.mark.skipif(not page_filler.CAN_FILL, reason="this system cannot fill maps")


@pytest.fixture
def cold(write_dataset) -> TokenDataset:
    """Two shards of 8 MiB that the page cache does not hold, unless their filesystem keeps its files in memory."""
    dataset: TokenDataset = write_dataset(np.zeros(2 * SHARD_TOKENS, dtype=np.uint16), shard_tokens=SHARD_TOKENS)
    for number in range(2):
        drop(path_of(dataset, number))
    return dataset


def skip_unless_on_disk(dataset: TokenDataset) -> None:
    if cached(dataset, 0).any() or cached(dataset, 1).any():
        pytest.skip("this filesystem keeps its files in memory")


def path_of(dataset: TokenDataset, shard: int) -> Path:
    return Path(dataset.uri) / f"shard-{shard:06}.bin"


def shards_of(dataset: TokenDataset) -> MappedShards:
    shards = dataset._shards
    assert isinstance(shards, MappedShards)
    return shards


def cached(dataset: TokenDataset, shard: int) -> NDArray[np.bool_]:
    """Whether each page of a shard is in the page cache."""
    return cached_pages(path_of(dataset, shard))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@needs_filling
def test_a_long_range_comes_by_itself(cold: TokenDataset) -> None:
    """All of it, in a thread that counts what it read, and so does the next; the map is read in large pages from then on."""
    skip_unless_on_disk(cold)
    assert cold.num_reads_ahead == 0
    cold.look_ahead(np.array([MIB_TOKENS]), np.array([SHARD_TOKENS]))
    wait_for(lambda: bool(cached(cold, 0)[MIB_PAGES:].all()) and cold.num_reads_ahead > 0)
    cold.look_ahead(np.array([0]), np.array([SHARD_TOKENS // 2]))
    wait_for(lambda: bool(cached(cold, 0).all()))

    flags = [line.split()[1:] for line in smaps_of(path_of(cold, 0)) if line.startswith("VmFlags:")]
    assert all({"hg", "rr"} <= set(of_map) for of_map in flags)  # MADV_HUGEPAGE, MADV_RANDOM
    assert flags


def smaps_of(path: Path) -> list[str]:
    lines = []
    is_ours = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        if " " in line.partition(":")[0]:
            is_ours = line.endswith(os.fspath(path))
        lines += [line] if is_ours else []
    return lines


@needs_filling
def test_a_range_in_two_shards(cold: TokenDataset) -> None:
    """Each part is filled where it lies; a short one is asked for alone, and brings no more than it needs."""
    skip_unless_on_disk(cold)
    cold.look_ahead(np.array([MIB_TOKENS]), np.array([SHARD_TOKENS + 1]))
    wait_for(lambda: bool(cached(cold, 0)[MIB_PAGES:].all()) and bool(cached(cold, 1)[0]))

    assert not cached(cold, 1)[1:].any()


def no_filling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_shards, "CAN_FILL", False)


def no_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)  # which the kernel refuses, as one without them does


@pytest.mark.parametrize("system", [no_filling, no_large_pages])
def test_a_system_that_cannot_fill(system: Callable[[pytest.MonkeyPatch], None], cold, monkeypatch) -> None:
    """The kernel is asked for long ranges too."""
    system(monkeypatch)
    cold.look_ahead(np.array([0]), np.array([SHARD_TOKENS]))
    wait_for(lambda: bool(cached(cold, 0).all()))

    assert shards_of(cold)._filler is None
    assert cold.num_reads_ahead == 0


@pytest.mark.parametrize(
    ("system", "release", "can_fill"),
    [
        ("linux", "6.18.44-fc", True),
        ("linux", "5.18", True),
        ("linux", "5.15.0-126-generic", False),
        ("linux", "4.4.0", False),
        ("linux", "", False),
        ("darwin", "24.6.0", False),
    ],
)
def test_which_systems_can(system: str, release: str, can_fill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux, from the version on that reads large pages for a map which wants them."""
    monkeypatch.setattr(sys, "platform", system)
    name = os.uname_result((system, "node", release, "version", "machine"))
    monkeypatch.setattr(os, "uname", lambda: name)

    assert page_filler._can_fill() is can_fill


class Calls:
    """In place of the threads and of the kernel: notes what was asked of them."""

    def __init__(self) -> None:
        self.submitted: list[Callable[[], None]] = []
        self.advice: list[tuple[int, ...]] = []

    def submit(self, call: Callable[[], None]) -> None:
        self.submitted.append(call)

    def madvise(self, *arguments: int) -> None:
        self.advice.append(arguments)


def test_a_map_that_was_let_go_of_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for its turn holds no map; its turn does nothing when the map is gone."""
    calls = Calls()
    filler = PageFiller()
    monkeypatch.setattr(filler, "_workers", calls)
    monkeypatch.setattr(filler, "_madvise", calls.madvise)
    kept, gone = np.zeros(1), np.zeros(1)
    filler.fill(kept, 4096, 100)
    filler.fill(gone, 8192, 100)
    reference: weakref.ref[Any] = weakref.ref(gone)
    del gone
    assert reference() is None

    for call in calls.submitted:
        call()
    assert calls.advice == [(4096, 100, 22)]


@needs_filling
def test_a_file_that_was_cut_does_no_harm(cold: TokenDataset) -> None:
    """Filling it ends without a signal; the look before the next batch tells."""
    cold.look_again()
    cold.windows([0, SHARD_TOKENS], 10)
    os.truncate(path_of(cold, 1), 0)
    cold.look_ahead(np.array([SHARD_TOKENS]), np.array([2 * SHARD_TOKENS]))
    filler = shards_of(cold)._filler
    assert filler is not None
    filler.close()

    with pytest.raises(shardstream.IntegrityError, match=r"shard-000001.bin"):
        cold.look_again()


def fill_in_child(dataset: TokenDataset, outcome: Any) -> None:
    dataset.look_ahead(np.array([SHARD_TOKENS]), np.array([2 * SHARD_TOKENS]))
    wait_for(lambda: bool(cached(dataset, 1).all()))
    outcome.put("filled")


@needs_filling
def test_a_forked_child_fills_with_threads_of_its_own(cold: TokenDataset) -> None:
    """Those of its parent are not there."""
    cold.look_ahead(np.array([0]), np.array([SHARD_TOKENS]))
    wait_for(lambda: bool(cached(cold, 0).all()))
    filler = shards_of(cold)._filler
    assert filler is not None
    filler.close()  # Python warns of a fork beside threads

    context = multiprocessing.get_context("fork")
    outcome = context.SimpleQueue()
    process = context.Process(target=fill_in_child, args=(cold, outcome))
    process.start()
    process.join(90)
    assert process.exitcode == 0
    assert outcome.get() == "filled"


@needs_filling
def test_no_thread_outlives_its_dataset(cold: TokenDataset) -> None:
    """Closed, it leaves nothing that fills; used again, it fills again."""
    cold.look_ahead(np.array([0]), np.array([SHARD_TOKENS]))
    filler = shards_of(cold)._filler
    assert filler is not None
    threads = filler._workers._threads
    assert any(thread.is_alive() for thread in threads)
    cold.close()
    wait_for(lambda: not any(thread.is_alive() for thread in threads))

    drop(path_of(cold, 0))
    cold.look_ahead(np.array([0]), np.array([SHARD_TOKENS]))
    wait_for(lambda: bool(cached(cold, 0).all()))
