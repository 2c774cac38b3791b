"""Blocks of tokens -> one shard in the store -> its entry.

A shard is written while it is being filled: blocks of a few MiB go to a thread that takes their checksum and
statistics, and beside it to one that hands them to the store. hashlib, NumPy and file writes all run without the
interpreter's lock, so this overlaps with the caller's work.

On a fast disk the checksum is the bound: one core takes 1.9 GB/s of sha256, and the bytes of one shard must go through
it in order. So there are blocks enough for one shard to lag behind while the next is filled: then two cores hash, and
when one waits for the disk the others go on. Memory is those blocks, 128 MiB at most, whatever the size of a shard.

A shard that is to be compressed goes the same way: its upload compresses what passes, beside the checksum.
"""

import mmap
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardstream.format.integrity import ShardTally
from shardstream.format.manifest import ShardEntry
from shardstream.storage.store import Upload
from shardstream.write.zstd_upload import Compression, ZstdUpload

if TYPE_CHECKING:
    from concurrent.futures import Future

Block: TypeAlias = NDArray[np.unsignedinteger[Any]]

# Large enough that neither a disk's latency nor what Python does for each block counts.
BLOCK_BYTES: Final = 2**22
# 128 MiB: a default shard of uint16 may wait in memory as a whole while the next one is filled.
NUM_BLOCKS: Final = 32


class BlockPool:
    """A fixed number of buffers: who fills faster than the disk writes waits here.

    Args:
        block_tokens: Length of a block, in tokens.
        dtype: The stored dtype.
    """

    def __init__(self, block_tokens: int, dtype: "np.dtype[np.unsignedinteger[Any]]") -> None:
        self.block_tokens = block_tokens
        self._dtype = dtype
        self._num_unmade = NUM_BLOCKS
        self._free: queue.SimpleQueue[Block] = queue.SimpleQueue()

    def take(self) -> Block:
        """A block to fill; waits until one is free."""
        if self._num_unmade:
            self._num_unmade -= 1
            # Whole pages, which a store may write past the page cache; np.empty starts 16 bytes behind a page's start.
            return np.frombuffer(mmap.mmap(-1, self.block_tokens * self._dtype.itemsize), dtype=self._dtype)
        return self._free.get()

    def give_back(self, block: Block) -> None:
        """Let the block be filled again."""
        self._free.put(block)


class ShardWriter:
    """One shard on its way to the store.

    Args:
        upload: Where its bytes go.
        name: The shard's name in the manifest.
        eos_id: The id to count, or None.
        compression: How its bytes are stored; None for raw.
        pool: Gets each block back as soon as it is written.
    """

    def __init__(
        self, upload: Upload, name: str, *, eos_id: int | None, compression: Compression | None, pool: BlockPool
    ) -> None:
        self._zstd = ZstdUpload(upload) if compression == "zstd" else None
        self._upload = self._zstd or upload
        self._name = name
        self._tally = ShardTally(eos_id)
        self._pool = pool
        self._publish: Callable[[ShardEntry], ShardEntry] | None = None
        self._blocks: queue.SimpleQueue[tuple[Block, int] | None] = queue.SimpleQueue()  # None: no more
        self._entry: ShardEntry | None = None
        self.error: BaseException | None = None
        """Why the shard never becomes durable, as soon as that is known."""
        # A daemon: a writer that was never closed must not hold up the interpreter's exit.
        self._thread = threading.Thread(target=self._run, name=f"shardstream-write-{name}", daemon=True)
        self._thread.start()

    def widen(self, low: int, high: int) -> None:
        """Take note of the range of tokens that are being added."""
        self._tally.widen(low, high)

    def write(self, block: Block, num_tokens: int) -> None:
        """Add the first ``num_tokens`` tokens of ``block``, which belongs to the shard's thread from now on."""
        self._blocks.put((block, num_tokens))

    def finish(self, publish: Callable[[ShardEntry], ShardEntry]) -> None:
        """Say that no block follows; the shard becomes durable in the background.

        Args:
            publish: Called in the shard's thread with its entry, once it is durable; returns the one to keep. May raise.
        """
        self._publish = publish
        self._blocks.put(None)

    def abandon(self) -> None:
        """Say that no block follows and the shard is not wanted; after :meth:`finish` this does nothing."""
        self._blocks.put(None)

    def entry(self) -> ShardEntry | None:
        """Wait for the end: the shard's row once it is durable, None if it was abandoned.

        Raises:
            StorageError: The shard could not be written.
        """
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self._entry

    def _run(self) -> None:
        try:
            self._write_blocks()
            if self._publish is not None:
                self._commit(self._publish)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread, by DatasetWriter
            self.error = error
        if self.error is not None or self._publish is None:
            self._upload.abort()

    def _write_blocks(self) -> None:
        # Neither the checksum nor the disk waits for the other: what one takes longer over now and then, the other makes
        # up for. In step with each other they took an eighth longer.
        written: Future[None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix=f"{self._thread.name}-store") as store_thread:
            try:
                while item := self._blocks.get():
                    block, num_tokens = item
                    tokens = block[:num_tokens]
                    before, written = written, store_thread.submit(self._store, tokens.data.cast("B"), written)
                    try:
                        self._tally.update(tokens)
                    finally:
                        written.add_done_callback(partial(self._give_back, block))
                    if before is not None and before.done():
                        before.result()
            except BaseException:
                # The caller may be waiting for a block to come back, and must not for ever.
                while unwritten := self._blocks.get():
                    self._pool.give_back(unwritten[0])
                raise
            if written is not None:
                written.result()

    def _give_back(self, block: Block, _: "Future[None]") -> None:
        self._pool.give_back(block)

    def _store(self, data: memoryview, before: "Future[None] | None") -> None:
        """Write a block, unless the one before it failed: then fail as that did."""
        if before is not None:
            before.result()
        self._upload.write(data)

    def _commit(self, publish: Callable[[ShardEntry], ShardEntry]) -> None:
        self._upload.commit()
        self._entry = publish(self._tally.entry(self._name, self._zstd.stored() if self._zstd else None))
