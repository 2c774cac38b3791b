"""Reading from object storage: a cold cache and a warm one, beside the raw client; requests and bytes; zstd.

Needs an S3 that the environment names, such as `eval "$(tools/s3_gateway up)"`; its bucket of objects is made here, and
removed. The server shares the machine with its clients, so the raw client is the limit of both: in each round every
contender begins with an empty folder and reads the same objects. The raw client writes what comes into files, in its
two ways: whole objects, and streamed in pieces. shardstream verifies, makes durable, and gathers a whole epoch besides.
"""

import functools
import multiprocessing
import os
import shutil
import statistics
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import botocore.session
import numpy as np
import obstore
import s3fs
import torch
from measure import MIB, Bar, Report, arguments, claim_memory, scratch_folder, take_turns
from numpy.typing import NDArray
from obstore.store import S3Store

import shardstream
from shardstream.storage import remote_store
from shardstream.storage.remote_store import RANGE_BYTES


class Size(NamedTuple):
    """How much is measured."""

    num_shards: int
    shard_tokens: int
    batch_size: int
    context_length: int
    num_rounds: int


FULL = Size(16, 2**24, 64, 1024, 5)
QUICK = Size(4, 2**14, 4, 32, 1)
NUM_THREADS = 4
NUM_NODES = 4


def main() -> int:
    options = arguments(__doc__.partition("\n")[0])
    if not os.environ.get("AWS_ENDPOINT_URL"):
        sys.exit('remote.py: no S3 to measure: eval "$(tools/s3_gateway up)" starts one, or set AWS_ENDPOINT_URL')
    size = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    report = Report("remote", options)
    report.setup |= {"num_tokens": size.num_shards * size.shard_tokens, **size._asdict(), "threads": NUM_THREADS}
    with scratch_folder(options) as folder, fresh_bucket() as url:
        write(report, size, f"{url}/raw", None)
        write(report, size, f"{url}/zstd", "zstd")
        measure_cold(report, size, url, folder)
        measure_first(report, size, url, folder)
        measure_warm(report, size, url, folder)
        measure_sharing(report, size, url, folder)
        measure_lanes(report, size, url, folder)
        measure_zstd(report, size, url, folder)
    return report.finish()


@contextmanager
def fresh_bucket() -> Iterator[str]:
    client = botocore.session.get_session().create_client("s3")
    bucket = f"shardstream-bench-{uuid.uuid4()}"
    client.create_bucket(Bucket=bucket)
    try:
        yield f"s3://{bucket}"
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for found in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=found["Key"])
        client.delete_bucket(Bucket=bucket)


def processor_s() -> float:
    """How long all processors of this machine have been busy, ever."""
    user, nice, system, _idle, _iowait, interrupts, soft_interrupts = map(
        int, Path("/proc/stat").read_text("ascii").split(maxsplit=8)[1:8]
    )
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def zipf_ids(num_tokens: int, seed: int) -> NDArray[np.uint16]:
    """Ids as uneven as words: zstd makes about as much of them as of a tokenizer's."""
    ids = np.random.default_rng(seed).zipf(1.3, num_tokens)
    return np.minimum(ids, 50_256).astype(np.uint16)


def write(report: Report, size: Size, url: str, compression: Any) -> None:
    begun = time.perf_counter()
    made_s = 0.0
    with shardstream.DatasetWriter(
        url, vocab_size=50_257, shard_tokens=size.shard_tokens, compression=compression
    ) as writer:
        for number in range(size.num_shards):
            making = time.perf_counter()
            ids = zipf_ids(size.shard_tokens, number)
            made_s += time.perf_counter() - making
            writer.append(ids)
    took = time.perf_counter() - begun - made_s
    num_bytes = writer.manifest.num_bytes
    report.say(f"written to S3, {compression or 'raw'}: {num_bytes / 1e6 / took:,.0f} MB/s of tokens")
    report.figures.append({"work": "write", "compression": compression, "mb_per_s": num_bytes / 1e6 / took})


def stream_of(dataset: shardstream.TokenDataset, size: Size, **options: Any) -> shardstream.BatchStream:
    options = {"order": "block-shuffle", "epochs": 1, "dp_rank": 0, "dp_world_size": 1, **options}
    return shardstream.BatchStream(dataset, batch_size=size.batch_size, context_length=size.context_length, **options)


def epoch(url: str, cache: Path, size: Size, **options: Any) -> shardstream.StreamStats:
    """Draw a whole epoch as fast as it comes."""
    with shardstream.open(url, cache_dir=cache) as dataset, stream_of(dataset, size, **options) as stream:
        deque(stream, maxlen=0)
        return stream.stats()


def names_of(url: str) -> list[str]:
    with shardstream.open(url) as dataset:
        return [shard.name for shard in dataset.manifest.shards]


