"""A token stream cut into shards that become durable one after the other."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import StorageError
from shardstream.format.manifest import MAX_MANIFEST_BYTES, ShardEntry
from shardstream.storage.store import Store
from shardstream.write.journal import Progress
from shardstream.write.shard_writer import BLOCK_BYTES, BlockPool, ShardWriter

if TYPE_CHECKING:
    from shardstream.write.shard_writer import Block

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
            shard = self._shard = self._shard or self._new_shard()
            block = self._block = self._pool.take() if self._block is None else self._block
            room = min(len(block) - self._block_fill, self._shard_tokens - self._shard_fill)
            piece = tokens[start : start + room]
            block[self._block_fill : self._block_fill + len(piece)] = piece
            start += len(piece)
            self._block_fill += len(piece)
            self._shard_fill += len(piece)
            if self._shard_fill == self._shard_tokens:
                self._finish_shard(shard, progress_at(start))
            elif self._block_fill == len(block):
                self._send_block(shard)

    def finish(self, progress: Progress) -> None:
        """Make the last, short shard durable too; :attr:`entries` are complete then."""
        if self._shard is not None:
            self._finish_shard(self._shard, progress)
        self._await_finishing()

    def abandon(self) -> None:
        """Stop the threads; a shard that is not full is dropped."""
        if self._shard is not None:
            self._shard.abandon()
        for shard in (self._finishing, self._shard):
            if shard is not None:
                with contextlib.suppress(Exception):  # whoever abandons has an error to show already
                    self._keep(shard.entry())
        self._finishing = self._shard = None

    def _new_shard(self) -> ShardWriter:
        index = len(self.entries) + (self._finishing is not None)
        if index == _MAX_NUM_SHARDS:
            raise StorageError(
                f"{self._store.uri}: {index} shards, and a manifest lists no more; use larger shard_tokens"
            )
        name = f"shard-{index:06d}.bin"
        return ShardWriter(self._store.create(name), name, eos_id=self._eos_id, pool=self._pool)

    def _send_block(self, shard: ShardWriter) -> None:
        if self._block is not None:
            shard.write(self._block, self._block_fill)
        self._block, self._block_fill = None, 0
        for writer in (self._finishing, shard):
            if writer is not None and writer.error is not None:
                raise writer.error

    def _finish_shard(self, shard: ShardWriter, progress: Progress) -> None:
        self._send_block(shard)
        self._await_finishing()
        index = len(self.entries)
        shard.finish(lambda entry: self._record(index, entry, progress))
        self._finishing, self._shard, self._shard_fill = shard, None, 0

    def _await_finishing(self) -> None:
        if self._finishing is not None:
            self._keep(self._finishing.entry())
            self._finishing = None

    def _keep(self, entry: ShardEntry | None) -> None:
        if entry is not None:
            self.entries.append(entry)
