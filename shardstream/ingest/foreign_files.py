"""Token files of other systems: where their ids begin, of what dtype they are, and how many there are.

Nothing here reads the ids themselves. What a header, an index or a metadata file says is compared with the size of the
file, so that one that was cut short is refused before anybody relies on it.

A format is told by what the file begins with (NumPy, llm.c), by a neighbour (Megatron's index), and last by its name.
Raw ids say nothing of themselves: their dtype is given, or taken to be that of the vocabulary, and is then a guess that
whoever reads the ids has to look through.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import FormatError
from shardstream.ingest.flat_ids import checked_npy_header, checked_num_ids, integer_dtype
from shardstream.storage.store import Store

_Dtype = np.dtype[np.integer[Any]]

_NUMPY_MAGIC: Final = b"\x93NUMPY"
_NUMPY_HEADER_BYTES: Final = 2**16  # more than NumPy would read of a header
_LLM_C_HEADER_BYTES: Final = 1024  # 256 int32: magic, version, number of ids, and nothing
_LLM_C_EVALUATION_MAGIC: Final = 20240522
_LLM_C_DTYPES: Final[dict[tuple[int, int], _Dtype]] = {(20240520, 1): np.dtype("<u2"), (20240801, 7): np.dtype("<u4")}
_LLM_C_MAGICS: Final = {_LLM_C_EVALUATION_MAGIC, *(magic for magic, _ in _LLM_C_DTYPES)}

_MEGATRON_MAGIC: Final = b"MMIDIDX\x00\x00"
_MEGATRON_HEADER: Final = struct.Struct("<9sQBQQ")  # magic, version, dtype, sequences, entries of the document index
_MEGATRON_DTYPES: Final = {
    code: np.dtype(name) for code, name in enumerate(("u1", "i1", "<i2", "<i4", "<i8", "<f8", "<f4", "<u2"), start=1)
}
# Of an index, which may have billions of entries, so many are looked at together.
_NUM_ENTRIES_AT_A_TIME: Final = 2**18

_DATATROVE_METADATA_BYTES: Final = 2**16  # three short lines
_DATATROVE_NO_NAME: Final = "Unknown Tokenizer"

_WIDE_BYTES: Final = 4
_COMPRESSED: Final = {".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip"}
_COMPANIONS: Final = {".idx": ".bin", ".index": ".ds", ".metadata": ".ds", ".loss": ".ds"}
_RAW_FORMATS: Final = {".bin": "raw ids (as nanoGPT's .bin)", ".npy": "raw ids named .npy (as OLMo's and Dolma's)"}


class FilePlace(NamedTuple):
    """Where a file is."""

    shown: str
    """What a person calls it."""
    store: Store
    name: str
    """Its name in the store."""

    def size(self) -> int | None:
        """Its bytes, or None where there is no such file."""
        return self.store.size(self.name)

    def beside(self, suffix: str, *, replaced: str = "") -> "FilePlace":
        """The file whose name has ``suffix`` added, in place of the suffix ``replaced``."""
        shown, name = self.shown.removesuffix(replaced), self.name.removesuffix(replaced)
        return FilePlace(shown + suffix, self.store, name + suffix)


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """A file of ids, and how they lie in it: from ``byte_offset`` to its end, without gaps."""

    place: FilePlace
    format: str
    """What wrote it, in words for a person."""
    dtype: _Dtype
    """As the file has it: little-endian, signed or not."""
    num_tokens: int
    byte_offset: int = 0
    num_documents: int | None = None
    """What its index says; None where it has none."""
    tokenizer_name: str | None = None
    """What its metadata say."""
    is_guess: bool = False
    """Whether nothing but the vocabulary speaks for the dtype."""


def foreign_file(place: FilePlace, *, stored_dtype: _Dtype, raw_dtype: str | None) -> ForeignFile:
    """Look at a file and say how its ids lie.

    Args:
        place: Where it is.
        stored_dtype: Of the dataset, as its vocabulary makes it.
        raw_dtype: NumPy's name of the dtype of files that do not say it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is one that belongs to another, is compressed, or does not say its dtype.
        FormatError: It is empty, cut short, or not as its header or index says; or its ids are of another width or byte
            order than ``stored_dtype``.
        StorageError: It cannot be read.
    """
    num_bytes = _checked_size(place)
    head = bytes(place.store.get_range(place.name, 0, min(num_bytes, _LLM_C_HEADER_BYTES)))
    suffix = PurePath(place.name).suffix.lower()
    if head.startswith(_NUMPY_MAGIC):
        file = _numpy(place, num_bytes)
    elif int.from_bytes(head[:4], "little") in _LLM_C_MAGICS:
        file = _llm_c(place, num_bytes, head)
    elif suffix == ".bin" and (index := place.beside(".idx", replaced=place.name[-len(suffix) :])).size() is not None:
        file = _megatron(place, num_bytes, index)
    elif suffix == ".ds":
        file = _datatrove(place, num_bytes, stored_dtype, raw_dtype)
    else:
        file = _raw(place, num_bytes, _RAW_FORMATS.get(suffix, "raw ids"), stored_dtype, raw_dtype)
    if problem := _width_problem(file.dtype, stored_dtype):
        raise FormatError(f"{place.shown}: {file.format}, {problem}")
    if not file.num_tokens:
        raise FormatError(f"{place.shown}: {file.format} without a token; leave it out")
    return file


def checked_raw_dtype(name: str, stored_dtype: _Dtype) -> _Dtype:
    """The dtype that the caller gives for raw files, if such ids can be read where they lie.

    Raises:
        ValueError: It is none of integers, or of another width or byte order than ``stored_dtype``.
    """
    dtype = integer_dtype(name)
    if problem := _width_problem(dtype, stored_dtype):
        raise ValueError(f"dtype is {name!r}: {problem}")
    return dtype


def _width_problem(dtype: "np.dtype[Any]", stored_dtype: _Dtype) -> str | None:
    """Why ids of ``dtype`` are not, bit for bit, those of ``stored_dtype``."""
    remedy = "copy the ids with `shardstream write`"
    if dtype.kind not in "iu":
        return f"values of {dtype.name} are no ids"
    if dtype.itemsize > 1 and dtype.newbyteorder("<") != dtype:
        return f"big-endian ids are not stored so; {remedy}"
    if dtype.itemsize != stored_dtype.itemsize:
        # The embedding of many a model has more rows than its tokenizer has ids.
        padded = ", or give the model's vocab_size if that is beyond 65,536" if dtype.itemsize == _WIDE_BYTES else ""
        return f"ids of {dtype.name}, but a vocabulary of this size is stored as {stored_dtype.name}; {remedy}{padded}"
    return None


def _checked_size(place: FilePlace) -> int:
    suffix = PurePath(place.name).suffix.lower()
    num_bytes = place.size()
    if num_bytes is None:
        raise FileNotFoundError(f"{place.shown}: no such file")
    if suffix in _COMPRESSED:
        raise ValueError(
            f"{place.shown}: compressed, so no window can be read where it lies; decompress it, or copy the ids with "
            "`shardstream write`"
        )
    if suffix in _COMPANIONS:
        raise ValueError(
            f"{place.shown}: belongs to a {_COMPANIONS[suffix]} file, beside which it is found; name that file alone"
        )
    if num_bytes == 0:
        raise FormatError(f"{place.shown}: empty; leave it out")
    return num_bytes


def _numpy(place: FilePlace, num_bytes: int) -> ForeignFile:
    """A NumPy array of one dimension."""
    head = io.BytesIO(place.store.get_range(place.name, 0, min(num_bytes, _NUMPY_HEADER_BYTES)))
    num_tokens, dtype = checked_npy_header(head, place.shown)
    byte_offset = head.tell()
    if byte_offset % dtype.itemsize:  # NumPy itself aligns to 64
        raise FormatError(f"{place.shown}: its ids begin at byte {byte_offset}, no multiple of {dtype.itemsize}")
    checked_num_ids(place.shown, num_bytes - byte_offset, dtype, num_tokens)
    return ForeignFile(place=place, format="NumPy .npy", dtype=dtype, num_tokens=num_tokens, byte_offset=byte_offset)


def _llm_c(place: FilePlace, num_bytes: int, head: bytes) -> ForeignFile:
    """A file that llm.c's data scripts wrote, and those of the many projects that took over its header."""
    magic, version, num_tokens = struct.unpack_from("<iii", head.ljust(12, b"\x00"))
    if magic == _LLM_C_EVALUATION_MAGIC:
        raise FormatError(f"{place.shown}: llm.c's evaluation examples, which are no stream of tokens")
    dtype = _LLM_C_DTYPES.get((magic, version))
    if dtype is None:
        known = " and ".join(f"{version} of magic {magic}" for magic, version in _LLM_C_DTYPES)
        raise FormatError(f"{place.shown}: llm.c's header of version {version} and magic {magic}; known are {known}")
    checked_num_ids(place.shown, num_bytes - _LLM_C_HEADER_BYTES, dtype, num_tokens)
    return ForeignFile(
        place=place, format="llm.c .bin", dtype=dtype, num_tokens=num_tokens, byte_offset=_LLM_C_HEADER_BYTES
    )


