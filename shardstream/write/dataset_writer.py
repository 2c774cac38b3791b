"""Token stream -> shards -> one manifest, exactly once, whatever happens on the way.

A dataset exists if and only if its manifest does. Shards become durable one after the other, each is recorded in the
journal, and the manifest comes last; so a crash at any moment leaves no dataset or the whole one, and a crashed run can
be resumed from its last durable shard.
"""

import contextlib
import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardstream.errors import ResumeError, StorageError
from shardstream.format.manifest import MANIFEST_NAME, Manifest, ShardEntry, TokenizerIdentity, dtype_of_vocab
from shardstream.storage.store import store_of
from shardstream.write.document_progress import DocumentProgress
from shardstream.write.journal import LOCK_NAME, Journal, JournalHead, Progress
from shardstream.write.shard_sequence import ShardSequence
from shardstream.write.shard_writer import Block
from shardstream.write.target import (
    check_target,
    clear_target,
    has_journal,
    publish_manifest,
    read_manifest,
    target_names,
)
from shardstream.write.token_array import token_arrays
from shardstream.write.zstd_upload import Compression

if TYPE_CHECKING:
    from typing_extensions import Self

# 128 MiB of uint16, 256 MiB of uint32: 10^13 tokens make 150,000 shards, which a manifest holds easily; large enough
# that requests and fsyncs do not count, small enough that the first batch from object storage does not wait long, that
# a cache can hold the dozens that block shuffle mixes, and that a crash costs seconds. A power of two keeps shard
# bounds, pages and blocks aligned.
DEFAULT_SHARD_TOKENS: Final = 2**26
_COMPRESSIONS: Final = (None, *get_args(Compression))

_Integers: TypeAlias = NDArray[np.integer[Any]]


