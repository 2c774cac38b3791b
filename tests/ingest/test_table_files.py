"""Parquet and Arrow files: opened, and where they may be cut."""

from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from shardstream import FormatError, StorageError
from shardstream.ingest.input_file import InputFile
from shardstream.ingest.table_files import arrow_unit_offsets, parquet_unit_offsets, translated


def test_row_groups_start_about_where_their_sizes_say(place) -> None:
    """Offsets grow from 0 to the size of the file, in proportion to what each row group takes."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema([("n", pa.int64())]), use_dictionary=False, compression="none") as writer:
        for num_rows in (1000, 3000):
            writer.write_table(pa.table({"n": range(num_rows)}), row_group_size=num_rows)
    file = InputFile(place("a.parquet", bytes(sink.getvalue())))

    start, middle, stop = parquet_unit_offsets(file)

    assert (start, stop) == (0, file.num_bytes)
    assert middle == pytest.approx(stop / 4, rel=0.02)


def test_record_batches_are_taken_as_of_one_size(place) -> None:
    """Their sizes cannot be asked for; a file without any has one offset, its size."""
    table = pa.table({"n": range(40)})
    for num_batches, fractions in ((4, [0, 1 / 4, 1 / 2, 3 / 4, 1]), (0, [0, 1])):
        sink = pa.BufferOutputStream()
        pyarrow.feather.write_feather(table.slice(0, num_batches * 10), sink, chunksize=10)
        file = InputFile(place("a.feather", bytes(sink.getvalue())))

        assert file.num_bytes is not None
        assert arrow_unit_offsets(file) == [int(file.num_bytes * fraction) for fraction in fractions]


def test_bytes_that_make_no_sense_are_told_from_a_place_that_fails() -> None:
    """What pyarrow says of the one becomes a FormatError; the other stays what it is."""
    with pytest.raises(FormatError, match="^a: cannot be read as Arrow: no$"), translated("a", "Arrow"):
        raise pa.ArrowInvalid("no")
    with pytest.raises(StorageError, match="^no$"), translated("a", "Arrow"):
        raise StorageError("no")


def test_a_file_that_cannot_be_opened_is_no_damage(tmp_path: Path) -> None:
    """Its bytes may be good: the error stays what it is."""
    (tmp_path / "a").write_bytes(b"ARROW1")
    file = InputFile(str(tmp_path / "a"))
    (tmp_path / "a").unlink()

    for unit_offsets in (parquet_unit_offsets, arrow_unit_offsets):
        with pytest.raises(FileNotFoundError):
            unit_offsets(file)
