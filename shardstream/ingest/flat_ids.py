"""Ids that follow one another: ``.npy``, raw bytes, decimal numbers."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import FormatError
from shardstream.format.manifest import MAX_VOCAB_SIZE
from shardstream.ingest.input_file import InputFile, read_block
from shardstream.ingest.token_pieces import Piece, TokenFile

_Dtype = np.dtype[np.integer[Any]]

# A piece and its checked copy fit a core's cache, and the Python around a piece costs nothing.
_PIECE_BYTES: Final = 2**20
_MAX_ID_DIGITS: Final = len(str(MAX_VOCAB_SIZE))
_DECIMAL_CHARACTERS: Final = b"0123456789 \t\n\r\v\f"


def npy_file(file: InputFile) -> TokenFile:
    """A NumPy array of one dimension.

    Raises:
        FormatError: It is no ``.npy`` file, holds something else than integers in one dimension, or its size is not
            the one that its header says.
    """
    with file.decompressed() as (data, _):
        num_ids, dtype = checked_npy_header(data, file.name)
        num_header_bytes = data.tell()
    return _flat_file(file, dtype, num_header_bytes=num_header_bytes, num_ids=num_ids)


def raw_file(file: InputFile, dtype: str) -> TokenFile:
    """Ids and nothing else, in a dtype that the caller knows.

    Raises:
        ValueError: ``dtype`` is none of integers.
        FormatError: The size is no multiple of the dtype's.
    """
    return _flat_file(file, integer_dtype(dtype), num_header_bytes=0, num_ids=None)


def raw_stream(data: BinaryIO, dtype: str, *, name: str) -> TokenFile:
    """The same from a pipe; it can be read once.

    Raises:
        ValueError: ``dtype`` is none of integers.
    """
    checked = integer_dtype(dtype)
    return TokenFile(name=name, num_bytes=None, pieces=lambda: _raw_pieces(data, checked, name=name))


def decimal_stream(data: BinaryIO, *, name: str) -> TokenFile:
    """Decimal ids separated by white space, from a pipe; it can be read once."""
    return TokenFile(name=name, num_bytes=None, pieces=lambda: _decimal_pieces(data, name))


def integer_dtype(name: str) -> _Dtype:
    """The integer dtype that NumPy calls so.

    Raises:
        ValueError: It is none of integers.
    """
    dtype: np.dtype[Any] = np.dtype(object)
    with contextlib.suppress(TypeError, ValueError, SyntaxError):  # what NumPy says of names that it does not know
        dtype = np.dtype(name)
    if dtype.kind not in "iu":
        raise ValueError(f"dtype is {name!r}; wanted NumPy's name of an integer dtype, such as uint16 or >u4")
    return dtype


def checked_npy_header(data: BinaryIO, name: str) -> tuple[int, _Dtype]:
    """Number and dtype of the ids of a ``.npy`` file, which is read up to where they begin.

    Raises:
        FormatError: It is none, or holds something else than integers in one dimension.
    """
    try:
        version = np.lib.format.read_magic(data)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(data)
    except Exception as error:  # NumPy says ValueError or EOFError, a codec what it likes
        raise FormatError(f"{name}: not a .npy file: {error}") from error
    if dtype.kind not in "iu" or len(shape) != 1:
        raise FormatError(f"{name}: shape {shape} and dtype {dtype}; wanted one dimension of integers")
    return shape[0], dtype


def checked_num_ids(
    name: str, num_bytes: int, dtype: _Dtype, num_ids: int | None = None, *, source: str = "its header"
) -> int:
    """How many ids ``num_bytes`` bytes are.

    Args:
        name: What to call the file in messages.
        num_bytes: Of the ids alone; below 0 where the file ends within its header.
        dtype: Of the ids.
        num_ids: What ``source`` says that they are; None where nothing does.
        source: In the same words.

    Raises:
        FormatError: They are not so many, or no whole number of ids.
    """
    if num_ids is not None and num_bytes != num_ids * dtype.itemsize:
        raise FormatError(
            f"{name}: {max(num_bytes, 0)} bytes of ids, but {source} says {num_ids} of {dtype.name}, which take "
            f"{num_ids * dtype.itemsize}; it was cut short, or holds more than that"
        )
    if num_bytes % dtype.itemsize:
        raise FormatError(
            f"{name}: {num_bytes} bytes are no multiple of {dtype.itemsize}, the size of {dtype.name}; "
            "the dtype is another, or the file was cut short"
        )
    return num_bytes // dtype.itemsize


def _flat_file(file: InputFile, dtype: _Dtype, *, num_header_bytes: int, num_ids: int | None) -> TokenFile:
    if file.codec is None and file.num_bytes is not None:
        num_found = checked_num_ids(file.name, file.num_bytes - num_header_bytes, dtype, num_ids)
        if file.is_local:
            return TokenFile(
                name=file.name,
                num_bytes=file.num_bytes,
                pieces=lambda: _mapped_pieces(file.local_path, dtype, num_header_bytes, num_found),
            )

    def pieces() -> Iterator[Piece]:
        with file.decompressed() as (data, stored):
            read_block(data, num_header_bytes, file.name)
            yield from _raw_pieces(data, dtype, name=file.name, num_ids=num_ids, tell=stored.tell)

    return TokenFile(name=file.name, num_bytes=file.num_bytes, pieces=pieces)


def _mapped_pieces(path: str, dtype: _Dtype, num_header_bytes: int, num_ids: int) -> Iterator[Piece]:
    """Pieces of a map: they cost nothing until they are looked at, and a run that resumes passes over them."""
    if not num_ids:
        return  # an empty file cannot be mapped
    ids: NDArray[np.integer[Any]] = np.asarray(
        np.memmap(path, dtype, mode="r", offset=num_header_bytes, shape=(num_ids,))
    )
    for start in range(0, num_ids, _PIECE_BYTES // dtype.itemsize):
        piece = ids[start : start + _PIECE_BYTES // dtype.itemsize]
        yield Piece(piece, piece.nbytes)


def _raw_pieces(
    data: BinaryIO,
    dtype: _Dtype,
    *,
    name: str,
    num_ids: int | None = None,
    tell: Callable[[], int] | None = None,
) -> Iterator[Piece]:
    """Pieces read one after the other; ``tell`` says how much of a compressed file that took."""
    num_read = num_passed = 0
    while block := read_block(data, _PIECE_BYTES, name):
        num_read += len(block)
        if len(block) % dtype.itemsize:  # a whole block is a multiple: this is the last
            checked_num_ids(name, num_read, dtype, num_ids)
        now = tell() if tell else num_read
        yield Piece(np.frombuffer(block, dtype), now - num_passed)
        num_passed = now
    checked_num_ids(name, num_read, dtype, num_ids)


def _decimal_pieces(data: BinaryIO, name: str) -> Iterator[Piece]:
    line, rest = 1, b""
    while block := read_block(data, _PIECE_BYTES, name):
        text = rest + block
        stop = max(map(text.rfind, (b" ", b"\t", b"\n", b"\r", b"\v", b"\f"))) + 1
        if len(text) - stop > _MAX_ID_DIGITS:
            stop = len(text)  # no id, and no reason to gather more of it
        whole, rest = text[:stop], text[stop:]  # the last word may go on in the next block
        yield Piece(_decimal_ids(whole, line, name), len(block))
        line += whole.count(b"\n")
    yield Piece(_decimal_ids(rest, line, name), 0)


def _decimal_ids(text: bytes, first_line: int, name: str) -> NDArray[np.int64]:
    words = text.split()
    if text.translate(None, _DECIMAL_CHARACTERS) or max(map(len, words), default=0) > _MAX_ID_DIGITS:
        raise _no_id(text, first_line, name)
    return np.fromiter(map(int, words), dtype=np.int64, count=len(words))


def _no_id(text: bytes, first_line: int, name: str) -> FormatError:
    line, word = next(
        (line, word)
        for line, row in enumerate(text.split(b"\n"), first_line)
        for word in row.split()
        if not word.isdigit() or len(word) > _MAX_ID_DIGITS
    )
    shown = word[:40].decode("ascii", errors="backslashreplace")
    return FormatError(
        f"{name}, line {line}: {shown!r} is no id; wanted decimal numbers of at most {_MAX_ID_DIGITS} digits, "
        "separated by white space"
    )
