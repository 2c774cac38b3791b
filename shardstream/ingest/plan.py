"""The inputs, cut into parts. The parts follow from the inputs alone, never from who works on them.

A part is what one process tokenizes into a dataset of its own. Small files share a part; a large file is cut where its
kind allows it to be read from the middle: JSON lines at any byte, Parquet at row groups, Arrow files at record batches.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from shardstream.errors import FormatError
from shardstream.ingest.input_file import readable_file
from shardstream.ingest.inputs import Input, Kind, find_inputs

# Large enough that a part's beginning and end cost nothing, small enough that some hundred of them keep every process
# busy to the end, and that what an interruption may lose is small.
_NUM_PARTS: Final = 256
_MIN_PART_BYTES: Final = 2**21
_MAX_PART_BYTES: Final = 2**30
# Each takes some 250 bytes of memory, and a dataset of its own while the job is at work.
_MAX_NUM_PARTS: Final = 100_000


class InputRange(msgspec.Struct, frozen=True):
    """What one part reads of one file: the whole, or ``[start, stop)``."""

    path: str
    kind: Kind
    start: int = 0
    """In bytes of JSON lines (a line belongs where its first byte is), row groups of Parquet, record batches of Arrow."""
    stop: int | None = None
    """Half-open; None is the end of the file."""
    num_bytes: int = 0
    """About how many stored bytes that is; those of all ranges of a file add up to its size."""
    file_bytes: int | None = None
    """Size of the whole file, as it is stored; None where the server does not tell."""


class Plan(NamedTuple):
    """What is to be read, and by whom."""

    parts: tuple[tuple[InputRange, ...], ...]
    """In order: one after the other, they are the inputs. None is empty."""
    num_bytes: int
    """Stored bytes of all files, as far as servers tell."""
    inputs_sha256: str
    """Checksum of the paths and sizes of all files."""
    num_ignored: int
    """Files in folders whose suffixes tell no kind."""

    @property
    def parts_sha256(self) -> str:
        """Checksum of what each part reads: other sizes of parts, or row groups, make other parts of the same inputs."""
        return hashlib.sha256(msgspec.json.encode(self.parts)).hexdigest()


def plan_parts(
    inputs: Sequence[str],
    *,
    part_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Plan:
    """Find the files of ``inputs`` and cut them into parts. The same inputs give the same plan.

    No file is opened but Parquet and Arrow files that are larger than a part, whose footers this process reads, and
    files named ``manifest.json``, which may be a dataset's.

    Args:
        inputs: Files, folders and globs, local or of any URL that fsspec knows; see :func:`find_inputs`.
        part_bytes: Stored bytes of a part at most, at least 1, and so many that they make no more than
            some 100,000 parts; only what cannot be cut makes a larger one. By default a 256th of all, but at least 2 MiB
            and at most 1 GiB.
        storage_options: As the fsspec filesystem takes them.

    Raises:
        ValueError: An argument is wrong, or an input cannot be taken.
        ImportError: A package that a URL needs is not installed.
        OSError: An input is not there, or cannot be listed, or its footer cannot be read.
    """
    if part_bytes is not None and part_bytes < 1:
        raise ValueError(f"part_bytes is {part_bytes}; wanted at least 1, such as {_MIN_PART_BYTES}")
    files, num_ignored = find_inputs(inputs, storage_options)
    num_bytes = sum(file.num_bytes or 0 for file in files)
    if part_bytes is not None and num_bytes // part_bytes > _MAX_NUM_PARTS:
        raise ValueError(
            f"part_bytes is {part_bytes}, which makes some {num_bytes // part_bytes} parts; "
            f"wanted at least {-(-num_bytes // _MAX_NUM_PARTS)}"
        )
    if part_bytes is None:
        part_bytes = min(max(num_bytes // _NUM_PARTS, _MIN_PART_BYTES), _MAX_PART_BYTES)
    ranges = (one for file in files for one in _ranges_of(file, part_bytes, storage_options))
    return Plan(tuple(_packed(ranges, part_bytes)), num_bytes, _inputs_sha256(files), num_ignored)


class _Cut(NamedTuple):
    """A place where a file may be cut, its beginning and its end among them."""

    unit: int
    """In what an InputRange counts in."""
    offset: int
    """About where in the file that is."""


def _ranges_of(file: Input, part_bytes: int, storage_options: Mapping[str, Any] | None) -> Iterator[InputRange]:
    num_bytes = file.num_bytes or 0
    cuts: list[_Cut] = []
    if num_bytes > part_bytes and file.codec is None and file.kind != "text":
        is_lines = file.kind == "jsonl"
        cuts = _line_cuts(num_bytes, part_bytes) if is_lines else _unit_cuts(file, part_bytes, storage_options)
    is_whole = len(cuts) <= 2  # noqa: PLR2004 - no cut but its beginning and its end
    if is_whole:
        yield InputRange(file.path, file.kind, num_bytes=num_bytes, file_bytes=file.num_bytes)
        return
    for one, following in pairwise(cuts):
        num_bytes = following.offset - one.offset
        yield InputRange(file.path, file.kind, one.unit, following.unit, num_bytes, file.num_bytes)


def _line_cuts(num_bytes: int, part_bytes: int) -> list[_Cut]:
    num_ranges = -(-num_bytes // part_bytes)
    offsets = (num_bytes * index // num_ranges for index in range(num_ranges + 1))
    return [_Cut(offset, offset) for offset in offsets]


def _unit_cuts(file: Input, part_bytes: int, storage_options: Mapping[str, Any] | None) -> list[_Cut]:
    """Cuts between row groups or record batches: as few as ``part_bytes`` allows."""
    from shardstream.ingest.table_files import arrow_unit_offsets, parquet_unit_offsets  # noqa: PLC0415 - pyarrow takes 0.1 s

    try:
        stored = readable_file(file.path, storage_options)
        offsets = parquet_unit_offsets(stored) if file.kind == "parquet" else arrow_unit_offsets(stored)
    except FormatError:
        return []  # who reads it reports it
    cuts = [_Cut(0, 0)]
    for unit, (start, stop) in enumerate(pairwise(offsets)):
        if stop - cuts[-1].offset > part_bytes and unit > cuts[-1].unit:
            cuts.append(_Cut(unit, start))
    return [*cuts, _Cut(len(offsets) - 1, offsets[-1])]


def _packed(ranges: Iterable[InputRange], part_bytes: int) -> Iterator[tuple[InputRange, ...]]:
    part: list[InputRange] = []
    num_bytes = 0
    for one in ranges:
        if part and num_bytes + one.num_bytes > part_bytes:
            yield tuple(part)
            part, num_bytes = [], 0
        part.append(one)
        num_bytes += one.num_bytes
    yield tuple(part)


def _inputs_sha256(files: Iterable[Input]) -> str:
    names = hashlib.sha256()
    for file in files:
        names.update(f"{file.num_bytes} {file.path}\0".encode())
    return names.hexdigest()
