"""Processes that share one cache. Run by test_cache.py.

Usage: cache_processes.py crowd FOLDER MAX_BYTES NUM_PROCESSES NUM_SHARDS NUM_ROUNDS   random shards, counted bytes
       cache_processes.py one FOLDER LOG                                             one shard by many at once
       cache_processes.py hang FOLDER                                                never ends in the middle of a download
"""

import multiprocessing
import os
import random
import re
import sys
import threading
import time
from pathlib import Path

from shardstream.storage.cache import Partial, Pin, ShardCache
from tests.storage.shards import Fill, content, entry_of, random_bytes

OURS = re.compile(r"([0-9a-f]{64})\.(tokens|[0-9a-f]{32}\.partial)")


def scan(folder: Path) -> dict[tuple[int, str], int]:
    """Sizes of the cache's files, a file that is being renamed once."""
    found = {}
    with os.scandir(folder) as files:
        for file in files:
            if name := OURS.fullmatch(file.name):
                try:
                    status = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found[status.st_ino, name[1]] = status.st_size
    return found


def watch(folder: Path, is_over: threading.Event, seen: list[int]) -> None:
    """Count bytes again and again.

    A scan takes time, in which files come and go. What two scans in a row have both seen was there at the instant
    between them, all of it at once.
    """
    before = scan(folder)
    while not is_over.is_set():
        now = scan(folder)
        seen.append(sum(min(now[file], before[file]) for file in now.keys() & before.keys()))
        before = now


def take_random_shards(folder: str, max_bytes: int, num_shards: int, num_rounds: int, seed: int) -> None:
    """Obtain and release; what is pinned is whole as long as it is."""
    rng = random.Random(seed)
    cache = ShardCache(folder, max_bytes)
    shards = [random_bytes(rng_bytes(number), number) for number in range(num_shards)]
    pin: Pin | None = None
    for _ in range(num_rounds):
        data = shards[rng.randrange(num_shards)]
        del pin  # at most one at a time: with the bound of the test, all processes find room
        pin = cache.obtain(entry_of(data), Fill(data))
        for _ in range(3):
            assert content(pin) == data
            time.sleep(rng.uniform(0, 0.001))
    counts = cache.counts
    print(f"{counts.num_hits} hits, {counts.num_downloads} downloads, {counts.num_evictions} evictions")


def rng_bytes(number: int) -> int:
    return 20_000 + 997 * number


def crowd(folder: Path, max_bytes: int, num_processes: int, num_shards: int, num_rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    seen: list[int] = []
    is_over = threading.Event()
    watcher = threading.Thread(target=watch, args=[folder, is_over, seen])
    processes = [
        context.Process(target=take_random_shards, args=[str(folder), max_bytes, num_shards, num_rounds, seed])
        for seed in range(num_processes)
    ]
    for process in processes:
        process.start()
    watcher.start()
    for process in processes:
        process.join()
    is_over.set()
    watcher.join()
    assert [process.exitcode for process in processes] == [0] * num_processes
    print(f"{len(seen)} counts, at most {max(seen)} of {max_bytes} bytes")
    assert max(seen) <= max_bytes
    assert max(seen) > max_bytes // 2, "the watcher saw no full cache"
    assert len(seen) > 100, "the watcher hardly looked"


def take_one(folder: str, log: str) -> None:
    """Want the one shard, and say so when it is downloaded."""
    data = random_bytes(100_000)

    def fill(partial: Partial) -> None:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.1)  # the others come meanwhile
        Fill(data)(partial)

    assert content(ShardCache(folder, None).obtain(entry_of(data), fill)) == data


def one(folder: str, log: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=take_one, args=[folder, log]) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def hang(folder: str) -> None:
    data = random_bytes(100_000)

    def fill(partial: Partial) -> None:
        partial.write(0, memoryview(data[:50_000]))
        print("half", flush=True)
        time.sleep(600)

    ShardCache(folder, None).obtain(entry_of(data), fill)


def main() -> None:
    what, folder, *rest = sys.argv[1:]
    if what == "crowd":
        crowd(Path(folder), *map(int, rest))
    elif what == "one":
        one(folder, *rest)
    else:
        hang(folder)


if __name__ == "__main__":
    main()
