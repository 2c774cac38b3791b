"""What many tests need: small datasets and a generator whose seed pytest-randomly varies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

import shardstream
from shardstream import TokenDataset

# A disk may be slow for a moment; that is no defect of what is tested.
settings.register_profile("shardstream", deadline=None)
settings.load_profile("shardstream")

WriteDataset = Callable[..., TokenDataset]


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """Write tokens and open what came of it."""

    def write(tokens: Any, *, vocab_size: int = 1000, shard_tokens: int = 64, **options: Any) -> TokenDataset:
        uri = options.pop("uri", tmp_path / "dataset")
        with shardstream.DatasetWriter(uri, vocab_size=vocab_size, shard_tokens=shard_tokens, **options) as writer:
            writer.append(tokens)
        return shardstream.open(uri)

    return write


@pytest.fixture
def tokens() -> NDArray[np.uint16]:
    """A thousand ids below 1000, none of them twice in a row by chance only."""
    return np.random.default_rng(7).integers(0, 1000, 1000, dtype=np.uint16)
