"""The batch file of docker/slurm trains, with two shells in the place of Slurm's own commands."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shardstream import DatasetWriter

CHECKOUT = Path(__file__).parents[2]
BATCH_FILE = CHECKOUT / "docker" / "slurm" / "train.sbatch"
TINY = ("--steps=3", "--layers=1", "--heads=2", "--width=32", "--context-length=8", "--global-batch-size=8")
# Two tasks, as on two nodes; fails if either does. Like Slurm's own it takes the CPUs of a task from one variable only.
SRUN = """#!/bin/bash
shift
[[ $SRUN_CPUS_PER_TASK == "$SLURM_CPUS_PER_TASK" ]] || exit 1
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@"; second=$?
wait $first && exit $second
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
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "SLURM_JOB_NODELIST": "localhost,other",
        "SLURM_SUBMIT_DIR": str(CHECKOUT),
        "CHECKPOINT": str(tmp_path / "gpt.pt"),
        "USER": "somebody",
    }

    with subprocess.Popen(
        ["bash", BATCH_FILE, tmp_path / "dataset", *TINY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | slurm,
        start_new_session=True,
    ) as job:
        try:
            output, errors = job.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)  # the ranks too
            raise

    assert job.returncode == 0, errors
    assert set(re.findall(r"^rank (\d) of 2", output, re.MULTILINE)) == {"0", "1"}
    assert (tmp_path / "gpt.pt").is_file()
