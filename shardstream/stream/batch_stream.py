"""The loop: batches of samples on the device, step after step, in an order that is known for ever."""

import logging
import math
import operator
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from shardstream.errors import ResumeError
from shardstream.format.manifest import Manifest
from shardstream.order.orders import (
    ORDER_NAMES,
    BlockShuffle,
    Order,
    Random,
    Sequential,
    Shuffle,
    check_enough_tokens,
    num_windows,
)
from shardstream.order.ranks import lanes_of
from shardstream.read.token_dataset import ReadTraffic, TokenDataset
from shardstream.storage.cache import check_bound
from shardstream.stream.ahead import Ahead
from shardstream.stream.device import Batch, device_copy, device_of
from shardstream.stream.lookahead import Lookahead
from shardstream.stream.replica import replica_of
from shardstream.stream.shard_plan import shards_of_epoch, working_set_bytes
from shardstream.stream.stream_state import StreamState, checked_state, state_of

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from typing_extensions import Self

_log = logging.getLogger("shardstream")

# Waits of so many batches are kept for the percentiles of stats().
_NUM_WAITS: Final = 4_096
_NEVER: Final = 2**63
# Block-shuffle's defaults. A block is a shard, so that few shards are in use at a time, as long as that is what a disk
# or a wire brings in a moment: 128 MiB of uint16. Small shards make up a buffer of 32 MiB, 16,384 windows of 1,024.
_MAX_BLOCK_TOKENS: Final = 2**26
_LEAST_BUFFER_TOKENS: Final = 2**24
# After a step of some milliseconds caches are cold, a batch takes 300 to 800 microseconds instead of 70, and a thread
# hides it for 60. A loop that does nothing else would only wait for the thread.
_SLOW_STEP_S: Final = 0.001

# The start positions of a batch, and what to call for it when it is needed.
_Begun: TypeAlias = tuple[NDArray[np.int64], Callable[[], Batch]]


@dataclass(frozen=True, kw_only=True)
class StreamStats:
    """What a batch stream has done since it was made, in this process."""

    num_batches: int
    """Batches returned."""
    num_tokens: int
    """Inputs in them."""
    num_bytes: int
    """Bytes of tokens read for them."""
    elapsed_s: float
    """Seconds since the first batch was asked for."""
    wait_s: float
    """Seconds of these that the training loop waited for batches."""
    wait_p50_s: float
    wait_p95_s: float
    """Seconds that half, and 95 %, of the last 4,096 batches took at most."""
    traffic: ReadTraffic
    """What reading the dataset took, by all its users in this process."""

    @property
    def wait_share(self) -> float:
        """Part of the elapsed time spent waiting: near 0 the loader is no bottleneck, near 1 it is the only one."""
        return self.wait_s / self.elapsed_s if self.elapsed_s else 0.0


