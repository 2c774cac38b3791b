"""How fast batches can be drawn from a dataset."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream import TokenDataset, get_batch


def has_module(name: str) -> bool:
    """Whether a module is installed; it is not imported."""
    return importlib.util.find_spec(name) is not None


def batch_maker(dataset: TokenDataset, batch_size: int, context_length: int) -> Callable[[], Any]:
    """What draws one batch: int64 tensors by ``get_batch``, or where torch is not installed, the same as arrays."""
    if has_module("torch"):
        return lambda: get_batch(dataset, batch_size, context_length)
    generator = np.random.default_rng()

    def arrays() -> NDArray[np.int64]:
        starts = generator.integers(0, len(dataset) - context_length, batch_size)
        return dataset.windows(starts, context_length + 1).astype(np.int64)

    return arrays


def times_of(action: Callable[[], object], seconds: float) -> NDArray[np.float64]:
    """Do something for so many seconds, at least once; return how long each time took, in seconds."""
    times: list[float] = []
    began = now = time.perf_counter()
    while not times or now - began < seconds:
        action()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return np.array(times)
