"""Parquet and Arrow files: opened, cut, and read a column at a time. pyarrow's many errors become one."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from shardstream.errors import FormatError, StorageError
from shardstream.ingest.input_file import InputFile

# Otherwise a whole row group of a column, which may be the whole file, is read at once.
_PARQUET_BUFFER_BYTES: Final = 2**20


@contextlib.contextmanager
def open_parquet(file: InputFile) -> Iterator[pq.ParquetFile]:
    """A Parquet file, its footer read; of its columns nothing is read ahead.

    Raises:
        FormatError: It is no Parquet file.
        OSError: It cannot be opened, or not be read.
    """
    with file.open() as data:
        with translated(file.name, "Parquet"):
            parquet = pq.ParquetFile(data, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
            _ = parquet.schema_arrow.names  # not before they are asked for does it show that they are not UTF-8
        yield parquet


class ArrowFile:
    """The batches of the file format, which Feather is too, or of the stream format.

    Args:
        data: The file.
        name: What to call it in messages.

    Raises:
        FormatError: It is no Arrow file.
    """

    def __init__(self, data: pa.NativeFile, name: str) -> None:
        self._data = data
        self._name = name
        with translated(name, "Arrow"):
            reader = self._reader(None)
            self.schema_arrow: Final[pa.Schema] = reader.schema
            """As a ParquetFile calls it."""
            _ = reader.schema.names  # as of Parquet
            is_stream = isinstance(reader, pa.ipc.RecordBatchStreamReader)
            self.num_batches: Final[int | None] = None if is_stream else reader.num_record_batches
            """None of the stream format, which can only be read from its beginning."""

    def columns(
        self, column: str, num_bytes: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, pa.Array | FormatError, int]]:
        """One column of each record batch: the number of the batch, its rows, about how many bytes of the file it takes.

        A FormatError stands for the rows of a damaged batch; of the stream format, nothing follows.

        Args:
            column: Its name, which is that of no other.
            num_bytes: Of all batches that are read, if it is the file format.
            start, stop: Record batches of the file format, half-open; None is the end.
        """
        with translated(self._name, "Arrow"):
            reader = self._reader(pa.ipc.IpcReadOptions(included_fields=[self.schema_arrow.get_field_index(column)]))
        if self.num_batches is not None:
            indices = range(self.num_batches)[start:stop]
            for index in indices:
                yield index, self._column(reader, index), num_bytes // len(indices)
            return
        index = num_passed = 0
        while (rows := self._column(reader, None)) is not None:
            yield index, rows, self._data.tell() - num_passed
            if isinstance(rows, FormatError):
                return  # where the next batch would begin is not known
            index, num_passed = index + 1, self._data.tell()

    def _reader(self, options: pa.ipc.IpcReadOptions | None) -> pa.ipc.RecordBatchFileReader | pa.RecordBatchReader:
        self._data.seek(0)
        is_file_format = self._data.read(6) == b"ARROW1"
        self._data.seek(0)
        return (pa.ipc.open_file if is_file_format else pa.ipc.open_stream)(self._data, options=options)

    def _column(
        self, reader: pa.ipc.RecordBatchFileReader | pa.RecordBatchReader, index: int | None
    ) -> pa.Array | FormatError | None:
        """The only column of a batch, or of the next one; None at the end."""
        try:
            with translated(self._name, "Arrow"):
                batch = next(reader, None) if index is None else reader.get_batch(index)
                return None if batch is None else _checked(batch.column(0))
        except FormatError as error:
            return error


@contextlib.contextmanager
def open_arrow(file: InputFile) -> Iterator[ArrowFile]:
    """An Arrow file, mapped where it lies on this machine.

    Raises:
        FormatError: It is no Arrow file.
        OSError: It cannot be opened, mapped or read.
    """
    if file.num_bytes == 0:  # cannot be mapped
        raise FormatError(f"{file.name}: cannot be read as Arrow: it is empty")
    with pa.memory_map(file.local_path) if file.is_local else pa.PythonFile(file.open(), mode="r") as data:
        yield ArrowFile(data, file.name)


def parquet_columns(
    parquet: pq.ParquetFile, column: str, name: str, *, num_rows: int, row_groups: Sequence[int] | None = None
) -> Iterator[pa.Array]:
    """One column of some row groups, None for all, ``num_rows`` rows at a time.

    Raises:
        FormatError: It is damaged. ``name`` is what the message calls the file.
        StorageError: The place fails.
    """
    with translated(name, "Parquet"):
        for batch in parquet.iter_batches(num_rows, row_groups=row_groups, columns=[column], use_threads=False):
            yield _checked(batch.column(column))


def slices_of(rows: pa.Array, num_rows: int, num_bytes: int) -> Iterator[tuple[pa.Array, int]]:
    """``num_rows`` rows at a time, the last perhaps fewer, and their share of the ``num_bytes`` bytes that all stand for."""
    for start in range(0, len(rows), num_rows):
        some = rows.slice(start, num_rows)
        yield some, num_bytes * len(some) // len(rows)


def parquet_unit_offsets(file: InputFile) -> list[int]:
    """About where each row group starts, then the file's size, in bytes.

    Raises:
        FormatError: It is no Parquet file.
        OSError: It cannot be opened, or not be read.
    """
    with open_parquet(file) as parquet:
        groups = [parquet.metadata.row_group(index) for index in range(parquet.metadata.num_row_groups)]
        sizes = [sum(group.column(j).total_compressed_size for j in range(group.num_columns)) for group in groups]
    return _offsets(sizes, file.num_bytes or 0)


def arrow_unit_offsets(file: InputFile) -> list[int]:
    """About where each record batch starts, as if they were of one size, then the file's size, in bytes.

    The stream format can only be read from its beginning: as if it were one batch.

    Raises:
        FormatError: It is no Arrow file.
        OSError: It cannot be opened, mapped or read.
    """
    with open_arrow(file) as arrow:
        num_units = 1 if arrow.num_batches is None else arrow.num_batches
    return _offsets([1] * num_units, file.num_bytes or 0)


@contextlib.contextmanager
def translated(name: str, format_name: str) -> Iterator[None]:
    """Turn what pyarrow says of bytes that make no sense into a FormatError. A place that fails is another matter.

    pyarrow says OSError too where bytes make no sense: nothing may be opened in here.
    """
    try:
        yield
    except StorageError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        raise FormatError(f"{name}: cannot be read as {format_name}: {error}") from error


def _checked(rows: pa.Array) -> pa.Array:
    """The rows, once it is known that no offset and no place in a dictionary leads outside, as damage could make them."""
    _without_strings(rows).validate(full=True)
    return rows


def _without_strings(rows: pa.Array) -> pa.Array:
    """The same with bytes for strings: what is not UTF-8 is for each row to be told."""
    if pa.types.is_dictionary(rows.type):
        return pa.DictionaryArray.from_arrays(rows.indices, _without_strings(rows.dictionary))
    for is_kind, bytes_of_kind in _BYTES_OF_STRINGS:
        if is_kind(rows.type):
            return rows.view(bytes_of_kind)
    return rows


_BYTES_OF_STRINGS: Final = (
    (pa.types.is_string, pa.binary()),
    (pa.types.is_large_string, pa.large_binary()),
    (pa.types.is_string_view, pa.binary_view()),
)


def _offsets(sizes: list[int], num_bytes: int) -> list[int]:
    """Where units of these sizes start, stretched to the size of their file, then that."""
    total = max(sum(sizes), 1)
    return [*(before * num_bytes // total for before in accumulate(sizes[:-1], initial=0)), num_bytes]
