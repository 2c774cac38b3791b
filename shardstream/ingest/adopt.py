"""Token files of other systems -> a manifest over them, where they lie. No byte of them is copied or changed.

Each file becomes one shard, whatever its length. What a manifest promises of a shard has to be found out first: the
ids are read once, and checksum, range and number of end-of-document ids come out of that pass. It is the processor's
sha256 that bounds it.

Ids are never converted, so only files can be adopted whose ids are, bit for bit, those of the dataset's own dtype: of
its width and little-endian. Signed ones are, as long as none is below 0. A dtype that is wrong shows as ids beyond the
vocabulary, with one exception that is looked for by itself: ids of twice the width, read as narrow ones, are the right
ids with a zero after each.
"""

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardstream.errors import FormatError, IntegrityError, StorageError
from shardstream.format.integrity import ShardTally, raw_blocks
from shardstream.format.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    TokenizerIdentity,
    dtype_of_vocab,
    is_bad_name,
)
from shardstream.ingest.foreign_files import FilePlace, ForeignFile, checked_raw_dtype, foreign_file
from shardstream.storage.local_store import LocalStore
from shardstream.storage.store import Store, store_of
from shardstream.storage.threads import call_all
from shardstream.write.dataset_writer import checked_metadata, creator, tokenizer_identity
from shardstream.write.journal import JOURNAL_FOLDER, LOCK_NAME
from shardstream.write.target import check_all_stay_listed, publish_manifest

_Tokens: TypeAlias = NDArray[np.unsignedinteger[Any]]

# A shard that lies elsewhere is named after the end of its path: that much tells a person which one it is.
_NUM_NAMED_COMPONENTS: Final = 3
_MAX_COMPONENT_LENGTH: Final = 200
# Behind a URL a look at a file takes a few round trips, and ten thousand wait for one another no more than they must.
_NUM_LOOKING_THREADS: Final = 32
# So many ids of which every second is 0 are no accident.
_NUM_TELLING_IDS: Final = 64


