"""Streams of datasets that are far away: the same batches, whatever the way, the cache and the weather."""

import contextlib
import errno
import itertools
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstream
from shardstream import BatchStream, IntegrityError, StorageError, TokenDataset
from shardstream.storage import cache, retry
from shardstream.stream import shard_plan
from shardstream.stream.shard_plan import working_set_bytes
from tests.conftest import S3Place
from tests.fault_proxy import FaultProxy

ORDERS = ["shuffle", "block-shuffle", "sequential", "random"]
SHARD_TOKENS = 2**12
TOKENS = np.random.default_rng(5).integers(0, 1000, 16 * SHARD_TOKENS, dtype=np.uint16)
BLOCKS: dict[str, Any] = {"order": "block-shuffle", "buffer_blocks": 2}
# A range of each fault that may pass. A wrong byte is found by a whole shard's checksum; a piece has none.
WEATHER = {"429": 0.05, "500": 0.05, "503": 0.05, "reset": 0.04, "lost": 0.04, "stall": 0.02, "short": 0.05}

Open = Callable[..., TokenDataset]
StartProxy = Callable[..., FaultProxy]


def write(uri: str, tokens: NDArray[Any], **options: Any) -> None:
    with shardstream.DatasetWriter(uri, vocab_size=1000, **{"shard_tokens": SHARD_TOKENS, **options}) as writer:
        writer.append(tokens)


def stream_of(dataset: TokenDataset, **options: Any) -> BatchStream:
    """One epoch of 8 samples of 64 tokens at a time on the only rank, unless told otherwise."""
    options = {"batch_size": 8, "context_length": 64, "epochs": 1, "dp_rank": 0, "dp_world_size": 1, **options}
    return BatchStream(dataset, **options)


def batches_of(stream: BatchStream, num_steps: int | None = None) -> list[Any]:
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in itertools.islice(stream, num_steps)]


def shard_bytes(proxy: FaultProxy) -> int:
    """What was sent of shards; of so small a dataset the manifest would be a tenth."""
    return sum(request.num_bytes for request in proxy.requests if "manifest.json" not in request.path)


def first_batch(stream: BatchStream) -> Any:
    return batches_of(stream, 1)[0]


def threads_of_ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("shardstream-")}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """The tokens on a local disk: what every other way must equal."""
    folder = tmp_path_factory.mktemp("local")
    write(str(folder), TOKENS)
    return shardstream.open(folder)


@pytest.fixture
def at_s3(s3: S3Place) -> S3Place:
    """The same tokens at S3."""
    write_at(s3, TOKENS)
    return s3


def write_at(place: S3Place, tokens: NDArray[Any], **options: Any) -> None:
    write(place.url, tokens, storage_options=place.storage_options, **options)


