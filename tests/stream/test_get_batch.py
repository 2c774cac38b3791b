"""The classical get_batch: exactly right, whatever the tokens lie in."""

from pathlib import Path

import numpy as np
import pytest
import torch

import shardstream
from shardstream import get_batch
from shardstream.stream.get_batch import _draw

DTYPES = ["u1", "i1", "<u2", ">u2", "<i2", "<u4", ">i4", "<i8", ">i8", "<u8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["array", "memmap", "npy", "strided"])
def test_every_kind_of_array_gives_windows_and_their_targets(dtype: str, kind: str, tmp_path: Path) -> None:
    """Arrays, memmaps and loaded .npy files of any integer dtype give contiguous int64 windows and next tokens."""
    tokens = (np.arange(300) % 100).astype(dtype)
    if kind == "memmap":
        tokens.tofile(tmp_path / "tokens.bin")
        tokens = np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r")
    elif kind == "npy":
        np.save(tmp_path / "tokens.npy", tokens)
        tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    elif kind == "strided":
        tokens = np.repeat(tokens, 2)[::2]

    inputs, targets = get_batch(tokens, 8, 16, "cpu")

    for tensor in (inputs, targets):
        assert tensor.shape == (8, 16)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
        assert tensor.device == torch.device("cpu")
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal((inputs + 1) % 100, targets)


def test_a_dataset_gives_the_same_batch_as_the_array_it_was_made_of(write_dataset, tokens) -> None:
    """With generators of one seed, a TokenDataset and its tokens as an array give identical batches."""
    dataset = write_dataset(tokens)
    for seed in range(20):
        of_array = get_batch(tokens, 16, 100, generator=torch.Generator().manual_seed(seed))
        of_dataset = get_batch(dataset, 16, 100, generator=torch.Generator().manual_seed(seed))

        assert torch.equal(of_array[0], of_dataset[0])
        assert torch.equal(of_array[1], of_dataset[1])


def test_the_default_generator_follows_manual_seed(tokens) -> None:
    """Without a generator, torch.manual_seed decides."""
    torch.manual_seed(3)
    first = get_batch(tokens, 4, 8)[0]
    torch.manual_seed(3)

    assert torch.equal(first, get_batch(tokens, 4, 8)[0])


@pytest.mark.parametrize("num_starts", [1, 2, 3, 7])
def test_every_valid_start_occurs_and_no_other(num_starts: int) -> None:
    """All of the len - m starts are drawn, the last one included, also when there is exactly one."""
    tokens = np.arange(num_starts + 5)
    inputs, targets = get_batch(tokens, 500, 5)

    assert set(range(num_starts)) == set(inputs[:, 0].tolist())
    assert int(targets.max()) == len(tokens) - 1


def test_starts_are_uniform() -> None:
    """Starts pass a chi-squared test against the uniform distribution (p > 10^-6)."""
    starts = _draw(100, 200_000, torch.Generator().manual_seed(0))
    counts = np.bincount(starts, minlength=100)

    # 99 degrees of freedom: chi-squared exceeds 186 with probability 2.4e-7.
    assert ((counts - 2000) ** 2 / 2000).sum() < 186


def test_starts_beyond_32_bits_are_uniform() -> None:
    """With 3 * 10^9 starts, where a 32-bit draw folded by modulo prefers the lower 1.3 * 10^9, none is preferred."""
    num_starts = 3 * 10**9
    starts = _draw(num_starts, 100_000, torch.Generator().manual_seed(0))
    share = (starts < 2**32 - num_starts).mean()

    # Expected 0.4317; folding would make it 0.603. Standard deviation 0.0016.
    assert abs(share - (2**32 - num_starts) / num_starts) < 0.01


def test_draws_that_would_fold_are_rejected() -> None:
    """A range that does not divide the draws' 2^63 values rejects the rest instead of folding it on low starts."""
    num_starts = 2**62 + 1  # almost half of all draws are rejected
    starts = _draw(num_starts, 10_000, torch.Generator().manual_seed(0))

    assert len(starts) == 10_000
    assert starts.min() >= 0
    assert starts.max() < num_starts
    assert abs((starts < num_starts // 2).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("tokens", "arguments", "error", "message"),
    [
        (np.arange(8), (1, 8), ValueError, "8 tokens are too few for context_length 8: a sample takes 9"),
        (np.arange(0), (1, 1), ValueError, "0 tokens are too few"),
        (np.zeros((4, 4), np.int64), (1, 1), ValueError, r"shape \(4, 4\); wanted one dimension"),
        (np.zeros(9), (1, 1), TypeError, "dtype float64; wanted integers"),
        (np.zeros(9, bool), (1, 1), TypeError, "dtype bool; wanted integers"),
        (np.arange(9), (0, 1), ValueError, "batch_size is 0; wanted at least 1"),
        (np.arange(9), (-1, 1), ValueError, "batch_size is -1"),
        (np.arange(9), (1, 0), ValueError, "context_length is 0; wanted at least 1"),
        (np.arange(9), (1.5, 1), TypeError, "float"),
    ],
)
def test_wrong_arguments_are_refused(tokens, arguments, error, message) -> None:
    """Too few tokens, wrong shapes, dtypes and sizes each raise an error that says so."""
    with pytest.raises(error, match=message):
        get_batch(tokens, *arguments)


def test_ids_outside_the_vocabulary_are_refused_when_asked() -> None:
    """With vocab_size, an id that was drawn and is not below it, or is negative, is a ValueError."""
    get_batch(np.full(9, 99), 2, 4, vocab_size=100)
    with pytest.raises(ValueError, match="a token is 100; wanted 0 to 99"):
        get_batch(np.full(9, 100), 2, 4, vocab_size=100)
    with pytest.raises(ValueError, match="a token is -1"):
        get_batch(np.full(9, -1), 2, 4, vocab_size=100)


def test_an_id_beyond_int64_never_wraps() -> None:
    """A uint64 token that int64 cannot hold is refused, not made negative."""
    with pytest.raises(ValueError, match=f"a token is {2**63}"):
        get_batch(np.full(9, 2**63, np.uint64), 2, 4)


def test_an_impossible_device_raises_torchs_own_error(tokens) -> None:
    """A device that does not exist is torch's to refuse."""
    with pytest.raises(RuntimeError, match="nonsense"):
        get_batch(tokens, 1, 1, "nonsense")


def test_the_meta_device_gets_shapes(tokens) -> None:
    """The batch goes where it is asked to go."""
    inputs, targets = get_batch(tokens, 2, 3, torch.device("meta"))

    assert inputs.device.type == targets.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tokens) -> None:  # pragma: no cover - where there is one
    """On a GPU, tensors and a generator of the device work."""
    inputs, targets = get_batch(tokens, 4, 8, "cuda", generator=torch.Generator("cuda"))

    assert inputs.is_cuda
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_a_missing_shard_is_named(write_dataset, tokens) -> None:
    """A dataset whose shard vanished raises an IntegrityError that names it."""
    dataset = write_dataset(tokens, shard_tokens=1000)
    (Path(dataset.uri) / "shard-000000.bin").unlink()

    with pytest.raises(shardstream.IntegrityError, match="shard-000000.bin: the shard is missing"):
        get_batch(dataset, 1, 1)