def adopt(
    files: Sequence[str | os.PathLike[str]],
    uri: str | os.PathLike[str],
    *,
    vocab_size: int,
    dtype: str | None = None,
    eos_id: int | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    checksum: bool = True,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Publish token files of other systems as a dataset, one shard each, without copying them.

    Known are NumPy's ``.npy``, the ``.bin`` of llm.c, Megatron's ``.bin`` with its ``.idx``, datatrove's ``.ds``, and raw
    ids, as nanoGPT and OLMo write them. The files must stay where they are, as they are. Those below ``uri`` become
    shards like any other, so a writer that overwrites the dataset deletes them; others are only referred to, and reading
    them takes ``open(..., trust_locations=True)``.

    Args:
        files: Paths or URLs, in the order of the stream. Behind a URL they must lie below ``uri``.
        uri: Folder or URL that the manifest goes to.
        vocab_size: Number of ids, that of the tokenizer. It decides what width the ids must have: uint16 up to 65,536,
            else uint32.
        dtype: NumPy's name of the dtype of files that do not say it; that of the vocabulary if None.
        eos_id: The id that ends a document, to be counted.
        tokenizer: Who made the ids: any of ``name``, ``sha256``, ``eos_id``, ``bos_id``, ``pad_id``.
        metadata: Anything that JSON can say, kept in the manifest.
        checksum: Read the files. ``False`` is for a look: no id is checked, and the manifest holds no checksums, so that
            damage is not found and the dataset cannot be copied.
        overwrite: Replace a manifest that is there. Nothing else is touched, so the shards of a writer have to be among
            the files.
        storage_options: Passed to the fsspec filesystem.
        num_threads: Files read at a time; as many as there are processors if None. Memory is a MiB for each.
        progress: Called with the bytes of ids that were read since the last call, from any of the threads.

    Returns:
        The manifest that was published. Documents are counted where the files' indexes tell, or by ``eos_id``.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: An argument is out of range, a file is given twice, lies where the manifest cannot refer to it, or
            does not say what it is.
        FormatError: A file is empty, cut short, of another width, or holds an id that the vocabulary lacks; or the
            manifest that is to be replaced breaks the specification.
        StorageError: A file cannot be read, there is a dataset at ``uri`` already, or it has shards that would be listed
            no more.
    """
    found = find_files(files, uri, vocab_size=vocab_size, dtype=dtype, storage_options=storage_options)
    return adopt_files(
        found,
        vocab_size=vocab_size,
        eos_id=eos_id,
        tokenizer=tokenizer,
        metadata=metadata,
        checksum=checksum,
        overwrite=overwrite,
        num_threads=num_threads,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """Files that can be adopted, as far as can be told without reading their ids."""

    target: Store
    files: tuple[ForeignFile, ...]
    entries: tuple[ShardEntry, ...]
    """The row of each file, without what only its ids tell."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all ids."""
        return sum(entry.num_bytes for entry in self.entries)


def find_files(
    files: Sequence[str | os.PathLike[str]],
    uri: str | os.PathLike[str],
    *,
    vocab_size: int,
    dtype: str | None,
    storage_options: Mapping[str, Any] | None = None,
) -> FoundFiles:
    """Look at files: their formats and sizes, and how a manifest at ``uri`` refers to them; arguments as of :func:`adopt`.

    Raises:
        FileNotFoundError, ValueError, FormatError, StorageError: As :func:`adopt`, but for the ids and the target.
    """
    if isinstance(files, str | os.PathLike):
        raise TypeError(f"files is one path, {os.fspath(files)!r}; wanted a list of them")
    if not files:
        raise ValueError("no files: give at least one to adopt")
    stored_dtype = dtype_of_vocab(vocab_size)
    if dtype is not None:
        checked_raw_dtype(dtype, stored_dtype)
    target = store_of(uri, storage_options)
    # This folder alone is listed: the files may lie among millions of others.
    in_journal = store_of(f"{target.uri}/{JOURNAL_FOLDER}", storage_options).names()
    if any(f"{JOURNAL_FOLDER}/{name}" != LOCK_NAME for name in in_journal):
        raise StorageError(
            f"{target.uri}: it holds a dataset that is being written or copied, or a {JOURNAL_FOLDER} folder that one left; "
            "choose another place"
        )
    places: dict[str, FilePlace] = {}
    for file in files:
        place = _place_of(os.fspath(file), target)
        if (identity := _identity(place)) in places:
            raise ValueError(f"{place.shown} is given twice; each file can be in the dataset once")
        places[identity] = place
    look_at = partial(foreign_file, stored_dtype=stored_dtype, raw_dtype=dtype)
    with ThreadPoolExecutor(_NUM_LOOKING_THREADS) as threads:
        found = tuple(threads.map(look_at, places.values()))
    return FoundFiles(target=target, files=found, entries=_rows_of(found))


def adopt_files(
    found: FoundFiles,
    *,
    vocab_size: int,
    eos_id: int | None,
    tokenizer: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
    checksum: bool,
    overwrite: bool,
    num_threads: int | None,
    progress: Callable[[int], object] | None,
) -> Manifest:
    """Read what :func:`find_files` found, and publish the manifest; arguments as of :func:`adopt`.

    Raises:
        ValueError, FormatError, StorageError: As :func:`adopt`.
    """
    identity = _identity_of(found.files, tokenizer, eos_id, vocab_size)
    kept = checked_metadata(metadata)
    if not overwrite and found.target.size(MANIFEST_NAME) is not None:
        raise StorageError(f"{found.target.uri}: it holds a dataset already; overwrite=True replaces its manifest")
    entries = found.entries
    if overwrite:
        check_all_stay_listed(found.target, {entry.name for entry in entries if not entry.location})
    if checksum:
        reading = _Reading(vocab_size, identity.eos_id if identity else None, progress or _nobody)
        entries = reading.run(found, num_threads or os.cpu_count() or 1)
    manifest = Manifest(
        vocab_size=vocab_size,
        shard_tokens=max(entry.num_tokens for entry in entries),
        shards=entries,
        num_documents=_num_documents(found.files, entries),
        tokenizer=identity,
        creator=creator(),
        metadata=kept,
    )
    publish_manifest(found.target, manifest, overwrite=overwrite)
    return manifest


def _place_of(path: str, target: Store) -> FilePlace:
    """A file as the target's store knows it: by a name below the target, or on a local disk by its path."""
    local_path = re.sub(r"^(file|local)://", "", path)
    prefix = f"{target.uri}/"
    if isinstance(target, LocalStore) and "://" not in local_path:
        name = _local_name(local_path, target.uri)
    elif path.startswith(prefix):
        name = path[len(prefix) :]
    else:
        raise ValueError(
            f"{path} does not lie below {target.uri}; a manifest refers to objects below its own URL, or to files on the "
            "disk that it lies on: choose a place above the files"
        )
    if name == MANIFEST_NAME:
        raise ValueError(f"{path} is the manifest of the dataset itself; leave it out")
    return FilePlace(path, target, name)


def _local_name(path: str, folder: str) -> str:
    """The path of a file from ``folder`` on if the file lies below it, else from the root on."""
    absolute = os.path.abspath(path)  # noqa: PTH100 - resolve() would show links where the user named none
    parent, name = os.path.split(absolute)
    # The folder may have another name, such as that of a link to it.
    real = f"{os.path.realpath(parent).rstrip('/')}/{name}"
    for below, prefix in ((absolute, folder), (real, os.path.realpath(folder))):
        if below.startswith(f"{prefix.rstrip('/')}/"):
            return below.removeprefix(prefix).lstrip("/")
    return absolute


def _identity(place: FilePlace) -> str:
    """The same for the same file, whatever the user calls it."""
    if isinstance(place.store, LocalStore):
        return os.path.realpath(place.store.path(place.name, follow_links=True))
    return place.name


def _rows_of(files: Sequence[ForeignFile]) -> tuple[ShardEntry, ...]:
    """The row of each file, without what only its ids tell."""
    names = [file.place.name if _is_shard_below(file.place) else None for file in files]
    taken = Counter(name for name in names if name)
    rows = []
    for file, name in zip(files, names, strict=True):
        rows.append(
            ShardEntry(
                name=name or _free_name(file.place.name, taken),
                num_tokens=file.num_tokens,
                num_bytes=file.num_tokens * file.dtype.itemsize,
                byte_offset=file.byte_offset,
                location=None if name else _location_of(file.place),
            )
        )
        taken[rows[-1].name] += 1
    return tuple(rows)


def _is_shard_below(place: FilePlace) -> bool:
    """Whether readers find the file by a shard's name, with no trust asked for."""
    if is_bad_name(place.name):
        return False
    if isinstance(place.store, LocalStore):
        try:
            place.store.path(place.name, follow_links=False)
        except FormatError:  # a link, which readers do not follow
            return False
    return True


def _location_of(place: FilePlace) -> str:
    """Where a file is, for a reader that trusts the manifest: absolute, or relative to the manifest's folder."""
    try:
        place.name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place.shown!r}: the path is no UTF-8, and cannot stand in a manifest; rename it") from error
    return place.name


