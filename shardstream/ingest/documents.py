"""Files of text, JSON lines, Parquet and Arrow -> documents, piece by piece."""

from collections.abc import Iterator, Mapping
from typing import Any

from shardstream.errors import FormatError, StorageError
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece, OnBadRecord
from shardstream.ingest.input_file import readable_file
from shardstream.ingest.json_lines import json_line_pieces
from shardstream.ingest.plan import InputRange
from shardstream.ingest.text_file import text_pieces

__all__ = ["BadRecord", "DocumentPiece", "pieces_of"]


def pieces_of(
    one: InputRange,
    *,
    text_field: str,
    on_bad_record: OnBadRecord,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[DocumentPiece]:
    """The documents of a range, in order. Those of all ranges of a file are the same, however it was cut.

    What is bad about the inputs themselves is a bad record: it is left out, and the rest is read. What another try may
    make good, a server or a network that fails, is none: the OSError ends the reading.

    Args:
        one: What to read.
        text_field: Name of the field, or of the column, that holds the text; a text file has none.
        on_bad_record: Called with each bad record; what it raises ends the reading.
        storage_options: As the fsspec filesystem takes them.

    Raises:
        ValueError: ``text_field`` cannot be the name of a field.
        ImportError: A package that the URL needs is not installed.
        OSError: The file is not there, or cannot be read, or is no longer what it was when it was cut into ranges.
    """
    try:
        file = readable_file(one.path, storage_options)
    except FormatError as error:
        if one.start == 0:  # once, however many ranges the file has
            on_bad_record(BadRecord(one.path, "", str(error)))
        return
    if None not in (one.file_bytes, file.num_bytes) and one.file_bytes != file.num_bytes:
        raise StorageError(
            f"{one.path}: has changed since the job was planned: {one.file_bytes} bytes then, {file.num_bytes} now; begin "
            "again when nothing writes to it any more"
        )
    if one.kind == "text":
        yield from text_pieces(file, on_bad_record)
    elif one.kind == "jsonl":
        yield from json_line_pieces(file, one.start, one.stop, text_field=text_field, on_bad_record=on_bad_record)
    else:
        from shardstream.ingest.text_column import arrow_pieces, parquet_pieces  # noqa: PLC0415 - pyarrow takes 0.1 s

        read = parquet_pieces if one.kind == "parquet" else arrow_pieces
        yield from read(file, one, text_field=text_field, on_bad_record=on_bad_record)
