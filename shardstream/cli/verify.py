"""``shardstream verify``: whether every shard is what the manifest says."""

import sys
import time

import rich_click as click

from shardstream import TokenDataset, VerifyReport
from shardstream.cli.look import look_at, trust_locations_option
from shardstream.cli.program import Verb, examples, wrong_use
from shardstream.cli.progress import progress_bar
from shardstream.cli.report import console_of, counted, json_option, print_json, seconds_text, size_text


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream verify data/train",
        "shardstream verify data/train --json | jq -r '.problems[].shard'",
    ),
)
@click.argument("uri")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Shards read at a time.  [default: one per processor]"
)
@trust_locations_option
@json_option
def verify(uri: str, *, threads: int | None, trust_locations: bool, as_json: bool) -> None:
    """Read every shard of a dataset and compare it with the manifest.

    Checked are size, checksum, the range of the ids and the number of end-of-document ids; of side files, size and
    checksum. Each bad shard is named with what is wrong; the exit status is 1 then, and 0 when all is well. Behind a URL
    shards are read where they are stored, and not kept.
    """
    with wrong_use():
        dataset = look_at(uri, trust_locations=trust_locations)
    report, seconds = verified(dataset, threads, is_quiet=as_json)
    mb_per_second = report.num_bytes / seconds / 1e6
    if as_json:
        print_json(
            {
                "uri": dataset.uri,
                "ok": report.ok,
                "digest": dataset.manifest.digest,
                "num_shards": report.num_shards,
                "num_tokens": report.num_tokens,
                "num_bytes": report.num_bytes,
                "seconds": seconds,
                "mb_per_second": mb_per_second,
                "problems": [{"shard": problem.shard, "problem": problem.problem} for problem in report.problems],
            }
        )
    else:
        console = console_of(sys.stdout)
        for problem in report.problems:
            console.print(f"{problem.shard}: {problem.problem}", style="red", soft_wrap=True)
        verdict = "all well" if report.ok else counted(len(report.problems), "bad shard")
        console.print(
            f"{verdict}: {counted(report.num_shards, 'shard')}, {counted(report.num_tokens, 'token')}, {size_text(report.num_bytes)}, "
            f"read in {seconds_text(seconds)}, {mb_per_second:,.0f} MB/s",
            style="green" if report.ok else "bold red",
            soft_wrap=True,
        )
    if not report.ok:
        sys.exit(1)


def verified(dataset: TokenDataset, num_threads: int | None, *, is_quiet: bool) -> tuple[VerifyReport, float]:
    """What ``dataset.verify`` reports, and the seconds that it took; with a progress bar."""
    began = time.perf_counter()
    with progress_bar("verifying", dataset.manifest.num_bytes, is_quiet=is_quiet) as advance:
        report = dataset.verify(num_threads=num_threads, progress=lambda shard: advance(shard.num_bytes))
    return report, time.perf_counter() - began
