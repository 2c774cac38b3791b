"""A column of text in a Parquet or Arrow file -> documents. Only that column is read, some rows at a time.

About 16 MiB of text are held at a time, or one row where that is longer. What a format makes indivisible comes on top:
a page of Parquet, 1 MiB by default; a record batch of an Arrow file that is compressed, or not on this machine. Other
Arrow files are mapped.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from shardstream.errors import FormatError
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece, OnBadRecord
from shardstream.ingest.input_file import InputFile
from shardstream.ingest.plan import InputRange
from shardstream.ingest.table_files import arrow_reader, open_arrow, open_parquet, translated

# Few, since rows that are short on the whole may have huge ones among them; a batch costs no more than some rows do.
_MAX_BATCH_ROWS: Final = 64
_BATCH_BYTES: Final = 2**24
_MAX_NAMES_SHOWN: Final = 10


def parquet_pieces(
    file: InputFile, one: InputRange, *, text_field: str, on_bad_record: OnBadRecord
) -> Iterator[DocumentPiece]:
    """The documents of some row groups, one of each row.

    Args:
        file: What ``one`` is a range of.
        one: Row groups.
        text_field: Name of the column.
        on_bad_record: Gets every row that is null or not UTF-8, the rest of a row group after a damaged place, and a
            file that is no Parquet or has no such column.

    Raises:
        OSError: The file cannot be read.
    """
    texts = _Texts(file.name, on_bad_record)
    with contextlib.ExitStack() as stack:
        try:
            parquet = stack.enter_context(open_parquet(file))
            _check_column(parquet.schema_arrow, text_field)
        except FormatError as error:
            texts.report_file(error, one)
            return
        groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
        row = sum(group.num_rows for group in groups[: one.start])
        num_rows = sum(group.num_rows for group in groups[one.start : one.stop])
        for index, group in list(enumerate(groups))[one.start : one.stop]:
            texts.next_row, row = row, row + group.num_rows
            batches = _parquet_batches(parquet, index, text_field, file.name)
            for rows in texts.until_damage(batches, f"the rest of row group {index} is left out"):
                yield from texts.pieces(rows, one.num_bytes * len(rows) // num_rows)


def arrow_pieces(
    file: InputFile, one: InputRange, *, text_field: str, on_bad_record: OnBadRecord
) -> Iterator[DocumentPiece]:
    """The documents of some record batches, one of each row. A file in the stream format is read as a whole.

    Args:
        file: What ``one`` is a range of.
        one: Record batches.
        text_field: Name of the column.
        on_bad_record: Gets every row that is null or not UTF-8, a damaged record batch (of the stream format, all that
            follows too), and a file that is no Arrow or has no such column.

    Raises:
        OSError: The file cannot be read.
    """
    texts = _Texts(file.name, on_bad_record)
    with contextlib.ExitStack() as stack:
        try:
            data = stack.enter_context(open_arrow(file))
            _check_column(arrow_reader(data, file.name).schema, text_field)
            reader = arrow_reader(data, file.name, column=text_field)
        except FormatError as error:
            texts.report_file(error, one)
            return
        is_stream = not isinstance(reader, pa.ipc.RecordBatchFileReader)
        columns = _stream_columns(reader, data, file.name) if is_stream else _file_columns(reader, one, file.name)
        for index, column, num_bytes in columns:
            texts.batch, texts.next_row = f"batch {index} ", 0
            if isinstance(column, FormatError):
                texts.report(f"batch {index}", column)
                continue
            for rows in _slices(column):
                yield from texts.pieces(rows, num_bytes * len(rows) // len(column))


class _Texts:
    """Rows of a column -> documents, each under its key.

    Args:
        source: The file.
        on_bad_record: Gets what is none.
    """

    def __init__(self, source: str, on_bad_record: OnBadRecord) -> None:
        self._source = source
        self._on_bad_record = on_bad_record
        self._num_passed = 0
        self.batch = ""
        """What comes before the row in a key."""
        self.next_row = 0

    def pieces(self, rows: pa.Array, num_bytes: int) -> Iterator[DocumentPiece]:
        """The documents of the next rows, which stand for ``num_bytes`` of the file."""
        self._num_passed += num_bytes
        for text in _texts_of(rows):
            key = f"{self.batch}row {self.next_row}"
            self.next_row += 1
            if not isinstance(text, str):
                self._on_bad_record(BadRecord(self._source, key, "null; wanted text" if text is None else str(text)))
                continue
            yield DocumentPiece(text, True, self._source, key, self._num_passed)  # noqa: FBT003 - the fields in order
            self._num_passed = 0

    def until_damage(self, batches: Iterator[pa.Array], consequence: str) -> Iterator[pa.Array]:
        """The batches before a damaged one, which becomes a bad record."""
        try:
            yield from batches
        except FormatError as error:
            self.report(f"row {self.next_row}", error, f"; {consequence}")

    def report(self, key: str, error: FormatError, consequence: str = "") -> None:
        """Make ``error`` a bad record."""
        self._on_bad_record(BadRecord(self._source, key, str(error).removeprefix(f"{self._source}: ") + consequence))

    def report_file(self, error: FormatError, one: InputRange) -> None:
        """Make ``error`` the bad record of a whole file: once, however many ranges it has."""
        if one.start == 0:
            self.report("", error)


def _check_column(schema: pa.Schema, name: str) -> None:
    fields = [schema.field(index) for index in schema.get_all_field_indices(name)]
    if not fields:
        names = ", ".join(schema.names[:_MAX_NAMES_SHOWN]) or "none"
        raise FormatError(f"no column {name!r}; it has {names}; name the column of the text")
    if len(fields) > 1:
        raise FormatError(f"{len(fields)} columns {name!r}; wanted one")
    if not _is_text(fields[0].type):
        raise FormatError(f"column {name!r} is of {fields[0].type}; wanted one of strings")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parquet_batches(parquet: pq.ParquetFile, index: int, column: str, name: str) -> Iterator[pa.Array]:
    group = parquet.metadata.row_group(index)
    paths = [parquet.metadata.schema.column(number).path for number in range(group.num_columns)]
    num_rows = _num_rows_at_a_time(group.column(paths.index(column)).total_uncompressed_size, group.num_rows)
    with translated(name, "Parquet"):
        for batch in parquet.iter_batches(num_rows, row_groups=[index], columns=[column], use_threads=False):
            yield batch.column(column)


def _file_columns(reader: Any, one: InputRange, name: str) -> Iterator[tuple[int, pa.Array | FormatError, int]]:
    indices = range(reader.num_record_batches)[one.start : one.stop]
    for index in indices:
        yield index, _arrow_column(partial(reader.get_batch, index), name), one.num_bytes // len(indices)


def _stream_columns(reader: Any, data: pa.NativeFile, name: str) -> Iterator[tuple[int, pa.Array | FormatError, int]]:
    index = num_passed = 0
    read = partial(_arrow_column, partial(next, reader, None), name)
    while (column := read()) is not None:
        yield index, column, data.tell() - num_passed
        if isinstance(column, FormatError):
            return  # where the next batch would begin is not known
        index, num_passed = index + 1, data.tell()


def _arrow_column(read: Callable[[], pa.RecordBatch | None], name: str) -> pa.Array | FormatError | None:
    """The only column of a batch, its offsets checked: those of a damaged file could point anywhere."""
    try:
        with translated(name, "Arrow"):
            batch = read()
            if batch is None:
                return None
            _as_bytes(batch.column(0)).validate(full=True)
            return batch.column(0)
    except FormatError as error:
        return error


def _as_bytes(column: pa.Array) -> pa.Array:
    """The same without a say on what is UTF-8: that is for each row to be told."""
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _as_bytes(column.dictionary))
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary_view())


def _slices(column: pa.Array) -> Iterator[pa.Array]:
    num_rows = _num_rows_at_a_time(column.nbytes, len(column))
    for start in range(0, len(column), num_rows):
        yield column.slice(start, num_rows)


def _num_rows_at_a_time(num_bytes: int, num_rows: int) -> int:
    return min(max(_BATCH_BYTES * num_rows // max(num_bytes, 1), 1), _MAX_BATCH_ROWS)


def _texts_of(rows: pa.Array) -> list[str | FormatError | None]:
    """The texts; None for a null, an error for what is not UTF-8."""
    with contextlib.suppress(UnicodeDecodeError):
        return rows.to_pylist()  # type: ignore[no-any-return]
    return [_text_of(row) for row in rows]


def _text_of(row: pa.Scalar) -> str | FormatError | None:
    try:
        return row.as_py()  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        return FormatError(f"not UTF-8 at byte {error.start}: {error.reason}; wanted text in UTF-8")
