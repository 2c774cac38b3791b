"""A column of text in a Parquet or Arrow file -> documents. Only that column is read, some rows at a time.

About 16 MiB of text are held at a time, or one row where that is longer: by the average of a row group or a record
batch. Where that misleads, as with huge rows side by side among short ones, or many rows of one huge text that Parquet
stores once, 64 rows of Parquet are held, and of Arrow one. What a format makes indivisible comes on top: a page of
Parquet, 1 MiB by default; a record batch of an Arrow file that is compressed, or not on this machine. Other Arrow files
are mapped.

To ask pyarrow for dictionaries (``read_dictionary``) would hold such a text once, and takes 100 times as long for texts
that differ.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from shardstream.errors import FormatError, StorageError
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece, OnBadRecord
from shardstream.ingest.input_file import InputFile
from shardstream.ingest.plan import InputRange
from shardstream.ingest.shown_names import shown_name, shown_names
from shardstream.ingest.table_files import ArrowFile, open_arrow, open_parquet, parquet_columns, slices_of

# Few, since rows that are short on the whole may have huge ones among them; a batch costs no more than some rows do.
_MAX_BATCH_ROWS: Final = 64
_BATCH_BYTES: Final = 2**24

_Table = TypeVar("_Table", pq.ParquetFile, ArrowFile)


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
        OSError: The file cannot be read, or is no longer what it was when it was cut into ranges.
    """
    texts = _Texts(file.name, on_bad_record)
    with _opened(open_parquet(file), one, text_field, texts) as parquet:
        if parquet is None:
            return
        groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
        row = sum(group.num_rows for group in groups[: one.start])
        num_rows = sum(group.num_rows for group in groups[one.start : one.stop])
        for index, group in list(enumerate(groups))[one.start : one.stop]:
            texts.next_row, row = row, row + group.num_rows
            batches = parquet_columns(
                parquet, text_field, file.name, num_rows=_num_group_rows(parquet, index, text_field), row_groups=[index]
            )
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
        OSError: The file cannot be read, or is no longer what it was when it was cut into ranges.
    """
    texts = _Texts(file.name, on_bad_record)
    with _opened(open_arrow(file), one, text_field, texts) as arrow:
        if arrow is None:
            return
        for index, column, num_bytes in arrow.columns(text_field, one.num_bytes, one.start, one.stop):
            texts.batch, texts.next_row = f"batch {index} ", 0
            if isinstance(column, FormatError):
                texts.report(f"batch {index}", column)
                continue
            for rows, num_slice_bytes in slices_of(column, _num_rows_at_a_time(column.nbytes, len(column)), num_bytes):
                yield from texts.pieces(rows, num_slice_bytes)


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


@contextlib.contextmanager
def _opened(
    opening: contextlib.AbstractContextManager[_Table], one: InputRange, text_field: str, texts: _Texts
) -> Iterator[_Table | None]:
    """What is opened; None where the file as a whole is a bad record: one, however many ranges it has.

    Raises:
        StorageError: It is no longer what it was when it was cut into ranges.
    """
    with contextlib.ExitStack() as stack:
        table: _Table | None = None
        try:
            table = stack.enter_context(opening)
            _check_column(table.schema_arrow, text_field)
        except FormatError as error:
            if table is None and one.start > 0:  # there would be no such range, had it been so then
                raise StorageError(f"{one.path}: has changed since the job was planned: {error}") from error
            table = None
            if one.start == 0:
                texts.report("", error)
        yield table


def _check_column(schema: pa.Schema, name: str) -> None:
    fields = [schema.field(index) for index in schema.get_all_field_indices(name)]
    if not fields:
        names = shown_names(schema.names) or "none"
        raise FormatError(f"no column {name!r}; it has {names}; name the column of the text")
    if len(fields) > 1:
        raise FormatError(f"{len(fields)} columns {name!r}; wanted one")
    if not _is_text(fields[0].type):
        raise FormatError(f"column {name!r} is of {shown_name(str(fields[0].type))}; wanted one of strings")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _num_group_rows(parquet: pq.ParquetFile, index: int, column: str) -> int:
    """How many rows of a row group are read at a time."""
    group = parquet.metadata.row_group(index)
    paths = [parquet.metadata.schema.column(number).path for number in range(group.num_columns)]
    return _num_rows_at_a_time(group.column(paths.index(column)).total_uncompressed_size, group.num_rows)


def _num_rows_at_a_time(num_bytes: int, num_rows: int) -> int:
    return min(max(_BATCH_BYTES * num_rows // max(num_bytes, 1), 1), _MAX_BATCH_ROWS)


def _texts_of(rows: pa.Array) -> Iterable[str | FormatError | None]:
    """The texts; None for a null, an error for what is not UTF-8."""
    # Of short rows, all at once are 5 to 10 times as fast. Long ones are made one after the other, and so are those of
    # which a dictionary holds one for many. Views say the bytes of all that they look into, and may be taken for long.
    if not pa.types.is_dictionary(rows.type) and rows.nbytes <= _BATCH_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            return rows.to_pylist()  # type: ignore[no-any-return]
    return map(_text_of, rows)


def _text_of(row: pa.Scalar) -> str | FormatError | None:
    try:
        return row.as_py()  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        return FormatError(f"not UTF-8 at byte {error.start}: {error.reason}; wanted text in UTF-8")
