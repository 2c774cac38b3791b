"""Object stores through each client: faults that pass, errors that name, secrets that stay."""

import importlib.util
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shardstream
from shardstream.errors import IntegrityError, StorageError
from shardstream.storage.cache import ShardCache
from shardstream.storage.downloads import Downloads
from shardstream.storage.remote_store import RemoteStore, said
from shardstream.storage.store import store_of
from tests.fault_proxy import S3_CODES
from tests.storage.conftest import choose_s3fs
from tests.storage.shards import content, entry_of, random_bytes

PROGRAM = Path(__file__).with_name("forked_reader.py")
ROOT = Path(__file__).parents[2]
DATA = random_bytes(5000)


@pytest.fixture
def url(s3) -> str:
    """A prefix that holds DATA under the name "object"."""
    s3.client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/object", Body=DATA)
    return str(s3.url)


@pytest.fixture
def proxy(s3, fault_proxy):
    return fault_proxy(s3.endpoint_url)


@pytest.fixture
def store(client, s3, url, proxy) -> RemoteStore:
    """A store behind the proxy."""
    return RemoteStore(url, s3.storage_options_at(proxy.endpoint_url))


def outcomes(proxy) -> list[str]:
    return [request.outcome for request in proxy.requests]


@pytest.mark.usefixtures("quick_retries", "quick_timeouts")
class TestFaultsThatPass:
    """Promise 10, the store's part."""

    @pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "short"])
    def test_identical_data(self, fault: str, store: RemoteStore, proxy) -> None:
        """Promise 10: with three requests of ten failing in each way, all that is read is what it is without."""
        proxy.rates = {fault: 0.3}

        for number in range(30):
            start = 100 * number
            assert store.get_range("object", start, start + 1000) == DATA[start : start + 1000]
        assert store.get("object", max_bytes=10_000) == DATA
        assert store.open("object").read() == DATA
        assert store.names() == ["object"]
        assert store.size("object") == len(DATA)
        assert store.version("object") == store.version("object")

        assert Counter(outcomes(proxy))[fault] > 5

    def test_a_server_that_falls_silent(self, store: RemoteStore, proxy) -> None:
        """Promise 10: a body that stops coming is asked for again."""
        proxy.rates, proxy.stall_s = {"stall": 0.5}, 5.0

        while "stall" not in outcomes(proxy):
            assert store.get_range("object", 0, 5000) == DATA
        proxy.closing.set()

        assert store.traffic.num_retries >= 1

    @pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "lost"])
    def test_identical_objects(self, fault: str, store: RemoteStore, s3, proxy) -> None:
        """Promise 10: puts and deletes that fail on their way, or whose answer is lost, are done in the end."""
        proxy.rates = {fault: 0.3}

        for number in range(15):
            store.put(f"new/{number}", b"%d" % number, overwrite=number % 2 == 0)
        for number in range(5):
            store.delete(f"new/{number}")

        assert fault in outcomes(proxy)
        proxy.rates = {}
        assert [store.get(f"new/{number}", max_bytes=9) for number in range(5, 15)] == [
            b"%d" % number for number in range(5, 15)
        ]
        assert len(store.names()) == 11

    def test_wrong_bytes(self, store: RemoteStore, proxy, tmp_path: Path) -> None:
        """Promises 5 and 10: bytes that are wrong on their way are found by the shard's checksum, and fetched again."""
        proxy.rates = {"wrong": 0.3}
        for number in range(10):
            downloads = Downloads(
                store, ShardCache(tmp_path / str(number), None), [entry_of(DATA, "object")], lambda: None
            )
            assert content(downloads.obtain(0)) == DATA
            downloads.close()

        assert "wrong" in outcomes(proxy)

    def test_a_write_that_is_begun_again_starts_at_the_beginning(self, store: RemoteStore, proxy) -> None:
        """What arrived before a failure is passed on again, from offset 0."""
        proxy.rates = {"short": 0.5}
        arrived = bytearray(5000)
        offsets: list[int] = []

        def write(offset: int, data: memoryview) -> None:
            offsets.append(offset)
            arrived[offset : offset + len(data)] = data

        while "short" not in outcomes(proxy):
            store.write_range("object", 0, 5000, write)

        assert arrived == DATA
        assert offsets[0] == 0

    def test_traffic_is_counted(self, store: RemoteStore, proxy) -> None:
        """Promise 20: requests, retries and bytes are what the proxy saw."""
        store.get_range("object", 0, 100)
        store.get("object", max_bytes=10_000)
        proxy.rates = {"503": 1.0}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shardstream.storage.retry.RETRY_FOR_S", 0.1)
            with pytest.raises(StorageError):
                store.get("object", max_bytes=1)

        traffic = store.traffic
        assert traffic.num_bytes == 5100
        assert traffic.num_requests == len(proxy.requests)
        assert traffic.num_retries == len(proxy.requests) - 3


