"""Datasets for laws that try many: one for each length, written once."""

import functools
from collections.abc import Callable

import numpy as np
import pytest

import shardstream
from shardstream import TokenDataset

DatasetOf = Callable[[int], TokenDataset]


@pytest.fixture(scope="session")
def dataset_of(tmp_path_factory: pytest.TempPathFactory) -> DatasetOf:
    """A dataset of so many tokens, token p being p, in shards of 16."""
    folder = tmp_path_factory.mktemp("datasets")

    @functools.cache
    def dataset(num_tokens: int) -> TokenDataset:
        with shardstream.DatasetWriter(folder / str(num_tokens), vocab_size=2**16, shard_tokens=16) as writer:
            writer.append(np.arange(num_tokens))
        return shardstream.open(folder / str(num_tokens))

    return dataset
