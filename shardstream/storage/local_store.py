"""Files under a folder.

A file is written under a temporary name, fsynced, renamed, and its folder fsynced: only then is it durable.
"""

import contextlib
import errno
import fcntl
import io
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from shardstream.errors import FormatError, StorageError

# 0 where the system has no such flag (macOS): then all goes through the page cache.
_O_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_PARTIAL_SUFFIX: Final = ".partial"
# The processes of a job that was killed end within moments, and the same job may be started again at once.
_LOCK_WAIT_S: Final = 5.0
_NO_HARD_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextlib.contextmanager
def _translated(action: str, where: object) -> Iterator[None]:
    """The one place where an operating system's or a filesystem's error becomes ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{where}: cannot {action}: there is no such file") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{where}: cannot {action}: {error.strerror or error}") from error


def _open_without_waiting(path: str, flags: int) -> int:
    """A pipe under an object's name must not hang the reader."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open_direct(path: str, flags: int) -> int:
    """Open a file to write past the page cache, where its filesystem knows how."""
    mode = 0o666  # less the umask, as `open` does
    try:
        return os.open(path, flags | _O_DIRECT, mode)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, mode)


def _leave_direct(descriptor: int) -> bool:
    """From now on write through the page cache; whether that is a change."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_O_DIRECT)
    return bool(flags & _O_DIRECT)


class LocalStore:
    """Files under a folder."""

    def __init__(self, root: str) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would show links where the user named none
        self.uri = os.fspath(self._root)
        self._folders_inside: set[Path] = set()

    @property
    def public_options(self) -> dict[str, Any]:
        return {}

    def path(self, name: str, *, follow_links: bool) -> Path:
        """Where an object lies.

        Args:
            name: Name of the object, or with ``follow_links`` any path, relative to the folder or absolute.
            follow_links: Whether it may lie elsewhere; otherwise a link that leads out is a FormatError.
        """
        path = self._root / name
        if not follow_links:
            self._check_inside(path)
        return path

    def _check_inside(self, path: Path) -> None:
        folder = path.parent
        with _translated("read", path):
            # realpath, since resolve() raises a RuntimeError on a loop of links before Python 3.13
            if folder not in self._folders_inside and Path(os.path.realpath(folder)).is_relative_to(
                os.path.realpath(self._root)
            ):
                self._folders_inside.add(folder)
            is_link = path.is_symlink()
        if folder not in self._folders_inside or is_link:
            raise FormatError(
                f"{path}: a symbolic link where a shard should be; if you made it yourself, open the dataset with "
                "trust_locations=True"
            )

    def get(self, name: str, *, max_bytes: int) -> bytes:
        path = self._root / name
        with _translated("read", path), open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path}: cannot read: not a regular file")
            return file.read(min(max_bytes, status.st_size + 1))

    def get_range(self, name: str, start: int, stop: int) -> memoryview:
        path = self._root / name
        with _translated("read", path), open(path, "rb", opener=_open_without_waiting) as file:
            data = os.pread(file.fileno(), stop - start, start)
        if len(data) != stop - start:
            raise StorageError(
                f"{path}: cannot read: {len(data)} bytes came, wanted {stop - start} from offset {start}"
            )
        return memoryview(data)

    def write_range(self, name: str, start: int, stop: int, write: Callable[[int, memoryview], object]) -> None:
        write(0, self.get_range(name, start, stop))

    def version(self, name: str) -> str | None:
        path = self._root / name
        with _translated("read", path):
            status = path.stat()
        return f"{status.st_ino}/{status.st_mtime_ns}"

    def open(self, name: str) -> BinaryIO:
        path = self._root / name
        with _translated("read", path):
            return path.open("rb")

    def size(self, name: str) -> int | None:
        path = self._root / name
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"{path}: cannot read: {error.strerror or error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{path}: not a regular file")
        return status.st_size

    def names(self) -> list[str]:
        files = [path for path in self._files() if path.suffix != _PARTIAL_SUFFIX]
        return sorted(path.relative_to(self._root).as_posix() for path in files)

    def _files(self) -> list[Path]:
        def fail(error: OSError) -> None:
            raise error

        if not self._root.is_dir():
            return []
        with _translated("list", self.uri):
            return [Path(folder) / name for folder, _, names in os.walk(self._root, onerror=fail) for name in names]

    def create(self, name: str) -> "_LocalUpload":
        return _LocalUpload(self._root / name)

    def put(self, name: str, data: bytes, *, overwrite: bool) -> None:
        upload = self.create(name)
        try:
            upload.write(memoryview(data))
            upload.commit(overwrite=overwrite)
        except BaseException:
            upload.abort()
            raise

    def delete(self, name: str) -> None:
        path = self._root / name
        with _translated("delete", path):
            path.unlink(missing_ok=True)

    def delete_partials(self) -> None:
        for path in self._files():
            if path.suffix == _PARTIAL_SUFFIX and path.name.startswith("."):
                with _translated("delete", path):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        from filelock import FileLock, Timeout  # noqa: PLC0415 - a reader never needs it

        path = self._root / name
        with _translated("create", path.parent):
            _make_folder(path.parent)
        lock = FileLock(path, timeout=_LOCK_WAIT_S)
        with _translated("lock", path):
            try:
                try:
                    lock.acquire()
                except FileNotFoundError:  # who held it has ended meanwhile, and took the folder along
                    _make_folder(path.parent)
                    lock.acquire()
            except Timeout as error:
                raise StorageError(
                    f"{self.uri}: another process is writing here; wait until it ends, or choose another place"
                ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()
            with contextlib.suppress(OSError):  # not empty: what it holds is still needed
                path.parent.rmdir()


class _LocalUpload:
    """A partial file.

    It is written past the page cache as long as whole pages of page-aligned memory come: that takes a third of the
    processor's time of copying to the cache and fsyncing it (0.24 s for a GiB, not 0.9), and a job that writes
    terabytes leaves to the machine's other work what it has in the cache.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")
        with _translated("create", path):
            _make_folder(path.parent)
            self._file = io.FileIO(self._partial, "x", opener=_open_direct)

    def write(self, data: memoryview) -> None:
        with _translated("write", self._path):
            while data:
                data = data[self._write_some(data) :]

    def _write_some(self, data: memoryview) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            # Not whole pages, as at a shard's end. If it is something else, it will show again.
            if error.errno == errno.EINVAL and _leave_direct(self._file.fileno()):
                return 0
            raise

    def commit(self, *, overwrite: bool = True) -> None:
        with _translated("write", self._path):
            os.fsync(self._file.fileno())
            self._file.close()
            if overwrite:
                self._partial.replace(self._path)
            else:
                self._link()
            _fsync_folder(self._path.parent)

    def _link(self) -> None:
        """Rename, unless the name is taken: a link fails then, where a rename would replace."""
        try:
            os.link(self._partial, self._path)
        except FileExistsError as error:
            raise StorageError(f"{self._path}: it exists already, and is left as it is") from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # FAT and some network disks: a look before the rename is all there is, and the writer's lock guards it.
            if self._path.exists():
                raise StorageError(f"{self._path}: it exists already, and is left as it is") from error
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def abort(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Create a folder and those above it, durably: a file's own fsync does not save the folders that lead to it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