def _free_name(path: str, taken: Counter[str]) -> str:
    """A shard's name for a file that lies elsewhere: the end of its path, in characters that names may have.

    Args:
        path: Of the file.
        taken: Names that are, and how often they were asked for: thousands of files may have paths that end alike.
    """
    components = [part for part in path.split("/") if part][-_NUM_NAMED_COMPONENTS:]
    plain = [re.sub(r"[^A-Za-z0-9_.=-]", "_", part)[-_MAX_COMPONENT_LENGTH:] for part in components]
    name = "/".join(["adopted", *(re.sub(r"^[.=-]", "_", part) for part in plain)])
    free = name
    while free in taken:
        taken[name] += 1
        free = f"{name}-{taken[name]}"
    return free


def _identity_of(
    files: Sequence[ForeignFile], tokenizer: Mapping[str, Any] | None, eos_id: int | None, vocab_size: int
) -> TokenizerIdentity | None:
    """What is known of the tokenizer; its name from the files' metadata, where all agree and the caller gives none."""
    names = {file.tokenizer_name for file in files}
    known = {"name": names.pop()} if len(names) == 1 else {}
    return tokenizer_identity({**known, **(tokenizer or {})}, eos_id, vocab_size)


def _num_documents(files: Sequence[ForeignFile], entries: Sequence[ShardEntry]) -> int:
    """Documents that the indexes list, or eos ids where a file has no index; 0 where of one file neither is known."""
    numbers = [
        entry.num_eos if file.num_documents is None else file.num_documents
        for file, entry in zip(files, entries, strict=True)
    ]
    return 0 if None in numbers else sum(number or 0 for number in numbers)


