"""A bounded set of memory maps, and windows gathered out of them.

The gather takes every window of a batch with one NumPy call, although the windows lie in many maps: it indexes one
strided view that reaches over the whole address space, and whose row ``i`` is the window that begins at the ``i``-th
token-sized cell of it. Only rows that lie in live maps are ever read. What it costs beside one contiguous array is the look-up of each
window's shard: a binary search would take a quarter of the gather's own time, so a table of equal blocks of positions
gives the shard that holds the block's first token, and the few windows for which that is not the whole answer (they
cross into the next shard, or their shard is not mapped) take the slow way.

A map must outlive the copies that run out of it, in any thread, and no copy should take a lock. So maps are never
closed, only let go of, in generations: a gather holds the generation current at its start, each generation holds the
next one together with the maps retired between the two, and reference counting does the rest.
"""

import contextlib
import mmap
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import IntegrityError, StorageError
from shardstream.format.integrity import size_problem
from shardstream.format.manifest import ShardEntry
from shardstream.read.folder_watch import FolderWatch
from shardstream.read.page_filler import CAN_FILL, PageFiller
from shardstream.read.spans import spans_of, stepped_spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Tokens = NDArray[np.unsignedinteger[Any]]

# User addresses end at 2**47 on x86-64 and at 2**48 on 64-bit Arm.
_ADDRESS_SPACE: Final = 2**48
# NumPy refuses an array whose nominal size passes 2**63 bytes: rows of this many tokens at most over all addresses.
_MAX_GATHER_LENGTH: Final = 2**63 // _ADDRESS_SPACE - 1
# The first page is never mapped; the view starts after it because NumPy takes address 0 for "no data".
_VIEW_ADDRESS: Final = 4096
# Entries of the block table, 8 bytes each, twice: its cost is bounded at 8 MiB for any dataset.
_MAX_NUM_BLOCKS: Final = 2**19
# A run uses one or two lengths of windows; a loop over all lengths must not fill memory.
_MAX_NUM_VIEWS: Final = 16
# So few windows are read one by one sooner than they are sorted by shard: those of a batch that cross a bound.
_FEW: Final = 4
# The kernel reads no more at one asking than the disk's read-ahead, of which this is the default.
_LEAST_ADVICE_BYTES: Final = 2**17
# Shorter ranges are asked for: pages of 2 MiB would bring far more than they need. A little below 2 MiB, where the whole
# windows of a piece end.
_LEAST_FILL_BYTES: Final = 3 * 2**19
_LOOK_EVERY_S: Final = 0.1
_NOT_READY: Final = np.iinfo(np.int64).min


