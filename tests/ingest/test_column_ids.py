"""Columns of ids and of lists of ids, in Parquet and in every form of Arrow."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from shardstream import FormatError
from shardstream.ingest.token_files import open_token_file
from shardstream.ingest.token_pieces import TokenFile

IDS = np.arange(1000, dtype=np.int32) * 7
ROWS = [[1, 2, 3], [], [4], [5, 6]]
COLUMN_SUFFIXES = [".parquet", ".feather", "stream.arrow", "file.arrow"]


def rows_of(file: TokenFile) -> list[list[int]]:
    """All rows."""
    assert file.row_pieces is not None
    return [
        piece.ids[start:stop].tolist()
        for piece in file.row_pieces()
        for start, stop in zip(piece.bounds[:-1], piece.bounds[1:], strict=True)
    ]


def table_bytes(table: pa.Table, suffix: str) -> bytes:
    """A table as the bytes of a file: Parquet, Feather, or one of the two formats that ``.arrow`` may be."""
    sink = pa.BufferOutputStream()
    if suffix == ".parquet":
        pq.write_table(table, sink, row_group_size=250)
    elif suffix == ".feather":
        pyarrow.feather.write_feather(table, sink, chunksize=250)
    else:
        new = pa.ipc.new_stream if suffix == "stream.arrow" else pa.ipc.new_file
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=250)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("suffix", COLUMN_SUFFIXES)
def test_a_column_of_ids_is_flat(place, suffix: str, ids_of) -> None:
    """A column of ids is read in order; columns of other kinds do not hinder."""
    table = pa.table({"text": ["x"] * 1000, "ids": IDS, "score": np.zeros(1000)})

    file = open_token_file(place(f"a{suffix}", table_bytes(table, suffix)), dtype=None, column=None)

    assert ids_of(file).tolist() == ids_of(file).tolist() == IDS.tolist()
    assert file.row_pieces is None


@pytest.mark.parametrize("suffix", COLUMN_SUFFIXES)
@pytest.mark.parametrize(
    "kind", [pa.list_(pa.uint16()), pa.large_list(pa.int64()), pa.list_(pa.int32(), 2)], ids=["list", "large", "fixed"]
)
def test_a_column_of_lists_has_rows(place, suffix: str, kind: pa.DataType, ids_of) -> None:
    """Rows keep their bounds, also across batches; flat, they are joined."""
    is_fixed = pa.types.is_fixed_size_list(kind)
    rows = [[n, n + 1] if is_fixed else list(range(n % 5)) for n in range(1000)]
    table = pa.table({"ids": pa.array(rows, kind), "mask": pa.array(rows, kind)})

    file = open_token_file(place(f"a{suffix}", table_bytes(table, suffix)), dtype=None, column="ids")

    assert rows_of(file) == rows
    assert ids_of(file).tolist() == list(itertools.chain(*rows))


@pytest.mark.parametrize("suffix", COLUMN_SUFFIXES)
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([0] * 7 + [None], "row 7: null where ids should be"),
        ([[0]] * 7 + [None], "row 7: null where ids should be"),
        ([[0, 1]] * 6 + [[], [2, None]], "row 7: null where an id should be"),
    ],
    ids=["id", "row", "id in row"],
)
def test_a_null_is_refused(place, suffix: str, column: list[Any], message: str, ids_of) -> None:
    """A null is no id and no document; the message names its row."""
    table = pa.table({"ids": pa.array(column)})

    with pytest.raises(FormatError, match=message):
        ids_of(open_token_file(place(f"a{suffix}", table_bytes(table, suffix)), dtype=None, column=None))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (None, "wanted one column of ids or of lists of ids; of that kind it has: 'ids', 'mask'$"),
        ("text", "wanted a column 'text' of ids or of lists of ids; of that kind it has: 'ids', 'mask'$"),
    ],
)
def test_a_column_must_be_clear(place, column: str | None, message: str) -> None:
    """Two suitable columns, and one that does not suit, are wrong arguments."""
    table = pa.table({"ids": ROWS, "mask": [1, 2, 3, 4], "text": ["a"] * 4, "deep": [[[1]]] * 4})

    with pytest.raises(ValueError, match=message):
        open_token_file(place("a.parquet", table_bytes(table, ".parquet")), dtype=None, column=column)


def test_no_column_at_all(place) -> None:
    """A file without any suitable column says so."""
    data = table_bytes(pa.table({"text": ["a"]}), ".parquet")

    with pytest.raises(ValueError, match="of that kind it has: none$"):
        open_token_file(place("a.parquet", data), dtype=None, column=None)


@pytest.mark.parametrize("suffix", COLUMN_SUFFIXES)
def test_damaged_columns_are_refused(place, suffix: str, ids_of) -> None:
    """Other bytes under a column file's name, and a file that was cut short, are FormatErrors."""
    data = table_bytes(pa.table({"ids": IDS}), suffix)

    for damaged in (b"no such file at all", b"ARROW1", b"", data[: len(data) // 2]):
        with pytest.raises(FormatError, match="cannot be read as (Parquet|Arrow)"):
            ids_of(open_token_file(place(f"a{suffix}", damaged), dtype=None, column=None))


@pytest.mark.parametrize("suffix", COLUMN_SUFFIXES)
def test_a_name_that_is_not_utf_8_is_refused(place, suffix: str) -> None:
    """As other damage; the message names the file."""
    data = table_bytes(pa.table({"needle": IDS}), suffix).replace(b"needle", b"needl\xff")
    path = place(f"a{suffix}", data)

    with pytest.raises(FormatError, match=f"{suffix}: cannot be read as (Parquet|Arrow): 'utf-8' codec can't decode"):
        open_token_file(path, dtype=None, column=None)


def test_offsets_that_point_outside_are_refused(tmp_path: Path, ids_of) -> None:
    """A list whose offsets leave its values is refused, not read from beyond."""
    data = bytearray(table_bytes(pa.table({"ids": [[1] * 12_345]}), "file.arrow"))
    offset = data.rfind((12_345).to_bytes(4, "little"))
    data[offset : offset + 4] = (10**9).to_bytes(4, "little")
    (tmp_path / "a.arrow").write_bytes(data)

    with pytest.raises(FormatError, match="cannot be read as Arrow"):
        ids_of(open_token_file(str(tmp_path / "a.arrow"), dtype=None, column=None))
