"""``shardstream info``: what a dataset is."""

import json
from typing import Any

import rich_click as click

from shardstream.cli.look import look_at
from shardstream.cli.program import Verb, examples, wrong_use
from shardstream.cli.report import Fact, count, json_option, print_report, size, text
from shardstream.format.manifest import Manifest, TokenizerIdentity


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream info data/train",
        "shardstream info s3://bucket/train --json | jq .num_tokens",
    ),
)
@click.argument("uri")
@json_option
def info(uri: str, *, as_json: bool) -> None:
    """Say what a dataset is, from its manifest alone.

    URI is the folder or URL that holds manifest.json. No shard is opened, so this is quick wherever the dataset lies;
    whether the shards are what the manifest says, `shardstream verify` tells.
    """
    with wrong_use():
        # Where adopted files lie is no matter here: none is opened.
        dataset = look_at(uri, trust_locations=True)
    print_report([text("uri", "dataset", dataset.uri), *facts_of(dataset.manifest)], as_json=as_json)


def facts_of(manifest: Manifest) -> list[Fact]:
    """All that a manifest says, but its rows."""
    num_full = sum(shard.num_tokens == manifest.shard_tokens for shard in manifest.shards)
    num_short = len(manifest.shards) - num_full
    identity = _identity_of(manifest.tokenizer)
    metadata = dict(manifest.metadata)
    return [
        count("num_tokens", "tokens", manifest.num_tokens),
        count("num_documents", "documents", manifest.num_documents),
        count("vocab_size", "vocab size", manifest.vocab_size),
        text("dtype", "dtype", manifest.dtype.name),
        size("num_bytes", "size", manifest.num_bytes),
        Fact(
            "num_shards",
            "shards",
            len(manifest.shards),
            f"{len(manifest.shards):,} ({num_full:,} full, {num_short:,} short)",
        ),
        count("shard_tokens", "shard tokens", manifest.shard_tokens),
        Fact(
            "tokenizer",
            "tokenizer",
            identity,
            ", ".join(f"{name} {value}" for name, value in identity.items()) or "not recorded",
        ),
        text("digest", "digest", manifest.digest),
        text("creator", "creator", manifest.creator),
        Fact("metadata", "metadata", metadata, json.dumps(metadata, ensure_ascii=False) if metadata else "none"),
    ]


def _identity_of(tokenizer: TokenizerIdentity | None) -> dict[str, Any]:
    fields = tokenizer.__struct_fields__ if tokenizer else ()
    return {name: value for name in fields if (value := getattr(tokenizer, name)) is not None}
