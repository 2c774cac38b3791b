"""Where inputs lie."""

import os
import zipfile
from pathlib import Path

import fsspec
import pytest

from shardstream.ingest.input_places import Standing, absolute, files_below, joined, look_at, split_glob


def test_a_local_path_becomes_absolute_and_a_url_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the machine finds the path, whatever its working folder; links are not resolved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/")

    assert absolute("a/../b::[1]") == f"{tmp_path}/b::[1]"
    assert absolute("file:///a/b/") == absolute("local:///a/b") == "/a/b"
    assert absolute("link") == f"{tmp_path}/link"
    assert absolute("memory://a/../b") == "memory://a/../b"


def test_a_file_a_folder_and_nothing_are_told_apart(place) -> None:
    """A file has a size; what stands nowhere is None."""
    path = place("in/a", b"12")

    folder = look_at(path.removesuffix("/a"), {})

    assert look_at(path, {}) == Standing(is_folder=False, num_bytes=2)
    assert folder is not None
    assert folder.is_folder
    assert look_at(f"{path}x", {}) is None


def test_below_a_file_is_nothing(tmp_path: Path) -> None:
    """A path that goes on after a file's name leads nowhere."""
    (tmp_path / "a").touch()

    assert look_at(str(tmp_path / "a/b"), {}) is None


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    """What is neither file nor folder is refused with a remedy."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(
        ValueError, match="pipe: neither a regular file nor a folder; write what it gives to a file first$"
    ):
        look_at(str(tmp_path / "pipe"), {})


def test_files_come_in_one_order_whatever_the_disk_says(place) -> None:
    """Names are sorted as strings with slashes; hidden files, and files in hidden folders, are left out."""
    for name in ("b", "a/z", "a.b", "a/c/d", ".hidden", "a/.git/x"):
        path = place(f"top/{name}", b"123")
    folder = path[: path.index("top") + 3]

    assert files_below(folder, None, {}) == [("a.b", 3), ("a/c/d", 3), ("a/z", 3), ("b", 3)]
    assert files_below(folder, 2, {}) == [("a.b", 3), ("a/z", 3), ("b", 3)]
    assert files_below(folder, 1, {}) == [("a.b", 3), ("b", 3)]


def test_links_and_pipes_below_a_folder_are_left_out(tmp_path: Path) -> None:
    """A link could lead round in a circle, and a pipe has no end."""
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")

    assert files_below(str(tmp_path), None, {}) == [("a", 0)]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """It is no empty folder."""
    with pytest.raises(FileNotFoundError):
        files_below(str(tmp_path / "nowhere"), None, {})


def test_a_folder_that_cannot_be_listed_is_an_error(faults: dict[tuple[str, str], OSError]) -> None:
    """Nor is one below it left out: its files would be missing without a word."""
    for name in ("a", "sub/b", "sub/c/d"):
        fsspec.filesystem("memory").pipe(f"/in/{name}", b"1")
    assert files_below("faulty://in", None, {}) == [("a", 1), ("sub/b", 1), ("sub/c/d", 1)]

    for folder in ("/in", "/in/sub", "/in/sub/c"):
        faults["ls", folder] = OSError(5, "the server is down")
        with pytest.raises(OSError, match="the server is down"):
            files_below("faulty://in", None, {})
        faults.clear()


def test_a_folder_may_list_itself(faults: dict[tuple[str, str], OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    """As stores do that keep an empty object for a folder: it is neither a file in it nor a way round in a circle."""
    fsspec.filesystem("memory").pipe("/in/a", b"1")
    listing = fsspec.filesystem("memory").ls("/in", detail=True)
    itself = [{"name": "/in/", "type": kind, "size": 0} for kind in ("file", "directory")]
    monkeypatch.setattr(fsspec.get_filesystem_class("faulty"), "ls", lambda *_, **__: [*itself, *listing])

    assert files_below("faulty://in", None, {}) == [("a", 1)]


def test_options_reach_the_filesystem() -> None:
    """What the filesystem does not understand, it refuses: so it was asked."""
    with pytest.raises(ValueError, match="mode 'nonsense'"):
        look_at("zip://a::memory://x.zip", {"zip": {"mode": "nonsense"}})


@pytest.mark.parametrize(
    ("folder", "name", "path"),
    [
        ("/a/b", "c", "/a/b/c"),
        ("/", "c", "/c"),
        ("/a::b", "c", "/a::b/c"),
        ("memory://a", "b/c", "memory://a/b/c"),
        ("memory://a/", "b", "memory://a/b"),
        ("memory://", "b", "memory://b"),
        ("simplecache::s3://a", "b", "simplecache::s3://a/b"),
        ("zip://a::s3://b/c.zip", "d", "zip://a/d::s3://b/c.zip"),
    ],
)
def test_a_name_is_put_where_a_path_has_its_path(folder: str, name: str, path: str) -> None:
    """Of a URL with several links, the first that has a path takes it."""
    assert joined(folder, name) == path


@pytest.mark.parametrize(
    ("path", "folder", "components"),
    [
        ("/a/b", "/a/b", []),
        ("/a/*/c?", "/a", ["*", "c?"]),
        ("/[a]", "/", ["[a]"]),
        ("s3://a/**/b", "s3://a", ["**", "b"]),
        ("memory://*", "memory://", ["*"]),
        ("zip://*.txt::memory://a*.zip", "zip://::memory://a*.zip", ["*.txt"]),
    ],
)
def test_a_glob_begins_at_its_first_wildcard(path: str, folder: str, components: list[str]) -> None:
    """What stands before is a folder; without a wildcard, no component is left."""
    assert split_glob(path) == (folder, components)


def test_files_of_an_archive_are_found(tmp_path: Path) -> None:
    """A chained URL is a place as any other."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/x.txt", "12")
        archive.writestr("y.txt", "1")
    url = f"zip://::file://{tmp_path}/a.zip"

    assert files_below(url, None, {}) == [("top/x.txt", 2), ("y.txt", 1)]
    with fsspec.open(joined(url, "y.txt"), "rb") as file:
        assert file.read() == b"1"
