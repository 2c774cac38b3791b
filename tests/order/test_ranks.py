"""Laws of the rows: each rank has its own, together they are the global batch, whatever the number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.order.ranks import lanes_of, rank_slice, samples_of


@pytest.mark.parametrize(
    ("num_rows", "dp_world_size", "expected"),
    [
        pytest.param(6, 1, [range(6)], id="one rank has all rows"),
        pytest.param(6, 3, [range(2), range(2, 4), range(4, 6)], id="B rows each where D divides G"),
        pytest.param(5, 3, [range(1), range(1, 3), range(3, 5)], id="lengths differ by one at most"),
        pytest.param(2, 3, [range(0), range(1), range(1, 2)], id="more ranks than rows leave one without"),
        pytest.param(0, 2, [range(0), range(0)], id="no rows, none for anybody"),
    ],
)
def test_rank_slice(num_rows: int, dp_world_size: int, expected: list[range]) -> None:
    """A rank takes consecutive rows, as even as can be."""
    assert [rank_slice(num_rows, dp_rank, dp_world_size) for dp_rank in range(dp_world_size)] == expected


@given(st.integers(0, 10**6), st.integers(1, 50))
def test_rank_slices_are_all_rows_once(num_rows: int, dp_world_size: int) -> None:
    """For any numbers of rows and ranks, the slices follow one another from the first row to the last, evenly."""
    slices = [rank_slice(num_rows, dp_rank, dp_world_size) for dp_rank in range(dp_world_size)]

    assert [rows.start for rows in slices] == [0, *(rows.stop for rows in slices[:-1])]
    assert slices[-1].stop == num_rows
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@st.composite
def batches(draw: st.DrawFn) -> dict[str, int]:
    """A global batch: D ranks, B rows of each, lanes that divide G."""
    dp_world_size, rows_of_rank = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    num_rows = dp_world_size * rows_of_rank
    lanes = draw(st.sampled_from([lanes for lanes in range(1, num_rows + 1) if num_rows % lanes == 0]))
    return {"num_rows": num_rows, "lanes": lanes, "dp_world_size": dp_world_size}


@given(batches(), st.integers(0, 10**6), st.integers(0, 5))
def test_ranks_make_up_each_global_batch(batch: dict[str, int], number: int, num_steps: int) -> None:
    """The ranks' samples of a step are disjoint, of B rows each, and together the next G samples."""
    num_rows, lanes, dp_world_size = batch.values()
    first = number * lanes

    ranks = [samples_of(first, num_steps, dp_rank=dp_rank, **batch) for dp_rank in range(dp_world_size)]

    assert all(samples.shape == (num_steps, num_rows // dp_world_size) for samples in ranks)
    together = np.concatenate(ranks, axis=1)
    assert np.sort(together).ravel().tolist() == list(range(first, first + num_steps * num_rows))


@given(batches(), st.integers(0, 10**6))
def test_rows_are_the_same_for_any_number_of_ranks(batch: dict[str, int], number: int) -> None:
    """Row j is of lane j * N // G, lanes go upward, and how many ranks share the rows changes none of them."""
    num_rows, lanes, dp_world_size = batch.values()
    first = number * lanes

    rows = np.concatenate([samples_of(first, 2, dp_rank=dp_rank, **batch) for dp_rank in range(dp_world_size)], axis=1)

    alone = samples_of(first, 2, num_rows=num_rows, lanes=lanes, dp_rank=0, dp_world_size=1)
    assert rows.tolist() == alone.tolist()
    assert (rows % lanes).tolist() == [[row * lanes // num_rows for row in range(num_rows)]] * 2
    expected = [first + n for n in sorted(range(num_rows), key=lambda n: (n % lanes, n))]
    assert rows[0].tolist() == expected


@given(batches(), st.integers(0, 10**6))
def test_lanes_are_those_of_the_rows(batch: dict[str, int], number: int) -> None:
    """The lanes of a rank are exactly those that its samples are of, and at most one more than its share, rounded up."""
    _, lanes, dp_world_size = batch.values()
    for dp_rank in range(dp_world_size):
        samples = samples_of(number * lanes, 1, dp_rank=dp_rank, **batch)

        found = lanes_of(dp_rank=dp_rank, **batch)

        assert list(found) == sorted(set((samples % lanes).ravel().tolist()))
        assert len(found) <= -(-lanes // dp_world_size) + 1
