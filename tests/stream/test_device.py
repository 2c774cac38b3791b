"""The way to the device, as far as it can be seen without one."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shardstream import BatchStream, TokenDataset
from shardstream.stream import batch_stream
from shardstream.stream.device import Batch, HostCopy, samples_of_windows


class AheadCopy(HostCopy):
    """The CPU, in the manner of a CUDA device: each batch is begun while the one before is in use."""

    runs_ahead = True

    def __init__(self, *, breaks_at: int) -> None:
        super().__init__(torch.device("cpu"), 4)
        self.log: list[str] = []
        self._breaks_at: int | None = breaks_at

    def begin(self, dataset: TokenDataset, starts: NDArray[np.int64]) -> Callable[[], Batch]:
        self.log.append(f"begin {starts[0]}")
        if starts[0] == self._breaks_at:
            self._breaks_at = None  # once
            raise OSError("broken")
        batch = super().begin(dataset, starts)()

        def finish() -> Batch:
            self.log.append(f"finish {starts[0]}")
            return batch

        return finish


def test_samples_of_windows() -> None:
    """A window of four tokens is a sample of three, widened and contiguous."""
    inputs, targets = samples_of_windows(np.array([[1, 2, 3, 65_535]], dtype="<u2"))

    assert inputs.tolist() == [[1, 2, 3]]
    assert targets.tolist() == [[2, 3, 65_535]]
    assert inputs.dtype == targets.dtype == torch.int64
    assert targets.is_contiguous()


def test_the_next_batch_is_begun_before_this_one_is_returned(dataset_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that runs ahead is one batch ahead; the state counts what was returned, and an error waits its turn."""
    # After a step of a loop that is slow, and a busy machine makes any step so, a thread begins the next batch, and the
    # log has no order.
    monkeypatch.setattr(batch_stream, "_SLOW_STEP_S", float("inf"))
    stream = BatchStream(dataset_of(101), batch_size=1, context_length=3, order="sequential", epochs=1)
    stream._copy = copy = AheadCopy(breaks_at=6)

    assert next(stream)[0].tolist() == [[0, 1, 2]]
    assert copy.log == ["begin 0", "begin 3", "finish 0"]
    assert stream.num_samples == 1

    assert next(stream)[0].tolist() == [[3, 4, 5]]
    assert copy.log[3:] == ["begin 6", "finish 3"]
    with pytest.raises(OSError, match="broken"):
        next(stream)
    assert stream.num_samples == 2
    assert [inputs[0, 0].item() for inputs, _ in stream] == list(range(6, 99, 3))


def test_without_torch_the_remedy_is_named(dataset_of) -> None:
    """Where torch is not installed, a batch stream says how to install it."""
    script = f"""
import sys
sys.modules["torch"] = None
import shardstream
dataset = shardstream.open({dataset_of(101).uri!r})
try:
    shardstream.BatchStream(dataset, batch_size=1, context_length=3)
except ModuleNotFoundError as error:
    assert str(error) == "BatchStream needs PyTorch: pip install 'shardstream[torch]'", error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
