"""The reader's face: one long token stream, as if it were one array."""

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, overload

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import FormatError, IntegrityError, StorageError
from shardstream.format.integrity import content_problem, size_problem
from shardstream.format.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardEntry
from shardstream.read.mapped_shards import MappedShards, Tokens, max_open_maps
from shardstream.read.ranged_shards import RangedShards
from shardstream.read.side_files import SideFiles, SourceDocument
from shardstream.read.wanted_tokenizer import WantedTokenizer, check_tokenizer
from shardstream.storage.cache import CacheCounts, ShardCache, check_bound
from shardstream.storage.downloads import Downloads, Expected, Piece
from shardstream.storage.local_store import LocalStore
from shardstream.storage.remote_store import RemoteStore, Traffic
from shardstream.storage.retry import Fault, fault_of
from shardstream.storage.store import Store, store_of

if TYPE_CHECKING:
    from typing_extensions import Self

# How tokens are read: mapped in place, through a cache, or, with None, by ranged requests.
Reading: TypeAlias = "LocalStore | ShardCache | None"

# A pin, and before Python 3.13 the map's own descriptor.
_FILES_PER_CACHED_MAP: Final = 2
# So many processes may share a bounded cache without knowing of one another: each holds as much of it at most, unless a
# batch stream says what it needs.
_PROCESSES_PER_CACHE: Final = 8


@dataclass(frozen=True, kw_only=True)
class ShardProblem:
    """What is wrong with one shard."""

    shard: str
    """Its name in the manifest."""
    problem: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What :meth:`TokenDataset.verify` found."""

    num_shards: int
    num_tokens: int
    num_bytes: int
    problems: tuple[ShardProblem, ...]
    """In shard order; empty when all is well."""

    @property
    def ok(self) -> bool:
        """Whether every shard is what the manifest says."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class ReadTraffic:
    """What reading a dataset took so far, in one process. All zero where it is read in place."""

    num_hits: int = 0
    """How often a shard that was needed was in the cache by then, also one that had just been downloaded ahead."""
    num_downloads: int = 0
    """Shards that were downloaded into it, ahead or when they were needed."""
    num_evictions: int = 0
    """Shards that had to leave the cache for them."""
    num_requests: int = 0
    """What the store was asked, tries that failed included."""
    num_retries: int = 0
    """Tries that failed and were followed by another."""
    num_received_bytes: int = 0
    """Bytes that the store sent."""


