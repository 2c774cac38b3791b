"""``shardstream bench``: how fast this dataset is on this disk."""

import time

import numpy as np
import rich_click as click

import shardstream
from shardstream import TokenDataset
from shardstream.cli.cache import cache_dir_option
from shardstream.cli.look import trust_locations_option
from shardstream.cli.measure import batch_maker, has_module, times_of
from shardstream.cli.program import Verb, examples, wrong_use
from shardstream.cli.report import Fact, count, counted, json_option, print_report, seconds_text, size, size_text, text
from shardstream.cli.size import size_of

_READ_TOKENS = 2**22  # 8 or 16 MiB at a time


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream bench data/train",
        "shardstream bench data/train --batch-size 512 --context-length 2048 --json",
    ),
)
@click.argument("uri")
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N", default=64, show_default=True, help="Windows of a batch."
)
@click.option(
    "--context-length",
    type=click.IntRange(min=1),
    metavar="N",
    default=1024,
    show_default=True,
    help="Inputs of a window; it holds one token more.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    metavar="S",
    default=3.0,
    show_default=True,
    help="Time for each of the two measurements.",
)
@cache_dir_option
@click.option(
    "--max-cache-bytes", type=size_of, metavar="SIZE", help="The most that the cache may take.  [default: no bound]"
)
@trust_locations_option
@json_option
def bench(
    uri: str,
    *,
    batch_size: int,
    context_length: int,
    seconds: float,
    cache_dir: str | None,
    max_cache_bytes: int | None,
    trust_locations: bool,
    as_json: bool,
) -> None:
    """Measure how fast a dataset can be read where it lies.

    Batches of windows at random positions are made into int64 tensors on the CPU (arrays, where torch is not installed),
    by one thread; then the dataset is read from its beginning on. What the system still holds in its page cache counts
    as read: the first run after a reboot, or a dataset larger than memory, shows the disk.

    A dataset behind a URL, or a compressed one, is read through the cache, and the first run measures its downloads;
    after `shardstream warm` it is the cache that is measured.
    """
    with wrong_use():
        began = time.perf_counter()
        dataset = shardstream.open(
            uri, cache_dir=cache_dir, max_cache_bytes=max_cache_bytes, trust_locations=trust_locations
        )
        open_seconds = time.perf_counter() - began
        _check_long_enough(dataset, context_length)
    began = time.perf_counter()
    dataset.windows([len(dataset) // 2 - context_length // 2], context_length + 1)
    first_window_seconds = time.perf_counter() - began

    draw_batch = batch_maker(dataset, batch_size, context_length)
    draw_batch()  # imports torch
    times = times_of(draw_batch, seconds)
    num_bytes, read_seconds = _read_in_order(dataset, seconds)

    windows_per_second = batch_size * len(times) / float(times.sum())
    tokens_per_second = windows_per_second * context_length
    median, slow = (float(quantile) for quantile in np.quantile(times, (0.5, 0.95)))
    mb_per_second = num_bytes / read_seconds / 1e6
    kind = "tensors" if has_module("torch") else "arrays, for want of torch"
    print_report(
        [
            text("uri", "dataset", dataset.uri),
            size("num_bytes", "size", dataset.manifest.num_bytes),
            Fact("open_seconds", "open", open_seconds, seconds_text(open_seconds)),
            Fact("first_window_seconds", "first window", first_window_seconds, seconds_text(first_window_seconds)),
            count("batch_size", "batch size", batch_size),
            count("context_length", "context length", context_length),
            text("batches", "batches", f"int64 {kind}"),
            Fact("windows_per_second", "windows", windows_per_second, f"{windows_per_second:,.0f} per second"),
            Fact("tokens_per_second", "tokens", tokens_per_second, f"{tokens_per_second / 1e6:,.1f} M per second"),
            Fact("batch_seconds_p50", "a batch, median", median, seconds_text(median)),
            Fact("batch_seconds_p95", "a batch, 95 % within", slow, seconds_text(slow)),
            Fact(
                "num_batches", "batches measured", len(times), f"{len(times):,} in {seconds_text(float(times.sum()))}"
            ),
            Fact(
                "sequential_mb_per_second",
                "in order",
                mb_per_second,
                f"{mb_per_second:,.0f} MB/s, {size_text(num_bytes)} read",
            ),
            *_downloads(dataset),
        ],
        as_json=as_json,
    )
    if not as_json:
        click.echo("Measured in one thread, on the CPU. What the page cache holds counts as read.")


def _check_long_enough(dataset: TokenDataset, context_length: int) -> None:
    if len(dataset) <= context_length:
        raise ValueError(
            f"{len(dataset):,} tokens are too few for --context-length {context_length}: a window takes one more"
        )


def _downloads(dataset: TokenDataset) -> list[Fact]:
    """What was not in the cache, where there is one."""
    if dataset.cache is None:
        return []
    traffic = dataset.traffic()
    received = f"{counted(traffic.num_downloads, 'shard')}, {size_text(traffic.num_received_bytes)} received"
    return [Fact("num_downloads", "downloaded", traffic.num_downloads, received)]


def _read_in_order(dataset: TokenDataset, seconds: float) -> tuple[int, float]:
    """Read from the beginning to the end, or for so many seconds; return bytes and seconds."""
    num_tokens = 0
    began = time.perf_counter()
    while num_tokens < len(dataset) and (not num_tokens or time.perf_counter() - began < seconds):
        num_tokens += len(dataset[num_tokens : num_tokens + _READ_TOKENS])
    return num_tokens * dataset.dtype.itemsize, time.perf_counter() - began
