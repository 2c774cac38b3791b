"""A zstd file read from its beginning, in constant memory.

zstandard's own stream reader, which fsspec would take, ends a file that was cut short as quietly as a whole one, and
tokens would be lost without a word. This one raises.
"""

import io
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Four bytes of zstd can stand for 128 KiB: so much of a hostile file makes 128 MiB, and of an ordinary one some 10 KiB.
_SLICE_BYTES: Final = 2**12


class ZstdFile(io.RawIOBase):
    """The decompressed bytes of all frames of ``file``. Give it to ``io.BufferedReader``.

    Raises:
        EOFError: From reading: the file ends inside a frame.
        zstandard.ZstdError: From reading: it is not zstd, or damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        import zstandard  # noqa: PLC0415 - only its users pay

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._is_inside_frame = False
        self._compressed = b""
        self._decompressed = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """How many bytes were read."""
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill ``buffer`` as far as what is decompressed reaches; 0 at the end."""
        while not self._decompressed:
            if not self._compressed:
                self._compressed = self._file.read(_SLICE_BYTES)
            if not self._compressed:
                if self._is_inside_frame:
                    raise EOFError("the file ends inside a zstd frame: it was cut short")
                return 0
            self._decompress()
        target = memoryview(buffer).cast("B")
        num_bytes = min(len(target), len(self._decompressed))
        target[:num_bytes] = self._decompressed[:num_bytes]
        self._decompressed = self._decompressed[num_bytes:]
        self._position += num_bytes
        return num_bytes

    def _decompress(self) -> None:
        self._decompressed = memoryview(self._frame.decompress(self._compressed))
        self._is_inside_frame = not self._frame.eof
        self._compressed = b""
        if self._frame.eof:
            self._compressed = self._frame.unused_data
            self._frame = self._decompressor.decompressobj()
