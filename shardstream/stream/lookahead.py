"""What comes next: the plan of a run, and pages asked for ahead of their use.

The order is computed thousands of samples ahead, since one sample alone costs 1,000 times as much. Pages are asked for
only while this thread, or one that reads ahead for it, really reads from the disk, as the kernel counts it (getrusage):
asking for a batch whose pages are in memory costs more than gathering it.
"""

import itertools
import resource
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shardstream.order.orders import Order, PlannedRange
from shardstream.order.ranks import lanes_of, rank_slice, samples_of
from shardstream.read.token_dataset import TokenDataset
from shardstream.stream.shard_plan import ShardPlan

# Samples planned at first and at most: the first batch comes at once, the later ones are cheap.
_FIRST_PLAN: Final = 2**10
_LARGEST_PLAN: Final = 2**15
# Windows asked for ahead of their use: a disk answers so many at a time at its full rate.
_WINDOWS_AHEAD: Final = 256
_STEPS_AHEAD: Final = 4
# After so many steps that asked, and made the disk read nothing, all that is needed seems to be in memory.
_QUIET_STEPS: Final = 32
# Ranges are asked for in pieces of so many tokens, twice as fast as tokens are used: in good time, and a few at a time,
# since whoever asks for more than a disk's queue holds waits.
_PIECE_TOKENS: Final = 2**20
_ASKING_SPEED: Final = 2
# Whole ranges are worth their bytes if this rank needs an eighth of them: a disk reads that much faster in one go.
_LEAST_SHARE: Final = 1 / 8
# Linux counts for each thread; elsewhere what other threads read keeps us asking, which does no harm.
_RUSAGE: Final = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


