"""Windows by ranged requests: which are made, and what comes of them."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream
from shardstream import IntegrityError, StorageError
from shardstream.read import ranged_shards
from tests.conftest import S3Place

TOKENS = np.random.default_rng(2).integers(0, 1000, 2**15, dtype=np.uint16)


def write_at(place: S3Place, **options: Any) -> None:
    options = {"shard_tokens": 2**12, "storage_options": place.storage_options, **options}
    with shardstream.DatasetWriter(place.url, vocab_size=1000, **options) as writer:
        writer.append(TOKENS)


def open_at(place: S3Place, endpoint_url: str | None = None) -> shardstream.TokenDataset:
    options = place.storage_options_at(endpoint_url or place.endpoint_url)
    return shardstream.open(place.url, cache_dir=False, storage_options=options)


@settings(max_examples=50)
@given(data=st.data())
def test_what_is_read_by_ranges_is_what_is_read_in_place(data, tmp_path_factory) -> None:
    """Any windows, slices and single tokens of any shards equal those of the array, however requests are cut."""
    url = f"memory://{tmp_path_factory.mktemp('ranged')}"
    tokens = TOKENS[: data.draw(st.integers(1, 300))]
    with shardstream.DatasetWriter(url, vocab_size=1000, shard_tokens=data.draw(st.integers(1, 80))) as writer:
        writer.append(tokens)
    length = data.draw(st.integers(1, len(tokens)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(tokens) - length), max_size=9)), dtype=np.int64)
    key = data.draw(st.slices(len(tokens)) | st.integers(-len(tokens), len(tokens) - 1))
    dataset = shardstream.open(url, cache_dir=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranged_shards, "_GAP_BYTES", data.draw(st.sampled_from([0, 10, 2**18])))
        patch.setattr(ranged_shards, "_LARGEST_BYTES", data.draw(st.sampled_from([2, 20, 2**23])))
        out = np.zeros((len(starts), length), dtype=np.uint16)

        np.testing.assert_array_equal(tokens[starts[:, None] + np.arange(length)], dataset.windows(starts, length))
        assert dataset.windows(starts, length, out=out) is out
        np.testing.assert_array_equal(tokens[starts[:, None] + np.arange(length)], out)
        np.testing.assert_array_equal(tokens[key], dataset[key])
    dataset.close()
    assert dataset.cache is None


def test_neighbours_are_one_request(s3: S3Place, fault_proxy) -> None:
    """Windows near one another in a shard cost one GET; a look at the manifest shows that nothing was replaced."""
    write_at(s3)
    proxy = fault_proxy(s3.endpoint_url)
    dataset = open_at(s3, proxy.endpoint_url)
    dataset.windows([10, 500, 300, 4090], 20)

    asked = [(request.method, request.path.rpartition("/")[2], request.range) for request in proxy.requests[1:]]
    assert sorted(asked) == [
        ("GET", "shard-000000.bin", "bytes=20-8191"),
        ("GET", "shard-000001.bin", "bytes=0-27"),
        ("HEAD", "manifest.json", None),
    ]


def test_nothing_is_asked_ahead(write_dataset, tokens) -> None:
    """A dataset that is read by ranges takes advice, and does nothing about it."""
    write_dataset(tokens, uri="memory://advice/dataset")
    dataset = shardstream.open("memory://advice/dataset", cache_dir=False)
    before = dataset.traffic()
    dataset.look_ahead(np.array([0]), np.array([100]))
    dataset.look_again()
    dataset.expect(dataset, in_use=[0, 1])

    assert dataset.traffic() == before


def test_a_window_outside_is_refused(write_dataset, tokens) -> None:
    """A window that does not lie within the dataset is an IndexError, whatever the way of reading."""
    write_dataset(tokens, uri="memory://outside/dataset", overwrite=True)
    with pytest.raises(IndexError, match="does not lie within the dataset's 1000 tokens"):
        shardstream.open("memory://outside/dataset", cache_dir=False).windows([990], 11)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_dataset_that_is_replaced_is_seen(s3: S3Place, is_gone: bool) -> None:
    """Promise 17: no byte is returned of a dataset that is another one by then, or gone."""
    write_at(s3)
    dataset = open_at(s3)
    if is_gone:
        s3.client.delete_object(Bucket=s3.bucket, Key=f"{s3.prefix}/manifest.json")
    else:
        write_at(s3, overwrite=True, shard_tokens=2**11)

    problem = "manifest is gone while it is read" if is_gone else "replaced while it was read; open it again|truncated"
    with pytest.raises(IntegrityError, match=problem):
        dataset.windows([0], 10)


def test_a_store_without_versions_is_asked_for_the_manifest(write_dataset, tokens) -> None:
    """Promise 17: where a store does not tell versions apart, the manifest itself is compared."""
    write_dataset(tokens, uri="memory://versions/dataset", overwrite=True)
    dataset = shardstream.open("memory://versions/dataset", cache_dir=False)
    np.testing.assert_array_equal(tokens[:9], dataset[:9])
    write_dataset(tokens[::-1], uri="memory://versions/dataset", overwrite=True)

    with pytest.raises(IntegrityError, match="replaced while it was read"):
        dataset[:9]


def test_a_missing_shard_is_named(s3: S3Place) -> None:
    """A shard that is not there is a StorageError with its key."""
    write_at(s3)
    s3.client.delete_object(Bucket=s3.bucket, Key=f"{s3.prefix}/shard-000001.bin")
    with pytest.raises(StorageError, match="shard-000001.bin: cannot read: there is no such file"):
        open_at(s3)[4096]


@pytest.mark.parametrize("has_cache", [False, True])
def test_eighty_readers_of_a_slow_store(
    s3: S3Place, fault_proxy, tmp_path: Path, has_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 7: 80 threads at a store that is slow and cuts bodies: no bad read."""
    monkeypatch.setattr("shardstream.storage.retry._FIRST_PAUSE_S", 0.001)
    write_at(s3)
    proxy = fault_proxy(s3.endpoint_url, rates={"short": 0.1}, seed=5, delay_s=0.02)
    options = s3.storage_options_at(proxy.endpoint_url)
    bad: list[object] = []
    with shardstream.open(
        s3.url, cache_dir=tmp_path / "cache" if has_cache else False, storage_options=options
    ) as dataset:

        def read(seed: int) -> None:
            starts = np.random.default_rng(seed).integers(0, len(TOKENS) - 100, 2)
            try:
                if not np.array_equal(TOKENS[starts[:, None] + np.arange(100)], dataset.windows(starts, 100)):
                    bad.append(seed)
            except BaseException as error:  # noqa: BLE001 - shown by the assertion
                bad.append(error)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(80)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert not bad
    assert any(request.outcome == "short" for request in proxy.requests)
