"""The verbs that look at a dataset, where it lies behind a URL; and what they say when it cannot be had."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardstream
from tests.cli.conftest import environment_of
from tests.conftest import S3Place


@pytest.fixture
def remote(cloud: S3Place) -> S3Place:
    """A dataset of four shards, 2 kB each, on S3."""
    with shardstream.DatasetWriter(cloud.url, vocab_size=2**16, shard_tokens=1024) as writer:
        writer.append(np.arange(4096))
    return cloud


def write_compressed(url: str) -> None:
    with shardstream.DatasetWriter(url, vocab_size=2**16, shard_tokens=1024, compression="zstd") as writer:
        writer.append(np.arange(4096))


def test_peek_reads_the_window_and_keeps_nothing(run, remote: S3Place, fault_proxy, own_cache: Path) -> None:
    """A look at a few tokens behind a URL costs their bytes, not a shard, and leaves no cache behind."""
    proxy = fault_proxy(remote.endpoint_url)
    environment = environment_of(remote, proxy.endpoint_url)

    report = json.loads(run("peek", remote.url, "--position", 1022, "--length", 4, "--json", **environment).stdout)

    assert report["tokens"] == [1022, 1023, 1024, 1025]
    assert sum(request.num_bytes for request in proxy.requests if "shard-" in request.path) == 4 * 2
    assert not own_cache.exists()


def test_peek_at_a_compressed_dataset_goes_through_the_cache(run, cloud: S3Place, own_cache: Path) -> None:
    """Tokens of a compressed shard can only be had with the shard."""
    write_compressed(cloud.url)

    report = json.loads(run("peek", cloud.url, "--position", 1030, "--length", 2, "--json").stdout)

    assert report["tokens"] == [1030, 1031]
    assert len(shardstream.ShardCache(own_cache).shards()) == 1


@pytest.mark.parametrize("is_compressed", [False, True], ids=["raw", "zstd"])
def test_verify_streams_and_finds_damage(run, cloud: S3Place, own_cache: Path, is_compressed: bool) -> None:
    """Shards behind a URL are verified as they are stored and not kept; an altered one is named."""
    with shardstream.DatasetWriter(
        cloud.url, vocab_size=2**16, shard_tokens=1024, compression="zstd" if is_compressed else None
    ) as writer:
        writer.append(np.arange(4096))
    good = run("verify", cloud.url).stdout
    entry = writer.manifest.shards[2]
    cloud.client.put_object(Bucket=cloud.bucket, Key=f"{cloud.prefix}/{entry.name}", Body=bytes(entry.file_bytes))

    bad = json.loads(run("verify", cloud.url, "--json", status=1).stdout)

    assert good.startswith("all well: 4 shards, 4,096 tokens, 8.2 kB, read in ")
    assert [problem["shard"] for problem in bad["problems"]] == [entry.name]
    assert not own_cache.exists()


def test_info_takes_one_request(run, remote: S3Place, fault_proxy, own_cache: Path) -> None:
    """Info reads the manifest and nothing else."""
    proxy = fault_proxy(remote.endpoint_url)

    report = json.loads(run("info", remote.url, "--json", **environment_of(remote, proxy.endpoint_url)).stdout)

    assert (report["uri"], report["num_tokens"]) == (remote.url, 4096)
    assert [request.method for request in proxy.requests] == ["GET"]
    assert not own_cache.exists()


def test_bench_goes_through_the_cache(run, remote: S3Place, tmp_path: Path) -> None:
    """What is not in the cache is downloaded and counted; after that nothing is."""
    options = ("--context-length", 16, "--seconds", 0.01, "--cache-dir", tmp_path / "cache", "--max-cache-bytes", "1MB")

    first = json.loads(run("bench", remote.url, *options, "--json").stdout)
    second = run("bench", remote.url, *options).stdout

    assert first["num_downloads"] == 4
    assert "downloaded            0 shards, " in second


def test_bench_with_too_small_a_bound_is_wrong_use(run, remote: S3Place) -> None:
    """A bound below one shard is named with what is needed."""
    assert (
        "max_cache_bytes is 1,000; wanted at least 2,048"
        in run("bench", remote.url, "--max-cache-bytes", "1k", status=2).stderr
    )


@pytest.mark.parametrize(
    "command",
    [
        ["info", "{url}"],
        ["verify", "{url}"],
        ["peek", "{url}"],
        ["bench", "{url}"],
        ["warm", "{url}"],
        ["copy", "{url}", "there"],
        ["copy", "{dataset}", "{url}"],
    ],
    ids=" ".join,
)
def test_a_missing_bucket_is_one_line_and_status_1(run, cloud: S3Place, write_dataset, command: list[str]) -> None:
    """A bucket that is not there is named with what was wanted of it."""
    url = f"s3://{cloud.bucket}-is-not-there/x"
    dataset = write_dataset([1])

    message = run(*(word.format(url=url, dataset=dataset.uri) for word in command), status=1).stderr

    assert message.startswith(f"Error: {url}")
    assert message.count("\n") == 1


def test_refused_credentials_are_one_line_and_status_1(run, remote: S3Place, fault_proxy) -> None:
    """Credentials that the store refuses are an error at once, which says so."""
    proxy = fault_proxy(remote.endpoint_url, rates={"403": 1.0})

    message = run("peek", remote.url, status=1, **environment_of(remote, proxy.endpoint_url)).stderr

    assert message == (
        f"Error: {remote.url}/manifest.json: cannot read: HTTP 403 AccessDenied; check the credentials, and what they "
        "allow; a dataset is a folder or URL with a manifest.json, which its writer adds last\n"
    )


def test_no_credentials_are_one_line_and_status_1(run, s3: S3Place) -> None:
    """An environment without credentials is an error that says so."""
    message = run("info", s3.url, status=1, AWS_ENDPOINT_URL=s3.endpoint_url, AWS_REGION="us-east-1").stderr

    assert message.startswith(f"Error: {s3.url}/manifest.json: cannot read: Unable to locate credentials")
    assert message.count("\n") == 1


def test_no_network_is_status_1(cloud: S3Place, fault_proxy, tmp_path: Path) -> None:
    """A server that does not answer is named when the time for tries is over; each try before that is a warning."""
    proxy = fault_proxy(cloud.endpoint_url)
    proxy.close()
    # A minute and a half of tries, for the sake of stores that are back by then, made short.
    script = """
import sys
from shardstream.storage import retry
retry.RETRY_FOR_S = 0.3
from shardstream.cli import main
main(sys.argv[1:], prog_name="shardstream")
"""

    done = subprocess.run(
        [sys.executable, "-c", script, "info", cloud.url],
        env={**environment_of(cloud, proxy.endpoint_url), "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        check=False,
    )

    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"Error: {cloud.url}/manifest.json: cannot read: ")
    assert "its writer adds last" not in last  # it may well be there
    assert "Traceback" not in done.stderr
