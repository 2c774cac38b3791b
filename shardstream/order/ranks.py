"""Rows of a global batch -> this rank's sample numbers.

A global batch of G rows takes the next G samples. Its rows are dealt to the ranks in order, so rank r of D has rows
``[r * B, (r + 1) * B)``. With lanes, row j is of lane ``j * lanes // G``: a rank then sees few lanes, and the batch
holds the same samples for any number of ranks.
"""

import numpy as np
from numpy.typing import NDArray


def rank_slice(num_rows: int, dp_rank: int, dp_world_size: int) -> range:
    """The rows that one of several ranks takes: consecutive, all rows once, as even as can be."""
    return range(num_rows * dp_rank // dp_world_size, num_rows * (dp_rank + 1) // dp_world_size)


def samples_of(
    first_sample: int, num_steps: int, *, num_rows: int, lanes: int, dp_rank: int, dp_world_size: int
) -> NDArray[np.int64]:
    """Sample numbers of one rank.

    Args:
        first_sample: First sample of the first global batch, a multiple of ``lanes``.
        num_steps: Global batches that follow one another.
        num_rows: Rows of each global batch, G, a multiple of ``lanes``.
        lanes: Lanes of the order.
        dp_rank, dp_world_size: Whose rows.

    Returns:
        Shape (num_steps, rows of the rank).
    """
    mine = rank_slice(num_rows, dp_rank, dp_world_size)
    lane, row_in_lane = np.divmod(np.arange(mine.start, mine.stop, dtype=np.int64), num_rows // lanes)
    firsts = first_sample + num_rows * np.arange(num_steps, dtype=np.int64)
    samples: NDArray[np.int64] = firsts[:, None] + (row_in_lane * lanes + lane)
    return samples


def lanes_of(num_rows: int, *, lanes: int, dp_rank: int, dp_world_size: int) -> range:
    """The lanes that a rank's rows are of."""
    mine = rank_slice(num_rows, dp_rank, dp_world_size)
    rows_of_lane = num_rows // lanes
    return range(mine.start // rows_of_lane, -(-mine.stop // rows_of_lane))
