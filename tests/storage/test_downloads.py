"""Shards on their way from a store into the cache: checked, ahead of their use, and tidied up after."""

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardstream.errors import IntegrityError, StorageError
from shardstream.format.manifest import ShardEntry
from shardstream.storage import downloads as module
from shardstream.storage.cache import Partial, ShardCache
from shardstream.storage.downloads import Downloads, Expected, Piece
from shardstream.storage.local_store import LocalStore
from shardstream.storage.store import Store
from tests.storage.shards import Fill, content, entry_of, random_bytes

SHARDS = [random_bytes(1000, number) for number in range(6)]
ENTRIES = [entry_of(data, f"{number}.bin") for number, data in enumerate(SHARDS)]
WAIT_S = 30


class GatedStore(LocalStore):
    """Answers when it is let, and counts what it is asked for."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[str, int, int]] = []
        self.is_asked = threading.Event()

    def get_range(self, name: str, start: int, stop: int) -> memoryview:
        self.asked.append((name, start, stop))
        self.is_asked.set()
        assert self.gate.wait(WAIT_S)
        return super().get_range(name, start, stop)

    @property
    def names_asked(self) -> list[str]:
        return list(dict.fromkeys(name for name, *_ in self.asked))


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    """A store that holds all shards."""
    store = GatedStore(str(tmp_path / "store"))
    for entry, data in zip(ENTRIES, SHARDS, strict=True):
        store.put(entry.name, data, overwrite=False)
    return store


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", None)


Begin = Callable[..., Downloads]


@pytest.fixture
def begin(store: GatedStore, cache: ShardCache) -> Iterator[Begin]:
    """Downloads that are closed after the test."""
    begun: list[Downloads] = []

    def begin(
        entries: Sequence[ShardEntry] = ENTRIES,
        store: Store = store,
        cache: ShardCache = cache,
        check_unchanged: Callable[[], None] = lambda: None,
    ) -> Downloads:
        begun.append(Downloads(store, cache, entries, check_unchanged))
        return begun[-1]

    yield begin
    store.gate.set()
    for downloads in begun:
        downloads.close()


def expected(in_use: Sequence[int] = (), coming: Sequence[int] = (), pieces: Sequence[Piece] = ()) -> Expected:
    return Expected(in_use=in_use, coming=coming, pieces=pieces)


def await_downloads(cache: ShardCache, num_downloads: int) -> None:
    event = threading.Event()
    for _ in range(WAIT_S * 1000):
        if cache.counts.num_downloads >= num_downloads:
            return
        event.wait(0.001)
    raise AssertionError(cache.counts)


class Owner:
    """Somebody who expects shards."""


class TestObtain:
    """One shard, now."""

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        data=st.binary(min_size=2, max_size=3000).filter(lambda data: len(data) % 2 == 0),
        range_bytes=st.integers(7, 4000),
        header=st.integers(0, 100),
        is_stored=st.booleans(),
    )
    def test_a_shard_is_what_was_written(  # noqa: PLR0917 - pytest and Hypothesis pass by name
        self, data: bytes, range_bytes: int, header: int, is_stored: bool, store: GatedStore, begin: Begin
    ) -> None:
        """Raw with a header or without, or compressed; in ranges of any length: the cache holds the raw bytes."""
        stored = zstandard.compress(data) if is_stored else None
        entry = entry_of(data, "object", stored=stored, byte_offset=0 if is_stored else header)
        store.put("object", stored or b"\0" * header + data, overwrite=True)
        store.asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "RANGE_BYTES", range_bytes)
            downloads = begin([entry])

            assert content(downloads.obtain(0)) == data
            downloads.cache.evict(down_to_bytes=0)
        assert max(stop - start for _, start, stop in store.asked) <= range_bytes

    def test_a_compressed_shard_of_many_blocks(self, store: GatedStore, begin: Begin) -> None:
        """A compressed shard that is decompressed in many steps, out of one range, is what was written."""
        data = random_bytes(1_000_000)
        stored = zstandard.compress(data)
        store.put("object", stored, overwrite=False)

        assert content(begin([entry_of(data, "object", stored=stored)]).obtain(0)) == data
        assert len(store.asked) == 1

    def test_a_shard_lies_where_its_location_says(self, store: GatedStore, begin: Begin) -> None:
        """An adopted shard is read at its location, not at its name."""
        store.put("elsewhere/x.bin", SHARDS[0], overwrite=False)

        row = ShardEntry(
            name="gone.bin", num_tokens=500, num_bytes=1000, sha256=ENTRIES[0].sha256, location="elsewhere/x.bin"
        )

        assert content(begin([row]).obtain(0)) == SHARDS[0]

    def test_many_threads_want_one_shard(self, store: GatedStore, begin: Begin) -> None:
        """Promise 6: threads that want one shard at once download it once."""
        downloads = begin()
        pins: list[bytes] = []
        threads = [threading.Thread(target=lambda: pins.append(content(downloads.obtain(0)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert pins == [SHARDS[0]] * 8
        assert store.asked == [("0.bin", 0, 1000)]

    def test_no_more_ranges_than_told_are_under_way(self, store: GatedStore, begin: Begin, monkeypatch) -> None:
        """Of a long shard, four ranges are on their way at a time; an error in one ends the others."""
        monkeypatch.setattr(module, "RANGE_BYTES", 10)
        store.put("0.bin", SHARDS[0][:500], overwrite=True)

        with pytest.raises(StorageError, match="0.bin: cannot read: 0 bytes came, wanted 10 from offset 500"):
            begin().obtain(0)

        assert 50 < len(store.asked) < 100


class WrongStore(LocalStore):
    """One byte is wrong in its first answers."""

    num_wrong = 0

    def get_range(self, name: str, start: int, stop: int) -> memoryview:
        data = bytearray(super().get_range(name, start, stop))
        data[0] ^= self.num_wrong > 0
        self.num_wrong -= 1
        return memoryview(data)


class TestDamage:
    """Promise 5 on the way."""

    @pytest.mark.parametrize("is_stored", [False, True])
    def test_wrong_bytes_are_fetched_again(self, is_stored: bool, store: GatedStore, begin: Begin, caplog) -> None:
        """Promise 5: bytes that are wrong on their way come again, with a word, and are right then."""
        wrong = WrongStore(store.uri)
        wrong.num_wrong = 2
        stored = zstandard.compress(SHARDS[0])
        wrong.put("z", stored, overwrite=False)
        entries = [entry_of(SHARDS[0], "z", stored=stored) if is_stored else ENTRIES[0]]

        assert content(begin(entries, wrong).obtain(0)) == SHARDS[0]
        assert caplog.text.count("downloading it again") == 2

    @pytest.mark.parametrize("is_stored", [False, True])
    def test_bytes_that_stay_wrong(self, is_stored: bool, store: GatedStore, cache: ShardCache, begin: Begin) -> None:
        """Promise 5: what is wrong in the store is an IntegrityError that names shard and remedy, after three tries."""
        good = zstandard.compress(SHARDS[0])
        damaged = bytearray(good if is_stored else SHARDS[0])
        damaged[-1] ^= 1
        store.put("bad", bytes(damaged), overwrite=False)

        with pytest.raises(
            IntegrityError, match=f"{store.uri}/bad: .*manifest says .*; see `shardstream verify {store.uri}`"
        ):
            begin([entry_of(SHARDS[0], "bad", stored=good if is_stored else None)]).obtain(0)

        assert store.names_asked == ["bad"]
        assert len(store.asked) == 3
        assert cache.shards() == []
        assert not list(cache.folder.glob("*.partial"))

    def test_a_missing_shard_is_named(self, store: GatedStore, begin: Begin) -> None:
        """A shard that is gone is a StorageError that names it."""
        store.delete("3.bin")

        with pytest.raises(StorageError, match=f"{store.uri}/3.bin: cannot read: there is no such file"):
            begin().obtain(3)


class TestExpect:
    """What is known to come."""

    def test_what_is_coming_comes_in_order(
        self, store: GatedStore, cache: ShardCache, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Shards are brought ahead of their use: those in use first, then those that are coming, each once."""
        monkeypatch.setattr(module, "_NUM_SHARDS_AT_A_TIME", 1)
        downloads, owner = begin(), Owner()

        downloads.expect(owner, expected(in_use=[2], coming=[4, 1, 2]))
        await_downloads(cache, 3)

        assert [name for name, *_ in store.asked] == ["2.bin", "4.bin", "1.bin"]
        assert [content(downloads.obtain(number)) for number in (2, 4, 1)] == [SHARDS[2], SHARDS[4], SHARDS[1]]
        assert len(store.asked) == 3

    def test_what_is_in_use_stays(self, store: GatedStore, tmp_path: Path, begin: Begin) -> None:
        """Promise 6: a shard in use is pinned until nobody expects it any more; several owners add up."""
        cache = ShardCache(tmp_path / "small", 2000)
        downloads, first, second = begin(cache=cache), Owner(), Owner()

        downloads.expect(first, expected(in_use=[0]))
        downloads.expect(second, expected(in_use=[0, 1]))
        pins = [downloads.obtain(0), downloads.obtain(1)]
        await_downloads(cache, 2)
        downloads.obtain(0)
        del pins
        assert {shard.is_pinned for shard in cache.shards()} == {True}
        downloads.expect(second, expected())
        del first
        gc.collect()
        downloads.expect(second, expected())

        assert {shard.is_pinned for shard in cache.shards()} == {False}
        assert content(downloads.obtain(2)) == SHARDS[2]

    def test_a_shard_that_came_ahead_is_a_hit(self, cache: ShardCache, begin: Begin) -> None:
        """Who obtains what has been brought ahead finds it in the cache, each time."""
        downloads, owner = begin(), Owner()
        downloads.expect(owner, expected(in_use=[0]))
        while downloads._in_use[0] is None:
            threading.Event().wait(0.001)
        assert cache.counts.num_hits == 0

        assert content(downloads.obtain(0)) == content(downloads.obtain(0)) == SHARDS[0]
        assert (cache.counts.num_hits, cache.counts.num_downloads) == (2, 1)

    def test_what_is_in_use_comes_before_all_else(self, store: GatedStore, cache: ShardCache, begin: Begin) -> None:
        """As long as a shard in use is not there, no other download begins, however often they are expected."""
        downloads, owner = begin(), Owner()
        store.gate.clear()
        downloads.expect(owner, expected(in_use=[0], coming=[1, 2]))
        assert store.is_asked.wait(WAIT_S)
        downloads.expect(owner, expected(in_use=[0], coming=[1, 2]))
        assert downloads._later == [1, 2]
        assert store.names_asked == ["0.bin"]

        store.gate.set()
        downloads.obtain(0)
        await_downloads(cache, 3)

        assert downloads._later == []
        assert sorted(store.names_asked) == ["0.bin", "1.bin", "2.bin"]

    def test_the_wire_is_free_while_a_shard_is_made_durable(
        self, store: GatedStore, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is coming waits for the bytes of a shard in use, not for the disk."""
        can_finish, finish = threading.Event(), Partial.finish

        def finish_when_let(partial: Partial) -> None:
            assert can_finish.wait(WAIT_S)
            finish(partial)

        monkeypatch.setattr(Partial, "finish", finish_when_let)
        downloads, owner = begin(), Owner()
        downloads.expect(owner, expected(in_use=[0], coming=[1]))
        while "1.bin" not in store.names_asked:
            threading.Event().wait(0.001)
        assert downloads._in_use[0] is None
        can_finish.set()

        assert [content(downloads.obtain(number)) for number in (0, 1)] == SHARDS[:2]

    def test_what_came_in_its_turn_holds_nothing_up(self, store: GatedStore, begin: Begin) -> None:
        """A shard that was on its way before it is in use has the wire already; what is coming follows it."""
        downloads, owner = begin(), Owner()
        store.gate.clear()
        downloads.expect(owner, expected(coming=[0]))
        assert store.is_asked.wait(WAIT_S)
        downloads.expect(owner, expected(in_use=[0], coming=[1]))
        while "1.bin" not in store.names_asked:
            threading.Event().wait(0.001)
        store.gate.set()

        assert [content(downloads.obtain(number)) for number in (0, 1)] == SHARDS[:2]

    def test_what_is_no_longer_expected_never_comes(
        self, store: GatedStore, cache: ShardCache, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A shard whose turn has not come is forgotten when nobody expects it any more."""
        monkeypatch.setattr(module, "_NUM_SHARDS_AT_A_TIME", 2)
        downloads, owner = begin(), Owner()
        store.gate.clear()
        downloads.expect(owner, expected(coming=[0, 1, 2, 3]))
        downloads.expect(owner, expected(coming=[0, 1]))
        store.gate.set()
        await_downloads(cache, 2)

        assert content(downloads.obtain(5)) == SHARDS[5]
        assert sorted(store.names_asked) == ["0.bin", "1.bin", "5.bin"]

    def test_who_needs_a_shard_before_its_turn_takes_it(
        self, store: GatedStore, begin: Begin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A shard that waits for its turn is downloaded at once by who needs it."""
        monkeypatch.setattr(module, "_NUM_SHARDS_AT_A_TIME", 2)
        downloads, owner = begin(), Owner()
        store.gate.clear()
        downloads.expect(owner, expected(coming=[0, 1, 2]))
        store.is_asked.wait(WAIT_S)
        threading.Timer(0.05, store.gate.set).start()

        assert content(downloads.obtain(2)) == SHARDS[2]
        assert downloads._coming.keys() == {0, 1}

    def test_what_finds_no_room_ahead_comes_when_it_is_needed(self, tmp_path: Path, begin: Begin) -> None:
        """Shards that are coming do not push one another out; when one is needed, it has the room."""
        cache = ShardCache(tmp_path / "small", 2000)
        downloads, owner = begin(cache=cache), Owner()
        downloads.expect(owner, expected(coming=[0, 1, 2]))
        await_downloads(cache, 2)

        assert content(downloads.obtain(2)) == SHARDS[2]
        downloads.expect(owner, expected(coming=[2, 3]))
        assert content(downloads.obtain(3)) == SHARDS[3]

    def test_what_fails_ahead_is_raised_where_it_is_needed(self, store: GatedStore, begin: Begin) -> None:
        """Promise 18: an error of a download ahead waits for who needs the shard, and is not tried over and over."""
        store.delete("0.bin")
        downloads, owner = begin(), Owner()
        downloads.expect(owner, expected(coming=[0]))
        with pytest.raises(StorageError):
            downloads._coming[0].result(WAIT_S)
        downloads.expect(owner, expected(coming=[0]))
        assert len(store.asked) == 1

        with pytest.raises(StorageError, match="0.bin: cannot read: there is no such file"):
            downloads.obtain(0)
        store.put("0.bin", SHARDS[0], overwrite=False)
        assert content(downloads.obtain(0)) == SHARDS[0]


class TestPieces:
    """A few bytes that are not worth a shard."""

    def test_a_piece_is_read_ahead(self, store: GatedStore, begin: Begin) -> None:
        """Bytes within an expected piece come from it, with one request; others are not there."""
        checks: list[int] = []
        downloads, owner = begin(check_unchanged=lambda: checks.append(1)), Owner()
        assert downloads.piece(0, 100, 110) is None
        piece = Piece(0, 100, 200)
        downloads.expect(owner, expected(pieces=[piece]))
        downloads.expect(owner, expected(pieces=[piece, Piece(1, 0, 10)]))

        assert bytes(downloads.piece(0, 100, 200) or b"") == SHARDS[0][100:200]
        assert bytes(downloads.piece(0, 150, 160) or b"") == SHARDS[0][150:160]
        assert bytes(downloads.piece(1, 0, 10) or b"") == SHARDS[1][:10]
        assert downloads.piece(0, 90, 110) is None
        assert downloads.piece(0, 190, 210) is None
        assert downloads.piece(2, 100, 110) is None
        assert sorted(store.asked) == [("0.bin", 100, 200), ("1.bin", 0, 10)]
        assert checks == [1, 1]

    def test_a_dataset_that_changed_is_told(self, begin: Begin) -> None:
        """Promise 17: a piece has no checksum of its own; what the check raises, its reader gets."""

        def fail() -> None:
            raise IntegrityError("overwritten")

        downloads, owner = begin(check_unchanged=fail), Owner()
        downloads.expect(owner, expected(pieces=[Piece(0, 0, 10)]))

        with pytest.raises(IntegrityError, match="overwritten"):
            downloads.piece(0, 0, 10)


class TestBringAll:
    """A whole dataset before its use."""

    def test_all_come_once(self, store: GatedStore, cache: ShardCache, begin: Begin) -> None:
        """What was there already is told from what came; each is reported."""
        cache.obtain(ENTRIES[1], Fill(SHARDS[1]))
        arrived: list[str] = []

        missing = begin().bring_all([0, 1, 2, 3], lambda entry: arrived.append(entry.name))

        assert missing == [0, 2, 3]
        assert sorted(arrived) == ["0.bin", "1.bin", "2.bin", "3.bin"]
        assert len(cache.shards()) == 4
        assert sorted(store.names_asked) == ["0.bin", "2.bin", "3.bin"]

    def test_an_error_ends_it(self, store: GatedStore, begin: Begin) -> None:
        """A shard that cannot be had is named, and what has not begun never does."""
        store.delete("0.bin")
        downloads = begin()

        with pytest.raises(StorageError, match="0.bin"):
            downloads.bring_all([0, 1, 2, 3, 4, 5], lambda _: None)

        assert not downloads._coming


class TestEnd:
    """What is left behind."""

    def test_close_lets_go_of_everything(self, cache: ShardCache, begin: Begin) -> None:
        """After close() nothing is pinned and no thread is left; what is asked for then begins anew."""
        before = set(threading.enumerate())  # another test's, whose store stalls
        downloads, owner = begin(), Owner()
        downloads.expect(owner, expected(in_use=[0], coming=[1], pieces=[Piece(2, 0, 10)]))
        downloads.obtain(0)
        downloads.piece(2, 0, 10)
        await_downloads(cache, 2)
        threads = set(threading.enumerate()) - before

        downloads.close()
        for thread in threads:
            thread.join(30)

        assert {shard.is_pinned for shard in cache.shards()} == {False}
        assert threads
        assert not any(thread.is_alive() for thread in threads)
        assert content(downloads.obtain(3)) == SHARDS[3]

    def test_close_ends_a_long_download(self, store: GatedStore, cache: ShardCache, begin: Begin, monkeypatch) -> None:
        """Promise 18: a download that takes longer than close() waits is given up, and keeps nobody from the shard."""
        monkeypatch.setattr(module, "RANGE_BYTES", 10)
        downloads, owner = begin(), Owner()
        store.gate.clear()
        downloads.expect(owner, expected(coming=[0]))
        store.is_asked.wait(WAIT_S)
        left = downloads._coming[0]
        timer = threading.Timer(1.5, store.gate.set)  # after the threads of shards, before those of ranges are given up
        timer.start()

        downloads.close()

        timer.join()
        with contextlib.suppress(CancelledError):  # or it came to its end by itself
            left.result(WAIT_S)
        assert not list(cache.folder.glob("*.partial"))
        assert content(downloads.obtain(0)) == SHARDS[0]

    def test_a_forked_child_begins_anew(self, store: GatedStore, cache: ShardCache, begin: Begin) -> None:
        """Promise 9: a child has neither the threads of its parent nor its locks, and reads all the same."""
        downloads, owner = begin(), Owner()
        downloads.expect(owner, expected(in_use=[0], coming=[1]))
        downloads.obtain(0)
        await_downloads(cache, 2)
        downloads._lock.acquire()  # as if a thread of the parent had it

        child = os.fork()
        if not child:
            code = 1
            try:
                code = int(content(downloads.obtain(2)) != SHARDS[2] or downloads.piece(0, 0, 1) is not None)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        downloads._lock.release()

        assert status == 0
