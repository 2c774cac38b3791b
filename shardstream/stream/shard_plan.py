"""Which shards the next samples need: what is kept in the cache, and what is downloaded ahead of its use.

The order knows which parts of the dataset are read together and when. A part takes whole shards, but for its edges: the
last target of a block is the first token of the next shard, and lanes may cut a block in two. Such an edge is not worth
a download of its own where the shard would have to leave again, or belongs to another node.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.order.orders import Order
from shardstream.read.spans import Span, spans_of
from shardstream.read.token_dataset import TokenDataset

if TYPE_CHECKING:
    from shardstream.order.orders import PlannedRange

# What is downloaded before it is needed: enough that the wire is never idle while a shard is made durable.
_SHARDS_AHEAD: Final = 4
# They are looked for no further: with so much to read before them, the wire is not what a stream waits for.
_GROUPS_AHEAD: Final = 64
# No more than this part of a shard, and no more tokens, are an edge: a request that is over as soon as it is answered.
_EDGE_SHARE: Final = 1 / 64
_EDGE_TOKENS: Final = 2**16
# The working set is looked up for so many groups; the ones behind them are of the same kind.
_GROUPS_LOOKED_UP: Final = 64
_NEVER: Final = 2**63


class _Group(NamedTuple):
    """What is read together."""

    sample: int
    """Number of the first sample that may need it."""
    shards: list[int]
    edges: list[Span]


class ShardPlan:
    """The shards of one batch stream, told to its dataset as the stream goes on.

    Args:
        dataset: Read through a cache.
        order: Which sample is where.
        lanes: The lanes that this rank reads.
        sample: Where the stream stands.
        stop_sample: Where it ends; None for never.
    """

    def __init__(
        self, dataset: TokenDataset, order: Order, lanes: Sequence[int], *, sample: int, stop_sample: int | None
    ) -> None:
        self._dataset = dataset
        self._groups = _groups(dataset, order, lanes, sample, stop_sample)
        cache = dataset.cache
        # Then every shard comes once and stays.
        self._has_room = cache is not None and (
            cache.max_bytes is None or cache.max_bytes >= dataset.manifest.num_bytes
        )
        self._wants_all = self._has_room and len(lanes) == order.lanes  # and its edges come with it
        self._ahead: list[_Group] = []  # those in use, and those that follow
        self._passed: set[int] = set()  # shards that were needed, where they stay
        self._next_change = sample  # the first sample that needs a group which was not said to be in use
        self._has_groups = order.mixed_samples > 0

    def go_to(self, sample: int, stop: int, starts: Sequence[NDArray[np.int64]]) -> None:
        """Say what samples ``[sample, stop)`` need, and what follows them.

        Args:
            sample, stop: Half-open.
            starts: Start positions of the next steps, for orders that read anything at any time.
        """
        if stop <= self._next_change:
            return
        if not self._has_groups:
            self._next_change = _NEVER
            self._dataset.expect(self, in_use=None, coming=_in_order_of_need(self._dataset, starts))
            return
        while len(self._ahead) > 1 and self._ahead[1].sample <= sample:
            self._ahead.pop(0)
        self._look_further(stop)
        is_in_use = [group.sample < stop for group in self._ahead]
        num_in_use = max(1, sum(is_in_use))
        if num_in_use > 1:
            self._next_change = stop  # this step is the last that needs the first of them
        else:
            self._next_change = self._ahead[1].sample if len(self._ahead) > 1 else _NEVER
        current, following = self._ahead[:num_in_use], self._ahead[num_in_use:]
        in_use = dict.fromkeys(shard for group in current for shard in group.shards)
        needed = dict.fromkeys(itertools.chain.from_iterable(map(self._needed, self._ahead)))
        self._dataset.expect(
            self,
            in_use=list(in_use),
            coming=[shard for shard in needed if shard not in in_use],
            pieces=[] if self._wants_all else [edge for group in (*current, *following[:1]) for edge in group.edges],
        )

    def close(self) -> None:
        """Nothing is needed any more."""
        self._dataset.expect(self, in_use=())

    def _needed(self, group: _Group) -> Iterator[int]:
        """The shards that a group wants in the cache."""
        return itertools.chain(group.shards, (edge.shard for edge in group.edges if self._wants_all))

    def _look_further(self, stop: int) -> None:
        """Have all groups that are needed before ``stop``, and enough that follow to keep the wire busy."""
        while True:
            if self._has_room:
                current = itertools.takewhile(lambda group: group.sample < stop, self._ahead)
                self._passed.update(itertools.chain.from_iterable(map(self._needed, current)))
            following = [group for group in self._ahead if group.sample >= stop]
            shards = set(itertools.chain.from_iterable(map(self._needed, following))) - self._passed
            num_left = len(self._dataset.manifest.shards) - len(self._passed)
            if len(following) > 1 and (len(shards) >= min(_SHARDS_AHEAD, num_left) or len(following) >= _GROUPS_AHEAD):
                return
            group = next(self._groups, None)
            if group is None:
                return
            self._ahead.append(group)


def working_set_bytes(dataset: TokenDataset, order: Order, lanes: Sequence[int], *, num_rows: int) -> int:
    """What a cache has to hold at a time for an order, in bytes: the whole dataset for one that reads anything any time.

    A step of ``num_rows`` samples may begin with the last of one buffer and end with the first of the next: a run that
    was resumed, or has passed the end of an epoch, stands anywhere. So it needs the shards of both.
    """
    shards = dataset.manifest.shards
    if order.mixed_samples == 0:
        return dataset.manifest.num_bytes
    groups: list[_Group] = []
    for group in _groups(dataset, order, lanes, 0, None):  # pragma: no branch - they have no end
        groups.append(group)
        if len(groups) > _GROUPS_LOOKED_UP and group.sample >= groups[_GROUPS_LOOKED_UP].sample + num_rows:
            break
    return max(
        sum(shards[shard].num_bytes for shard in _shards_at_a_time(groups[index:], order.lanes, num_rows))
        for index in range(_GROUPS_LOOKED_UP)
    )


def shards_of_epoch(dataset: TokenDataset, order: Order, lanes: Sequence[int], *, sample: int) -> list[int]:
    """Numbers of the shards that an order needs from a sample to the end of its epoch, in order of need.

    All shards, for one that reads anything at any time. Without those that have nothing but edges in these lanes.
    """
    if order.mixed_samples == 0 or order.samples_per_epoch is None:
        return list(range(len(dataset.manifest.shards)))
    stop_sample = (sample // order.samples_per_epoch + 1) * order.samples_per_epoch
    groups = list(_groups(dataset, order, lanes, sample, stop_sample))
    has_all = len(lanes) == order.lanes  # then no other rank reads what is left of a shard
    edges = (edge.shard for group in groups for edge in group.edges if has_all)
    return list(dict.fromkeys([*(shard for group in groups for shard in group.shards), *edges]))


def _shards_at_a_time(groups: list[_Group], lanes: int, num_rows: int) -> set[int]:
    """What the last step that begins in the first of these groups needs."""
    stop = groups[1].sample - lanes + num_rows
    following = itertools.takewhile(lambda group: group.sample < stop, groups[1:])
    return {shard for group in (groups[0], *following) for shard in group.shards}


def _groups(
    dataset: TokenDataset, order: Order, lanes: Sequence[int], sample: int, stop_sample: int | None
) -> Iterator[_Group]:
    ranges: Iterator[PlannedRange] = order.ranges(sample, lanes)
    if stop_sample is not None:
        ranges = itertools.takewhile(lambda planned: planned.sample < stop_sample, ranges)
    for first_sample, together in itertools.groupby(ranges, key=lambda planned: planned.sample):
        spans = [span for planned in together for span in spans_of(planned.start, planned.stop, dataset.bounds)]
        shards = dict.fromkeys(span.shard for span in spans if not _is_edge(span, dataset))
        edges = [span for span in spans if span.shard not in shards]
        if not shards:  # shards so large that nothing but edges is left of them
            shards, edges = dict.fromkeys(span.shard for span in spans), []
        yield _Group(first_sample, list(shards), edges)


def _is_edge(span: Span, dataset: TokenDataset) -> bool:
    entry = dataset.manifest.shards[span.shard]
    # Of a compressed shard no part can be read by itself.
    return entry.stored is None and span.stop - span.start <= min(_EDGE_TOKENS, _EDGE_SHARE * entry.num_tokens)


def _in_order_of_need(dataset: TokenDataset, starts: Sequence[NDArray[np.int64]]) -> list[int]:
    """All shards, those first that the next steps touch."""
    positions = np.concatenate([np.empty(0, dtype=np.int64), *starts])
    touched = dataset.bounds.searchsorted(positions, side="right") - 1
    return list(dict.fromkeys([*touched.tolist(), *range(len(dataset.manifest.shards))]))
