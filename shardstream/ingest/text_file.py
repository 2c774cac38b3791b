"""A text file -> one document."""

import codecs
from collections.abc import Iterator
from typing import Final

from shardstream.errors import FormatError, StorageError
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece, OnBadRecord
from shardstream.ingest.input_file import InputFile, blocks_of

# A longer text is read twice: first to see whether all of it is UTF-8, then piece by piece. Sources and books are
# shorter; and so much text with its ids, and all that a tokenizer keeps to find them, stays under 1 GiB.
_MAX_WHOLE_CHARACTERS: Final = 2**23
_PIECE_CHARACTERS: Final = 2**22


def text_pieces(file: InputFile, on_bad_record: OnBadRecord) -> Iterator[DocumentPiece]:
    """The text of a file, which is UTF-8 or a bad record as a whole. A byte order mark at its start is dropped.

    Text of more than 2**23 characters comes in pieces of 2**22, and is read twice.

    Raises:
        OSError: The file cannot be read, or has changed between the first reading and the second.
    """
    try:
        text, num_bytes = _whole_text(file)
    except FormatError as error:
        on_bad_record(BadRecord(file.name, "", str(error)))
        return
    if text is not None:
        yield DocumentPiece(text, True, file.name, "", num_bytes)  # noqa: FBT003 - the fields of a tuple, in order
        return
    try:
        pieces = _pieces(file)
        piece, num_bytes = next(pieces)
        for following, num_following_bytes in pieces:
            yield DocumentPiece(piece, False, file.name, "", num_bytes)  # noqa: FBT003
            piece, num_bytes = following, num_following_bytes
    except FormatError as error:  # too late to leave the document out: its first pieces may be tokens already
        raise StorageError(f"{file.name}: has changed while it was read: {error}") from error
    yield DocumentPiece(piece, True, file.name, "", num_bytes)  # noqa: FBT003


def _whole_text(file: InputFile) -> tuple[str | None, int]:
    """The text and its stored bytes, once all of it is known to be good; None where it is too long to be kept."""
    pieces: list[str] | None = []
    num_characters = num_bytes = 0
    for piece, num_piece_bytes in _pieces(file):
        num_characters += len(piece)
        num_bytes += num_piece_bytes
        pieces = [*pieces, piece] if pieces is not None and num_characters <= _MAX_WHOLE_CHARACTERS else None
    return None if pieces is None else "".join(pieces), num_bytes


def _pieces(file: InputFile) -> Iterator[tuple[str, int]]:
    """Texts of ``_PIECE_CHARACTERS``, the last one perhaps shorter, and the stored bytes that each took."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    texts: list[str] = []
    num_characters = num_decompressed = num_passed = 0
    with file.decompressed() as (data, stored):
        for block in blocks_of(data):
            num_decompressed += len(block)
            texts.append(_decoded(decoder, block, num_decompressed))
            num_characters += len(texts[-1])
            while num_characters > _PIECE_CHARACTERS:
                text = "".join(texts)
                yield text[:_PIECE_CHARACTERS], stored.tell() - num_passed
                texts, num_characters = [text[_PIECE_CHARACTERS:]], num_characters - _PIECE_CHARACTERS
                num_passed = stored.tell()
        texts.append(_decoded(decoder, b"", num_decompressed, is_last=True))
        yield "".join(texts), stored.tell() - num_passed


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, stop: int, *, is_last: bool = False) -> str:
    try:
        return decoder.decode(block, is_last)
    except UnicodeDecodeError as error:
        # What is decoded is the block and what the decoder kept of the one before it.
        offset = stop - len(error.object) + error.start
        raise FormatError(f"not UTF-8 at byte {offset}: {error.reason}; convert the file to UTF-8") from error