class DatasetWriter:
    """Writes one dataset. Use it in a ``with`` block: an exception inside publishes nothing.

    Ids are checked as they come: one below 0 or not below ``vocab_size``, a float or a wrong shape is refused with its
    position, and nothing of that call is written. One thread may use a writer.

    Args:
        uri: A local folder or any fsspec URL; empty, or not there yet.
        vocab_size: Number of ids, 1 to 2**32. Up to 65,536 they are stored as uint16, else as uint32.
        shard_tokens: Tokens of each shard but the last.
        eos_id: The id that ends a document; :meth:`append_document` needs it.
        tokenizer: Who made the ids: any of ``name``, ``sha256``, ``eos_id``, ``bos_id``, ``pad_id``.
        metadata: Anything that JSON can say, kept in the manifest.
        compression: None stores shards raw, so that a local reader can map them. ``"zstd"`` stores each as a zstd frame,
            0.26 of the size for GPT-2's ids of Python source: for a dataset that travels, since a reader needs a cache
            to decompress it into. It is the same dataset, with the same digest.
        allow_eos_in_documents: Accept ``eos_id`` inside a document; otherwise it is refused, since a reader could not
            tell it from the document's end.
        side_files: Put a Parquet file beside each shard that lists the documents which start in it, with their source
            and key, so that one can look back from a token to where it came from. Then all tokens have to be sent with
            :meth:`append_document`.
        overwrite: Replace the dataset, or the crashed run, that stands at ``uri``. Only files that its manifest or its
            journal lists are deleted, and they are deleted at once.
        resume: Go on after a crash. :attr:`num_tokens` and :attr:`num_documents` then say how much is safe: send
            tokens again from position ``num_tokens`` on, or documents from document ``num_documents`` on; the writer
            drops what is durable of that document already. Starts anew where nothing was begun, and accepts a dataset
            that is complete, so that the same command can simply be run again.
        storage_options: Passed to the fsspec filesystem.

    Raises:
        ValueError: An argument is out of range, or they contradict one another.
        StorageError: The target is not empty, is being written by another process, or cannot be written.
        ResumeError: The crashed run had other settings.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        vocab_size: int,
        shard_tokens: int = DEFAULT_SHARD_TOKENS,
        eos_id: int | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        compression: Compression | None = None,
        allow_eos_in_documents: bool = False,
        side_files: bool = False,
        overwrite: bool = False,
        resume: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if overwrite and resume:
            raise ValueError("overwrite and resume contradict one another: choose to replace or to continue")
        self._vocab_size = operator.index(vocab_size)
        self._dtype = dtype_of_vocab(self._vocab_size)
        check_shards(shard_tokens, compression)
        self._shard_tokens = operator.index(shard_tokens)
        self._compression = compression
        self._tokenizer = tokenizer_identity(tokenizer, eos_id, self._vocab_size)
        self._eos_id = self._tokenizer.eos_id if self._tokenizer else None
        self.metadata: Final = checked_metadata(metadata)
        """What the manifest will keep; more may be added until :meth:`close`."""
        self._allow_eos_in_documents = allow_eos_in_documents
        self._side_files = side_files

        self._store = store_of(uri, storage_options)
        self._journal = Journal(self._store)
        self._manifest: Manifest | None = None
        self._failure: BaseException | None = None
        self._is_closed = False
        self._is_complete = False
        self._num_tokens = 0
        self._num_documents = 0
        self._resumed = Progress()
        with contextlib.ExitStack() as stack:
            entries = self._claim_target(stack, overwrite=overwrite, resume=resume)
            self._lock = stack.pop_all()
        self._shards = ShardSequence(
            self._store,
            dtype=self._dtype,
            shard_tokens=self._shard_tokens,
            eos_id=self._eos_id,
            compression=self._compression,
            side_files=self._side_files,
            entries=entries,
            record=self._journal.record,
        )

    @property
    def uri(self) -> str:
        """Where the dataset is written."""
        return self._store.uri

    @property
    def num_tokens(self) -> int:
        """Tokens of the stream so far; right after ``resume=True``, those that are durable."""
        return self._num_tokens

    @property
    def num_documents(self) -> int:
        """Complete documents so far; right after ``resume=True``, those that are durable."""
        return self._num_documents

    @property
    def manifest(self) -> Manifest:
        """What was published.

        Raises:
            ValueError: The writer is not closed yet, or publishes nothing because of an error.
        """
        if self._manifest is None:
            raise ValueError(f"{self.uri}: nothing is published yet; the manifest is there after close()")
        return self._manifest

    def append(self, tokens: object) -> None:
        """Continue the token stream.

        Args:
            tokens: 1-D integers: a list, a NumPy array of any width and byte order, a torch tensor on the CPU, an Arrow
                array or chunked array, of ids or of lists of ids (which are joined).

        Raises:
            TypeError: Not integers.
            ValueError: An id outside ``[0, vocab_size)``, or more than one dimension; the message names the position. Or
                the writer makes side files, which know documents alone.
            StorageError: The shards cannot be written.
            ResumeError: The run being resumed stopped inside a document; send it again with :meth:`append_document`.
        """
        self._check_usable()
        if self._side_files:
            raise ValueError(
                "side files list documents, and append() begins none; send all tokens by append_document()"
            )
        if self._resumed.document_tokens:
            raise ResumeError(
                f"{self._resumed.document_tokens} tokens of document {self._num_documents} are durable; "
                "send that document again with append_document() before anything else"
            )
        pieces = list(token_arrays(tokens, self._num_tokens, flatten=True))
        position = self._num_tokens
        ranges = []
        for piece in pieces:
            ranges.append(self._range_of(piece, position))
            position += len(piece)
        for piece, (low, high) in zip(pieces, ranges, strict=True):
            self._write(piece, low, high, lambda _: Progress(num_documents=self._num_documents))

    def append_document(self, tokens: object, *, source: str = "", key: str = "") -> None:
        """Continue the token stream with a document and ``eos_id`` after it.

        Args:
            tokens: The document's ids without the final ``eos_id``, as for :meth:`append`; lists of lists are refused.
                Or an iterator of such pieces, for a document longer than memory: each is checked and written before the
                next is asked for. So a refused piece, or an exception of the iterator, comes too late to undo the pieces
                before it: the writer then publishes nothing, and ``resume=True`` goes on from what is durable.
            source, key: Where the document comes from, such as a path and a line of that file. Only side files keep it.

        Raises:
            TypeError: Not integers.
            ValueError: As for :meth:`append`; or the document holds ``eos_id`` itself; or the writer has no ``eos_id``.
            StorageError: The shards cannot be written.
            ResumeError: This is not the document in which the run being resumed stopped.
        """
        self._check_usable()
        if self._eos_id is None:
            raise ValueError("append_document() needs an eos_id to end the document with; give one to DatasetWriter")
        document = DocumentProgress(self._num_documents, self._resumed, source=source, key=key)
        if isinstance(tokens, Iterator):
            try:
                for piece in tokens:
                    self._write_piece(document, piece, self._eos_id, is_last=False)
                self._write_piece(document, (), self._eos_id, is_last=True)
            except BaseException as error:
                self._failure = error
                raise
        else:
            self._write_piece(document, tokens, self._eos_id, is_last=True)
        self._resumed = Progress()
        self._num_documents += 1

    def close(self) -> None:
        """Make everything durable and publish the dataset. A second call does nothing.

        Raises:
            StorageError: Something could not be written; nothing is published, and ``resume=True`` goes on later.
            ResumeError: The run being resumed stopped inside a document that was never sent again.
        """
        if self._is_closed:
            return
        try:
            self._check_usable(to_publish=True)
            self._manifest = self._publish()
        except BaseException as error:
            self._failure = self._failure or error
            self._abandon()
            raise
        self._is_closed = True
        self._lock.close()

    def __enter__(self) -> "Self":
        """Nothing more than ``self``: the target was claimed by the constructor."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        """Publish, or after an exception publish nothing; durable shards stay for ``resume=True``."""
        if error is None:
            self.close()
        elif not self._is_closed:
            self._abandon()
        return False

    def _claim_target(self, stack: contextlib.ExitStack, *, overwrite: bool, resume: bool) -> list[ShardEntry]:
        """Make the target ours for as long as ``stack`` is open; return the shards that are durable there."""
        # Looked at before the lock too: a folder that is not ours is left without a trace.
        check_target(self._store, target_names(self._store), overwrite=overwrite, resume=resume)
        stack.enter_context(self._store.lock(LOCK_NAME))
        names = target_names(self._store)
        check_target(self._store, names, overwrite=overwrite, resume=resume)
        self._store.delete_partials()
        head = JournalHead(
            vocab_size=self._vocab_size,
            shard_tokens=self._shard_tokens,
            tokenizer=self._tokenizer,
            compression=self._compression,
            side_files=self._side_files,
        )
        if resume and MANIFEST_NAME in names:
            return self._accept_complete(head)
        if resume and has_journal(names):
            return self._recover(head)
        clear_target(self._store, names)
        self._journal.begin(head)
        return []

    def _recover(self, head: JournalHead) -> list[ShardEntry]:
        shards, self._resumed = self._journal.recover(head)
        self._num_documents = self._resumed.num_documents
        self._num_tokens = sum(shard.num_tokens for shard in shards)
        return shards

    def _accept_complete(self, head: JournalHead) -> list[ShardEntry]:
        manifest = read_manifest(self._store)
        found = [(field, getattr(manifest, field)) for field in ("vocab_size", "shard_tokens", "tokenizer")]
        for shard in manifest.shards:
            found.append(("compression", shard.stored.codec if shard.stored else None))
            found.append(("side_files", shard.documents is not None))
        for field, before in found:
            if before != (now := getattr(head, field)):
                raise ResumeError(f"{self.uri}: the dataset is complete, with {field} {before!r}, not {now!r}")
        self._is_complete = True
        self._num_tokens, self._num_documents = manifest.num_tokens, manifest.num_documents
        return list(manifest.shards)

    def _check_usable(self, *, to_publish: bool = False) -> None:
        if self._is_closed:
            state = "nothing was published" if self._manifest is None else "the dataset is complete"
            raise ValueError(f"{self.uri}: the writer is closed; {state}")
        if self._failure is not None:
            raise StorageError(
                f"{self.uri}: the writer failed before and publishes nothing; resume=True goes on from the last "
                "durable shard"
            ) from self._failure
        if to_publish and self._resumed.document_tokens:
            raise ResumeError(
                f"{self.uri}: document {self._num_documents} is durable in part only; send it again before close()"
            )
        if self._is_complete and not to_publish:
            raise ResumeError(
                f"{self.uri}: the dataset is complete with {self._num_tokens} tokens and {self._num_documents} "
                "documents; nothing can follow"
            )

    def _range_of(self, tokens: _Integers, position: int) -> tuple[int, int]:
        """The lowest and the highest id, both within the vocabulary."""
        if not len(tokens):
            return 0, 0
        low, high = int(tokens.min()), int(tokens.max())
        if low >= 0 and high < self._vocab_size:
            return low, high
        index = int(np.argmax((tokens < 0) | (tokens >= self._vocab_size)))
        raise ValueError(
            f"token at position {position + index} is {int(tokens[index])}; wanted 0 to {self._vocab_size - 1} "
            f"(vocab_size is {self._vocab_size})"
        )

    def _write_piece(self, document: DocumentProgress, tokens: object, eos_id: int, *, is_last: bool) -> None:
        """Write tokens of a document, all of them or none; after the last, ``eos_id``."""
        ids, low, high = self._checked_piece(tokens, self._num_tokens - document.num_durable, eos_id, is_last=is_last)
        if document.num_durable:
            ids = document.drop_durable(ids, is_last=is_last)
            low, high = self._range_of(ids, self._num_tokens)
        if not document.is_begun:
            self._shards.begin_document(document.source, document.key)
            document.is_begun = True
        self._write(ids, low, high, lambda n: document.progress_at(ids, n, is_last=is_last))
        if not is_last:
            document.end_piece(ids)

    def _checked_piece(self, tokens: object, start: int, eos_id: int, *, is_last: bool) -> tuple[Block, int, int]:
        """Tokens of a document in the stored dtype, with ``eos_id`` after the last; their lowest and their highest."""
        pieces = list(token_arrays(tokens, start, flatten=False))
        ids = np.empty(sum(map(len, pieces)) + is_last, dtype=self._dtype)
        low, high, fill = self._vocab_size, 0, 0
        for piece in pieces:
            if len(piece):
                piece_low, piece_high = self._range_of(piece, start + fill)
                low, high = min(low, piece_low), max(high, piece_high)
                ids[fill : fill + len(piece)] = piece
                fill += len(piece)
        # An eos_id that is the first or the last of the vocabulary lies outside the range of most documents.
        if low <= eos_id <= high and not self._allow_eos_in_documents:
            self._check_no_eos(ids[:fill], start, eos_id)
        if is_last:
            ids[fill] = eos_id
            low, high = min(low, eos_id), max(high, eos_id)
        return ids, low, high

    def _check_no_eos(self, ids: Block, start: int, eos_id: int) -> None:
        is_eos = ids == eos_id
        if is_eos.any():
            raise ValueError(
                f"token at position {start + int(is_eos.argmax())} is eos_id {eos_id}, inside document "
                f"{self._num_documents}; leave it out, since append_document() ends the document itself, or pass "
                "allow_eos_in_documents=True"
            )

    def _write(self, tokens: _Integers, low: int, high: int, progress_at: Callable[[int], Progress]) -> None:
        try:
            self._shards.write(tokens, low, high, progress_at)
        except BaseException as error:  # KeyboardInterrupt too: part of the tokens may be in a block already
            self._failure = error
            raise
        self._num_tokens += len(tokens)

    def _publish(self) -> Manifest:
        if self._is_complete:
            manifest = read_manifest(self._store)
        else:
            self._shards.finish(Progress(num_documents=self._num_documents))
            manifest = Manifest(
                vocab_size=self._vocab_size,
                shard_tokens=self._shard_tokens,
                shards=tuple(self._shards.entries),
                num_documents=self._num_documents,
                tokenizer=self._tokenizer,
                creator=creator(),
                metadata=self.metadata,
            )
            publish_manifest(self._store, manifest, overwrite=False)
        self._journal.remove()
        return manifest

    def _abandon(self) -> None:
        """Stop the threads and let the target go; what is durable stays for ``resume=True``."""
        self._is_closed = True
        self._shards.abandon()
        if not self._shards.entries:
            with contextlib.suppress(StorageError):  # the error that brought us here is the one to show
                self._journal.remove()
        self._lock.close()


def creator() -> str:
    """Who writes the manifest, for its ``creator`` field."""
    return f"shardstream {version('shardstream')}"


def check_shards(shard_tokens: int, compression: str | None) -> None:
    """Refuse what shards cannot be.

    Raises:
        TypeError, ValueError: One of the two is not what DatasetWriter takes.
    """
    if operator.index(shard_tokens) < 1:
        raise ValueError(f"shard_tokens is {shard_tokens}; wanted at least 1, such as {DEFAULT_SHARD_TOKENS}")
    if compression not in _COMPRESSIONS:
        raise ValueError(f"compression is {compression!r}; wanted {' or '.join(map(repr, _COMPRESSIONS))}")


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A manifest's metadata, refused now where it could not be written after the last token.

    Raises:
        TypeError, ValueError: JSON cannot say it, or it is too large.
    """
    kept = dict(metadata or {})
    try:
        json.dumps(kept, allow_nan=False)  # the manifest's encoder would make text or null of what JSON does not know
        data = Manifest(vocab_size=1, shard_tokens=1, shards=(), metadata=kept).to_json()
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"metadata: {error}; wanted what JSON can say: dictionaries with strings as keys, lists, strings, finite "
            "numbers, booleans and None"
        ) from error
    Manifest.parse(data, source="metadata")
    return kept


