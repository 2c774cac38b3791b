"""Trainers and loaders of others, for real: each gets the windows, every one once."""

from typing import Any

import accelerate
import grain
import numpy as np
import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader

from shardstream import BatchStream, TokenDataset
from shardstream.integrations.torch_dataset import BatchStreamDataset, WindowDataset

pytestmark = [
    # Lightning's own: it takes apart torch's trees in a way that torch has given up.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # Lightning's advice, which does not concern a test: more workers, and care with several of them.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
]


@pytest.fixture
def windows(write_dataset, tokens) -> WindowDataset:
    return WindowDataset(write_dataset(tokens), 16)


class Bigrams(pytorch_lightning.LightningModule):
    """The smallest language model; it remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(1000, 1000)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        self.seen.append(batch)
        inputs, targets = batch
        return torch.nn.functional.cross_entropy(self.table(inputs).flatten(0, 1), targets.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Bigrams, loader: DataLoader[Any]) -> None:
    pytorch_lightning.Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, loader)


def inputs_of(batches: Any) -> list[list[int]]:
    return [row for inputs, _ in batches for row in np.asarray(inputs).tolist()]


def test_lightning_fits_on_windows(windows) -> None:
    """Lightning's Trainer shows the model the windows that its DataLoader holds, and no others."""
    model = Bigrams()
    fit(model, DataLoader(windows, batch_size=4))

    assert inputs_of(model.seen) == [inputs.tolist() for inputs, _ in windows][:12]


def test_lightning_draws_no_more_of_a_stream_than_it_trains_on(write_dataset, tokens) -> None:
    """With epochs, Lightning's Trainer takes a batch stream batch by batch, and its state is where training is."""
    dataset = write_dataset(tokens)
    stream, expected = (BatchStream(dataset, batch_size=4, context_length=16, epochs=1) for _ in range(2))
    model = Bigrams()
    fit(model, DataLoader(BatchStreamDataset(stream), batch_size=None))

    assert inputs_of(model.seen) == inputs_of(next(expected) for _ in range(3))
    assert stream.state_dict() == expected.state_dict()


def test_accelerate_yields_all_windows(windows) -> None:
    """A DataLoader that Accelerate prepared yields every window once."""
    loader = accelerate.Accelerator(cpu=True).prepare(DataLoader(windows, batch_size=4, shuffle=True))

    assert sorted(inputs_of(loader)) == sorted(inputs.tolist() for inputs, _ in windows)


def test_grain_shuffles_and_batches_windows(windows) -> None:
    """Grain takes the windows as a source, and makes its own batches of them."""
    batches = list(grain.MapDataset.source(windows).shuffle(seed=3).batch(4))

    assert {np.asarray(targets).shape for _, targets in batches[:-1]} == {(4, 16)}
    assert sorted(inputs_of(batches)) == sorted(inputs.tolist() for inputs, _ in windows)


def test_grain_resumes_a_loader_of_windows(write_dataset, tokens, tmp_path) -> None:
    """A state of Grain's DataLoader goes on wherever the same tokens lie, and is refused for others."""

    def loader_of(dataset: TokenDataset) -> grain.DataLoader:
        windows = WindowDataset(dataset, 16)
        sampler = grain.samplers.IndexSampler(len(windows), num_epochs=1, shuffle=True, seed=3)
        return grain.DataLoader(data_source=windows, sampler=sampler)

    batches = iter(loader_of(write_dataset(tokens)))
    next(batches)
    state = batches.get_state()
    resumed = iter(loader_of(write_dataset(tokens, uri=tmp_path / "moved")))
    resumed.set_state(state)
    other = iter(loader_of(write_dataset(tokens[::-1], uri=tmp_path / "other")))

    assert [inputs.tolist() for inputs, _ in resumed] == [inputs.tolist() for inputs, _ in batches]
    with pytest.raises(ValueError, match="source"):
        other.set_state(state)
