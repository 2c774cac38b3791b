"""What every tokenizer can do, whichever library runs it: text -> ids, identity, vocabulary."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

END_OF_TEXT: Final = "<|endoftext|>"

_LETTER_THEN_SPACE: Final = re.compile(r"(?:[^\W\d_]|\ufffd)[\s▁]")  # U+FFFD: a part of a character, maybe of a letter


class Tokenizer(Protocol):
    """Text to ids and back.

    Text is only text: where it spells a special token, that is encoded as any other letters are, and no special id is
    added at its ends. So a special id can come from nobody but the caller.
    """

    @property
    def name(self) -> str:
        """What a person calls it, such as ``gpt2``."""
        ...

    @property
    def sha256(self) -> str:
        """Checksum of all that decides ids: what a dataset records as its tokenizer's identity."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the highest id: what a dataset of these ids needs. Ids below it may be unused."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, as the tokenizer's own files say; None where they do not."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The id that fills up a batch."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of one token, such as ``<|endoftext|>``; None where the vocabulary has no such token."""
        ...

    def special_tokens(self) -> tuple[str, ...]:
        """The texts that stand for special ids, by id: a document that spells one may have been written to deceive."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, in order; one array of shape (num_tokens,) per text.

        Raises:
            UnicodeEncodeError: A text holds half a character, a lone surrogate.
            ValueError: A text is one that the library cannot take, or of which it would lose characters.
        """
        ...

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids, special tokens spelt out. An id that the vocabulary lacks, and half a character, is lost."""
        ...

    def joins_words(self) -> bool:
        """Whether a text cannot be cut between a word and the white space after it without a change of ids.

        So it is where a token may hold the end of a word and white space after it, and where the choice of tokens at one
        place of a text depends on places far away.
        """
        ...


@contextmanager
def as_value_errors() -> Iterator[None]:
    """Whatever a library in Rust raises, as a ValueError. Where it panics, that is no ``Exception`` by itself."""
    try:
        yield
    except (ValueError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def joins_words(token_texts: Sequence[str]) -> bool:
    """Whether one of these tokens holds a letter and white space after it."""
    return any(map(_LETTER_THEN_SPACE.search, token_texts))
