"""Side files: what goes in comes out, in bounded memory, and a stranger's file is refused before it is believed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from shardstream import FormatError, IntegrityError, ShardEntry
from shardstream.format import side_file as code
from shardstream.format.manifest import SideFile
from shardstream.format.side_file import DocumentRows, documents_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Row = tuple[int, str, str]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
COLUMNS: dict[str, list[Any]] = {"start": [0, 3], "source": ["a", "a"], "key": ["1", "2"]}


def entry_of(num_tokens: int, side_file: SideFile) -> ShardEntry:
    return ShardEntry(name="a.bin", num_tokens=num_tokens, num_bytes=2 * num_tokens, documents=side_file)


def side_file_of(rows: Sequence[Row]) -> tuple[bytes, SideFile]:
    documents = DocumentRows()
    for row in rows:
        documents.add(*row)
    return documents.finish()


def read(data: bytes, num_documents: int, *, num_tokens: int = 5) -> code.ShardDocuments:
    """Read a file whose row fits it."""
    side_file = SideFile(
        num_documents=num_documents, num_bytes=max(1, len(data)), sha256=hashlib.sha256(data).hexdigest()
    )
    return documents_of(data, entry_of(num_tokens, side_file), side_file)


def parquet_of(columns: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns) if isinstance(columns, dict) else columns, sink, **options)
    data: bytes = sink.getvalue().to_pybytes()
    return data


@settings(max_examples=30)
@given(st.dictionaries(st.integers(0, 99), st.tuples(TEXTS, TEXTS)), st.integers(1, 5), st.integers(1, 60))
def test_every_token_finds_the_document_before_it(
    texts: dict[int, tuple[str, str]], group_rows: int, group_bytes: int
) -> None:
    """For any documents and any size of row groups, the last one that starts before a token is found."""
    rows = [(start, *texts[start]) for start in sorted(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "_GROUP_ROWS", group_rows)
        patch.setattr(code, "_GROUP_BYTES", group_bytes)
        data, side_file = side_file_of(rows)

    documents = documents_of(data, entry_of(100, side_file), side_file)
    assert side_file.num_documents == len(rows)
    for stop in range(rows[0][0] + 1 if rows else 101, 101):
        assert documents.last_before(stop) == max(row for row in rows if row[0] < stop)


def test_the_file_is_what_any_parquet_reader_reads() -> None:
    """Three columns without nulls, the sources as a dictionary, and nothing of Arrow's in it."""
    data, _ = side_file_of([(0, "a", "1"), (3, "a", "2")])

    file = parquet.ParquetFile(pa.BufferReader(data))
    assert file.read().to_pydict() == COLUMNS
    assert file.metadata.metadata is None
    assert [(file.schema.column(i).physical_type, file.schema.column(i).max_definition_level) for i in range(3)] == [
        ("INT64", 0),
        ("BYTE_ARRAY", 0),
        ("BYTE_ARRAY", 0),
    ]
    assert [file.metadata.row_group(0).column(i).has_dictionary_page for i in range(3)] == [False, True, False]


def test_rows_are_written_in_groups() -> None:
    """A row group has at most 65,536 rows, so that rows do not add up in memory."""
    data, _ = side_file_of([(start, "a", "") for start in range(2**16 + 1)])

    metadata = parquet.ParquetFile(pa.BufferReader(data)).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2**16, 1]


