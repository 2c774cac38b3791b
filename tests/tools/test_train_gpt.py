"""The trainer of tools/ learns, and goes on after a kill with the very samples that come next, on any number of ranks."""

import importlib.util
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

TRAINER = Path(__file__).parents[2] / "tools" / "train_gpt.py"
TINY = ("--layers=1", "--heads=2", "--width=32", "--context-length=8", "--global-batch-size=8", "--log-every=1")
CHECKPOINT_EVERY = 4  # steps
MANY = 100_000  # steps: no run is done with them before it is killed, and none goes on for ever should that fail
# Ranks share the cores, and one thread each makes their sums the same from run to run.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(not TRAINER.is_file(), reason="the trainer comes with the checkout, not with the wheel")


class Line(NamedTuple):
    """Of a position log."""

    step: int
    sample: int
    position: int


@pytest.fixture
def pattern(write_dataset):
    """A dataset in which every token follows from the one before."""
    return write_dataset(np.arange(2000) % 17, vocab_size=17, shard_tokens=512).uri


@pytest.fixture
def noise(write_dataset):
    """A dataset of which only the frequencies of tokens can be learnt: the loss falls, and never comes near zero."""
    tokens = np.random.default_rng(5).geometric(0.4, 1500).clip(max=63)
    return write_dataset(tokens, vocab_size=64, shard_tokens=512).uri


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_gpt", TRAINER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(*options: object) -> dict[int, float]:
    """Train alone to the end; the loss of each step."""
    done = subprocess.run(
        [sys.executable, TRAINER, *map(str, options), *TINY],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    return losses_in(done.stdout)


def losses_in(output: str) -> dict[int, float]:
    """By the number of steps done."""
    return {int(step): float(loss) for step, loss in re.findall(r"^step (\d+)  loss ([\d.]+) ", output, re.MULTILINE)}


@contextmanager
def torchrun(num_ranks: int, output: Path, *options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """Train on several ranks; at the end of the block all processes are killed at once, as by a power failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, TRAINER, *map(str, options), *TINY],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # torchrun gives each rank a session of its own: its process group does not hold them.
        ranks = [int(pid) for pid in re.findall(r"process (\d+) on cpu", output.read_text())]
        if process.poll() is None:
            for pid in (process.pid, *ranks):
                with suppress(ProcessLookupError):  # a rank may have ended by an error of its own
                    os.killpg(pid, signal.SIGKILL)
            process.wait()


def log_of_rank(log: Path, dp_rank: int) -> list[Line]:
    path = Path(f"{log}.rank{dp_rank}")
    text = path.read_text() if path.exists() else ""
    return [Line(*map(int, line.split())) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def log_of_all(log: Path) -> list[Line]:
    """Of all ranks, by step and sample."""
    return sorted(line for dp_rank in range(2) for line in log_of_rank(log, dp_rank))


def wait_for_step(process: "subprocess.Popen[bytes]", output: Path, log: Path, step: int) -> None:
    deadline_s = time.monotonic() + 60
    while not any(line.step >= step for line in log_of_rank(log, 0)):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline_s, f"no step {step} within a minute: {output.read_text()}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_the_loss_falls(pattern, device: str) -> None:
    """On tokens that follow from one another the loss falls from chance to a tenth of it within 80 steps."""
    losses = train(pattern, "--steps=80", "--lr=0.01", f"--device={device}")

    assert list(losses) == list(range(1, 81))
    assert losses[1] == pytest.approx(np.log(17), abs=0.2)
    assert losses[80] < losses[1] / 10


@pytest.mark.slow
def test_a_run_in_two_halves_is_one_run(noise, tmp_path: Path) -> None:
    """On the CPU, a run that is resumed has the losses and the weights, to the last bit, of one that never stopped."""
    losses = train(noise, "--steps=12", "--checkpoint", tmp_path / "whole.pt")

    first = train(noise, "--steps=7", "--checkpoint", tmp_path / "halves.pt")
    second = train(noise, "--steps=12", "--checkpoint", tmp_path / "halves.pt")

    assert first | second == losses
    assert list(second) == list(range(8, 13))
    whole, halves = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "halves.pt"))
    assert whole["stream"] == halves["stream"]
    assert whole["model"].keys() == halves["model"].keys()
    assert all(torch.equal(weights, halves["model"][name]) for name, weights in whole["model"].items())


@pytest.mark.slow
def test_killed_and_resumed_at_another_world_size(noise, tmp_path: Path) -> None:
    """Killed on one rank, then on two, then ended on one: what counts is, sample by sample, one run without any kill."""
    checkpoint = (noise, "--checkpoint", tmp_path / "gpt.pt", "--checkpoint-every", CHECKPOINT_EVERY)
    logs = [tmp_path / f"log-{attempt}" for attempt in range(3)]
    outputs = [tmp_path / f"output-{attempt}" for attempt in range(3)]

    first_step = 0
    for num_ranks, log, output in zip((1, 2), logs, outputs, strict=False):
        with torchrun(num_ranks, output, *checkpoint, "--position-log", log, "--steps", MANY) as process:
            wait_for_step(process, output, log, first_step + 2 * CHECKPOINT_EVERY + 2)
        first_step = log_of_rank(log, 0)[-1].step
    num_steps = first_step + CHECKPOINT_EVERY
    with torchrun(1, outputs[2], *checkpoint, "--position-log", logs[2], "--steps", num_steps) as process:
        assert process.wait(timeout=60) == 0, outputs[2].read_text()
    losses = train(noise, "--position-log", tmp_path / "undisturbed", "--steps", num_steps)

    attempts = [log_of_all(log) for log in logs]
    begins = [attempt[0].step for attempt in attempts]
    assert 0 == begins[0] < begins[1] < begins[2], "each attempt goes on from a checkpoint of the one before"
    assert not any(begin % CHECKPOINT_EVERY for begin in begins)
    stops = [*begins[1:], num_steps]
    standing = [
        line
        for attempt, stop in zip(attempts, stops, strict=True)
        for line in attempt
        if line.step < stop  # what came after the last checkpoint is done again
    ]
    assert [line.sample for line in standing] == list(range(8 * num_steps))
    assert standing == log_of_all(tmp_path / "undisturbed")
    assert {line.sample % 8 for line in log_of_rank(logs[1], 1)} == {4, 5, 6, 7}, "the second rank had its half"
    standing_losses = {
        step: loss
        for output, begin, stop in zip(outputs, begins, stops, strict=True)
        for step, loss in losses_in(output.read_text()).items()
        if begin < step <= stop
    }
    assert standing_losses == pytest.approx(losses, abs=0.02)


class Part:
    """Something with a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def test_a_checkpoint_is_replaced_whole_or_not_at_all(trainer: ModuleType, tmp_path: Path) -> None:
    """A checkpoint whose writing fails leaves the one before it, and the next one takes its place."""
    path, size, loaded = tmp_path / "gpt.pt", {"width": 4}, {"stream": Part(None)}

    trainer.save_checkpoint(path, 1, size, {"stream": Part({"num_samples": 8})})
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        trainer.save_checkpoint(path, 2, size, {"stream": Part(lambda: None)})

    assert trainer.load_checkpoint(path, size, loaded) == 1
    assert loaded["stream"].state == {"num_samples": 8}
    trainer.save_checkpoint(path, 3, size, {"stream": Part({"num_samples": 24})})
    assert trainer.load_checkpoint(path, size, loaded) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["gpt.pt"]


def test_a_checkpoint_runs_no_code(trainer: ModuleType, tmp_path: Path) -> None:
    """A checkpoint that holds anything but tensors and plain values is refused."""
    trainer.save_checkpoint(tmp_path / "gpt.pt", 1, {}, {"model": Part(Path("harmless"))})

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trainer.load_checkpoint(tmp_path / "gpt.pt", {}, {"model": Part(None)})


def test_a_checkpoint_of_another_model_is_refused(trainer: ModuleType, tmp_path: Path) -> None:
    """A checkpoint of a model of another size is refused before anything is loaded, with both sizes."""
    part = Part("new")
    trainer.save_checkpoint(tmp_path / "gpt.pt", 1, {"heads": 2}, {"model": Part("old")})

    with pytest.raises(SystemExit, match=r"gpt.pt: holds a model of \{'heads': 2\}, wanted \{'heads': 4\}; give its"):
        trainer.load_checkpoint(tmp_path / "gpt.pt", {"heads": 4}, {"model": part})
    assert part.state == "new"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--steps=0"], "--steps is 0; wanted at least 1", id="no-steps"),
        pytest.param(["--width=30"], "--width 30 is no multiple of --heads 4; change one of them", id="heads"),
        pytest.param(["--global-batch-size=16"], "--global-batch-size 16 is no multiple of the 3 ranks", id="ranks"),
    ],
)
def test_wrong_options_are_refused(trainer: ModuleType, monkeypatch, capsys, options: list[str], message: str) -> None:
    """Options that contradict one another, or the number of ranks, are wrong use, before any process waits for others."""
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", "DATASET", *options])
    monkeypatch.setenv("WORLD_SIZE", "3")

    with pytest.raises(SystemExit, match="^2$"):
        trainer.parsed_options()
    assert message in capsys.readouterr().err
