"""Shards of one dataset on their way from its store into the cache: those needed now, and those that are coming.

A shard is fetched in ranges, several at a time, and hashed, decompressed and written as they arrive, in order. So a
few ranges are all that is in memory, and one shard alone comes as fast as many.
"""

import contextlib
import hashlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from shardstream.errors import IntegrityError
from shardstream.format.manifest import ShardEntry
from shardstream.format.zstd_shard import decompressed_blocks
from shardstream.storage.cache import NoRoomError, Partial, Pin, ShardCache
from shardstream.storage.store import Store
from shardstream.storage.workers import Workers

if TYPE_CHECKING:
    from concurrent.futures import Future

_log = logging.getLogger("shardstream")

RANGE_BYTES: Final = 2**23
# Four connections fill a wire that one does not.
_NUM_RANGES_AT_A_TIME: Final = 4
# Ranges that are there, or on their way, before the one that is hashed next: as many again as are on their way.
_NUM_RANGES_AHEAD: Final = 8
# Shards that are coming: while one is hashed to its end and made durable, the next one keeps the wire busy.
_NUM_SHARDS_AT_A_TIME: Final = 2
# A wrong checksum may be a fault of the way, or of one server of many.
_NUM_TRIES: Final = 3


class Piece(NamedTuple):
    """A few bytes of a shard that are not worth the whole of it."""

    shard: int
    start: int
    stop: int
    """Offsets in the shard's object, half-open."""


class Expected(NamedTuple):
    """What somebody will need."""

    in_use: Sequence[int]
    """Shards that the next reads may touch: they are kept in the cache."""
    coming: Sequence[int]
    """Shards that later reads will, in order: downloaded as far as there is room beside those that come sooner."""
    pieces: Sequence[Piece]
    """Bytes of other shards."""


