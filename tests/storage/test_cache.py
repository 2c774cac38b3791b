"""A folder of whole, verified shards, bounded at every instant."""

import contextlib
import errno
import fcntl
import itertools
import os
import pwd
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardstream.errors import IntegrityError, StorageError
from shardstream.storage import cache as module
from shardstream.storage.cache import NoRoomError, Partial, Pin, ShardCache, check_bound, default_cache_dir
from tests.storage.shards import Fill, content, entry_of, random_bytes, sha256

PROGRAM = Path(__file__).with_name("cache_processes.py")
ROOT = Path(__file__).parents[2]
SHARDS = [random_bytes(100, number) for number in range(6)]
ENTRIES = [entry_of(data, f"{number}.bin") for number, data in enumerate(SHARDS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> ShardCache:
    """Room for three of the shards."""
    return ShardCache(folder, 300)


def obtain(cache: ShardCache, number: int, **options: object) -> Pin:
    return cache.obtain(ENTRIES[number], Fill(SHARDS[number]), **options)  # type: ignore[arg-type]


def held(cache: ShardCache) -> set[int]:
    """Which of the shards are there."""
    names = {shard.sha256 for shard in cache.shards()}
    return {number for number, entry in enumerate(ENTRIES) if entry.sha256 in names}


def run(*args: object) -> str:
    """What the program prints."""
    program = subprocess.run(
        [sys.executable, PROGRAM, *map(str, args)],
        check=False,
        timeout=110,
        # Coverage in them would take most of the time, and sees all of it elsewhere.
        env={name: value for name, value in os.environ.items() if "COV" not in name} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert program.returncode == 0, program.stdout + program.stderr
    return program.stdout


class TestShards:
    """What comes in, and what it is then."""

    def test_a_shard_comes_once(self, cache: ShardCache, folder: Path) -> None:
        """A shard is filled once, lies under its checksum, read-only, and is found from then on."""
        fill = Fill(SHARDS[0])

        pins = [cache.obtain(ENTRIES[0], fill) for _ in range(3)]

        assert [content(pin) for pin in pins] == [SHARDS[0]] * 3
        assert content(cache.pin(ENTRIES[0])) == SHARDS[0]
        assert fill.num_calls == 1
        assert Path(pins[0]) == folder / f"{sha256(SHARDS[0])}.tokens"
        assert Path(pins[0]).stat().st_mode & 0o777 == 0o444
        assert (cache.counts.num_hits, cache.counts.num_downloads) == (2, 1)

    def test_nothing_is_made_before_the_first_shard(self, cache: ShardCache, folder: Path) -> None:
        """A cache that nobody has used is empty, and has no folder; the folder that is made tells backups to pass."""
        assert cache.pin(ENTRIES[0]) is None
        assert cache.shards() == []
        assert not folder.exists()

        obtain(cache, 0)

        assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")

    def test_a_file_has_its_size_from_its_creation(self, cache: ShardCache, folder: Path) -> None:
        """Promise 6: a shard counts in full while it is being downloaded, and has no name of a shard yet."""
        sizes: list[tuple[str, int]] = []

        def fill(partial: Partial) -> None:
            sizes.extend(
                (path.suffix, path.stat().st_size) for path in folder.iterdir() if str(ENTRIES[0].sha256) in path.name
            )
            partial.write(0, memoryview(SHARDS[0]))

        cache.obtain(ENTRIES[0], fill)

        assert sizes == [(".partial", 100)]

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        data=st.binary(min_size=2, max_size=5000), cuts=st.lists(st.integers(0, 5000), max_size=5), seed=st.randoms()
    )
    def test_bytes_may_come_in_any_order(self, cache: ShardCache, data: bytes, cuts: list[int], seed) -> None:
        """What is written piece by piece, in any order, can be read back at once and is the shard in the end."""
        bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        pieces = list(itertools.pairwise(bounds))
        seed.shuffle(pieces)

        def fill(partial: Partial) -> None:
            for start, stop in pieces:
                partial.write(start, memoryview(data)[start:stop])
            for start, stop in pieces:
                assert b"".join(map(bytes, partial.blocks(start, stop))) == data[start:stop]

        unbounded = ShardCache(cache.folder, None)
        assert content(unbounded.obtain(entry_of(data), fill)) == data
        unbounded.evict(down_to_bytes=0)

    @pytest.mark.parametrize("error", [IntegrityError("wrong"), StorageError("gone"), KeyboardInterrupt()])
    def test_a_download_that_fails_leaves_nothing(self, error: BaseException, cache: ShardCache, folder: Path) -> None:
        """What the download raises is raised as it is; no file is left, and the next try works."""

        def fail(partial: Partial) -> None:
            partial.write(0, memoryview(b"half"))
            raise error

        with pytest.raises(type(error)) as excinfo:
            cache.obtain(ENTRIES[0], fail)

        assert excinfo.value is error
        assert not list(folder.glob("*.partial"))
        assert content(obtain(cache, 0)) == SHARDS[0]

    def test_a_disk_that_fails_during_a_download_is_named(self, cache: ShardCache) -> None:
        """An error of the disk while bytes are written is a StorageError that names the folder."""

        def fail(partial: Partial) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with pytest.raises(StorageError, match=f"{cache.folder}: cannot write a shard: Input/output error"):
            cache.obtain(ENTRIES[0], fail)


DAMAGES = {
    "a bit flip": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "truncation": lambda data: data[:-1],
    "appended bytes": lambda data: data + b"\0",
    "no bytes": lambda _: b"",
    "another shard": lambda _: SHARDS[1],
}


class TestDamage:
    """Promise 5 in the cache."""

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damage_is_found_and_mended(self, damage: str, cache: ShardCache, caplog) -> None:
        """Promise 5: a damaged file is found when it is pinned next, thrown away with a word, and downloaded again."""
        path = Path(obtain(cache, 0))
        path.chmod(0o644)
        path.write_bytes(DAMAGES[damage](SHARDS[0]))
        fill = Fill(SHARDS[0])

        assert cache.pin(ENTRIES[0]) is None
        assert f"{path}: damaged in the cache; it is thrown away and downloaded again" in caplog.text
        assert content(cache.obtain(ENTRIES[0], fill)) == SHARDS[0]
        assert fill.num_calls == 1

    def test_a_file_that_was_touched_is_hashed_once(self, cache: ShardCache, monkeypatch) -> None:
        """A time of modification that is not the cache's own costs one checksum, and no download."""
        path = Path(obtain(cache, 0))
        os.utime(path)
        hashed: list[int] = []

        def checksum(descriptor: int) -> str:
            hashed.append(descriptor)
            return sha256(os.pread(descriptor, 999, 0))

        monkeypatch.setattr(module, "_checksum", checksum)

        assert cache.pin(ENTRIES[0]) is not None
        assert cache.pin(ENTRIES[0]) is not None

        assert len(hashed) == 1

    def test_a_shard_of_another_user(self, cache: ShardCache, monkeypatch) -> None:
        """A file whose times may not be set is used all the same."""
        obtain(cache, 0)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "utime", refuse)

        assert content(cache.pin(ENTRIES[0])) == SHARDS[0]

    def test_rot_that_no_time_tells_of_is_found_by_looking(self, cache: ShardCache, folder: Path) -> None:
        """Promise 5: bytes that changed without a trace are found by taking all checksums; good shards stay."""
        for number in range(3):
            obtain(cache, number)
        path = folder / f"{sha256(SHARDS[1])}.tokens"
        times = path.stat()
        path.chmod(0o644)
        path.write_bytes(DAMAGES["a bit flip"](SHARDS[1]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        looked_at: list[str] = []

        damaged = cache.throw_away_damaged(lambda shard: looked_at.append(shard.sha256))

        assert [shard.sha256 for shard in damaged] == [sha256(SHARDS[1])]
        assert sorted(looked_at) == sorted(sha256(data) for data in SHARDS[:3])
        assert held(cache) == {0, 2}
        assert cache.throw_away_damaged() == []

    def test_a_good_file_in_the_place_of_a_damaged_one_stays(self, cache: ShardCache) -> None:
        """What was replaced, or is gone, between being found damaged and thrown away is let be."""
        path = Path(obtain(cache, 0))
        status = Path(obtain(cache, 1)).stat()

        cache._throw_away(path, status)
        assert content(cache.pin(ENTRIES[0])) == SHARDS[0]

        path.unlink()
        cache._throw_away(path, status)

    @pytest.mark.parametrize("make", ["symlink", "folder"])
    def test_what_is_no_file_is_refused(self, make: str, cache: ShardCache, folder: Path, tmp_path: Path) -> None:
        """A link or a folder under a shard's name is neither read nor deleted: a StorageError names the place."""
        folder.mkdir()
        path = folder / f"{ENTRIES[0].sha256}.tokens"
        if make == "symlink":
            path.symlink_to(tmp_path / "elsewhere")
            (tmp_path / "elsewhere").write_bytes(SHARDS[0])
        else:
            path.mkdir()

        with pytest.raises(StorageError, match=f"{folder}.*: cannot"):
            obtain(cache, 0)

        assert path.is_symlink() or path.is_dir()
        assert cache.shards() == []


class TestBound:
    """Promise 6: what may be there, and what goes."""

    def test_used_longest_ago_goes_first(self, cache: ShardCache) -> None:
        """Shards make room in the order of their last use, as many as needed."""
        for number in (0, 1, 2):
            obtain(cache, number)
        cache.pin(ENTRIES[0])

        obtain(cache, 3)

        assert held(cache) == {0, 2, 3}
        assert cache.counts.num_evictions == 1

    def test_what_is_kept_goes_last_and_for_urgent_ones_only(self, cache: ShardCache) -> None:
        """A shard wanted soon makes room only for one that is wanted now, and after all others."""
        for number in (0, 1, 2):
            obtain(cache, number)
        kept = {str(ENTRIES[number].sha256) for number in (0, 1, 2)}

        with pytest.raises(NoRoomError):
            obtain(cache, 3, kept=kept, is_urgent=False)
        assert held(cache) == {0, 1, 2}
        obtain(cache, 3, kept=kept - {ENTRIES[2].sha256}, is_urgent=True)
        assert held(cache) == {0, 1, 3}
        obtain(cache, 2, kept=kept)
        assert held(cache) == {0, 1, 2}
        obtain(cache, 4, kept=kept)
        assert held(cache) == {1, 2, 4}

    def test_a_pinned_shard_is_never_evicted(self, cache: ShardCache, monkeypatch) -> None:
        """Promise 6: while all room is in use there is no room, after a while an error that says so, and nothing goes."""
        pins = [obtain(cache, number) for number in range(3)]
        monkeypatch.setattr(module, "_WAIT_S", 0.05)

        with pytest.raises(
            StorageError, match=r"waited 0 s: max_cache_bytes is 300, and 300 of them are shards in use"
        ):
            obtain(cache, 3)

        assert [content(pin) for pin in pins] == SHARDS[:3]
        assert {shard.is_pinned for shard in cache.shards()} == {True}
        assert cache.evict(down_to_bytes=0) == []
        assert cache.counts.num_evictions == 0
        pins.pop(1)
        obtain(cache, 3)
        assert held(cache) == {0, 2, 3}

    def test_who_needs_a_shard_waits_for_room(self, cache: ShardCache) -> None:
        """As soon as a shard is released, who waits goes on."""
        pins = [obtain(cache, number) for number in range(3)]
        timer = threading.Timer(0.1, pins.pop)
        timer.start()

        assert content(obtain(cache, 3)) == SHARDS[3]
        timer.join()
        assert held(cache) == {0, 1, 3}

    def test_a_bound_below_one_shard(self, folder: Path, monkeypatch) -> None:
        """Promise 6: a bound that holds not even the shard fails with the figures."""
        monkeypatch.setattr(module, "_WAIT_S", 0.0)

        with pytest.raises(StorageError, match=r"max_cache_bytes is 99, and 0 of them are .*; 0.bin needs 100; raise"):
            obtain(ShardCache(folder, 99), 0)

    def test_a_bound_is_checked_before_anything_is_done(self) -> None:
        """Promise 6: a bound below what is needed is a ValueError with both figures and the reason."""
        check_bound(None, 10**12, reason="whatever")
        check_bound(100, 100, reason="whatever")
        with pytest.raises(ValueError, match=r"max_cache_bytes is 1,000; wanted at least 2,000: two shards"):
            check_bound(1000, 2000, reason="two shards")

    def test_each_makes_room_by_its_own_bound(self, cache: ShardCache, folder: Path) -> None:
        """A cache without a bound fills the folder; one with a bound makes room again."""
        unbounded = ShardCache(folder, None)
        for number in range(5):
            obtain(unbounded, number)
        assert held(unbounded) == {0, 1, 2, 3, 4}

        obtain(cache, 5)

        assert held(cache) == {3, 4, 5}

    def test_evict_on_demand(self, cache: ShardCache) -> None:
        """evict() removes what was used longest ago until so many bytes are left, and tells what."""
        for number in (0, 1, 2):
            obtain(cache, number)

        removed = cache.evict(down_to_bytes=200)

        assert [(shard.sha256, shard.num_bytes, shard.is_pinned) for shard in removed] == [
            (ENTRIES[0].sha256, 100, False)
        ]
        assert [shard.sha256 for shard in cache.shards()] == [ENTRIES[2].sha256, ENTRIES[1].sha256]
        assert len(cache.evict(down_to_bytes=0)) == 2

    def test_only_the_caches_own_files_are_deleted(self, cache: ShardCache, folder: Path) -> None:
        """Promise 6: files of other names, however similar, links and folders survive everything, and count for nothing."""
        folder.mkdir()
        sha, part = "a" * 64, "b" * 32
        similar = [
            f"{sha}.tokens.bak",
            f"{sha[:-1]}.tokens",
            f"{sha.upper()}.tokens",
            f"x{sha}.tokens",
            f"{sha}.partial",
            f"{sha}.{part}.partial~",
            f"{sha}.{part}x.partial",
            f"{sha}.tokens\n",
            ".partial",
            "important.txt",
        ]
        for name in similar:
            (folder / name).write_bytes(b"x" * 1000)
        (folder / f"{'c' * 64}.tokens").symlink_to(folder / "important.txt")
        (folder / f"{'d' * 64}.{part}.partial").mkdir()
        before = sorted(folder.iterdir())

        for number in range(6):
            obtain(cache, number)
        cache.evict(down_to_bytes=0)
        cache.throw_away_damaged()

        assert set(before) <= set(folder.iterdir())
        assert cache.shards() == []
        assert all((folder / name).read_bytes() == b"x" * 1000 for name in similar)


class TestProcesses:
    """What they agree on dies with them."""

    @pytest.mark.parametrize("num_rounds", [30, pytest.param(400, marks=pytest.mark.slow)])
    def test_eight_processes_never_exceed_the_bound(self, num_rounds: int, folder: Path) -> None:
        """Promise 6: eight processes with random shards and one small cache; bytes counted at every instant stay in bound."""
        folder.mkdir()
        (folder / f"{'A' * 64}.tokens").write_bytes(b"not ours")
        max_bytes = 8 * 32_000 + 20_000  # each holds a shard of 32 kB at most, and one more fits

        output = run("crowd", folder, max_bytes, 8, 12, num_rounds)

        figures = re.findall(r"(\d+) hits, (\d+) downloads, (\d+) evictions", output)
        assert len(figures) == 8
        assert sum(int(evictions) for *_, evictions in figures) > 8
        assert not list(folder.glob("*.partial"))
        assert (folder / f"{'A' * 64}.tokens").read_bytes() == b"not ours"

    def test_several_processes_download_a_shard_once(self, folder: Path, tmp_path: Path) -> None:
        """Promise 6: of processes that want one shard, one downloads it and the others wait."""
        run("one", folder, tmp_path / "log")

        assert len((tmp_path / "log").read_text().split()) == 1

    def test_a_process_killed_during_a_download_leaves_nothing_that_stays(self, folder: Path) -> None:
        """Promise 6: what a killed process left counts for nothing, is cleared by the next, and keeps nobody waiting."""
        data = random_bytes(100_000)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, PROGRAM, "hang", folder], stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
            (left,) = folder.glob("*.partial")
            ShardCache(folder, None).evict(down_to_bytes=0)
            assert left.exists()  # it is not left as long as its process lives
            process.kill()
            process.wait()

        assert content(ShardCache(folder, 100_000).obtain(entry_of(data), Fill(data))) == data
        assert not left.exists()

    def test_who_downloads_slowly_is_waited_for(self, cache: ShardCache, monkeypatch) -> None:
        """As long as bytes come, another that wants the same shard waits, however long it takes in all."""
        monkeypatch.setattr(module, "_WAIT_S", 0.5)
        begun = threading.Event()

        def fill(partial: Partial) -> None:
            begun.set()
            for offset in range(100):  # 2 s in all
                time.sleep(0.02)
                partial.write(offset, memoryview(SHARDS[0])[offset : offset + 1])

        thread = threading.Thread(target=lambda: cache.obtain(ENTRIES[0], fill))
        thread.start()
        begun.wait()
        unused = Fill(b"")

        assert content(cache.obtain(ENTRIES[0], unused)) == SHARDS[0]
        assert unused.num_calls == 0
        thread.join()

    def test_who_stands_still_is_not_waited_for_without_end(self, cache: ShardCache, monkeypatch) -> None:
        """A download in which nothing happens any more is an error to all others that want the shard."""
        monkeypatch.setattr(module, "_WAIT_S", 0.1)
        begun, go = threading.Event(), threading.Event()

        def fill(partial: Partial) -> None:
            begun.set()
            go.wait()
            partial.write(0, memoryview(SHARDS[0]))

        thread = threading.Thread(target=lambda: cache.obtain(ENTRIES[0], fill))
        thread.start()
        begun.wait()
        with pytest.raises(StorageError, match="another process is downloading 0.bin and stands still"):
            obtain(cache, 0)
        go.set()
        thread.join()
        assert content(cache.pin(ENTRIES[0])) == SHARDS[0]

    def test_a_shard_that_another_holds_locked(self, cache: ShardCache, monkeypatch) -> None:
        """A file that another process keeps locked is waited for; not without end."""
        monkeypatch.setattr(module, "_WAIT_S", 0.1)
        path = Path(obtain(cache, 0))
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert cache.pin(ENTRIES[0]) is None
            with pytest.raises(StorageError, match="keeps .*tokens locked"):
                obtain(cache, 0)
            threading.Timer(0.05, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
            assert content(obtain(cache, 0)) == SHARDS[0]

    def test_a_shard_evicted_while_it_is_pinned(self, cache: ShardCache, monkeypatch) -> None:
        """Who opened a shard just before it was evicted finds that it is gone, and has it downloaded again."""
        path = Path(obtain(cache, 0))
        flock = fcntl.flock

        def evict_first(descriptor: int, operation: int) -> None:
            path.unlink(missing_ok=True)
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", evict_first)
        assert cache.pin(ENTRIES[0]) is None
        monkeypatch.undo()

        assert content(obtain(cache, 0)) == SHARDS[0]

    def test_a_lock_that_is_never_given_back(self, cache: ShardCache, folder: Path, monkeypatch) -> None:
        """Who cannot have the folder's lock for a minute says so."""
        monkeypatch.setattr(module, "_WAIT_S", 0.1)

        with ShardCache(folder, None)._locked(), pytest.raises(StorageError, match="has held the lock for 0 s"):
            obtain(cache, 0)

    def test_files_that_vanish_are_passed_over(self, cache: ShardCache, monkeypatch) -> None:
        """A shard that another process evicts while the folder is looked through is not counted, nor an error."""
        obtain(cache, 0)
        vanishing = Path(obtain(cache, 1))
        scandir = os.scandir

        @contextlib.contextmanager
        def scan(folder: Path) -> Iterator[Iterator[Any]]:
            with scandir(folder) as files:
                entries = list(files)
                vanishing.unlink()
                yield iter(entries)

        monkeypatch.setattr(os, "scandir", scan)  # it yields an entry whose file has just gone

        assert [shard.sha256 for shard in cache.shards()] == [ENTRIES[0].sha256]
        assert not cache._evict(vanishing)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    if os.geteuid() != 0 or sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("only root may mount a disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class TestFolder:
    """Where it may be, and what is wrong with other places."""

    def test_a_full_disk(self, small_disk: Path) -> None:
        """Promise 6: on a full disk what can go goes first; then an error says what is needed, and nothing is left."""
        cache = ShardCache(small_disk / "cache", None)
        shards = [random_bytes(300_000, number) for number in range(4)]
        for data in shards[:3]:
            cache.obtain(entry_of(data), Fill(data))
        pin = cache.obtain(entry_of(shards[3]), Fill(shards[3]))

        assert content(pin) == shards[3]
        assert len(cache.shards()) == 3
        assert cache.counts.num_evictions == 1
        large = random_bytes(2_000_000)
        with pytest.raises(StorageError, match="No space left on device, and a.bin needs 2,000,000 bytes; free some"):
            cache.obtain(entry_of(large), Fill(large))
        assert content(pin) == shards[3]
        assert [shard.sha256 for shard in cache.shards()] == [sha256(shards[3])]
        assert not list(cache.folder.glob("*.partial"))

    def test_a_file_larger_than_allowed(self, folder: Path) -> None:
        """A limit on the size of files is a StorageError that names the folder, and nothing is left."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        large = random_bytes(100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            with pytest.raises(StorageError, match=f"{folder}: cannot write to the cache: File too large"):
                ShardCache(folder, None).obtain(entry_of(large), Fill(large))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(folder.glob("*.partial"))

    @pytest.mark.parametrize("code", [errno.EOPNOTSUPP, None])
    def test_a_disk_that_gives_no_place_in_advance(self, code: int | None, cache: ShardCache, monkeypatch) -> None:
        """Where place cannot be had in advance, a shard comes all the same."""
        if code is None:
            monkeypatch.delattr(os, "posix_fallocate")
        else:

            def refuse(*_: object) -> None:
                raise OSError(code, "not here")

            monkeypatch.setattr(os, "posix_fallocate", refuse)  # no such disk can be mounted without a kernel module

        assert content(obtain(cache, 0)) == SHARDS[0]

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        """A place where no folder can be is named, with what to do."""
        (tmp_path / "file").write_bytes(b"")

        with pytest.raises(StorageError, match="cannot (read|write to the cache): .*"):
            obtain(ShardCache(tmp_path / "file" / "cache", None), 0)
        with pytest.raises(
            StorageError, match="cannot write to the cache: .*; give cache_dir, a folder on a local disk"
        ):
            ShardCache(tmp_path / "file" / "cache", None).evict(down_to_bytes=0)

    def test_memory_is_no_disk(self, tmp_path: Path) -> None:
        """A cache in /dev/shm, also through a link, is refused."""
        (tmp_path / "link").symlink_to("/dev/shm")

        for folder in ("/dev/shm", "/dev/shm/cache", tmp_path / "link" / "cache"):
            with pytest.raises(ValueError, match="which is memory, not a disk; give a folder on a local disk"):
                ShardCache(folder, None)

    def test_where_it_is_by_default(self, monkeypatch, tmp_path: Path) -> None:
        """XDG_CACHE_HOME decides, then the home; a user without one has to say where."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache_dir() == tmp_path / "shardstream"
        assert ShardCache().folder == tmp_path / "shardstream"

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert default_cache_dir() == tmp_path / "home/.cache/shardstream"

        def unknown(uid: int) -> None:
            raise KeyError(uid)

        monkeypatch.delenv("HOME")
        monkeypatch.setattr(pwd, "getpwuid", unknown)  # as in a container that runs under any number
        with pytest.raises(StorageError, match="no home directory to cache shards in; give cache_dir"):
            default_cache_dir()
