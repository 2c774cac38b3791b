"""What a file of ids gives, piece by piece: memory stays bounded whatever the file's size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Piece(NamedTuple):
    """Ids that follow the ones before them."""

    ids: NDArray[np.integer[Any]]
    num_bytes: int
    """Bytes of the file that were passed to come here; for progress."""


class RowPiece(NamedTuple):
    """Rows that follow the ones before them; each is a list of ids."""

    ids: NDArray[np.integer[Any]]
    """The ids of all rows, joined."""
    bounds: NDArray[np.int64]
    """Where in ``ids`` each row starts, then their number; shape (num_rows + 1,)."""
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """One input, and how to read it from its beginning."""

    name: str
    """What a person calls it."""
    num_bytes: int | None
    """Its size as it is stored; None where nobody knows."""
    pieces: Callable[[], Iterator[Piece]]
    """Its ids, flat: those of its rows joined, if it has rows."""
    row_pieces: Callable[[], Iterator[RowPiece]] | None = None
    """Its rows; None where it has none."""
