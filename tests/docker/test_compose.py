"""docker/compose.yaml runs from one command, and goes on from another."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "docker" / "compose.yaml"
pytestmark = [pytest.mark.docker, pytest.mark.timeout(500)]


class Compose:
    """One cluster of compose.yaml under one of the two programs."""

    def __init__(self, program: list[str]) -> None:
        self._command = [*program, "--file", str(FILE), "--project-name", f"test-{uuid.uuid4().hex[:8]}"]

    def __call__(self, *arguments: str, num_steps: int = 10) -> str:
        """What a command printed, which has to end well."""
        done = subprocess.run(
            [*self._command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=os.environ | {"STEPS": str(num_steps)},
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def summary(self, num_steps: int) -> str:
        try:
            return self("run", "--rm", "summary", num_steps=num_steps)
        except AssertionError:
            print(self("logs", "--no-color"))
            raise


@pytest.fixture(params=["docker-compose", "docker compose"])
def compose(request: pytest.FixtureRequest) -> Iterator[Compose]:
    """Debian's program, and the plugin of today."""
    program = request.param.split()
    is_there = False
    with suppress(FileNotFoundError):
        is_there = subprocess.run([*program, "version"], capture_output=True, check=False).returncode == 0
    if not is_there:
        pytest.skip(f"needs {request.param}")
    compose = Compose(program)
    yield compose
    compose("down", "--volumes")


def test_one_command_runs_it_all(compose: Compose) -> None:
    """One command writes to the S3, trains on two nodes, and ends with the figures of each rank; so does a longer run."""
    first = compose.summary(10)
    compose("rm", "--force", "trainer-0", "trainer-1", num_steps=20)
    second = compose.summary(20)

    assert "step 10  loss" in first
    assert "step 20  loss" in second
    assert "step 10  loss" not in second
    for shown in (first, second):
        for rank in range(2):
            assert shown.count(f"rank {rank}: StreamStats(num_batches=10,") == 1
