"""A folder of whole, verified, raw shards, shared by all processes of a machine and bounded by bytes.

A shard lies under its checksum, so a name says what the bytes are: datasets that share shards share them here, and an
object that was overwritten can never be taken for the one before. Everything that processes have to agree on is a lock
of the kernel, which dies with its process:

* the folder's ``lock``, held while room is made, so that the bound holds with downloads in flight: a file has its full
  size from its creation;
* a shared lock on a shard while somebody reads it: a *pin*. Who makes room takes the exclusive one, or leaves the shard;
* an exclusive lock on a partial file while it is being filled; one that is not locked was left by a process that died.

Only files of the cache's own naming are ever deleted.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shardstream.errors import ShardstreamError, StorageError
from shardstream.format.manifest import ShardEntry

_log = logging.getLogger("shardstream")

_SHARD_NAME: Final = re.compile(r"[0-9a-f]{64}\.tokens")
_PARTIAL_NAME: Final = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{32}\.partial")
# Every shard has this time of modification, 2001-09-09. One that has another was written to by somebody else, and its
# checksum is taken again. The time of access is when it was pinned last, whatever the mount says of access times.
_STAMP_NS: Final = 10**18
# How long to wait for room, or for a shard that another process downloads.
_WAIT_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.02
_HASH_BYTES: Final = 2**20
# https://bford.info/cachedir/: backup programs leave the folder out.
_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# Shards downloaded by shardstream; safe to delete.\n"


def default_cache_dir() -> Path:
    """Where shards are cached if nobody says where: ``$XDG_CACHE_HOME/shardstream``, by default below ``~/.cache``.

    Raises:
        StorageError: The user has no home.
    """
    if cache_home := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache_home, "shardstream")
    try:
        return Path.home() / ".cache" / "shardstream"
    except RuntimeError as error:
        raise StorageError("no home directory to cache shards in; give cache_dir, a folder on a local disk") from error


class Pin:
    """The path of a shard that stays in the cache as long as this object lives."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def __fspath__(self) -> str:
        return os.fspath(self._path)

    def __del__(self) -> None:
        os.close(self._descriptor)  # never unlocked: a forked child may share it


@dataclass(frozen=True, kw_only=True)
class CachedShard:
    """What the cache holds of one shard."""

    sha256: str
    num_bytes: int
    used_s: float
    """When it was pinned last, in seconds since 1970."""
    is_pinned: bool
    """Whether a process reads it now."""


@dataclass
class CacheCounts:
    """What one process made of the cache so far."""

    num_hits: int = 0
    """How often a shard that was needed was there."""
    num_downloads: int = 0
    num_evictions: int = 0


class NoRoomError(Exception):
    """The bound leaves no room, since everything else is in use or wanted sooner."""


class _BusyError(Exception):
    """Another process or thread is downloading the shard, or looking at it."""

    def __init__(self, message: str, progress_ns: int) -> None:
        super().__init__(message)
        self.progress_ns = progress_ns  # when the file was written to last; who waits has patience as long as it moves


