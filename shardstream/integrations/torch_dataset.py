"""A token dataset, or a batch stream, as the datasets that torch's DataLoader and its relatives take.

A :class:`shardstream.BatchStream` needs none of this: it is its own loop, shuffles without a sampler, and resumes at
any number of ranks. This is for trainers that insist on making the DataLoader themselves.
"""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shardstream.order.orders import check_enough_tokens, num_windows
from shardstream.read.token_dataset import TokenDataset
from shardstream.stream.batch_stream import BatchStream
from shardstream.stream.device import samples_of_windows

try:
    import torch
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "shardstream.integrations.torch_dataset needs PyTorch: pip install 'shardstream[torch]'"
    ) from error

if TYPE_CHECKING:
    from typing_extensions import Self

Sample = tuple[torch.Tensor, torch.Tensor]

_NO_LENGTH: Final = -1


class WindowDataset(Dataset[Sample]):
    """The windows of a dataset as samples that can be asked for by number, in any order.

    Window ``i`` starts at position ``i * context_length``; there are ``(len(dataset) - 1) // context_length`` of them,
    so that every target occurs once. What order they are read in, and by which rank, is the sampler's business.

    It serves torch's ``DataLoader`` with any sampler and any number of workers, however these are started, Lightning,
    Accelerate, and Grain as a ``RandomAccessDataSource``. For the ``Trainer`` of Hugging Face, whose models take a
    dict and shift the labels themselves, a collator makes one::

        def collate(samples):
            inputs = torch.stack([inputs for inputs, _ in samples])
            return {"input_ids": inputs, "labels": inputs}

    Args:
        dataset: An open dataset.
        context_length: Inputs of a sample, m.

    Raises:
        TypeError: ``context_length`` is no integer.
        ValueError: It is below 1, or the dataset has too few tokens for a sample.
    """

    def __init__(self, dataset: TokenDataset, context_length: int) -> None:
        self._dataset = dataset
        self._context_length = operator.index(context_length)
        if self._context_length < 1:
            raise ValueError(f"context_length is {context_length}; wanted at least 1")
        check_enough_tokens(len(dataset), self._context_length)
        self._num_windows = num_windows(len(dataset), self._context_length)

    def __len__(self) -> int:
        """Number of windows."""
        return self._num_windows

    def __repr__(self) -> str:
        """What decides the samples, and not where they lie: Grain compares it when a run is resumed."""
        return (
            f"WindowDataset({self._num_windows} windows, context_length={self._context_length}, "
            f"dataset digest {self._dataset.manifest.digest})"
        )

    def __getitem__(self, window_id: int) -> Sample:
        """One sample.

        Returns:
            ``inputs`` and ``targets``, each int64, contiguous, shape (m,); ``targets[j] == inputs[j + 1]``.

        Raises:
            IndexError: There is no such window; a negative id counts from the end.
            TypeError: The id is no integer.
            IntegrityError: A shard is missing, or its size is wrong.
        """
        return self.__getitems__([window_id])[0]

    def __getitems__(self, window_ids: Sequence[int]) -> list[Sample]:
        """The samples of a batch, gathered at once: what a DataLoader asks for.

        Args:
            window_ids: Any ids that ``__getitem__`` takes, n of them.

        Returns:
            n samples, as ``__getitem__`` returns them. None shares memory with another, nor inputs with targets.

        Raises:
            IndexError, TypeError, IntegrityError: As ``__getitem__``.
        """
        ids = [self._checked(window_id) for window_id in window_ids]
        starts = np.array(ids, dtype=np.int64) * self._context_length
        windows = self._dataset.windows(starts, self._context_length + 1)
        inputs, targets = samples_of_windows(windows)
        return list(zip(inputs, targets, strict=True))

    def _checked(self, window_id: int) -> int:
        try:
            number = operator.index(window_id)
        except TypeError as error:
            raise TypeError(
                f"samples are asked for by a window id, an integer, got {type(window_id).__name__}; for several at once "
                "use __getitems__(window_ids)"
            ) from error
        if not -self._num_windows <= number < self._num_windows:
            raise IndexError(f"window {number} is not in the dataset's {self._num_windows} windows")
        return number % self._num_windows


class BatchStreamDataset(IterableDataset[Sample]):
    """A batch stream as an iterable dataset, for trainers that want a DataLoader around it.

    The batches are the stream's own, so the DataLoader must not make others: ``DataLoader(dataset, batch_size=None)``.
    It goes on where the stream stands: a second loop over the DataLoader yields what the first has left.

    torchdata's ``StatefulDataLoader(dataset, batch_size=None)`` finds ``state_dict`` and ``load_state_dict`` here; its
    own state then resumes at the next batch. A plain DataLoader has no state of its own: keep the stream's. Either says
    what was drawn, and some trainers draw a batch before they need it: Accelerate always, Lightning where a stream has
    no length, so give it ``epochs`` there.

    Worker processes gain nothing, since the stream looks ahead by itself. One is possible: it reads from a copy of the
    stream, so only a StatefulDataLoader knows how far the loop has come. More would read every batch several times,
    and are refused.

    Args:
        stream: What to iterate over; it stays the caller's to close.
    """

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream
        # Taken once: to torch a length is a constant, and the stream's own shrinks from batch to batch.
        self._num_batches = operator.length_hint(stream, _NO_LENGTH)

    def __len__(self) -> int:
        """Batches that the stream had to come when this was made.

        Raises:
            TypeError: It has no end.
        """
        if self._num_batches == _NO_LENGTH:
            raise TypeError("the batch stream has no end, and so no length; give it epochs, or count steps yourself")
        return self._num_batches

    def __iter__(self) -> "Self":
        """Itself.

        Raises:
            ValueError: This is one of several workers.
        """
        worker = get_worker_info()
        # Where this is so, torch ends the process before it can report its coverage; test_processes.py meets the error.
        if worker is not None and worker.num_workers > 1:  # pragma: no cover
            raise ValueError(
                f"num_workers is {worker.num_workers}, and each worker would read every batch of the stream; wanted 0 "
                "(the stream looks ahead by itself) or 1"
            )
        return self

    def __next__(self) -> Sample:
        """The stream's next batch: ``inputs`` and ``targets``, each int64, shape (B, m)."""
        return next(self._stream)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the stream go on from ``state``.

        Raises:
            ResumeError: It is the state of another stream.
        """
        self._stream.load_state_dict(state)
