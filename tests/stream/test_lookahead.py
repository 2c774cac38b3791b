"""What is planned, and which pages are asked for, when."""

import itertools
import mmap
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import shardstream
from shardstream import BatchStream, TokenDataset
from shardstream.order.orders import BlockShuffle, Order, PlannedRange, Sequential, Shuffle
from shardstream.stream import lookahead
from shardstream.stream.lookahead import Lookahead
from tests.page_cache import cached_pages, drop

NUM_TOKENS = 2**22 + 1
CONTEXT_LENGTH = 2**10
NUM_WINDOWS = 2**12


class Recorder:
    """In place of a dataset: notes which positions were asked for."""

    cache = None
    num_reads_ahead = 0

    def __init__(self) -> None:
        self.asked = np.zeros(NUM_TOKENS, dtype=np.int32)
        self.num_calls = 0

    def look_ahead(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            self.asked[start:stop] += 1
            self.num_calls += 1


class Disk:
    """In place of the kernel's counters: counts on while it is read."""

    def __init__(self) -> None:
        self.is_read = True
        self.thread = 0
        self._count = 0

    def __call__(self) -> tuple[int, int, int]:
        self._count += self.is_read
        return self.thread, self._count + 10**6 * self.thread, 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk that is read at each step, until told otherwise."""
    disk = Disk()
    monkeypatch.setattr(lookahead, "_num_reads", disk)
    return disk


def block_shuffle(*, block_tokens: int = 2**16, buffer_blocks: int = 8, lanes: int = 1) -> BlockShuffle:
    return BlockShuffle(
        NUM_TOKENS, CONTEXT_LENGTH, 0, block_tokens=block_tokens, buffer_blocks=buffer_blocks, lanes=lanes
    )


def lookahead_of(
    recorder: Recorder,
    order: Order,
    *,
    num_rows: int = 64,
    ranks: int = 1,
    first_sample: int = 0,
    stop_sample: int | None = NUM_WINDOWS,
) -> Lookahead:
    return Lookahead(
        recorder,  # type: ignore[arg-type]
        order,
        context_length=CONTEXT_LENGTH,
        num_rows=num_rows,
        dp_rank=0,
        dp_world_size=ranks,
        first_sample=first_sample,
        stop_sample=stop_sample,
    )


ORDERS = [Shuffle(NUM_TOKENS, CONTEXT_LENGTH, 0), Sequential(NUM_TOKENS, CONTEXT_LENGTH), block_shuffle()]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize("first_sample", [0, 1000])
def test_a_cold_disk_is_asked_before_each_read(disk: Disk, order: Order, first_sample: int) -> None:
    """While pages are missing, every window was asked for before its step, and none over and over."""
    recorder = Recorder()
    plan = lookahead_of(recorder, order, first_sample=first_sample)
    while (starts := plan.take()) is not None:
        for start in starts:
            assert recorder.asked[start : start + CONTEXT_LENGTH + 1].all()

    assert recorder.asked.max() <= 3  # windows share a token, and so do ranges


def test_a_warm_disk_is_not_asked(disk: Disk) -> None:
    """After 32 steps that asked in vain nothing is asked for; the next read begins it anew, from where the stream stands."""
    for order in (Shuffle(NUM_TOKENS, CONTEXT_LENGTH, 0), block_shuffle()):
        recorder = Recorder()
        plan = lookahead_of(recorder, order, num_rows=16, stop_sample=None)
        disk.is_read = False
        for _ in range(1000):  # few steps ask for blocks
            plan.take()
        num_calls = recorder.num_calls
        for _ in range(100):
            plan.take()
        disk.thread += 1  # whose own count is another one
        for _ in range(100):
            plan.take()
        assert recorder.num_calls == num_calls > 0

        disk.is_read = True
        recorder.asked[:] = 0
        for _ in range(50):
            starts = plan.take()
            assert starts is not None
            assert all(recorder.asked[start : start + CONTEXT_LENGTH + 1].all() for start in starts)


def test_a_disk_that_is_ahead_stays_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in which nothing had to be asked for prove nothing: the next buffer is asked for in time all the same."""
    recorder = Recorder()
    monkeypatch.setattr(lookahead, "_num_reads", lambda: (0, 0, recorder.num_calls))  # it reads what it is asked for
    plan = lookahead_of(recorder, block_shuffle(buffer_blocks=16), num_rows=4)
    while (starts := plan.take()) is not None:
        assert all(recorder.asked[start : start + CONTEXT_LENGTH + 1].all() for start in starts)


def test_a_disk_that_is_read_by_other_threads_alone_stays_cold(disk: Disk) -> None:
    """While those that read ahead read anything, the asking goes on; then it ends."""
    recorder = Recorder()
    plan = lookahead_of(recorder, block_shuffle(), num_rows=16, stop_sample=None)
    disk.is_read = False
    for _ in range(1000):
        recorder.num_reads_ahead += 8
        plan.take()
    assert recorder.num_calls > 100

    for _ in range(1000):
        plan.take()
    before = recorder.num_calls
    for _ in range(100):
        plan.take()
    assert recorder.num_calls == before


def test_what_is_mixed_next_is_asked_for_bit_by_bit(disk: Disk) -> None:
    """Of the next buffer a few pieces are asked for at each step, and all of them before it begins; nothing beyond it."""
    recorder = Recorder()
    plan = lookahead_of(recorder, block_shuffle())
    per_step = []
    for _ in range(8):  # a buffer holds 512 samples
        before = recorder.num_calls
        plan.take()
        per_step.append(recorder.num_calls - before)

    assert per_step == [8 + 3, 2, 2, 1, 0, 0, 0, 0]  # twice as many tokens as are used
    assert recorder.num_calls == 16
    assert recorder.asked.sum() == 16 * (2**16 + 1)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("num_pieces", [0, 1, 2, 5])
def test_a_range_comes_in_pieces(num_pieces: int, extra: int) -> None:
    """They follow each other, and none is shorter than a piece unless the whole range is."""
    start = 3
    stop = max(start + 1, start + num_pieces * lookahead._PIECE_TOKENS + extra)
    pieces = list(lookahead._pieces_of(iter([PlannedRange(7, start, stop)]), stop_sample=None))

    assert {piece.sample for piece in pieces} == {7}
    assert [piece.start for piece in pieces] == [start, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == stop
    lengths = [piece.stop - piece.start for piece in pieces]
    assert min(lengths) >= min(lookahead._PIECE_TOKENS, stop - start)
    assert max(lengths) < 2 * lookahead._PIECE_TOKENS


def test_a_rank_that_needs_little_of_a_block_asks_for_its_windows_alone(disk: Disk) -> None:
    """One rank in 64 does not read whole blocks; with 64 lanes it does, as its lane is its own."""
    little, all_of_it = Recorder(), Recorder()
    lookahead_of(little, block_shuffle(), ranks=64, stop_sample=None).take()
    lookahead_of(all_of_it, block_shuffle(lanes=64), ranks=64).take()

    assert little.asked.sum() == 256 * (CONTEXT_LENGTH + 1)
    assert all_of_it.asked.sum() >= 2**16


def test_the_end_of_a_run_is_not_passed(disk: Disk) -> None:
    """Nothing behind the last sample is planned or asked for; the last step may be short."""
    recorder = Recorder()
    plan = lookahead_of(recorder, Sequential(NUM_TOKENS, CONTEXT_LENGTH), num_rows=1000, stop_sample=2300)
    sizes = []
    while (starts := plan.take()) is not None:
        sizes.append(len(starts))

    assert sizes == [1000, 1000, 300]
    assert plan.take() is None
    assert not recorder.asked[3 * 2**20 + 1 :].any()


def test_a_step_can_be_taken_back(disk: Disk) -> None:
    """What is put back comes again, and everything after it as before."""
    plan = lookahead_of(Recorder(), Shuffle(NUM_TOKENS, CONTEXT_LENGTH, 0))
    first = plan.take()
    second = plan.take()
    assert first is not None
    assert second is not None
    plan.put_back(second)

    again = plan.take()
    assert again is not None
    assert again.tolist() == second.tolist()


def test_pages_that_were_asked_for_come(write_dataset) -> None:
    """On a real disk: dropped from the page cache and asked for, the pages of a window come without being read."""
    dataset = write_dataset(np.zeros(2**18, dtype=np.uint16), shard_tokens=2**16)
    path = Path(dataset.uri) / "shard-000002.bin"
    drop(path)
    page = 40_000 // mmap.PAGESIZE
    if cached_pages(path)[page]:
        pytest.skip("this filesystem keeps its files in memory")
    dataset.look_ahead(np.array([2 * 2**16 + 20_000]), np.array([2 * 2**16 + 20_100]))
    deadline = time.monotonic() + 60
    while not cached_pages(path)[page]:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_stream_over_a_cold_disk_is_right(write_dataset, tmp_path: Path) -> None:
    """With nothing in the page cache, each order gives what it gives from memory."""
    tokens = np.random.default_rng(3).integers(0, 1000, 2**17, dtype=np.uint16)
    dataset = write_dataset(tokens, shard_tokens=5_000)
    for order in ("shuffle", "block-shuffle", "sequential", "random"):
        for path in Path(dataset.uri).glob("*.bin"):
            drop(path)
        cold = shardstream.open(dataset.uri)
        stream = BatchStream(cold, batch_size=8, context_length=500, order=order)
        for inputs, _ in itertools.islice(stream, 30):
            expected = [tokens[start : start + 500].tolist() for start in stream.positions]
            assert inputs.tolist() == expected


def test_a_shard_that_cannot_be_asked_for_is_left_to_the_read(write_dataset, tokens) -> None:
    """Asking for a missing shard is no error: the read that needs it names it."""
    dataset: TokenDataset = write_dataset(tokens)
    (Path(dataset.uri) / "shard-000003.bin").unlink()

    dataset.look_ahead(np.array([0, 150]), np.array([900, 250]))

    with pytest.raises(shardstream.IntegrityError, match="shard-000003.bin: the shard is missing"):
        dataset.windows([200], 10)