def test_more_text_than_readers_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer refuses what would unpack to more than readers accept, before the row is taken."""
    monkeypatch.setattr(code, "MAX_UNPACKED_BYTES", 50)
    documents = DocumentRows()
    documents.add(0, "é" * 8, "k")

    with pytest.raises(ValueError, match="sources and keys of one shard take more than 50 bytes"):
        documents.add(1, "a", "k")
    assert documents.finish()[1].num_documents == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"other": [1.5, None]},
        {"start": pa.array([0, 3], pa.int64())},
        {"source": pa.array(["a", "a"]).dictionary_encode()},
        {"key": pa.array(["1", "2"], pa.large_string())},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False, "compression": "none"}, {"row_group_size": 1}, {"data_page_version": "2.0"}],
)
def test_any_writer_of_parquet_will_do(changes: dict[str, Any], options: dict[str, Any]) -> None:
    """Encodings, compression, row groups, other columns and Arrow's own types do not matter."""
    documents = read(parquet_of(COLUMNS | changes, **options), 2)

    assert [documents.last_before(stop) for stop in (1, 3, 4)] == [(0, "a", "1"), (0, "a", "1"), (3, "a", "2")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": [3, 0]}, "its starts do not rise within the shard's 5 tokens"),
        ({"start": [0, 0]}, "do not rise"),
        ({"start": [-1, 0]}, "do not rise"),
        ({"start": [0, 5]}, "do not rise"),
        ({"start": pa.array([0, 3], pa.int32())}, "wanted a column 'start' of Parquet's INT64"),
        ({"start": pa.array([0, 3], pa.timestamp("us"))}, "its columns are "),
        ({"start": ["0", "3"]}, "wanted a column 'start'"),
        ({"start": [0, None]}, "its columns are "),
        ({"source": ["a", None]}, "its columns are "),
        ({"source": [b"a", b"b"]}, "its columns are "),
        ({"source": [["a"], ["b"]]}, "wanted a column 'source' of Parquet's BYTE_ARRAY"),
        ({"key": [1, 2]}, "wanted a column 'key' of Parquet's BYTE_ARRAY"),
        ({"start": [0], "source": ["a"], "key": [""]}, "1 rows, the manifest says 2"),
    ],
)
def test_what_is_no_side_file_is_refused(changes: dict[str, Any], message: str) -> None:
    """Columns of other types, nulls, starts that do not rise or lie outside the shard, another number of rows."""
    with pytest.raises(FormatError, match=message):
        read(parquet_of(COLUMNS | changes), 2)


@pytest.mark.parametrize("name", ["start", "source"])
def test_a_column_that_is_there_twice_is_refused(name: str) -> None:
    """Which of two columns of one name is meant, nobody knows."""
    twice = pa.table([*COLUMNS.values(), COLUMNS[name]], names=[*COLUMNS, name])

    with pytest.raises(FormatError, match=f"wanted a column '{name}' .*, got .*'{name}', .*'{name}'"):
        read(parquet_of(twice), 2)


def test_a_column_whose_name_is_no_utf8_is_refused() -> None:
    """Names of columns are a stranger's bytes too."""
    data = parquet_of(COLUMNS | {"other": [1, 2]}, store_schema=False)

    with pytest.raises(FormatError, match="not a Parquet file: .*utf-8"):
        read(data.replace(b"other", b"\xff\xfe\xfd\xfc\xfb"), 2)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_strings_in_other_encodings_are_refused(encoding: str) -> None:
    """An encoding that repeats a long string in a few bytes is refused before it is decoded."""
    data = parquet_of(COLUMNS, use_dictionary=False, column_encoding={"source": encoding})

    with pytest.raises(FormatError, match=rf"column 'source' is encoded as \['{encoding}'\]; wanted PLAIN or a dict"):
        read(data, 2)


def test_a_missing_column_is_named() -> None:
    """A file without one of the columns says which is missing and which are there."""
    with pytest.raises(FormatError, match=r"wanted a column 'key' of Parquet's BYTE_ARRAY, got \['source', 'start'\]"):
        read(parquet_of({"start": [0], "source": ["a"]}), 1)


def test_text_that_is_no_utf8_is_refused() -> None:
    """Bytes that call themselves a string are checked before anybody decodes them."""
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"a"]).buffers())

    with pytest.raises(FormatError, match="not a Parquet file: .*UTF8"):
        read(parquet_of(COLUMNS | {"source": bad}), 2)


