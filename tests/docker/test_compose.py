"""docker/compose.yaml runs from one command."""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "docker" / "compose.yaml"
pytestmark = [pytest.mark.docker, pytest.mark.timeout(400)]


@pytest.fixture
def compose() -> list[str]:
    """Debian's docker-compose, or the plugin of today."""
    command = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs docker-compose")
    return [*command, "--file", str(FILE), "--project-name", f"test-{uuid.uuid4().hex[:8]}"]


def test_one_command_runs_it_all(compose: list[str]) -> None:
    """One command writes to the S3, trains on two nodes, and ends with the loss and the figures of each rank."""
    try:
        done = subprocess.run(
            [*compose, "run", "--rm", "summary"],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=os.environ | {"STEPS": "10"},
        )
        logs = subprocess.run([*compose, "logs", "--no-color"], capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*compose, "down", "--volumes"], capture_output=True, check=True)

    assert done.returncode == 0, done.stderr + logs
    assert "step 10  loss" in done.stdout
    assert "rank 0: StreamStats(num_batches=10," in done.stdout
    assert "rank 1: StreamStats(num_batches=10," in done.stdout
