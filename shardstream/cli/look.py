"""How verbs that only look at a dataset open it."""

import shardstream
from shardstream import FormatError, TokenDataset


def look_at(uri: str, *, trust_locations: bool = False) -> TokenDataset:
    """Open a dataset so that reading leaves nothing behind; a compressed one is read through the cache all the same."""
    try:
        return shardstream.open(uri, cache_dir=False, trust_locations=trust_locations)
    except FormatError:
        raise
    except ValueError:  # compressed; or the URL is wrong, and is so again
        return shardstream.open(uri, trust_locations=trust_locations)
