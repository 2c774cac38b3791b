"""One part of the inputs: documents -> ids -> a dataset of its own, in one process and one thread.

What a part holds follows from the inputs and the settings alone, so whoever writes it, here or on a cluster, once or
again after a crash, writes the same bytes.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardstream.errors import FormatError, ShardstreamError
from shardstream.format.manifest import PositiveCount, TokenizerIdentity
from shardstream.ingest.cuts import Cutter
from shardstream.ingest.documents import BadRecord, DocumentPiece, pieces_of
from shardstream.ingest.plan import InputRange
from shardstream.ingest.tokenizer import Tokenizer
from shardstream.order.permutation import Permutation
from shardstream.write.dataset_writer import DatasetWriter
from shardstream.write.zstd_upload import Compression

# What a document takes beside its text, counted as characters: 331 bytes were measured, and a character takes up to 4.
DOCUMENT_CHARACTERS: Final = 256
# Characters encoded in one call, DOCUMENT_CHARACTERS of each document among them: calls do not count beside it, and it
# takes a fraction of a second.
_BATCH_CHARACTERS: Final = 2**20
# The same of the documents that are shuffled together: 128 MiB at most, and the document that goes beyond.
SHUFFLE_CHARACTERS: Final = 2**25
# Characters without a place to cut at that are held before the job gives up: a line of base64, or of a language without
# spaces, has as many as it likes, but rarely a whole file of them.
_MAX_HELD_CHARACTERS: Final = 2**26
# A part may have as many empty documents as it likes, and telling of one costs more than reading it.
_PROGRESS_S: Final = 0.5
# A corpus may have millions of them.
NUM_BAD_RECORDS_SHOWN: Final = 20

_Ids: TypeAlias = NDArray[np.uint32]
OnError: TypeAlias = Literal["stop", "skip"]
SpecialText: TypeAlias = Literal["encode", "refuse"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the dataset, beside the inputs: a run that goes on with another's parts must say the same."""

    tokenizer: TokenizerIdentity
    vocab_size: int
    text_field: str
    add_bos: bool
    special_text: SpecialText
    on_error: OnError
    shuffle_seed: int | None
    side_files: bool
    shard_tokens: PositiveCount
    compression: Compression | None


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """What was done since the last one of its kind."""

    num_documents: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    """Stored bytes of the inputs, those of documents found durable or dropped among them."""
    num_bad_records: int = 0
    left_out: tuple[str, ...] = ()
    """Of the first bad records of a part, each one's place and what is wrong with it."""

    def __add__(self, other: "Advance") -> "Advance":
        """Both, one after the other."""
        return Advance(
            num_documents=self.num_documents + other.num_documents,
            num_tokens=self.num_tokens + other.num_tokens,
            num_bytes=self.num_bytes + other.num_bytes,
            num_bad_records=self.num_bad_records + other.num_bad_records,
            left_out=self.left_out + other.left_out,
        )

    def __neg__(self) -> "Advance":
        """What takes the counts back; words that were told stay told."""
        return Advance(
            num_documents=-self.num_documents,
            num_tokens=-self.num_tokens,
            num_bytes=-self.num_bytes,
            num_bad_records=-self.num_bad_records,
        )


class _Document(NamedTuple):
    text: str
    source: str
    key: str
    num_bytes: int

    @property
    def num_characters(self) -> int:
        """What it takes of a bound on memory."""
        return len(self.text) + DOCUMENT_CHARACTERS


class _LongDocument(NamedTuple):
    """A document that comes in pieces, to be taken before the document after it."""

    pieces: Iterator[DocumentPiece]
    source: str
    key: str


_AnyDocument: TypeAlias = _Document | _LongDocument


def identity_of(tokenizer: Tokenizer, *, eos_id: int | None) -> TokenizerIdentity:
    """What a dataset records of a tokenizer, whose documents end with ``eos_id``."""
    return TokenizerIdentity(
        name=tokenizer.name,
        sha256=tokenizer.sha256,
        eos_id=eos_id,
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
    )


