"""Columns of text in Parquet and in every form of Arrow."""

import os
import re
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from shardstream import StorageError
from shardstream.ingest import text_column
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece
from shardstream.ingest.input_file import InputFile
from shardstream.ingest.plan import InputRange
from shardstream.ingest.text_column import arrow_pieces, parquet_pieces

SUFFIXES = [".parquet", ".feather", "stream.arrow", "file.arrow"]
ROWS_AT_ONCE = 25


def table_bytes(table: pa.Table, suffix: str) -> bytes:
    """A table as a file, 25 rows in each row group or record batch."""
    sink = pa.BufferOutputStream()
    if suffix == ".parquet":
        pq.write_table(table, sink, row_group_size=ROWS_AT_ONCE)
    elif suffix == ".feather":
        pyarrow.feather.write_feather(table, sink, chunksize=ROWS_AT_ONCE)
    else:
        new = pa.ipc.new_stream if suffix == "stream.arrow" else pa.ipc.new_file
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=ROWS_AT_ONCE)
    return bytes(sink.getvalue())


def read(
    path: str, start: int = 0, stop: int | None = None, num_bytes: int | None = None
) -> tuple[list[DocumentPiece], list[BadRecord]]:
    """The documents and the bad records of a range."""
    bad: list[BadRecord] = []
    file = InputFile(path)
    kind, pieces_of = ("parquet", parquet_pieces) if path.endswith(".parquet") else ("arrow", arrow_pieces)
    size = file.num_bytes or 0 if num_bytes is None else num_bytes
    one = InputRange(path, kind, start, stop, size)  # type: ignore[arg-type]
    return list(pieces_of(file, one, text_field="text", on_bad_record=bad.append)), bad


def keys_of(rows: Sequence[int], suffix: str) -> list[str]:
    """Keys of rows that are counted through."""
    if suffix == ".parquet":
        return [f"row {row}" for row in rows]
    return [f"batch {row // ROWS_AT_ONCE} row {row % ROWS_AT_ONCE}" for row in rows]


def damaged(path: str, text: str) -> None:
    """Spoil the only place of a local file where ``text`` stands."""
    with open(path, "r+b") as file:  # noqa: PTH123
        data = file.read()
        assert data.count(text.encode()) == 1
        file.seek(data.index(text.encode()))
        file.write(b"\xff" * len(text))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large", "view", "dictionary"],
)
def test_every_row_is_a_document(place, suffix: str, kind: pa.DataType) -> None:
    """In order, under its key, whatever the type of the strings; other columns do not hinder."""
    texts = [f"{row} ü" * (row % 7) for row in range(110)]
    column = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    path = place(f"a{suffix}", table_bytes(pa.table({"n": range(110), "text": column, "text.x": texts}), suffix))

    pieces, bad = read(path)

    assert bad == []
    assert [piece.text for piece in pieces] == texts
    assert [piece.key for piece in pieces] == keys_of(range(110), suffix)
    assert {(piece.source, piece.is_last) for piece in pieces} == {(path, True)}
    size = InputFile(path).num_bytes
    assert sum(piece.num_bytes for piece in pieces) == pytest.approx(size, rel=0.2, abs=500)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", "file.arrow"])