@pytest.mark.usefixtures("few_retries", "client")
def test_a_store_out_of_reach_is_no_missing_dataset(s3, proxy) -> None:
    """Where no answer comes, opening a dataset says so, and nothing of a manifest that may well be there."""
    proxy.rates = {"503": 1.0}

    with pytest.raises(StorageError, match="503") as caught:
        shardstream.open(s3.url, storage_options=s3.storage_options_at(proxy.endpoint_url))

    assert "its writer adds last" not in str(caught.value)


@pytest.mark.parametrize("fault", ["403", "404"])
def test_what_does_not_pass_fails_at_once(fault: str, store: RemoteStore, proxy) -> None:
    """Promise 10: refused or missing is an error after one request, and names the key."""
    store.get("object", max_bytes=1)
    num_before = len(proxy.requests)
    proxy.rates = {fault: 1.0}

    with pytest.raises(StorageError, match=f"{store.uri}/object: cannot read: ") as excinfo:
        store.get("object", max_bytes=10)

    assert outcomes(proxy)[num_before:] == [fault]
    word = "AccessDenied; check the credentials, and what they allow" if fault == "403" else "there is no such file"
    assert word in str(excinfo.value)


def test_a_clock_that_is_wrong_fails_at_once(store: RemoteStore, proxy, monkeypatch) -> None:
    """A server that finds the time of a request too far from its own is an error after one request, and tells of the clock."""
    store.get("object", max_bytes=1)
    num_before = len(proxy.requests)
    monkeypatch.setitem(S3_CODES, "403", "RequestTimeTooSkewed")
    proxy.rates = {"403": 1.0}

    with pytest.raises(StorageError, match="HTTP 403 RequestTimeTooSkewed; this machine's clock is wrong: set it$"):
        store.get("object", max_bytes=10)

    assert outcomes(proxy)[num_before:] == ["403"]


@pytest.mark.usefixtures("few_retries")
def test_a_store_that_fails_for_good(store: RemoteStore, proxy, caplog) -> None:
    """When the time is over the error has S3's own words, once; each try before left a line in the log."""
    store.names()
    proxy.rates = {"503": 1.0}

    with pytest.raises(StorageError, match=f"^{store.uri}/object: cannot read: HTTP 503 SlowDown$"):
        store.get("object", max_bytes=10)
    assert f"{store.uri}/object: cannot read, trying again: HTTP 503 SlowDown" in caplog.text
    with pytest.raises(StorageError, match=f"{store.uri}/object: cannot read: HTTP 503$"):
        store.size("object")  # a HEAD: there is no more to be said
    with pytest.raises(StorageError, match=f"^{store.uri}: cannot list: HTTP 503 SlowDown$"):
        store.names()
    with pytest.raises(StorageError, match=f"^{store.uri}/object: cannot delete: HTTP 503 SlowDown$"):
        store.delete("object")


@pytest.mark.usefixtures("few_retries")
def test_a_server_that_is_not_there(store: RemoteStore, proxy) -> None:
    """Promise 10: a connection that is refused is tried again: the server may be starting."""
    store.names()
    proxy.close()

    with pytest.raises(StorageError, match=f"{store.uri}/object: cannot read: "):
        store.get("object", max_bytes=10)

    assert store.traffic.num_retries > 0


def test_a_missing_bucket_is_not_a_missing_file(client, s3) -> None:
    """Where there is no bucket, that is said."""
    store = RemoteStore("s3://no-such-bucket-of-ours/x", s3.storage_options)

    with pytest.raises(StorageError, match="cannot read: there is no such bucket"):
        store.get("object", max_bytes=10)
    with pytest.raises(StorageError, match="cannot write: there is no such bucket"):
        store.put("object", b"", overwrite=True)


