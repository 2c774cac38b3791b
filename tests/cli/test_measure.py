"""Drawing batches and timing them."""

import importlib.util

import numpy as np
import pytest

from shardstream.cli.measure import batch_maker, times_of


def test_without_torch_batches_are_arrays(write_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is not installed, a batch is an int64 array of windows from anywhere in the dataset."""
    dataset = write_dataset(np.arange(40))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    batch = batch_maker(dataset, 500, 7)()

    assert (batch.shape, batch.dtype) == ((500, 8), np.int64)
    assert (np.diff(batch) == 1).all()
    assert set(batch[:, 0]) == set(range(33))


def test_an_action_is_done_at_least_once() -> None:
    """No time is one time."""
    calls = []

    assert len(times_of(lambda: calls.append(1), 0)) == 1
    assert calls == [1]
