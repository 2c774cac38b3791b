"""``shardstream merge``: parts written in parallel become one dataset."""

import rich_click as click

import shardstream
from shardstream.cli.info import facts_of
from shardstream.cli.program import Verb, examples, wrong_use
from shardstream.cli.report import json_option, print_report, text


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream merge data/train/part-0 data/train/part-1 --out data/train",
        "shardstream merge data/train/part-* --out data/train --overwrite",
    ),
)
@click.argument("parts", metavar="PART...", nargs=-1, required=True)
@click.option(
    "--out",
    "uri",
    metavar="URI",
    required=True,
    help="The folder or URL above all parts; the merged manifest goes there.",
)
@click.option("--overwrite", is_flag=True, help="Replace a manifest that is there.")
@json_option
def merge(parts: tuple[str, ...], uri: str, *, overwrite: bool, as_json: bool) -> None:
    """Publish datasets as one, whose token stream is theirs one after the other.

    No token is copied: a manifest is written that lists the shards of all parts where they lie, so every part must lie
    below URI and stay there. Parts must agree in vocabulary and tokenizer.
    """
    with wrong_use():
        manifest = shardstream.merge(parts, uri, overwrite=overwrite)
    print_report([text("uri", "dataset", uri), *facts_of(manifest)], as_json=as_json)