class TokenDataset:
    """A dataset, open for reading. Made by :func:`shardstream.open`.

    It behaves as a 1-D array of its tokens, in the stored dtype: ``len``, one position, slices. What it returns is
    always a copy. Shards are mapped when they are first read, never loaded whole. Threads may use it at once; a pickle
    holds no tokens and opens the dataset again.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        trust_locations: bool,
        reading: "Reading",
        version: str | None,
    ) -> None:
        self.manifest = manifest
        """What the dataset is."""
        self._store = store
        self._trust_locations = trust_locations
        self._reading = reading
        lengths = np.array([shard.num_tokens for shard in manifest.shards], dtype=np.int64)
        self._bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._num_tokens = manifest.num_tokens
        self._side_files = SideFiles(store, manifest, self._bounds, follow_links=trust_locations)
        self._downloads: Downloads | None = None
        self._shards: MappedShards | RangedShards
        # No method of self among the arguments: the cycle would keep the maps until the garbage collector comes by.
        check_unchanged = partial(_check_unchanged, store, manifest.digest, version)
        if isinstance(reading, ShardCache):
            self._downloads = Downloads(store, reading, manifest.shards, check_unchanged)
            self._shards = MappedShards(
                [msgspec.structs.replace(entry, byte_offset=0, stored=None) for entry in manifest.shards],
                self._bounds,
                manifest.dtype,
                self._downloads.obtain,
                max_maps=_max_cached_maps(reading, manifest),
                piece=partial(_piece, self._downloads, manifest),
            )
        elif reading is None:
            self._shards = RangedShards(store, manifest.shards, self._bounds, manifest.dtype, check_unchanged)
        else:
            locate = partial(_local_path, reading, trust_locations, manifest)
            self._shards = MappedShards(manifest.shards, self._bounds, manifest.dtype, locate, max_maps=max_open_maps())

    @property
    def uri(self) -> str:
        """Where the dataset is."""
        return self._store.uri

    @property
    def dtype(self) -> "np.dtype[np.unsignedinteger[Any]]":
        """The stored dtype, little-endian uint16 or uint32."""
        return self.manifest.dtype

    @property
    def vocab_size(self) -> int:
        """Number of ids; every token is below it."""
        return self.manifest.vocab_size

    def __len__(self) -> int:
        """Number of tokens."""
        return self._num_tokens

    def __repr__(self) -> str:
        """Say what and where, without opening anything."""
        return (
            f"TokenDataset({self.uri!r}, {self._num_tokens:,} tokens, {self.dtype.name}, "
            f"vocab_size={self.vocab_size}, {len(self.manifest.shards):,} shards)"
        )

    @overload
    def __getitem__(self, key: int) -> "np.unsignedinteger[Any]": ...
    @overload
    def __getitem__(self, key: slice) -> Tokens: ...
    def __getitem__(self, key: int | slice) -> "Tokens | np.unsignedinteger[Any]":
        """One token, or a copy of a slice, as NumPy would give it.

        Raises:
            IndexError: The position is not in the dataset.
            TypeError: Neither an integer nor a slice.
        """
        if isinstance(key, slice):
            return self._shards.read(range(*key.indices(self._num_tokens)))
        try:
            position = operator.index(key)
        except TypeError as error:
            raise TypeError(
                f"a dataset is indexed by a position or a slice, got {type(key).__name__}; for many windows at once "
                "use windows(starts, length)"
            ) from error
        position = self._position_of(position)
        token: np.unsignedinteger[Any] = self._shards.read(range(position, position + 1))[0]
        return token

    def _position_of(self, position: int) -> int:
        """Counted from the start, where NumPy would count from the end."""
        if not -self._num_tokens <= position < self._num_tokens:
            raise IndexError(f"position {position} is not in the dataset's {self._num_tokens} tokens")
        return position % self._num_tokens

    def document_at(self, position: int) -> SourceDocument:
        """Look back from a token to the document that it belongs to, and where that comes from.

        It reads the side file of the token's shard, or of the one in which the document starts; the last few stay in
        memory.

        Args:
            position: Of any token of the document, the ``eos_id`` after it included; below 0 counted from the end.

        Raises:
            IndexError: The position is not in the dataset.
            FormatError: The dataset was written without side files, or one is not what it has to be.
            IntegrityError: A side file is not the one that the manifest describes.
            StorageError: It cannot be read.
        """
        return self._side_files.document_at(self._position_of(operator.index(position)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - NumPy's protocol
        """All tokens as one array in memory; without this NumPy would ask for them one by one."""
        if copy is False:
            raise ValueError("a dataset lies in many files: an array of it is always a copy")
        tokens = self[:]
        return tokens if dtype is None else tokens.astype(dtype, copy=False)

    def windows(self, starts: ArrayLike, length: int, out: Tokens | None = None) -> Tokens:
        """Windows of neighbouring tokens, gathered at once; they may cross shards.

        Args:
            starts: First position of each window, shape (n,), any integers.
            length: Tokens of each window, at least 1.
            out: Array to fill, shape (n, length), in the stored dtype; a new one if None.

        Returns:
            The windows, shape (n, length), in the stored dtype: ``out``, or a new array.

        Raises:
            IndexError: A window does not lie within the dataset.
            TypeError: ``starts`` are not integers.
            ValueError: A shape or dtype is not as above.
            IntegrityError: A shard is missing, or its size is wrong.
            StorageError: A shard cannot be read.
        """
        positions = np.asarray(starts)
        if positions.dtype != np.int64 or positions.ndim != 1:
            positions = _positions(positions)
        if length < 1:
            raise ValueError(f"length is {length}; a window has at least 1 token")
        if out is not None and (out.shape != (len(positions), length) or out.dtype != self.dtype):
            raise ValueError(
                f"out has shape {out.shape} and dtype {out.dtype}; wanted {(len(positions), length)} and {self.dtype}"
            )
        return self._shards.gather(positions, length, out)

    def look_ahead(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Ask for ranges that will be read soon. Returns at once; what cannot be read is reported when it is read.

        Args:
            starts, stops: Positions, half-open, shape (n,) each, within the dataset.
        """
        if isinstance(self._shards, MappedShards):
            self._shards.look_ahead(starts, stops)

    @property
    def num_reads_ahead(self) -> int:
        """How often other threads have read from the disk for :meth:`look_ahead`; no exact figure, but it grows then."""
        return self._shards.num_reads_ahead if isinstance(self._shards, MappedShards) else 0

    def look_again(self) -> None:
        """See that the shards that are mapped are still there as a whole.

        A file that someone truncates while it is mapped kills the process that reads it; who reads for days looks again
        before each batch. It takes a microsecond: the kernel tells of changes on this machine, and files that another
        machine may have changed are looked at one after the other.

        Raises:
            IntegrityError: A shard is missing, or its size is wrong.
        """
        if isinstance(self._shards, MappedShards):
            self._shards.look_again()

    @property
    def bounds(self) -> NDArray[np.int64]:
        """First position of each shard, then the number of tokens; shape (num_shards + 1,)."""
        return self._bounds

    @property
    def cache(self) -> ShardCache | None:
        """Where shards are read from, if not in place."""
        return self._downloads.cache if self._downloads else None

    def expect(
        self,
        owner: object,
        *,
        in_use: Sequence[int] | None,
        coming: Sequence[int] = (),
        pieces: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Say which shards are read from now on; of a dataset that is read in place nothing need be said.

        What the same owner said before is forgotten, and all of it when the owner is. Returns at once: downloads go on
        in the background, and what cannot be downloaded is reported when it is read.

        Args:
            owner: Who says it.
            in_use: Numbers of the shards that the next reads may touch: they stay in the cache. None: any of them.
            coming: Those that later ones will, in order.
            pieces: Of other shards ``(shard, start, stop)``, tokens of it, half-open: read by themselves, since they are
                not worth the shard.
        """
        if self._downloads is None or not isinstance(self._shards, MappedShards):
            return
        size = self.dtype.itemsize
        offsets = [self.manifest.shards[shard].byte_offset for shard, _, _ in pieces]
        expected = Expected(
            in_use=in_use or (),
            coming=coming,
            pieces=[
                Piece(shard, offset + start * size, offset + stop * size)
                for offset, (shard, start, stop) in zip(offsets, pieces, strict=True)
            ],
        )
        # First, so that what is coming finds the room of what is let go.
        shards_in_use = self._downloads.let_go(owner, in_use=expected.in_use)
        keeps_all = in_use is None or self._downloads.cache.max_bytes is None  # then a map takes no room from anybody
        is_kept = range(len(self.manifest.shards)) if keeps_all else shards_in_use
        self._shards.keep_only(is_kept, max_maps=max(1, max_open_maps() // _FILES_PER_CACHED_MAP))
        self._downloads.expect(owner, expected)

    def download(
        self, shards: Sequence[int] | None = None, *, progress: Callable[[ShardEntry], object] | None = None
    ) -> tuple[ShardEntry, ...]:
        """Bring shards into the cache before they are needed, several at a time; returns when all are there.

        Args:
            shards: Their numbers; all of them if None. :meth:`shardstream.BatchStream.shards` says which a rank needs.
            progress: Called with the entry of each shard that is there.

        Returns:
            The rows of the shards that were downloaded, in order; the others were in the cache already.

        Raises:
            IndexError: There is no shard of that number.
            ValueError: The dataset is not read through a cache, or the cache's bound is below what is asked for; nothing
                is downloaded then.
            IntegrityError: The store holds other bytes than the manifest says.
            StorageError: The store cannot be read, or the cache not be written.
        """
        if self._downloads is None:
            raise ValueError(f"{self.uri} is not read through a cache, so there is nothing to download into")
        numbers = list(dict.fromkeys(range(len(self.manifest.shards)) if shards is None else shards))
        if beyond := [shard for shard in numbers if not 0 <= shard < len(self.manifest.shards)]:
            raise IndexError(f"shard {beyond[0]} is not one of the dataset's {len(self.manifest.shards)}")
        entries = self.manifest.shards
        needed = sum({entries[shard].sha256: entries[shard].num_bytes for shard in numbers}.values())
        reason = f"so much are the {len(numbers):,} shards of {self.uri} that are asked for"
        check_bound(self._downloads.cache.max_bytes, needed, reason=reason)
        missing = self._downloads.bring_all(numbers, progress or (lambda entry: entry))
        return tuple(entries[shard] for shard in missing)

    def traffic(self) -> "ReadTraffic":
        """What reading took so far, in this process, beside the tokens themselves."""
        counts = self._downloads.cache.counts if self._downloads else CacheCounts()
        traffic = self._store.traffic if isinstance(self._store, RemoteStore) else Traffic()
        return ReadTraffic(
            num_hits=counts.num_hits,
            num_downloads=counts.num_downloads,
            num_evictions=counts.num_evictions,
            num_requests=traffic.num_requests,
            num_retries=traffic.num_retries,
            num_received_bytes=traffic.num_bytes,
        )

    def verify(
        self,
        *,
        num_threads: int | None = None,
        progress: Callable[[ShardEntry], object] | None = None,
    ) -> VerifyReport:
        """Read every shard and compare it with the manifest: size, checksum, range of ids, number of eos ids.

        Of side files size and checksum are compared.

        Args:
            num_threads: Shards read at a time; as many as there are processors if None. Memory is a MiB for each.
            progress: Called after each shard with its entry, from any of the threads.

        Returns:
            All problems found; damage never raises.
        """

        def problem_of(entry: ShardEntry) -> str | None:
            try:
                problem = self._problem_of(entry)
                if problem is None and entry.documents is not None:
                    problem = self._side_files.problem_of(entry, entry.documents)
            except (StorageError, FormatError, IntegrityError) as error:
                problem = str(error)
            if progress is not None:
                progress(entry)
            return problem

        with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as executor:
            found = executor.map(problem_of, self.manifest.shards)
            problems = tuple(
                ShardProblem(shard=entry.name, problem=problem)
                for entry, problem in zip(self.manifest.shards, found, strict=True)
                if problem
            )
        return VerifyReport(
            num_shards=len(self.manifest.shards),
            num_tokens=self._num_tokens,
            num_bytes=self.manifest.num_bytes,
            problems=problems,
        )

    def close(self) -> None:
        """Let go of all maps, and end all downloads; a later read begins anew."""
        self._shards.close()
        if self._downloads is not None:
            self._downloads.close()

    def __enter__(self) -> "Self":
        """Nothing more than ``self``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place and the digest: the copy must find the same tokens. Credentials are left out."""
        options: dict[str, Any] = {"trust_locations": self._trust_locations}
        if isinstance(self._reading, ShardCache):
            options |= {"cache_dir": self._reading.folder, "max_cache_bytes": self._reading.max_bytes}
        elif self._reading is None:
            options["cache_dir"] = False
        if self._store.public_options:
            options["storage_options"] = self._store.public_options
        return _reopen, (self.uri, options, self.manifest.digest)

    def _problem_of(self, entry: ShardEntry) -> str | None:
        if isinstance(self._store, LocalStore):
            self._store.path(entry.location or entry.name, follow_links=self._trust_locations)  # refuses links out
        name = entry.location or entry.name
        size = self._store.size(name)
        if size is None:
            return "missing"
        if problem := size_problem(entry, size):
            return problem
        with self._store.open(name) as file:
            return content_problem(self.manifest, entry, file)


def open_dataset(
    uri: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
    max_cache_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    trust_locations: bool = False,
    tokenizer: WantedTokenizer | None = None,
) -> TokenDataset:
    """Open a dataset for reading. The manifest is read and checked whole; no shard is touched.

    Raw shards on a local disk are read in place. Others, behind a URL or compressed, are downloaded into a cache when
    they are first needed, verified, and read from there.

    Args:
        uri: The folder or URL that holds ``manifest.json``.
        cache_dir: Where shards are cached: a folder on a local disk, which all processes and datasets of a machine may
            share. ``$XDG_CACHE_HOME/shardstream``, by default ``~/.cache/shardstream``, if None. ``False`` reads by
            ranged requests instead and keeps nothing: for a quick look.
        max_cache_bytes: The most that the cache's files take together, whoever reads them; None for no bound.
        storage_options: As the fsspec filesystem takes them (``key``, ``secret``, ``endpoint_url``, ``profile``,
            ``anon`` ... for S3); credentials are better left to the environment.
        trust_locations: Follow the manifest to files outside its folder, and follow links. Only for datasets that you
            made yourself by adopting files: a stranger's manifest could name any file.
        tokenizer: The tokenizer that must have made the dataset: its sha256, a mapping of any of ``name``, ``sha256``,
            ``eos_id``, ``bos_id``, ``pad_id``, or an object with these attributes. None for any.

    Raises:
        ValueError: The bound is below the largest shard, or the options do not go together.
        StorageError: There is no manifest, or it cannot be read.
        FormatError: It breaks the specification, asks for more trust than it was given, or does not say that ``tokenizer``
            made the dataset.
    """
    store = store_of(uri, storage_options)
    version = None
    # One GET. A missing manifest is the likeliest mistake of all: say what was looked for.
    try:
        if isinstance(store, RemoteStore):
            body = store.body(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES + 1)
            data, version = bytes(body.data), body.version
        else:
            data = store.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES + 1)
    except StorageError as error:
        if fault_of(error) is Fault.PASSING:  # the store is out of reach, and what it holds nobody knows
            raise
        raise StorageError(
            f"{error}; a dataset is a folder or URL with a {MANIFEST_NAME}, which its writer adds last"
        ) from error
    manifest = Manifest.parse(data, source=f"{store.uri}/{MANIFEST_NAME}")
    if tokenizer is not None:
        check_tokenizer(store.uri, manifest.tokenizer, tokenizer)
    for shard in manifest.shards:
        if shard.location is not None and not trust_locations:
            raise FormatError(
                f"{store.uri}: shard {shard.name} lies elsewhere, at {shard.location!r}; if you adopted it yourself, open "
                "with trust_locations=True"
            )
    reading = _reading(store, manifest, cache_dir, max_cache_bytes)
    return TokenDataset(store, manifest, trust_locations=trust_locations, reading=reading, version=version)


def _reading(
    store: Store,
    manifest: Manifest,
    cache_dir: str | os.PathLike[str] | Literal[False] | None,
    max_cache_bytes: int | None,
) -> "Reading":
    """How tokens are read."""
    compressed = next((shard for shard in manifest.shards if shard.stored), None)
    if isinstance(store, LocalStore) and compressed is None:
        return store
    if cache_dir is False:
        if max_cache_bytes is not None:
            raise ValueError(f"max_cache_bytes is {max_cache_bytes}, but cache_dir=False asks for no cache")
        if compressed is not None:
            raise ValueError(
                f"{store.uri}: {compressed.name} is compressed, and read through a cache; give a cache_dir"
            )
        return None
    for shard in manifest.shards:
        if shard.sha256 is None:
            raise FormatError(
                f"{store.uri}: {shard.name} has no checksum, and a cache holds verified shards only; adopt it again with "
                "checksums, or look at it with cache_dir=False"
            )
    largest = max(manifest.shards, key=lambda shard: shard.num_bytes, default=None)
    if largest is not None:
        check_bound(
            max_cache_bytes, largest.num_bytes, reason=f"{store.uri} has shards of so many, {largest.name} for one"
        )
    return ShardCache(cache_dir, max_cache_bytes)


def _max_cached_maps(cache: ShardCache, manifest: Manifest) -> int:
    """Shards of the cache that one process holds although nobody said that it needs them."""
    max_maps = max(1, max_open_maps() // _FILES_PER_CACHED_MAP)
    largest = max((shard.num_bytes for shard in manifest.shards), default=0)
    if cache.max_bytes is None or largest == 0:
        return max_maps
    return max(1, min(max_maps, cache.max_bytes // largest // _PROCESSES_PER_CACHE))


def _piece(downloads: Downloads, manifest: Manifest, shard: int, start: int, stop: int) -> Tokens | None:
    """Tokens of a shard that were read without it."""
    entry, size = manifest.shards[shard], manifest.dtype.itemsize
    data = downloads.piece(shard, entry.byte_offset + start * size, entry.byte_offset + stop * size)
    return None if data is None else np.frombuffer(data, dtype=manifest.dtype)


def _local_path(store: LocalStore, trust_locations: bool, manifest: Manifest, shard: int) -> Path:  # noqa: FBT001 - bound once, in order
    entry = manifest.shards[shard]
    return store.path(entry.location or entry.name, follow_links=trust_locations)


def _check_unchanged(store: Store, digest: str, version: str | None) -> None:
    """See that the dataset is still the one that was opened: parts of shards have no checksum that would tell."""
    try:
        # A forked child's client may be another one, which does not tell versions.
        now = None if version is None else store.version(MANIFEST_NAME)
        if now is not None:
            is_same = now == version
        else:
            data = store.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES + 1)
            is_same = Manifest.parse(data, source=f"{store.uri}/{MANIFEST_NAME}").digest == digest
    except StorageError as error:
        raise IntegrityError(f"{store.uri}: the dataset's manifest is gone while it is read: {error}") from error
    if not is_same:
        raise IntegrityError(f"{store.uri}: the dataset was replaced while it was read; open it again")


def _reopen(uri: str, options: dict[str, Any], digest: str) -> TokenDataset:
    dataset = open_dataset(uri, **options)
    if dataset.manifest.digest != digest:
        raise IntegrityError(
            f"{uri}: dataset digest is {dataset.manifest.digest}, it was {digest} when this was pickled; "
            "the dataset has been replaced meanwhile"
        )
    return dataset


def _positions(starts: NDArray[Any]) -> NDArray[np.int64]:
    if starts.ndim != 1:
        raise ValueError(f"starts have shape {starts.shape}; wanted one dimension")
    if starts.dtype.kind not in "iu" and len(starts):
        raise TypeError(f"starts have dtype {starts.dtype}; wanted integers, positions in the dataset")
    return starts.astype(np.int64)
