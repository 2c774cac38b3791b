"""Random windows and full batches out of a warm page cache, against the limit: one contiguous array.

The same tokens lie in shards, written by shardstream, and in one file. Every contender of a round gets the same random
starts, enough of them that what one contender read is out of the processor's caches when the next one comes.

How the page cache holds a file decides more than most code does: in pages of 2 MiB, random reads are up to 1.4 times as
fast as in pages of 4 KiB. A file just written, or read ahead by the kernel, has some of each. So before each half of
this benchmark both files are dropped from the cache and read back the same way: first into 2 MiB pages, then into small
ones. The share that is really mapped in 2 MiB pages is shown for both.
"""

import mmap
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import numpy as np
import torch
from measure import Bar, Report, Timings, arguments, scratch_folder, take_turns
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import shardstream

# Ids that fill all of uint16 cost nothing to make: they are the generator's own bytes.
VOCAB_SIZE = 2**16
WRITE_TOKENS = 2**21  # tokens per write, 4 MiB: as shardstream's own writer does, so both files are written alike
TOUCHED_BYTES = 2**26  # of tokens per turn: twice the last-level cache of most processors

Tokens: TypeAlias = NDArray[np.uint16]
Call: TypeAlias = Callable[[NDArray[np.int64]], object]


class Shape(NamedTuple):
    """Of a batch."""

    batch_size: int
    context_length: int

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.context_length}"


class Size(NamedTuple):
    """How much is measured."""

    num_shards: int
    shard_tokens: int
    shapes: Sequence[Shape]
    judged: Shape
    num_rounds: int
    touched_bytes: int


FULL = Size(
    512, 2**21, (Shape(64, 256), Shape(64, 1024), Shape(16, 8192), Shape(512, 1024)), Shape(64, 1024), 30, TOUCHED_BYTES
)
QUICK = Size(8, 2**14, (Shape(4, 32), Shape(2, 64)), Shape(4, 32), 2, 2**12)


class Round(NamedTuple):
    """Input of one round."""

    seed: int
    """With it get_batch draws these starts."""
    starts: list[NDArray[np.int64]]
    """Of each batch; shape (B,)."""


class Contender(NamedTuple):
    """One way to do a round's work."""

    name: str
    run: Callable[[Round], Any]
    """Do it, and return the last result."""
    every: int = 1
    """It does every so-many-th batch only: the slow ones show their speed on a part."""


class Sources(NamedTuple):
    """The same tokens, four times."""

    dataset: shardstream.TokenDataset
    mapped: Tokens
    """The one file, mapped, as a plain array: slices of a memmap are many times dearer."""
    memmap: "np.memmap[Any, np.dtype[np.uint16]]"
    in_memory: Tokens
    path: Path
    """Of the one file."""


def main() -> int:
    options = arguments(__doc__.partition("\n")[0])
    size = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    report = Report("read", options)
    report.setup |= {
        "num_tokens": size.num_shards * size.shard_tokens,
        "num_shards": size.num_shards,
        "shard_tokens": size.shard_tokens,
        "num_rounds": size.num_rounds,
        "token_bytes_per_turn": size.touched_bytes,
        "statistic": "best round of each contender",
        "torch_threads": torch.get_num_threads(),
    }
    with scratch_folder(options) as folder:
        write_both(folder, num_shards=size.num_shards, shard_tokens=size.shard_tokens)
        for pages in ("2 MiB", "small"):
            measure_pages(report, size, pages, folder)
    return report.finish()


def write_both(folder: Path, *, num_shards: int, shard_tokens: int) -> None:
    """Write the same random tokens as ``sharded/`` and as ``one.bin``."""
    random = np.random.default_rng(0)
    sharded = shardstream.DatasetWriter(folder / "sharded", vocab_size=VOCAB_SIZE, shard_tokens=shard_tokens)
    with sharded, (folder / "one.bin").open("wb", buffering=0) as one:
        left = num_shards * shard_tokens
        while left:
            tokens = np.frombuffer(random.bytes(2 * min(left, WRITE_TOKENS)), np.uint16)
            sharded.append(tokens)
            one.write(tokens.data)
            left -= len(tokens)


