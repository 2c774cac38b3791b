"""Shards of one dataset on their way from its store into the cache: those needed now, and those that are coming.

A shard is fetched in ranges, several at a time, and hashed, decompressed and written as they arrive, in order. So a
few ranges are all that is in memory, and one shard alone comes as fast as many.
"""

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from shardstream.errors import IntegrityError
from shardstream.format.manifest import ShardEntry
from shardstream.format.zstd_shard import decompressed_blocks
from shardstream.storage.cache import NoRoomError, Partial, Pin, ShardCache
from shardstream.storage.remote_store import RANGE_BYTES
from shardstream.storage.store import Store
from shardstream.storage.workers import Workers

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
_log = logging.getLogger("shardstream")

# Four connections fill a wire that one does not.
_NUM_RANGES_AT_A_TIME: Final = 4
# Ranges that are there, or on their way, before the one that is hashed next: as many again as are on their way.
_NUM_RANGES_AHEAD: Final = 8
# Shards that are coming: one for each connection, since small ones are a range each; of large ones some are hashed to
# their end or made durable while the others keep the wire busy.
_NUM_SHARDS_AT_A_TIME: Final = 4
_AT_ONCE: Final = -1
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
        self._kept: set[str] = set()  # one for ever: a download that has begun looks at what is wanted by now
        self._in_use: dict[int, Pin | None] = {}
        self._turns = itertools.count()  # the ranges of a shard whose download began sooner go first
        self._is_full = False  # a shard that is coming had no room; those that are needed later do not take it
        self._coming: dict[int, Future[None]] = {}
        # In use, begun for that reason, and not here yet: they have the wire for themselves.
        self._awaited: set[int] = set()
        self._later: list[int] = []  # begins after them
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
            # One that is pinned is pinned anew: somebody may have damaged or deleted it all the same.
            coming = None if self._in_use.get(shard) else self._coming.pop(shard, None)
        if coming is not None and not coming.cancel():  # cancelled: this thread is sooner than its turn
            # Not result(): it would tie the callers' frames, and with them the pins that they hold, to an error that
            # is tied to this frame, until the garbage collector comes by.
            error = coming.exception()
            del coming
            if error is not None and not isinstance(error, NoRoomError):
                try:
                    raise error
                finally:
                    del error
        try:
            return self._bring(shard, is_urgent=True)
        finally:
            self._arrived(shard)

    def bring_all(self, shards: Sequence[int], arrived: Callable[[ShardEntry], object]) -> list[int]:
        """Bring shards into the cache, several at a time; wait until all are there.

        Args:
            shards: Which, each once.
            arrived: Called with the entry of each that is there.

        Returns:
            Those that were not there before.

        Raises:
            IntegrityError, StorageError: As for :meth:`obtain`.
        """
        missing = []
        for shard in shards:
            if self.cache.pin(self._entries[shard]) is None:
                missing.append(shard)
            else:
                arrived(self._entries[shard])
        waiting = _Waiting()
        self.expect(waiting, Expected(in_use=(), coming=missing, pieces=()))
        try:
            for shard in missing:
                self.obtain(shard)
                arrived(self._entries[shard])
        finally:  # what has not begun never will
            self.expect(waiting, Expected(in_use=(), coming=(), pieces=()))
        return missing

    def expect(self, owner: object, expected: Expected) -> None:
        """Say what is needed from now on; what the same owner said before is forgotten, and all of it with the owner."""
        self._check_process()
        with self._lock:
            self._expected[owner] = expected
            self._is_full = False
            everyone = list(self._expected.values())
            self._in_use = {shard: self._in_use.get(shard) for one in everyone for shard in one.in_use}
            wanted = dict.fromkeys([*self._in_use, *(shard for one in everyone for shard in one.coming)])
            kept = {str(self._entries[shard].sha256) for shard in wanted}
            self._kept.update(kept)
            self._kept.intersection_update(kept)
            for shard in [shard for shard in self._coming if shard not in wanted]:
                self._coming.pop(shard).cancel()
            to_begin = [s for s in wanted if self._in_use.get(s) is None and not self._has_begun(s)]
            # While somebody waits for what is in use, nothing else takes the wire from it, nor the processor.
            first = [shard for shard in to_begin if shard in self._in_use]
            self._later = to_begin[len(first) :]  # what is in use stands in front
            self._awaited = {*first, *(self._awaited & self._in_use.keys())}
            self._begin_downloads(first)
            self._begin_later()
            pieces = dict.fromkeys(piece for one in everyone for piece in one.pieces)
            self._pieces = {piece: self._pieces.get(piece) or self._asked_for(piece) for piece in pieces}

    def _begin_downloads(self, shards: Sequence[int]) -> None:
        for shard in shards:
            self._coming[shard] = self._shards.submit(functools.partial(self._bring_ahead, shard))

    def _arrived(self, shard: int) -> None:
        """A shard needs the wire no longer: begin with what comes later if that was the last one awaited."""
        with self._lock:
            self._awaited.discard(shard)
            self._begin_later()

    def _begin_later(self) -> None:
        """The caller holds the lock."""
        if not self._awaited:
            self._begin_downloads(self._later)
            self._later = []

    def let_go(self, owner: object, *, in_use: Sequence[int]) -> frozenset[int]:
        """Give up the pins of shards that nobody needs once this is all that an owner uses.

        Returns:
            The shards that are in use for any owner.
        """
        self._check_process()
        with self._lock:
            others = [expected for other, expected in self._expected.items() if other is not owner]
            still = dict.fromkeys([*in_use, *(shard for one in others for shard in one.in_use)])
            self._in_use = {shard: self._in_use.get(shard) for shard in still}
            return frozenset(still)

    def _has_begun(self, shard: int) -> bool:
        """Whether a shard is on its way, or has come, or has failed for a reason that who needs it has to see.

        One whose turn has not come is taken out of its turn: what is needed sooner may stand before it now.
        """
        future = self._coming.get(shard)
        return (
            future is not None
            and not future.cancel()
            and not (future.done() and isinstance(future.exception(), NoRoomError))
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

        return self._ranges.submit(read, urgency=_AT_ONCE)

    def _bring_ahead(self, shard: int) -> None:
        """In a thread: bring a shard that is coming, and pin it if it is in use by then."""
        if self._is_full:
            raise NoRoomError("there is none for a shard that is needed sooner")
        pin = None
        try:
            pin = self._bring(shard, is_urgent=False)
        except NoRoomError:
            self._is_full = True
            raise
        finally:
            with self._lock:
                if pin is not None and shard in self._in_use:
                    self._in_use[shard] = pin
            self._arrived(shard)

    def _bring(self, shard: int, *, is_urgent: bool) -> Pin:
        entry = self._entries[shard]
        urgency = _AT_ONCE if is_urgent else next(self._turns)

        def fill(partial: Partial) -> None:
            self._fill(entry, partial, urgency=urgency)
            self._arrived(shard)  # while it is made durable, the wire is free

        return self.cache.obtain(entry, fill, kept=self._kept, is_urgent=is_urgent)

    def _fill(self, entry: ShardEntry, partial: Partial, *, urgency: float) -> None:
        """Download a shard and check it."""
        num_tries = 0
        while True:
            num_tries += 1
            try:
                self._fill_once(entry, partial, urgency)
            except IntegrityError as error:
                if num_tries == _NUM_TRIES:
                    raise IntegrityError(
                        f"{self._store.uri}/{_object_name(entry)}: {error}; it was damaged or replaced since the dataset "
                        f"was written; see `shardstream verify {self._store.uri}`"
                    ) from error
                _log.warning("%s/%s: %s; downloading it again", self._store.uri, _object_name(entry), error)
            else:
                return

    def _fill_once(self, entry: ShardEntry, partial: Partial, urgency: float) -> None:
        sha256 = hashlib.sha256()
        blocks = (self._decompressed if entry.stored else self._raw)(entry, partial, urgency)
        with contextlib.closing(blocks):
            for block in blocks:
                sha256.update(block)
        if sha256.hexdigest() != entry.sha256:
            raise IntegrityError(f"checksum is sha256 {sha256.hexdigest()}, the manifest says {entry.sha256}")

    def _raw(self, entry: ShardEntry, partial: Partial, urgency: float) -> Generator[memoryview, None, None]:
        """A raw shard's bytes in order. Ranges are written as they arrive, and read again out of the page cache."""
        name = _object_name(entry)

        def get(start: int, stop: int) -> tuple[int, int]:
            self._store.write_range(
                name,
                entry.byte_offset + start,
                entry.byte_offset + stop,
                lambda offset, data: partial.write(start + offset, data),
            )
            return start, stop

        with contextlib.closing(self._in_order(get, entry.num_bytes, urgency)) as ranges:
            for start, stop in ranges:
                yield from partial.blocks(start, stop)

    def _decompressed(self, entry: ShardEntry, partial: Partial, urgency: float) -> Generator[memoryview, None, None]:
        """A compressed shard's raw bytes in order, written on their way."""
        name = _object_name(entry)
        get = functools.partial(self._store.get_range, name)
        with contextlib.closing(self._in_order(get, entry.file_bytes, urgency)) as bodies:
            offset = 0
            for block in decompressed_blocks(_Reader(bodies).read, entry):
                partial.write(offset, block)
                offset += len(block)
                yield block

    def _in_order(self, get: Callable[[int, int], T], num_bytes: int, urgency: float) -> Generator[T, None, None]:
        """What ``get`` returns for range after range; it is called for some of them ahead, in threads."""
        pending: deque[Future[T]] = deque()
        try:
            for start in range(0, num_bytes, RANGE_BYTES):
                get_range = functools.partial(get, start, min(start + RANGE_BYTES, num_bytes))
                pending.append(self._ranges.submit(get_range, urgency=urgency))
                if len(pending) == _NUM_RANGES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            for future in pending:
                with contextlib.suppress(Exception):  # none may write to a file that is forgotten or begun again
                    future.result()


class _Waiting:
    """Who waits for shards, as an owner of what is expected."""


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
