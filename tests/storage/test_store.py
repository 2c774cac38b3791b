"""Laws that every store obeys."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardstream.errors import IntegrityError, StorageError
from shardstream.storage.local_store import LocalStore
from shardstream.storage.remote_store import RemoteStore
from shardstream.storage.store import Store, store_of
from tests.storage.conftest import choose_s3fs

S3_KINDS = [pytest.param("s3", marks=pytest.mark.s3), pytest.param("s3fs", marks=pytest.mark.s3)]


@pytest.fixture
def store_at(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """An empty store of a kind; for all calls at one place."""

    def at(kind: str) -> Store:
        if kind == "local":
            return store_of(tmp_path / "store")
        if kind == "memory":
            return store_of(f"memory://{tmp_path}/store")
        s3 = request.getfixturevalue("s3")
        if kind == "s3fs":
            choose_s3fs(monkeypatch)
        return store_of(f"{s3.url}/store", s3.storage_options)

    return at


@pytest.fixture(params=["local", "memory", *S3_KINDS])
def store(request: pytest.FixtureRequest, store_at: Callable[[str], Store]) -> Store:
    """An empty store of each kind."""
    return store_at(request.param)


class TestEveryStore:
    """One suite of laws; every kind of store runs it."""

    def test_what_is_put_can_be_got(self, store: Store) -> None:
        """An object comes back byte for byte, as a whole and as a file, also from a subfolder."""
        store.put("a/b.bin", b"hello", overwrite=False)

        assert store.get("a/b.bin", max_bytes=100) == b"hello"
        assert store.size("a/b.bin") == 5
        with store.open("a/b.bin") as file:
            assert file.read() == b"hello"

    def test_an_empty_object(self, store: Store) -> None:
        """An object of no bytes comes back as what it is, however it was written."""
        store.put("put", b"", overwrite=False)
        store.create("created").commit()

        for name in ("put", "created"):
            assert store.get(name, max_bytes=100) == b""
            assert store.size(name) == 0
            with store.open(name) as file:
                assert file.read() == b""

    def test_get_reads_no_more_than_asked(self, store: Store) -> None:
        """A larger object is cut at max_bytes."""
        store.put("large", b"x" * 1000, overwrite=False)

        assert store.get("large", max_bytes=10) == b"x" * 10

    @settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(bounds=st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted))
    def test_a_range_is_a_slice(self, store: Store, bounds: list[int]) -> None:
        """Any range within an object is the same slice of it, got at once, passed on in pieces, or read as a file."""
        data, (start, stop) = bytes(range(150)) * 2, bounds
        store.put("object", data, overwrite=True)
        arrived = bytearray(stop - start)

        def write(offset: int, piece: memoryview) -> None:
            arrived[offset : offset + len(piece)] = piece

        store.write_range("object", start, stop, write)

        assert store.get_range("object", start, stop) == data[start:stop]
        assert arrived == data[start:stop]
        with store.open("object") as file:
            file.seek(start)
            assert file.read(stop - start) == data[start:stop]
            assert file.tell() == stop

    def test_an_empty_range_is_empty(self, store: Store) -> None:
        """No bytes are asked for, and none come."""
        store.put("object", b"0123456789", overwrite=False)
        arrived: list[bytes] = []

        store.write_range("object", 3, 3, lambda _, data: arrived.append(bytes(data)))

        assert bytes(store.get_range("object", 3, 3)) == b""
        assert b"".join(arrived) == b""

    @pytest.mark.parametrize(("start", "stop"), [(5, 11), (10, 11), (20, 30)])
    def test_a_range_beyond_the_end(self, store: Store, start: int, stop: int) -> None:
        """A range that an object does not hold is an error that names it, never fewer bytes."""
        store.put("short", b"0123456789", overwrite=False)

        with pytest.raises((IntegrityError, StorageError), match="store/short: "):
            store.get_range("short", start, stop)
        with pytest.raises((IntegrityError, StorageError), match="store/short: "):
            store.write_range("short", start, stop, lambda *_: None)

    def test_a_missing_object(self, store: Store) -> None:
        """A missing object has no size, is not deleted with an error, and reading it names it."""
        missing = "store/none: cannot read: there is no such file"

        assert store.size("none") is None
        store.delete("none")
        with pytest.raises(StorageError, match=missing):
            store.get("none", max_bytes=1)
        with pytest.raises(StorageError, match=missing):
            store.get_range("none", 0, 1)
        with pytest.raises(StorageError, match=missing):
            store.version("none")
        with pytest.raises(StorageError, match=missing):
            store.open("none")

    def test_names_are_sorted_and_relative(self, store: Store) -> None:
        """All objects are listed, sorted, relative to the store; an empty or absent store lists none."""
        assert store.names() == []
        for name in ("b", "a/c", "a/b"):
            store.put(name, b"", overwrite=False)

        assert store.names() == ["a/b", "a/c", "b"]
        store.delete("a/b")
        assert store.names() == ["a/c", "b"]

    @pytest.mark.parametrize("name", ["a b/c", "ü/漢.bin", "50%20.bin", "a+b=c,d"])
    def test_names_mean_what_they_say(self, store: Store, name: str) -> None:
        """A name with spaces, letters of any language or signs that URLs escape is kept as it is."""
        store.put(name, b"1", overwrite=False)

        assert store.names() == [name]
        assert store.get(name, max_bytes=9) == b"1"
        assert store.size(name) == 1

    def test_put_replaces_only_when_told(self, store: Store) -> None:
        """Without overwrite an object that exists is left as it is; with it, it is replaced."""
        store.put("one", b"1", overwrite=False)
        with pytest.raises(StorageError, match="store/one: it exists already, and is left as it is"):
            store.put("one", b"2", overwrite=False)
        assert store.get("one", max_bytes=9) == b"1"

        store.put("one", b"3", overwrite=True)

        assert store.get("one", max_bytes=9) == b"3"
        assert store.names() == ["one"]

    def test_another_version_is_told_from_the_first(self, store: Store) -> None:
        """Where a store tells versions apart, an object that is replaced has another one."""
        store.put("one", b"1", overwrite=False)
        first = store.version("one")

        assert store.version("one") == first
        store.put("one", b"2", overwrite=True)
        assert first is None or store.version("one") != first

    def test_an_upload_appears_when_it_is_committed(self, store: Store) -> None:
        """Blocks written one by one, empty ones among them, are one object after the commit."""
        upload = store.create("big")
        for block in (b"", b"abc", b"", b"def", b""):
            upload.write(memoryview(block))
        upload.commit()

        assert store.get("big", max_bytes=9) == b"abcdef"
        assert store.names() == ["big"]

    def test_an_upload_may_use_its_memory_again(self, store: Store) -> None:
        """What was written is in the object, whatever becomes of the memory that it came from."""
        block = bytearray(b"first")
        upload = store.create("object")
        upload.write(memoryview(block))
        block[:] = b"other"
        upload.commit()

        assert store.get("object", max_bytes=9) == b"first"

    def test_an_aborted_upload_keeps_what_was_there(self, store: Store) -> None:
        """An upload that is given up, even twice, leaves no new name."""
        upload = store.create("gone")
        upload.write(memoryview(b"abc"))
        upload.abort()
        upload.abort()
        store.delete_partials()

        if not store.uri.startswith("memory"):  # fsspec's memory filesystem shows files from their creation on
            assert store.names() == []

    def test_a_store_without_a_lock_or_with_a_free_one_lets_in(self, store: Store) -> None:
        """A lock that nobody holds is had at once, again and again."""
        for _ in range(2):
            with store.lock("journal/lock"):
                pass

        assert store.names() == []

    def test_no_secret_is_public(self, store: Store) -> None:
        """Promise 21: what a store says of its options holds neither key nor secret."""
        assert not {"key", "secret", "token"} & set(store.public_options)


@pytest.mark.parametrize("kind", ["local", *S3_KINDS])
def test_of_several_writers_one_wins(kind: str, store_at: Callable[[str], Store]) -> None:
    """Of many puts at once that must not replace anything, one is done; all others say that there is an object."""
    stores = [store_at(kind) for _ in range(4)]
    stores[0].names()  # a connection, a region: whatever is found out once
    results: list[Any] = [None] * len(stores)
    barrier = threading.Barrier(len(stores))

    def write(number: int) -> None:
        barrier.wait()
        try:
            stores[number].put("manifest.json", b"%d" % number, overwrite=False)
        except StorageError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (winner,) = (number for number, result in enumerate(results) if result is None)
    assert stores[0].get("manifest.json", max_bytes=9) == b"%d" % winner
    assert all(result is None or "it exists already" in result for result in results)


def test_uris_choose_the_store(tmp_path: Path) -> None:
    """Paths and file URLs are local, other URLs are fsspec's or obstore's."""
    assert isinstance(store_of(tmp_path), LocalStore)
    assert isinstance(store_of("relative/path"), LocalStore)
    assert store_of("relative/path").uri == f"{Path.cwd()}/relative/path"
    assert isinstance(store_of(f"file://{tmp_path}"), LocalStore)
    assert isinstance(store_of("memory://x"), RemoteStore)
    assert isinstance(store_of("s3://bucket/x"), RemoteStore)


def test_a_scheme_that_nobody_knows_is_refused() -> None:
    """A URL of no known scheme is refused before anything is asked of it."""
    with pytest.raises(ValueError, match="nowhere"):
        store_of("nowhere://x")


def test_what_says_where_is_no_secret() -> None:
    """Endpoint, region and profile may travel in a pickle; who one is may not, nor what nobody knows."""
    options = {
        "key": "k",
        "secret": "s",
        "token": "t",
        "profile": "p",
        "client_kwargs": {"region_name": "r", "aws_session_token": "t"},
        "config_kwargs": {"proxies": "x"},
    }

    store = store_of("s3://bucket/x", options)

    assert store.public_options == {"profile": "p", "client_kwargs": {"region_name": "r"}}
    assert store_of("s3://bucket/x", {"client_kwargs": {"aws_session_token": "t"}}).public_options == {}
