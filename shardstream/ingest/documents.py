"""A folder of text -> documents, in an order that does not depend on the disk."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class Document(NamedTuple):
    """One source text."""

    text: str
    num_bytes: int
    """Size of the file."""
    is_repaired: bool
    """Whether bytes that are no UTF-8 were replaced by U+FFFD."""


def text_files(
    folder: str | os.PathLike[str], *, suffixes: Collection[str], skipped_folders: Collection[str] = ()
) -> list[Path]:
    """The files below a folder whose names end in one of ``suffixes``, sorted by their path. Links are not followed.

    Args:
        folder: Where to look, at any depth.
        suffixes: Such as ``.py``.
        skipped_folders: Names of folders, at any depth, whose files are left out.

    Raises:
        OSError: A folder cannot be listed.
    """
    found = []
    for parent, folder_names, names in os.walk(folder, onerror=_raise):
        folder_names[:] = [name for name in folder_names if name not in skipped_folders]
        paths = (Path(parent, name) for name in names)
        found += [path for path in paths if path.suffix in suffixes and path.is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: path.as_posix())


def read_document(path: Path) -> Document:
    """The text of a file, as UTF-8; bytes that are none are replaced.

    Raises:
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    try:
        return Document(text=data.decode("utf-8"), num_bytes=len(data), is_repaired=False)
    except UnicodeDecodeError:
        return Document(text=data.decode("utf-8", errors="replace"), num_bytes=len(data), is_repaired=True)


def _raise(error: OSError) -> None:
    raise error