def test_every_cut_and_many_flips_are_refused_or_read() -> None:
    """Damage that a checksum vouches for is an error of ours, never a crash."""
    data, side_file = side_file_of([(0, "a", "1"), (3, "b", "2")])
    damaged = [data[:length] for length in range(len(data))]
    damaged += [data[:index] + bytes([data[index] ^ 0x55]) + data[index + 1 :] for index in range(len(data))]

    for spoilt in damaged:
        try:
            documents = read(spoilt, side_file.num_documents)
        except (FormatError, IntegrityError):
            continue
        assert len(documents.starts) == 2


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the columns unpack to is looked at before they are."""
    data = parquet_of({"start": [0], "source": ["a" * 10_000], "key": [""]}, compression="zstd")
    assert len(data) < 5_000
    monkeypatch.setattr(code, "MAX_UNPACKED_BYTES", 9_999)

    with pytest.raises(FormatError, match="its columns unpack to 1.* bytes; readers stop at 9999"):
        read(data, 1)


def test_a_small_file_of_many_rows_is_refused_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are all alike take next to nothing in the file, and are counted before they are read."""
    data = parquet_of({"start": [0] * 100_000, "source": ["a"] * 100_000, "key": [""] * 100_000})
    assert len(data) < 5_000
    monkeypatch.setattr(code, "MAX_UNPACKED_BYTES", 100_000)

    with pytest.raises(FormatError, match="the manifest says 100000 rows; readers stop at 6250"):
        read(data, 100_000, num_tokens=100_000)


def varint(number: int) -> bytes:
    """As Thrift writes a positive number in its compact form."""
    zigzag, groups = 2 * number, []
    while zigzag:
        groups.append(zigzag & 0x7F)
        zigzag >>= 7
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def restated(data: bytes, stated: int, instead: int) -> bytes:
    """The file with another number in its footer; it takes as many bytes."""
    before, after = varint(stated), varint(instead)
    after = bytes([*(byte | 0x80 for byte in after), *[0x80] * (len(before) - len(after) - 1), 0])[: len(before)]
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    assert data.count(before, start)
    return data[:start] + data[start:].replace(before, after)


def test_a_file_that_lies_about_its_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the columns become is looked at too, and no row group is read after the one that is too large."""
    rows = {"start": [0, 3], "source": ["a" * 5_000_000, ""], "key": ["", ""]}
    data = parquet_of(rows, compression="zstd", row_group_size=1, write_statistics=False, use_dictionary=False)
    stated = parquet.read_metadata(pa.BufferReader(data)).row_group(0).column(1).total_uncompressed_size
    lying = restated(data, stated, 50)
    monkeypatch.setattr(code, "MAX_UNPACKED_BYTES", 10**6)
    assert parquet.read_metadata(pa.BufferReader(lying)).row_group(0).column(1).total_uncompressed_size == 50

    with pytest.raises(FormatError, match="its columns unpack to more than they say; readers stop at 1000000 bytes"):
        read(lying, 2)


def test_row_groups_that_hold_more_than_the_file_says_are_refused() -> None:
    """The rows of all groups are counted, whatever the file says that they are."""
    columns = {"start": range(1000), "source": ["a"] * 1000, "key": [""] * 1000}
    lying = restated(parquet_of(columns, row_group_size=600, write_statistics=False), 1000, 2)
    assert parquet.read_metadata(pa.BufferReader(lying)).num_rows == 2

    with pytest.raises(FormatError, match="1000 rows, the manifest says 2"):
        read(lying, 2)


def test_another_file_than_the_row_describes_is_refused_unread() -> None:
    """A file that is cut, has bytes after it, or has another checksum, is not parsed."""
    data, side_file = side_file_of([(0, "a", "1")])

    for spoilt, message in (
        (data[:-1], f"truncated: .* {len(data)}"),
        (data + b"x", f"too long: .* {len(data)}"),
        (bytes(len(data)), "checksum is sha256 .*, the manifest says"),
    ):
        with pytest.raises(IntegrityError, match=message):
            documents_of(spoilt, entry_of(5, side_file), side_file)