class Lookahead:
    """Start positions of one rank's samples, step after step.

    Args:
        dataset: Asked for pages ahead.
        order: Which sample is where.
        context_length: Inputs of a sample.
        num_rows: Rows of a global batch.
        dp_rank, dp_world_size: Whose rows.
        first_sample: Where to begin, a multiple of the order's lanes.
        stop_sample: Where to end; None for never. The last global batch is shorter if it has to be.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        order: Order,
        *,
        context_length: int,
        num_rows: int,
        dp_rank: int,
        dp_world_size: int,
        first_sample: int,
        stop_sample: int | None,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._length = context_length + 1
        self._num_rows = num_rows
        self._dp_rank, self._dp_world_size = dp_rank, dp_world_size
        self._stop_sample = stop_sample
        self._lanes = lanes_of(num_rows, lanes=order.lanes, dp_rank=dp_rank, dp_world_size=dp_world_size)
        self._num_lane_rows = len(self._lanes) * num_rows // order.lanes  # of all ranks that read these lanes
        self._sample = first_sample  # the first of the step that is taken next
        self._planned_sample = first_sample  # the first that is not planned yet
        self._plan_samples = _FIRST_PLAN
        self._plan: deque[NDArray[np.int64]] = deque()
        self._credit_tokens = 0  # what may be asked for before it is needed
        self._num_asked = 0  # so many steps of the plan were asked for
        self._num_reads = self._reads_so_far()
        self._num_quiet_steps = 0
        self._has_asked = False
        self._ranges = self._ranges_from(first_sample)
        self._shards = (
            ShardPlan(dataset, order, self._lanes, sample=first_sample, stop_sample=stop_sample)
            if dataset.cache is not None
            else None
        )

    def close(self) -> None:
        """Say that no sample is needed any more."""
        if self._shards is not None:
            self._shards.close()

    def take(self) -> NDArray[np.int64] | None:
        """Start positions of the next step, shape (rows of the rank,); None after the last."""
        if not self._plan and not self._plan_more():
            return None
        if self._shards is not None:
            self._shards.go_to(self._sample, self._sample + self._num_rows, self._plan)
        if self._must_ask():
            self._ask()
        self._num_asked = max(0, self._num_asked - 1)
        self._sample += self._num_rows
        return self._plan.popleft()

    def put_back(self, starts: NDArray[np.int64]) -> None:
        """Undo the last :meth:`take`, which returned ``starts``."""
        self._plan.appendleft(starts)
        self._sample -= self._num_rows
        self._num_asked = 0

    def _plan_more(self) -> bool:
        """Plan at least one step more; False if there is none."""
        num_steps = max(1, self._plan_samples * self._dp_world_size // self._num_rows)
        num_rows = self._num_rows
        if self._stop_sample is not None:
            num_left = self._stop_sample - self._planned_sample
            if num_left == 0:
                return False
            num_steps = min(num_steps, num_left // num_rows)
            if num_steps == 0:
                num_steps, num_rows = 1, num_left
        samples = samples_of(
            self._planned_sample,
            num_steps,
            num_rows=num_rows,
            lanes=self._order.lanes,
            dp_rank=self._dp_rank,
            dp_world_size=self._dp_world_size,
        )
        self._plan.extend(self._order.starts(samples))
        self._planned_sample += num_steps * num_rows
        self._plan_samples = min(2 * self._plan_samples, _LARGEST_PLAN)
        return True

    def _must_ask(self) -> bool:
        num_reads = self._reads_so_far()
        was_quiet = self._num_quiet_steps > _QUIET_STEPS
        if num_reads[0] != self._num_reads[0]:
            pass  # another thread's count says nothing about this step
        elif num_reads != self._num_reads:
            self._num_quiet_steps = 0
        elif self._has_asked:  # and nothing had to be read for it
            self._num_quiet_steps += 1
        self._num_reads = num_reads
        self._has_asked = False
        is_quiet = self._num_quiet_steps > _QUIET_STEPS
        if was_quiet and not is_quiet:
            self._ranges = self._ranges_from(self._sample)  # those before were never asked for
        return not is_quiet

    def _reads_so_far(self) -> tuple[int, int, int, int]:
        return *_num_reads(), self._dataset.num_reads_ahead

    def _ask(self) -> None:
        if self._ranges is None:
            self._ask_for_windows()
        else:
            self._ask_for_ranges(self._ranges)

    def _ask_for_windows(self) -> None:
        num_wanted = max(_STEPS_AHEAD, -(-_WINDOWS_AHEAD // max(1, len(self._plan[0]))))
        while len(self._plan) < num_wanted and self._plan_more():
            pass
        for starts in itertools.islice(self._plan, self._num_asked, num_wanted):
            self._has_asked = True
            self._dataset.look_ahead(starts, starts + self._length)
        self._num_asked = max(self._num_asked, min(num_wanted, len(self._plan)))

    def _ask_for_ranges(self, ranges: "_Peekable") -> None:
        """Ask for all that may be needed now, and for some of what will be mixed next."""
        self._credit_tokens += _ASKING_SPEED * self._num_lane_rows * self._length
        while (piece := ranges.first) is not None:
            if piece.sample >= self._sample + self._num_rows:
                if self._credit_tokens < 0 or piece.sample > self._sample + self._order.mixed_samples:
                    break
                self._credit_tokens -= piece.stop - piece.start
            self._has_asked = True
            self._dataset.look_ahead(np.array([piece.start]), np.array([piece.stop]))
            ranges.drop_first()
        self._credit_tokens = min(self._credit_tokens, 0)

    def _ranges_from(self, sample: int) -> "_Peekable | None":
        """What is read as a whole from a sample on, in pieces; None if windows are better asked for one by one."""
        num_own_rows = len(rank_slice(self._num_rows, self._dp_rank, self._dp_world_size))
        if self._order.mixed_samples == 0 or num_own_rows < _LEAST_SHARE * self._num_lane_rows:
            return None
        return _Peekable(_pieces_of(self._order.ranges(sample, self._lanes), self._stop_sample))


class _Peekable:
    """An iterator whose next element can be looked at."""

    def __init__(self, ranges: Iterator[PlannedRange]) -> None:
        self._ranges = ranges
        self.first = next(ranges, None)

    def drop_first(self) -> None:
        self.first = next(self._ranges, None)


def _pieces_of(ranges: Iterator[PlannedRange], stop_sample: int | None) -> Iterator[PlannedRange]:
    if stop_sample is not None:
        ranges = itertools.takewhile(lambda planned: planned.sample < stop_sample, ranges)
    for sample, start, stop in ranges:
        # The last takes the rest along: the token that a range's last window ends in is no piece of its own.
        firsts = range(start, max(start, stop - _PIECE_TOKENS) + 1, _PIECE_TOKENS)
        for first, last in itertools.pairwise([*firsts, stop]):
            yield PlannedRange(sample, first, last)


def _num_reads() -> tuple[int, int, int]:
    """This thread, how often it waited for the disk, and how many blocks it made the disk read, ever."""
    usage = resource.getrusage(_RUSAGE)
    return threading.get_ident(), usage.ru_majflt, usage.ru_inblock
