"""What only a disk can do, and what can go wrong there."""

import errno
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardstream.errors import FormatError, StorageError
from shardstream.storage.local_store import LocalStore


def test_partial_files_are_not_listed_and_can_be_swept(tmp_path: Path) -> None:
    """What a killed upload leaves is no object, and goes with delete_partials."""
    store = LocalStore(str(tmp_path))
    upload = store.create("shard")
    upload.write(memoryview(b"abc"))

    assert store.names() == []
    assert len(list(tmp_path.iterdir())) == 1
    store.delete_partials()
    assert list(tmp_path.iterdir()) == []
    upload.abort()


def test_a_lock_held_by_another_process_is_refused_and_dies_with_it(tmp_path: Path) -> None:
    """While another process holds the lock it is refused; once that process is killed it is free."""
    script = f"""
import sys, time
from shardstream.storage.local_store import LocalStore
with LocalStore({str(tmp_path)!r}).lock("journal/lock"):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match="another process is writing here"),
            LocalStore(str(tmp_path)).lock("journal/lock"),
        ):
            raise AssertionError
        process.kill()
        process.wait()
    with LocalStore(str(tmp_path)).lock("journal/lock"):
        pass


def test_a_lock_that_is_let_go_of_is_waited_for(tmp_path: Path) -> None:
    """Who comes while the holder is about to end has the lock then, although the holder took its folder along."""
    store = LocalStore(str(tmp_path))
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock("journal/lock"):
            is_held.set()
            may_end.wait(60)

    def let_go() -> None:
        time.sleep(0.2)  # so that the lock below is waited for
        may_end.set()

    with ThreadPoolExecutor(2) as threads:
        threads.submit(hold)
        is_held.wait(60)
        threads.submit(let_go)
        with store.lock("journal/lock"):
            assert may_end.is_set()


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    """A file or a folder that is a link out of the store is a FormatError, unless links are followed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"s")
    (tmp_path / "inside/sub").mkdir(parents=True)
    (tmp_path / "inside/file").symlink_to(tmp_path / "outside/secret")
    (tmp_path / "inside/folder").symlink_to(tmp_path / "outside")
    store = LocalStore(str(tmp_path / "inside"))

    for name in ("file", "folder/secret"):
        with pytest.raises(FormatError, match=f"{name}: a symbolic link .* trust_locations=True"):
            store.path(name, follow_links=False)
        assert store.path(name, follow_links=True).read_bytes() == b"s"
    assert store.path("sub/plain", follow_links=False) == tmp_path / "inside/sub/plain"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Where a file stands in the way of a folder, the error names the object."""
    (tmp_path / "file").write_bytes(b"")
    store = LocalStore(str(tmp_path / "file"))

    with pytest.raises(StorageError, match="file/x: cannot create"):
        store.put("x", b"", overwrite=True)
    with pytest.raises(StorageError, match="cannot create"), store.lock("journal/lock"):
        raise AssertionError


@pytest.mark.parametrize("has_direct", [True, False])
def test_whole_pages_may_go_past_the_page_cache(
    has_direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages in aligned memory, then anything: the file holds just that, also where the disk takes no direct writes."""
    if not has_direct:

        def refuse_direct(path: str, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real_open(path, flags, mode)

        real_open = os.open
        monkeypatch.setattr(os, "open", refuse_direct)
    data = os.urandom(5 * mmap.PAGESIZE)
    with mmap.mmap(-1, len(data)) as pages:
        pages.write(data)
        upload = LocalStore(str(tmp_path)).create("shard")
        with memoryview(pages) as view:
            for start, stop in ((0, 2), (2, 3), (3, 5)):
                upload.write(view[start * mmap.PAGESIZE : stop * mmap.PAGESIZE])
            for part in (b"", b"tail", view):
                upload.write(memoryview(part))
        upload.commit()

    assert (tmp_path / "shard").read_bytes() == data + b"tail" + data


def test_a_name_too_long_is_reported(tmp_path: Path) -> None:
    """An error of opening is not taken for one of direct writes."""
    with pytest.raises(StorageError, match="xxx: cannot create: File name too long"):
        LocalStore(str(tmp_path)).create("x" * 250)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hard links are not to be had (FAT, some network disks) a put is a rename, and still replaces nothing."""

    def refuse(*_: object) -> None:
        raise OSError(code, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)  # no such disk can be mounted without a kernel module
    store = LocalStore(str(tmp_path))
    store.put("one", b"1", overwrite=False)

    with pytest.raises(StorageError, match="one: it exists already"):
        store.put("one", b"2", overwrite=False)
    assert store.get("one", max_bytes=9) == b"1"
    assert store.names() == ["one"]


def test_another_failure_of_the_link_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that fails for any other reason is a StorageError, and nothing is left behind."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", refuse)  # a disk cannot be broken on demand
    with pytest.raises(StorageError, match="one: cannot write: Input/output error"):
        LocalStore(str(tmp_path)).put("one", b"1", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ordinary_user():
    """Not root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_cannot_be_listed_is_named(request: pytest.FixtureRequest) -> None:
    """A folder without permission to list it is a StorageError, not an empty store."""
    folder = Path(tempfile.mkdtemp())  # below no folder of root's alone
    folder.chmod(0o000)
    try:
        request.getfixturevalue("ordinary_user")
        with pytest.raises(StorageError, match=f"{folder}: cannot list: Permission denied"):
            LocalStore(str(folder)).names()
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.rmdir()


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder or a pipe under an object's name is neither read nor waited for; below a file there is nothing."""
    store = LocalStore(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    store.put("file", b"", overwrite=False)

    with pytest.raises(StorageError, match="pipe: cannot read: not a regular file"):
        store.get("pipe", max_bytes=9)
    with pytest.raises(StorageError, match="pipe: not a regular file"):
        store.size("pipe")
    assert store.size("file/below") is None
    with pytest.raises(StorageError, match="xx: cannot read: File name too long"):
        store.size("x" * 300)


def test_only_partial_files_are_swept(tmp_path: Path) -> None:
    """An object, and a file of somebody else's, stay when partial files are swept."""
    store = LocalStore(str(tmp_path))
    store.put("object", b"", overwrite=False)
    (tmp_path / "mine.partial").write_bytes(b"")

    store.delete_partials()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.partial", "object"]


def test_a_disk_that_fails_is_reported(tmp_path: Path) -> None:
    """An error of writing that has nothing to do with pages is a StorageError."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        upload = LocalStore(str(tmp_path)).create("object")
        os.dup2(full.fileno(), upload._file.fileno())  # no disk is full on demand
        with pytest.raises(StorageError, match="object: cannot write: No space left on device"):
            upload.write(memoryview(b"x"))
        upload.abort()
