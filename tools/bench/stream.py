"""The whole loop of a batch stream: warm, cold, its first batch, its state, its memory, and beside a model that computes.

Warm, it is held against the limit that read.py explains (one contiguous file, gathered and widened by NumPy, starts
given) and against nanoGPT's `get_batch`. Cold, every file is dropped from the page cache before each turn, and it is
held against the same windows read through a plain memory map and against what fio gets out of the same disk. A cold pass
can be no faster than the same pass from memory, which one core makes: that stands beside it.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import MIB, Bar, Report, arguments, claim_memory, scratch_folder, take_turns
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from read import VOCAB_SIZE, WRITE_TOKENS, into_fresh_memory, nanogpt_batch, read_back, touch, write_both

import shardstream


class Size(NamedTuple):
    """How much is measured."""

    num_shards: int
    shard_tokens: int
    batch_size: int
    context_length: int
    num_rounds: int
    num_warm_batches: int
    """Of a turn."""
    num_cold_batches: int
    num_memmap_batches: int
    """Fewer, as each window waits for the disk."""
    fio_s: int
    num_steps: int
    """Of each model."""


FULL = Size(512, 2**21, 64, 1024, 12, 2048, 1024, 32, 3, 1000)
QUICK = Size(8, 2**14, 4, 32, 2, 8, 8, 2, 0, 5)
STEP_S = 0.02
MANY_WINDOWS = 10**6
COLD_ROUNDS = 5


def main() -> int:
    options = arguments(__doc__.partition("\n")[0])
    size = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    report = Report("stream", options)
    report.setup |= {
        "num_tokens": size.num_shards * size.shard_tokens,
        **size._asdict(),
        "torch_threads": torch.get_num_threads(),
    }
    with scratch_folder(options) as folder:
        write_both(folder, num_shards=size.num_shards, shard_tokens=size.shard_tokens)
        paths = [folder / "one.bin", *sorted((folder / "sharded").glob("*.bin"))]
        for pages in ("2 MiB", "small"):
            read_back(paths, huge=pages == "2 MiB")
            measure_warm(report, size, pages, folder)
        measure_start(report, size, folder)
        measure_memory(report, size, folder, num_windows=2**10 if options.quick else MANY_WINDOWS)
        measure_waiting(report, size, folder)
        measure_cold(report, size, folder)
    return report.finish()


def stream_of(dataset: shardstream.TokenDataset, size: Size, **options: Any) -> shardstream.BatchStream:
    return shardstream.BatchStream(
        dataset, batch_size=size.batch_size, context_length=size.context_length, dp_rank=0, dp_world_size=1, **options
    )


def drain(stream: shardstream.BatchStream, num_batches: int) -> None:
    for _ in range(num_batches):
        batch = next(stream)  # lives until the next one is there, as in a training loop
    del batch


def drawn_starts(size: Size, seed: int, num_batches: int) -> NDArray[np.int64]:
    """Random windows at multiples of context_length, as the stream's own."""
    num_windows = (size.num_shards * size.shard_tokens - 1) // size.context_length
    windows = np.random.default_rng(seed).integers(0, num_windows, (num_batches, size.batch_size))
    return windows * size.context_length


def measure_warm(report: Report, size: Size, pages: str, folder: Path) -> None:
    """The loop from memory, in each order, beside the limit and nanoGPT."""
    tokens: NDArray[np.uint16] = np.memmap(folder / "one.bin", np.uint16, mode="r").view(np.ndarray)
    m = size.context_length
    view = sliding_window_view(tokens, m + 1)

    def limit(starts: NDArray[np.int64]) -> None:
        for of_batch in starts:
            batch = into_fresh_memory(view[of_batch])
        del batch

    def nanogpt(starts: NDArray[np.int64]) -> None:
        for of_batch in starts[::32]:
            batch = nanogpt_batch(folder / "one.bin", of_batch, m)
        del batch

    with shardstream.open(folder / "sharded") as dataset:
        touch(dataset, tokens)
        streams = {order: stream_of(dataset, size, order=order) for order in ("shuffle", "block-shuffle", "sequential")}
        contenders: dict[str, Any] = {
            "gather and widen, one memmap": limit,
            **{
                f"BatchStream, {order}": lambda starts, stream=stream: drain(stream, len(starts))  # type: ignore[misc]
                for order, stream in streams.items()
            },
            "nanoGPT's get_batch": nanogpt,
        }
        timings = take_turns(
            contenders, lambda number: drawn_starts(size, number, size.num_warm_batches), num_rounds=size.num_rounds
        )
    num_done = dict.fromkeys(contenders, size.num_warm_batches)
    num_done["nanoGPT's get_batch"] = len(range(0, size.num_warm_batches, 32))
    best = {name: timings.best(name) / num_done[name] for name in contenders}
    first = next(iter(best))
    rows = []
    for name, seconds in best.items():
        speed = size.batch_size * m / seconds / 1e6
        report.figures.append(
            {"work": "warm", "pages": pages, "contender": name, "batch_s": seconds, "mtokens_per_s": speed}
        )
        rows.append([name, f"{speed:,.0f}", f"{seconds * 1e6:,.1f}", f"{best[first] / seconds:.2f}"])
    report.show(
        f"warm, {pages} pages, {size.batch_size} x {m}", ["", "Mtokens/s", "us / batch", "ratio to limit"], rows
    )
    ours = best["BatchStream, shuffle"]
    for name, bar in ((first, 0.8), ("nanoGPT's get_batch", 20)):
        report.bars.append(Bar(name=f"warm BatchStream / {name}, {pages} pages", bar=bar, got=best[name] / ours))


