"""Which rank this process is: told, asked of torch.distributed, or refused; never guessed."""

import subprocess
import sys
from pathlib import Path

import pytest

from shardstream.stream.replica import replica_of


def test_a_single_process_is_the_only_rank() -> None:
    """With nothing said and no launcher about, there is one rank."""
    assert replica_of(None, None, None)[:2] == (0, 1)


def test_the_arguments_count() -> None:
    """What is given is taken."""
    assert replica_of(2, 5, None) == (2, 5, "the arguments")


def test_one_of_several_processes_must_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 19: WORLD_SIZE above 1 with neither given is an error; a launcher of one process is none."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert replica_of(None, None, None)[:2] == (0, 1)

    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="WORLD_SIZE is 8, but nobody said which of these processes this is; call "):
        replica_of(None, None, None)
    assert replica_of(3, 8, None)[:2] == (3, 8)


def test_a_mesh_of_two_by_two_by_two(dataset_of, tmp_path: Path) -> None:
    """Promise 19: eight processes: those that differ in tensor or pipeline place alone get the same samples, others not."""
    script = Path(__file__).with_name("mesh_processes.py")
    command = [sys.executable, str(script), dataset_of(500).uri, str(tmp_path)]

    subprocess.run(command, check=True, timeout=100)
