"""``shardstream warm``: shards are downloaded before they are needed."""

import time
from typing import Any

import rich_click as click

import shardstream
from shardstream import BatchStream, TokenDataset
from shardstream.cli.cache import cache_dir_option
from shardstream.cli.program import Interrupted, Verb, examples, wrong_use
from shardstream.cli.progress import progress_bar
from shardstream.cli.report import Fact, count, json_option, print_report, rate, seconds_text, size, text
from shardstream.cli.size import size_of


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream warm s3://bucket/train",
        "shardstream warm s3://bucket/train --cache-dir /scratch/shards --dp-rank 3 --dp-world-size 8 "
        "--batch-size 32 --context-length 2048 --order block-shuffle --lanes 8",
    ),
)
@click.argument("uri")
@cache_dir_option
@click.option(
    "--max-cache-bytes",
    type=size_of,
    metavar="SIZE",
    help="The most that the cache may take, such as 500GB; shards of other datasets leave it first.  [default: no bound]",
)
@click.option("--dp-rank", type=int, metavar="R", help="Download for this data-parallel rank alone.")
@click.option("--dp-world-size", type=int, metavar="D", help="Number of data-parallel ranks.")
@click.option("--batch-size", type=int, metavar="B", help="Samples of a batch on one rank.")
@click.option("--context-length", type=int, metavar="M", help="Inputs of a sample.")
@click.option("--order", metavar="NAME", help="Order of the samples.  [default: shuffle, which needs all shards]")
@click.option("--seed", type=int, metavar="N", help="Seed of the run.  [default: 0]")
@click.option("--lanes", type=int, metavar="N", help="Lanes of block-shuffle.  [default: 1]")
@click.option("--block-tokens", type=int, metavar="N", help="Block size of block-shuffle.  [default: one shard]")
@click.option("--buffer-blocks", type=int, metavar="N", help="Blocks that block-shuffle mixes.")
@json_option
def warm(  # the options are the interface
    uri: str, *, cache_dir: str | None, max_cache_bytes: int | None, as_json: bool, **plan: Any
) -> None:
    """Download a dataset into the cache, before training needs it.

    All shards come, or with the options from --dp-rank on only those that one rank reads in its first epoch: give what
    the training script gives to BatchStream. Shards that are in the cache already are not downloaded again, so after an
    interruption the same command goes on.
    """
    with wrong_use():
        dataset = shardstream.open(uri, cache_dir=cache_dir, max_cache_bytes=max_cache_bytes)
        shards = _planned(dataset, {name: value for name, value in plan.items() if value is not None})
    entries = [dataset.manifest.shards[shard] for shard in shards]
    num_bytes = sum(entry.num_bytes for entry in entries)
    began = time.perf_counter()
    try:
        with wrong_use(), progress_bar("downloading", num_bytes, is_quiet=as_json) as advance:
            downloaded = dataset.download(shards, progress=lambda entry: advance(entry.num_bytes))
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; shards that are whole are kept, the same command goes on") from error
    seconds = time.perf_counter() - began
    num_downloaded_bytes = sum(entry.num_bytes for entry in downloaded)
    print_report(
        [
            text("uri", "dataset", dataset.uri),
            text("cache_dir", "cache", str(dataset.cache.folder) if dataset.cache else ""),
            Fact(
                "num_shards",
                "shards",
                len(shards),
                f"{len(shards):,} of the dataset's {len(dataset.manifest.shards):,}",
            ),
            size("num_bytes", "size", num_bytes),
            count("num_present_shards", "there already", len(shards) - len(downloaded)),
            count("num_downloaded_shards", "downloaded", len(downloaded)),
            Fact("seconds", "time", seconds, seconds_text(seconds)),
            rate(num_downloaded_bytes, seconds),
        ],
        as_json=as_json,
    )


def _planned(dataset: TokenDataset, plan: dict[str, Any]) -> list[int]:
    """Numbers of the shards that are asked for."""
    if not plan:
        return list(range(len(dataset.manifest.shards)))
    if missing := [f"--{name.replace('_', '-')}" for name in ("batch_size", "context_length") if name not in plan]:
        raise ValueError(f"a rank's plan needs {' and '.join(missing)} too, as given to BatchStream")
    with BatchStream(dataset, **plan) as stream:
        return stream.shards()
