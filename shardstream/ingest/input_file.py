"""Where an input's bytes are: a local path or any fsspec URL, compressed or not."""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from shardstream.errors import FormatError, StorageError
from shardstream.ingest.input_places import path_link
from shardstream.ingest.zstd_file import ZstdFile

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


# A system call for so much costs nothing beside looking at it, and it fits a core's cache.
_BLOCK_BYTES: Final = 2**18
_TAR_SUFFIXES: Final = {".tar", ".tgz", ".tbz", ".tbz2", ".txz"}
_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)


class InputFile:
    """One file to read from. Its suffix tells how it is compressed: ``.gz``, ``.zst``, ``.bz2``, ``.xz`` and so on.

    Args:
        path: A local path, or a URL of any scheme that fsspec knows.
        storage_options: As the fsspec filesystem takes them.

    Raises:
        ValueError: It is a folder, or neither file nor object, or fsspec does not know the scheme.
        ImportError: The scheme needs a package that is not installed.
        OSError: There is no such file, or it cannot be asked for.
    """

    def __init__(self, path: str, storage_options: Mapping[str, Any] | None = None) -> None:
        import fsspec  # noqa: PLC0415 - 50 ms that only its users pay
        from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415

        self.name: Final = path
        self._fs: AbstractFileSystem
        if "://" in path:
            self._fs, self._path = fsspec.core.url_to_fs(path, **(storage_options or {}))
        else:  # a local name may hold what URLs give a meaning to, such as "::"
            self._fs, self._path = LocalFileSystem(), os.path.abspath(path)  # noqa: PTH100 - no links resolved
        self.suffix, self.codec = suffix_and_codec(path)
        self.is_local: Final = isinstance(self._fs, LocalFileSystem)
        try:
            info = self._fs.info(self._path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such file") from error
        if info["type"] == "directory":
            raise ValueError(f"{path}: a folder; name the files in it")
        if info["type"] != "file":
            raise ValueError(f"{path}: not a regular file; send its bytes through standard input")
        self.num_bytes: Final[int | None] = info.get("size")
        """Size as it is stored; None where the server does not tell."""

    @property
    def local_path(self) -> str:
        """Its path on this machine; only where :attr:`is_local`."""
        return str(self._path)

    def open(self) -> BinaryIO:
        """The stored bytes, seekable.

        Raises:
            OSError: It cannot be opened. From reading: a StorageError where the place fails, so that it is not taken
                for damage to what is read.
        """
        return cast("BinaryIO", _StoredFile(self._fs.open(self._path, "rb"), self.name))

    @contextlib.contextmanager
    def decompressed(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The bytes that were compressed, to be read from their beginning, and the file that they come from."""
        from fsspec.compression import compr  # noqa: PLC0415

        with self.open() as stored, contextlib.ExitStack() as stack:
            file: BinaryIO = stored
            if self.codec == "zstd":
                file = io.BufferedReader(stack.enter_context(ZstdFile(stored)))
            elif self.codec is not None:
                file = stack.enter_context(compr[self.codec](stored, mode="rb"))
            yield file, stored


class _StoredFile:
    """A file whose reads fail with nothing but a StorageError."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def read(self, num_bytes: int = -1) -> bytes:
        try:
            return self._file.read(num_bytes)
        except Exception as error:  # every filesystem has errors of its own
            raise StorageError(f"{self._name}: cannot be read to its end: {error}") from error

    def read1(self, num_bytes: int) -> bytes:
        return self.read(num_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_StoredFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def readable_file(path: str, storage_options: Mapping[str, Any] | None) -> InputFile:
    """An input that may be read, as far as this machine can tell.

    Raises:
        FormatError: A local file may not be read, which is a fact about the input as its bytes are. The message leaves
            the file's name to the caller.
        PermissionError: A server refuses: credentials may be missing, and the file is as good as it ever was.
        ValueError, ImportError, OSError: As an InputFile raises them.
    """
    try:
        file = InputFile(path, storage_options)
        if file.is_local:
            with open(file.local_path, "rb"):  # noqa: PTH123 - thousands of small files
                pass
    except PermissionError as error:
        if "://" in path:
            raise
        raise FormatError(f"cannot be read: {error.strerror}") from error
    return file


def refuse_archive(path: str, *, member: str) -> None:
    """Refuse a file that holds files of its own: a codec would give the first of them alone, or all run together.

    Args:
        path: Its path or URL.
        member: What to ask for in the message, as a path within the archive.

    Raises:
        ValueError: The name is that of an archive.
    """
    suffix, codec = suffix_and_codec(path)
    if codec == "zip" or suffix in _TAR_SUFFIXES:
        scheme = "zip" if codec == "zip" else "tar"
        raise ValueError(
            f"{path}: an archive of files; unpack it, or name what is in it, as {scheme}://{member}::{path}"
        )


def suffix_and_codec(path: str) -> tuple[str, str | None]:
    """What a name ends in, such as ``.npy``, the suffix of its compression left out; how it is compressed, or None.

    A link of the web may go on after the name with a query, such as a signature.
    """
    from fsspec.utils import infer_compression  # noqa: PLC0415

    name = path_link(path)[1]
    if name.startswith(("http://", "https://")):
        name = _QUERY.sub("", name)
    codec: str | None = infer_compression(name)
    return os.path.splitext(os.path.splitext(name)[0] if codec else name)[1].lower(), codec  # noqa: PTH122 - quick


def blocks_of(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a decompressed file from where it stands; what comes before a damaged place is given before the error.

    Raises:
        StorageError: The place fails.
        FormatError: They cannot be decompressed: damaged, or cut short. The message leaves the file's name to the caller.
    """
    # A codec's ``read`` would drop what it has when it meets the damage; ``read1`` gives it first.
    read = getattr(file, "read1", file.read)
    while True:
        try:
            block: bytes = read(_BLOCK_BYTES)
        except StorageError:
            raise
        except Exception as error:  # every codec has errors of its own
            raise FormatError(f"cannot be decompressed to its end: {error}") from error
        if not block:
            return
        yield block


def read_block(file: BinaryIO, num_bytes: int, name: str) -> bytes:
    """The next ``num_bytes`` bytes; fewer only at the end of the file.

    Raises:
        StorageError: They cannot be read, or not be decompressed.
    """
    block = b""
    try:
        while len(block) < num_bytes and (data := file.read(num_bytes - len(block))):
            block = block + data if block else data
    except Exception as error:  # every codec and every filesystem has errors of its own
        raise StorageError(f"{name}: cannot be read to its end: {error}") from error
    return block
