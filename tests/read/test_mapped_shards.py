"""The gather and the maps behind it."""

import itertools
import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import IntegrityError
from shardstream.format.manifest import ShardEntry
from shardstream.read import mapped_shards
from shardstream.read.folder_watch import FolderWatch
from shardstream.read.mapped_shards import MappedShards, advice_bytes_of, max_open_maps


def shards_of(
    folder: Path, lengths: Sequence[int], *, dtype: str = "<u2", max_maps: int = 100
) -> tuple[MappedShards, np.ndarray]:
    """Shard files with headers of different lengths, and their tokens as one array."""
    tokens = np.random.default_rng(len(lengths)).integers(0, 60000, sum(lengths)).astype(dtype)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    itemsize = np.dtype(dtype).itemsize
    entries = []
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        header = b"x" * (itemsize * (index % 3))
        (folder / f"{index}").write_bytes(header + tokens[start:stop].tobytes())
        length = int(stop - start)
        entries.append(
            ShardEntry(name=f"{index}", num_tokens=length, num_bytes=length * itemsize, byte_offset=len(header))
        )
    mapped = MappedShards(
        entries, bounds, np.dtype(dtype), lambda shard: folder / entries[shard].name, max_maps=max_maps
    )
    return mapped, tokens


def windows_of(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """The oracle: windows cut from one array, one by one."""
    return np.array([tokens[start : start + length] for start in starts], dtype=tokens.dtype).reshape(-1, length)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    dtype=st.sampled_from(["<u2", "<u4"]),
    max_maps=st.integers(1, 4),
    data=st.data(),
)
def test_gather_equals_slicing_the_concatenation(lengths, dtype, max_maps, data, tmp_path_factory) -> None:
    """Any windows of any shards, twice and with any number of maps, are those of one concatenated array."""
    shards, tokens = shards_of(tmp_path_factory.mktemp("shards"), lengths, dtype=dtype, max_maps=max_maps)
    length = data.draw(st.integers(1, len(tokens)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(tokens) - length), max_size=20)), dtype=np.int64)
    expected = windows_of(tokens, starts, length)

    for _ in range(2):  # cold, then with maps in place
        np.testing.assert_array_equal(expected, shards.gather(starts, length, None))
        out = np.zeros_like(expected)
        assert shards.gather(starts, length, out) is out
        np.testing.assert_array_equal(expected, out)


def test_every_window_of_every_small_cut_is_right(tmp_path: Path) -> None:
    """Promise 12: for all small shard sizes and lengths, every window of the dataset equals the concatenated oracle."""
    for shard_tokens in range(1, 8):
        folder = tmp_path / f"{shard_tokens}"
        folder.mkdir()
        shards, tokens = shards_of(folder, [shard_tokens] * 3 + [max(1, shard_tokens - 1)])
        for length in range(1, len(tokens) + 1):
            starts = np.arange(len(tokens) - length + 1)
            np.testing.assert_array_equal(windows_of(tokens, starts, length), shards.gather(starts, length, None))


@pytest.mark.parametrize("start", [-1, -5, -(10**12), -(2**63), 81, 99, 10**12, 2**63 - 1])
@pytest.mark.parametrize("is_warm", [False, True])
def test_a_start_outside_is_refused(start: int, is_warm: bool, tmp_path: Path) -> None:
    """A window before the first or beyond the last token is an IndexError naming it, mapped shards or not."""
    shards, _ = shards_of(tmp_path, [32, 32, 36])
    if is_warm:
        shards.gather(np.arange(80), 20, None)

    with pytest.raises(IndexError, match=rf"window \[{start}, .*starts of windows of 20 tokens go from 0 to 80"):
        shards.gather(np.array([3, start], dtype=np.int64), 20, None)


@pytest.mark.parametrize(
    "lengths",
    [[2**12] * 9 + [77], [3000] * 9, [2**12, 900] * 20, [900] + [2**12] * 20, [2**12, 2**12, 17] * 9],
    ids=["equal", "no power of two", "short ones between", "a short one first", "tiny ones between"],
)
def test_few_windows_are_gathered_the_slow_way(lengths: list[int], tmp_path: Path) -> None:
    """Short shards may stand anywhere, as parallel writers leave them: what a bound lies before is looked up all the same."""
    mapped, tokens = shards_of(tmp_path, lengths)
    mapped.gather(np.arange(len(tokens)), 1, None)  # all are mapped now
    slow: list[int] = []
    gather_slowly = mapped._gather_slowly

    def counted(starts: np.ndarray, length: int) -> np.ndarray:
        slow.append(len(starts))
        return gather_slowly(starts, length)

    mapped._gather_slowly = counted  # type: ignore[method-assign]
    mapped.gather(np.arange(len(tokens)), 1, None)

    assert sum(slow) <= len(tokens) / 32


