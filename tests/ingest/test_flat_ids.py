"""Ids that follow one another: .npy, raw bytes, decimal numbers; whole and damaged, local and remote."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from shardstream import FormatError, StorageError
from shardstream.ingest.flat_ids import decimal_stream, raw_stream
from shardstream.ingest.token_files import open_token_file

IDS = np.arange(1000, dtype=np.int32) * 7
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def npy(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("dtype", ["<i4", ">u8", "<u2", "u1"])
def test_flat_ids_are_read_wherever_they_lie(place, suffix: str, dtype: str, ids_of) -> None:
    """Arrays and raw files of any integer dtype are read alike, local or remote, compressed or not."""
    ids = (IDS % 256).astype(dtype)
    compress = COMPRESSORS[suffix]

    raw = open_token_file(place(f"a.bin{suffix}", compress(ids.tobytes())), dtype=dtype, column=None)
    array = open_token_file(place(f"a.npy{suffix}", compress(npy(ids))), dtype=None, column=None)

    assert ids_of(raw).tolist() == ids_of(array).tolist() == ids.tolist()
    assert raw.row_pieces is None


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_file_that_was_cut_short_is_never_taken_for_whole(place, suffix: str, ids_of) -> None:
    """Every compression, and every header, tells that bytes are missing at the end."""
    compress = COMPRESSORS[suffix]
    data = compress(npy(IDS))
    random_ids = np.random.default_rng(1).integers(0, 2**31, 1000, dtype=np.int32)
    raw = compress(random_ids.tobytes())

    with pytest.raises((FormatError, StorageError), match=r"(cut short|to its end)"):
        ids_of(open_token_file(place(f"a.npy{suffix}", data[:-7]), dtype=None, column=None))
    with pytest.raises((FormatError, StorageError), match=r"(no multiple|to its end)"):
        ids_of(open_token_file(place(f"a.bin{suffix}", raw[: len(raw) // 2 + 1]), dtype="i4", column=None))


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_two_arrays_in_one_file_are_refused(place, suffix: str, ids_of) -> None:
    """What NumPy would not read is not left out in silence."""
    data = COMPRESSORS[suffix](npy(IDS) + npy(IDS))

    with pytest.raises(FormatError, match=r"its header says 1000 of int32, which take 4000; .* more than that$"):
        ids_of(open_token_file(place(f"a.npy{suffix}", data), dtype=None, column=None))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (npy(np.zeros(3)), r"shape \(3,\) and dtype float64; wanted one dimension of integers"),
        (npy(np.zeros((2, 2), int)), r"shape \(2, 2\) and dtype int64; wanted"),
        (npy(np.zeros((), int)), r"shape \(\) and dtype int64; wanted"),
        (npy(np.zeros(3, bool)), r"dtype bool; wanted"),
        (npy(np.array([None], object)), r"dtype object; wanted"),
        (npy(np.zeros(3, [("ü", int)])), r"shape \(3,\) and dtype .*; wanted|not a .npy file"),
        (b"no array", r"not a \.npy file: "),
        (b"", r"not a \.npy file: "),
    ],
)
def test_an_array_of_anything_else_is_refused(place, array: bytes, message: str) -> None:
    """Floats, matrices, objects and other bytes are refused before anything is read; nothing is unpickled."""
    with pytest.raises(FormatError, match=message):
        open_token_file(place("a.npy", array), dtype=None, column=None)


@pytest.mark.parametrize("dtype", ["float32", "bool", "bogus", "", "u2,u2", "(2,)u2", "O", "(1,"])
def test_a_dtype_of_no_integers_is_refused(tmp_path: Path, dtype: str) -> None:
    """What NumPy does not know, or what holds no integers, is named."""
    (tmp_path / "a.bin").write_bytes(b"1234")

    with pytest.raises(ValueError, match="wanted NumPy's name of an integer dtype, such as uint16 or >u4$"):
        open_token_file(str(tmp_path / "a.bin"), dtype=dtype, column=None)


@pytest.mark.parametrize("dtype", ["u2", ">i8"])
def test_raw_ids_come_through_a_pipe(dtype: str, ids_of) -> None:
    """A stream of raw ids is read to its end, and must end with a whole id."""
    ids = IDS.astype(dtype)

    assert ids_of(raw_stream(io.BytesIO(ids.tobytes()), dtype, name="pipe")).tolist() == ids.tolist()
    with pytest.raises(FormatError, match="^pipe: .* are no multiple of "):
        ids_of(raw_stream(io.BytesIO(ids.tobytes()[:-1]), dtype, name="pipe"))


def test_a_pipe_that_gives_little_at_a_time_is_read_whole(ids_of) -> None:
    """Short reads in the middle of an id are no end."""

    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    assert ids_of(raw_stream(Dripping(IDS.tobytes()), "i4", name="pipe")).tolist() == IDS.tolist()


def test_decimal_ids_of_any_spacing(ids_of) -> None:
    """Words are put together across blocks; any white space, and none at the end, will do."""
    text = b"  1 22\t333\n4444\r\n\f55555 \v" + b" ".join(b"%d" % n for n in range(500))

    ids = ids_of(decimal_stream(io.BytesIO(text), name="pipe"))

    assert ids.tolist() == [1, 22, 333, 4444, 55555, *range(500)]


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (b"x", "'x'"),
        (b"-1", "'-1'"),
        (b"+1", r"'\+1'"),
        (b"1_0", "'1_0'"),
        (b"1.0", r"'1\.0'"),
        (b"12345678901", "'12345678901'"),
        ("٣".encode(), r"'\\\\xd9\\\\xa3'"),
        (b"9" * 1000, f"'{'9' * 40}'"),
        (b"\x00\x01", r"'\\\\x00\\\\x01'|'\\x00\\x01'"),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n2\n"], ids=["last", "middle"])
def test_a_word_that_is_no_id_is_named_with_its_line(word: bytes, shown: str, end: bytes, ids_of) -> None:
    """The first bad word is shown with its line, wherever blocks end."""
    text = b"1\n" * 100 + b"2 3 " + word + end

    with pytest.raises(
        FormatError, match=rf"^pipe, line 101: ({shown}) is no id; wanted decimal numbers of at most 10 "
    ):
        ids_of(decimal_stream(io.BytesIO(text), name="pipe"))
