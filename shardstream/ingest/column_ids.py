"""A column of ids, or of lists of ids, in a Parquet or Arrow file. Only that column is read, some rows at a time."""

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardstream.errors import FormatError
from shardstream.ingest.input_file import InputFile
from shardstream.ingest.shown_names import shown_names
from shardstream.ingest.table_files import open_arrow, open_parquet, parquet_columns, slices_of
from shardstream.ingest.token_pieces import Piece, RowPiece, TokenFile

# Rows taken at a time: one of a column of ids takes 2 to 8 bytes, one of a column of lists easily 10 KiB.
_NUM_ID_ROWS: Final = 2**18
_NUM_LIST_ROWS: Final = 2**10

# Rows of the column, and the bytes of the file that they stand for.
_Batches: TypeAlias = Iterator[tuple[pa.Array, int]]


def parquet_file(file: InputFile, column: str | None) -> TokenFile:
    """A column of a Parquet file.

    Raises:
        ValueError: No column is as wanted, or several are.
        FormatError: It is no Parquet file.
        OSError: It cannot be opened, or not be read.
    """
    with open_parquet(file) as parquet:
        schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    field = _chosen_field(schema, column, file.name)

    def batches() -> _Batches:
        with open_parquet(file) as parquet:
            for rows in parquet_columns(parquet, field.name, file.name, num_rows=_num_rows_at_a_time(field)):
                yield rows, (file.num_bytes or 0) * len(rows) // num_rows

    return _column_file(file, field, batches)


def arrow_file(file: InputFile, column: str | None) -> TokenFile:
    """A column of an Arrow IPC file: the file format, which Feather is too, or the stream format.

    Raises:
        ValueError: No column is as wanted, or several are.
        FormatError: It is no Arrow file.
        OSError: It cannot be opened, mapped or read.
    """
    with open_arrow(file) as arrow:
        schema = arrow.schema_arrow
    field = _chosen_field(schema, column, file.name)

    def batches() -> _Batches:
        with open_arrow(file) as arrow:
            for _, rows, num_bytes in arrow.columns(field.name, file.num_bytes or 0):
                if isinstance(rows, FormatError):
                    raise rows
                # One batch may be the whole file, whose map is not to be copied at once.
                yield from slices_of(rows, _num_rows_at_a_time(field), num_bytes)

    return _column_file(file, field, batches)


def _chosen_field(schema: pa.Schema, column: str | None, name: str) -> pa.Field:
    suitable = [field for field in schema if pa.types.is_integer(field.type) or _has_lists(field)]
    chosen = [field for field in suitable if column in {None, field.name}]
    if len(chosen) == 1:
        return chosen[0]
    names = shown_names([field.name for field in suitable]) or "none"
    wanted = "one column" if column is None else f"a column {column!r}"
    raise ValueError(f"{name}: wanted {wanted} of ids or of lists of ids; of that kind it has: {names}")


def _has_lists(field: pa.Field) -> bool:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(field.type) for is_kind in is_list) and bool(pa.types.is_integer(field.type.value_type))


def _num_rows_at_a_time(field: pa.Field) -> int:
    return _NUM_LIST_ROWS if _has_lists(field) else _NUM_ID_ROWS


def _column_file(file: InputFile, field: pa.Field, batches: Callable[[], _Batches]) -> TokenFile:
    def pieces() -> Iterator[Piece]:
        for rows, num_bytes in _without_nulls(batches(), file.name):
            yield Piece(rows.to_numpy(zero_copy_only=False), num_bytes)

    def row_pieces() -> Iterator[RowPiece]:
        num_rows = 0
        for rows, num_bytes in _without_nulls(batches(), file.name):
            ids = rows.flatten()
            bounds = np.zeros(len(rows) + 1, dtype=np.int64)
            np.cumsum(pc.list_value_length(rows).to_numpy(zero_copy_only=False), out=bounds[1:])
            if ids.null_count:
                row = num_rows + int(bounds.searchsorted(_first_null(ids), side="right")) - 1
                raise FormatError(f"{file.name}, row {row}: null where an id should be")
            num_rows += len(rows)
            yield RowPiece(ids.to_numpy(zero_copy_only=False), bounds, num_bytes)

    def joined_pieces() -> Iterator[Piece]:
        for piece in row_pieces():
            yield Piece(piece.ids, piece.num_bytes)

    if _has_lists(field):
        return TokenFile(name=file.name, num_bytes=file.num_bytes, pieces=joined_pieces, row_pieces=row_pieces)
    return TokenFile(name=file.name, num_bytes=file.num_bytes, pieces=pieces)


def _without_nulls(batches: _Batches, name: str) -> _Batches:
    num_rows = 0
    for rows, num_bytes in batches:
        if rows.null_count:
            raise FormatError(f"{name}, row {num_rows + _first_null(rows)}: null where ids should be")
        num_rows += len(rows)
        yield rows, num_bytes


def _first_null(array: pa.Array) -> int:
    index: int = array.is_null().index(pa.scalar(value=True)).as_py()
    return index
