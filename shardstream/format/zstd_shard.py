"""A shard that is stored as a zstd frame -> its raw bytes, however hostile the frame.

The frame is fed to the decompressor one of its blocks at a time. A block makes 128 KiB at most, so a few bytes that
stand for gigabytes are stopped at once; and the frame's end is known to the byte, so that one that was cut short, or is
followed by anything, is told from a whole one. zstandard's own stream reader takes both for the end.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

from shardstream.errors import IntegrityError
from shardstream.format.manifest import ShardEntry, StoredBytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Decompressing holds a window of what it made in memory, as large as the frame says. RFC 8878 recommends that every
# decoder should know this much and no encoder should need more; `zstd -19` makes it, the writer's own level 2 MiB.
MAX_WINDOW_BYTES: Final = 2**23

# Large enough that hashing and writing run without the interpreter's lock, small enough to stay in a core's cache; a
# multiple of any token's size.
_BLOCK_BYTES: Final = 2**20
_READ_BYTES: Final = 2**18
_MAGIC: Final = bytes.fromhex("28b52ffd")
_RUN: Final = 1  # the type of a zstd block that is one byte, to be repeated


def decompressed_blocks(read: Callable[[int], bytes | memoryview], entry: ShardEntry) -> Iterator[memoryview]:
    """The raw bytes of a shard that is ``stored``, checked against what its entry says of the stored object.

    The raw bytes' own checksum is the caller's to take. Nothing of what is yielded may be relied upon before the
    iterator has come to its end: size and checksum of the stored object are only known then.

    Args:
        read: Gives the next bytes of the stored object: at least one and at most as many as it is asked for, none at
            the end. It is never asked for more than one byte beyond ``entry.stored.num_bytes``.
        entry: The shard's row, with ``stored``.

    Yields:
        Blocks of 1 MiB, the last one shorter, ``entry.num_bytes`` in all. One buffer serves them all: each is valid
        until the next is asked for. Memory is that buffer, the frame's window (8 MiB at most) and small change.

    Raises:
        IntegrityError: The stored object is not the one that the entry describes, or is anything but one whole zstd
            frame of ``entry.num_bytes`` bytes. The message says what is wrong, not where: that is known to the caller.
    """
    if entry.stored is None:
        raise ValueError(f"{entry.name} is raw; there is nothing to decompress")
    stored = _StoredObject(read, entry.stored)
    try:
        yield from _blocks_of(_frame_pieces(io.BufferedReader(stored, _READ_BYTES)), entry.num_bytes)
    except IntegrityError:
        # Whatever the frame complains of, that these are other bytes than those stored explains it.
        stored.check()
        raise
    stored.check()


class _StoredObject(io.RawIOBase):
    """What ``read`` gives, counted and hashed on its way."""

    def __init__(self, read: Callable[[int], bytes | memoryview], expected: StoredBytes) -> None:
        self._read = read
        self._expected = expected
        self._num_bytes = 0
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target = memoryview(buffer).cast("B")
        # One byte too many is enough to know that there are too many.
        data = self._read(min(len(target), self._expected.num_bytes + 1 - self._num_bytes))
        target[: len(data)] = data
        self._sha256.update(data)
        self._num_bytes += len(data)
        return len(data)

    def check(self) -> None:
        """Raise an IntegrityError unless all of it, what was not read yet too, is what the entry says."""
        rest = bytearray(_READ_BYTES)
        while self._num_bytes <= self._expected.num_bytes and self.readinto(rest):
            pass
        if self._num_bytes < self._expected.num_bytes:
            raise IntegrityError(
                f"truncated: {self._num_bytes} bytes are stored, the manifest says {self._expected.num_bytes}"
            )
        if self._num_bytes > self._expected.num_bytes:
            raise IntegrityError(f"too long: more than the {self._expected.num_bytes} bytes that the manifest says")
        if (found := self._sha256.hexdigest()) != self._expected.sha256:
            raise IntegrityError(
                f"checksum of the stored object is sha256 {found}, the manifest says {self._expected.sha256}"
            )


def _blocks_of(pieces: Iterator[bytes], num_bytes: int) -> Iterator[memoryview]:
    """Pieces of any length -> blocks of one length, ``num_bytes`` in all."""
    block = memoryview(bytearray(min(_BLOCK_BYTES, num_bytes)))
    fill = num_seen = 0
    for piece in pieces:
        num_seen += len(piece)
        if num_seen > num_bytes:
            raise IntegrityError(f"decompresses to more than the {num_bytes} bytes that the manifest says")
        rest = memoryview(piece)
        while rest:
            part = rest[: len(block) - fill]
            block[fill : fill + len(part)] = part
            fill += len(part)
            rest = rest[len(part) :]
            if fill == len(block):
                yield block
                fill = 0
    if num_seen < num_bytes:
        raise IntegrityError(f"decompresses to {num_seen} bytes, the manifest says {num_bytes}")
    if fill:
        yield block[:fill]


def _frame_pieces(file: BinaryIO) -> Iterator[bytes]:
    """What each block of one zstd frame decompresses to, 128 KiB at most; raises unless nothing else is in the file."""
    import zstandard  # noqa: PLC0415 - only its users pay

    def taken(num_bytes: int) -> bytes:
        data = file.read(num_bytes)
        if len(data) < num_bytes:
            raise IntegrityError("the zstd frame was cut short: the stored object ends inside it")
        return data

    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        header = file.read(len(_MAGIC))
        if header != _MAGIC:
            raise IntegrityError(f"not a zstd frame: it begins with {header.hex() or 'nothing'}, wanted {_MAGIC.hex()}")
        header += taken(1)
        header += taken(zstandard.frame_header_size(header) - len(header))
        parameters = zstandard.get_frame_parameters(header)
        if parameters.window_size > MAX_WINDOW_BYTES:
            raise IntegrityError(
                f"the zstd frame needs a window of {parameters.window_size} bytes, allowed are {MAX_WINDOW_BYTES}; "
                "compress it again, with `zstd -19` at most and without --long"
            )
        frame.decompress(header)
        is_last = False
        while not is_last:
            block_header = taken(3)
            bits = int.from_bytes(block_header, "little")
            is_last, kind, num_bytes = bool(bits & 1), bits >> 1 & 3, bits >> 3
            yield frame.decompress(block_header + taken(1 if kind == _RUN else num_bytes))
        if parameters.has_checksum:
            frame.decompress(taken(4))
    except zstandard.ZstdError as error:
        raise IntegrityError(f"the zstd frame is damaged: {error}") from error
    if rest := file.read(len(_MAGIC)):
        what = "a second zstd frame follows" if rest == _MAGIC else "other bytes follow"
        raise IntegrityError(f"{what} after the zstd frame; wanted one frame and nothing else")
