"""Where an input's bytes are: a local path or any fsspec URL, compressed or not."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO, Final

from shardstream.errors import StorageError
from shardstream.ingest.zstd_file import ZstdFile

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class InputFile:
    """One file to read from. Its suffix tells how it is compressed: ``.gz``, ``.zst``, ``.bz2``, ``.xz`` and so on.

    Args:
        path: A local path, or a URL of any scheme that fsspec knows.

    Raises:
        ValueError: It is a folder, or neither file nor object, or fsspec does not know the scheme.
        ImportError: The scheme needs a package that is not installed.
        OSError: There is no such file, or it cannot be asked for.
    """

    def __init__(self, path: str) -> None:
        import fsspec  # noqa: PLC0415 - 50 ms that only its users pay
        from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415
        from fsspec.utils import infer_compression  # noqa: PLC0415

        self.name: Final = path
        self._fs: AbstractFileSystem
        if "://" in path:
            self._fs, self._path = fsspec.core.url_to_fs(path)
        else:  # a local name may hold what URLs give a meaning to, such as "::"
            self._fs, self._path = LocalFileSystem(), os.path.abspath(path)  # noqa: PTH100 - no links resolved
        self.codec: Final[str | None] = infer_compression(path)
        """How it is compressed, None where it is not."""
        self.is_local: Final = isinstance(self._fs, LocalFileSystem)
        try:
            kind = self._fs.info(self._path)["type"]
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such file") from error
        if kind == "directory":
            raise ValueError(f"{path}: a folder; name the files in it")
        if kind != "file":
            raise ValueError(f"{path}: not a regular file; send its bytes through standard input")
        self.num_bytes: Final[int | None] = self._fs.size(self._path)
        """Size as it is stored; None where the server does not tell."""

    @property
    def suffix(self) -> str:
        """What the name ends in, such as ``.npy``, the suffix of its compression left out."""
        name = PurePath(self.name)
        return name.with_suffix("").suffix.lower() if self.codec else name.suffix.lower()

    @property
    def local_path(self) -> str:
        """Its path on this machine; only where :attr:`is_local`."""
        return str(self._path)

    def open(self) -> BinaryIO:
        """The stored bytes, seekable."""
        file: BinaryIO = self._fs.open(self._path, "rb")
        return file

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
