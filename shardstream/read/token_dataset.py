"""The reader's face: one long token stream, as if it were one array."""

import operator
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.errors import FormatError, IntegrityError, StorageError
from shardstream.format.integrity import content_problem, size_problem
from shardstream.format.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardEntry
from shardstream.read.mapped_shards import MappedShards, Tokens, max_open_maps
from shardstream.storage.store import LocalStore, Store, store_of

if TYPE_CHECKING:
    from typing_extensions import Self


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


class TokenDataset:
    """A dataset, open for reading. Made by :func:`shardstream.open`.

    It behaves as a 1-D array of its tokens, in the stored dtype: ``len``, one position, slices. What it returns is
    always a copy. Shards are mapped when they are first read, never loaded whole. Threads may use it at once; a pickle
    holds no tokens and opens the dataset again.
    """

    def __init__(self, store: Store, manifest: Manifest, *, trust_locations: bool) -> None:
        self.manifest = manifest
        """What the dataset is."""
        self._store = store
        self._trust_locations = trust_locations
        lengths = np.array([shard.num_tokens for shard in manifest.shards], dtype=np.int64)
        self._bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._num_tokens = manifest.num_tokens
        # Not a method of self: the cycle would keep the maps until the garbage collector comes by.
        self._locate = partial(_local_path, store, trust_locations)
        self._shards = MappedShards(
            manifest.shards, self._bounds, manifest.dtype, self._locate, max_maps=max_open_maps()
        )

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
        if not -self._num_tokens <= position < self._num_tokens:
            raise IndexError(f"position {position} is not in the dataset's {self._num_tokens} tokens")
        position %= self._num_tokens
        token: np.unsignedinteger[Any] = self._shards.read(range(position, position + 1))[0]
        return token

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
        self._shards.look_ahead(starts, stops)

    def look_again(self) -> None:
        """See that the shards that are mapped are still there as a whole.

        A file that someone truncates while it is mapped kills the process that reads it; who reads for days looks again
        before each batch. It takes a microsecond: the kernel tells of changes on this machine, and files that another
        machine may have changed are looked at one after the other.

        Raises:
            IntegrityError: A shard is missing, or its size is wrong.
        """
        self._shards.look_again()

    def verify(
        self,
        *,
        num_threads: int | None = None,
        progress: Callable[[ShardEntry], object] | None = None,
    ) -> VerifyReport:
        """Read every shard and compare it with the manifest: size, checksum, range of ids, number of eos ids.

        Args:
            num_threads: Shards read at a time; as many as there are processors if None. Memory is a MiB for each.
            progress: Called after each shard with its entry, from any of the threads.

        Returns:
            All problems found; damage never raises.
        """

        def problem_of(entry: ShardEntry) -> str | None:
            try:
                problem = self._problem_of(entry)
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
        """Let go of all maps; a later read maps anew."""
        self._shards.close()

    def __enter__(self) -> "Self":
        """Nothing more than ``self``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place and the digest: the copy must find the same tokens."""
        return _reopen, (self.uri, self._trust_locations, self.manifest.digest)

    def _problem_of(self, entry: ShardEntry) -> str | None:
        if isinstance(self._store, LocalStore):
            self._locate(entry)  # refuses links out of the folder
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
    storage_options: Mapping[str, Any] | None = None,
    trust_locations: bool = False,
) -> TokenDataset:
    """Open a dataset for reading. The manifest is read and checked whole; no shard is touched.

    Args:
        uri: The folder or URL that holds ``manifest.json``.
        storage_options: Passed to the fsspec filesystem.
        trust_locations: Follow the manifest to files outside its folder, and follow links. Only for datasets that you
            made yourself by adopting files: a stranger's manifest could name any file.

    Raises:
        StorageError: There is no manifest, or it cannot be read.
        FormatError: It breaks the specification, or asks for more trust than it was given.
    """
    store = store_of(uri, storage_options)
    # One GET. A missing manifest is the likeliest mistake of all: say what was looked for.
    try:
        data = store.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES + 1)
    except StorageError as error:
        raise StorageError(
            f"{error}; a dataset is a folder or URL with a {MANIFEST_NAME}, which its writer adds last"
        ) from error
    manifest = Manifest.parse(data, source=f"{store.uri}/{MANIFEST_NAME}")
    for shard in manifest.shards:
        if shard.location is not None and not trust_locations:
            raise FormatError(
                f"{store.uri}: shard {shard.name} lies elsewhere, at {shard.location!r}; if you adopted it yourself, open "
                "with trust_locations=True"
            )
        if shard.stored is not None:
            raise FormatError(
                f"{store.uri}: shard {shard.name} is stored as {shard.stored.codec}, and this version of shardstream "
                "reads raw shards only; install a newer one"
            )
    return TokenDataset(store, manifest, trust_locations=trust_locations)


def _local_path(store: Store, trust_locations: bool, entry: ShardEntry) -> Path:  # noqa: FBT001 - bound once, in order
    if not isinstance(store, LocalStore):
        raise StorageError(
            f"{store.uri}: tokens are read from local disks only so far; copy the dataset to one, "
            "or check it where it is with `shardstream verify`"
        )
    return store.path(entry.location or entry.name, follow_links=trust_locations)


def _reopen(uri: str, trust_locations: bool, digest: str) -> TokenDataset:  # noqa: FBT001 - called by pickle alone
    dataset = open_dataset(uri, trust_locations=trust_locations)
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
