"""The batch file of docker/slurm trains, with two shells in the place of Slurm's own commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shardstream import DatasetWriter

CHECKOUT = Path(__file__).parents[2]
BATCH_FILE = CHECKOUT / "docker" / "slurm" / "train.sbatch"
TINY = ("--steps=3", "--layers=1", "--heads=2", "--width=32", "--context-length=8", "--global-batch-size=8")
# Two tasks, as on two nodes; the status is the worse one.
SRUN = """#!/bin/bash
shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" && wait $first
"""
# A cluster so large that its list of nodes overfills a pipe that nobody reads to the end.
SCONTROL = """#!/bin/bash
printf '127.0.0.1\\n'
seq --format='node-%06.0f' 2 50000
"""

pytestmark = pytest.mark.skipif(not BATCH_FILE.is_file(), reason="docker/ comes with the checkout, not with the wheel")


@pytest.mark.slow
def test_two_nodes_train(tmp_path: Path) -> None:
    """Two nodes become ranks 0 and 1 of one run, with the arguments of sbatch, and leave a checkpoint."""
    with DatasetWriter(tmp_path / "dataset", vocab_size=17) as writer:
        writer.append(np.arange(2000) % 17)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    slurm = {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost,other",
        "SLURM_SUBMIT_DIR": str(CHECKOUT),
        "CHECKPOINT": str(tmp_path / "gpt.pt"),
        "USER": "somebody",
    }

    done = subprocess.run(
        ["bash", BATCH_FILE, tmp_path / "dataset", *TINY],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=os.environ | slurm,
    )

    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^rank (\d) of 2", done.stdout, re.MULTILINE)) == {"0", "1"}
    assert (tmp_path / "gpt.pt").is_file()