def test_a_range_of_a_truncated_object(store: RemoteStore) -> None:
    """Promise 7: an object that ends before the range does is an IntegrityError with both figures, at once."""
    with pytest.raises(IntegrityError, match="object: truncated: 5000 bytes, wanted 5001 at least"):
        store.get_range("object", 4000, 5001)
    with pytest.raises(IntegrityError, match="object: truncated: it ends before byte 6000"):
        store.get_range("object", 6000, 7000)
    assert store.traffic.num_retries == 0


class TestConditionalPut:
    """Two writers cannot both win."""

    @pytest.fixture
    def lost_once(self, proxy) -> None:
        """The answer to the first request is lost, those to the next two are not."""
        seed = next(
            seed
            for seed in range(99)
            if [random.Random(seed).random() < 0.5, *self.draws(seed)] == [True, False, False]
        )
        proxy._random.seed(seed)
        proxy.rates = {"lost": 0.5}

    @staticmethod
    def draws(seed: int) -> list[bool]:
        rng = random.Random(seed)
        rng.random()
        return [rng.random() < 0.5 for _ in range(2)]

    @pytest.mark.usefixtures("quick_retries", "lost_once")
    def test_an_answer_that_was_lost_is_no_failure(self, store: RemoteStore, proxy) -> None:
        """Promise 10: a put that was done although its answer never came is not taken for another writer's."""
        store.put("manifest.json", b"mine", overwrite=False)

        assert outcomes(proxy)[0] == "lost"
        proxy.rates = {}
        assert store.get("manifest.json", max_bytes=9) == b"mine"

    @pytest.mark.usefixtures("quick_retries")
    def test_another_writers_object_is_not_taken_for_ones_own(self, store: RemoteStore, s3, proxy) -> None:
        """After an answer that was lost, an object of other bytes is another writer's, and stays."""
        s3.client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/manifest.json", Body=b"theirs")
        proxy.rates = {"lost": 0.7}
        proxy._random.seed(1)  # the first answer is lost

        with pytest.raises(StorageError, match="manifest.json: it exists already, and is left as it is"):
            store.put("manifest.json", b"mine", overwrite=False)

        assert outcomes(proxy)[0] == "lost"
        proxy.rates = {}
        assert store.get("manifest.json", max_bytes=9) == b"theirs"


class TestUpload:
    """Objects that are written in parts."""

    @pytest.mark.usefixtures("few_retries")
    @pytest.mark.parametrize("num_bytes", [1000, 6 * 2**20, 40 * 2**20])
    def test_one_that_fails_raises_and_publishes_nothing(self, num_bytes: int, store: RemoteStore, s3, proxy) -> None:
        """Promise 14: an upload to a server that fails for good raises in write or commit; nothing is seen, none hangs."""
        proxy.rates = {"403": 1.0}  # before the upload asks for anything: whatever it began, it may not abort
        upload = store.create("big")
        block = memoryview(bytes(2**20))

        with pytest.raises(StorageError, match=f"{store.uri}/big: cannot write: HTTP 403 AccessDenied"):
            for start in range(0, num_bytes, 2**20):
                upload.write(block[: num_bytes - start])
            upload.commit()
        upload.abort()

        proxy.rates = {}
        assert store.names() == ["object"]
        assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")

    @pytest.mark.parametrize("num_bytes", [0, 1000, 20 * 2**20])
    def test_one_that_is_aborted_leaves_nothing(self, num_bytes: int, store: RemoteStore, s3) -> None:
        """What is given up is neither seen nor stored, however much of it was sent."""
        upload = store.create("gone")
        for _ in range(0, num_bytes, 2**20):
            upload.write(memoryview(bytes(min(num_bytes, 2**20))))
        upload.abort()
        upload.abort()

        assert store.names() == ["object"]
        assert not s3.client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads")

    def test_one_of_many_parts(self, store: RemoteStore, s3) -> None:
        """An object of several parts, in blocks that do not fit them, is what was written; nothing is seen before."""
        data = random_bytes(20 * 2**20)
        upload = store.create("big")
        for start in range(0, len(data), 3_000_001):
            upload.write(memoryview(data)[start : start + 3_000_001])
        assert store.names() == ["object"]
        upload.commit()

        assert store.get("big", max_bytes=len(data) + 1) == data
        assert "-" in s3.client.head_object(Bucket=s3.bucket, Key=f"{s3.prefix}/big")["ETag"]  # it has parts

    @pytest.mark.parametrize("fault", ["429", "500", "503", "reset"])
    def test_faults_on_its_way(self, fault: str, store: RemoteStore, proxy) -> None:
        """Promise 10: parts that fail are sent again."""
        data = random_bytes(12 * 2**20)
        proxy._random.seed(3)
        proxy.rates = {fault: 0.3}
        for number in range(4):
            upload = store.create(f"big{number}")
            upload.write(memoryview(data))
            upload.commit()

        assert fault in outcomes(proxy)
        proxy.rates = {}
        assert all(store.get(f"big{number}", max_bytes=len(data) + 1) == data for number in range(4))


