"""The documents that start in a shard <-> a Parquet file.

The file is for looking back from a token to where it came from: now and then, by a person. So it is Parquet, which every
data tool reads, and no reader needs it for anything else. Rows are written in groups while the shard is being filled:
the names of a document's file and line must not add up in memory, as a shard may hold millions of documents.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import FormatError, IntegrityError
from shardstream.format.integrity import side_file_problem
from shardstream.format.manifest import ShardEntry, SideFile

_COLUMNS: Final = {"start": "INT64", "source": "BYTE_ARRAY", "key": "BYTE_ARRAY"}
# Parquet compresses: a small file may say that it becomes a large one. So much is more than any shard of real documents
# needs; 64 million of them with nothing to say take it.
MAX_UNPACKED_BYTES: Final = 2**30
# Of strings, with the levels of nulls. DELTA_BYTE_ARRAY could say in a few bytes that a long one comes again and again.
_STRING_ENCODINGS: Final = {"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
_ROW_BYTES: Final = 16  # a start, and the lengths of two strings
_GROUP_ROWS: Final = 2**16
_GROUP_BYTES: Final = 2**24


class DocumentRows:
    """Documents of one shard -> its side file."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._sources: list[str] = []
        self._keys: list[str] = []
        self._num_documents = 0  # of the groups that are written
        self._num_bytes = 0
        self._max_group_bytes = _GROUP_BYTES
        self._sink: Any = None
        self._writer: Any = None

    def add(self, start: int, source: str, key: str) -> None:
        """Add the next document.

        Args:
            start: Its first token, counted from the shard's start.
            source, key: Where it comes from.

        Raises:
            TypeError: Not strings.
            ValueError: No UTF-8 can say them, or they are too long.
        """
        num_bytes = self._num_bytes + _num_bytes(source) + _num_bytes(key) + _ROW_BYTES
        if num_bytes > MAX_UNPACKED_BYTES:
            raise ValueError(
                f"sources and keys of one shard take more than {MAX_UNPACKED_BYTES} bytes; make them shorter, or use "
                "smaller shard_tokens"
            )
        self._num_bytes = num_bytes
        self._starts.append(start)
        self._sources.append(source)
        self._keys.append(key)
        if len(self._starts) == _GROUP_ROWS or num_bytes >= self._max_group_bytes:
            self._write_group()

    def finish(self) -> tuple[bytes, SideFile]:
        """The file, and what the shard's row says of it."""
        self._write_group()
        self._writer.close()
        data = self._sink.getvalue().to_pybytes()
        side_file = SideFile(
            num_documents=self._num_documents, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
        return data, side_file

    def _write_group(self) -> None:
        import pyarrow as pa  # noqa: PLC0415 - 0.1 s and 100 MB that only its users pay
        from pyarrow import parquet  # noqa: PLC0415

        columns = {"start": pa.int64(), "source": pa.string(), "key": pa.string()}
        schema = pa.schema([pa.field(name, type_, nullable=False) for name, type_ in columns.items()])
        if self._writer is None:
            self._sink = pa.BufferOutputStream()
            # Without Arrow's own schema, which would be a second statement of the types.
            self._writer = parquet.ParquetWriter(
                self._sink, schema, compression="zstd", use_dictionary=["source"], store_schema=False
            )
        if self._starts:
            self._writer.write_table(pa.table([self._starts, self._sources, self._keys], schema=schema))
        self._num_documents += len(self._starts)
        self._max_group_bytes = self._num_bytes + _GROUP_BYTES
        self._starts, self._sources, self._keys = [], [], []


class ShardDocuments(NamedTuple):
    """The documents that start in one shard, in order."""

    starts: NDArray[np.int64]
    """First token of each, counted from the shard's start."""
    sources: Any
    """Where each comes from: an Arrow column."""
    keys: Any

    def last_before(self, stop: int) -> tuple[int, str, str]:
        """Start, source and key of the last document that starts before token ``stop`` of the shard; there is one."""
        index = int(np.searchsorted(self.starts, stop)) - 1
        return int(self.starts[index]), self.sources[index].as_py(), self.keys[index].as_py()


def documents_of(data: bytes, entry: ShardEntry, side_file: SideFile) -> ShardDocuments:
    """Read a side file that may be a stranger's.

    Args:
        data: The file.
        entry: The row of its shard.
        side_file: What the row says of the file.

    Raises:
        IntegrityError: It is not the file that the row describes.
        FormatError: It is not what a side file has to be.
    """
    if problem := side_file_problem([data], side_file):
        raise IntegrityError(problem)
    from pyarrow import ArrowException  # noqa: PLC0415

    try:
        columns = _columns_of(data, side_file.num_documents)
    except (ArrowException, OSError, KeyError, UnicodeDecodeError) as error:  # all that Arrow says of a file's faults
        raise FormatError(f"not a Parquet file: {error}") from error
    starts = columns.starts
    if len(starts) and not (starts[0] >= 0 and starts[-1] < entry.num_tokens and np.all(starts[:-1] < starts[1:])):
        raise FormatError(f"its starts do not rise within the shard's {entry.num_tokens} tokens")
    return columns


def _num_bytes(text: str) -> int:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is a document's source or key; wanted a string")
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is a document's source or key, and UTF-8 cannot say it: {error.reason}") from error


def _columns_of(data: bytes, num_documents: int) -> ShardDocuments:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    # A row that repeats another takes next to nothing in the file.
    if num_documents * _ROW_BYTES > MAX_UNPACKED_BYTES:
        raise FormatError(f"the manifest says {num_documents} rows; readers stop at {MAX_UNPACKED_BYTES // _ROW_BYTES}")
    metadata = parquet.read_metadata(pa.BufferReader(data))
    _check_num_rows(metadata, num_documents)
    _check_columns(metadata)
    # As dictionaries, so that a string that occurs a million times is in memory once.
    file = parquet.ParquetFile(pa.BufferReader(data), metadata=metadata, read_dictionary=["source", "key"])
    table = pa.concat_tables(_row_groups(file))
    table.validate(full=True)  # offsets, and that strings are UTF-8
    strings = pa.dictionary(pa.int32(), pa.string())
    wanted = pa.schema([("start", pa.int64()), ("source", strings), ("key", strings)])
    table = table.select(list(_COLUMNS))
    if table.schema.types != wanted.types or any(column.null_count for column in table.columns):
        raise FormatError(f"its columns are {dict(zip(table.schema.names, table.schema.types, strict=True))}")
    return ShardDocuments(*(table["start"].to_numpy(), table["source"], table["key"]))


def _row_groups(file: Any) -> Iterator[Any]:
    """The row groups, one after the other: what the file says of its own size may be a lie, and that shows here."""
    columns = list(_COLUMNS)
    yield file.read_row_groups([], columns=columns)  # there may be none
    num_bytes = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=columns, use_threads=False)
        num_bytes += table.nbytes
        # A row's places in two dictionaries come on top of what Parquet counts.
        if num_bytes > 2 * MAX_UNPACKED_BYTES:
            raise FormatError(f"its columns unpack to more than they say; readers stop at {MAX_UNPACKED_BYTES} bytes")
        yield table


