"""A shard's raw bytes -> one zstd frame on its way to the store."""

import hashlib
from typing import Final, Literal, TypeAlias

from shardstream.format.manifest import StoredBytes
from shardstream.storage.store import Upload

Compression: TypeAlias = Literal["zstd"]
"""How shards may be stored, where not raw."""

# Ids of GPT-2's tokenizer for source code, on one core: level 1 leaves 0.29 of the bytes at 370 MB/s, level 3 0.26 at 230,
# level 9 0.23 at 47. A shard is written once and travels often, so bytes count more than this core's time; but beyond
# level 3 each percent costs a multiple of it, and whoever makes ids faster than 230 MB/s has cores for several shards.
# Decompressing takes the same time for all of them.
_LEVEL: Final = 3


class ZstdUpload:
    """An upload that compresses what it is given and hands that on; an Upload itself.

    What the manifest has to say of the stored object is known here alone, so it is counted and hashed here. The frame
    does not say how long its content is: that would have to stand in front, and the length of a dataset's last shard is
    known at its end. The row says it. A checksum of the content does stand in the frame, for four bytes: so ``zstd -t``
    finds damage, and whoever decompresses the file, without the manifest.

    Args:
        upload: Where the compressed bytes go.
    """

    def __init__(self, upload: Upload) -> None:
        import zstandard  # noqa: PLC0415 - only its users pay

        self._upload = upload
        self._frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self._num_bytes = 0
        self._sha256 = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        """Compress bytes; some of them stay in the compressor until more come."""
        self._pass_on(self._frame.compress(data))

    def commit(self) -> None:
        """End the frame and make the object durable."""
        self._pass_on(self._frame.flush())
        self._upload.commit()

    def abort(self) -> None:
        """Forget the object."""
        self._upload.abort()

    def stored(self) -> StoredBytes:
        """What the shard's entry says of the stored object; complete after :meth:`commit`."""
        return StoredBytes(codec="zstd", num_bytes=self._num_bytes, sha256=self._sha256.hexdigest())

    def _pass_on(self, compressed: bytes) -> None:
        self._num_bytes += len(compressed)
        self._sha256.update(compressed)
        self._upload.write(memoryview(compressed))
