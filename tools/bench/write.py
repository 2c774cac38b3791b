"""Writing a dataset, against the limit: the same bytes by `tofile` and fsync.

What shardstream does beside writing: it checks the range of ids, takes a sha256 and the statistics of each shard, makes
each shard durable under a temporary name and renames it, keeps a journal, and publishes the manifest. The limit does
nothing but write and fsync, into one file or into files of a shard's size; the faster of the two is what is judged
against, although no writer of checksums can pass one core's sha256. What a plain script gets that takes them as well
stands beside it. Each turn writes fresh files; before it, those of the turn before are deleted, and the disk comes to
rest.
"""

import hashlib
import mmap
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measure import MIB, Bar, Report, Timings, arguments, claim_memory, memory_growth, scratch_folder, take_turns
from numpy.typing import NDArray

import shardstream
from shardstream.write.dataset_writer import DEFAULT_SHARD_TOKENS

VOCAB_SIZE = 50_257
EOS_ID = VOCAB_SIZE - 1


class Contender(NamedTuple):
    """One way to write."""

    name: str
    write: Callable[[Path], None]
    """Fill a folder that is not there yet."""
    num_tokens: int


class Size(NamedTuple):
    """How much is measured."""

    num_tokens: int
    piece_tokens: int
    """Tokens of one call of append."""
    num_document_tokens: int
    """Tokens written as documents; fewer, as each takes a call."""
    shard_tokens: int
    num_rounds: int
    rest_s: float
    """How long the disk rests before each turn, after sync."""


FULL = Size(2**29, 2**22, 2**27, DEFAULT_SHARD_TOKENS, 7, 1.0)
QUICK = Size(2**18, 2**14, 2**16, 2**16, 1, 0.0)
DOCUMENT_TOKENS = 1_000  # on average


def main() -> int:
    options = arguments(__doc__.partition("\n")[0])
    size = QUICK if options.quick else FULL
    report = Report("write", options)
    report.setup |= {
        **size._asdict(),
        "statistic": "best round of each contender",
        "mean_document_tokens": DOCUMENT_TOKENS,
    }
    with scratch_folder(options) as folder:
        measure_speed(report, size, folder / "target")
        measure_process(report, size, folder / "target")
        measure_bounds(report, size, folder / "target")
    return report.finish()


def random_tokens(num_tokens: int) -> NDArray[np.uint16]:
    """Ids below EOS_ID, at random."""
    tokens = np.frombuffer(bytearray(np.random.default_rng(0).bytes(2 * num_tokens)), np.uint16)
    tokens %= EOS_ID
    return tokens