@pytest.mark.usefixtures("quick_retries")
def test_credentials_that_expire(client, moto_s3, fault_proxy, monkeypatch) -> None:
    """Promise 10: a token that expires every 50 requests finishes 200 of them."""
    moto_s3.client.put_object(Bucket=moto_s3.bucket, Key=f"{moto_s3.prefix}/object", Body=DATA)
    proxy = fault_proxy(moto_s3.endpoint_url, expire_every=50)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{proxy.endpoint_url}/credentials")
    options = {"endpoint_url": proxy.endpoint_url, "client_kwargs": {"region_name": "us-east-1"}}
    store = RemoteStore(moto_s3.url, options)

    for number in range(200):
        assert store.get_range("object", number, number + 10) == DATA[number : number + 10]

    counts = Counter(outcomes(proxy))
    assert counts["206"] == 200
    assert proxy.num_tokens >= 4
    assert counts["expired"] == proxy.num_tokens - 1


def test_credentials_that_cannot_be_renewed(client, moto_s3, fault_proxy, quick_retries) -> None:
    """A token that has expired and is all there is ends in an error that says so, after a few tries."""
    proxy = fault_proxy(moto_s3.endpoint_url, expire_every=50)
    options = {**moto_s3.storage_options_at(proxy.endpoint_url), "token": "old"}

    with pytest.raises(StorageError, match="HTTP 400 ExpiredToken; the credentials have expired, and fresh ones"):
        RemoteStore(moto_s3.url, options).get("object", max_bytes=10)
    assert outcomes(proxy) == ["expired"] * 4


SECRETS = {"key": "key-hunter2", "secret": "secret-hunter2", "token": "token-hunter2"}


@pytest.mark.usefixtures("few_retries")
def test_no_secret_leaves(client, moto_s3, fault_proxy, tmp_path: Path, caplog) -> None:
    """Promise 21: key, secret and token are in no repr, str, pickle, log line or error of a store and what is built on it."""
    caplog.set_level(logging.DEBUG, "shardstream")
    proxy = fault_proxy(moto_s3.endpoint_url)
    store = RemoteStore(moto_s3.url, {**moto_s3.storage_options_at(proxy.endpoint_url), **SECRETS})
    cache = ShardCache(tmp_path / "cache", None)
    downloads = Downloads(store, cache, [entry_of(DATA, "object")], lambda: None)
    store.put("object", DATA, overwrite=True)
    pin = downloads.obtain(0)
    texts: list[str] = []
    for fault in ("403", "404", "503", "reset"):
        proxy.rates = {fault: 1.0}
        for call in (
            lambda: store.get("object", max_bytes=9),
            lambda: store.put("object", b"", overwrite=True),
            lambda: store.open("object"),
            store.names,
        ):
            with pytest.raises(StorageError) as excinfo:
                call()
            texts += [str(excinfo.value), repr(excinfo.value), *traceback.format_exception(excinfo.value)]

    for thing in (store, store._client, store.traffic, store.public_options, cache, downloads, pin):
        texts += [repr(thing), str(thing), f"{thing}"]
    try:
        texts.append(repr(pickle.dumps(store)))
    except TypeError as error:  # better still
        texts.append(str(error))
    texts += [record.getMessage() + str(record.__dict__) for record in caplog.records]
    downloads.close()

    assert "trying again" in "".join(texts)
    assert "hunter2" not in "".join(texts)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(("how", "other"), [("fork", "FsspecClient"), ("spawn", "ObstoreClient")])