def read_back(paths: Iterable[Path], *, huge: bool) -> None:
    """Drop files from the page cache, and read them into it again, in pages of 2 MiB or in the smallest."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only clean pages can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if huge:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    mapped.madvise(mmap.MADV_HUGEPAGE)
                    for offset in range(0, len(mapped), mmap.PAGESIZE):
                        mapped[offset]
            else:
                # Reads that are said to be random are not read ahead, so no large pages are made for them.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                while os.read(file.fileno(), 2**22):
                    pass


def touch(dataset: shardstream.TokenDataset, mapped: Tokens) -> None:
    """Read a token of every page through every map, so that no page table is left to fill."""
    per_page = mmap.PAGESIZE // mapped.itemsize
    mapped[::per_page].max()
    dataset.windows(np.arange(0, len(dataset), per_page), 1)


def share_in_huge_pages(name: str) -> float | None:
    """Part of what is mapped of the files whose path contains ``name`` that is mapped in pages of 2 MiB."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return None
    sums = {"Rss": 0, "FilePmdMapped": 0}
    is_ours = False
    for line in smaps.read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        if " " in key:  # the head of a map: addresses, rights, ..., path
            is_ours = name in line
        elif is_ours and key in sums:
            sums[key] += int(value.removesuffix("kB"))
    return sums["FilePmdMapped"] / sums["Rss"] if sums["Rss"] else None


def measure_pages(report: Report, size: Size, pages: str, folder: Path) -> None:
    """Time everything on files that lie in the page cache in such pages."""
    # No map of either file is alive here: pages that are mapped cannot be dropped.
    read_back([folder / "one.bin", *sorted((folder / "sharded").glob("*.bin"))], huge=pages == "2 MiB")
    memmap = np.memmap(folder / "one.bin", np.uint16, mode="r")
    in_memory = np.fromfile(folder / "one.bin", np.uint16)
    with shardstream.open(folder / "sharded") as dataset:
        sources = Sources(dataset, memmap.view(np.ndarray), memmap, in_memory, folder / "one.bin")
        touch(dataset, sources.mapped)
        measure(report, size, pages, sources)


def measure(report: Report, size: Size, pages: str, sources: Sources) -> None:
    """Time both kinds of contenders, and say in what pages the files are mapped."""
    huge = {"one file": share_in_huge_pages("/one.bin"), "shards": share_in_huge_pages("/sharded/")}
    shares = ", ".join(f"{name} {'unknown' if share is None else f'{share:.0%}'}" for name, share in huge.items())
    report.say(f"\npage cache read back into {pages} pages; mapped in 2 MiB pages: {shares}")
    report.setup[f"share mapped in 2 MiB pages, read back into {pages} pages"] = huge
    for work, contenders_of in (("windows", window_contenders), ("batches", batch_contenders)):
        rows = []
        names: list[str] = []
        for shape in size.shapes:
            contenders = contenders_of(sources, shape)
            names = [contender.name for contender in contenders]
            timings = time_shape(sources, shape, contenders, size)
            rows.append([str(shape), *cells_of(report, timings, work=work, pages=pages, shape=shape)])
            if shape == size.judged:
                judge(report, timings, work=work, where=f"at {shape}, {pages} pages")
        report.show(f"{work}, {pages} pages: Mtokens/s (ratio to the limit, {names[0]})", ["B x m", *names], rows)