def _check_num_rows(metadata: Any, num_documents: int) -> None:
    """See that the rows are as many as they should be, in all statements of it."""
    of_groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    # No group may be below 0, which would make up for another.
    for num_rows in (metadata.num_rows, sum(map(abs, of_groups))):
        if num_rows != num_documents:
            raise FormatError(f"{num_rows} rows, the manifest says {num_documents}")


def _check_columns(metadata: Any) -> None:
    """See that the columns are there, as they should be, and not too much when they are unpacked."""
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    found = {path: index for index, path in enumerate(paths)}
    for name, physical_type in _COLUMNS.items():
        column = metadata.schema.column(found[name]) if paths.count(name) == 1 else None
        if column is None or column.physical_type != physical_type or column.max_repetition_level:
            raise FormatError(f"wanted a column {name!r} of Parquet's {physical_type}, got {sorted(paths)}")
    chunks = [
        (name, metadata.row_group(group).column(found[name]))
        for group in range(metadata.num_row_groups)
        for name in _COLUMNS
    ]
    for name, chunk in chunks:
        if name != "start" and (unknown := set(chunk.encodings) - _STRING_ENCODINGS):
            raise FormatError(f"column {name!r} is encoded as {sorted(unknown)}; wanted PLAIN or a dictionary")
    num_bytes = sum(chunk.total_uncompressed_size for _, chunk in chunks)
    if num_bytes > MAX_UNPACKED_BYTES:
        raise FormatError(f"its columns unpack to {num_bytes} bytes; readers stop at {MAX_UNPACKED_BYTES}")