def measure_start(report: Report, size: Size, folder: Path) -> None:
    """How long the first batch and a resume take, and how large a state is."""
    firsts, loads = [], []
    for number in range(20):
        begun = time.perf_counter()
        with shardstream.open(folder / "sharded") as dataset:
            stream = stream_of(dataset, size, seed=number)
            next(stream)
            firsts.append(time.perf_counter() - begun)
            stream._num_samples = 10**12  # noqa: SLF001 - a run of that length would take months
            state = stream.state_dict()
            fresh = stream_of(dataset, size, seed=number)
            begun = time.perf_counter()
            fresh.load_state_dict(state)
            loads.append(time.perf_counter() - begun)
    report.figures.append({"work": "start", "first_batch_s": firsts, "load_state_dict_s": loads})
    for name, seconds, bar in (
        ("open and first batch, warm", firsts, 20),
        ("load_state_dict at sample 10^12", loads, 5),
    ):
        report.say(f"{name}: median {statistics.median(seconds) * 1e3:.2f} ms, worst {max(seconds) * 1e3:.2f} ms")
        report.bars.append(Bar(name=name, bar=bar, got=statistics.median(seconds) * 1e3, unit=" ms", at_most=True))
    report.bars.append(Bar(name="state as JSON", bar=1000, got=len(json.dumps(state)), unit=" bytes", at_most=True))


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise LookupError("/proc/self/status has no RssAnon")


