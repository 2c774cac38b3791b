"""Where an input's bytes are."""

import os
from pathlib import Path

import pytest

from shardstream import StorageError
from shardstream.ingest.input_file import InputFile, read_block


def test_a_local_file_and_an_object_are_described_alike(place) -> None:
    """Size, suffix and compression are known before anything is read; the bytes come decompressed or as they are."""
    file = InputFile(place("a.NPY", b"12345"))

    assert (file.num_bytes, file.suffix, file.codec) == (5, ".npy", None)
    with file.open() as data:
        assert data.read() == b"12345"
    with file.decompressed() as (data, stored):
        assert read_block(data, 3, "a") == b"123"
        assert stored.tell() == 3


def test_the_suffix_of_a_compression_is_left_out(place) -> None:
    """What a compressed file is, its name tells before the last suffix."""
    file = InputFile(place("a.b.bin.zst", b""))

    assert (file.suffix, file.codec) == (".bin", "zstd")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder and a pipe are named."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(FileNotFoundError, match="nothing: no such file$"):
        InputFile(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="^memory://nothing: no such file$"):
        InputFile("memory://nothing")
    with pytest.raises(ValueError, match="a folder; name the files in it$"):
        InputFile(str(tmp_path))
    with pytest.raises(ValueError, match="not a regular file; send its bytes through standard input$"):
        InputFile(str(tmp_path / "pipe"))


def test_a_name_may_hold_what_urls_give_a_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local name with colons, brackets and stars is a local name, also relative to the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a::b[1]*").write_bytes(b"12")

    file = InputFile("a::b[1]*")

    assert (file.is_local, file.local_path, file.num_bytes) == (True, str(tmp_path / "a::b[1]*"), 2)


def test_a_file_url_is_local(tmp_path: Path) -> None:
    """``file://`` is a path."""
    (tmp_path / "a").write_bytes(b"12")

    assert InputFile(f"file://{tmp_path}/a").local_path == str(tmp_path / "a")


def test_what_cannot_be_read_is_an_error_that_names_it(place) -> None:
    """A codec's own error becomes ours."""
    file = InputFile(place("a.bin.gz", b"no gzip"))

    with (
        pytest.raises(StorageError, match="^it: cannot be read to its end: Not a gzipped file"),
        file.decompressed() as (data, _),
    ):
        read_block(data, 1, "it")