def raw_ways(url: str) -> dict[str, Callable[[Path], None]]:
    """Download a dataset's objects with clients alone, some of them at a time, into a folder."""
    bucket = url.removeprefix("s3://")
    names = names_of(f"{url}/raw")
    store = S3Store(bucket, prefix="raw", client_options={"allow_http": True})
    fs = s3fs.S3FileSystem()

    def whole(name: str, path: Path) -> None:
        path.write_bytes(obstore.get(store, name).bytes())

    def streamed(name: str, path: Path) -> None:
        with path.open("wb") as file:
            for piece in obstore.get(store, name).stream(min_chunk_size=MIB):
                file.write(piece)

    def by_s3fs(name: str, path: Path) -> None:
        fs.get_file(f"{bucket}/raw/{name}", str(path))

    def by_threads(copy: Callable[[str, Path], object]) -> Callable[[Path], None]:
        def run(target: Path) -> None:
            with ThreadPoolExecutor(NUM_THREADS) as executor:
                list(executor.map(lambda name: copy(name, target / name), names))

        return run

    return {
        "obstore, whole objects to files": by_threads(whole),
        "obstore, streamed to files": by_threads(streamed),
        "s3fs, to files": by_threads(by_s3fs),
    }


def measure_cold(report: Report, size: Size, url: str, folder: Path) -> None:
    """An epoch into an empty cache, beside the raw clients."""
    stats: dict[str, shardstream.StreamStats] = {}

    def ours(target: Path) -> None:
        stats["shardstream"] = epoch(f"{url}/raw", target, size)

    def ours_by_s3fs(target: Path) -> None:
        with mock.patch.object(remote_store, "_obstore_pid", -1):  # as in a process forked from one that used obstore
            stats["shardstream by s3fs"] = epoch(f"{url}/raw", target, size)

    target = folder / "target"
    num_bytes = size.num_shards * size.shard_tokens * 2

    def emptied() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        os.sync()
        claim_memory(3 * num_bytes)

    contenders: dict[str, Callable[[Path], Any]] = {
        **raw_ways(url),
        "shardstream": ours,
        "shardstream by s3fs": ours_by_s3fs,
    }
    busy_s: dict[str, list[float]] = {name: [] for name in contenders}

    def watched(name: str, target: Path) -> None:
        before = processor_s()
        contenders[name](target)
        busy_s[name].append(processor_s() - before)

    timings = take_turns(
        {name: functools.partial(watched, name) for name in contenders},
        lambda _: target,
        num_rounds=size.num_rounds,
        before_each=emptied,
    )
    limit = min(list(contenders)[:2], key=timings.best)
    rows = []
    for name in contenders:
        speed = num_bytes / 1e6 / timings.best(name)
        wait = stats[name].wait_p95_s if name in stats else None
        busy = min(busy_s[name][1:])  # as of the timings, the first round does not count
        report.figures.append(
            {
                "work": "cold epoch",
                "contender": name,
                "seconds": timings.best(name),
                "mb_per_s": speed,
                "median_ratio": timings.median_ratio(name, limit),
                "wait_p95_s": wait,
                "processor_s": busy,
            }
        )
        rows.append(
            [
                *(name, f"{speed:,.0f}", f"{timings.ratio(name, limit):.2f}", f"{busy:.2f}"),
                "" if wait is None else f"{wait * 1e3:.2f}",
            ]
        )
    report.show(
        f"cold cache, whole epoch, {size.num_shards} shards of {size.shard_tokens * 2 / MIB:.0f} MiB",
        ["", "MB/s", "ratio to the faster raw way", "processors busy, s", "wait p95, ms"],
        rows,
    )
    num_cores = os.cpu_count() or 1
    least_s = min(busy_s["shardstream"][1:]) / num_cores
    report.say(
        f"the server's work included, {num_cores} processors need {least_s:.2f} s for shardstream's: no more than "
        f"{timings.best(limit) / least_s:.2f} of the faster raw way, were they never idle"
    )
    for raw in list(contenders)[:2]:
        report.bars.append(
            Bar(name=f"cold epoch, verified and durable / {raw}", bar=0.75, got=timings.ratio("shardstream", raw))
        )
    wanted = size.num_shards * -(-size.shard_tokens * 2 // RANGE_BYTES) + 1
    got = stats["shardstream"].traffic.num_requests
    report.bars.append(
        Bar(name="requests of an epoch / (ranges of all shards + 1)", bar=1, got=got / wanted, at_most=True)
    )


def measure_first(report: Report, size: Size, url: str, folder: Path) -> None:
    """From open to the first batch, beside the download of one shard by itself."""
    ratios, firsts, shards = [], [], []
    for number in range(max(3, size.num_rounds)):
        with shardstream.open(f"{url}/raw", cache_dir=folder / f"one-{number}") as dataset:
            begun = time.perf_counter()
            dataset[0]
            shards.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        with (
            shardstream.open(f"{url}/raw", cache_dir=folder / f"first-{number}") as dataset,
            stream_of(dataset, size, seed=number) as stream,
        ):
            next(stream)
            firsts.append(time.perf_counter() - begun)
        ratios.append(firsts[-1] / shards[-1])
    report.say(
        f"one shard {statistics.median(shards) * 1e3:.0f} ms; from open to the first batch "
        f"{statistics.median(firsts) * 1e3:.0f} ms (medians of {len(firsts)})"
    )
    report.figures.append({"work": "first batch", "shard_s": shards, "first_batch_s": firsts})
    report.bars.append(
        Bar(name="open to first batch, in downloads of a shard", bar=1.5, got=statistics.median(ratios), at_most=True)
    )


def measure_warm(report: Report, size: Size, url: str, folder: Path) -> None:
    """The second epoch, beside the same shards on a local disk."""
    cache, local = folder / "warm", folder / "local"
    epoch(f"{url}/raw", cache, size)
    shardstream.copy(f"{url}/raw", local)
    contenders = {"local": str(local), "warm cache": f"{url}/raw"}
    with (
        shardstream.open(contenders["local"]) as in_place,
        shardstream.open(contenders["warm cache"], cache_dir=cache) as cached,
    ):
        datasets = {"local": in_place, "warm cache": cached}

        def drain(name: str, seed: int) -> None:
            with stream_of(datasets[name], size, seed=seed) as stream:
                deque(stream, maxlen=0)

        timings = take_turns(
            {name: lambda seed, name=name: drain(name, seed) for name in datasets},  # type: ignore[misc]
            lambda number: number,
            num_rounds=size.num_rounds,
        )
    ratio = timings.ratio("warm cache", "local")
    report.say(f"second epoch from the cache: {ratio:.2f} of the local dataset's rate")
    report.figures.append({"work": "warm epoch", "seconds": {name: timings.best(name) for name in datasets}})
    report.bars.append(Bar(name="warm epoch from the cache / in place", bar=0.9, got=ratio))


def of_rank(url: str, cache: Path, size: Size, options: dict[str, Any]) -> tuple[int, int]:
    """In a process of its own: downloads, and bytes received, of an epoch."""
    torch.set_num_threads(1)
    traffic = epoch(url, cache, size, **options).traffic
    return traffic.num_downloads, traffic.num_received_bytes


def in_processes(calls: list[tuple[Any, ...]]) -> list[tuple[int, int]]:
    with ProcessPoolExecutor(len(calls), mp_context=multiprocessing.get_context("spawn")) as executor:
        return [future.result() for future in [executor.submit(of_rank, *call) for call in calls]]


def measure_sharing(report: Report, size: Size, url: str, folder: Path) -> None:
    """Two ranks at once on one cache."""
    ranks = [{"dp_rank": rank, "dp_world_size": 2} for rank in range(2)]
    found = in_processes([(f"{url}/raw", folder / "shared", size, options) for options in ranks])
    num_downloads = sum(num for num, _ in found)
    report.figures.append({"work": "two ranks, one cache", "num_downloads": num_downloads})
    report.bars.append(
        Bar(
            name="two ranks on one cache: downloads / shards",
            bar=1,
            got=num_downloads / size.num_shards,
            at_most=True,
        )
    )


def measure_lanes(report: Report, size: Size, url: str, folder: Path) -> None:
    """Nodes with a cache each, and lanes of their own."""
    nodes = [{"dp_rank": node, "dp_world_size": NUM_NODES, "lanes": NUM_NODES} for node in range(NUM_NODES)]
    found = in_processes(
        [(f"{url}/raw", folder / f"node-{number}", size, options) for number, options in enumerate(nodes)]
    )
    num_bytes = sum(num for _, num in found)
    report.figures.append({"work": "lanes", "nodes": NUM_NODES, "received_bytes": num_bytes})
    got = num_bytes / (size.num_shards * size.shard_tokens * 2)
    report.bars.append(
        Bar(name=f"{NUM_NODES} nodes with lanes: bytes received / dataset", bar=1.1, got=got, at_most=True)
    )


def measure_zstd(report: Report, size: Size, url: str, folder: Path) -> None:
    """The same tokens compressed."""
    rows = []
    for kind in ("raw", "zstd"):
        took = []
        for number in range(max(2, size.num_rounds // 2)):
            begun = time.perf_counter()
            stats = epoch(f"{url}/{kind}", folder / f"{kind}-{number}", size)
            took.append(time.perf_counter() - begun)
        report.figures.append(
            {"work": "cold epoch", "stored": kind, "seconds": took, "received_bytes": stats.traffic.num_received_bytes}
        )
        rows.append([kind, f"{stats.traffic.num_received_bytes / 1e6:,.1f}", f"{min(took):.2f}"])
    report.show("cold epoch, as it is stored", ["", "MB over the wire", "s"], rows)


if __name__ == "__main__":
    sys.exit(main())