def test_ranges_one_after_the_other_are_the_whole(place, suffix: str) -> None:
    """Row groups and record batches in any cut give the same documents under the same keys."""
    path = place(f"a{suffix}", table_bytes(pa.table({"text": [str(row) for row in range(110)]}), suffix))
    whole = [(piece.text, piece.key) for piece in read(path)[0]]

    for bounds in ([0, 1, 5], [0, 2, 3, 4, 5], [0, 5]):
        parts = [read(path, start, stop)[0] for start, stop in pairwise(bounds)]
        assert [(piece.text, piece.key) for part in parts for piece in part] == whole


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_row_is_no_document(place, suffix: str) -> None:
    """A table without rows has no documents, and nothing is wrong with it."""
    assert read(place(f"a{suffix}", table_bytes(pa.table({"text": pa.array([], pa.string())}), suffix))) == ([], [])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_long_rows_are_taken_few_at_a_time(place, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit the bound on the average, at least one: memory does not grow with a row group."""
    monkeypatch.setattr(text_column, "_BATCH_BYTES", 20_000)
    texts = [os.urandom(4000).hex() for _ in range(25)]
    path = place(f"a{suffix}", table_bytes(pa.table({"text": texts}), suffix))
    sizes = []
    texts_of = text_column._texts_of

    def counted(rows: pa.Array) -> list[Any]:
        sizes.append(len(rows))
        return list(texts_of(rows))

    monkeypatch.setattr(text_column, "_texts_of", counted)

    assert [piece.text for piece in read(path)[0]] == texts
    assert set(sizes) <= {1, 2}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_that_is_no_text_is_passed_over(place, suffix: str) -> None:
    """A null, and bytes that are no UTF-8, are bad records under their keys; their bytes are passed with the next row."""
    texts = [b"a", None, b"\xff", b"b\xed\xa0\x80", b"c"] * 10
    column = pa.array(texts, pa.binary()).view(pa.string())
    path = place(f"a{suffix}", table_bytes(pa.table({"text": column}), suffix))

    pieces, bad = read(path)

    assert [piece.text for piece in pieces] == ["a", "c"] * 10
    assert [record.key for record in bad] == keys_of([row for row in range(50) if 1 <= row % 5 <= 3], suffix)
    assert [record.reason for record in bad[:3]] == [
        "null; wanted text",
        "not UTF-8 at byte 0: invalid start byte; wanted text in UTF-8",
        "not UTF-8 at byte 1: invalid continuation byte; wanted text in UTF-8",
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"a": ["x"], "b": [1]}), "no column 'text'; it has 'a', 'b'; name the column of the text"),
        (pa.table({}), "no column 'text'; it has none; name the column of the text"),
        (pa.table({"text": [1]}), "column 'text' is of 'int64'; wanted one of strings"),
        (pa.table({"text": [b"x"]}), "column 'text' is of 'binary'; wanted one of strings"),
        (pa.table({"text": [["x"]]}), "column 'text' is of 'list<"),
        (pa.table([["x"], ["y"]], names=["text", "text"]), "2 columns 'text'; wanted one"),
    ],
    ids=["missing", "none", "numbers", "bytes", "lists", "two"],
)
def test_a_file_without_the_column_is_one_bad_record(place, suffix: str, table: pa.Table, reason: str) -> None:
    """However many ranges the file has."""
    if suffix == ".feather" and len(set(table.column_names)) < table.num_columns:
        pytest.skip("Feather has no columns of one name")
    path = place(f"a{suffix}", table_bytes(table, suffix))

    for start, num_records in ((0, 1), (1, 0)):
        pieces, bad = read(path, start)

        assert pieces == []
        assert [(record.source, record.key) for record in bad] == [(path, "")] * num_records
        assert all(record.reason.startswith(reason) for record in bad)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_are_not_utf_8_are_one_bad_record(place, suffix: str) -> None:
    """Whether or not that of the text is among them."""
    table = pa.table({"text": ["a"], "needle": ["b"]})
    path = place(f"a{suffix}", table_bytes(table, suffix).replace(b"needle", b"needl\xff"))

    pieces, bad = read(path)

    assert pieces == []
    assert [(record.source, record.key) for record in bad] == [(path, "")]
    assert re.match("cannot be read as (Parquet|Arrow): 'utf-8' codec can't decode", bad[0].reason)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_message_does_not_grow_with_a_name(place, suffix: str) -> None:
    """What a stranger calls a column is shown in part, and without control codes."""
    name = "\x1b[31m" + "x" * 100_000
    nested = pa.array([{name: 1}], pa.struct([(name, pa.int8())]))

    for table in (pa.table({name: [1]}), pa.table({"text": nested})):
        (record,) = read(place(f"a{suffix}", table_bytes(table, suffix)))[1]
        assert record.reason.isprintable()
        assert len(record.reason) < 200


@pytest.mark.parametrize("suffix", [".parquet", ".feather", "file.arrow"])
def test_a_file_that_was_cut_and_cannot_be_opened_has_changed(place, suffix: str) -> None:
    """A range after the first is there because the file could be read: no document is dropped without a word."""
    for content in (b"no such file at all", b""):
        path = place(f"a{suffix}", content)
        with pytest.raises(
            StorageError, match=f"a{suffix}: has changed since the job was planned: .*: cannot be read as "
        ):
            read(path, 2, 4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_bytes_are_one_bad_record(place, suffix: str) -> None:
    """What is no Parquet or Arrow, is empty, or was cut short at its end."""
    data = table_bytes(pa.table({"text": ["x"] * 100}), suffix)

    for content in (b"no such file at all", b"ARROW1", b"", data[: len(data) // 8]):
        path = place(f"a{suffix}", content)

        pieces, bad = read(path)

        assert pieces == []
        assert [record.source for record in bad] == [path]
        assert bad[0].key in {"", "batch 0"}  # the stream format shows its end only to who comes there
        assert bad[0].reason.startswith("cannot be read as ")


def test_a_damaged_row_group_loses_its_rest_alone(tmp_path) -> None:
    """Row groups before and after it are documents, however the file is cut."""
    path = str(tmp_path / "a.parquet")
    texts = [f"{row} needle {row}" for row in range(100)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=25, compression="gzip")
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    with open(path, "r+b") as file:  # noqa: PTH123
        file.seek(group.dictionary_page_offset)
        file.write(b"\xff" * group.total_compressed_size)

    for pieces, bad in (
        read(path),
        tuple(map(sum, zip(*(read(path, n, n + 1) for n in range(4)), strict=True), ([], []))),
    ):
        assert [piece.text for piece in pieces] == texts[:50] + texts[75:]
        assert [record.key for record in bad] == ["row 50"]
        assert bad[0].reason.startswith("cannot be read as Parquet: ")
        assert bad[0].reason.endswith("; the rest of row group 2 is left out")


def test_a_dictionary_of_parquet_is_not_left(place) -> None:
    """A row that points behind its end is damage; other row groups are documents."""
    column = pa.DictionaryArray.from_arrays(pa.array([2] * 50, pa.int32()), ["a", "b", "c"])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": column}), sink, row_group_size=25, compression="none")
    data = bytes(sink.getvalue())
    indices = bytes([2, 25 << 1, 2])  # of two bits each, 25 times the same, the last of three
    assert data.count(indices) == 2
    path = place("a.parquet", data.replace(indices, indices[:2] + b"\x03", 1))

    pieces, bad = read(path)

    assert [(piece.text, piece.key) for piece in pieces] == [("c", f"row {row}") for row in range(25, 50)]
    assert [record.key for record in bad] == ["row 0"]
    assert bad[0].reason.startswith("cannot be read as Parquet: ")


@pytest.mark.parametrize(("suffix", "is_dictionary"), [(".parquet", False), *((suffix, True) for suffix in SUFFIXES)])
def test_rows_that_are_stored_once_are_not_made_at_once(
    place, suffix: str, *, is_dictionary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file may stand for huge rows: of their texts, one is in memory beside the one that is given."""
    num_characters = 2**20
    monkeypatch.setattr(text_column, "_BATCH_BYTES", num_characters)
    column = pa.array(["x" * num_characters] * 64).dictionary_encode()
    if not is_dictionary:
        column = column.cast(pa.string())
    path = place(f"a{suffix}", table_bytes(pa.table({"text": column}), suffix))
    pieces = parquet_pieces if suffix == ".parquet" else arrow_pieces
    one = InputRange(path, "parquet" if suffix == ".parquet" else "arrow", num_bytes=1)
    file = InputFile(path)
    bad: list[BadRecord] = []

    tracemalloc.start()
    num_rows = sum(1 for _ in pieces(file, one, text_field="text", on_bad_record=bad.append))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (num_rows, bad) == (64, [])
    assert peak < 4 * num_characters


@pytest.mark.parametrize(("suffix", "num_kept"), [("file.arrow", 75), ("stream.arrow", 50)])
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_offsets_that_point_outside_are_a_damaged_batch(
    tmp_path, suffix: str, num_kept: int, is_dictionary: bool
) -> None:
    """They are not followed. Batches after it are read where the format says where they begin."""
    path = str(tmp_path / f"a{suffix}")
    texts = ["x" * (12_345 if row == 74 else 3) for row in range(100)]
    column = pa.array(texts)
    if is_dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 74 + [99] + [1] * 25, pa.int32()), pa.array(texts))
    (tmp_path / f"a{suffix}").write_bytes(table_bytes(pa.table({"text": column}), suffix))
    wrong = (99 if is_dictionary else 24 * 3 + 12_345).to_bytes(4, "little")
    data = bytearray((tmp_path / f"a{suffix}").read_bytes())
    assert data.count(wrong) >= 1
    offset = data.rfind(wrong) if not is_dictionary else data.rfind(bytes(96) + wrong) + 96
    data[offset : offset + 4] = (10**9).to_bytes(4, "little")
    (tmp_path / f"a{suffix}").write_bytes(data)

    pieces, bad = read(path)

    assert len(pieces) == num_kept
    assert [record.key for record in bad] == ["batch 2"]
    assert bad[0].reason.startswith("cannot be read as Arrow: ")