class _Reading:
    """Files on their way through checksum and range check.

    Args:
        vocab_size: Bound of the ids.
        eos_id: The id to count, or None.
        progress: As for :func:`adopt`.
    """

    def __init__(self, vocab_size: int, eos_id: int | None, progress: Callable[[int], object]) -> None:
        self._vocab_size = vocab_size
        self._eos_id = eos_id
        self._progress = progress
        self._is_over = threading.Event()  # when set, no thread takes longer than a block

    def run(self, found: FoundFiles, num_threads: int) -> tuple[ShardEntry, ...]:
        """Read all files, several at a time; their rows, complete."""
        pairs = tuple(zip(found.files, found.entries, strict=True))
        return call_all(self._read, pairs, num_threads=num_threads, name="shardstream-adopt", is_over=self._is_over)

    def _read(self, pair: tuple[ForeignFile, ShardEntry]) -> ShardEntry:
        file, entry = pair
        tally = ShardTally(self._eos_id)
        is_doubtful = file.is_guess  # until an id says otherwise
        start = 0
        try:
            for tokens in self._blocks(file, entry):
                self._check_range(file, tokens, start, tally)
                tally.update(tokens)
                is_doubtful = is_doubtful and not tokens[1::2].any()  # a block begins at an even position
                start += len(tokens)
                self._progress(tokens.nbytes)
        except IntegrityError as error:
            raise FormatError(f"{file.place.shown}: changed while it was read: {error}") from error
        if is_doubtful and start >= _NUM_TELLING_IDS:
            raise FormatError(
                f"{file.place.shown}: every second id is 0, as when ids of twice the width are read as {file.dtype.name}; "
                f"if they are {file.dtype.name} after all, give that as the dtype"
            )
        facts = tally.entry(entry.name)
        return msgspec.structs.replace(
            entry,
            sha256=facts.sha256,
            min_token=facts.min_token,
            max_token=facts.max_token,
            num_eos=facts.num_eos,
        )

    def _blocks(self, file: ForeignFile, entry: ShardEntry) -> Iterator[_Tokens]:
        stored_dtype = dtype_of_vocab(self._vocab_size)
        with file.place.store.open(file.place.name) as data:
            for block in raw_blocks(data, entry):
                if self._is_over.is_set():
                    raise StorageError(f"{file.place.shown}: reading it was given up")
                yield np.frombuffer(block, stored_dtype)

    def _check_range(self, file: ForeignFile, tokens: _Tokens, start: int, tally: ShardTally) -> None:
        # An id below 0 is, as an unsigned one, beyond all that its signed dtype can say.
        bound = min(self._vocab_size, int(np.iinfo(file.dtype).max) + 1)
        high = int(tokens.max())
        tally.widen(int(tokens.min()), high)
        if high < bound:
            return
        index = int((tokens >= bound).argmax())
        guess = "; it was guessed from the vocabulary" if file.is_guess else ""
        raise FormatError(
            f"{file.place.shown}: token {start + index} of the file is {tokens.view(file.dtype)[index]}; wanted 0 to "
            f"{self._vocab_size - 1} (vocab_size is {self._vocab_size}). Perhaps the vocabulary is larger, or the ids are "
            f"not {file.dtype.name}{guess}"
        )


def _nobody(num_bytes: int) -> None:
    """What has been read is of no interest."""
