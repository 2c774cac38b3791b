"""Windows by ranged GETs, without a cache: for a quick look at a dataset that is far away.

What a call needs is known as a whole, so that neighbours become one request, and requests go out side by side. Nothing
is kept between calls, and no checksum can be taken of a part: all that is seen is that the dataset's manifest is still
the one that was opened.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstream.format.manifest import ShardEntry
from shardstream.read.mapped_shards import Tokens
from shardstream.read.spans import spans_of, stepped_spans_of
from shardstream.storage.store import Store
from shardstream.storage.workers import Workers

# A request takes as long as this many bytes on a wire of 100 MB/s and 2 ms: closer neighbours are read in one.
_GAP_BYTES: Final = 2**18
_LARGEST_BYTES: Final = 2**23
_NUM_REQUESTS_AT_A_TIME: Final = 8


class _Need(NamedTuple):
    """A run of tokens of one shard, and where it goes."""

    shard: int
    start: int
    stop: int
    step: int
    target: Tokens


class RangedShards:
    """Reads tokens of shards that lie in a store. Threads may call it at once.

    Args:
        store: Where the shards are.
        entries: The shards, in order; all raw.
        bounds: First position of each shard, then the total; shape (num_shards + 1,).
        dtype: The stored dtype.
        check_unchanged: Called after each read; raises if the dataset is another one by then.
    """

    def __init__(
        self,
        store: Store,
        entries: Sequence[ShardEntry],
        bounds: NDArray[np.int64],
        dtype: "np.dtype[np.unsignedinteger[Any]]",
        check_unchanged: Callable[[], None],
    ) -> None:
        self._store = store
        self._entries = entries
        self._bounds = bounds
        self._dtype = dtype
        self._check_unchanged = check_unchanged

    def gather(self, starts: NDArray[np.int64], length: int, out: Tokens | None) -> Tokens:
        """Windows of ``length`` tokens, as MappedShards gives them."""
        windows = np.empty((len(starts), length), dtype=self._dtype) if out is None else out
        needs = []
        for start, window in zip(starts.tolist(), windows, strict=True):
            filled = 0
            for shard, first, stop in spans_of(start, start + length, self._bounds):
                needs.append(_Need(shard, first, stop, 1, window[filled : filled + stop - first]))
                filled += stop - first
        self._read(needs)
        return windows

    def read(self, positions: range) -> Tokens:
        """Tokens at ``positions``, as MappedShards gives them."""
        out = np.empty(len(positions), dtype=self._dtype)
        needs = []
        filled = 0
        for shard, piece in stepped_spans_of(positions, self._bounds):
            upward = piece if piece.step > 0 else piece[::-1]
            target = out[filled : filled + len(piece)]
            needs.append(
                _Need(shard, upward.start, upward[-1] + 1, upward.step, target if piece.step > 0 else target[::-1])
            )
            filled += len(piece)
        self._read(needs)
        return out

    def close(self) -> None:
        """Nothing is held."""

    def _read(self, needs: list[_Need]) -> None:
        """Fill all targets."""
        workers = Workers(_NUM_REQUESTS_AT_A_TIME, "shardstream-get")
        try:
            together = _coalesced(needs, self._dtype.itemsize)
            requests = [workers.submit(partial(self._fetch, group)) for group in together]
            for group, request in zip(together, requests, strict=True):
                first, data = group[0].start, request.result()
                for need in group:
                    need.target[:] = data[need.start - first : need.stop - first : need.step]
        finally:
            workers.close()
        self._check_unchanged()

    def _fetch(self, needs: list[_Need]) -> Tokens:
        entry = self._entries[needs[0].shard]
        itemsize = self._dtype.itemsize
        start = entry.byte_offset + needs[0].start * itemsize
        stop = entry.byte_offset + max(need.stop for need in needs) * itemsize
        data = self._store.get_range(entry.location or entry.name, start, stop)
        return np.frombuffer(data, dtype=self._dtype)


def _coalesced(needs: list[_Need], itemsize: int) -> list[list[_Need]]:
    """Needs that are worth one request each, in order of position."""
    groups: list[list[_Need]] = []
    stop = 0
    parts = [part for need in needs for part in _parts_of(need, _LARGEST_BYTES // itemsize)]
    for need in sorted(parts, key=lambda need: (need.shard, need.start, need.stop)):
        group = groups[-1] if groups else None
        if (
            group is not None
            and need.shard == group[0].shard
            and (need.start - stop) * itemsize <= _GAP_BYTES
            and (max(stop, need.stop) - group[0].start) * itemsize <= _LARGEST_BYTES
        ):
            group.append(need)
            stop = max(stop, need.stop)
        else:
            groups.append([need])
            stop = need.stop
    return groups


def _parts_of(need: _Need, max_tokens: int) -> Iterator[_Need]:
    """A need as several that one request can serve each."""
    num_at_a_time = max(1, max_tokens // need.step)
    for first in range(0, len(need.target), num_at_a_time):
        target = need.target[first : first + num_at_a_time]
        start = need.start + first * need.step
        yield _Need(need.shard, start, start + (len(target) - 1) * need.step + 1, need.step, target)