def max_open_maps() -> int:
    """How many maps may be open: half of what the process may open, since before Python 3.13 each holds a descriptor."""
    import resource  # noqa: PLC0415 - POSIX only, as the address-wide view is

    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Linux admits 65,530 maps to a process by default; the allocator and other libraries need some of them.
    if sys.version_info >= (3, 13) or soft_limit == resource.RLIM_INFINITY:
        return 2**14
    return max(1, min(soft_limit // 2, 2**14))


def advice_bytes_of(path: str | os.PathLike[str]) -> int:
    """How much of a file the kernel reads at one asking: its disk's read-ahead, as sysfs tells it."""
    try:
        device = Path(path).stat().st_dev
    except OSError:
        return _LEAST_ADVICE_BYTES
    name = f"{os.major(device)}:{os.minor(device)}"
    # Of a disk or a network's mount, and of a partition.
    for folder in (f"/sys/class/bdi/{name}", f"/sys/dev/block/{name}/../queue"):
        with contextlib.suppress(OSError):
            return max(_LEAST_ADVICE_BYTES, 1024 * int(Path(folder, "read_ahead_kb").read_text("ascii")))
    return _LEAST_ADVICE_BYTES


class _Map(NamedTuple):
    """One shard in memory."""

    tokens: Tokens
    """Keeps the map alive by itself."""
    raw: mmap.mmap
    path: str | os.PathLike[str]


class _Generation:
    """The time between two retirements; whoever holds it holds all maps that were live at any moment since."""

    __slots__ = ("next", "retired")

    def __init__(self) -> None:
        self.retired: list[Tokens] = []
        self.next: _Generation | None = None


class MappedShards:
    """Reads tokens of shards that lie on a local disk. Any number of threads may call it at once.

    Args:
        entries: The shards, in order.
        bounds: First position of each shard, then the total; shape (num_shards + 1,).
        dtype: The stored dtype.
        locate: Number of a shard -> path of a local file with its tokens. Called when the shard is mapped; may take its
            time, and may raise. The path is held as long as the map, so it may be an object that keeps the file there.
        max_maps: Maps open at a time, at least 1; shards beyond them are mapped in turn.
        piece: Shard, start and stop in tokens of it -> these tokens, where they are at hand without the file; None where
            they are not.
    """

    def __init__(
        self,
        entries: Sequence[ShardEntry],
        bounds: NDArray[np.int64],
        dtype: "np.dtype[np.unsignedinteger[Any]]",
        locate: Callable[[int], str | os.PathLike[str]],
        *,
        max_maps: int,
        piece: Callable[[int, int, int], Tokens | None] | None = None,
    ) -> None:
        self._entries = entries
        self._bounds = bounds
        self._dtype = dtype
        self._locate = locate
        self._max_maps = max_maps
        self._piece = piece
        self._maps: dict[int, _Map] = {}  # oldest first
        self._generation = _Generation()
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()
        self._views: dict[int, NDArray[np.void]] = {}
        num_shards = len(entries)
        # Row in the view of a shard's position 0, had it one; and where its tokens stop, or _NOT_READY. The last entry
        # stands for "no shard".
        self._byte_offsets = np.array([entry.byte_offset for entry in entries], dtype=np.int64)
        self._row_shift = np.zeros(num_shards + 1, dtype=np.int64)
        self._ready_stop = np.full(num_shards + 1, _NOT_READY, dtype=np.int64)
        self._advice_bytes = _LEAST_ADVICE_BYTES
        self._filler: PageFiller | None = None
        self._large_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # which are read in pages of 2 MiB
        self._watch: FolderWatch | None = None
        self._looked_after: Iterator[int] = iter(())
        self._next_look_s = 0.0
        block_bits, self._shard_of_block = _block_table(bounds)
        self._block_bits = _scalar(block_bits)
        self._cells = np.asarray(_AddressSpace(1, dtype)).view(dtype)

    def gather(self, starts: NDArray[np.int64], length: int, out: Tokens | None) -> Tokens:
        """Windows of ``length`` tokens.

        Args:
            starts: Positions, shape (n,).
            length: Tokens of a window, at least 1.
            out: Where to put them, shape (n, length), in the stored dtype; None for a new array.

        Returns:
            The windows, shape (n, length).

        Raises:
            IndexError: A window does not lie within the dataset.
            IntegrityError: A shard is missing, or has another size than the manifest says.
            StorageError: A shard cannot be read.
        """
        windows = self._gather_all(starts, length)
        if out is None:
            return windows
        out[...] = windows
        return out

    def _gather_all(self, starts: NDArray[np.int64], length: int) -> Tokens:
        if length > _MAX_GATHER_LENGTH:
            return self._gather_slowly(starts, length)
        generation = self._generation  # while it is held, no map that was live can go away
        try:
            shards = self._shard_of_block[starts >> self._block_bits]
        except IndexError:
            return self._gather_slowly(starts, length)
        is_ready = starts + _scalar(length) <= self._ready_stop[shards]
        num_ready = np.count_nonzero(is_ready)
        rows = starts + self._row_shift[shards]
        if num_ready == len(starts):
            return self._rows(rows, length)
        if num_ready == 0:
            del generation  # the slow way holds the lock instead, and needs the descriptors of what it retires
            return self._gather_slowly(starts, length)
        # A row that may be read stands in for those that may not, until they are overwritten.
        rows[~is_ready] = rows[is_ready.argmax()]
        windows = self._rows(rows, length)
        del generation
        windows[~is_ready] = self._gather_slowly(starts[~is_ready], length)
        return windows

    def _rows(self, rows: NDArray[np.int64], length: int) -> Tokens:
        """Copies of these rows of the view over all addresses; each must lie in a live map."""
        # One token of each first: the processor waits for all of these cache misses at once, and for those of the copy,
        # which takes row after row, one by one. A quarter off the whole.
        self._cells[rows]
        return self._view(length)[rows].view(self._dtype).reshape(len(rows), length)

    def read(self, positions: range) -> Tokens:
        """Tokens at ``positions``, which lie within the dataset, as a new array of shape (len(positions),)."""
        out = np.empty(len(positions), dtype=self._dtype)
        filled = 0
        for shard, piece in stepped_spans_of(positions, self._bounds):
            stop = piece.stop if piece.stop >= 0 else None
            out[filled : filled + len(piece)] = self._mapped(shard)[piece.start : stop : piece.step]
            filled += len(piece)
        return out

    def look_ahead(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Have ranges read into the page cache; returns before they are there.

        The kernel is asked for short ones. Long ones are filled, where the system can do that. A shard that cannot be
        mapped is left for the read that needs it to report.

        Args:
            starts, stops: Positions, half-open, shape (n,) each, within the dataset.
        """
        shards = self._bounds.searchsorted(starts, side="right") - 1
        crosses = stops > self._bounds[shards + 1]
        if crosses.any():
            spans = [
                span
                for start, stop in zip(starts[crosses].tolist(), stops[crosses].tolist(), strict=True)
                for span in spans_of(start, stop, self._bounds)
            ]
            pieces = np.array(spans, dtype=np.int64)
            firsts = self._bounds[pieces[:, 0]]
            self.look_ahead(firsts + pieces[:, 1], firsts + pieces[:, 2])
            shards, starts, stops = shards[~crosses], starts[~crosses], stops[~crosses]
        offsets = self._byte_offsets[shards] + (starts - self._bounds[shards]) * self._dtype.itemsize
        begins = offsets // mmap.PAGESIZE * mmap.PAGESIZE
        lengths = offsets - begins + (stops - starts) * self._dtype.itemsize
        for shard, begin, length in zip(shards.tolist(), begins.tolist(), lengths.tolist(), strict=True):
            mapped = self._maps.get(shard)
            # A shard that may come in pieces may have a long way; bringing it here is not this method's business.
            if mapped is None and self._piece is None:
                mapped = self._mapped_if_it_can_be(shard)
            if mapped is None:
                continue
            if length >= _LEAST_FILL_BYTES and self._fill(shard, mapped, begin, length):
                continue
            with contextlib.suppress(OSError):  # advice only: not every filesystem takes it
                for part in range(begin, begin + length, self._advice_bytes):
                    mapped.raw.madvise(mmap.MADV_WILLNEED, part, min(self._advice_bytes, begin + length - part))

    def _fill(self, shard: int, mapped: "_Map", begin: int, length: int) -> bool:
        """Have a range of a shard's map filled in large pages; False where that cannot be done."""
        if not CAN_FILL:
            return False
        if mapped.raw not in self._large_maps:
            try:
                # Of the whole map: a part would be a map of its own, and a process may not have many.
                mapped.raw.madvise(mmap.MADV_HUGEPAGE)
                mapped.raw.madvise(mmap.MADV_RANDOM)  # no more than the 2 MiB in which something is wanted
            except OSError:  # a kernel that was built without them
                return False
            self._large_maps.add(mapped.raw)
        filler = self._filler
        if filler is None or filler.pid != os.getpid():
            filler = self._filler = PageFiller()
        filler.fill(mapped.tokens, _address_of(mapped.tokens) - int(self._byte_offsets[shard]) + begin, length)
        return True

    @property
    def num_reads_ahead(self) -> int:
        """How often other threads have read from the disk for :meth:`look_ahead`; no exact figure, but it grows then."""
        return 0 if self._filler is None else self._filler.num_reads

    def _mapped_if_it_can_be(self, shard: int) -> "_Map | None":
        try:
            with self._own_lock():
                self._map_all(np.array([shard]))
                return self._maps[shard]
        except (IntegrityError, StorageError):
            return None

    def look_again(self) -> None:
        """See that the mapped shards are still there as a whole; reading a truncated one kills the process.

        All of them as soon as the kernel tells of a change in their folders. It may not tell (the change of another
        machine on a network's disk), so besides that one after the other, ten in a second.

        Raises:
            IntegrityError: A shard is missing, or its size is wrong.
        """
        watch = self._watch
        if watch is None or watch.pid != os.getpid():
            self._watch_folders()
            return
        if watch.has_changed():
            for shard in list(self._maps):
                self._look_at(shard)
        elif time.monotonic() > self._next_look_s:
            self._next_look_s = time.monotonic() + _LOOK_EVERY_S
            for shard in self._looked_after:
                self._look_at(shard)
                return
            self._looked_after = iter(list(self._maps))

    def _watch_folders(self) -> None:
        """From now on be told of changes."""
        with self._own_lock():
            self._watch = FolderWatch()
            for mapped in self._maps.values():
                self._watch.add(os.path.dirname(mapped.path))  # noqa: PTH120 - of strings, many times
            shards = list(self._maps)
        for shard in shards:
            self._look_at(shard)

    def _look_at(self, shard: int) -> None:
        mapped = self._maps.get(shard)
        if mapped is None:
            return  # whoever maps it again looks at it then
        try:
            problem = size_problem(self._entries[shard], Path(mapped.path).stat().st_size)
        except OSError as error:
            problem = f"the shard cannot be read any more: {error.strerror}"
        if problem:
            with self._own_lock():
                self._retire([shard] if shard in self._maps else [])
            if self._piece is not None:
                return  # a cached copy: whoever locates it again finds the damage, and mends it
            raise IntegrityError(f"{os.fspath(mapped.path)}: {problem}; the dataset was changed while it was read")

    def keep_only(self, shards: Collection[int], *, max_maps: int) -> None:
        """Let go of the maps of all other shards; from now on keep up to ``max_maps``."""
        with self._own_lock():
            self._max_maps = max_maps
            self._retire([shard for shard in self._maps if shard not in shards])

    def close(self) -> None:
        """Let go of all maps; the next read maps anew."""
        with self._own_lock():
            self._retire(list(self._maps))
        if self._filler is not None:
            self._filler.close()
            self._filler = None

    def _gather_slowly(self, starts: NDArray[np.int64], length: int) -> Tokens:
        total = int(self._bounds[-1])
        is_outside = (starts < 0) | (starts > total - length)
        if is_outside.any():
            start = int(starts[np.argmax(is_outside)])
            raise IndexError(
                f"window [{start}, {start + length}) does not lie within the dataset's {total} tokens; "
                f"starts of windows of {length} tokens go from 0 to {total - length}"
            )
        out = np.empty((len(starts), length), dtype=self._dtype)
        if len(starts) <= _FEW:
            for index, start in enumerate(starts.tolist()):
                self._read_span(start, out[index])
            return out
        shards = self._bounds.searchsorted(starts, side="right") - 1
        is_whole = starts + length <= self._bounds[shards + 1]
        if length > _MAX_GATHER_LENGTH:
            is_whole[:] = False
        if self._piece is not None:
            for index in np.flatnonzero(is_whole).tolist():
                is_whole[index] = self._piece_of(int(starts[index]), int(shards[index]), length) is None
        # In shard order, as many windows at a time as their shards can be mapped together.
        whole = np.flatnonzero(is_whole)
        whole = whole[np.argsort(shards[whole], kind="stable")]
        turn = np.cumsum(np.diff(shards[whole], prepend=shards[whole[:1]]) != 0) // self._max_maps
        for chosen in np.split(whole, np.flatnonzero(np.diff(turn)) + 1) if len(whole) else []:
            # Under the lock: threads that take turns over more shards than can be mapped would otherwise hold maps
            # beyond the bound.
            with self._own_lock():
                self._map_all(np.unique(shards[chosen]))
                out[chosen] = self._rows(starts[chosen] + self._row_shift[shards[chosen]], length)
        for index in np.flatnonzero(~is_whole).tolist():
            self._read_span(int(starts[index]), out[index])
        return out

    def _read_span(self, start: int, out: Tokens) -> None:
        filled = 0
        for span in spans_of(start, start + len(out), self._bounds):
            length = span.stop - span.start
            piece = self._piece_of(start + filled, span.shard, length)
            out[filled : filled + length] = self._mapped(span.shard)[span.start : span.stop] if piece is None else piece
            filled += length

    def _piece_of(self, start: int, shard: int, length: int) -> Tokens | None:
        """Tokens of a shard that is not mapped, if they are at hand all the same."""
        if self._piece is None or shard in self._maps:
            return None
        start -= int(self._bounds[shard])
        return self._piece(shard, start, start + length)

    def _mapped(self, shard: int) -> Tokens:
        """All tokens of one shard; the array keeps its map alive by itself."""
        with self._own_lock():
            self._map_all(np.array([shard]))
            return self._maps[shard].tokens

    def _map_all(self, shards: NDArray[np.int64]) -> None:
        """Have these shards mapped, at most ``max_maps`` of them; the oldest others make room."""
        wanted = [int(shard) for shard in shards]
        missing = [shard for shard in wanted if shard not in self._maps]
        num_surplus = len(self._maps) + len(missing) - self._max_maps
        if num_surplus > 0:
            kept = set(wanted)
            self._retire([shard for shard in self._maps if shard not in kept][:num_surplus])
        for shard in missing:
            entry = self._entries[shard]
            path = self._locate(shard)
            if self._watch is not None:  # before its size is looked at
                self._watch.add(os.path.dirname(path))  # noqa: PTH120
            if not self._maps:
                self._advice_bytes = advice_bytes_of(path)
            raw = _map_file(path, entry)
            tokens = np.frombuffer(raw, self._dtype, entry.num_tokens, entry.byte_offset)
            self._maps[shard] = _Map(tokens, raw, path)
            self._row_shift[shard] = (_address_of(tokens) - _VIEW_ADDRESS) // self._dtype.itemsize - self._bounds[shard]
            self._ready_stop[shard] = self._bounds[shard + 1]  # last: another thread may look at any time

    def _retire(self, shards: list[int]) -> None:
        for shard in shards:
            self._ready_stop[shard] = _NOT_READY
        # Before the new generation is current, so that whoever still saw these shards ready holds the old one.
        self._generation.retired = [self._maps.pop(shard).tokens for shard in shards]
        self._generation.next = _Generation()
        self._generation = self._generation.next

    def _own_lock(self) -> threading.RLock:
        """The lock; in a forked child a new one, since a thread that no longer exists may hold the old."""
        if self._owner_pid != os.getpid():
            self._lock = threading.RLock()
            self._owner_pid = os.getpid()
        return self._lock

    def _view(self, length: int) -> NDArray[np.void]:
        view = self._views.get(length)
        if view is None:
            if len(self._views) == _MAX_NUM_VIEWS:
                self._views = {}
            view = self._views[length] = np.asarray(_AddressSpace(length, self._dtype))
        return view


class _AddressSpace:
    """What NumPy needs to make the strided view over all addresses: a window at each token-sized cell.

    A window is one opaque element: NumPy copies such rows up to 1.7 times as fast as rows of an array of tokens.
    """

    def __init__(self, length: int, dtype: "np.dtype[Any]") -> None:
        itemsize = dtype.itemsize
        num_rows = (_ADDRESS_SPACE - _VIEW_ADDRESS) // itemsize - length
        self.__array_interface__ = {
            "version": 3,
            "data": (_VIEW_ADDRESS, True),
            "typestr": f"|V{length * itemsize}",
            "shape": (num_rows,),
            "strides": (itemsize,),
        }


def _address_of(tokens: Tokens) -> int:
    return int(tokens.__array_interface__["data"][0])


def _scalar(value: int) -> NDArray[np.int64]:
    """An integer as NumPy likes it best: a plain one costs 0.3 microseconds more in each operation with an array."""
    return np.array(value, dtype=np.int64)


def _block_table(bounds: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Cut positions into equal blocks; say which shard holds the first token of each.

    Returns:
        Block size as a power of two, and the shards of the blocks. Half of the table is "no shard": a start that is
        negative (NumPy counts from the end then) or beyond the last token finds that half, or none.
    """
    num_shards = len(bounds) - 1
    total = int(bounds[-1])
    block_bits = int(np.diff(bounds).max(initial=1)).bit_length() - 1
    if (bounds[:-1] % (1 << block_bits)).any():
        # A bound inside a block sends what follows it there the slow way: of a shard of mean length, a 64th at most.
        block_bits = max(0, (total // num_shards).bit_length() - 7)
    while (total >> block_bits) >= _MAX_NUM_BLOCKS:
        block_bits += 1
    num_blocks = (total >> block_bits) + 1
    # int64 although int32 would do: NumPy takes 5 times as long to index with anything else.
    table = np.full(2 * num_blocks, num_shards, dtype=np.int64)
    firsts = np.minimum(np.arange(num_blocks, dtype=np.int64) << block_bits, max(total - 1, 0))
    table[:num_blocks] = bounds.searchsorted(firsts, side="right") - 1
    return block_bits, table


def _map_file(path: str | os.PathLike[str], entry: ShardEntry) -> mmap.mmap:
    try:
        # Non-blocking: a pipe under a shard's name must not hang the reader.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{os.fspath(path)}: the shard is missing; run `shardstream verify` on the dataset"
        ) from error
    except OSError as error:
        raise StorageError(f"{os.fspath(path)}: cannot read the shard: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{os.fspath(path)}: not a regular file")
        # Before the map: reading a map beyond the end of its file kills the process.
        if problem := size_problem(entry, status.st_size):
            raise IntegrityError(f"{os.fspath(path)}: {problem}; run `shardstream verify` on the dataset")
        untracked = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        try:
            return mmap.mmap(descriptor, entry.file_bytes, access=mmap.ACCESS_READ, **untracked)
        except OSError as error:
            raise StorageError(f"{os.fspath(path)}: cannot map the shard: {error.strerror}") from error
    finally:
        os.close(descriptor)
