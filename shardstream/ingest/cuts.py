"""Cut a text that is longer than memory so that its pieces have the ids of the whole."""

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.ingest.tokenizer import Tokenizer

_PLACE: Final = re.compile(r"(?<=[^\W\d_])[ \n](?=[^\W\d_])")
_SCAN: Final = 4096  # characters that are looked through at once, from the end of a text on
# Beside what is known of the tokenizer, each cut is tried on so many characters on both sides of it.
_SURROUNDINGS: Final = 64
# Where that fails so often, the tokenizer is one that nobody thought of.
_MAX_TRIES: Final = 64
# A letter, words, other scripts, letters of one case; what fails on one of them is no place to cut.
_PAIRS: Final = (("a", "b"), ("the words", "Another one"), ("было", "слово"), ("ABC", "i"), ("語", "字"))


class Cut(NamedTuple):
    """A place in a text, in characters: what lies between the two has no ids of its own."""

    stop: int
    """Where the left piece ends, exclusive."""
    start: int
    """Where the right piece starts."""


class Cutter:
    """Where a text may be cut in two whose ids, one after the other, are those of the whole.

    Cuts are made between two words, at a single space or at the end of a line. A tokenizer that has no token with a
    letter and white space after it makes ids of both sides by themselves: the patterns of GPT-2, cl100k, o200k, Llama 3
    and tekken tell a word from what follows it, and SentencePiece's words begin with their space. The latter puts a
    space before every text, so that the right piece has to come without its own; whether it has to is found by trying.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_anywhere: Final = isinstance(tokenizer, ByteTokenizer)

    def last_cut(self, text: str) -> Cut | None:
        """The last place where ``text``, whatever may follow it, can be cut; None if there is none."""
        if self._is_anywhere:
            return Cut(len(text), len(text))
        if not self._num_dropped:
            return None
        for stop in islice(_places(text), _MAX_TRIES):
            num_dropped = self._num_dropped.get(text[stop])
            left, right = text[max(0, stop - _SURROUNDINGS) : stop], text[stop + 1 : stop + 1 + _SURROUNDINGS]
            if num_dropped is not None and self._is_exact(left, text[stop], right, num_dropped):
                return Cut(stop, stop + num_dropped)
        return None

    @cached_property
    def _num_dropped(self) -> dict[str, int]:
        """By white space: how many of its characters the right piece comes without. Found when the first text is long."""
        if self._tokenizer.joins_words():
            return {}
        return {
            space: num_dropped
            for space in (" ", "\n")
            for num_dropped in (1, 0)  # the latter, where both will do
            if all(self._is_exact(left, space, right, num_dropped) for left, right in _PAIRS)
        }

    def _is_exact(self, left: str, space: str, right: str, num_dropped: int) -> bool:
        whole, *pieces = self._tokenizer.encode_batch([left + space + right, left, space[num_dropped:] + right])
        return np.array_equal(whole, np.concatenate(pieces))


def _places(text: str) -> Iterator[int]:
    """Positions of single white space between letters, from the end of a text to its start."""
    for stop in range(len(text), 0, -_SCAN):
        start = max(0, stop - _SCAN)
        first = max(0, start - 1)  # a letter before, and one after, are seen
        found = [first + match.start() for match in _PLACE.finditer(text[first : stop + 1])]
        yield from reversed([place for place in found if start <= place < stop])
