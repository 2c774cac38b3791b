"""``shardstream cache``: the shards that were downloaded to this machine."""

import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Final

import rich_click as click

from shardstream import CachedShard, ShardCache
from shardstream.cli.program import Verb, Verbs, examples, wrong_use
from shardstream.cli.progress import progress_bar
from shardstream.cli.report import console_of, counted, json_option, print_json, seconds_text, size_text
from shardstream.cli.size import size_of

_SHORT: Final = 12  # digits that tell checksums apart, as git shows them

cache_dir_option: Final = click.option(
    "--cache-dir",
    metavar="DIR",
    help="Folder of the cache.  [default: $XDG_CACHE_HOME/shardstream, or ~/.cache/shardstream]",
)


@click.group(
    cls=Verbs,
    epilog=examples(
        "shardstream cache ls",
        "shardstream cache prune --max-bytes 100GB",
    ),
)
def cache() -> None:
    """List, check or empty the cache of downloaded shards.

    Datasets behind a URL, and compressed ones, are read through a folder of whole, verified, raw shards that all
    processes and datasets of this machine share.
    """


@cache.command(cls=Verb, epilog=examples("shardstream cache ls", "shardstream cache ls --json | jq .num_bytes"))
@cache_dir_option
@json_option
def ls(*, cache_dir: str | None, as_json: bool) -> None:
    """List the shards in the cache, used last first.

    Each is named by the beginning of its checksum; what reads it now keeps it in use, and nothing removes it.
    """
    shards = _opened(cache_dir)
    found = shards.shards()
    if as_json:
        print_json({"cache_dir": str(shards.folder), **_totals(found), "shards": [_row(shard) for shard in found]})
        return
    console = console_of(sys.stdout)
    for shard in found:
        used = datetime.fromtimestamp(shard.used_s, tz=timezone.utc).astimezone()
        console.print(
            f"{shard.sha256[:_SHORT]}  {size_text(shard.num_bytes):>11}  used {used:%Y-%m-%d %H:%M}"
            f"{'  in use' if shard.is_pinned else ''}",
            soft_wrap=True,
        )
    console.print(
        f"{_summary(found)} in {shards.folder}, {sum(shard.is_pinned for shard in found):,} in use",
        style="bold",
        soft_wrap=True,
    )


@cache.command(
    cls=Verb, epilog=examples("shardstream cache verify", "shardstream cache verify --cache-dir /scratch/shards")
)
@cache_dir_option
@json_option
def verify(*, cache_dir: str | None, as_json: bool) -> None:
    """Read every shard in the cache again and throw damaged ones away.

    What was thrown away is downloaded again when it is needed. The exit status is 1 if any shard was damaged.
    """
    shards = _opened(cache_dir)
    found = shards.shards()
    num_bytes = sum(shard.num_bytes for shard in found)
    began = time.perf_counter()
    with progress_bar("verifying", num_bytes, is_quiet=as_json) as advance:
        damaged = shards.throw_away_damaged(lambda shard: advance(shard.num_bytes))
    seconds = time.perf_counter() - began
    if as_json:
        print_json(
            {
                "cache_dir": str(shards.folder),
                "ok": not damaged,
                **_totals(found),
                "seconds": seconds,
                "damaged": [shard.sha256 for shard in damaged],
            }
        )
    else:
        console = console_of(sys.stdout)
        for shard in damaged:
            console.print(f"{shard.sha256}: damaged, thrown away", style="red", soft_wrap=True)
        console.print(
            f"{counted(len(damaged), 'damaged shard') if damaged else 'all well'}: {_summary(found)} in {shards.folder}, "
            f"read in {seconds_text(seconds)}, {num_bytes / seconds / 1e6:,.0f} MB/s",
            style="bold red" if damaged else "green",
            soft_wrap=True,
        )
    if damaged:
        sys.exit(1)


@cache.command(cls=Verb, epilog=examples("shardstream cache prune --max-bytes 100GB", "shardstream cache prune --all"))
@click.option(
    "--max-bytes",
    type=size_of,
    metavar="SIZE",
    help="Stop when the cache takes no more than this, such as 10GB or 500MiB.",
)
@click.option("--all", "is_all", is_flag=True, help="Remove every shard that is not in use.")
@cache_dir_option
@json_option
def prune(*, max_bytes: int | None, is_all: bool, cache_dir: str | None, as_json: bool) -> None:
    """Remove shards that nobody reads, those used longest ago first.

    Shards in use stay, whatever the bound; so do files that the cache did not make.
    """
    if is_all == (max_bytes is not None):
        raise click.UsageError("say how much to remove: either --max-bytes SIZE or --all")
    shards = _opened(cache_dir)
    # A cache that is not there is not made in order to be emptied.
    removed = shards.evict(down_to_bytes=max_bytes or 0) if shards.folder.is_dir() else []
    left = shards.shards()
    if as_json:
        print_json(
            {
                "cache_dir": str(shards.folder),
                **_totals(left),
                "removed": [_row(shard) for shard in removed],
            }
        )
        return
    console = console_of(sys.stdout)
    for shard in removed:
        console.print(f"{shard.sha256[:_SHORT]}  {size_text(shard.num_bytes):>11}  removed", soft_wrap=True)
    in_use = [shard for shard in left if shard.is_pinned]
    console.print(
        f"removed {_summary(removed)}; {_summary(left)} left in {shards.folder}, {len(in_use):,} in use",
        style="bold",
        soft_wrap=True,
    )


def _opened(cache_dir: str | None) -> ShardCache:
    with wrong_use():
        return ShardCache(cache_dir)


def _summary(shards: Sequence[CachedShard]) -> str:
    return f"{counted(len(shards), 'shard')}, {size_text(sum(shard.num_bytes for shard in shards))}"


def _totals(shards: Sequence[CachedShard]) -> dict[str, Any]:
    return {
        "num_shards": len(shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_in_use": sum(shard.is_pinned for shard in shards),
    }


def _row(shard: CachedShard) -> dict[str, Any]:
    return {
        "sha256": shard.sha256,
        "num_bytes": shard.num_bytes,
        "used_s": shard.used_s,
        "in_use": shard.is_pinned,
    }
