"""Promise 1: kill and restart always works."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardstream
from tests.conftest import S3Place

KILLED_READER = Path(__file__).with_name("killed_reader.py")


def test_a_reading_job_killed_a_hundred_times(write_dataset, tmp_path: Path) -> None:
    """Promise 1: 100 random SIGKILLs of two jobs on one dataset: each restart reads at once, nothing is left behind."""
    dataset = write_dataset(np.arange(2**16) % 1000, shard_tokens=2**10)
    folder = tmp_path / "jobs"
    folder.mkdir()

    subprocess.run([sys.executable, str(KILLED_READER), dataset.uri, str(folder), "100"], check=True, timeout=100)


@pytest.mark.parametrize("num_kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_jobs_that_share_a_cache_are_killed(
    s3: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_kills: int
) -> None:
    """Promise 1: two jobs on one dataset at S3 and in one bounded cache, killed at random: each restart reads at once."""
    with shardstream.DatasetWriter(
        s3.url, vocab_size=1000, shard_tokens=2**12, storage_options=s3.storage_options
    ) as writer:
        writer.append(np.arange(2**16) % 1000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.server.secret)
    monkeypatch.setenv("AWS_REGION", s3.server.region)
    folder = tmp_path / "jobs"
    folder.mkdir()

    command = [sys.executable, str(KILLED_READER), s3.url, str(folder), str(num_kills), str(12 * 2**13)]
    subprocess.run(command, check=True, timeout=110)
