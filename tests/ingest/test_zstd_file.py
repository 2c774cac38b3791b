"""zstd read to its end, or an error."""

import io

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shardstream.ingest.zstd_file import ZstdFile

DATA = bytes(range(256)) * 100


def decompressed(data: bytes) -> bytes:
    """All that a file of ``data`` holds."""
    with io.BufferedReader(ZstdFile(io.BytesIO(data))) as file:
        return file.read()


@given(st.lists(st.sampled_from([b"", b"a", DATA, bytes(1_000_000)])))
def test_frames_are_joined(frames: list[bytes]) -> None:
    """A file of several frames holds what they hold, one after the other."""
    assert decompressed(b"".join(map(zstandard.compress, frames))) == b"".join(frames)


@given(st.integers(1, len(zstandard.compress(DATA)) - 1))
def test_a_file_that_was_cut_short_is_an_error(length: int) -> None:
    """Wherever a frame is cut, in the first or a later one, reading it raises."""
    compressed = zstandard.compress(DATA)

    for data in (compressed[:length], compressed + compressed[:length]):
        with pytest.raises(EOFError, match="^the file ends inside a zstd frame: it was cut short$"):
            decompressed(data)


def test_what_is_no_zstd_is_an_error() -> None:
    """Other bytes, before a frame or after one, raise."""
    for data in (b"no zstd at all", zstandard.compress(DATA) + b"no zstd at all"):
        with pytest.raises(zstandard.ZstdError):
            decompressed(data)


def test_it_tells_how_much_was_read() -> None:
    """``tell`` counts decompressed bytes."""
    with io.BufferedReader(ZstdFile(io.BytesIO(zstandard.compress(DATA)))) as file:
        file.read(1234)

        assert file.tell() == 1234
