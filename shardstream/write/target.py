"""May a dataset be written here? What stands there already, what of it is ours, and what may be deleted."""

import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from shardstream.errors import FormatError, StorageError
from shardstream.format.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from shardstream.storage.store import Store
from shardstream.write.journal import JOURNAL_FOLDER, LOCK_NAME

if TYPE_CHECKING:
    from shardstream.write.zstd_upload import Compression

_SHARD_NAME: Final = re.compile(r"shard-\d{6,}\.(bin(\.zst)?|documents\.parquet)")
# The manifest that an overwrite is about to delete: after a crash in the middle, still the list of what is ours.
_REPLACED_NAME: Final = f"{JOURNAL_FOLDER}/replaced.json"
# The manifest of a dataset that is being copied to here; see copy.py.
COPY_NAME: Final = f"{JOURNAL_FOLDER}/copy.json"
# The record of a tokenizer job that writes parts below here; see ingest/job.py.
TOKENIZE_NAME: Final = f"{JOURNAL_FOLDER}/tokenize.json"
# The same of a TokenDatasink; see integrations/ray_data.py.
DATASINK_NAME: Final = f"{JOURNAL_FOLDER}/datasink.json"
PARTS_FOLDER: Final = "parts"
# Small objects, read or deleted: in object storage each takes a round trip, and ten thousand wait for one another no more
# than they must.
_NUM_THREADS: Final = 32


def shard_name(index: int, compression: "Compression | None") -> str:
    """What a writer calls shard number ``index``; such names are its own, see :func:`check_target`."""
    return f"shard-{index:06d}.bin{'.zst' if compression == 'zstd' else ''}"


def target_names(store: Store) -> list[str]:
    """What stands in the target; a lock alone is nothing."""
    return [name for name in store.names() if name != LOCK_NAME]


def has_journal(names: list[str]) -> bool:
    """Whether a writer was, or is, at work here."""
    return any(name.startswith(f"{JOURNAL_FOLDER}/") for name in names)


def read_manifest(store: Store, name: str = MANIFEST_NAME) -> Manifest:
    """The manifest in a store.

    Raises:
        StorageError: There is none.
        FormatError: It breaks the specification.
    """
    data = store.get(name, max_bytes=MAX_MANIFEST_BYTES + 1)
    return Manifest.parse(data, source=f"{store.uri}/{name}")


def read_manifests(store: Store, folders: Sequence[str]) -> dict[str, Manifest]:
    """The manifests of datasets below a store, by the folder of each; raises as :func:`read_manifest` does."""
    names = [f"{folder}/{MANIFEST_NAME}" for folder in folders]
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return dict(zip(folders, threads.map(partial(read_manifest, store), names), strict=True))


def delete_all(store: Store, names: Iterable[str]) -> None:
    """Delete objects, in no order.

    Raises:
        StorageError: One cannot be deleted.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        for _ in threads.map(store.delete, names):
            pass


def publish_manifest(store: Store, manifest: Manifest, *, overwrite: bool) -> None:
    """Make a dataset exist: the last step, and an atomic one.

    The manifest is read back from its own JSON first. What nobody could open is refused while the journal still is
    there to go on from.

    Raises:
        FormatError: No reader would accept the manifest; more shards than it can list, say.
        StorageError: There is one already and ``overwrite`` is not given, or it cannot be written.
    """
    data = manifest.to_json()
    Manifest.parse(data, source=f"{store.uri}/{MANIFEST_NAME}")
    store.put(MANIFEST_NAME, data, overwrite=overwrite)


def check_target(store: Store, names: list[str], *, overwrite: bool, resume: bool) -> None:
    """Refuse a target that a writer with these wishes must not touch.

    Args:
        store: The target.
        names: What :func:`target_names` says of it.
        overwrite, resume: As for DatasetWriter.

    Raises:
        StorageError: It is not empty, and what it holds is not ours or not wished away; the message says what helps.
    """
    is_ours = MANIFEST_NAME in names or has_journal(names)
    if not names or (resume and is_ours):
        return
    if overwrite and is_ours:
        ours = set(names_of_ours(store, names))
        if in_the_way := [name for name in names if _SHARD_NAME.fullmatch(name) and name not in ours]:
            raise StorageError(
                f"{store.uri}: {in_the_way[0]} has a name that a shard will take, but no manifest or journal of "
                "shardstream lists it; move it away, or choose another place"
            )
        return
    if MANIFEST_NAME in names:
        holds = "a dataset: overwrite=True replaces it"
    elif is_ours:
        holds = "an unfinished dataset: resume=True continues it, overwrite=True starts again"
    else:
        holds = f"{len(names)} other files, such as {names[0]}: choose an empty place"
    raise StorageError(f"{store.uri}: not empty, it holds {holds}")


def names_of_ours(store: Store, names: list[str]) -> list[str]:
    """What ``overwrite`` may delete: what a manifest or a journal of ours lists.

    Raises:
        StorageError: The manifest cannot be read, so what it lists is unknown.
    """
    ours = {name for name in names if name.startswith(f"{JOURNAL_FOLDER}/")}
    if ours:
        # A writer begins in an empty place only: where its journal is, files of its naming are its own.
        ours |= {name for name in names if _SHARD_NAME.fullmatch(name)}
    if ours & {TOKENIZE_NAME, DATASINK_NAME}:
        ours |= {name for name in names if name.startswith(f"{PARTS_FOLDER}/")}
    for manifest_name in (MANIFEST_NAME, _REPLACED_NAME, COPY_NAME):
        if manifest_name in names:
            try:
                listed = _names_listed(read_manifest(store, manifest_name))
            except FormatError as error:
                raise StorageError(f"cannot tell which files are ours, so none is deleted: {error}") from error
            ours |= {manifest_name, *listed.intersection(names)}
    return sorted(ours)


def _names_listed(manifest: Manifest) -> set[str]:
    """Shards and side files of a manifest that lie beside it."""
    names = {shard.name for shard in manifest.shards if not shard.location}
    return names | {shard.documents_name for shard in manifest.shards if shard.documents}


def check_all_stay_listed(store: Store, names: Collection[str]) -> None:
    """Refuse to replace the manifest of a store by one that no longer lists what a writer wrote.

    What is not listed stands in the way of every later writer, which cannot know whose it is.

    Args:
        store: Where the manifest may be.
        names: Of the shards and side files that the new one lists in this store.

    Raises:
        StorageError: A writer's file is not among them.
        FormatError: The manifest that is there breaks the specification, so what it lists is not known.
    """
    if store.size(MANIFEST_NAME) is None:
        return
    listed = filter(_SHARD_NAME.fullmatch, _names_listed(read_manifest(store)))
    if left := sorted(set(listed).difference(names)):
        raise StorageError(
            f"{store.uri}: it holds a dataset whose {left[0]} would be listed no more; choose another place, or "
            "overwrite it with a writer"
        )


def clear_target(store: Store, names: list[str]) -> None:
    """Delete what is ours; the caller holds the lock.

    A crash in the middle leaves the old dataset whole, or none, and in both cases a target that can be overwritten.
    """
    ours = names_of_ours(store, names)
    if MANIFEST_NAME in ours:
        manifest = store.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
        store.put(_REPLACED_NAME, manifest, overwrite=True)
        store.delete(MANIFEST_NAME)
    # What tells whose the other files are goes after them.
    journal = {name for name in ours if name.startswith(f"{JOURNAL_FOLDER}/")}
    delete_all(store, [name for name in ours if name not in journal])
    delete_all(store, journal - {_REPLACED_NAME})
    store.delete(_REPLACED_NAME)