def time_shape(sources: Sources, shape: Shape, contenders: Sequence[Contender], size: Size) -> Timings:
    """Seconds of one batch in each round, of each contender; the first contender is the limit."""
    num_calls = max(1, size.touched_bytes // (2 * shape.batch_size * shape.context_length))

    def prepare(number: int) -> Round:
        # The starts are get_batch's own, overheard from its calls of `windows`, so that it draws what others are given.
        with mock.patch.object(sources.dataset, "windows", wraps=sources.dataset.windows) as windows:
            draw_batches(sources.dataset, shape, number, num_calls)
        return Round(number, [call.args[0] for call in windows.call_args_list])

    check_alike(contenders, Round(0, prepare(0).starts[:1]))
    timings = take_turns({c.name: c.run for c in contenders}, prepare, num_rounds=size.num_rounds)
    num_done = {c.name: len(range(0, num_calls, c.every)) for c in contenders}
    return Timings({name: [s / num_done[name] for s in seconds] for name, seconds in timings.seconds.items()})


def check_alike(contenders: Sequence[Contender], given: Round) -> None:
    """Stop unless all contenders make the same of one batch."""
    # Of either kind: rows of windows, or inputs and targets. Copied, since a contender may keep its memory.
    results = {c.name: np.stack([np.asarray(part) for part in c.run(given)]) for c in contenders}
    for name, result in results.items():
        if not np.array_equal(result, results[contenders[0].name]):
            raise AssertionError(f"{name} differs from {contenders[0].name}")


def each(call: Call, *, every: int = 1) -> Callable[[Round], object]:
    """A turn: one call for each batch. A result lives until the next one is there, as in a training loop."""

    def run(given: Round) -> object:
        result: object = None
        for starts in given.starts[::every]:
            result = call(starts)
        return result

    return run


def draw_batches(tokens: shardstream.TokenDataset | Tokens, shape: Shape, seed: int, num_calls: int) -> object:
    """What ``each`` does, for the function that draws its starts itself."""
    generator = torch.Generator().manual_seed(seed)
    batch = None
    for _ in range(num_calls):
        batch = shardstream.get_batch(tokens, *shape, generator=generator)
    return batch


def fastest_gather(tokens: Tokens, length: int) -> Callable[[NDArray[np.int64]], Tokens]:
    """The fastest way that is known to gather windows of one array with NumPy.

    Rows as opaque elements are copied without a loop over tokens. And one token of each is read first: the processor
    waits for all of those cache misses at once, where the copy waits for one row after the other.
    """
    rows = np.ndarray((len(tokens) - length + 1,), f"V{tokens.itemsize * length}", tokens.data, strides=tokens.strides)

    def gather(starts: NDArray[np.int64]) -> Tokens:
        tokens[starts]
        windows: Tokens = rows[starts].view(tokens.dtype).reshape(len(starts), length)
        return windows

    return gather


def into_fresh_memory(windows: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of windows, widened."""
    # NumPy's own memory: torch's costs 2 to 5 microseconds more, and the cast is NumPy's either way.
    return torch.from_numpy(windows[:, :-1].astype(np.int64)), torch.from_numpy(windows[:, 1:].astype(np.int64))


def nanogpt_batch(path: Path, starts: NDArray[np.int64], m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What nanoGPT does with these starts; as it stands there, but for the draw."""
    data = np.memmap(path, dtype=np.uint16, mode="r")
    ix = torch.from_numpy(starts)
    x = torch.stack([torch.from_numpy((data[i : i + m]).astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + m]).astype(np.int64)) for i in ix])
    return x, y


def window_contenders(sources: Sources, shape: Shape) -> list[Contender]:
    """Windows in the stored dtype, shape (B, m + 1)."""
    length = shape.context_length + 1
    # Made once: NumPy takes ten microseconds over it.
    of_mapped = sliding_window_view(sources.mapped, length)
    of_memory = sliding_window_view(sources.in_memory, length)
    buffer = np.empty((shape.batch_size, length), np.uint16)

    def loop(starts: NDArray[np.int64]) -> Tokens:
        for index, start in enumerate(starts.tolist()):
            buffer[index] = sources.mapped[start : start + length]
        return buffer

    return [
        Contender("one memmap", each(lambda starts: of_mapped[starts])),
        Contender("one memmap, fastest way", each(fastest_gather(sources.mapped, length))),
        Contender("one array in memory", each(lambda starts: of_memory[starts])),
        Contender("dataset.windows", each(lambda starts: sources.dataset.windows(starts, length))),
        Contender("Python loop, kept buffer", each(loop)),
    ]


