"""How verbs that only look at a dataset open it."""

from typing import Final

import rich_click as click

import shardstream
from shardstream import FormatError, TokenDataset

trust_locations_option: Final = click.option(
    "--trust-locations",
    is_flag=True,
    help="Follow the manifest to files outside the dataset, and follow links. For what you adopted yourself.",
)


def look_at(uri: str, *, trust_locations: bool = False) -> TokenDataset:
    """Open a dataset so that reading leaves nothing behind; a compressed one is read through the cache all the same."""
    try:
        return shardstream.open(uri, cache_dir=False, trust_locations=trust_locations)
    except FormatError:
        raise
    except ValueError:  # compressed; or the URL is wrong, and is so again
        return shardstream.open(uri, trust_locations=trust_locations)