class BatchStream:
    """Batches of one data-parallel rank, as an iterator over ``(inputs, targets)``.

    ``inputs`` and ``targets`` are int64, contiguous, of shape (batch_size, context_length), on the device, and
    ``targets`` are the inputs' next tokens. A batch is memory of its own and is never written again.

    Which samples come, and in which order, depends on the dataset, the seed and the order alone. So a run may be stopped
    at any step and go on with other ranks and another batch size, and its global sequence of samples stays the same.
    All batches of a run follow one another in one iteration; epochs have no seam. While a step takes longer than a
    millisecond, one thread gathers the next batch meanwhile; a faster loop has none, since it would only wait for it.

    Args:
        dataset: What :func:`shardstream.open` returned. It stays the caller's to close.
        batch_size: Samples of a batch on this rank, B. A global batch is ``batch_size * dp_world_size``.
        context_length: Inputs of a sample, m.
        order: ``"shuffle"`` mixes all windows; ``"block-shuffle"`` mixes those of a few blocks at a time, for disks and
            object stores that dislike random reads; ``"sequential"`` is for evaluation; ``"random"`` draws any start
            with replacement, as :func:`shardstream.get_batch` does.
        seed: 0 to 2**64 - 1. Another seed is another run.
        device: Where batches are wanted.
        epochs: Passes over all windows; None goes on for ever. ``"random"`` has none.
        drop_last: Leave out the last samples that do not fill a global batch. Otherwise the ranks share them as evenly
            as can be, and a rank's last batch may be short, or even empty.
        dp_rank, dp_world_size: This process's place among data-parallel ranks. If neither they nor ``mesh`` are given,
            torch.distributed says it. Ranks that work on the same samples (tensor or pipeline parallel) give the same.
        mesh: The data-parallel part of a DeviceMesh, such as ``mesh["dp"]``, instead of the two.
        block_tokens: Of block-shuffle: tokens of a block, a multiple of ``context_length``; if None those of a shard, or
            2**26 if it is longer.
        buffer_blocks: Of block-shuffle: blocks whose windows are mixed; if None so many as make 2**24 tokens, at least
            one. More mix better, and have to be read before the first batch.
        lanes: Of block-shuffle: equal parts of the dataset that a global batch is dealt from, so that a rank reads its
            lanes only; they divide the global batch. 1 if None.

    Raises:
        TypeError: ``dataset`` is no TokenDataset, or a number is no integer.
        ValueError: An argument is out of range, or they contradict one another.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        batch_size: int,
        context_length: int,
        order: str = "shuffle",
        seed: int = 0,
        device: "str | torch.device" = "cpu",
        epochs: int | None = None,
        drop_last: bool = True,
        dp_rank: int | None = None,
        dp_world_size: int | None = None,
        mesh: "DeviceMesh | None" = None,
        block_tokens: int | None = None,
        buffer_blocks: int | None = None,
        lanes: int | None = None,
    ) -> None:
        if not isinstance(dataset, TokenDataset):
            raise TypeError(f"dataset is a {type(dataset).__name__}; wanted what shardstream.open() returns")
        self._dataset = dataset
        self._batch_size = _at_least("batch_size", batch_size, 1)
        self._context_length = _at_least("context_length", context_length, 1)
        self._seed = _at_least("seed", seed, 0)
        if self._seed >= 2**64:
            raise ValueError(f"seed is {seed}; wanted below 2**64")
        self._device = device_of(device)
        self._epochs = None if epochs is None else _at_least("epochs", epochs, 1)
        self._drop_last = drop_last
        self._order = _order_of(
            order,
            dataset.manifest,
            self._context_length,
            self._seed,
            {"block_tokens": block_tokens, "buffer_blocks": buffer_blocks, "lanes": lanes},
        )
        replica = replica_of(dp_rank, dp_world_size, mesh)
        self._dp_rank, self._dp_world_size = replica.dp_rank, replica.dp_world_size
        self._num_rows = self._batch_size * self._dp_world_size
        self._check_sizes()
        self._check_cache()
        self._total_samples = None if self._epochs is None else self._epochs * (self._order.samples_per_epoch or 0)
        _log.info(
            "batch stream: dp_rank %d of dp_world_size %d, as %s said; order %s, seed %d, dataset %s",
            *replica,
            order,
            self._seed,
            dataset.manifest.digest,
        )
        self._num_batches = self._num_tokens = 0
        self._waits: deque[float] = deque(maxlen=_NUM_WAITS)
        self._wait_s = 0.0
        self._first_asked_s: float | None = None
        self._is_closed = False
        self._copy = device_copy(self._device, self._context_length + 1, dataset.dtype)
        self._num_samples = 0
        self._positions = np.empty(0, dtype=np.int64)
        self._stop_sample: int | None = None
        self._returned_s = math.inf
        self._ahead: Ahead[_Begun | None] = Ahead()
        self._pid = os.getpid()
        self._lookahead = self._go_to(0)

    @property
    def num_samples(self) -> int:
        """Samples that the training loop has consumed, on all ranks together, since the run began."""
        return self._num_samples

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where each sample of the batch returned last begins in the dataset, shape (its rows,); empty before the first."""
        return self._positions

    def __iter__(self) -> "Self":
        """The stream itself: it goes on where it is."""
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: All epochs are over.
            ValueError: The stream is closed.
            IntegrityError: A shard is missing, or its size is wrong.
            StorageError: A shard cannot be read.
        """
        asked_s = time.perf_counter()
        if self._first_asked_s is None:
            self._first_asked_s = asked_s
        if self._is_closed:
            raise ValueError(f"{self!r} is closed")
        begun = self._take_begun() if self._ahead.is_pending else self._begin()
        if begun is None:
            raise StopIteration
        starts, finish = begun
        is_slow = asked_s - self._returned_s > _SLOW_STEP_S
        if is_slow or self._copy.runs_ahead:
            self._ahead.begin(self._begin, in_thread=is_slow)
        batch = finish()
        self._num_samples = min(self._num_samples + self._num_rows, self._stop_sample or _NEVER)
        self._positions = starts
        self._num_batches += 1
        self._num_tokens += len(starts) * self._context_length
        self._returned_s = time.perf_counter()
        wait_s = self._returned_s - asked_s
        self._waits.append(wait_s)
        self._wait_s += wait_s
        return batch

    def __len__(self) -> int:
        """Batches still to come, the same on all ranks.

        Raises:
            TypeError: The stream has no end.
        """
        if self._stop_sample is None:
            raise TypeError(
                "a batch stream without epochs has no end and no length; give epochs, or count steps yourself"
            )
        num_left = self._stop_sample - self._num_samples
        return (num_left + self._num_rows - 1) // self._num_rows

    def __repr__(self) -> str:
        """Say what is read, how, and for whom."""
        parameters = "".join(f", {name}={value}" for name, value in self._order.parameters.items())
        return (
            f"BatchStream({self._dataset!r}, batch_size={self._batch_size}, context_length={self._context_length}, "
            f"order={self._order.name!r}{parameters}, seed={self._seed}, device={str(self._device)!r}, "
            f"epochs={self._epochs}, dp_rank={self._dp_rank}, dp_world_size={self._dp_world_size})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop stands: JSON values of less than 1 KB, the same on all ranks."""
        state: dict[str, Any] = msgspec.to_builtins(self._state(self._num_samples))
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where a state was saved, on any number of ranks and with any batch size.

        Raises:
            ResumeError: The state is damaged or of another stream; the message names the field. The stream stays where
                it was.
        """
        num_samples = checked_state(state_dict, self._state, lanes=self._order.lanes)
        if self._total_samples is not None and num_samples > self._total_samples:
            raise ResumeError(
                f"num_samples is {num_samples} in the state, more than the {self._total_samples} of {self._epochs} epochs; "
                "give more epochs"
            )
        self._lookahead = self._go_to(num_samples)

    def stats(self) -> StreamStats:
        """What was done so far, and how long the training loop waited for it."""
        now = time.perf_counter()
        p50, p95 = np.percentile(self._waits or [0.0], [50, 95]).tolist()
        return StreamStats(
            num_batches=self._num_batches,
            num_tokens=self._num_tokens,
            num_bytes=self._num_tokens
            // self._context_length
            * (self._context_length + 1)
            * self._dataset.dtype.itemsize,
            elapsed_s=now - (now if self._first_asked_s is None else self._first_asked_s),
            wait_s=self._wait_s,
            wait_p50_s=p50,
            wait_p95_s=p95,
            traffic=self._dataset.traffic(),
        )

    def shards(self) -> list[int]:
        """Numbers of the shards that this rank needs from here to the end of the epoch, in order of need.

        :meth:`TokenDataset.download` brings them into the cache before a run. Those of which a rank needs a few tokens
        only, because another one's part ends in them, are not among them: such tokens are read by themselves.
        """
        return shards_of_epoch(self._dataset, self._order, self._lanes(), sample=self._num_samples)

    def close(self) -> None:
        """Let go of everything but the dataset. A second call does nothing."""
        self._is_closed = True
        self._forget_begun()
        self._lookahead.close()

    def __enter__(self) -> "Self":
        """Nothing more than ``self``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made of and where it stands, for a worker process."""
        arguments = {
            "batch_size": self._batch_size,
            "context_length": self._context_length,
            "order": self._order.name,
            "seed": self._seed,
            "device": str(self._device),
            "epochs": self._epochs,
            "drop_last": self._drop_last,
            "dp_rank": self._dp_rank,
            "dp_world_size": self._dp_world_size,
            **self._order.parameters,
        }
        return _restored, (self._dataset, arguments, self.state_dict())

    def _check_sizes(self) -> None:
        if self._epochs is not None and self._order.samples_per_epoch is None:
            raise ValueError(f"epochs is {self._epochs}, but order {self._order.name!r} has none; leave epochs out")
        samples_per_epoch = self._order.samples_per_epoch
        if samples_per_epoch is not None and self._num_rows > samples_per_epoch:
            raise ValueError(
                f"batch_size {self._batch_size} on {self._dp_world_size} ranks makes a global batch of {self._num_rows} "
                f"samples, and an epoch has {samples_per_epoch}; wanted no more than that"
            )
        if self._num_rows % self._order.lanes:
            raise ValueError(
                f"lanes is {self._order.lanes}, and a global batch has {self._num_rows} samples (batch_size "
                f"{self._batch_size} on {self._dp_world_size} ranks); wanted a multiple of the lanes"
            )

    def _check_cache(self) -> None:
        """See that the cache can hold what is needed at a time."""
        cache = self._dataset.cache
        if cache is None or cache.max_bytes is None:
            return
        order = self._order
        needed = working_set_bytes(self._dataset, order, self._lanes(), num_rows=self._num_rows)
        if order.mixed_samples == 0:
            reason = (
                f"order {order.name!r} reads all of {self._dataset.uri} at any time; 'block-shuffle' needs far less"
            )
        else:
            reason = (
                f"order {order.name!r} reads so much of {self._dataset.uri} at a time; fewer buffer_blocks need less"
            )
        check_bound(cache.max_bytes, needed, reason=reason)

    def _lanes(self) -> range:
        return lanes_of(
            self._num_rows, lanes=self._order.lanes, dp_rank=self._dp_rank, dp_world_size=self._dp_world_size
        )

    def _state(self, num_samples: int) -> StreamState:
        return state_of(
            self._order,
            dataset_digest=self._dataset.manifest.digest,
            seed=self._seed,
            context_length=self._context_length,
            num_samples=num_samples,
        )

    def _go_to(self, num_samples: int) -> Lookahead:
        """Stand after so many samples; return the plan of what follows."""
        self._forget_begun()
        self._num_samples = num_samples
        self._positions = np.empty(0, dtype=np.int64)
        self._stop_sample = self._total_samples
        if self._stop_sample is not None and self._drop_last:
            self._stop_sample -= (self._stop_sample - num_samples) % self._num_rows
        return Lookahead(
            self._dataset,
            self._order,
            context_length=self._context_length,
            num_rows=self._num_rows,
            dp_rank=self._dp_rank,
            dp_world_size=self._dp_world_size,
            first_sample=num_samples,
            stop_sample=self._stop_sample,
        )

    def _begin(self) -> _Begun | None:
        """Take the next step; None after the last."""
        lookahead = self._lookahead
        starts = lookahead.take()
        if starts is None:
            return None
        try:
            self._dataset.look_again()
            return starts, self._copy.begin(self._dataset, starts)
        except BaseException:
            lookahead.put_back(starts)  # no sample is lost: the next call tries again
            raise

    def _take_begun(self) -> _Begun | None:
        """The step that was begun while the one before was in use."""
        if self._pid == os.getpid():
            return self._ahead.result()
        # The parent's thread is not here, and may have been in the middle of anything.
        self._lookahead = self._go_to(self._num_samples)
        return self._begin()

    def _forget_begun(self) -> None:
        if self._pid == os.getpid():
            self._ahead.close()
        self._pid, self._ahead = os.getpid(), Ahead()


def _restored(dataset: TokenDataset, arguments: dict[str, Any], state: dict[str, Any]) -> BatchStream:
    stream = BatchStream(dataset, **arguments)
    stream.load_state_dict(state)
    return stream


def _at_least(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); wanted an integer") from error
    if number < least:
        raise ValueError(f"{name} is {value}; wanted at least {least}")
    return number


def _order_of(
    name: str, manifest: Manifest, context_length: int, seed: int, block_options: Mapping[str, int | None]
) -> Order:
    """The order of that name; ``block_options`` are block-shuffle's own, None where none was given."""
    if name not in ORDER_NAMES:
        raise ValueError(f"order is {name!r}; wanted one of {', '.join(map(repr, ORDER_NAMES))}")
    num_tokens = manifest.num_tokens
    check_enough_tokens(num_tokens, context_length)
    given = {option: value for option, value in block_options.items() if value is not None}
    if name == "block-shuffle":
        return _block_shuffle(
            num_tokens, context_length, seed, _block_options(manifest.shard_tokens, context_length, given)
        )
    for option, value in given.items():
        raise ValueError(f"{option} is {value}, but order is {name!r}; only 'block-shuffle' has {option}")
    if name == "shuffle":
        return Shuffle(num_tokens, context_length, seed)
    if name == "random":
        return Random(num_tokens, context_length, seed)
    return Sequential(num_tokens, context_length)


def _block_options(shard_tokens: int, context_length: int, given: Mapping[str, int]) -> dict[str, int]:
    """Block-shuffle's options, with a default for each that was not given."""
    options = {
        "block_tokens": max(1, min(shard_tokens, _MAX_BLOCK_TOKENS) // context_length) * context_length,
        "lanes": 1,
        **given,
    }
    options.setdefault("buffer_blocks", max(1, _LEAST_BUFFER_TOKENS // max(1, options["block_tokens"])))
    return options


def _block_shuffle(num_tokens: int, context_length: int, seed: int, options: Mapping[str, int]) -> BlockShuffle:
    options = {option: _at_least(option, value, 1) for option, value in options.items()}
    if options["block_tokens"] % context_length:
        raise ValueError(
            f"block_tokens is {options['block_tokens']}; wanted a multiple of context_length {context_length}, such as "
            f"{-(-options['block_tokens'] // context_length) * context_length}"
        )
    windows = num_windows(num_tokens, context_length)
    if options["lanes"] > windows:
        raise ValueError(f"lanes is {options['lanes']}, but the dataset has {windows} windows; wanted fewer")
    return BlockShuffle(num_tokens, context_length, seed, **options)
