"""A token stream cut into shards that become durable one after the other."""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardstream.errors import StorageError
from shardstream.format.manifest import MAX_MANIFEST_BYTES, ShardEntry
from shardstream.format.side_file import DocumentRows
from shardstream.storage.store import Store
from shardstream.write.journal import Progress
from shardstream.write.shard_writer import BLOCK_BYTES, BlockPool, ShardWriter
from shardstream.write.target import shard_name
from shardstream.write.zstd_upload import Compression

if TYPE_CHECKING:
    from shardstream.write.shard_writer import Block

# Small shards wait for fsync more than they are written: so many may do so at a time.
_MAX_FINISHING: Final = 3
# A row takes some 200 bytes; that of a compressed shard 130 more, and that of a shard with a side file 140 more.
_MAX_NUM_SHARDS: Final = MAX_MANIFEST_BYTES // 512


class ShardSequence:
    """Cuts tokens at blocks and shards. While some shards are made durable, the next is filled.

    Args:
        store: Where the shards go.
        dtype: The stored dtype.
        shard_tokens: Tokens of a full shard.
        eos_id: The id to count, or None.
        compression: How shards are stored; None for raw.
        side_files: Whether the documents that start in a shard are listed beside it.
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
        compression: Compression | None,
        side_files: bool,
        entries: list[ShardEntry],
        record: Callable[[int, ShardEntry, Progress], None],
    ) -> None:
        self.entries = entries
        self._store = store
        self._shard_tokens = shard_tokens
        self._eos_id = eos_id
        self._compression: Compression | None = compression
        self._record = record
        self._pool = BlockPool(min(BLOCK_BYTES // dtype.itemsize, shard_tokens), dtype)
        self._finishing: deque[ShardWriter] = deque()
        self._shard: ShardWriter | None = None
        self._shard_fill = 0
        self._block: Block | None = None
        self._block_fill = 0
        self._documents = DocumentRows() if side_files else None

    def begin_document(self, source: str, key: str) -> None:
        """Say that the next token is the first of a document.

        Raises:
            ValueError: The side file cannot take them.
        """
        if self._documents is not None:
            self._documents.add(self._shard_fill, source, key)

    def write(
        self, tokens: NDArray[np.integer[Any]], low: int, high: int, progress_at: Callable[[int], Progress]
    ) -> None:
        """Add tokens.

        Args:
            tokens: 1-D ids that fit the dtype; copied.
            low, high: Their range, which whoever checked them knows.
            progress_at: What to record when a shard is full after the first ``n`` of them, given ``n``.

        Raises:
            StorageError: This shard or the one before it could not be written.
        """
        start = 0
        while start < len(tokens):
            shard = self._shard = self._shard or self._new_shard()
            piece = tokens[start : start + self._shard_tokens - self._shard_fill]
            start += len(piece)
            self._shard_fill += len(piece)
            if len(piece) < len(tokens):
                low, high = int(piece.min()), int(piece.max())
            shard.widen(low, high)
            self._fill_blocks(shard, piece)
            if self._shard_fill == self._shard_tokens:
                self._finish_shard(shard, progress_at(start))

    def _fill_blocks(self, shard: ShardWriter, tokens: NDArray[np.integer[Any]]) -> None:
        start = 0
        while start < len(tokens):
            block = self._block = self._pool.take() if self._block is None else self._block
            piece = tokens[start : start + len(block) - self._block_fill]
            block[self._block_fill : self._block_fill + len(piece)] = piece
            start += len(piece)
            self._block_fill += len(piece)
            if self._block_fill == len(block):
                self._send_block(shard)

    def finish(self, progress: Progress) -> None:
        """Make the last, short shard durable too; :attr:`entries` are complete then."""
        if self._shard is not None:
            self._finish_shard(self._shard, progress)
        while self._finishing:
            self._await_first()

    def abandon(self) -> None:
        """Stop the threads; a shard that is not full is dropped."""
        if self._shard is not None:
            self._shard.abandon()
            self._finishing.append(self._shard)
            self._shard = None
        while self._finishing:
            with contextlib.suppress(Exception):  # whoever abandons has an error to show already
                self._await_first()

    def _new_shard(self) -> ShardWriter:
        index = len(self.entries) + len(self._finishing)
        if index == _MAX_NUM_SHARDS:
            raise StorageError(
                f"{self._store.uri}: {index} shards, and a manifest lists no more; use larger shard_tokens"
            )
        name = shard_name(index, self._compression)
        return ShardWriter(
            self._store.create(name), name, eos_id=self._eos_id, compression=self._compression, pool=self._pool
        )

    def _send_block(self, shard: ShardWriter) -> None:
        if self._block is not None:
            shard.write(self._block, self._block_fill)
        self._block, self._block_fill = None, 0
        for writer in (*self._finishing, shard):
            if writer.error is not None:
                raise writer.error

    def _finish_shard(self, shard: ShardWriter, progress: Progress) -> None:
        self._send_block(shard)
        index = len(self.entries) + len(self._finishing)
        documents = self._documents
        shard.finish(lambda entry: self._publish(index, entry, progress, documents))
        self._documents = None if documents is None else DocumentRows()
        self._finishing.append(shard)
        self._shard, self._shard_fill = None, 0
        if len(self._finishing) > _MAX_FINISHING:
            self._await_first()

    def _publish(self, index: int, entry: ShardEntry, progress: Progress, documents: DocumentRows | None) -> ShardEntry:
        """Record a durable shard, and before that make its side file durable too."""
        if documents is not None:
            data, side_file = documents.finish()
            entry = msgspec.structs.replace(entry, documents=side_file)
            self._store.put(entry.documents_name, data, overwrite=True)
        self._record(index, entry, progress)
        return entry

    def _await_first(self) -> None:
        entry = self._finishing.popleft().entry()
        if entry is not None:
            self.entries.append(entry)
