"""Processes that were started in any way read what their parent reads."""

import subprocess
import sys
from pathlib import Path

import pytest

import shardstream
from tests.conftest import S3Place

READING_CHILDREN = Path(__file__).with_name("reading_children.py")


def read_in_children(*arguments: str) -> str:
    """What the program has to say: that all was read, or what went wrong."""
    result = subprocess.run([sys.executable, READING_CHILDREN, *arguments], check=False, capture_output=True, text=True)
    return result.stdout + (result.stderr if result.returncode else "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("job", ["dataset", "stream", "loader"])
def test_children_read_what_the_parent_reads(job, method, write_dataset, tokens) -> None:
    """Promise 9: children of a process that has read, started in any way, read the same within 10 s."""
    assert read_in_children(write_dataset(tokens).uri, method, job) == "read\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("how", [["dataset"], ["dataset", "ranges"], ["stream"]], ids="-".join)
def test_children_read_from_s3_what_the_parent_reads(method, how, s3: S3Place, monkeypatch, tokens) -> None:
    """Promise 9: so do children of a process that has read from S3, through a cache or by ranges, within 10 s."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.server.secret)
    monkeypatch.setenv("AWS_REGION", s3.server.region)
    with shardstream.DatasetWriter(s3.url, vocab_size=1000, shard_tokens=256) as writer:
        writer.append(tokens)

    assert read_in_children(s3.url, method, *how) == "read\n"


def test_a_stateful_loader_resumes_a_stream_in_its_worker(write_dataset, tokens) -> None:
    """With one worker, which has read ahead of the loop, a StatefulDataLoader's state resumes at the very next batch."""
    assert read_in_children(write_dataset(tokens).uri, "fork", "stateful") == "read\n"


def test_several_workers_are_refused_a_stream(write_dataset, tokens) -> None:
    """A DataLoader with two workers around a batch stream is a ValueError at its first batch: each would read all."""
    assert read_in_children(write_dataset(tokens).uri, "fork", "refused") == "read\n"
