"""Whatever a user calls tokens -> pieces of 1-D NumPy integers, or an error that names the position."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstream.format.manifest import MAX_VOCAB_SIZE


def token_arrays(tokens: object, position: int, *, flatten: bool) -> Iterator[NDArray[np.integer[Any]]]:
    """The tokens as 1-D integer arrays that follow one another; nothing is copied where NumPy can look in place.

    Args:
        tokens: List, NumPy array, torch tensor, Arrow array or chunked array; with ``flatten`` also Arrow arrays of
            lists. Ids are not checked against a vocabulary here.
        position: Dataset position of the first token, for messages.
        flatten: Whether lists of ids in an Arrow array are joined.

    Raises:
        TypeError: Not integers.
        ValueError: Not 1-D, or with nulls.
    """
    if type(tokens).__module__.partition(".")[0] == "pyarrow":
        yield from _arrow_arrays(tokens, position, flatten=flatten)
    else:
        yield _numpy_array(tokens, position)


def _numpy_array(tokens: object, position: int) -> NDArray[np.integer[Any]]:
    try:
        array = np.asarray(tokens)
    except ValueError as error:  # NumPy's word for rows of different lengths
        raise ValueError(f"tokens at position {position}: wanted one dimension, got nested rows") from error
    if array.ndim != 1:
        raise ValueError(f"tokens at position {position}: wanted one dimension, got shape {array.shape}")
    if array.dtype.kind in "iu":
        return array
    if not len(array):
        return np.empty(0, dtype=np.uint16)
    raise _not_integers(array, tokens, position)


def _not_integers(array: NDArray[Any], tokens: object, position: int) -> Exception:
    """Name the first culprit; of a list, NumPy's common dtype tells only that there is one."""
    sequence = tokens if isinstance(tokens, list | tuple) else array if array.dtype == object else array[:1]
    for index, token in enumerate(sequence):
        where = f"token at position {position + index}"
        if isinstance(token, bool | np.bool_) or not isinstance(token, int | np.integer):
            return TypeError(f"{where} is {token!r} ({type(token).__name__}); ids must be integers, none is rounded")
        if not 0 <= token < MAX_VOCAB_SIZE:
            return ValueError(f"{where} is {token}; wanted 0 or more, and below the vocabulary size")
    return TypeError(f"tokens at position {position}: got dtype {array.dtype}, wanted an integer dtype")


def _arrow_arrays(tokens: Any, position: int, *, flatten: bool) -> Iterator[NDArray[np.integer[Any]]]:
    import pyarrow as pa  # noqa: PLC0415 - 0.1 s and 100 MB that only its users pay

    for chunk in tokens.chunks if isinstance(tokens, pa.ChunkedArray) else [tokens]:
        array = chunk
        if not isinstance(array, pa.Array):
            raise TypeError(f"tokens at position {position}: got {type(tokens).__name__}, wanted an Arrow array of ids")
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        while flatten and array.null_count == 0 and _is_list(array.type):
            array = array.flatten()
        if array.null_count:
            index = array.is_null().index(pa.scalar(value=True)).as_py()
            raise ValueError(f"tokens at position {position}: element {index} is null; every token needs an id")
        if not pa.types.is_integer(array.type) and len(array):
            raise TypeError(f"tokens at position {position}: got Arrow {array.type}, wanted integers")
        if pa.types.is_integer(array.type):
            position += len(array)
            yield array.to_numpy(zero_copy_only=False)


def _is_list(arrow_type: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(arrow_type) for is_kind in kinds)