def _megatron(place: FilePlace, num_bytes: int, index: FilePlace) -> ForeignFile:
    """The .bin of Megatron-LM, NeMo and datatrove's MegatronDocumentTokenizer; its index lies beside it as .idx."""
    index_bytes = index.size() or 0
    head = bytes(index.store.get_range(index.name, 0, min(index_bytes, _MEGATRON_HEADER.size)))
    if not head.startswith(_MEGATRON_MAGIC) or len(head) != _MEGATRON_HEADER.size:
        raise FormatError(
            f"{index.shown}: no index of Megatron; if it has nothing to do with {place.shown}, give one of the two "
            "another name"
        )
    _, version, code, num_sequences, num_entries = _MEGATRON_HEADER.unpack(head)
    if version != 1 or code not in _MEGATRON_DTYPES:
        raise FormatError(f"{index.shown}: version {version} and dtype code {code}; known are version 1, codes 1 to 8")
    wanted = _MEGATRON_HEADER.size + 12 * num_sequences + 8 * num_entries
    if num_sequences and index_bytes == wanted + num_sequences:
        raise FormatError(f"{index.shown}: has a mode for each sequence; multimodal data are not tokens alone")
    if index_bytes != wanted:
        raise FormatError(
            f"{index.shown}: {index_bytes} bytes, but {num_sequences} sequences and {num_entries} entries of documents "
            f"take {wanted}; it was cut short, or is damaged"
        )
    dtype = _MEGATRON_DTYPES[code]
    num_tokens = _num_contiguous_tokens(index, num_sequences, dtype.itemsize)
    checked_num_ids(place.shown, num_bytes, dtype, num_tokens, source=index.shown)
    # Where in the sequences each document begins, and where the last one ends.
    first, last = _rising_bounds(index, wanted - 8 * num_entries, num_entries)
    if (first, last) != (0, num_sequences):
        raise FormatError(f"{index.shown}: its documents are not those of its {num_sequences} sequences")
    return ForeignFile(
        place=place,
        format="Megatron .bin and .idx",
        dtype=dtype,
        num_tokens=num_tokens,
        num_documents=num_entries - 1,
    )


