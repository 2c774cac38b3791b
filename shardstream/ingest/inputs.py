"""What a person names as inputs -> files, in an order that does not depend on the disk."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from shardstream.errors import FormatError
from shardstream.format.manifest import FORMAT_NAME, MANIFEST_NAME
from shardstream.ingest.input_file import read_block, readable_file, refuse_archive, suffix_and_codec
from shardstream.ingest.input_places import absolute, files_below, joined, look_at, split_glob

Kind: TypeAlias = Literal["text", "jsonl", "parquet", "arrow"]

_KINDS: Final[dict[str, Kind]] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",  # many public corpora call their JSON lines so
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_MANIFEST_START_BYTES: Final = 2**16
_IS_MANIFEST: Final = re.compile(rf'"format":\s*"{FORMAT_NAME}"'.encode())


class Input(NamedTuple):
    """One file of the inputs."""

    path: str
    """An absolute local path, or a URL as it was given: a process with another working folder finds it too."""
    kind: Kind
    codec: str | None
    """How it is compressed, None where it is not."""
    num_bytes: int | None
    """Size as it is stored; None where the server does not tell."""


class Inputs(NamedTuple):
    """All files of the inputs, in order."""

    files: tuple[Input, ...]
    num_ignored: int
    """Files in folders whose suffixes tell none of the kinds."""


def find_inputs(inputs: Sequence[str], storage_options: Mapping[str, Any] | None) -> Inputs:
    """The files that ``inputs`` name: in their order, and sorted by path within a folder or a glob.

    Of a folder, files at any depth whose suffix tells their kind; of a glob, all that match. Hidden files and links are
    left out of both. A file that is named by itself or by a glob is text, unless its suffix tells something else.

    Args:
        inputs: Local paths and URLs of files, folders and globs (``*``, ``?``, ``[a-z]``, and ``**`` for folders at
            any depth). What exists under the very name is not taken as a glob.
        storage_options: As the fsspec filesystem takes them.

    Raises:
        ValueError: No input is given; a folder has nothing to read; a file is named twice, is a dataset's manifest, is
            no regular file, is an archive, cannot be read from within its compression, or has a name that is not UTF-8.
        ImportError: A package that a URL needs is not installed.
        OSError: An input is not there, or cannot be listed.
    """
    if not inputs:
        raise ValueError("no inputs; name files, folders or globs of text, JSON lines, Parquet or Arrow")
    options = storage_options or {}
    files: dict[str, Input] = {}
    num_ignored = 0
    for given in inputs:
        found = _inputs_of(given, options)
        num_ignored += found.num_ignored
        for file in found.files:
            if file.path in files:
                raise ValueError(
                    f"{file.path}: named twice, the second time by {given!r}; every file may be named once"
                )
            _check(file, options)
            files[file.path] = file
    return Inputs(tuple(files.values()), num_ignored)


def _inputs_of(given: str, options: Mapping[str, Any]) -> Inputs:
    path = absolute(given)
    standing = look_at(path, options)
    if standing is not None and not standing.is_folder:
        return Inputs((_named_input(path, standing.num_bytes),), 0)
    folder, patterns = (path, []) if standing else split_glob(path)
    if standing is None and not patterns:
        raise FileNotFoundError(f"{given}: no such file or folder")
    return _inputs_of_glob(given, folder, patterns, options) if patterns else _inputs_of_folder(given, folder, options)


def _inputs_of_folder(given: str, folder: str, options: Mapping[str, Any]) -> Inputs:
    found = files_below(folder, None, options)
    files = tuple(
        Input(joined(folder, name), _KINDS[suffix], codec, num_bytes)
        for name, num_bytes in found
        for suffix, codec in [suffix_and_codec(name)]
        if suffix in _KINDS
    )
    if not files:
        raise ValueError(
            f"{given}: nothing to read in this folder: none of its {len(found)} files ends in {' '.join(_KINDS)}; "
            f"to read others as text, name them by a glob such as {joined(given, '**/*.py')!r}"
        )
    return Inputs(files, len(found) - len(files))


def _inputs_of_glob(given: str, folder: str, patterns: Sequence[str], options: Mapping[str, Any]) -> Inputs:
    standing = look_at(folder, options)
    max_depth = None if "**" in patterns else len(patterns)
    files = tuple(
        _named_input(joined(folder, name), num_bytes)
        for name, num_bytes in (files_below(folder, max_depth, options) if standing and standing.is_folder else ())
        if _matches(name.split("/"), patterns)
    )
    if not files:
        raise FileNotFoundError(f"{given}: matches no file; '**' stands for folders at any depth, '*' for one name")
    return Inputs(files, 0)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _named_input(path: str, num_bytes: int | None) -> Input:
    suffix, codec = suffix_and_codec(path)
    return Input(path, _KINDS.get(suffix, "text"), codec, num_bytes)


def _check(file: Input, options: Mapping[str, Any]) -> None:
    try:
        file.path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{file.path!r}: the name is not UTF-8, and no record of it could be kept; rename it"
        ) from None
    refuse_archive(file.path, member="**/*.txt")
    if file.codec is not None and file.kind in {"parquet", "arrow"}:
        raise ValueError(f"{file.path}: cannot be read from within {file.codec}; decompress it first")
    if file.path.endswith(f"/{MANIFEST_NAME}") and _is_manifest(file.path, options):
        raise ValueError(
            f"{file.path}: a dataset's manifest; wanted text that is to become tokens: name its folder no input, "
            "and write a dataset outside the folders that are read"
        )


def _is_manifest(path: str, options: Mapping[str, Any]) -> bool:
    try:
        file = readable_file(path, options)
    except FormatError:
        return False  # who reads it reports it
    with file.open() as data:
        return _IS_MANIFEST.search(read_block(data, _MANIFEST_START_BYTES, path)) is not None
