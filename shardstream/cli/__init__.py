"""The command line: one verb, one file. Nothing heavy is imported before a verb needs it."""

import rich_click as click

from shardstream.cli.adopt import adopt
from shardstream.cli.bench import bench
from shardstream.cli.cache import cache
from shardstream.cli.copy import copy
from shardstream.cli.demo import demo
from shardstream.cli.info import info
from shardstream.cli.merge import merge
from shardstream.cli.peek import peek
from shardstream.cli.program import Program
from shardstream.cli.tokenize import tokenize
from shardstream.cli.verify import verify
from shardstream.cli.warm import warm
from shardstream.cli.write import write


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.rich_config(help_config={"text_paragraph_linebreaks": "\n\n", "max_width": 100})
@click.version_option(package_name="shardstream", message="%(prog)s %(version)s")
def main() -> None:
    """Sharded, streaming token datasets for language-model training.

    A dataset is one long token stream: shards of raw ids, and a manifest that lists them. It is named by its folder or
    URL. New here? See the whole job on real text: shardstream demo

    The exit status is 0 when all is well, 1 when data is bad or cannot be had, 2 when the command is wrong.
    """


for _verb in (
    demo,
    tokenize,
    write,
    adopt,
    merge,
    copy,
    info,
    verify,
    peek,
    bench,
    warm,
    cache,
):  # in this order the help lists them
    main.add_command(_verb)