def batch_contenders(sources: Sources, shape: Shape) -> list[Contender]:
    """Inputs and targets, int64 tensors of shape (B, m) each, contiguous."""
    batch_size, m = shape
    view = sliding_window_view(sources.mapped, m + 1)
    fastest = fastest_gather(sources.mapped, m + 1)
    kept = torch.empty((2, batch_size, m), dtype=torch.int64)
    kept_2BM = kept.numpy()

    def into_kept_memory(windows: Tokens) -> torch.Tensor:
        kept_2BM[0] = windows[:, :-1]
        kept_2BM[1] = windows[:, 1:]
        return kept

    def stack_loop(starts: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        data = sources.memmap
        x = np.stack([data[i : i + m] for i in starts])
        y = np.stack([data[i + 1 : i + 1 + m] for i in starts])
        return torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.int64))

    def get_batch(tokens: shardstream.TokenDataset | Tokens) -> Callable[[Round], object]:
        return lambda given: draw_batches(tokens, shape, given.seed, len(given.starts))

    return [
        Contender("one memmap, fresh memory", each(lambda starts: into_fresh_memory(view[starts]))),
        Contender("one memmap, kept memory", each(lambda starts: into_kept_memory(view[starts]))),
        Contender("fastest way, fresh memory", each(lambda starts: into_fresh_memory(fastest(starts)))),
        Contender("get_batch", get_batch(sources.dataset)),
        Contender("get_batch on the memmap", get_batch(sources.memmap)),
        Contender("np.stack loop", each(stack_loop, every=8), every=8),
        Contender(
            "nanoGPT's get_batch", each(lambda starts: nanogpt_batch(sources.path, starts, m), every=32), every=32
        ),
    ]


def cells_of(report: Report, timings: Timings, *, work: str, pages: str, shape: Shape) -> list[str]:
    """Note one shape's figures; return them as cells of a table."""
    limit = next(iter(timings.seconds))
    num_tokens = shape.batch_size * shape.context_length
    cells = []
    for name in timings.seconds:
        mtokens_per_s = num_tokens / timings.best(name) / 1e6
        report.figures.append(
            {
                "work": work,
                "pages": pages,
                **shape._asdict(),
                "contender": name,
                "best_s": timings.best(name),
                "mtokens_per_s": mtokens_per_s,
                "ratio_to_limit": timings.ratio(name, limit),
                "median_ratio_to_limit": timings.median_ratio(name, limit),
            }
        )
        cells.append(f"{mtokens_per_s:,.0f} ({timings.ratio(name, limit):.2f})")
    return cells


def judge(report: Report, timings: Timings, *, work: str, where: str) -> None:
    """Hold figures against the bars, and say what tells how high these are."""
    limit = next(iter(timings.seconds))
    if work == "windows":
        pairs = [("dataset.windows", limit, 0.9)]
        others = [("dataset.windows", "one memmap, fastest way")]
    else:
        # The starts are handed to the limits; get_batch draws them, and is judged with that.
        pairs = [("get_batch", limit, 0.8), ("get_batch", "np.stack loop", 8)]
        # Where the limit itself is not so far ahead of the loop, no reader can be.
        others = [("get_batch", "fastest way, fresh memory"), (limit, "np.stack loop")]
    for name, other, bar in pairs:
        report.bars.append(Bar(name=f"{name} / {other}, {where}", bar=bar, got=timings.ratio(name, other)))
    for name, other in others:
        report.say(f"{name} / {other}, {where}: {timings.ratio(name, other):.2f}")


if __name__ == "__main__":
    sys.exit(main())
