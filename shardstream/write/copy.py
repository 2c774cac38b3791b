"""A dataset in one place -> the same dataset in another, byte for byte.

Shards, and the side files beside them, are copied as they are stored, several at a time, and each becomes durable only
after its checksum was right. The manifest comes last, so there is no copy or a whole one.

What makes a copy resumable is the source's manifest itself: it is put at ``journal/copy.json`` before the first shard,
into a place that was empty. No store shows an object before it is whole, and no shard is committed before it is checked;
so under that journal the name of a shard is proof enough. Its size is looked at too, for an object that somebody else
put there. The manifest's bytes are compared, not the dataset digest, which says nothing of how shards are stored: a
source that was written again meanwhile, compressed this time, is another one to copy.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from shardstream.errors import FormatError, IntegrityError, StorageError
from shardstream.format.integrity import length_problem
from shardstream.format.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardEntry
from shardstream.storage.local_store import LocalStore
from shardstream.storage.remote_store import RANGE_BYTES
from shardstream.storage.store import Store, Upload, store_of
from shardstream.storage.threads import call_all
from shardstream.write.journal import LOCK_NAME
from shardstream.write.target import COPY_NAME, has_journal, target_names

_log = logging.getLogger("shardstream")

# A few requests fill a wire that one does not; memory is some ranges for each.
_NUM_SHARDS_AT_A_TIME: Final = 4
# A wrong checksum may be a fault of the way, or of one server of many.
_NUM_TRIES: Final = 3


def copy(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    dst_storage_options: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[ShardEntry, ...]:
    """Copy a dataset to another place: stored bytes as they are, each shard verified on its way, the manifest last.

    After a crash the same call goes on with the shards that are not there yet; of a copy that is complete it brings back
    those that were lost.

    Args:
        src: The folder or URL of the dataset.
        dst: The folder or URL of the copy; empty, or not there yet, or holding a copy of the same dataset.
        storage_options: Passed to the fsspec filesystem, of ``src`` and of ``dst``.
        dst_storage_options: Those of ``dst``, where they are others.
        num_threads: Shards copied at a time; 4 if None. Memory is some ranges of 8 MiB for each, whatever their size.
        progress: Called with the stored bytes of shards that have been copied, or found to be there, since the last call,
            from any of the threads; with a negative number where a shard begins again.

    Returns:
        The rows of the shards that were copied, or their side files, in order; the others were there.

    Raises:
        FormatError: The manifest breaks the specification, or lists files that cannot be copied: adopted ones, or ones
            without a checksum.
        IntegrityError: A shard is missing, or is not what the manifest says.
        StorageError: A place cannot be read or written, or ``dst`` holds something else.
    """
    source = store_of(src, storage_options)
    target = store_of(dst, storage_options if dst_storage_options is None else dst_storage_options)
    data = source.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES + 1)
    manifest = Manifest.parse(data, source=f"{source.uri}/{MANIFEST_NAME}")
    _check_can_be_copied(source, manifest)
    # Looked at before the lock too: a folder that is not ours is left without a trace.
    _check_target(target, target_names(target), data, manifest)
    with target.lock(LOCK_NAME):
        names = target_names(target)
        _check_target(target, names, data, manifest)
        target.delete_partials()
        if MANIFEST_NAME not in names and COPY_NAME not in names:
            target.put(COPY_NAME, data, overwrite=False)
        copied = _Copying(source, target, frozenset(names), progress or _nobody).run(
            manifest, num_threads or _NUM_SHARDS_AT_A_TIME
        )
        if MANIFEST_NAME not in names:
            target.put(MANIFEST_NAME, data, overwrite=False)
        target.delete(COPY_NAME)
    return copied


def _check_can_be_copied(source: Store, manifest: Manifest) -> None:
    for entry in manifest.shards:
        if entry.location is not None:
            raise FormatError(
                f"{source.uri}: shard {entry.name} lies elsewhere, at {entry.location!r}; a copy of adopted files would be "
                "none: copy the files yourself, and adopt them where they are then"
            )
        if _checksum_of(entry) is None:
            raise FormatError(
                f"{source.uri}: {entry.name} has no checksum, so a copy could not be verified; adopt it again with checksums"
            )


def _check_target(target: Store, names: list[str], data: bytes, manifest: Manifest) -> None:
    """Refuse a target that holds anything but a copy of the same dataset, whole or not."""
    if not names:
        return
    ours = next((name for name in (MANIFEST_NAME, COPY_NAME) if name in names), None)
    if ours is not None:
        found = target.get(ours, max_bytes=MAX_MANIFEST_BYTES + 1)
        if found == data:
            return
        digest = Manifest.parse(found, source=f"{target.uri}/{ours}").digest
        state = "a dataset" if ours == MANIFEST_NAME else "the unfinished copy of a dataset"
        other = f"digest {digest}, not {manifest.digest}" if digest != manifest.digest else "stored in another way"
        holds = f"{state} that is another one ({other})"
    elif has_journal(names):
        holds = "a dataset that is being written"
    else:
        holds = f"{len(names)} other files, such as {names[0]}"
    raise StorageError(f"{target.uri}: not empty, it holds {holds}; choose an empty place")


class _Copying:
    """Shards on their way from a source to a target.

    Args:
        source, target: Where from, where to.
        names: What is in the target already.
        progress: As for :func:`copy`.
    """

    def __init__(self, source: Store, target: Store, names: frozenset[str], progress: Callable[[int], object]) -> None:
        self._source, self._target = source, target
        self._names = names
        self._progress = progress
        self._is_over = threading.Event()  # when set, no thread takes longer than a range

    def run(self, manifest: Manifest, num_threads: int) -> tuple[ShardEntry, ...]:
        """Copy what is not there yet; the rows of those shards."""
        are_copied = call_all(
            self._ensure, manifest.shards, num_threads=num_threads, name="shardstream-copy", is_over=self._is_over
        )
        return tuple(entry for entry, is_copied in zip(manifest.shards, are_copied, strict=True) if is_copied)

    def _ensure(self, entry: ShardEntry) -> bool:
        """See that a shard is in the target, and its side file; whether one of them had to be copied."""
        is_copied = self._ensure_file(_shard_file(entry), self._progress)
        if entry.documents is not None:
            file = _File(entry.documents_name, entry.documents.num_bytes, entry.documents.sha256)
            is_copied |= self._ensure_file(file, _nobody)
        return is_copied

    def _ensure_file(self, file: "_File", progress: Callable[[int], object]) -> bool:
        if file.name in self._names and self._target.size(file.name) == file.num_bytes:
            progress(file.num_bytes)
            return False
        self._check_place(file)
        for num_left in reversed(range(_NUM_TRIES)):  # pragma: no branch - the last try ends it
            try:
                self._copy(file, progress)
                break
            except IntegrityError as error:
                if num_left == 0:
                    raise IntegrityError(f"{error}; see `shardstream verify {self._source.uri}`") from error
                _log.warning("%s; copying it again", error)
        return True

    def _check_place(self, file: "_File") -> None:
        """Read no file that is missing, is of another size, or is a link to somewhere else."""
        if isinstance(self._source, LocalStore):
            self._source.path(file.name, follow_links=False)
        size = self._source.size(file.name)
        if problem := "missing" if size is None else length_problem(size, file.num_bytes):
            raise IntegrityError(f"{self._source.uri}/{file.name}: {problem}")

    def _copy(self, file: "_File", progress: Callable[[int], object]) -> None:
        upload = self._target.create(file.name)
        try:
            self._fill(file, upload, progress)
            upload.commit()
        except BaseException:
            upload.abort()
            raise

    def _fill(self, file: "_File", upload: Upload, progress: Callable[[int], object]) -> None:
        sha256 = hashlib.sha256()
        for start in range(0, file.num_bytes, RANGE_BYTES):
            if self._is_over.is_set():
                raise StorageError(f"{self._target.uri}: the copy was given up")
            stop = min(start + RANGE_BYTES, file.num_bytes)
            data = self._source.get_range(file.name, start, stop)
            sha256.update(data[max(0, file.header_bytes - start) :])
            upload.write(data)
            progress(len(data))
        if sha256.hexdigest() != file.sha256:
            progress(-file.num_bytes)
            raise IntegrityError(
                f"{self._source.uri}/{file.name}: checksum is sha256 {sha256.hexdigest()}, the manifest says {file.sha256}"
            )


class _File(NamedTuple):
    """What is copied: a shard or a side file."""

    name: str
    num_bytes: int
    sha256: str | None
    header_bytes: int = 0
    """A foreign header is no part of the tokens, and so of their checksum."""


def _shard_file(entry: ShardEntry) -> _File:
    return _File(entry.name, entry.file_bytes, _checksum_of(entry), entry.byte_offset)


def _checksum_of(entry: ShardEntry) -> str | None:
    """Of the bytes that are copied."""
    return entry.stored.sha256 if entry.stored else entry.sha256


def _nobody(num_bytes: int) -> None:
    """What has been copied is of no interest."""
