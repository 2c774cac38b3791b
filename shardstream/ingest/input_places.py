"""Where inputs lie, local or behind any URL that fsspec knows: what stands at a path, which files are below a folder.

Local folders are listed with ``os.scandir``: fsspec makes a dictionary for each file, which shows at 100,000 of them.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

_WILDCARD: Final = re.compile(r"[*?[]")


class Standing(NamedTuple):
    """What stands at a path."""

    is_folder: bool
    num_bytes: int | None
    """Size of a file; None where the server does not tell."""


def absolute(path: str) -> str:
    """The path that every process of this machine understands: ``file://`` dropped, links kept, other URLs as they are."""
    scheme, separator, rest = path.partition("://")
    if separator and scheme not in {"file", "local"}:
        return path
    return os.path.abspath(rest if separator else path)  # noqa: PTH100 - no links resolved


def look_at(path: str, options: Mapping[str, Any]) -> Standing | None:
    """What stands at an absolute path; None where nothing does.

    Raises:
        ValueError: It is neither a file nor a folder, or fsspec does not know the scheme.
        ImportError: The scheme needs a package that is not installed.
        OSError: It cannot be asked for.
    """
    try:
        if _is_url(path):
            fs, name = _filesystem(path, options)
            info = fs.info(name)
            kind, num_bytes = info["type"], info.get("size")
        else:
            status = os.stat(path)  # noqa: PTH116 - a link that is named is followed
            is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
            kind, num_bytes = "file" if is_file else "directory" if is_folder else "other", status.st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    if kind not in {"file", "directory"}:
        raise ValueError(f"{path}: neither a regular file nor a folder; write what it gives to a file first")
    return Standing(kind == "directory", num_bytes)


def files_below(folder: str, max_depth: int | None, options: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Names below a folder, with slashes, and sizes of its files, sorted by name. Hidden ones and links are left out.

    Args:
        folder: An absolute path.
        max_depth: How far to go down, 1 for the folder itself; None is all the way.
        options: As the fsspec filesystem takes them.

    Raises:
        OSError: A folder cannot be listed.
    """
    return sorted(_files_at_url(folder, max_depth, options) if _is_url(folder) else _local_files(folder, max_depth))


def joined(folder: str, name: str) -> str:
    """The path of a file below a folder, which may be a URL, also one of several links such as ``simplecache::s3://``."""
    before, link, after = path_link(folder)
    return f"{before}{link}{'' if link.endswith('/') else '/'}{name}{after}"


def split_glob(path: str) -> tuple[str, list[str]]:
    """The folder before the first component with a wildcard, and the components from there; no components, no glob."""
    before, link, after = path_link(path)
    components = link.split("/")
    first = next((index for index, name in enumerate(components) if _WILDCARD.search(name)), len(components))
    folder = "/".join(components[:first])
    return f"{before}{folder}{'/' if folder.endswith((':/', '://')) or not folder else ''}{after}", components[first:]


def _is_url(path: str) -> bool:
    return "://" in path


def path_link(path: str) -> tuple[str, str, str]:
    """The link of a chained URL that holds the path, what stands before it and what after it."""
    if not _is_url(path):
        return "", path, ""  # a local name may hold what URLs give a meaning to
    links = path.split("::")
    index = next(index for index, link in enumerate(links) if "://" in link)
    return (
        "".join(f"{link}::" for link in links[:index]),
        links[index],
        "".join(f"::{link}" for link in links[index + 1 :]),
    )


def _filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    import fsspec  # noqa: PLC0415 - 50 ms that only its users pay

    return fsspec.core.url_to_fs(url, **options)  # type: ignore[no-any-return]


def _files_at_url(folder: str, max_depth: int | None, options: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    fs, root = _filesystem(folder, options)
    if max_depth is None and _lists_all_at_once(fs):
        for path, info in fs.find(root, detail=True).items():
            name = _name_below(path, root)
            if info["type"] == "file" and not any(component.startswith(".") for component in name.split("/")):
                yield name, info.get("size")
        return
    below = [(root, 1)]
    while below:
        parent, depth = below.pop()
        for info in fs.ls(parent, detail=True):
            path = info["name"].rstrip("/")
            if path == parent.rstrip("/") or path.rpartition("/")[2].startswith("."):
                continue  # some list the folder itself as well
            if info["type"] == "file":
                yield _name_below(path, root), info.get("size")
            elif info["type"] == "directory" and depth != max_depth:
                below.append((path, depth + 1))


def _lists_all_at_once(fs: Any) -> bool:
    """Whether one listing gives all files at any depth, as of object stores; fsspec's own walk omits what fails."""
    from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

    return isinstance(fs, AsyncFileSystem) and type(fs)._find is not AsyncFileSystem._find  # noqa: SLF001


def _name_below(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/")).lstrip("/")


def _local_files(folder: str, max_depth: int | None) -> Iterator[tuple[str, int]]:
    below = [("", 1)]
    while below:
        parent, depth = below.pop()
        with os.scandir(os.path.join(folder, parent)) as entries:  # noqa: PTH118 - 10 times as fast
            for entry in entries:
                if entry.name.startswith(".") or entry.is_symlink():
                    continue
                if entry.is_file(follow_symlinks=False):
                    yield parent + entry.name, entry.stat(follow_symlinks=False).st_size
                elif entry.is_dir(follow_symlinks=False) and depth != max_depth:
                    below.append((f"{parent}{entry.name}/", depth + 1))
