"""Opening a dataset of 100,000 shards and 15 trillion tokens: time and memory until the first windows are there.

The shards are sparse files, so the dataset takes an inode each and no room. Each time is the best of several fresh
processes, each memory the highest: the process has imported shardstream and done nothing else.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from measure import MIB, Bar, Report, arguments, memory_growth, scratch_folder

import shardstream

T = TypeVar("T")

VOCAB_SIZE = 2**17  # more than uint16 can hold, so tokens are uint32: the larger files
WINDOW_TOKENS = 1025


class Size(NamedTuple):
    """How much is measured."""

    num_shards: int
    shard_tokens: int
    num_windows: int
    num_processes: int


FULL = Size(100_000, 150_000_000, 1_000, 5)
QUICK = Size(100, 10_000, 10, 1)


class Step(NamedTuple):
    """One figure of one process."""

    what: str
    seconds: float
    kept_bytes: int
    peak_bytes: int


def main() -> int:
    options = arguments(__doc__.partition("\n")[0])
    size = QUICK if options.quick else FULL
    report = Report("open", options)
    with scratch_folder(options) as folder:
        begin = time.perf_counter()
        manifest_bytes = make_sparse(folder / "dataset", size)
        report.setup |= {
            **size._asdict(),
            "num_tokens": size.num_shards * size.shard_tokens,
            "manifest_bytes": manifest_bytes,
            "statistic": "best time and highest memory of fresh processes",
        }
        report.say(
            f"{size.num_shards:,} sparse shards, {size.num_shards * size.shard_tokens:,} tokens, manifest of "
            f"{manifest_bytes / MIB:.1f} MiB, made in {time.perf_counter() - begin:.1f} s"
        )
        runs = [in_fresh_process(steps_of, folder / "dataset", size) for _ in range(size.num_processes)]
    rows = []
    for steps in zip(*runs, strict=True):
        seconds = [step.seconds for step in steps]
        kept, peak = max(step.kept_bytes for step in steps), max(step.peak_bytes for step in steps)
        report.figures.append(
            {
                "step": steps[0].what,
                "best_s": min(seconds),
                "median_s": statistics.median(seconds),
                "kept_bytes": kept,
                "peak_bytes": peak,
            }
        )
        rows.append(
            [
                steps[0].what,
                f"{min(seconds) * 1e3:,.2f}",
                f"{statistics.median(seconds) * 1e3:,.2f}",
                f"{kept / MIB:,.1f}",
                f"{peak / MIB:,.1f}",
            ]
        )
    report.show(
        f"{size.num_processes} fresh processes",
        ["", "ms, best", "ms, median", "MiB kept", "MiB at its peak"],
        rows,
    )
    opening = report.figures[0]
    report.bars += [
        Bar(name="shardstream.open, time", bar=1, got=opening["best_s"], unit=" s", at_most=True),
        Bar(name="shardstream.open, peak memory", bar=100, got=opening["peak_bytes"] / 1e6, unit=" MB", at_most=True),
    ]
    return report.finish()


def make_sparse(folder: Path, size: Size) -> int:
    """Make a dataset of zeros that takes no room; return the bytes of its manifest."""
    folder.mkdir()
    num_bytes = 4 * size.shard_tokens
    entries = []
    for index in range(size.num_shards):
        name = f"shard-{index:06d}.bin"
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.truncate(descriptor, num_bytes)
        os.close(descriptor)
        # A checksum of the usual length: nobody verifies these shards.
        entries.append(
            shardstream.ShardEntry(
                name=name,
                num_tokens=size.shard_tokens,
                num_bytes=num_bytes,
                sha256=f"{index:064x}",
                min_token=0,
                max_token=VOCAB_SIZE - 1,
            )
        )
    manifest = shardstream.Manifest(vocab_size=VOCAB_SIZE, shard_tokens=size.shard_tokens, shards=tuple(entries))
    return (folder / "manifest.json").write_bytes(manifest.to_json())


def in_fresh_process(function: Callable[[Path, Size], T], folder: Path, size: Size) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, folder, size).result()


def steps_of(folder: Path, size: Size) -> list[Step]:
    """What a process does first with a dataset, timed and weighed step by step."""
    steps = []

    def step(what: str, action: Callable[[], T]) -> T:
        def timed() -> tuple[T, float]:
            begin = time.perf_counter()
            result = action()
            return result, time.perf_counter() - begin

        growth = memory_growth(timed)
        result, seconds = growth.result
        steps.append(Step(what, seconds, growth.kept, growth.peak))
        return result

    dataset = step("shardstream.open", lambda: shardstream.open(folder))
    last = len(dataset) - WINDOW_TOKENS
    starts = np.random.default_rng(0).integers(0, last, (2, size.num_windows))

    def one_by_one(starts: Sequence[int]) -> None:
        for start in starts:
            dataset.windows([start], WINDOW_TOKENS)

    step("first window", lambda: dataset.windows([0], WINDOW_TOKENS))
    step("last window", lambda: dataset.windows([last], WINDOW_TOKENS))
    step(f"{size.num_windows:,} random windows, one by one", lambda: one_by_one(starts[0].tolist()))
    step(f"{size.num_windows:,} others at once", lambda: dataset.windows(starts[1], WINDOW_TOKENS))
    step("the same once more", lambda: dataset.windows(starts[1], WINDOW_TOKENS))
    return steps


if __name__ == "__main__":
    sys.exit(main())
