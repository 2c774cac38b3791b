"""Promise 1: kill and restart always works."""

import subprocess
import sys
from pathlib import Path

import numpy as np


def test_a_reading_job_killed_a_hundred_times(write_dataset, tmp_path: Path) -> None:
    """Promise 1: 100 random SIGKILLs of two jobs on one dataset: each restart reads at once, nothing is left behind."""
    dataset = write_dataset(np.arange(2**16) % 1000, shard_tokens=2**10)
    folder = tmp_path / "jobs"
    folder.mkdir()
    script = Path(__file__).with_name("killed_reader.py")

    subprocess.run([sys.executable, str(script), dataset.uri, str(folder), "100"], check=True, timeout=100)