def measure_memory(report: Report, size: Size, folder: Path, *, num_windows: int) -> None:
    with shardstream.open(folder / "sharded") as dataset:
        stream = stream_of(dataset, size)
        drain(stream, 4)
        before = anonymous_bytes()
        drain(stream, -(-num_windows // size.batch_size))
        growth = (anonymous_bytes() - before) / MIB
    name = f"anonymous memory grown over {num_windows:,} windows"
    report.bars.append(Bar(name=name, bar=16, got=growth, unit=" MiB", at_most=True))


def measure_waiting(report: Report, size: Size, folder: Path) -> None:
    """Beside a model that takes 20 ms a step: it waits for something, or keeps a core busy."""
    matrix = torch.ones(256, 256)

    def compute() -> None:
        until = time.perf_counter() + STEP_S
        while time.perf_counter() < until:
            matrix @ matrix  # pyright: ignore[reportUnusedExpression]

    for kind, step in (("sleeps", lambda: time.sleep(STEP_S)), ("computes", compute)):
        with shardstream.open(folder / "sharded") as dataset, stream_of(dataset, size) as stream:
            for _ in range(size.num_steps):
                next(stream)
                step()
            stats = stream.stats()
        report.figures.append({"work": "waiting", "model": kind, "share": stats.wait_share, "p95_s": stats.wait_p95_s})
        report.say(
            f"a model that {kind}: waits p50 {stats.wait_p50_s * 1e6:.0f} us, p95 {stats.wait_p95_s * 1e6:.0f} us"
        )
        name = f"share of waiting, a model that {kind} for 20 ms"
        report.bars.append(Bar(name=name, bar=1, got=100 * stats.wait_share, unit=" %", at_most=True))


def fio(path: Path, size: Size, figure: str, *options: str) -> float:
    """One figure of what fio reads of a file past the page cache; 0 where there is no fio, or nothing to measure."""
    if shutil.which("fio") is None or not size.fio_s:
        return 0.0
    command = [
        *("fio", "--name=read", f"--filename={path}", "--readonly", "--direct=1", "--ioengine=libaio", "--time_based"),
        *(f"--runtime={size.fio_s}", "--output-format=json", *options),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"][figure])


def drop(paths: Sequence[Path]) -> None:
    """Drop files from the page cache, and give the cache memory to take."""
    num_bytes = 0
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        num_bytes += path.stat().st_size
    claim_memory(num_bytes)


def write_default(folder: Path) -> None:
    """Write the tokens of ``sharded/`` once more as ``default/``, in shards of the size that nobody chose."""
    writer = shardstream.DatasetWriter(folder / "default", vocab_size=VOCAB_SIZE)
    with shardstream.open(folder / "sharded") as dataset, writer:
        for start in range(0, len(dataset), WRITE_TOKENS):
            writer.append(dataset[start : start + WRITE_TOKENS])


def measure_cold(report: Report, size: Size, folder: Path) -> None:
    """The loop from the disk."""
    write_default(folder)
    paths = [folder / "one.bin", *folder.glob("*/*.bin")]

    def stream_once(order: str, num_batches: int | None, *, name: str = "sharded", is_cold: bool = True) -> float:
        """Windows per second; the whole epoch if no number is given."""
        if is_cold:
            drop(paths)
        with shardstream.open(folder / name) as dataset:
            stream = stream_of(dataset, size, order=order, epochs=1)
            num_batches = num_batches or len(stream)
            begun = time.perf_counter()
            drain(stream, num_batches)
            return num_batches * size.batch_size / (time.perf_counter() - begun)

    def cold_memmap(seed: int) -> float:
        drop(paths)
        data = np.memmap(folder / "one.bin", np.uint16, mode="r")
        begun = time.perf_counter()
        for starts in drawn_starts(size, seed, size.num_memmap_batches):
            for start in starts:
                data[start : start + size.context_length + 1].astype(np.int64)
        return size.num_memmap_batches * size.batch_size / (time.perf_counter() - begun)

    found: dict[str, list[float]] = {}
    for number in range(1 if report.options.quick else COLD_ROUNDS):
        for name, run in {
            "memmap, window by window": lambda: cold_memmap(number),  # noqa: B023 - called within the round
            "fio, 4 KiB random, depth 128": lambda: fio(
                folder / "one.bin", size, "iops", "--rw=randread", "--bs=4k", "--iodepth=128"
            ),
            "BatchStream, shuffle": lambda: stream_once("shuffle", size.num_cold_batches),
            "fio, 4 MiB sequential, depth 4": lambda: fio(
                folder / "one.bin", size, "bw_bytes", "--rw=read", "--bs=4m", "--iodepth=4"
            ),
            "BatchStream, block-shuffle": lambda: stream_once("block-shuffle", None),
            "BatchStream, block-shuffle, default shards": lambda: stream_once("block-shuffle", None, name="default"),
            "the same from memory": lambda: stream_once("block-shuffle", None, name="default", is_cold=False),
            "BatchStream, sequential": lambda: stream_once("sequential", None),
            "BatchStream, sequential, default shards": lambda: stream_once("sequential", None, name="default"),
        }.items():
            found.setdefault(name, []).append(run())
    window_bytes = 2 * size.context_length
    best = {name: max(rates) for name, rates in found.items()}
    rows = []
    for name, rates in found.items():
        is_bytes = name.startswith("fio, 4 MiB")
        windows = "" if is_bytes else f"{best[name]:,.0f}"
        mb = "" if name.startswith("fio, 4 KiB") else f"{best[name] * (1 if is_bytes else window_bytes) / 1e6:,.0f}"
        rows.append([name, windows, mb])
        report.figures.append({"work": "cold", "contender": name, "rates": rates, "unit": "B/s" if is_bytes else "1/s"})
    report.show(
        f"cold, {size.batch_size} x {size.context_length}, best round", ["", "windows/s", "MB/s of tokens"], rows
    )
    shuffle = best["BatchStream, shuffle"]
    report.bars.append(
        Bar(name="cold BatchStream / memmap, shuffle", bar=15, got=shuffle / best["memmap, window by window"])
    )
    if not best["fio, 4 KiB random, depth 128"]:
        report.say("fio is not installed: the bars against the disk are left out")
        return
    from_memory = best["the same from memory"] * window_bytes
    report.say(
        f"one core makes {from_memory / 1e6:,.0f} MB/s of a block-shuffled pass from memory: "
        f"{from_memory / best['fio, 4 MiB sequential, depth 4']:.2f} of fio's sequential rate is the most a cold one can be"
    )
    of_rounds = [
        ours * window_bytes / of_fio
        for ours, of_fio in zip(
            found["BatchStream, block-shuffle, default shards"], found["fio, 4 MiB sequential, depth 4"], strict=True
        )
    ]
    # A disk that others share has minutes in which it reads twice as fast as in others.
    report.say(
        "cold block-shuffle, default shards, of fio's sequential rate in the same round: "
        f"{', '.join(f'{ratio:.2f}' for ratio in of_rounds)}; median {statistics.median(of_rounds):.2f}"
    )
    report.bars += [
        Bar(
            name="cold BatchStream, windows/s / fio's 4 KiB random reads/s",
            bar=0.8,
            got=shuffle / best["fio, 4 KiB random, depth 128"],
        ),
        *(
            Bar(
                name=f"cold {name}, bytes/s / fio's sequential bytes/s",
                bar=0.7,
                got=best[name] * window_bytes / best["fio, 4 MiB sequential, depth 4"],
            )
            for name in ("BatchStream, block-shuffle", "BatchStream, block-shuffle, default shards")
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