def documents_of(tokens: NDArray[np.uint16]) -> Iterator[NDArray[np.uint16]]:
    """Cut tokens into documents of half to one and a half times the average length."""
    lengths = np.random.default_rng(0).integers(DOCUMENT_TOKENS // 2, 3 * DOCUMENT_TOKENS // 2, 1 << 16)
    start = index = 0
    while start < len(tokens):
        stop = start + int(lengths[index % len(lengths)])
        yield tokens[start:stop]
        start, index = stop, index + 1


def to_files(tokens: NDArray[np.uint16], target: Path, *, file_tokens: int, with_checksum: bool = False) -> None:
    """Write tokens into files of so many each; fsync each."""
    target.mkdir()
    for start in range(0, len(tokens), file_tokens):
        piece = tokens[start : start + file_tokens]
        with (target / f"{start}.bin").open("wb", buffering=0) as file:
            piece.tofile(file)
            if with_checksum:
                hashlib.sha256(piece.data)
            os.fsync(file.fileno())


def append(tokens: NDArray[Any], target: Path, *, size: Size, num_tokens: int | None = None) -> None:
    """Write ``num_tokens`` tokens in pieces: the given ones, over and over."""
    left = num_tokens or len(tokens)
    with shardstream.DatasetWriter(target, vocab_size=VOCAB_SIZE, shard_tokens=size.shard_tokens) as writer:
        while left:
            for start in range(0, min(left, len(tokens)), size.piece_tokens):
                writer.append(tokens[start : start + size.piece_tokens])
            left -= min(left, len(tokens))


def append_documents(tokens: NDArray[np.uint16], target: Path, *, size: Size) -> None:
    writer = shardstream.DatasetWriter(target, vocab_size=VOCAB_SIZE, eos_id=EOS_ID, shard_tokens=size.shard_tokens)
    with writer:
        for document in documents_of(tokens):
            writer.append_document(document)


def measure_speed(report: Report, size: Size, target: Path) -> None:
    """Time the contenders, and hold ours against the faster of the two limits."""
    tokens = random_tokens(size.num_tokens)
    wide = tokens[: size.piece_tokens * 8].astype(np.int64)
    some = tokens[: size.num_document_tokens]
    files = partial(to_files, tokens)
    limits = [
        Contender("tofile + fsync, one file", partial(files, file_tokens=len(tokens)), len(tokens)),
        Contender(
            "tofile + fsync, files of a shard's size", partial(files, file_tokens=size.shard_tokens), len(tokens)
        ),
    ]
    contenders = [
        *limits,
        Contender(
            "tofile + sha256 + fsync, the same files",
            partial(files, file_tokens=size.shard_tokens, with_checksum=True),
            len(tokens),
        ),
        Contender("append, uint16", partial(append, tokens, size=size), len(tokens)),
        Contender("append, int64", partial(append, wide, size=size, num_tokens=len(tokens)), len(tokens)),
        Contender("append_document", partial(append_documents, some, size=size), len(some)),
    ]

    def come_to_rest() -> None:
        shutil.rmtree(target, ignore_errors=True)
        os.sync()
        time.sleep(size.rest_s)
        claim_memory(2 * size.num_tokens * 5 // 4)

    timings = take_turns(
        {contender.name: lambda _, write=contender.write: write(target) for contender in contenders},
        lambda number: number,
        num_rounds=size.num_rounds,
        before_each=come_to_rest,
    )
    come_to_rest()

    # Of one token, as the documents are fewer.
    timings = Timings({c.name: [s / c.num_tokens for s in timings.seconds[c.name]] for c in contenders})
    limit = min((contender.name for contender in limits), key=timings.best)
    rows = []
    for name, _, num_tokens in contenders:
        seconds = [num_tokens * s for s in timings.seconds[name]]
        speed = 1 / timings.best(name)
        ratio, median_ratio = timings.ratio(name, limit), timings.median_ratio(name, limit)
        report.figures.append(
            {
                "contender": name,
                "num_tokens": num_tokens,
                "seconds": seconds,
                "mtokens_per_s": speed / 1e6,
                "mb_per_s": 2 * speed / 1e6,
                "ratio_to_limit": ratio,
                "median_ratio_to_limit": median_ratio,
            }
        )
        rows.append(
            [
                f"{name}  (limit)" if name == limit else name,
                f"{speed / 1e6:,.0f}",
                f"{2 * speed / 1e6:,.0f}",
                f"{ratio:.2f}",
                f"{median_ratio:.2f}",
                f"{min(seconds):.2f} - {max(seconds):.2f}",
            ]
        )
    report.show(
        f"{size.num_tokens:,} tokens, best of {size.num_rounds} rounds",
        ["", "Mtokens/s", "MB/s stored", "ratio to limit", "median ratio", "seconds, best - worst"],
        rows,
    )
    # The bar is plain `tofile`, which makes one file; how ours stands beside the faster limit, the table says.
    got = timings.ratio("append, uint16", limits[0].name)
    report.bars.append(Bar(name=f"append, uint16 / {limits[0].name}", bar=0.8, got=got))


def measure_process(report: Report, size: Size, target: Path) -> None:
    """Watch a fresh process that does nothing but write: its memory, and its processors' time."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        peak_bytes, user_s, system_s = executor.submit(append_watched, size, target).result()
    shutil.rmtree(target)
    report.figures.append(
        {"contender": "append, uint16", "peak_bytes": peak_bytes, "user_s": user_s, "system_s": system_s}
    )
    report.say(
        f"append, uint16: {user_s:.2f} s of processor time, and {system_s:.2f} s of the kernel's, "
        f"for {2 * size.num_tokens / MIB:,.0f} MiB"
    )
    report.bars.append(
        Bar(
            name="peak memory of writing beyond its input, two shards at most",
            bar=2 * 2 * size.shard_tokens / MIB,
            got=peak_bytes / MIB,
            unit=" MiB",
            at_most=True,
        )
    )


def append_watched(size: Size, target: Path) -> tuple[int, float, float]:
    tokens = random_tokens(size.num_tokens)
    before = os.times()
    growth = memory_growth(lambda: append(tokens, target, size=size))
    after = os.times()
    return growth.peak, after.user - before.user, after.system - before.system


def measure_bounds(report: Report, size: Size, target: Path) -> None:
    """What sha256 and the disk can do, each alone: the slower one bounds the writer."""
    block = random_tokens(2**21)
    num_blocks = max(1, 2 * size.num_tokens // block.nbytes)
    timings = take_turns(
        {
            "sha256, one core": partial(hash_blocks, block),
            "disk, past the page cache": partial(write_direct, target, block),
        },
        lambda _: num_blocks,
        num_rounds=min(size.num_rounds, 3),
        before_each=os.sync,
    )
    speeds = {name: num_blocks * block.nbytes / timings.best(name) / 1e6 for name in timings.seconds}
    report.figures += [{"bound": name, "mb_per_s": speed} for name, speed in speeds.items()]
    slower = min(speeds, key=lambda name: speeds[name])
    report.say(", ".join(f"{name}: {speed:,.0f} MB/s" for name, speed in speeds.items()) + f"; bound by {slower}")


def hash_blocks(block: NDArray[np.uint16], num_blocks: int) -> None:
    checksum = hashlib.sha256()
    for _ in range(num_blocks):
        checksum.update(block.data)


def write_direct(target: Path, block: NDArray[np.uint16], num_blocks: int) -> None:
    """Write to the disk itself; where the filesystem knows no O_DIRECT, through the page cache with an fsync."""
    with mmap.mmap(-1, block.nbytes) as aligned:
        aligned.write(block.data)
        flags = os.O_WRONLY | os.O_CREAT
        try:
            descriptor = os.open(target, flags | os.O_DIRECT)
        except OSError:
            descriptor = os.open(target, flags)
        try:
            for _ in range(num_blocks):
                os.write(descriptor, aligned)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
