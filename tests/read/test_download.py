"""``TokenDataset.download``: shards in the cache before they are needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream
from tests.conftest import S3Place

NUM_SHARDS = 6
SHARD_BYTES = 128


def write(uri: Any, **options: Any) -> None:
    with shardstream.DatasetWriter(uri, vocab_size=2**16, shard_tokens=64, **options) as writer:
        writer.append(np.arange(NUM_SHARDS * 64))


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """Six compressed shards, read through a cache."""
    write(tmp_path / "zstd", compression="zstd")
    with shardstream.open(tmp_path / "zstd", cache_dir=tmp_path / "cache") as dataset:
        yield dataset


def test_all_shards_are_downloaded_and_reported_once(dataset: shardstream.TokenDataset) -> None:
    """Without numbers all shards come; progress sees each once, whether it was there or not."""
    reported: list[shardstream.ShardEntry] = []
    dataset.download([4])

    downloaded = dataset.download(progress=reported.append)

    entries = dataset.manifest.shards
    assert downloaded == (*entries[:4], entries[5])
    assert sorted(entry.name for entry in reported) == [entry.name for entry in entries]
    assert dataset.download() == ()
    assert dataset.traffic().num_downloads == NUM_SHARDS


def test_shards_that_are_asked_for_come_and_no_others(dataset: shardstream.TokenDataset) -> None:
    """Numbers may be in any order and stand twice; what comes is those shards, which are not held in use."""
    downloaded = dataset.download([5, 0, 5])

    assert [entry.name for entry in downloaded] == ["shard-000005.bin.zst", "shard-000000.bin.zst"]
    assert dataset.cache is not None
    assert {shard.sha256 for shard in dataset.cache.shards()} == {entry.sha256 for entry in downloaded}
    assert not any(shard.is_pinned for shard in dataset.cache.shards())


def test_a_shard_that_is_not_there_is_refused(dataset: shardstream.TokenDataset) -> None:
    """A number beyond the shards, or below 0, is named."""
    with pytest.raises(IndexError, match="shard 6 is not one of the dataset's 6"):
        dataset.download([0, 6])
    with pytest.raises(IndexError, match="shard -1 is not one of the dataset's 6"):
        dataset.download([-1])


def test_a_bound_below_what_is_asked_for_fails_before_the_first_byte(tmp_path: Path) -> None:
    """The figures are in the message, nothing is downloaded; fewer shards fit."""
    write(tmp_path / "zstd", compression="zstd")
    with shardstream.open(tmp_path / "zstd", cache_dir=tmp_path / "cache", max_cache_bytes=2 * SHARD_BYTES) as dataset:
        with pytest.raises(
            ValueError, match="max_cache_bytes is 256; wanted at least 384: so much are the 3 shards of "
        ):
            dataset.download([0, 1, 2])
        assert not (tmp_path / "cache").exists()
        assert len(dataset.download([0, 1])) == 2


def test_shards_asked_for_push_out_those_of_others(tmp_path: Path) -> None:
    """A bound that holds what is asked for is enough, whatever is in the cache already."""
    write(tmp_path / "zstd", compression="zstd")
    with shardstream.open(tmp_path / "zstd", cache_dir=tmp_path / "cache", max_cache_bytes=3 * SHARD_BYTES) as dataset:
        dataset.download([0, 1, 2])
        dataset.download([3, 4, 5])

        assert dataset.cache is not None
        assert {shard.sha256 for shard in dataset.cache.shards()} == {
            entry.sha256 for entry in dataset.manifest.shards[3:]
        }


def test_a_dataset_without_a_cache_has_nothing_to_download_into(tmp_path: Path) -> None:
    """Shards that are read in place are refused."""
    write(tmp_path / "raw")

    with pytest.raises(ValueError, match="is not read through a cache, so there is nothing to download into"):
        shardstream.open(tmp_path / "raw").download()


def test_several_shards_come_at_a_time(s3: S3Place, tmp_path: Path, fault_proxy) -> None:
    """Of a remote dataset more than one shard is on its way at once, and each is asked for once."""
    write(s3.url, storage_options=s3.storage_options)
    proxy = fault_proxy(s3.endpoint_url, only="shard-", delay_s=0.1)
    options = s3.storage_options_at(proxy.endpoint_url)

    with shardstream.open(s3.url, storage_options=options, cache_dir=tmp_path / "cache") as dataset:
        dataset.download()

    gets = [request.path for request in proxy.requests if "shard-" in request.path]
    assert len(gets) == len(set(gets)) == NUM_SHARDS
    assert proxy.most_at_once > 1


def test_a_damaged_shard_ends_the_download(dataset: shardstream.TokenDataset) -> None:
    """A shard that is not what the manifest says is an error that names it; what has come stays."""
    entry = dataset.manifest.shards[3]
    (Path(dataset.uri) / entry.name).write_bytes(bytes(entry.file_bytes))

    with pytest.raises(shardstream.IntegrityError, match="shard-000003.bin.zst"):
        dataset.download()

    assert dataset[0] == 0