class Partial:
    """A shard on its way into the cache, locked and of full size from its creation."""

    def __init__(self, path: Path, final: Path, descriptor: int) -> None:
        self._path, self._final, self._descriptor = path, final, descriptor

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes where they belong; threads may do so at once."""
        while data:
            num_written = os.pwrite(self._descriptor, data, offset)
            offset += num_written
            data = data[num_written:]

    def blocks(self, start: int, stop: int) -> Iterator[memoryview]:
        """What was written to ``[start, stop)``; each block is valid until the next is asked for."""
        block = memoryview(bytearray(_HASH_BYTES))
        while start < stop and (num_read := os.preadv(self._descriptor, [block[: stop - start]], start)):
            yield block[:num_read]
            start += num_read

    def finish(self) -> None:
        """Make what was written durable, and read-only."""
        os.fchmod(self._descriptor, 0o444)
        _stamp(self._descriptor)
        os.fsync(self._descriptor)

    def commit(self) -> Pin:
        """Make it a shard of the cache, and pin it; the caller holds the folder's lock.

        Otherwise who counts the folder's files meanwhile finds it neither under its old name nor under the new one. A
        rename that a power failure undoes leaves a partial file, so it need not be durable.
        """
        self._path.rename(self._final)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        return Pin(self._final, self._descriptor)

    def abort(self) -> None:
        """Forget it."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class ShardCache:
    """The cache in one folder. Threads and processes may use it at once.

    :func:`shardstream.open` makes one for each dataset that needs it; made by hand, it shows what is there and tidies up.

    Args:
        folder: Where; made when the first shard comes. ``$XDG_CACHE_HOME/shardstream``, by default
            ``~/.cache/shardstream``, if None. Never in ``/dev/shm``, whose bytes are memory.
        max_bytes: The most that all shards of the folder take together, those being downloaded included; None for no
            bound. Processes may each give their own; each makes room by its own.

    Raises:
        StorageError: No folder is given, and the user has no home.
        ValueError: The folder lies in ``/dev/shm``.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, max_bytes: int | None = None) -> None:
        self.folder = Path(os.path.abspath(default_cache_dir() if folder is None else folder))  # noqa: PTH100 - links are the user's business
        self.max_bytes = max_bytes
        self.counts = CacheCounts()
        self._thread_lock = threading.Lock()
        self._pid = os.getpid()
        if Path(os.path.realpath(self.folder)).is_relative_to("/dev/shm"):  # noqa: S108 - refused, not used
            raise ValueError(f"cache_dir is {self.folder}, which is memory, not a disk; give a folder on a local disk")

    def pin(self, entry: ShardEntry) -> Pin | None:
        """A shard that is in the cache as a whole; None if it is not. A damaged one is thrown away."""
        path = self._path(entry)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: cannot read: {error.strerror}") from error
        pin = Pin(path, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return None  # it is being evicted
        status = os.fstat(descriptor)
        if status.st_nlink == 0:
            return None  # it has been
        if status.st_size != entry.num_bytes or (
            status.st_mtime_ns != _STAMP_NS and _checksum(descriptor) != entry.sha256
        ):
            _log.warning("%s: damaged in the cache; it is thrown away and downloaded again", path)
            self._throw_away(path, status)
            return None
        with contextlib.suppress(PermissionError):  # another user's
            _stamp(descriptor)
        return pin

    def obtain(
        self, entry: ShardEntry, fill: Callable[[Partial], None], *, kept: Collection[str] = (), is_urgent: bool = True
    ) -> Pin:
        """A shard in the cache, brought there if need be.

        Args:
            entry: Which.
            fill: Called with the partial file to be filled; it writes exactly the shard's raw bytes, checked, or raises.
            kept: Checksums of shards that are wanted soon: only what is urgent pushes them out, and them last.
            is_urgent: Whether to wait for room.

        Raises:
            NoRoomError: There is no room without waiting, and it is not urgent.
            StorageError: There was none for a minute, or the folder cannot be written.
        """
        deadline_s = time.monotonic() + _WAIT_S
        progress_ns = 0
        pin = self.pin(entry)
        self.counts.num_hits += is_urgent and pin is not None
        while pin is None:
            try:
                partial = self._reserve(entry, kept, may_push_out_kept=is_urgent)
            except (NoRoomError, _BusyError) as obstacle:
                if isinstance(obstacle, NoRoomError) and not is_urgent:
                    raise
                if isinstance(obstacle, _BusyError) and obstacle.progress_ns != progress_ns:
                    progress_ns = obstacle.progress_ns
                    deadline_s = time.monotonic() + _WAIT_S
                if time.monotonic() > deadline_s:
                    raise StorageError(f"{self.folder}: waited {_WAIT_S:.0f} s: {obstacle}") from obstacle
                time.sleep(_LOOK_EVERY_S)
            else:
                return self._filled(partial, fill)
            pin = self.pin(entry)
        return pin

    def shards(self) -> list[CachedShard]:
        """What is in the cache, used last first."""
        found = [
            CachedShard(
                sha256=path.stem,
                num_bytes=status.st_size,
                used_s=status.st_atime_ns / 1e9,
                is_pinned=not _is_free(path),
            )
            for path, status in self._files(_SHARD_NAME)
        ]
        return sorted(found, key=lambda shard: shard.used_s, reverse=True)

    def evict(self, *, down_to_bytes: int) -> list[CachedShard]:
        """Remove shards that nobody reads, those used longest ago first, and what dead processes left.

        Args:
            down_to_bytes: Stop when all files together take no more than this.

        Returns:
            The shards that were removed.
        """
        with self._locked():
            self._sweep_partials()
            removed = []
            for shard in reversed(self.shards()):
                if self._num_bytes() <= down_to_bytes:
                    break
                if self._evict(self.folder / f"{shard.sha256}.tokens"):
                    removed.append(shard)
            return removed

    def throw_away_damaged(self, progress: Callable[[CachedShard], object] = lambda _: None) -> list[CachedShard]:
        """Take the checksum of every shard and remove those that are not what their names say.

        Args:
            progress: Called after each shard.

        Returns:
            The shards that were removed.
        """
        damaged = []
        for shard in self.shards():
            path = self.folder / f"{shard.sha256}.tokens"
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                status = os.fstat(file.fileno())
                if _checksum(file.fileno()) != shard.sha256:
                    self._throw_away(path, status)
                    damaged.append(shard)
            progress(shard)
        return damaged

    def _path(self, entry: ShardEntry) -> Path:
        return self.folder / f"{entry.sha256}.tokens"

    def _filled(self, partial: Partial, fill: Callable[[Partial], None]) -> Pin:
        try:
            fill(partial)
            partial.finish()
            with self._locked():
                pin = partial.commit()
                self.counts.num_downloads += 1
        except OSError as error:
            partial.abort()
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.folder}: cannot write a shard: {error.strerror}") from error
        except BaseException:
            partial.abort()
            raise
        return pin

    def _reserve(self, entry: ShardEntry, kept: Collection[str], *, may_push_out_kept: bool) -> Partial:
        """A file of the shard's size to fill."""
        with self._locked():
            self._sweep_partials()
            path = self._path(entry)
            if path.exists():  # it has come meanwhile, or whoever lists the cache holds it for a moment
                raise _BusyError(f"another process keeps {path.name} locked", path.stat().st_mtime_ns)
            for partial, status in self._files(_PARTIAL_NAME):
                if partial.name.startswith(f"{entry.sha256}."):
                    raise _BusyError(
                        f"another process is downloading {entry.name} and stands still", status.st_mtime_ns
                    )
            victims = self._victims(kept, may_push_out_kept=may_push_out_kept)
            self._make_room(entry, victims)
            partial = self.folder / f"{entry.sha256}.{uuid.uuid4().hex}.partial"
            return self._created(partial, path, entry, victims)

    def _victims(self, kept: Collection[str], *, may_push_out_kept: bool) -> Iterator[tuple[Path, int]]:
        """What may be removed, with its size: what is not kept first, of that what was used longest ago."""
        order = []
        for path, status in self._files(_SHARD_NAME):
            is_kept = path.stem in kept
            if may_push_out_kept or not is_kept:
                order.append((is_kept, status.st_atime_ns, path, status.st_size))
        return ((path, size) for _, _, path, size in sorted(order))

    def _make_room(self, entry: ShardEntry, victims: Iterator[tuple[Path, int]]) -> None:
        if self.max_bytes is None:
            return
        num_bytes = self._num_bytes()
        for path, size in victims:
            if num_bytes + entry.num_bytes <= self.max_bytes:
                return
            if self._evict(path):
                num_bytes -= size
        if num_bytes + entry.num_bytes > self.max_bytes:
            raise NoRoomError(
                f"max_cache_bytes is {self.max_bytes:,}, and {num_bytes:,} of them are shards in use or on their way, by "
                f"all processes together; {entry.name} needs {entry.num_bytes:,}; raise the bound, or let fewer "
                "processes share the cache"
            )

    def _created(self, partial: Path, final: Path, entry: ShardEntry, victims: Iterator[tuple[Path, int]]) -> Partial:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            while True:
                try:
                    _allocate(descriptor, entry.num_bytes)
                    break
                except OSError as error:
                    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                        raise
                    if not any(self._evict(path) for path, _ in victims):
                        raise StorageError(
                            f"{self.folder}: {error.strerror}, and {entry.name} needs {entry.num_bytes:,} bytes; free "
                            "some, or choose another cache_dir"
                        ) from error
        except BaseException:
            partial.unlink()
            os.close(descriptor)
            raise
        return Partial(partial, final, descriptor)

    def _evict(self, path: Path) -> bool:
        """Remove a shard unless somebody reads it; the caller holds the folder's lock."""
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            self.counts.num_evictions += 1
            return True
        return False

    def _throw_away(self, path: Path, status: os.stat_result) -> None:
        """Remove a damaged shard, though it may be in use, unless another file has taken its place."""
        with self._locked(), contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), status):
                path.unlink()

    def _sweep_partials(self) -> None:
        """Remove what processes left that have died; the caller holds the folder's lock."""
        for path, _ in self._files(_PARTIAL_NAME):
            if _is_free(path):
                path.unlink(missing_ok=True)

    def _num_bytes(self) -> int:
        return sum(status.st_size for kind in (_SHARD_NAME, _PARTIAL_NAME) for _, status in self._files(kind))

    def _files(self, kind: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as files:
            for file in files:
                if kind.fullmatch(file.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found.append((Path(file.path), status))
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; the folder is made if need be."""
        from filelock import FileLock, Timeout  # noqa: PLC0415 - who reads in place never needs it

        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "CACHEDIR.TAG").write_text(_TAG, "ascii")
            # The file's lock is asked for every 50 ms and goes to anyone; threads take turns, the first one first.
            with self._own_lock(), FileLock(self.folder / "lock", timeout=_WAIT_S, mode=0o666):
                yield
        except ShardstreamError:
            raise
        except Timeout as error:
            raise StorageError(f"{self.folder}: another process has held the lock for {_WAIT_S:.0f} s") from error
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot write to the cache: {error.strerror}; give cache_dir, a folder on a local disk"
            ) from error

    def _own_lock(self) -> threading.Lock:
        """The threads' lock; in a forked child a new one, since a thread that no longer exists may hold the old."""
        if self._pid != os.getpid():
            self._thread_lock = threading.Lock()
            self._pid = os.getpid()
        return self._thread_lock


def check_bound(max_bytes: int | None, needed: int, *, reason: str) -> None:
    """See that a cache of ``max_bytes`` can hold ``needed`` bytes at a time.

    Raises:
        ValueError: It cannot.
    """
    if max_bytes is not None and max_bytes < needed:
        raise ValueError(f"max_cache_bytes is {max_bytes:,}; wanted at least {needed:,}: {reason}")


def _is_free(path: Path) -> bool:
    """Whether no process holds a lock on a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _stamp(descriptor: int) -> None:
    os.utime(descriptor, ns=(time.time_ns(), _STAMP_NS))


def _allocate(descriptor: int, num_bytes: int) -> None:
    """Give a file its size and its place on the disk at once: a disk that is full says so before the download."""
    if num_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
    os.ftruncate(descriptor, num_bytes)


def _checksum(descriptor: int) -> str:
    sha256 = hashlib.sha256()
    offset = 0
    while data := os.pread(descriptor, _HASH_BYTES, offset):
        sha256.update(data)
        offset += len(data)
    return sha256.hexdigest()
