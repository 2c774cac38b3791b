"""UTF-8's bytes as ids: a tokenizer that needs no file and no library."""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.ingest.tokenizer import END_OF_TEXT

_NUM_BYTES: Final = 256
# Says what decides the ids, as another tokenizer's file does.
_DEFINITION: Final = b"shardstream bytes: ids 0 to 255 are the bytes of UTF-8, 256 is <|endoftext|>\n"


class ByteTokenizer:
    """Each byte of a text's UTF-8 is an id, and 256 ends it. See :class:`shardstream.ingest.tokenizer.Tokenizer`."""

    def __init__(self) -> None:
        self.name: Final = "bytes"
        self.sha256: Final = hashlib.sha256(_DEFINITION).hexdigest()
        self.vocab_size: Final = _NUM_BYTES + 1
        self.bos_id: Final = None
        self.eos_id: Final = _NUM_BYTES
        self.pad_id: Final = None

    def id_of(self, token: str) -> int | None:
        """256 for ``<|endoftext|>``, and the byte of an ASCII character."""
        if token == END_OF_TEXT:
            return self.eos_id
        return ord(token) if len(token) == 1 and token.isascii() else None

    def special_tokens(self) -> tuple[str, ...]:
        """``<|endoftext|>``, as which 256 is spelt out."""
        return (END_OF_TEXT,)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The bytes of each text."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: ArrayLike) -> str:
        """The text of bytes; those that are no UTF-8 are replaced by U+FFFD."""
        spelt = np.asarray(ids, dtype=np.int64)
        ends = np.flatnonzero(spelt == self.eos_id)
        pieces = [piece[(piece >= 0) & (piece < _NUM_BYTES)] for piece in np.split(spelt, ends)]
        return END_OF_TEXT.join(piece.astype(np.uint8).tobytes().decode("utf-8", errors="replace") for piece in pieces)

    def joins_words(self) -> bool:
        """No: any text may be cut anywhere."""
        return False