def _num_contiguous_tokens(index: FilePlace, num_sequences: int, itemsize: int) -> int:
    """How many ids the sequences of Megatron's index hold together, each beginning where the one before it ends."""
    num_tokens = num_passed = 0
    begin = _MEGATRON_HEADER.size
    lengths_in_ids = _numbers(index, begin, num_sequences, "<i4")
    offsets = _numbers(index, begin + 4 * num_sequences, num_sequences, "<i8")
    for lengths, starts in zip(lengths_in_ids, offsets, strict=True):
        stops = num_tokens + np.cumsum(lengths, dtype=np.int64)
        is_wrong = (lengths < 0) | (starts != (stops - lengths) * itemsize)
        if is_wrong.any():
            raise FormatError(
                f"{index.shown}: sequence {num_passed + int(is_wrong.argmax())} does not begin where the one before it "
                "ends; only sequences without gaps are one stream"
            )
        num_tokens = int(stops[-1])
        num_passed += len(lengths)
    return num_tokens


def _rising_bounds(index: FilePlace, offset: int, count: int) -> tuple[int, int]:
    """The first and the last of ``count`` int64 numbers from a byte of an index on; -1 each where there is none.

    Raises:
        FormatError: They fall, or one is below 0.
    """
    first = last = -1
    for numbers in _numbers(index, offset, count, "<i8"):
        first = int(numbers[0]) if first < 0 else first
        if numbers[0] < max(last, 0) or (np.diff(numbers) < 0).any():
            raise FormatError(f"{index.shown}: the bounds of its documents do not follow one another; it is damaged")
        last = int(numbers[-1])
    return first, last


