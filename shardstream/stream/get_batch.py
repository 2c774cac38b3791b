"""The classical function: B windows of m tokens and their next-token targets, any valid start equally likely."""

import operator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from shardstream.order.orders import check_enough_tokens
from shardstream.read.token_dataset import TokenDataset
from shardstream.stream.device import require_torch, samples_of_windows

if TYPE_CHECKING:
    import torch

_NUM_DRAWS: Final = 2**63  # torch's random_() of int64 is uniform on [0, 2**63)


def get_batch(
    tokens: "NDArray[np.integer[Any]] | TokenDataset",
    batch_size: int,
    context_length: int,
    device: "str | torch.device" = "cpu",
    *,
    generator: "torch.Generator | None" = None,
    vocab_size: int | None = None,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Draw a batch of samples, uniformly and with replacement.

    A sample starts at any of the ``len(tokens) - context_length`` positions that leave room for its targets, the last
    one included. Each is exactly equally likely: of 2**63 draws, those that a modulo would fold unevenly on the starts are
    rejected and drawn again.

    Args:
        tokens: The token stream: a 1-D array or memmap of any integer dtype, or an open dataset.
        batch_size: Samples, B.
        context_length: Inputs of a sample, m.
        device: Where the batch is wanted.
        generator: Source of the draws; torch's default one if None, so that ``torch.manual_seed`` counts.
        vocab_size: If given, what was drawn must be ids below it.

    Returns:
        ``inputs`` and ``targets``, each int64, contiguous, shape (B, m), on ``device``;
        ``targets[i, j] == inputs[i, j + 1]``.

    Raises:
        TypeError: ``tokens`` are not integers.
        ValueError: ``tokens`` are not 1-D or too few, a size is below 1, or an id is not in ``[0, vocab_size)``.
        IntegrityError: A shard is missing, or its size is wrong.
    """
    require_torch("get_batch()")
    tokens = _checked(tokens, batch_size, context_length)
    starts = _draw(len(tokens) - context_length, batch_size, generator)
    if isinstance(tokens, TokenDataset):
        windows: NDArray[np.integer[Any]] = tokens.windows(starts, context_length + 1)
    else:
        tokens[starts]  # all their cache misses at once, as MappedShards does
        windows = _windows_of(tokens, context_length + 1)[starts]
    _check_range(windows, vocab_size)
    inputs, targets = samples_of_windows(windows)
    if device == "cpu":  # they are there already, and a call into torch shows
        return inputs, targets
    return inputs.to(device), targets.to(device)


def _checked(
    tokens: "NDArray[np.integer[Any]] | TokenDataset", batch_size: int, context_length: int
) -> "NDArray[np.integer[Any]] | TokenDataset":
    if not isinstance(tokens, TokenDataset):
        tokens = np.asarray(tokens)  # a memmap as a plain array: its slices are many times cheaper
        if tokens.ndim != 1:
            raise ValueError(f"tokens have shape {tokens.shape}; wanted one dimension, one long token stream")
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"tokens have dtype {tokens.dtype}; wanted integers, such as uint16")
    for name, value in (("batch_size", batch_size), ("context_length", context_length)):
        if operator.index(value) < 1:
            raise ValueError(f"{name} is {value}; wanted at least 1")
    check_enough_tokens(len(tokens), context_length)
    return tokens


def _random_int63(count: int, generator: "torch.Generator | None") -> NDArray[np.int64]:
    """Uniform on ``[0, 2**63)``, shape (count,)."""
    import torch  # noqa: PLC0415

    if generator is None:
        return torch.empty(count, dtype=torch.int64).random_().numpy()
    draws = torch.empty(count, dtype=torch.int64, device=generator.device)
    return draws.random_(generator=generator).cpu().numpy()


def _draw(num_starts: int, batch_size: int, generator: "torch.Generator | None") -> NDArray[np.int64]:
    """Uniform on ``[0, num_starts)``, shape (batch_size,)."""
    # Arrays of no dimension, since NumPy computes with plain integers half as fast.
    last = np.array(_NUM_DRAWS - _NUM_DRAWS % num_starts - 1)
    draws = _random_int63(batch_size, generator)
    while num_rejected := np.count_nonzero(is_rejected := draws > last):
        draws[is_rejected] = _random_int63(int(num_rejected), generator)
    starts: NDArray[np.int64] = draws % np.array(num_starts)
    return starts


def _windows_of(tokens: NDArray[np.integer[Any]], length: int) -> NDArray[np.integer[Any]]:
    """All windows of an array, as a view."""
    if not tokens.flags.c_contiguous:
        return np.lib.stride_tricks.sliding_window_view(tokens, length)
    # The same in a tenth of the time.
    shape, strides = (len(tokens) - length + 1, length), (tokens.itemsize, tokens.itemsize)
    windows: NDArray[np.integer[Any]] = np.ndarray(shape, tokens.dtype, tokens.data, strides=strides)
    return windows


def _check_range(windows: NDArray[np.integer[Any]], vocab_size: int | None) -> None:
    bound = 2**63 if vocab_size is None else vocab_size  # int64 ends there, uint64 does not
    if vocab_size is None and windows.dtype != np.uint64:
        return
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= bound:
        raise ValueError(f"a token is {low if low < 0 else high}; wanted 0 to {bound - 1}, as vocab_size says")
