"""A token stream cut into shards that become durable one after the other."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import StorageError
from shardstream.format.manifest import MAX_MANIFEST_BYTES, ShardEntry
from shardstream.storage.store import Store
from shardstream.write.journal import Progress
from shardstream.write.shard_writer import BLOCK_BYTES, Block, BlockPool, ShardWriter

_MAX_NUM_SHARDS: Final = MAX_MANIFEST_BYTES // 256  # a row takes some 200 bytes


class ShardSequence:
    """Cuts tokens at blocks and shards. While one shard is made durable, the next is filled.

    Args:
        store: Where the shards go.
        dtype: The stored dtype.
        shard_tokens: Tokens of a full shard.
        eos_id: The id to count, or None.
        entries: Shards that are durable already; new ones are added as they become so.
        record: Called in a thread of a shard once it is durable, with its number, its entry and the progress that
            was given for it.
    """

    def __init__(
        self,
        store: Store,
        *,
        dtype: "np.dtype[np.unsignedinteger[Any]]",
        shard_tokens: int,
        eos_id: int | None,
        entries: list[ShardEntry],
        record: Callable[[int, ShardEntry, Progress], None],
    ) -> None:
        self.entries = entries
        self._store = store
        self._shard_tokens = shard_tokens
        self._eos_id = eos_id
        self._record = record
        self._pool = BlockPool(min(BLOCK_BYTES // dtype.itemsize, shard_tokens), dtype)
        self._finishing: ShardWriter | None = None
        self._shard: ShardWriter | None = None
        self._shard_fill = 0
        self._block: Block | None = None
        self._block_fill = 0

    def write(self, tokens: NDArray[np.integer[Any]], progress_at: Callable[[int], Progress]) -> None:
        """Add tokens.

        Args:
            tokens: 1-D ids that fit the dtype; copied.
            progress_at: What to record when a shard is full after the first ``n`` of them, given ``n``.

        Raises:
            StorageError: This shard or the one before it could not be written.
        """
        start = 0
        while start < len(tokens):
            block = self._current_block()
            room = min(len(block) - self._block_fill, self._shard_tokens - self._shard_fill)
            piece = tokens[start : start + room]
            block[self._block_fill : self._block_fill + len(piece)] = piece
            start += len(piece)
            self._block_fill += len(piece)
            self._shard_fill += len(piece)
            if self._shard_fill == self._shard_tokens:
                self._finish_shard(progress_at(start))
            elif self._block_fill == len(block):
                self._send_block()

    def finish(self, progress: Progress) -> None:
        """Make the last, short shard durable too; :attr:`entries` are complete then."""
        if self._shard is not None:
            self._finish_shard(progress)
        self._join_finishing()

    def abandon(self) -> None:
        """Stop the threads; a shard that is not full is dropped."""
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.abandon()
            shard.join()
        if self._finishing is not None:
            self._finishing.join()
            if self._finishing.entry is not None:
                self.entries.append(self._finishing.entry)
            self._finishing = None

    def _current_block(self) -> Block:
        if self._block is None:
            if self._shard is None:
                self._shard = self._new_shard()
            self._block = self._pool.take()
        return self._block

    def _new_shard(self) -> ShardWriter:
        index = len(self.entries) + (self._finishing is not None)
        if index == _MAX_NUM_SHARDS:
            raise StorageError(
                f"{self._store.uri}: {index} shards, and a manifest lists no more; use larger shard_tokens"
            )
        name = f"shard-{index:06d}.bin"
        return ShardWriter(self._store.create(name), name, eos_id=self._eos_id, pool=self._pool)

    def _send_block(self) -> None:
        if self._shard is not None and self._block is not None:
            self._shard.write(self._block, self._block_fill)
        self._block, self._block_fill = None, 0
        for shard in (self._finishing, self._shard):
            if shard is not None and shard.error is not None:
                raise shard.error

    def _finish_shard(self, progress: Progress) -> None:
        self._send_block()
        self._join_finishing()
        index = len(self.entries)
        if self._shard is not None:
            self._shard.finish(lambda entry: self._record(index, entry, progress))
        self._finishing, self._shard, self._shard_fill = self._shard, None, 0

    def _join_finishing(self) -> None:
        if self._finishing is None:
            return
        self._finishing.join()
        if self._finishing.error is not None:
            raise self._finishing.error
        if self._finishing.entry is not None:
            self.entries.append(self._finishing.entry)
        self._finishing = None
