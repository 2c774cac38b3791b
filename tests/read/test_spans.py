"""Laws of the span arithmetic, against slicing one concatenated array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.read.spans import Span, spans_of, stepped_spans_of

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def bounds_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@given(LENGTHS, st.data())
def test_spans_equal_slicing_the_concatenation(lengths: list[int], data: st.DataObject) -> None:
    """The spans of any range, joined, are the slice of the whole; none is empty."""
    shards = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    start = data.draw(st.integers(0, sum(lengths)))
    stop = data.draw(st.integers(start, sum(lengths)))

    spans = spans_of(start, stop, bounds_of(lengths))

    pieces = [shards[span.shard][span.start : span.stop] for span in spans]
    assert list(range(start, stop)) == [token for piece in pieces for token in piece]
    assert all(span.start < span.stop for span in spans)


@given(LENGTHS, st.data())
def test_stepped_spans_equal_slicing_the_concatenation(lengths: list[int], data: st.DataObject) -> None:
    """The stepped spans of any slice, upward or downward, joined, are the slice of the whole."""
    total = sum(lengths)
    shards = np.split(np.arange(total), np.cumsum(lengths)[:-1])
    key = data.draw(st.slices(total))
    positions = range(*key.indices(total))

    pieces = stepped_spans_of(positions, bounds_of(lengths))

    assert list(positions) == [int(shards[shard][offset]) for shard, piece in pieces for offset in piece]
    assert all(len(piece) for _, piece in pieces)


def test_a_range_that_starts_on_the_last_token_of_a_shard_ends_in_the_next() -> None:
    """A range that starts on the last token of a shard has a span of one token there and the rest in the next."""
    assert spans_of(3, 6, bounds_of([4, 4])) == [Span(0, 3, 4), Span(1, 0, 2)]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 9), (5, 4), (9, 9)])
def test_a_range_outside_the_dataset_is_refused(start: int, stop: int) -> None:
    """A range that is not within the dataset, or runs backward, is an IndexError with its bounds."""
    with pytest.raises(IndexError, match=rf"range \[{start}, {stop}\) does not lie within the dataset's 8 tokens"):
        spans_of(start, stop, bounds_of([4, 4]))