def test_a_window_longer_than_the_view_allows_is_copied_in_spans(tmp_path: Path) -> None:
    """Windows too long for the strided view are right too."""
    shards, tokens = shards_of(tmp_path, [50_000, 50_000, 50_000])
    starts = np.array([0, 1, 40_000, 60_000, 7, 99_000])
    length = 2**15 + 7

    np.testing.assert_array_equal(windows_of(tokens, starts, length), shards.gather(starts, length, None))


def test_no_more_maps_are_open_than_allowed(tmp_path: Path) -> None:
    """However many shards a gather touches, and in whatever order, the bound on open maps holds."""
    shards, tokens = shards_of(tmp_path, [10] * 50, max_maps=3)
    starts = np.random.default_rng(0).permutation(490)

    for _ in range(3):
        np.testing.assert_array_equal(windows_of(tokens, starts, 10), shards.gather(starts, 10, None))
        assert len(shards._maps) <= 3


def test_views_of_many_lengths_do_not_pile_up(tmp_path: Path) -> None:
    """A loop over window lengths keeps a bounded number of views."""
    shards, tokens = shards_of(tmp_path, [100])
    for length in range(1, 60):
        np.testing.assert_array_equal([tokens[:length]], shards.gather(np.array([0]), length, None))

    assert len(shards._views) <= mapped_shards._MAX_NUM_VIEWS


def test_a_retired_map_lives_until_the_gathers_that_may_read_it_end(tmp_path: Path) -> None:
    """What is retired while a gather runs stays mapped until it ends, and not longer."""
    shards, _ = shards_of(tmp_path, [10] * 4, max_maps=1)
    held = shards._generation  # as a gather holds it
    shards.gather(np.array([0]), 5, None)
    shards.gather(np.array([10]), 5, None)
    shards.gather(np.array([20]), 5, None)

    retired = [maps for generation in (held, held.next) if generation for maps in generation.retired]
    assert len(retired) == 2
    assert shards._generation is not held
    assert not shards._generation.retired


def test_threads_share_the_maps(tmp_path: Path) -> None:
    """Eight threads that map and retire at once all read what is there."""
    shards, tokens = shards_of(tmp_path, [64] * 40, max_maps=5)
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(200):
                starts = rng.integers(0, len(tokens) - 32, 8)
                np.testing.assert_array_equal(windows_of(tokens, starts, 32), shards.gather(starts, 32, None))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures


def test_close_lets_go_of_all_maps_and_a_later_read_maps_anew(tmp_path: Path) -> None:
    """After close no map is held, and reading works as before."""
    shards, tokens = shards_of(tmp_path, [10, 10])
    shards.gather(np.array([0, 10]), 5, None)
    shards.close()

    assert not shards._maps
    np.testing.assert_array_equal([tokens[3:8]], shards.gather(np.array([3]), 5, None))


def test_a_forked_child_does_not_wait_for_a_lock_of_its_parent(tmp_path: Path) -> None:
    """A child forked while a thread of the parent holds the lock can map shards itself."""
    shards, tokens = shards_of(tmp_path, [10, 10])
    shards._lock.acquire()
    context = multiprocessing.get_context("fork")

    def child() -> None:
        assert shards.gather(np.array([7]), 6, None).tolist() == [tokens[7:13].tolist()]

    process = context.Process(target=child)
    process.start()
    process.join(20)

    assert process.exitcode == 0


class TestPieces:
    """Tokens that are at hand without their shard."""

    @given(data=st.data())
    def test_what_is_at_hand_is_not_mapped(self, data, tmp_path_factory) -> None:
        """Windows within and across shards are right, and a shard is located only where its piece is not at hand."""
        lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
        plain, tokens = shards_of(tmp_path_factory.mktemp("pieces"), lengths)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        at_hand = data.draw(st.sets(st.integers(0, len(lengths) - 1)))
        located = set()

        def locate(shard: int) -> os.PathLike[str] | str:
            located.add(shard)
            return plain._locate(shard)

        def piece(shard: int, start: int, stop: int) -> np.ndarray | None:
            return tokens[bounds[shard] + start : bounds[shard] + stop] if shard in at_hand else None

        shards = MappedShards(plain._entries, plain._bounds, plain._dtype, locate, max_maps=3, piece=piece)
        length = data.draw(st.integers(1, len(tokens)))
        starts = np.array(data.draw(st.lists(st.integers(0, len(tokens) - length), max_size=12)), dtype=np.int64)
        for _ in range(2):
            np.testing.assert_array_equal(windows_of(tokens, starts, length), shards.gather(starts, length, None))

        assert not located & at_hand

    def test_advice_brings_no_shard(self, tmp_path: Path) -> None:
        """Looking ahead asks for pages of mapped shards alone where others may have a long way."""
        plain, _ = shards_of(tmp_path, [50, 50])
        shards = MappedShards(
            plain._entries, plain._bounds, plain._dtype, plain._locate, max_maps=3, piece=lambda *_: None
        )
        shards.gather(np.array([0]), 5, None)
        shards.look_ahead(np.array([0, 40]), np.array([10, 60]))

        assert list(shards._maps) == [0]

    def test_a_copy_that_is_damaged_is_located_again(self, tmp_path: Path) -> None:
        """A cached copy that is cut is let go of by the next look, without an error."""
        plain, tokens = shards_of(tmp_path, [50, 50])
        shards = MappedShards(
            plain._entries, plain._bounds, plain._dtype, plain._locate, max_maps=3, piece=lambda *_: None
        )
        shards.look_again()
        shards.gather(np.array([0, 60]), 5, None)
        content = (tmp_path / "1").read_bytes()
        os.truncate(tmp_path / "1", 10)
        shards.look_again()
        assert list(shards._maps) == [0]
        (tmp_path / "1").write_bytes(content)

        np.testing.assert_array_equal([tokens[60:65]], shards.gather(np.array([60]), 5, None))


