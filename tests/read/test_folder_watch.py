"""The kernel tells of changes."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardstream.read.folder_watch import FolderWatch


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, 1),
        lambda path: path.write_bytes(b"other"),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("moved")),
        lambda path: path.with_name("other").replace(path),
    ],
    ids=["truncated", "written", "deleted", "moved", "replaced"],
)
def test_each_change_is_told_once(change: Callable[[Path], object], tmp_path: Path) -> None:
    """A file that is cut, written, deleted, moved or replaced is told of, at once and until asked; reading is no change."""
    for name in ("shard", "other"):
        (tmp_path / name).write_bytes(b"tokens")
    watch = FolderWatch()
    watch.add(str(tmp_path))
    (tmp_path / "shard").read_bytes()
    assert not watch.has_changed()

    change(tmp_path / "shard")

    assert watch.has_changed()
    assert not watch.has_changed()


def test_what_cannot_be_watched_is_left_alone(tmp_path: Path) -> None:
    """A folder that is missing is no error, and neither is a system that grants no more watches."""
    watch = FolderWatch()
    watch.add(str(tmp_path / "none"))
    many = [FolderWatch() for _ in range(2000)]
    for one in many:
        one.add(str(tmp_path))
    (tmp_path / "file").write_bytes(b"new")

    assert not watch.has_changed()
    assert not many[-1].has_changed()
    assert many[0].has_changed()


def test_threads_may_ask_at_once(tmp_path: Path) -> None:
    """A change is told to one of the threads that ask, and none of them fails."""
    watch = FolderWatch()
    watch.add(str(tmp_path))
    told: list[bool] = []

    def ask(_: int) -> None:
        told.extend(watch.has_changed() for _ in range(2000))

    with ThreadPoolExecutor(4) as executor:
        answers = executor.map(ask, range(4))
        (tmp_path / "file").touch()
        (tmp_path / "file").unlink()
        list(answers)

    told.append(watch.has_changed())
    assert sum(told) in {1, 2}
