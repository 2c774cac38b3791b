"""Parts written in parallel -> one dataset, in part order, copying no token."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shardstream.errors import FormatError
from shardstream.format.manifest import Manifest, ShardEntry
from shardstream.storage.store import Store, store_of
from shardstream.write.dataset_writer import creator
from shardstream.write.target import publish_manifest, read_manifests


def merge(
    parts: Sequence[str | os.PathLike[str]],
    uri: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Manifest:
    """Publish datasets that lie below ``uri`` as one, whose token stream is theirs one after the other.

    Only a manifest is written, last and atomically; the parts stay datasets of their own, and must stay where they are.

    Args:
        parts: Where each part is, in the order of the stream: folders or URLs below ``uri``.
        uri: Where the merged manifest goes.
        metadata: Kept in the merged manifest; that of the parts is not.
        overwrite: Replace a manifest that is there.
        storage_options: Passed to the fsspec filesystem.

    Returns:
        The manifest that was published.

    Raises:
        ValueError: No part, one twice, or one that does not lie below ``uri``.
        FormatError: The parts differ in vocabulary or tokenizer, or one is broken.
        StorageError: A part or the target cannot be read or written.
    """
    if not parts:
        raise ValueError("no parts: give at least one dataset to merge")
    target = store_of(uri, storage_options)
    folders = [_folder_below(store_of(part, storage_options), target) for part in parts]
    if (twice := next(iter(Counter(folders) - Counter(set(folders))), None)) is not None:
        raise ValueError(f"{target.uri}/{twice} is given twice; each part can be in the dataset once")
    merged = merged_manifest(read_manifests(target, folders), metadata=metadata or {})
    publish_manifest(target, merged, overwrite=overwrite)
    return merged


def merged_manifest(manifests: Mapping[str, Manifest], *, metadata: Mapping[str, Any]) -> Manifest:
    """What lists the shards of all parts, one after the other.

    Args:
        manifests: Those of the parts, in the order of the stream, by the folder of each below the merged manifest's.
        metadata: Kept in the merged manifest.

    Raises:
        FormatError: The parts differ in vocabulary or tokenizer, or hold adopted files.
    """
    first = next(iter(manifests.values()))
    for folder, manifest in manifests.items():
        _check_same(manifest, first, folder)
    return Manifest(
        vocab_size=first.vocab_size,
        shard_tokens=max(manifest.shard_tokens for manifest in manifests.values()),
        shards=tuple(_moved(shard, folder) for folder, manifest in manifests.items() for shard in manifest.shards),
        num_documents=sum(manifest.num_documents for manifest in manifests.values()),
        tokenizer=first.tokenizer,
        tokenizer_extra=first.tokenizer_extra,
        creator=creator(),
        metadata=dict(metadata),
        shard_extra={
            f"{folder}/{name}": extra
            for folder, manifest in manifests.items()
            for name, extra in manifest.shard_extra.items()
        },
    )


def _folder_below(part: Store, target: Store) -> str:
    prefix = f"{target.uri.rstrip('/')}/"
    if not part.uri.startswith(prefix):
        raise ValueError(f"{part.uri} does not lie below {target.uri}; a merged dataset refers to its parts in place")
    return part.uri[len(prefix) :]


def _check_same(manifest: Manifest, first: Manifest, where: str) -> None:
    for field in ("vocab_size", "tokenizer"):
        found, wanted = getattr(manifest, field), getattr(first, field)
        if found != wanted:
            raise FormatError(f"{where}: {field} is {found!r}, that of the first part is {wanted!r}; parts must agree")


def _moved(shard: ShardEntry, folder: str) -> ShardEntry:
    """The entry as seen from the merged manifest's folder."""
    if shard.location is not None:
        raise FormatError(
            f"{folder}/{shard.name}: an adopted file; merge the files themselves with `shardstream adopt`"
        )
    return msgspec.structs.replace(shard, name=f"{folder}/{shard.name}")
