"""Processes that were started in any way read what their parent reads."""

import subprocess
import sys
from pathlib import Path

import pytest

READING_CHILDREN = Path(__file__).with_name("reading_children.py")


def read_in_children(folder: str, method: str, job: str) -> str:
    """What the program has to say: that all was read, or what went wrong."""
    result = subprocess.run(
        [sys.executable, READING_CHILDREN, folder, method, job], check=False, capture_output=True, text=True
    )
    return result.stdout + (result.stderr if result.returncode else "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("job", ["dataset", "stream", "loader"])
def test_children_read_what_the_parent_reads(job, method, write_dataset, tokens) -> None:
    """Promise 9: children of a process that has read, started in any way, read the same within 10 s."""
    assert read_in_children(write_dataset(tokens).uri, method, job) == "read\n"


def test_a_stateful_loader_resumes_a_stream_in_its_worker(write_dataset, tokens) -> None:
    """With one worker, which has read ahead of the loop, a StatefulDataLoader's state resumes at the very next batch."""
    assert read_in_children(write_dataset(tokens).uri, "fork", "stateful") == "read\n"


def test_several_workers_are_refused_a_stream(write_dataset, tokens) -> None:
    """A DataLoader with two workers around a batch stream is a ValueError at its first batch: each would read all."""
    assert read_in_children(write_dataset(tokens).uri, "fork", "refused") == "read\n"
