"""``shardstream copy``: a dataset from one place to another."""

import time

import rich_click as click

import shardstream
from shardstream.cli.look import look_at
from shardstream.cli.program import Interrupted, Verb, examples, wrong_use
from shardstream.cli.progress import progress_bar
from shardstream.cli.report import Fact, count, json_option, print_report, rate, seconds_text, size, text


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream copy data/train s3://bucket/train",
        "shardstream copy s3://bucket/train /scratch/train --threads 8",
    ),
)
@click.argument("src")
@click.argument("dst")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", default=4, show_default=True, help="Shards at a time."
)
@json_option
def copy(src: str, dst: str, *, threads: int, as_json: bool) -> None:
    """Copy a dataset from one folder or URL to another.

    Stored bytes are copied as they are, so compressed shards stay compressed. Each shard's size and checksum are verified
    on its way. The copy appears when it is complete; DST must be empty or hold a copy of the same dataset.

    After a crash the same command goes on with the shards that are not there yet.
    """
    with wrong_use():
        manifest = look_at(src, trust_locations=True).manifest  # what cannot be copied is refused by who copies
    num_bytes = sum(entry.file_bytes for entry in manifest.shards)
    began = time.perf_counter()
    try:
        with wrong_use(), progress_bar("copying", num_bytes, is_quiet=as_json) as advance:
            copied = shardstream.copy(src, dst, num_threads=threads, progress=advance)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; nothing is published, the same command goes on") from error
    seconds = time.perf_counter() - began
    print_report(
        [
            text("uri", "dataset", dst),
            text("digest", "digest", manifest.digest),
            count("num_shards", "shards", len(manifest.shards)),
            size("num_bytes", "stored size", num_bytes),
            count("num_present_shards", "there already", len(manifest.shards) - len(copied)),
            count("num_copied_shards", "copied", len(copied)),
            Fact("seconds", "time", seconds, seconds_text(seconds)),
            rate(sum(entry.file_bytes for entry in copied), seconds),
        ],
        as_json=as_json,
    )