def tokenizer_identity(
    tokenizer: Mapping[str, Any] | None, eos_id: int | None, vocab_size: int
) -> TokenizerIdentity | None:
    """What a manifest says of a tokenizer; None where nothing is known.

    Args:
        tokenizer: Any of ``name``, ``sha256``, ``eos_id``, ``bos_id``, ``pad_id``.
        eos_id: Given beside them, or None.
        vocab_size: Bound of the ids.

    Raises:
        ValueError: A field is none of these, is out of range, or contradicts ``eos_id``.
    """
    fields = {name: value for name, value in dict(tokenizer or {}).items() if value is not None}
    if eos_id is not None and fields.setdefault("eos_id", operator.index(eos_id)) != eos_id:
        raise ValueError(f"eos_id is {eos_id}, but tokenizer['eos_id'] is {fields['eos_id']}; give it once")
    if not fields:
        return None
    try:
        identity = msgspec.convert(fields, TokenizerIdentity)
    except msgspec.ValidationError as error:
        raise ValueError(f"tokenizer: {error}; wanted any of name, sha256, eos_id, bos_id, pad_id") from error
    for name in ("eos_id", "bos_id", "pad_id"):
        value = getattr(identity, name)
        if value is not None and value >= vocab_size:
            raise ValueError(f"{name} is {value}; wanted 0 to {vocab_size - 1} (vocab_size is {vocab_size})")
    return identity
