"""Whatever a user calls tokens, as NumPy pieces; or an error that names the position."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from shardstream.write.token_array import token_arrays

IDS = [0, 5, 127, 3]
GOOD = {
    "list": IDS,
    "tuple": tuple(IDS),
    "empty": [],
    **{f"numpy-{dtype}": np.array(IDS, dtype) for dtype in ("i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">u8")},
    "numpy-strided": np.repeat(IDS, 2)[::2],
    "numpy-empty-float": np.array([]),
    "torch": torch.tensor(IDS),
    "torch-int8": torch.tensor(IDS, dtype=torch.int8),
    "arrow": pa.array(IDS),
    "arrow-uint16": pa.array(IDS, pa.uint16()),
    "arrow-chunked": pa.chunked_array([IDS[:1], IDS[1:], []], pa.int32()),
    "arrow-dictionary": pa.array(IDS).dictionary_encode(),
    "arrow-list": pa.array([IDS[:1], [], IDS[1:]]),
    "arrow-large-list": pa.array([IDS], pa.large_list(pa.int64())),
    "arrow-fixed-list": pa.array([IDS[:2], IDS[2:]], pa.list_(pa.int16(), 2)),
    "arrow-nested-list": pa.array([[IDS[:1], IDS[1:2]], [IDS[2:]]]),
    "arrow-chunked-list": pa.chunked_array([[IDS[:2]], [IDS[2:]]]),
    "arrow-empty-null": pa.array([]),
    "arrow-sliced": pa.array([9, *IDS, 9])[1:-1],
}


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_tokens_is_taken(name: str) -> None:
    """Lists, NumPy of every width and byte order, torch and Arrow give the same ids in order."""
    pieces = list(token_arrays(GOOD[name], 0, flatten=True))

    ids = [int(token) for piece in pieces for token in piece]
    assert ids == ([] if "empty" in name else IDS)
    assert all(piece.ndim == 1 and piece.dtype.kind in "iu" for piece in pieces)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([1, 2.0], TypeError, r"token at position 101 is 2.0 \(float\); ids must be integers, none is rounded"),
        ([1, None], TypeError, "token at position 101 is None"),
        ([1, "2"], TypeError, "token at position 101 is '2'"),
        ([1, 2**64], ValueError, "token at position 101 is 18446744073709551616"),
        ([-1, 2**63], ValueError, "token at position 100 is -1"),
        ([[1], [2]], ValueError, r"tokens at position 100: wanted one dimension, got shape \(2, 1\)"),
        ([[1], [2, 3]], ValueError, "wanted one dimension, got nested rows"),
        (7, ValueError, r"wanted one dimension, got shape \(\)"),
        (np.zeros(3), TypeError, r"token at position 100 is .*0\.0"),
        (np.zeros(3, bool), TypeError, "False"),
        (np.array([1, 2], object), TypeError, "got dtype object, wanted an integer dtype"),
        (np.array(["a"]), TypeError, "token at position 100 is .*'a'"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"got shape \(2, 2\)"),
        (torch.zeros(2), TypeError, "position 100"),
        (pa.array([1, None]), ValueError, "position 100: element 1 is null"),
        (pa.array([[1], None]), ValueError, "element 1 is null"),
        (pa.array([1.5]), TypeError, "got Arrow double, wanted integers"),
        (pa.array(["a"]), TypeError, "got Arrow string, wanted integers"),
        (pa.table({"a": [1]}), TypeError, "got Table, wanted an Arrow array"),
    ],
)
def test_what_is_no_tokens_is_refused_with_its_position(tokens, error, message) -> None:
    """Floats, bools, nulls, text and wrong shapes are refused, and the position is named."""
    with pytest.raises(error, match=message):
        list(token_arrays(tokens, 100, flatten=True))


def test_lists_in_arrow_are_not_one_document() -> None:
    """Where lists are not to be joined, an Arrow array of lists is refused."""
    with pytest.raises(TypeError, match="got Arrow list<.*>, wanted integers"):
        list(token_arrays(pa.array([[1], [2]]), 0, flatten=False))


def test_positions_go_on_over_chunks() -> None:
    """A null in a later chunk is named by its dataset position."""
    with pytest.raises(ValueError, match="position 103: element 1 is null"):
        list(token_arrays(pa.chunked_array([[1, 2, 3], [4, None]]), 100, flatten=True))