def test_other_processes_read_too(how: str, other: str, s3, url) -> None:
    """Promise 9: after a process has read through obstore, a forked child reads through s3fs, a spawned one as ever."""
    program = subprocess.run(
        [sys.executable, PROGRAM, how, url, "object", json.dumps(s3.storage_options)],
        check=True,
        timeout=60,
        env=environment(),
        capture_output=True,
        text=True,
    )

    lines = program.stdout.splitlines()
    assert lines[0] == "1000 ObstoreClient"
    assert set(lines[1:]) == {f"1000 {other}"}


def test_a_file_can_be_sought(client, s3, url) -> None:
    """An object as a file is read from wherever, counted from its beginning, from here, or from its end."""
    with RemoteStore(url, s3.storage_options).open("object") as file:
        assert file.seekable()
        file.seek(-10, os.SEEK_END)
        assert file.read() == DATA[-10:]
        file.seek(100)
        file.seek(-50, os.SEEK_CUR)
        assert (file.tell(), file.read(10)) == (50, DATA[50:60])
        file.seek(6000)
        assert file.read(10) == b""


class ForbiddingFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec publishes no types
    """A filesystem whose server answers 403 to everything."""

    protocol = "forbidding"

    def info(self, path, **kwargs):
        raise PermissionError(f"forbidden: {path}")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        raise PermissionError(f"forbidden: {path}")

    def rm_file(self, path):
        raise PermissionError(f"forbidden: {path}")


def test_a_forbidden_object_is_an_error_and_not_a_missing_one() -> None:
    """An object that may not be looked at, written or deleted is a StorageError that names it."""
    fsspec.register_implementation("forbidding", ForbiddingFileSystem, clobber=True)
    store = store_of("forbidding://bucket")

    with pytest.raises(StorageError, match="forbidding://bucket/x: cannot read: forbidden"):
        store.size("x")
    with pytest.raises(StorageError, match="forbidding://bucket/x: cannot write: forbidden"):
        store.put("x", b"", overwrite=False)
    with pytest.raises(StorageError, match="forbidding://bucket/x: cannot delete: forbidden"):
        store.delete("x")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("first line\nsecond line"), "first line"),
        (ValueError(), "ValueError"),
        (ValueError(None), "ValueError"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_an_error_says(error: Exception, text: str) -> None:
    """An error's first line is enough; one that says nothing has at least a name."""
    assert said(error) == text


def test_without_obstore_there_is_s3fs(s3, url, monkeypatch) -> None:
    """Where obstore is not installed, s3fs is taken."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "obstore" else find_spec(name))
    store = RemoteStore(url, s3.storage_options)

    assert store.get("object", max_bytes=9) == DATA[:9]
    assert type(store._client).__name__ == "FsspecClient"


def test_the_client_of_a_store_is_made_when_it_is_needed(monkeypatch) -> None:
    """A store of S3 opens nothing and finds nothing wrong before the first request."""
    choose_s3fs(monkeypatch)
    options: dict[str, Any] = {"no": "such option"}

    assert RemoteStore("s3://bucket/x", options)._client is None


@pytest.mark.usefixtures("quick_retries")
def test_a_filesystem_that_sends_less_than_it_was_asked_for(monkeypatch, tmp_path: Path) -> None:
    """A body that ends early without a word is a failure that passes: the next try brings it whole."""
    store = RemoteStore(f"memory://{tmp_path}", {})
    store.put("object", DATA, overwrite=False)
    cat_file = MemoryFileSystem.cat_file
    ends = [1000, 3000]

    def cut_short(self, path: str, start: int, end: int) -> Any:
        return cat_file(self, path, start=start, end=ends.pop() if ends else end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cut_short)

    assert store.get_range("object", 10, 4000) == DATA[10:4000]
    assert store.traffic.num_retries == 2
