"""``shardstream warm``: shards in the cache before they are needed."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

import shardstream
from tests.cli.conftest import environment_of, interrupt
from tests.conftest import S3Place

NUM_SHARDS = 8
PLAN = ("--order", "block-shuffle", "--batch-size", 2, "--context-length", 16)


@pytest.fixture
def remote(cloud: S3Place) -> S3Place:
    """A dataset of eight shards, 2 kB each, on S3."""
    with shardstream.DatasetWriter(cloud.url, vocab_size=2**16, shard_tokens=1024) as writer:
        writer.append(np.arange(NUM_SHARDS * 1024))
    return cloud


def test_a_dataset_is_downloaded_once(run, remote: S3Place, own_cache: Path) -> None:
    """All shards come into the cache; the second time they are there already, and what was read is the cache."""
    first = run("warm", remote.url).stdout
    second = json.loads(run("warm", remote.url, "--json").stdout)
    dataset = shardstream.open(remote.url)

    assert f"cache          {own_cache}\nshards         8 of the dataset's 8\n" in first
    assert "there already  0\ndownloaded     8\n" in first
    assert (second["num_shards"], second["num_bytes"]) == (8, 8 * 2048)
    assert (second["num_present_shards"], second["num_downloaded_shards"]) == (8, 0)
    assert np.array_equal(dataset[:], np.arange(8 * 1024))
    assert dataset.traffic().num_downloads == 0


def test_ranks_download_their_lanes_alone(run, remote: S3Place, tmp_path: Path) -> None:
    """With a rank's plan only what its first epoch needs comes: the lanes of all ranks together are the dataset."""
    plan = (*PLAN, "--dp-world-size", 2, "--lanes", 2, "--seed", 5, "--block-tokens", 1024, "--buffer-blocks", 1)
    reports = [
        json.loads(
            run("warm", remote.url, *plan, "--dp-rank", rank, "--cache-dir", tmp_path / str(rank), "--json").stdout
        )
        for rank in range(2)
    ]
    found = [{shard.sha256 for shard in shardstream.ShardCache(tmp_path / str(rank)).shards()} for rank in range(2)]

    assert [report["num_downloaded_shards"] for report in reports] == [len(shards) for shards in found]
    assert max(map(len, found)) < NUM_SHARDS
    assert found[0] | found[1] == {entry.sha256 for entry in shardstream.open(remote.url).manifest.shards}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--max-cache-bytes", "8kB"],
            "Error: max_cache_bytes is 8,000; wanted at least 16,384: so much are the 8 shards of ",
        ),
        (
            ["--seed", "3"],
            "Error: a rank's plan needs --batch-size and --context-length too, as given to BatchStream\n",
        ),
        (["--batch-size", "1", "--context-length", "9", "--order", "any"], "Error: order is 'any'; wanted one of "),
        (["--batch-size", "1", "--context-length", "9", "--lanes", "2"], "Error: lanes is 2, but order is 'shuffle'"),
    ],
    ids=["bound", "half a plan", "order", "lanes"],
)
def test_what_cannot_be_is_wrong_use_before_the_first_byte(
    run, remote: S3Place, own_cache: Path, options: list[str], message: str
) -> None:
    """A bound below what is asked for, or a plan that contradicts itself, is named with its figures; nothing comes."""
    assert run("warm", remote.url, *options, status=2).stderr.startswith(message)
    assert not own_cache.exists()


def test_a_dataset_that_is_read_in_place_needs_no_download(run, write_dataset) -> None:
    """Raw shards on a local disk are read where they are; to warm them is wrong use."""
    assert (
        "is not read through a cache, so there is nothing to download into\n"
        in run("warm", write_dataset([1]).uri, status=2).stderr
    )


def test_ctrl_c_keeps_whole_shards(start, run, remote: S3Place, fault_proxy, own_cache: Path) -> None:
    """Ctrl-C while a shard stalls ends the program; the same command then downloads what is missing."""
    proxy = fault_proxy(remote.endpoint_url, rates={"stall": 1.0}, only="shard-00000")
    started = start("warm", remote.url, **environment_of(remote, proxy.endpoint_url))
    while not any(request.outcome == "stall" for request in proxy.requests):
        assert started.poll() is None
        time.sleep(0.01)

    message = interrupt(started)
    report = json.loads(run("warm", remote.url, "--json").stdout)

    assert message == "Error: interrupted; shards that are whole are kept, the same command goes on"
    assert report["num_downloaded_shards"] == NUM_SHARDS
