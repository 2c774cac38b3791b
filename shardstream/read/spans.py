"""Range of positions -> spans, one per shard crossed. Pure arithmetic."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Span(NamedTuple):
    """The part of a range that lies in one shard."""

    shard: int
    """Number of the shard."""
    start: int
    """First token, counted from the shard's start."""
    stop: int
    """One past the last."""


def spans_of(start: int, stop: int, bounds: NDArray[np.int64]) -> list[Span]:
    """Cut the range ``[start, stop)`` at shard bounds.

    Args:
        start, stop: Positions in the dataset, half-open, in tokens.
        bounds: First position of each shard, then the total; shape (num_shards + 1,), increasing.

    Returns:
        Spans in order; their lengths add up to ``stop - start``. None is empty.

    Raises:
        IndexError: The range does not lie within the dataset.
    """
    total = int(bounds[-1])
    if not 0 <= start <= stop <= total:
        raise IndexError(f"range [{start}, {stop}) does not lie within the dataset's {total} tokens")
    spans = []
    shard = int(bounds.searchsorted(start, side="right")) - 1
    while start < stop:
        first, last = int(bounds[shard]), int(bounds[shard + 1])
        piece_stop = min(stop, last)
        spans.append(Span(shard, start - first, piece_stop - first))
        start = piece_stop
        shard += 1
    return spans


def stepped_spans_of(positions: range, bounds: NDArray[np.int64]) -> list[tuple[int, range]]:
    """The same for every ``positions.step``-th position, upward or downward.

    Args:
        positions: Positions within the dataset.
        bounds: As for :func:`spans_of`.

    Returns:
        (shard, positions counted from the shard's start), in order; the ranges' lengths add up to ``len(positions)``.
    """
    pieces = []
    done = 0
    while done < len(positions):
        shard = int(bounds.searchsorted(positions[done], side="right")) - 1
        first, last = int(bounds[shard]), int(bounds[shard + 1])
        edge = last - 1 if positions.step > 0 else first
        count = (edge - positions[done]) // positions.step + 1
        piece = positions[done : done + count]
        pieces.append((shard, range(piece.start - first, piece.stop - first, piece.step)))
        done += len(piece)
    return pieces
