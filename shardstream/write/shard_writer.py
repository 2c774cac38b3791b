"""Blocks of tokens -> one shard in the store -> its entry.

A shard is written while it is being filled: blocks of a few MiB go to a thread that takes their checksum and
statistics and hands them to the store. hashlib, NumPy and file writes all run without the interpreter's lock, so this
overlaps with the caller's work; and when a shard is being made durable (fsync waits for the disk), the next one is
already being filled. Memory is a handful of blocks, whatever the size of a shard.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstream.format.integrity import ShardTally
from shardstream.format.manifest import ShardEntry
from shardstream.storage.store import Upload

Block: TypeAlias = NDArray[np.unsignedinteger[Any]]
_Argument = TypeVar("_Argument")

# Multiples of 2 MiB let the page cache keep a fresh shard in huge pages, which makes random reads of it 1.4 times as
# fast; above 4 MiB blocks leave the processor's cache between fill, hash and write.
BLOCK_BYTES: Final = 2**22
# One filling, and a few under way in each of two shards: enough that neither side waits for the other.
NUM_BLOCKS: Final = 8


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
            return np.empty(self.block_tokens, dtype=self._dtype)
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
        pool: Gets each block back as soon as it is written.
    """

    def __init__(self, upload: Upload, name: str, *, eos_id: int | None, pool: BlockPool) -> None:
        self._upload = upload
        self._name = name
        self._tally = ShardTally(eos_id)
        self._pool = pool
        self._publish: Callable[[ShardEntry], None] | None = None
        self._blocks: queue.SimpleQueue[tuple[Block, int] | None] = queue.SimpleQueue()  # None: no more
        self._entry: ShardEntry | None = None
        self.error: BaseException | None = None
        """Why the shard never becomes durable, as soon as that is known."""
        # A daemon: a writer that was never closed must not hold up the interpreter's exit.
        self._thread = threading.Thread(target=self._run, name=f"shardstream-write-{name}", daemon=True)
        self._thread.start()

    def write(self, block: Block, num_tokens: int) -> None:
        """Add the first ``num_tokens`` tokens of ``block``, which belongs to the shard's thread from now on."""
        self._blocks.put((block, num_tokens))

    def finish(self, publish: Callable[[ShardEntry], None]) -> None:
        """Say that no block follows; the shard becomes durable in the background.

        Args:
            publish: Called in the shard's thread with its entry, once it is durable; may raise.
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
        # Blocks are taken to the end even after an error: the caller may be waiting for one to come back.
        while item := self._blocks.get():
            block, num_tokens = item
            if self.error is None:
                self._attempt(self._write_tokens, block[:num_tokens])
            self._pool.give_back(block)
        if self.error is None and self._publish is not None:
            self._attempt(self._commit, self._publish)
        if self.error is not None or self._publish is None:
            self._upload.abort()

    def _attempt(self, action: Callable[[_Argument], None], argument: _Argument) -> None:
        try:
            action(argument)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread, by DatasetWriter
            self.error = error

    def _write_tokens(self, tokens: Block) -> None:
        self._tally.update(tokens)
        self._upload.write(tokens.data.cast("B"))

    def _commit(self, publish: Callable[[ShardEntry], None]) -> None:
        self._upload.commit()
        entry = self._tally.entry(self._name)
        publish(entry)
        self._entry = entry