@pytest.fixture
def open_at(tmp_path: Path) -> Iterator[Open]:
    """Open a dataset through a cache of its own; closed with the test."""
    opened = []

    def open_at(place: S3Place, endpoint_url: str | None = None, **options: Any) -> TokenDataset:
        storage_options = place.storage_options_at(endpoint_url or place.endpoint_url)
        options = {"cache_dir": tmp_path / "cache", "storage_options": storage_options, **options}
        opened.append(shardstream.open(place.url, **options))
        return opened[-1]

    yield open_at
    for dataset in opened:
        dataset.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without room, which would be a defect here, shows after seconds, not after a minute."""
    monkeypatch.setattr(cache, "_WAIT_S", 5.0)
    monkeypatch.setattr(shard_plan, "_GROUPS_LOOKED_UP", 1000)  # all that these tests come by


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again at once."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "_LONGEST_PAUSE_S", 0.01)


@pytest.fixture
def user_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Place], None]:
    """Have the environment say how to reach a place, as a child process needs it."""

    def tell(place: S3Place) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", place.endpoint_url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.server.key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.server.secret)
        monkeypatch.setenv("AWS_REGION", place.server.region)

    return tell


class TestTheSame:
    """Laws: what is streamed from far away is what is streamed from the local disk."""

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])  # the short waits
    @given(data=st.data())
    def test_any_order_and_any_bound(self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Any order, on any rank and lanes, with any bound from the working set on, resumed anywhere, is the local one."""
        folder = tmp_path_factory.mktemp("law")
        num_tokens = data.draw(st.integers(20, 400), "num_tokens")
        context_length = data.draw(st.integers(1, 9), "context_length")
        shard_tokens = data.draw(st.integers(8, 80), "shard_tokens")
        compression = data.draw(st.sampled_from([None, "zstd"]), "compression")
        lanes = data.draw(st.sampled_from([1, 2]), "lanes")
        ranks = data.draw(st.sampled_from([1, lanes]), "ranks")
        num_windows = (num_tokens - 1) // context_length
        batch_size = lanes * data.draw(st.integers(1, max(1, min(8, num_windows // lanes // ranks))), "batch_size")
        if batch_size * ranks > num_windows // lanes * lanes:
            return
        order = "block-shuffle" if lanes == 2 else data.draw(st.sampled_from(ORDERS), "order")
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "context_length": context_length,
            "order": order,
            "epochs": None if order == "random" else 3,
            "dp_rank": data.draw(st.integers(0, ranks - 1), "dp_rank"),
            "dp_world_size": ranks,
        }
        if order == "block-shuffle":
            options |= {
                "lanes": lanes,
                "block_tokens": context_length * data.draw(st.integers(1, 8), "block_windows"),
                "buffer_blocks": data.draw(st.integers(1, 4), "buffer_blocks"),
            }
        tokens = TOKENS[:num_tokens]
        url = f"memory://{folder}"
        write(str(folder / "local"), tokens, shard_tokens=shard_tokens)
        write(url, tokens, shard_tokens=shard_tokens, compression=compression)
        expected = batches_of(BatchStream(shardstream.open(folder / "local"), **options), 40)

        with shardstream.open(url, cache_dir=folder / "unbounded") as unbounded:
            some = BatchStream(unbounded, **options)
            num_steps = data.draw(st.integers(0, len(expected)), "num_steps")
            assert batches_of(some, num_steps) == expected[:num_steps]
            state = json.loads(json.dumps(some.state_dict()))
            needed = working_set_bytes(unbounded, some._order, some._lookahead._lanes, num_rows=some._num_rows)
            largest = max(shard.num_bytes for shard in unbounded.manifest.shards)
            some.close()

        bound = max(needed, largest) + data.draw(st.integers(0, 100), "surplus")
        with shardstream.open(url, cache_dir=folder / "bounded", max_cache_bytes=bound) as bounded:
            with BatchStream(bounded, **options) as resumed:
                resumed.load_state_dict(state)
                assert batches_of(resumed, 40 - num_steps) == expected[num_steps:]
            assert sum(path.stat().st_size for path in (folder / "bounded").glob("*.tokens")) <= bound

    @pytest.mark.parametrize("order", ORDERS)
    def test_without_a_cache(self, local: TokenDataset, at_s3: S3Place, open_at: Open, order: str) -> None:
        """By ranged requests, each order gives the local batches too."""
        options: dict[str, Any] = {"order": order, "epochs": None, "batch_size": 32}
        ranged = open_at(at_s3, cache_dir=False)

        assert batches_of(stream_of(ranged, **options), 4) == batches_of(stream_of(local, **options), 4)

    @pytest.mark.parametrize("compression", [None, "zstd"])
    def test_from_s3(self, local: TokenDataset, s3: S3Place, open_at: Open, compression: str | None) -> None:
        """A whole epoch from S3, with a loop whose steps take so long that a thread gathers ahead."""
        write_at(s3, TOKENS, compression=compression)
        expected = batches_of(stream_of(local, **BLOCKS))
        before = threads_of_ours()
        found = []
        with stream_of(open_at(s3), **BLOCKS) as stream:
            for step in range(len(expected)):
                found += batches_of(stream, 1)
                if step % 16 == 0:
                    time.sleep(0.002)

        assert found == expected
        assert not [thread for thread in threads_of_ours() - before if thread.name == "shardstream-ahead"]


class TestWeather:
    """Promise 10: a passing fault never changes or ends a run."""

    def test_a_store_that_fails_three_times_in_ten(
        self, local: TokenDataset, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy, short_pauses: None
    ) -> None:
        """Promise 10: 30 % of the requests fail, in every way there is: the epoch is the local one, bit by bit."""
        proxy = fault_proxy(at_s3.endpoint_url, seed=3, stall_s=0.1)
        whole = open_at(at_s3, proxy.endpoint_url)
        assert whole.cache is not None
        bounded = open_at(
            at_s3, proxy.endpoint_url, cache_dir=whole.cache.folder / "bounded", max_cache_bytes=6 * 2**13
        )
        expected = batches_of(stream_of(local, **BLOCKS))
        proxy.rates = {**WEATHER, "wrong": 0.02}
        assert batches_of(stream_of(whole, **BLOCKS)) == expected
        proxy.rates = WEATHER
        assert batches_of(stream_of(bounded, **BLOCKS)) == expected

        assert {request.outcome for request in proxy.requests} > set(WEATHER) - {"stall"}
        assert whole.traffic().num_retries > 0

    def test_windows_by_ranges_in_that_weather(
        self, local: TokenDataset, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy, short_pauses: None
    ) -> None:
        """Promise 10: without a cache no fault changes anything either."""
        proxy = fault_proxy(at_s3.endpoint_url, rates=WEATHER, seed=4, stall_s=0.1)
        ranged = open_at(at_s3, proxy.endpoint_url, cache_dir=False)
        for key in (slice(None), slice(None, None, -3), slice(100, 60_000, 9_000)):
            np.testing.assert_array_equal(local[key], ranged[key])

        assert ranged.traffic().num_retries > 0

    @pytest.mark.parametrize("status", ["403", "404"])
    def test_what_does_not_pass_fails_at_once(
        self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy, status: str
    ) -> None:
        """Promises 10 and 18: a 403 or 404 on a shard comes out of next() untried again, and names the key."""
        proxy = fault_proxy(at_s3.endpoint_url, rates={status: 1.0}, only="shard-000003")
        dataset = open_at(at_s3, proxy.endpoint_url)
        cause = {"403": "HTTP 403 AccessDenied; check the credentials", "404": "there is no such file"}[status]
        with pytest.raises(StorageError, match=f"{at_s3.url}/shard-000003.bin: cannot read: {cause}"):
            batches_of(stream_of(dataset, order="sequential"))

        assert dataset.traffic().num_retries == 0
        proxy.rates = {}
        assert len(batches_of(stream_of(dataset, order="sequential"))) > 0  # the cause is mended

    def test_no_sample_is_lost(
        self, local: TokenDataset, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy
    ) -> None:
        """After the cause is mended the stream goes on with the very batch that failed."""
        proxy = fault_proxy(at_s3.endpoint_url, rates={"403": 1.0}, only="shard-000003")
        found: list[Any] = []
        with stream_of(open_at(at_s3, proxy.endpoint_url), **BLOCKS) as stream:
            with pytest.raises(StorageError, match="shard-000003"):
                while True:
                    found += [first_batch(stream)]
            proxy.rates = {}
            with contextlib.suppress(StorageError):  # of a download that had begun before
                found += [first_batch(stream)]

            assert found + batches_of(stream) == batches_of(stream_of(local, **BLOCKS))

    def test_a_token_that_expires_every_50_requests(
        self,
        moto_s3: S3Place,
        fault_proxy: StartProxy,
        short_pauses: None,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """Promise 10: credentials from a container's endpoint that run out every 50 requests finish the epoch."""
        write_at(moto_s3, TOKENS, shard_tokens=2**9)  # 128 shards
        proxy = fault_proxy(moto_s3.endpoint_url, expire_every=50)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{proxy.endpoint_url}/credentials")
        options = {"endpoint_url": proxy.endpoint_url, "region": "us-east-1"}
        with shardstream.open(moto_s3.url, cache_dir=tmp_path / "cache", storage_options=options) as dataset:
            targets = [row for _, batch in stream_of_all(dataset) for row in batch.tolist()]

        assert sorted(itertools.chain(*targets)) == sorted(TOKENS[1:].tolist())
        assert proxy.num_tokens >= 3


def stream_of_all(dataset: TokenDataset) -> BatchStream:
    """An epoch without a tail."""
    return stream_of(dataset, context_length=3 * 5 * 17, batch_size=1, order="block-shuffle", drop_last=False)


class TestRequests:
    """How much is asked of the store."""

    def test_opening_is_one_request(self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy) -> None:
        """Promise 11: one GET of the manifest opens a dataset."""
        proxy = fault_proxy(at_s3.endpoint_url)
        open_at(at_s3, proxy.endpoint_url)

        assert [(request.method, request.path.rpartition("/")[2]) for request in proxy.requests] == [
            ("GET", "manifest.json")
        ]

    def test_a_first_batch_asks_for_the_shards_it_touches(
        self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy
    ) -> None:
        """Promise 11: each shard of the first batch is asked for once; what else is asked for are shards to come."""
        proxy = fault_proxy(at_s3.endpoint_url)
        with stream_of(open_at(at_s3, proxy.endpoint_url), **BLOCKS) as stream:
            next(stream)
            touched = {f"shard-{position // SHARD_TOKENS:06d}.bin" for position in stream.positions}

        names = [request.path.rpartition("/")[2] for request in proxy.requests][1:]
        assert set(names) >= touched
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("has_room", [False, True])
    def test_an_epoch_brings_each_byte_once(
        self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy, has_room: bool
    ) -> None:
        """Promise 16: an epoch brings at most 1.1 of the dataset, even where the cache holds the working set only."""
        proxy = fault_proxy(at_s3.endpoint_url)
        bound = None if has_room else working_set_of(at_s3, open_at)
        dataset = open_at(at_s3, proxy.endpoint_url, max_cache_bytes=bound)
        batches_of(stream_of(dataset, **BLOCKS))

        assert shard_bytes(proxy) <= 1.1 * dataset.manifest.num_bytes
        whole = [request for request in proxy.requests if request.num_bytes == 2 * SHARD_TOKENS]
        assert len(whole) == 16

    @pytest.mark.parametrize("has_room", [False, True])
    def test_four_nodes_with_lanes_bring_the_dataset_once(
        self, at_s3: S3Place, local: TokenDataset, fault_proxy: StartProxy, tmp_path: Path, has_room: bool
    ) -> None:
        """Promise 16: four caches of four ranks with four lanes bring at most 1.1 of the dataset, all together."""
        proxy = fault_proxy(at_s3.endpoint_url)
        found = []
        for rank in range(4):
            with shardstream.open(
                at_s3.url,
                cache_dir=tmp_path / f"{rank}",
                max_cache_bytes=None if has_room else 6 * 2 * SHARD_TOKENS,
                storage_options=at_s3.storage_options_at(proxy.endpoint_url),
            ) as dataset:
                options: dict[str, Any] = {**BLOCKS, "lanes": 4, "dp_world_size": 4, "batch_size": 2, "dp_rank": rank}
                found.append(batches_of(stream_of(dataset, **options)))
                assert found[-1] == batches_of(stream_of(local, **options))

        assert shard_bytes(proxy) <= 1.1 * 2 * len(TOKENS)

    def test_an_edge_is_a_small_request(self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy) -> None:
        """Promise 16: the target that lies in the next shard is read by itself where that shard would not stay."""
        proxy = fault_proxy(at_s3.endpoint_url)
        dataset = open_at(at_s3, proxy.endpoint_url, max_cache_bytes=working_set_of(at_s3, open_at))
        batches_of(stream_of(dataset, **BLOCKS))

        small = [request for request in proxy.requests if request.method == "GET" and request.num_bytes < SHARD_TOKENS]
        assert {request.num_bytes for request in small[1:]} == {2}  # after the manifest, tokens alone
        assert 1 <= len(small[1:]) <= 15  # the last target of all but the last shard


def working_set_of(place: S3Place, open_at: Open) -> int:
    stream = stream_of(open_at(place, cache_dir=False), **BLOCKS)
    return working_set_bytes(stream._dataset, stream._order, [0], num_rows=8)


class TestReplaced:
    """Promise 17: what was overwritten is never mixed with what was there before."""

    @pytest.mark.parametrize(("cache_dir", "max_cache_bytes"), [(None, None), (None, 5 * 2**13), (False, None)])
    @pytest.mark.parametrize("num_steps", [0, 1, 40])
    def test_a_reader_goes_on_with_the_old_or_raises(  # noqa: PLR0917 - fixtures and parameters
        self,
        at_s3: S3Place,
        local: TokenDataset,
        open_at: Open,
        cache_dir: Any,
        max_cache_bytes: int | None,
        num_steps: int,
    ) -> None:
        """Promise 17: each batch is the old one or an IntegrityError; a new open sees only the new. Pieces included."""
        expected = iter(batches_of(stream_of(local, **BLOCKS)))
        old = open_at(at_s3, cache_dir=cache_dir, max_cache_bytes=max_cache_bytes)
        stream = stream_of(old, **BLOCKS)
        for _ in range(num_steps):
            assert first_batch(stream) == next(expected)
        write_at(at_s3, TOKENS[::-1], overwrite=True)

        with pytest.raises(IntegrityError):
            while True:
                assert first_batch(stream) == next(expected)
        new = open_at(at_s3, cache_dir=cache_dir)
        np.testing.assert_array_equal(TOKENS[::-1], new[:])

    def test_what_is_cached_stays(self, at_s3: S3Place, local: TokenDataset, open_at: Open) -> None:
        """Promise 17: a reader whose shards are in the cache never sees that the dataset was overwritten."""
        old = open_at(at_s3)
        old[:]
        write_at(at_s3, TOKENS[::-1], overwrite=True)

        assert batches_of(stream_of(old, **BLOCKS)) == batches_of(stream_of(local, **BLOCKS))


class TestErrors:
    """Promise 18: errors surface where the training loop is."""

    def test_other_bytes_than_the_manifest_says(self, at_s3: S3Place, open_at: Open) -> None:
        """Promise 18: a shard of the wrong checksum comes out of next(), named, with what to do."""
        at_s3.client.put_object(
            Bucket=at_s3.bucket, Key=f"{at_s3.prefix}/shard-000002.bin", Body=b"x" * 2 * SHARD_TOKENS
        )
        with pytest.raises(IntegrityError, match="shard-000002.bin: checksum is sha256 .* see `shardstream verify"):
            batches_of(stream_of(open_at(at_s3), order="sequential"))

    def test_a_cut_shard(self, at_s3: S3Place, open_at: Open) -> None:
        """Promise 18: so does one that is shorter than it was."""
        at_s3.client.put_object(Bucket=at_s3.bucket, Key=f"{at_s3.prefix}/shard-000002.bin", Body=b"x" * 10)
        with pytest.raises(IntegrityError, match="shard-000002.bin: .*truncated"):
            batches_of(stream_of(open_at(at_s3), order="sequential"))

    def test_a_cache_that_cannot_be_written(self, at_s3: S3Place, open_at: Open) -> None:
        """Promise 18: a cache folder that nobody can make is named by next(), with what to do."""
        with pytest.raises(
            StorageError, match="/proc/cache: cannot write to the cache: .*; give cache_dir, a folder on"
        ):
            next(stream_of(open_at(at_s3, cache_dir="/proc/cache")))

    def test_a_full_disk(self, at_s3: S3Place, open_at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """Promise 18: a disk without room is named by next(), with the shard and what it needs."""

        def no_space(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        dataset = open_at(at_s3)
        monkeypatch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(StorageError, match=r"No space left on device, and shard-0000\d\d.bin needs 8,192 bytes"):
            next(stream_of(dataset))

    @pytest.mark.filterwarnings("ignore")  # a thread may see the folder vanish
    def test_a_cache_that_vanishes(self, at_s3: S3Place, local: TokenDataset, open_at: Open) -> None:
        """Who deletes the whole cache costs downloads, perhaps an error that names it, but no batch."""
        dataset = open_at(at_s3)
        assert dataset.cache is not None
        expected = batches_of(stream_of(local, **BLOCKS))
        with stream_of(dataset, **BLOCKS) as stream:
            found = batches_of(stream, 50)
            shutil.rmtree(dataset.cache.folder, ignore_errors=True)
            num_errors = 0
            while len(found) < len(expected):
                with contextlib.suppress(StorageError):  # of a download that was on its way
                    found.append(first_batch(stream))
                    continue
                num_errors += 1
                assert num_errors < 10

        assert found == expected

    def test_close_does_not_wait_for_a_store_that_stalls(
        self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy
    ) -> None:
        """Promise 18: stream and dataset are closed in under 2 s although downloads ahead stand still."""
        proxy = fault_proxy(at_s3.endpoint_url)
        dataset = open_at(at_s3, proxy.endpoint_url)
        stream = stream_of(dataset, order="sequential")
        next(stream)
        proxy.rates = {"stall": 1.0}
        dataset.expect(self, in_use=(), coming=[12, 13, 14], pieces=[(15, 0, 1)])
        started = time.monotonic()
        stream.close()
        dataset.close()

        assert time.monotonic() - started < 10  # 1 s where nothing else runs; the store stalls for longer

    def test_the_interpreter_exits_while_a_store_stalls(
        self, at_s3: S3Place, fault_proxy: StartProxy, user_of: Callable[[S3Place], None]
    ) -> None:
        """Promise 18: a process that is left with a download that stands still ends in under 2 s."""
        user_of(at_s3)
        proxy = fault_proxy(at_s3.endpoint_url, rates={"stall": 1.0}, only="shard-00001")
        script = f"""
import time, shardstream
dataset = shardstream.open({at_s3.url!r}, storage_options={{"endpoint_url": {proxy.endpoint_url!r}}})
stream = shardstream.BatchStream(dataset, batch_size=8, context_length=64, order="sequential")
next(stream)
dataset.expect(dataset, in_use=(), coming=[12, 13, 14], pieces=[(15, 0, 1)])
print(time.time(), flush=True)
"""
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

        assert time.time() - float(done.stdout) < 10  # 1.5 s where nothing else runs
        assert done.stderr == ""

    def test_no_thread_is_left(self, at_s3: S3Place, open_at: Open) -> None:
        """Promise 18: after close() of stream and dataset none of their threads lives."""
        before = threads_of_ours()  # another test's, whose store stalls
        dataset = open_at(at_s3)
        with stream_of(dataset, **BLOCKS) as stream:
            next(stream)
            time.sleep(0.002)  # a slow step
            batches_of(stream, 2)
        assert threads_of_ours() > before
        dataset.close()

        assert threads_of_ours() <= before


class TestStats:
    """Promise 20: one sees what the way costs."""

    def test_what_the_way_cost_is_counted(self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy) -> None:
        """Promise 20: requests and bytes are the proxy's own, downloads and hits the cache's."""
        proxy = fault_proxy(at_s3.endpoint_url)
        cold = open_at(at_s3, proxy.endpoint_url)
        with stream_of(cold, **BLOCKS) as stream:
            batches_of(stream)
            traffic = stream.stats().traffic
        assert (traffic.num_downloads, traffic.num_evictions, traffic.num_retries) == (16, 0, 0)
        assert traffic.num_requests == len(proxy.requests) == 17
        assert traffic.num_received_bytes == proxy.num_bytes_sent

        warm = open_at(at_s3, proxy.endpoint_url)
        with stream_of(warm, **BLOCKS) as stream:
            batches_of(stream)
            traffic = stream.stats().traffic
        assert (traffic.num_downloads, traffic.num_requests) == (0, 1)
        assert traffic.num_hits >= 16  # those that are needed again count again

    def test_a_bound_shows_as_evictions(self, at_s3: S3Place, open_at: Open) -> None:
        """Promise 20: what had to leave the cache is counted."""
        dataset = open_at(at_s3, max_cache_bytes=working_set_of(at_s3, open_at))
        with stream_of(dataset, **BLOCKS) as stream:
            batches_of(stream)
            assert stream.stats().traffic.num_evictions >= 16 - 6

    def test_retries_are_counted(
        self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy, short_pauses: None
    ) -> None:
        """Promise 20: as many retries as the store failed."""
        proxy = fault_proxy(at_s3.endpoint_url, rates={"503": 0.3}, seed=1)
        dataset = open_at(at_s3, proxy.endpoint_url)
        with stream_of(dataset, **BLOCKS) as stream:
            batches_of(stream)
            retries = stream.stats().traffic.num_retries

        assert retries == sum(request.outcome == "503" for request in proxy.requests) > 0

    def test_a_dataset_in_place_costs_nothing(self, local: TokenDataset) -> None:
        """Promise 20: of a local dataset all counts are zero."""
        stream = stream_of(local)
        batches_of(stream, 3)

        assert set(vars(stream.stats().traffic).values()) == {0}

    def test_a_slow_store_shows_and_a_fast_one_does_not(
        self, at_s3: S3Place, open_at: Open, fault_proxy: StartProxy
    ) -> None:
        """Promise 20: a store that takes 300 ms for a request moves the 95th percentile; a cache that is warm does not."""
        proxy = fault_proxy(at_s3.endpoint_url, delay_s=0.3)
        options: dict[str, Any] = {"order": "random", "epochs": None}
        slow = stream_of(open_at(at_s3, proxy.endpoint_url, cache_dir=False), **options)
        batches_of(slow, 3)
        dataset = open_at(at_s3)
        dataset[:]
        fast = stream_of(dataset, **options)
        batches_of(fast, 200)

        assert slow.stats().wait_p95_s >= 0.3
        assert fast.stats().wait_p95_s < 0.3


class TestSecrets:
    """Promise 21: no secret leaves the process."""

    def test_nothing_that_is_written_holds_one(
        self,
        at_s3: S3Place,
        open_at: Open,
        fault_proxy: StartProxy,
        caplog: pytest.LogCaptureFixture,
        short_pauses: None,
    ) -> None:
        """Promise 21: state, pickles, reprs, errors and logs, of retries too, hold neither key nor secret."""
        caplog.set_level(logging.DEBUG)
        proxy = fault_proxy(at_s3.endpoint_url, rates={"503": 0.3}, seed=2)
        dataset = open_at(at_s3, proxy.endpoint_url)
        with stream_of(dataset, **BLOCKS) as stream:
            batches_of(stream, 20)
            said = [repr(dataset), repr(stream), json.dumps(stream.state_dict()), repr(stream.stats())]
            said += [repr(pickle.dumps(dataset)), repr(pickle.dumps(stream))]
            proxy.rates = {"403": 1.0}
            with pytest.raises(StorageError) as caught:
                batches_of(stream)
        said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
        ours = [record.getMessage() for record in caplog.records if record.name == "shardstream"]
        assert any("trying again" in message for message in ours)

        for text in [*said, *ours]:
            assert at_s3.server.secret not in text
            assert at_s3.server.key not in text

    def test_a_pickle_finds_credentials_in_the_environment(
        self, at_s3: S3Place, open_at: Open, local: TokenDataset, user_of: Callable[[S3Place], None], tmp_path: Path
    ) -> None:
        """Promise 21: a child opens a stream's pickle with its own credentials, and goes on where it stood."""
        expected = batches_of(stream_of(local, **BLOCKS), 6)
        with stream_of(open_at(at_s3), **BLOCKS) as stream:
            assert batches_of(stream, 3) == expected[:3]
            (tmp_path / "pickle").write_bytes(pickle.dumps(stream))
        user_of(at_s3)
        script = f"""
import itertools, json, pickle
with open({str(tmp_path / "pickle")!r}, "rb") as file:
    stream = pickle.load(file)
print(json.dumps([(inputs.tolist(), targets.tolist()) for inputs, targets in itertools.islice(stream, 3)]))
"""
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

        assert [tuple(batch) for batch in json.loads(done.stdout)] == expected[3:]


class TestRefused:
    """What a bound does not allow is refused before anything is read."""

    @pytest.mark.parametrize("order", ["shuffle", "random"])
    def test_an_order_that_needs_everything(self, at_s3: S3Place, open_at: Open, order: str) -> None:
        """An order that reads anywhere at any time needs room for all: both figures, and what would need less."""
        dataset = open_at(at_s3, max_cache_bytes=100_000)
        message = (
            f"max_cache_bytes is 100,000; wanted at least 131,072: order '{order}' reads all .*; 'block-shuffle' needs"
        )
        with pytest.raises(ValueError, match=message):
            stream_of(dataset, order=order, epochs=None)

    def test_a_bound_below_the_working_set(self, at_s3: S3Place, open_at: Open) -> None:
        """Block-shuffle's own need is a figure too; with it the stream begins."""
        needed = working_set_of(at_s3, open_at)
        with pytest.raises(
            ValueError, match=f"max_cache_bytes is {needed - 1:,}; wanted at least {needed:,}: .* fewer buffer"
        ):
            stream_of(open_at(at_s3, max_cache_bytes=needed - 1), **BLOCKS)

        next(stream_of(open_at(at_s3, max_cache_bytes=needed), **BLOCKS))


class TestTwoStreams:
    """Training and evaluation share one dataset."""

    def test_they_take_turns(self, at_s3: S3Place, local: TokenDataset, open_at: Open) -> None:
        """With room for both, neither loses what it needs to the other: each brings a shard once at most."""
        dataset = open_at(at_s3, max_cache_bytes=2 * working_set_of(at_s3, open_at))
        evaluation: dict[str, Any] = {**BLOCKS, "seed": 1, "batch_size": 4}
        with stream_of(dataset, **BLOCKS) as train, stream_of(dataset, **evaluation) as evaluate:
            twins = stream_of(local, **BLOCKS), stream_of(local, **evaluation)
            for _ in range(25):
                assert batches_of(train, 5) == batches_of(twins[0], 5)
                assert batches_of(evaluate, 10) == batches_of(twins[1], 10)

        assert dataset.traffic().num_downloads <= 2 * 16

    def test_a_closed_one_needs_nothing(self, at_s3: S3Place, open_at: Open) -> None:
        """The shards of a stream that is closed, or forgotten, are free for others."""
        needed = working_set_of(at_s3, open_at)
        dataset = open_at(at_s3, max_cache_bytes=needed)
        cache = dataset.cache
        assert cache is not None
        for _ in range(2):
            with stream_of(dataset, **BLOCKS) as stream:
                batches_of(stream, 20)
            deadline = time.monotonic() + 20
            while any(shard.is_pinned for shard in cache.shards()):  # by a thread that is about to see that it is over
                assert time.monotonic() < deadline
            assert batches_of(stream_of(dataset, **BLOCKS, seed=1), 20)  # and forgotten
