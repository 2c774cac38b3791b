"""Parquet and Arrow files opened, and where they may be cut. pyarrow's many errors become one."""

import contextlib
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from shardstream.errors import FormatError, StorageError
from shardstream.ingest.input_file import InputFile

# Otherwise a whole row group of a column, which may be the whole file, is read at once.
_PARQUET_BUFFER_BYTES: Final = 2**20

ArrowReader: TypeAlias = pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader


@contextlib.contextmanager
def open_parquet(file: InputFile) -> Iterator[pq.ParquetFile]:
    """A Parquet file, its footer read; of its columns nothing is read ahead.

    Raises:
        FormatError: It is no Parquet file.
    """
    with contextlib.ExitStack() as stack:
        with translated(file.name, "Parquet"):
            data = stack.enter_context(file.open())
            parquet = pq.ParquetFile(data, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
        yield parquet


@contextlib.contextmanager
def open_arrow(file: InputFile) -> Iterator[pa.NativeFile]:
    """The bytes of an Arrow file, mapped where they lie on this machine.

    Raises:
        FormatError: They cannot be mapped, as those of an empty file.
    """
    with translated(file.name, "Arrow"):
        data = pa.memory_map(file.local_path) if file.is_local else pa.PythonFile(file.open(), mode="r")
    with data:
        yield data


def arrow_reader(data: pa.NativeFile, name: str, *, column: str | None = None) -> ArrowReader:
    """What reads the batches of the file format, which Feather is too, or of the stream format.

    Args:
        data: The file, from its beginning.
        name: What to call it in messages.
        column: The only one that is to be read; there is one of that name. None reads all.

    Raises:
        FormatError: It is no Arrow file.
    """
    with translated(name, "Arrow"):
        reader = _arrow_reader(data, None)
        if column is None:
            return reader
        return _arrow_reader(data, pa.ipc.IpcReadOptions(included_fields=[reader.schema.get_field_index(column)]))


def parquet_unit_offsets(file: InputFile) -> list[int]:
    """About where each row group starts, then the file's size, in bytes.

    Raises:
        FormatError: It is no Parquet file.
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
    """
    with open_arrow(file) as data:
        reader = arrow_reader(data, file.name)
        is_file_format = isinstance(reader, pa.ipc.RecordBatchFileReader)
        return _offsets([1] * (reader.num_record_batches if is_file_format else 1), file.num_bytes or 0)


@contextlib.contextmanager
def translated(name: str, format_name: str) -> Iterator[None]:
    """Turn what pyarrow says of bytes that make no sense into a FormatError. A place that fails is another matter."""
    try:
        yield
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:  # pyarrow says OSError too where bytes make no sense
        raise FormatError(f"{name}: cannot be read as {format_name}: {error}") from error


def _arrow_reader(data: pa.NativeFile, options: pa.ipc.IpcReadOptions | None) -> ArrowReader:
    data.seek(0)
    is_file_format = data.read(6) == b"ARROW1"
    data.seek(0)
    return (pa.ipc.open_file if is_file_format else pa.ipc.open_stream)(data, options=options)


def _offsets(sizes: list[int], num_bytes: int) -> list[int]:
    """Where units of these sizes start, stretched to the size of their file, then that."""
    total = max(sum(sizes), 1)
    return [*(before * num_bytes // total for before in accumulate(sizes[:-1], initial=0)), num_bytes]