def write_part(
    ranges: Sequence[InputRange],
    uri: str,
    *,
    index: int,
    settings: Settings,
    tokenizer: Tokenizer,
    advance: Callable[[Advance], object],
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Tokenize what some ranges hold into the dataset at ``uri``; what an earlier try made durable there stays.

    The manifest's metadata counts what was left out: ``num_empty_documents`` and ``num_bad_records``.

    Args:
        ranges: What to read, in this order.
        uri: Folder or URL of the part.
        index: Number of the part; a shuffle depends on it.
        settings: What the whole job agreed on.
        tokenizer: The one whose identity the settings hold.
        advance: Called at once when there is something to tell, twice a second as the work goes on, and at its end.
        storage_options: Passed to the fsspec filesystem of inputs and target.

    Raises:
        FormatError: A record is bad and ``settings.on_error`` is ``"stop"``, or nothing else helps; the message says
            where it is.
        ShardstreamError: The part cannot be written.
    """
    writer = DatasetWriter(
        uri,
        vocab_size=settings.vocab_size,
        shard_tokens=settings.shard_tokens,
        tokenizer=msgspec.to_builtins(settings.tokenizer),
        compression=settings.compression,
        side_files=settings.side_files,
        resume=True,
        storage_options=storage_options,
    )
    with writer:
        part = _Part(writer, index, settings, tokenizer, advance)
        part.append(piece for one in ranges for piece in part.pieces(one, storage_options))
        part.end(sum(one.num_bytes for one in ranges))
        writer.metadata.update(num_empty_documents=part.num_empty, num_bad_records=part.num_bad)


class _Part:
    def __init__(
        self,
        writer: DatasetWriter,
        index: int,
        settings: Settings,
        tokenizer: Tokenizer,
        advance: Callable[[Advance], object],
    ) -> None:
        self._writer = writer
        self._index = index
        self._settings = settings
        self._tokenizer = tokenizer
        self._cutter = Cutter(tokenizer)
        self._tell = advance
        self._untold = Advance()
        self._told_at = -math.inf
        self._num_bytes = 0
        refused = tokenizer.special_tokens() if settings.special_text == "refuse" else ()
        self._refused = re.compile("|".join(map(re.escape, refused))) if refused else None
        self._num_refused_characters = max(map(len, refused), default=1)
        self._bos = np.array([tokenizer.bos_id] if settings.add_bos else [], dtype=np.uint32)
        self.num_empty = 0
        self.num_bad = 0

    def pieces(self, one: InputRange, storage_options: Mapping[str, Any] | None) -> Iterator[DocumentPiece]:
        return pieces_of(
            one,
            text_field=self._settings.text_field,
            on_bad_record=self._leave_out,
            storage_options=storage_options,
        )

    def append(self, pieces: Iterator[DocumentPiece]) -> None:
        documents = self._wanted(_documents(pieces))
        if self._settings.shuffle_seed is not None:
            documents = _shuffled(documents, seed=self._settings.shuffle_seed, part=self._index)
        batch: list[_Document] = []
        num_characters = 0
        for document in self._undone(documents):
            if isinstance(document, _Document):
                batch.append(document)
                num_characters += document.num_characters
            if num_characters >= _BATCH_CHARACTERS or isinstance(document, _LongDocument):
                self._append_batch(batch)
                batch, num_characters = [], 0
            if isinstance(document, _LongDocument):
                self._append_long(document)
        self._append_batch(batch)

    def end(self, num_bytes: int) -> None:
        """Tell of what follows the last document, or was a bad one, so that all adds up to ``num_bytes``."""
        self._tell(self._untold + Advance(num_bytes=num_bytes - self._num_bytes))

    def _advance(self, done: Advance) -> None:
        """Tell of what is done, unless something was told a moment ago: then with the next."""
        self._num_bytes += done.num_bytes
        self._untold += done
        if time.monotonic() >= self._told_at + _PROGRESS_S:
            self._tell(self._untold)
            self._untold = Advance()
            self._told_at = time.monotonic()

    def _wanted(self, documents: Iterator[_AnyDocument]) -> Iterator[_AnyDocument]:
        """The documents that are neither empty nor refused."""
        for document in documents:
            if isinstance(document, _LongDocument):
                yield document
            elif self._is_empty(document):
                self.num_empty += 1
                self._advance(Advance(num_bytes=document.num_bytes))
            elif found := self._refusal(document.text):
                self._leave_out(BadRecord(document.source, document.key, found))
                self._advance(Advance(num_bytes=document.num_bytes))
            else:
                yield document

    def _is_empty(self, document: _Document) -> bool:
        # Some tokenizers drop white space at both ends, and so all of it.
        return not document.text or (document.text.isspace() and not len(self._encoded_alone(document)))

    def _refusal(self, text: str) -> str | None:
        found = self._refused.search(text) if self._refused else None
        return found and f"the text spells the special token {found[0]!r}; special_text='encode' takes it as text"

    def _undone(self, documents: Iterator[_AnyDocument]) -> Iterator[_AnyDocument]:
        """The documents after those that an earlier try made durable."""
        for _ in range(self._writer.num_documents):
            document = next(documents, None)
            if document is None:
                raise FormatError(
                    f"{self._writer.uri}: {self._writer.num_documents} documents are durable, and the inputs hold fewer; "
                    "they have changed since the job began, start again with overwrite=True"
                )
            pieces = [document] if isinstance(document, _Document) else document.pieces
            for piece in pieces:
                self._advance(Advance(num_bytes=piece.num_bytes))
        yield from documents

    def _append_batch(self, batch: Sequence[_Document]) -> None:
        if not batch:
            return
        encoded = self._encoded(batch)
        num_tokens = self._writer.num_tokens
        for document, ids in zip(batch, encoded, strict=True):
            self._append_document(np.concatenate((self._bos, ids)) if len(self._bos) else ids, document)
        self._advance(
            Advance(
                num_documents=len(batch),
                num_tokens=self._writer.num_tokens - num_tokens,
                num_bytes=sum(document.num_bytes for document in batch),
            )
        )

    def _encoded(self, batch: Sequence[_Document]) -> list[_Ids]:
        try:
            return self._tokenizer.encode_batch([document.text for document in batch])
        except ValueError:  # tiktoken's, of a million spaces in a row; it does not say in which text
            return [self._encoded_alone(document) for document in batch]

    def _encoded_alone(self, document: _Document) -> _Ids:
        try:
            return self._tokenizer.encode_batch([document.text])[0]
        except ValueError as error:
            raise _last_error(document, f"cannot be tokenized: {error}") from error

    def _append_long(self, document: _LongDocument) -> None:
        self._append_document(self._long_ids(document), document)
        self._advance(Advance(num_documents=1, num_tokens=1))

    def _append_document(self, ids: object, document: _AnyDocument) -> None:
        try:
            self._writer.append_document(ids, source=document.source, key=document.key)
        except ShardstreamError:
            raise
        except ValueError as error:
            raise _last_error(document, str(error)) from error

    def _long_ids(self, document: _LongDocument) -> Iterator[_Ids]:
        """The ids of a document as they come, cut where that does not change them."""
        if len(self._bos):
            yield self._bos
        held = encoded = ""  # of the latter the end, in which a token that is refused may begin
        for piece in document.pieces:
            held += piece.text
            if found := self._refusal(encoded + held):
                raise _last_error(document, found)
            place = (len(held), len(held)) if piece.is_last else self._cutter.last_cut(held)
            if place is None:
                if len(held) > _MAX_HELD_CHARACTERS:
                    raise _last_error(
                        document,
                        f"{len(held):,} characters without a place where this tokenizer's ids could be told apart; "
                        "split the document",
                    )
                self._advance(Advance(num_bytes=piece.num_bytes))
                continue
            left, right = place
            ids = self._encoded_alone(_Document(held[:left], document.source, document.key, 0))
            encoded = (encoded + held[:right])[-self._num_refused_characters :]
            held = held[right:]
            yield ids
            self._advance(Advance(num_tokens=len(ids), num_bytes=piece.num_bytes))

    def _leave_out(self, record: BadRecord) -> None:
        message = f"{_place(record.source, record.key)}: {record.reason}"
        if self._settings.on_error == "stop":
            raise FormatError(f"{message}; on_error='skip' leaves such records out and counts them")
        self.num_bad += 1
        is_shown = self.num_bad <= NUM_BAD_RECORDS_SHOWN
        self._advance(Advance(num_bad_records=1, left_out=(message,) if is_shown else ()))


def _shuffled(documents: Iterable[_AnyDocument], *, seed: int, part: int) -> Iterator[_AnyDocument]:
    """As many documents as the bound on characters admits, in a new order; then the next. Long ones keep their places."""
    num_buffers = 0
    buffer: list[_Document] = []
    num_characters = 0

    def shuffled() -> Iterator[_Document]:
        nonlocal num_buffers, buffer, num_characters
        if buffer:
            key = f"shardstream documents 1 {seed} {part} {num_buffers}"
            permuted = Permutation(len(buffer), key)(np.arange(len(buffer)))
            yield from (buffer[number] for number in permuted.tolist())
        num_buffers, buffer, num_characters = num_buffers + 1, [], 0

    for document in documents:
        if isinstance(document, _LongDocument):
            yield from shuffled()
            yield document
            continue
        buffer.append(document)
        num_characters += document.num_characters
        if num_characters >= SHUFFLE_CHARACTERS:
            yield from shuffled()
    yield from shuffled()


def _documents(pieces: Iterator[DocumentPiece]) -> Iterator[_AnyDocument]:
    for piece in pieces:
        if piece.is_last:
            yield _Document(piece.text, piece.source, piece.key, piece.num_bytes)
        else:
            yield _LongDocument(_rest_of_document(piece, pieces), piece.source, piece.key)


def _rest_of_document(first: DocumentPiece, others: Iterator[DocumentPiece]) -> Iterator[DocumentPiece]:
    piece = first
    while not piece.is_last:
        yield piece
        piece = next(others)
    yield piece


def _last_error(document: _AnyDocument, reason: str) -> FormatError:
    """What ends the job whatever ``on_error`` says.

    Of a document that has begun, ids may be durable; and one that is left out at this point would be counted as durable
    by a run that goes on from here.
    """
    return FormatError(
        f"{_place(document.source, document.key)}: {reason}; on_error='skip' cannot leave it out: mend or remove it, and "
        "start again with overwrite=True"
    )


def _place(source: str, key: str) -> str:
    return f"{source}, {key}" if key else source