class Downloads:
    """Brings shards into the cache. Threads may call it at once; after a fork the child begins with threads of its own.

    Args:
        store: Where the dataset is.
        cache: Where its shards go.
        entries: Its shards, each with a checksum.
        check_unchanged: Called after each piece was read, which has no checksum of its own; raises if the dataset is
            another one by then.
    """

    def __init__(
        self, store: Store, cache: ShardCache, entries: Sequence[ShardEntry], check_unchanged: Callable[[], None]
    ) -> None:
        self.cache = cache
        self._check_unchanged = check_unchanged
        self._store = store
        self._entries = entries
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ranges = Workers(_NUM_RANGES_AT_A_TIME, "shardstream-get")
        self._shards = Workers(_NUM_SHARDS_AT_A_TIME, "shardstream-download")
        self._expected: weakref.WeakKeyDictionary[object, Expected] = weakref.WeakKeyDictionary()
        self._kept: frozenset[str] = frozenset()
        self._in_use: dict[int, Pin | None] = {}
        self._coming: dict[int, Future[None]] = {}
        self._pieces: dict[Piece, Future[memoryview]] = {}

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._begin()  # the parent's threads are not here, and its locks may be held for ever

    def obtain(self, shard: int) -> Pin:
        """A shard in the cache; waits until it is there.

        Raises:
            IntegrityError: The store holds other bytes than the manifest says.
            StorageError: The store cannot be read, or the cache not be written.
        """
        self._check_process()
        with self._lock:
            if pin := self._in_use.get(shard):
                return pin
            coming = self._coming.pop(shard, None)
        if coming is not None and not coming.cancel():  # cancelled: this thread is sooner than its turn
            with contextlib.suppress(NoRoomError):
                coming.result()
        return self._bring(shard, is_urgent=True)

    def expect(self, owner: object, expected: Expected) -> frozenset[int]:
        """Say what is needed from now on; what the same owner said before is forgotten, and all of it with the owner.

        Returns:
            The shards that are in use for any owner.
        """
        self._check_process()
        with self._lock:
            self._expected[owner] = expected
            everyone = list(self._expected.values())
            self._in_use = {shard: self._in_use.get(shard) for one in everyone for shard in one.in_use}
            wanted = dict.fromkeys([*self._in_use, *(shard for one in everyone for shard in one.coming)])
            self._kept = frozenset(str(self._entries[shard].sha256) for shard in wanted)
            for shard in [shard for shard in self._coming if shard not in wanted]:
                self._coming.pop(shard).cancel()
            for shard in wanted:
                if self._in_use.get(shard) is None and not self._is_coming(shard):
                    self._coming[shard] = self._shards.submit(partial(self._bring_ahead, shard))
            pieces = dict.fromkeys(piece for one in everyone for piece in one.pieces)
            self._pieces = {piece: self._pieces.get(piece) or self._asked_for(piece) for piece in pieces}
            return frozenset(self._in_use)

    def _is_coming(self, shard: int) -> bool:
        """Whether a shard is on its way, or has come, or has failed for a reason that who needs it has to see."""
        future = self._coming.get(shard)
        return future is not None and not (
            future.done() and not future.cancelled() and isinstance(future.exception(), NoRoomError)
        )

    def piece(self, shard: int, start: int, stop: int) -> memoryview | None:
        """Bytes of a piece that is expected; None if it is not."""
        self._check_process()
        with self._lock:
            holding = (piece for piece in self._pieces if piece.shard == shard and piece.start <= start)
            piece = next((piece for piece in holding if stop <= piece.stop), None)
            future = None if piece is None else self._pieces[piece]
        if piece is None or future is None:
            return None
        return future.result()[start - piece.start : stop - piece.start]

    def close(self) -> None:
        """End the threads and let go of all pins; what was expected is forgotten."""
        self._check_process()
        with self._lock:
            for shard in self._coming.values():
                shard.cancel()
            for piece in self._pieces.values():
                piece.cancel()
        self._shards.close()
        self._ranges.close()
        self._begin()

    def _asked_for(self, piece: Piece) -> "Future[memoryview]":
        def read() -> memoryview:
            data = self._store.get_range(_object_name(self._entries[piece.shard]), piece.start, piece.stop)
            self._check_unchanged()
            return data

        return self._ranges.submit(read)

    def _bring_ahead(self, shard: int) -> None:
        """In a thread: bring a shard that is coming, and pin it if it is in use by then."""
        pin = self._bring(shard, is_urgent=False)
        with self._lock:
            if shard in self._in_use:
                self._in_use[shard] = pin

    def _bring(self, shard: int, *, is_urgent: bool) -> Pin:
        entry = self._entries[shard]
        return self.cache.obtain(entry, lambda filled: self._fill(entry, filled), kept=self._kept, is_urgent=is_urgent)

    def _fill(self, entry: ShardEntry, partial: Partial) -> None:
        """Download a shard and check it."""
        for num_left in reversed(range(_NUM_TRIES)):
            partial.restart()
            try:
                self._fill_once(entry, partial)
            except IntegrityError as error:
                if num_left == 0:
                    raise IntegrityError(
                        f"{self._store.uri}/{_object_name(entry)}: {error}; it was damaged or replaced since the dataset "
                        f"was written; see `shardstream verify {self._store.uri}`"
                    ) from error
                _log.warning("%s/%s: %s; downloading it again", self._store.uri, _object_name(entry), error)
            else:
                return

    def _fill_once(self, entry: ShardEntry, partial: Partial) -> None:
        sha256 = hashlib.sha256()
        with contextlib.closing(self._bodies(entry)) as bodies:
            blocks = decompressed_blocks(_Reader(bodies).read, entry) if entry.stored else bodies
            for block in blocks:
                sha256.update(block)
                partial.write(block)
        if sha256.hexdigest() != entry.sha256:
            raise IntegrityError(f"checksum is sha256 {sha256.hexdigest()}, the manifest says {entry.sha256}")

    def _bodies(self, entry: ShardEntry) -> Generator[memoryview, None, None]:
        """The stored bytes of a shard's tokens, range after range."""
        name = _object_name(entry)
        pending: deque[Future[memoryview]] = deque()
        try:
            for start in range(entry.byte_offset, entry.file_bytes, RANGE_BYTES):
                stop = min(start + RANGE_BYTES, entry.file_bytes)
                pending.append(self._ranges.submit(partial(self._store.get_range, name, start, stop)))
                if len(pending) == _NUM_RANGES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Reader:
    """Bodies that follow one another, read as one file."""

    def __init__(self, bodies: Generator[memoryview, None, None]) -> None:
        self._bodies = bodies
        self._rest = memoryview(b"")

    def read(self, num_bytes: int) -> memoryview:
        """The next bytes, at most so many; none at the end."""
        if not self._rest:
            self._rest = next(self._bodies, memoryview(b""))
        data, self._rest = self._rest[:num_bytes], self._rest[num_bytes:]
        return data


def _object_name(entry: ShardEntry) -> str:
    return entry.location or entry.name