def test_only_what_is_kept_stays_mapped(tmp_path: Path) -> None:
    """keep_only lets go of all other maps, and sets how many there may be from then on."""
    shards, tokens = shards_of(tmp_path, [10] * 6)
    shards.gather(np.arange(0, 60, 10), 5, None)
    shards.keep_only({1, 4, 5}, max_maps=2)
    assert list(shards._maps) == [1, 4, 5]

    starts = np.arange(0, 60, 10)
    np.testing.assert_array_equal(windows_of(tokens, starts, 5), shards.gather(starts, 5, None))
    assert len(shards._maps) <= 2


def test_max_open_maps_is_half_of_what_the_process_may_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Python 3.13 each map costs a descriptor, so half of the limit is taken; after, a part of the maps."""
    import resource  # noqa: PLC0415

    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 4096))
    monkeypatch.setattr(sys, "version_info", (3, 12))
    assert max_open_maps() == 64
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert max_open_maps() == 2**14
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 4096))
    monkeypatch.setattr(sys, "version_info", (3, 13))
    assert max_open_maps() == 2**14


class TestLooks:
    """Mapped files are looked at again, so that one that was cut is an error and not the end of the process."""

    def test_a_change_is_seen_at_once(self, tmp_path: Path) -> None:
        """A shard that is cut while it is mapped is an IntegrityError of the next look, wherever the next read is."""
        mapped, _ = shards_of(tmp_path, [50, 50, 50])
        mapped.look_again()
        mapped.gather(np.array([0, 60, 120]), 5, None)
        mapped.look_again()
        os.truncate(tmp_path / "1", 10)

        with pytest.raises(
            IntegrityError, match="1: truncated: 10 bytes, .*; the dataset was changed while it was read"
        ):
            mapped.look_again()
        with pytest.raises(IntegrityError, match="1: truncated: 10 bytes"):
            mapped.gather(np.array([60, 61, 62, 63, 64]), 5, None)

    def test_what_was_mapped_before_the_first_look_counts(self, tmp_path: Path) -> None:
        """Shards that were mapped and cut before anyone looked are found by the first look."""
        mapped, _ = shards_of(tmp_path, [50, 50, 50])
        mapped.gather(np.array([0, 60, 120]), 5, None)
        (tmp_path / "2").unlink()

        with pytest.raises(IntegrityError, match="2: the shard cannot be read any more: No such file or directory"):
            mapped.look_again()

    def test_a_change_that_nobody_tells_of_is_found_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a network's disk: the files are looked at one after the other, and the cut one is found in its turn."""
        monkeypatch.setattr(mapped_shards, "_LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(FolderWatch, "has_changed", lambda _: False)
        mapped, _ = shards_of(tmp_path, [50, 50, 50])
        mapped.gather(np.array([0, 60, 120]), 5, None)
        for _ in range(10):
            mapped.look_again()
        os.truncate(tmp_path / "1", 10)

        with pytest.raises(IntegrityError, match="1: truncated"):
            for _ in range(10):
                mapped.look_again()
        mapped.close()
        for _ in range(10):  # what is no longer mapped does no harm
            mapped.look_again()


def test_the_kernel_reads_so_much_at_one_asking(tmp_path: Path) -> None:
    """What sysfs says of the disk, or of nothing it knows the kernel's default; 128 KiB at least."""
    assert advice_bytes_of(tmp_path) >= 2**17
    assert advice_bytes_of("/proc/self/status") == 2**17
    assert advice_bytes_of(tmp_path / "none") == 2**17