def _numbers(index: FilePlace, offset: int, count: int, dtype: str) -> Iterator[NDArray[np.integer[Any]]]:
    """``count`` numbers of an index from a byte on, some at a time."""
    itemsize = np.dtype(dtype).itemsize
    for first in range(0, count, _NUM_ENTRIES_AT_A_TIME):
        last = min(first + _NUM_ENTRIES_AT_A_TIME, count)
        yield np.frombuffer(
            index.store.get_range(index.name, offset + itemsize * first, offset + itemsize * last), dtype
        )


def _datatrove(place: FilePlace, num_bytes: int, stored_dtype: _Dtype, raw_dtype: str | None) -> ForeignFile:
    """A .ds file of datatrove, beside which an index of documents and a metadata file may lie."""
    name, item_bytes, num_stated = _datatrove_metadata(place.beside(".metadata"))
    dtype = _guessed_dtype(stored_dtype, raw_dtype) if item_bytes is None else np.dtype(f"<u{item_bytes}")
    num_tokens = checked_num_ids(place.shown, num_bytes, dtype, num_stated, source="its metadata file")
    return ForeignFile(
        place=place,
        format="datatrove .ds",
        dtype=dtype,
        num_tokens=num_tokens,
        num_documents=_num_document_ends(place.beside(".index"), num_tokens),
        tokenizer_name=name,
        is_guess=item_bytes is None and raw_dtype is None,
    )


def _datatrove_metadata(metadata: FilePlace) -> tuple[str | None, int | None, int | None]:
    """Tokenizer, bytes of an id, and number of ids; None each where there is no metadata file."""
    if metadata.size() is None:
        return None, None, None
    text = metadata.store.get(metadata.name, max_bytes=_DATATROVE_METADATA_BYTES).decode("utf-8", errors="replace")
    tokenizer, _, rest = text.partition("\n")
    name, _, item_bytes = tokenizer.strip().rpartition("|")
    num_tokens = rest.partition("\n")[0].strip()
    if item_bytes not in {"2", "4"} or not (num_tokens.isascii() and num_tokens.isdigit()):
        raise FormatError(
            f"{metadata.shown}: wanted TOKENIZER|BYTES in the first line, 2 or 4 bytes, and the number of tokens in the "
            f"second; got {text[:80]!r}"
        )
    is_named = name and not name.startswith(_DATATROVE_NO_NAME)
    return name if is_named else None, int(item_bytes), int(num_tokens)


def _num_document_ends(index: FilePlace, num_tokens: int) -> int | None:
    """Documents of datatrove's index, which lists where each ends; None where there is no index."""
    index_bytes = index.size()
    if index_bytes is None:
        return None
    num_documents, rest = divmod(index_bytes, 8)
    _, last = _rising_bounds(index, 0, num_documents)
    if rest or last != num_tokens:
        raise FormatError(
            f"{index.shown}: {index_bytes} bytes that are not the ends of the documents of {num_tokens} tokens; one of "
            "the two files was cut short"
        )
    return num_documents


def _raw(place: FilePlace, num_bytes: int, format_: str, stored_dtype: _Dtype, raw_dtype: str | None) -> ForeignFile:
    """Ids and nothing else."""
    if raw_dtype is None and format_ not in _RAW_FORMATS.values():
        raise ValueError(
            f"{place.shown}: no format that is known; if it holds ids and nothing else, give their dtype, such as "
            f"{stored_dtype.name}"
        )
    dtype = _guessed_dtype(stored_dtype, raw_dtype)
    return ForeignFile(
        place=place,
        format=format_,
        dtype=dtype,
        num_tokens=checked_num_ids(place.shown, num_bytes, dtype),
        is_guess=raw_dtype is None,
    )


def _guessed_dtype(stored_dtype: _Dtype, raw_dtype: str | None) -> _Dtype:
    return stored_dtype if raw_dtype is None else integer_dtype(raw_dtype)
