"""What the inputs give, document by document: memory stays bounded whatever the size of a file."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias


class DocumentPiece(NamedTuple):
    """A document, or the next piece of one that is too long for memory."""

    text: str
    is_last: bool
    """Whether the document ends with this piece. Only that of a huge text file has more than one."""
    source: str
    """Path or URL of the file."""
    key: str
    """Where in it, whatever the cut into parts: ``byte 1234`` of JSON lines as they are decompressed, ``row 17`` of
    Parquet, ``batch 3 row 17`` of Arrow, all from 0; nothing of a text file, which is one document."""
    num_bytes: int
    """Stored bytes that were passed since the piece before; for progress."""


class BadRecord(NamedTuple):
    """What ought to be a document and is none."""

    source: str
    key: str
    """As of a document; nothing where all of the file, or all that follows in it, is meant."""
    reason: str
    """What was found, what was wanted."""


OnBadRecord: TypeAlias = Callable[[BadRecord], None]
"""Raises, which ends the reading, or returns, and the reading goes on after the record."""
