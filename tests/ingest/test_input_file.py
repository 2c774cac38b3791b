"""Where an input's bytes are."""

import bz2
import gzip
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from shardstream import FormatError, StorageError
from shardstream.ingest.input_file import InputFile, blocks_of, read_block, suffix_and_codec


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


@pytest.mark.parametrize(
    ("path", "suffix", "codec"),
    [
        ("a/b.c/d", "", None),
        ("a.TXT", ".txt", None),
        ("a.jsonl.GZ", ".jsonl", "gzip"),
        ("a.bz2", "", "bz2"),
        ("a.txt.xz", ".txt", "xz"),
        ("zip://a.txt::s3://b/c.zip", ".txt", None),
        ("simplecache::s3://b/c.jsonl.zst", ".jsonl", "zstd"),
        ("https://a/b.jsonl?X-Amz-Signature=a/b.c", ".jsonl", None),
        ("simplecache::http://a/b.jsonl.gz?a.txt\n#c.md", ".jsonl", "gzip"),
        ("https://a/b.txt#c.md", ".txt", None),
        ("s3://a/b?c.txt", ".txt", None),
        ("a?b.txt", ".txt", None),
    ],
)
def test_a_name_tells_the_suffix_and_the_compression(path: str, suffix: str, codec: str | None) -> None:
    """Of a URL with several links, the one that has the path; of a link of the web, without query and fragment."""
    assert suffix_and_codec(path) == (suffix, codec)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".zst", zstandard.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_what_comes_before_damage_is_given(place, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    """A file that was cut short gives what can be decompressed, then an error; a whole one gives all."""
    data = random.Random(0).randbytes(300_000) * 2
    compressed = compress(data[:200_000]) + compress(data[200_000:])
    whole, cut, other = (
        InputFile(place(f"{name}{suffix}", content))
        for name, content in [("whole", compressed), ("cut", compressed[:-100]), ("other", b"something else")]
    )
    given = bytearray()

    with whole.decompressed() as (file, _):
        assert b"".join(blocks_of(file)) == data
    with cut.decompressed() as (file, _), pytest.raises(FormatError, match="^cannot be decompressed to its end: .*end"):
        for block in blocks_of(file):
            given += block
    assert data.startswith(given)
    assert len(given) >= 200_000
    with other.decompressed() as (file, _), pytest.raises(FormatError, match="^cannot be decompressed to its end: "):
        list(blocks_of(file))


def test_a_place_that_fails_is_no_damage(tmp_path: Path) -> None:
    """An error of the place is a StorageError, also below a codec: what lies there may be good."""
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"12"))
    file = InputFile(str(tmp_path / "a.txt.gz"))

    for read in (blocks_of, lambda data: [read_block(data, 1, "it")]):
        with (
            file.decompressed() as (data, stored),
            pytest.raises(StorageError, match="cannot be read to its end: .*closed"),
        ):
            stored.close()
            list(read(data))
