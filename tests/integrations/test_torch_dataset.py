"""Windows and batch streams as torch's datasets: what any DataLoader gets of them."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader, DistributedSampler, random_split
from torchdata.stateful_dataloader import StatefulDataLoader

from shardstream import BatchStream, ResumeError
from shardstream.integrations.torch_dataset import BatchStreamDataset, WindowDataset

# torchdata's own: its StatefulDataLoader tells torch that it is in use, in a way that torch has given up.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

CONTEXT_LENGTH = 16
NUM_WINDOWS = 62  # 1,000 tokens hold so many


@pytest.fixture
def windows(write_dataset, tokens) -> WindowDataset:
    return WindowDataset(write_dataset(tokens), CONTEXT_LENGTH)


@pytest.fixture
def make_stream(write_dataset, tokens):
    """Make streams over one dataset."""
    dataset = write_dataset(tokens)

    def make(*, batch_size: int = 4, **options) -> BatchStream:
        return BatchStream(dataset, batch_size=batch_size, context_length=CONTEXT_LENGTH, **options)

    return make


def lists_of(batches) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


def test_samples_are_the_windows_at_multiples_of_m(write_dataset, tmp_path_factory) -> None:
    """For any sizes and ids, in any order, one by one or at once, samples are what slices of the tokens give."""

    @settings(max_examples=25)
    @given(
        num_tokens=st.integers(2, 60),
        shard_tokens=st.integers(1, 20),
        context_length=st.integers(1, 59),
        data=st.data(),
    )
    def law(num_tokens: int, shard_tokens: int, context_length: int, data: st.DataObject) -> None:
        context_length = min(context_length, num_tokens - 1)
        num_windows = (num_tokens - 1) // context_length
        ids = data.draw(st.lists(st.integers(-num_windows, num_windows - 1)))
        tokens = np.arange(num_tokens)
        dataset = write_dataset(tokens, shard_tokens=shard_tokens, uri=tmp_path_factory.mktemp("dataset"))
        windows = WindowDataset(dataset, context_length)
        starts = [range(num_windows)[window_id] * context_length for window_id in ids]
        expected = [
            (tokens[start:][:context_length].tolist(), tokens[start + 1 :][:context_length].tolist())
            for start in starts
        ]

        assert len(windows) == num_windows
        assert lists_of(windows.__getitems__(ids)) == expected
        assert lists_of(windows[window_id] for window_id in ids) == expected

    law()


def test_samples_are_memory_of_their_own(windows) -> None:
    """Samples are contiguous int64 tensors; writing to one changes neither another nor the dataset."""
    samples = windows.__getitems__([3, 3, 4])
    expected = lists_of(windows.__getitems__([3, 4]))
    samples[0][0].zero_()
    samples[0][1].zero_()

    for tensor in samples[0] + windows[3]:
        assert tensor.dtype == torch.int64
        assert tensor.shape == (CONTEXT_LENGTH,)
        assert tensor.is_contiguous()
    assert lists_of(samples[1:]) == expected
    assert lists_of(windows.__getitems__([3, 4])) == expected


def test_iteration_ends_with_the_last_window(windows) -> None:
    """A plain loop goes over all windows: there is an IndexError behind the last."""
    assert len(list(windows)) == NUM_WINDOWS


@pytest.mark.parametrize("window_id", [np.int32(-1), torch.tensor(61)])
def test_an_id_is_any_integer(window_id, windows) -> None:
    """NumPy's and torch's integers are ids too."""
    assert lists_of([windows[window_id]]) == lists_of([windows[61]])


@pytest.mark.parametrize(
    ("window_id", "error", "message"),
    [
        (62, IndexError, "window 62 is not in the dataset's 62 windows"),
        (-63, IndexError, "window -63 is not in the dataset's 62 windows"),
        (1.0, TypeError, "asked for by a window id, an integer, got float; for several at once use __getitems__"),
        ([1, 2], TypeError, "got list"),
        (slice(3), TypeError, "got slice"),
    ],
)
def test_a_wrong_id_is_refused(window_id, error, message, windows) -> None:
    """What is no window of the dataset is refused, alone and among others."""
    with pytest.raises(error, match=message):
        windows[window_id]
    with pytest.raises(error, match=message):
        windows.__getitems__([0, window_id])


@pytest.mark.parametrize(
    ("context_length", "error", "message"),
    [
        (0, ValueError, "context_length is 0; wanted at least 1"),
        (-1, ValueError, "context_length is -1; wanted at least 1"),
        (1000, ValueError, "1000 tokens are too few for context_length 1000: a sample takes 1001, its targets being"),
        (1.5, TypeError, "float"),
    ],
)
def test_a_wrong_context_length_is_refused(context_length, error, message, write_dataset, tokens) -> None:
    """A context_length that leaves no window is refused when the dataset is made."""
    dataset = write_dataset(tokens)

    with pytest.raises(error, match=message):
        WindowDataset(dataset, context_length)


def test_it_is_named_by_what_decides_the_samples(write_dataset, tokens, tmp_path) -> None:
    """The repr is the same wherever the tokens lie, and another one for other tokens or another context_length."""
    dataset = write_dataset(tokens)
    moved = write_dataset(tokens, uri=tmp_path / "moved")
    other = write_dataset(tokens[::-1], uri=tmp_path / "other")

    assert repr(WindowDataset(dataset, 16)) == (
        f"WindowDataset(62 windows, context_length=16, dataset digest {dataset.manifest.digest})"
    )
    assert repr(WindowDataset(dataset, 16)) == repr(WindowDataset(moved, 16))
    assert len({repr(WindowDataset(dataset, 16)), repr(WindowDataset(dataset, 8)), repr(WindowDataset(other, 16))}) == 3


def test_a_pickle_is_small_and_reads_the_same(windows) -> None:
    """A pickle holds no tokens: less than 1 KB, whatever was read before."""
    expected = lists_of(windows)
    pickled = pickle.dumps(windows)

    assert len(pickled) < 1000
    assert lists_of(pickle.loads(pickled)) == expected


def test_a_dataloader_shuffles_the_windows(windows) -> None:
    """A shuffling DataLoader yields each window once, in batches of (B, m)."""
    batches = list(DataLoader(windows, batch_size=8, shuffle=True, drop_last=True))

    assert {inputs.shape for inputs, _ in batches} == {(8, CONTEXT_LENGTH)}
    drawn = [tuple(row) for inputs, _ in batches for row in inputs.tolist()]
    assert len(set(drawn)) == len(drawn) == NUM_WINDOWS // 8 * 8
    assert set(drawn) <= {tuple(inputs.tolist()) for inputs, _ in windows}


def test_parts_of_a_random_split_are_datasets_too(windows) -> None:
    """What torch splits off is read batch by batch as well, and no window is in both parts."""
    parts = random_split(windows, [50, 12], generator=torch.Generator().manual_seed(0))
    drawn = [row for part in parts for inputs, _ in DataLoader(part, batch_size=5) for row in inputs.tolist()]

    assert sorted(drawn) == sorted(inputs.tolist() for inputs, _ in windows)


def test_a_distributed_sampler_deals_the_windows_out(windows) -> None:
    """Two ranks with a DistributedSampler draw each window once between them."""
    drawn = []
    for rank in range(2):
        sampler: DistributedSampler[Any] = DistributedSampler(windows, num_replicas=2, rank=rank, seed=5)
        drawn += [row for inputs, _ in DataLoader(windows, batch_size=4, sampler=sampler) for row in inputs.tolist()]

    assert sorted(drawn) == sorted(inputs.tolist() for inputs, _ in windows)


def test_a_dataloader_yields_the_streams_batches(make_stream) -> None:
    """Around a stream, with batch_size=None, a DataLoader changes nothing; a second loop goes on after the first."""
    loader = DataLoader(BatchStreamDataset(make_stream(epochs=1)), batch_size=None)
    drawn = lists_of(batch for batch, _ in zip(loader, range(3), strict=False))
    drawn += lists_of(loader)

    # zip() takes a fourth batch before it sees that three were wanted.
    expected = lists_of(make_stream(epochs=1))
    assert drawn == expected[:3] + expected[4:]
    assert lists_of(loader) == []


def test_a_streams_length_is_taken_once(make_stream) -> None:
    """A DataLoader's length is that of the whole stream, and stays so while batches are drawn."""
    loader = DataLoader(BatchStreamDataset(make_stream(epochs=1)), batch_size=None)
    lengths = {len(loader) for _ in loader}

    assert lengths == {NUM_WINDOWS // 4}


def test_an_endless_stream_has_no_length(make_stream) -> None:
    """Without epochs there is no length, which is how torch's users ask whether there is one."""
    with pytest.raises(TypeError, match="has no end, and so no length; give it epochs"):
        len(DataLoader(BatchStreamDataset(make_stream()), batch_size=None))


def test_a_stateful_loader_resumes_at_every_step(make_stream) -> None:
    """Stopped after any number of batches, a StatefulDataLoader's state goes on with all that remain."""
    expected = lists_of(make_stream(epochs=1))
    for num_batches in range(NUM_WINDOWS // 4 + 1):
        loader = StatefulDataLoader(BatchStreamDataset(make_stream(epochs=1)), batch_size=None)
        batches = iter(loader)
        for _ in range(num_batches):
            next(batches)
        resumed = StatefulDataLoader(BatchStreamDataset(make_stream(epochs=1)), batch_size=None)
        resumed.load_state_dict(loader.state_dict())

        assert lists_of(resumed) == expected[num_batches:]


def test_a_stateful_loader_resumes_with_another_batch_size(make_stream) -> None:
    """What was saved with batches of 4 goes on with batches of 2: the same samples."""
    loader = StatefulDataLoader(BatchStreamDataset(make_stream(epochs=2)), batch_size=None)
    next(iter(loader))
    resumed = StatefulDataLoader(BatchStreamDataset(make_stream(epochs=2, batch_size=2)), batch_size=None)
    resumed.load_state_dict(loader.state_dict())
    rest = lists_of(make_stream(epochs=2, batch_size=2))[2:]

    assert lists_of(resumed) == rest


def test_a_stateful_loader_refuses_the_state_of_another_stream(make_stream) -> None:
    """A state of another seed is a ResumeError in the loop that would go on from it."""
    loader = StatefulDataLoader(BatchStreamDataset(make_stream(seed=1)), batch_size=None)
    loader.load_state_dict(StatefulDataLoader(BatchStreamDataset(make_stream()), batch_size=None).state_dict())

    with pytest.raises(ResumeError, match="seed is 0 in the state, and 1 in this stream"):
        iter(loader)


def test_a_stateful_loader_resumes_an_epoch_of_windows(windows) -> None:
    """Windows that a sampler shuffles go on after a StatefulDataLoader's state as well."""
    loader = StatefulDataLoader(windows, batch_size=4, shuffle=True)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = lists_of(batches)
    resumed = StatefulDataLoader(windows, batch_size=4, shuffle=True)
    resumed.load_state_dict(state)

    assert lists_of(resumed) == rest


@pytest.mark.filterwarnings("ignore:torch.distributed is .* uninitialized:UserWarning")  # one process is what is meant
@pytest.mark.parametrize("num_batches", [0, 3])
@pytest.mark.parametrize("order", ["shuffle", "block-shuffle"])
def test_a_distributed_checkpoint_holds_a_stream(order, num_batches, make_stream, tmp_path) -> None:
    """torch.distributed.checkpoint saves a stream as it is, and loads it: it goes on with the next batch."""
    stream, resumed, whole = (make_stream(epochs=1, order=order) for _ in range(3))
    for _ in range(num_batches):
        next(stream)
    save({"stream": stream}, checkpoint_id=tmp_path / "checkpoint")
    load({"stream": resumed}, checkpoint_id=tmp_path / "checkpoint")

    assert isinstance(stream, Stateful)
    assert resumed.state_dict() == stream.state_dict()
    assert lists_of(resumed) == lists_of(whole)[num_batches:]


def test_without_torch_the_remedy_is_named() -> None:
    """Where torch is missing, importing the module says what to install."""
    script = """
import sys
sys.modules["torch"] = None
import shardstream.integrations.torch_dataset
"""
    result = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)

    assert "torch_dataset needs PyTorch: pip install 'shardstream[torch]'" in result.stderr
