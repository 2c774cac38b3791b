"""Sample number -> start position: one class per order. ORDER.md is the specification; version 1 never changes.

An order is a pure function of the dataset's length, the seed and its parameters. It knows no rank, no batch and no
data, takes constant memory, and answers for any sample at once.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstream.order.permutation import Permutation, keys_of, mix

ORDER_VERSION: Final = 1
ORDER_NAMES: Final = ("shuffle", "block-shuffle", "sequential", "random")

_SEQUENTIAL_RANGE_TOKENS: Final = 2**20
_SEQUENTIAL_AHEAD_TOKENS: Final = 2**24

_U64 = functools.partial(np.array, dtype=np.uint64)


class PlannedRange(NamedTuple):
    """Positions that an order reads together, and when."""

    sample: int
    """Number of the first sample that may need them."""
    start: int
    stop: int
    """Positions, half-open."""


class Order(Protocol):
    """What every order can say."""

    name: ClassVar[str]

    @property
    def lanes(self) -> int:
        """Fixed sub-streams that samples are dealt from: sample n belongs to lane ``n % lanes``."""
        ...

    @property
    def samples_per_epoch(self) -> int | None:
        """None where epochs do not apply."""
        ...

    @property
    def mixed_samples(self) -> int:
        """How many samples ahead :meth:`ranges` should be read: all that share a buffer. 0 if there are no ranges."""
        ...

    @property
    def parameters(self) -> dict[str, int]:
        """What distinguishes it from others of its name."""
        ...

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """First position of each sample's window.

        Args:
            samples: Sample numbers since the run began, 0 or more, in an array of one dimension or more.

        Returns:
            Positions, of the same shape.
        """
        ...

    def ranges(self, sample: int, lanes: Sequence[int]) -> Iterator[PlannedRange]:
        """What will be read from a sample on, in the order of need, without end; nothing if windows are all it reads.

        Args:
            sample: Number of the first sample wanted.
            lanes: The lanes wanted.
        """
        ...


def num_windows(num_tokens: int, context_length: int) -> int:
    """Windows at multiples of ``context_length``, each with its target token: every target once, no tail but a partial one."""
    return max(0, num_tokens - 1) // context_length


def check_enough_tokens(num_tokens: int, context_length: int) -> None:
    """See that there is a sample at all.

    Raises:
        ValueError: There is none.
    """
    if num_tokens <= context_length:
        raise ValueError(
            f"{num_tokens} tokens are too few for context_length {context_length}: a sample takes {context_length + 1}, "
            "its targets being one token ahead"
        )


class Shuffle:
    """All windows in random order, another one in each epoch."""

    name: ClassVar[str] = "shuffle"
    lanes = 1
    mixed_samples = 0

    def __init__(self, num_tokens: int, context_length: int, seed: int) -> None:
        self._context_length = context_length
        self._seed = seed
        self.samples_per_epoch: int = num_windows(num_tokens, context_length)

    @property
    def parameters(self) -> dict[str, int]:
        return {}

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        def windows(epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
            return _permutation(self.samples_per_epoch, _key(self._seed, epoch, "windows"))(places)

        return _by_epoch(samples, self.samples_per_epoch, windows) * self._context_length

    def ranges(self, sample: int, lanes: Sequence[int]) -> Iterator[PlannedRange]:
        del sample, lanes
        return iter(())


class BlockShuffle:
    """Blocks in random order, and the windows of a few neighbours of that order mixed together.

    Args:
        num_tokens: Length of the dataset.
        context_length: Inputs of a sample.
        seed: Names the run.
        block_tokens: Length of a block, a multiple of ``context_length``.
        buffer_blocks: Blocks whose windows are mixed.
        lanes: Equal parts of the block sequence, each mixed within itself.
    """

    name: ClassVar[str] = "block-shuffle"

    def __init__(
        self,
        num_tokens: int,
        context_length: int,
        seed: int,
        *,
        block_tokens: int,
        buffer_blocks: int,
        lanes: int,
    ) -> None:
        self.lanes = lanes
        self._context_length = context_length
        self._seed = seed
        self._block_tokens = block_tokens
        self._buffer_blocks = buffer_blocks
        self._num_windows = num_windows(num_tokens, context_length)
        self._block_windows = block_tokens // context_length
        self._num_blocks = -(-self._num_windows // self._block_windows)
        # What the last block of the dataset lacks to a full one.
        self._num_lacking = self._num_blocks * self._block_windows - self._num_windows
        self._buffer_windows = buffer_blocks * self._block_windows
        self._lane_windows = self._num_windows // lanes
        self.mixed_samples: int = min(self._buffer_windows, self._lane_windows) * lanes
        self.samples_per_epoch: int = self._lane_windows * lanes

    @property
    def parameters(self) -> dict[str, int]:
        return {"block_tokens": self._block_tokens, "buffer_blocks": self._buffer_blocks, "lanes": self.lanes}

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return _by_epoch(samples, self.samples_per_epoch, self._windows) * self._context_length

    def _windows(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        lanes, lane_places = places % self.lanes, places // self.lanes
        buffers = lane_places // self._buffer_windows
        numbers = buffers * self.lanes + lanes
        first_number = int(numbers.min())
        found = np.empty_like(places)
        # One pass for each buffer, of which neighbouring samples see one or two in each lane.
        for number in (np.flatnonzero(np.bincount((numbers - first_number).reshape(-1))) + first_number).tolist():
            buffer, lane = divmod(number, self.lanes)
            first = buffer * self._buffer_windows
            length = min(self._buffer_windows, self._lane_windows - first)
            mix_buffer = _permutation(length, _key(self._seed, epoch, f"buffer/{lane}/{buffer}"))
            is_here = numbers == number
            mixed = lane * self._lane_windows + first + mix_buffer(lane_places[is_here] - first)
            blocks, offsets = self._blocks(epoch, mixed)
            # The buffer's blocks follow one another in the permuted sequence: each is looked up once.
            low, high = int(blocks.min()), int(blocks.max())
            found[is_here] = self._block_ids(epoch, low, high)[blocks - low] * self._block_windows + offsets
        return found

    def _blocks(self, epoch: int, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which block of the permuted sequence, and which window of it, stands at each place of the sequence."""
        last = _place_of_last(self._num_blocks, _key(self._seed, epoch, "blocks"))
        # Behind the one short block, everything stands as if it were full.
        is_behind = places >= (last + 1) * self._block_windows - self._num_lacking
        blocks, offsets = np.divmod(places + is_behind * self._num_lacking, self._block_windows)
        return blocks, offsets

    def _block_ids(self, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        """The blocks at the places ``low`` to ``high`` of the permuted sequence, both included."""
        permutation = _permutation(self._num_blocks, _key(self._seed, epoch, "blocks"))
        return permutation(np.arange(low, high + 1, dtype=np.int64))

    def ranges(self, sample: int, lanes: Sequence[int]) -> Iterator[PlannedRange]:
        epoch, place = divmod(sample, self.samples_per_epoch)
        buffer = place // self.lanes // self._buffer_windows
        while True:
            first = buffer * self._buffer_windows
            if first >= self._lane_windows:
                epoch, buffer = epoch + 1, 0
                continue
            stop = min(first + self._buffer_windows, self._lane_windows)
            needed_at = epoch * self.samples_per_epoch + first * self.lanes
            for lane in lanes:
                yield from self._block_ranges(
                    epoch, lane * self._lane_windows + first, lane * self._lane_windows + stop, needed_at
                )
            buffer += 1

    def _block_ranges(self, epoch: int, first: int, stop: int, sample: int) -> Iterator[PlannedRange]:
        """The ranges of positions behind the places ``[first, stop)`` of the block sequence."""
        blocks, offsets = self._blocks(epoch, np.array([first, stop - 1], dtype=np.int64))
        ids = self._block_ids(epoch, *blocks.tolist())
        starts, stops = ids * self._block_windows, (ids + 1) * self._block_windows
        starts[0] += offsets[0]
        stops[-1] += offsets[1] + 1 - self._block_windows
        starts *= self._context_length
        stops = np.minimum(stops, self._num_windows) * self._context_length + 1
        for positions in zip(starts.tolist(), stops.tolist(), strict=True):
            yield PlannedRange(sample, *positions)


class Sequential:
    """Window after window, the same in each epoch."""

    name: ClassVar[str] = "sequential"
    lanes = 1

    def __init__(self, num_tokens: int, context_length: int) -> None:
        self._context_length = context_length
        self.mixed_samples: int = max(1, _SEQUENTIAL_AHEAD_TOKENS // context_length)
        self.samples_per_epoch: int = num_windows(num_tokens, context_length)

    @property
    def parameters(self) -> dict[str, int]:
        return {}

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return samples % self.samples_per_epoch * self._context_length

    def ranges(self, sample: int, lanes: Sequence[int]) -> Iterator[PlannedRange]:
        del lanes
        step = max(1, _SEQUENTIAL_RANGE_TOKENS // self._context_length)
        while True:
            first = sample % self.samples_per_epoch
            stop = min(first + step, self.samples_per_epoch)
            yield PlannedRange(sample, first * self._context_length, stop * self._context_length + 1)
            sample += stop - first


class Random:
    """Any start, uniformly and with replacement: the classical ``get_batch``."""

    name: ClassVar[str] = "random"
    lanes = 1
    samples_per_epoch = None
    mixed_samples = 0

    def __init__(self, num_tokens: int, context_length: int, seed: int) -> None:
        self._num_starts = num_tokens - context_length
        self._keys = [_U64(key) for key in keys_of(_key(seed, 0, "starts"), 2)]

    @property
    def parameters(self) -> dict[str, int]:
        return {}

    def starts(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        # Of 2**64 draws, those that a modulo would fold unevenly on the starts are drawn again.
        bound = 2**64 - 2**64 % self._num_starts
        draws = self._draws(samples.astype(np.uint64))
        while bound < 2**64 and (is_rejected := draws >= _U64(bound)).any():
            draws[is_rejected] = self._draws(draws[is_rejected])
        starts: NDArray[np.int64] = (draws % _U64(self._num_starts)).astype(np.int64)
        return starts

    def _draws(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return mix(mix(numbers, self._keys[0]), self._keys[1])

    def ranges(self, sample: int, lanes: Sequence[int]) -> Iterator[PlannedRange]:
        del sample, lanes
        return iter(())


def _key(seed: int, epoch: int, purpose: str) -> str:
    return f"shardstream order {ORDER_VERSION}/{seed}/{epoch}/{purpose}"


# Neighbouring samples share a few permutations; making one takes longer than permuting a batch.
_permutation = functools.lru_cache(maxsize=256)(Permutation)


@functools.lru_cache(maxsize=256)
def _place_of_last(length: int, key: str) -> int:
    """Which element the permutation sends to the last place."""
    return int(_permutation(length, key).inverse(np.array(length - 1, dtype=np.int64)))


def _by_epoch(
    samples: NDArray[np.int64],
    samples_per_epoch: int,
    windows: Callable[[int, NDArray[np.int64]], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Ask for the windows at the places of each epoch that the samples touch."""
    first = int(samples.min(initial=np.iinfo(np.int64).max)) // samples_per_epoch
    last = int(samples.max(initial=0)) // samples_per_epoch
    if first >= last:
        return windows(last, samples - last * samples_per_epoch) if samples.size else samples
    epochs, places = np.divmod(samples, samples_per_epoch)
    found = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        is_here = epochs == epoch
        found[is_here] = windows(epoch, places[is_here])
    return found
