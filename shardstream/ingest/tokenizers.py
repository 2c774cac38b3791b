"""A tokenizer by file -> ids, identity, vocabulary."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import tokenizers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("a tokenizer needs tokenizers: pip install 'shardstream[tokenizers]'") from error

END_OF_TEXT: Final = "<|endoftext|>"
_MIN_BPE_VOCAB_SIZE: Final = 257  # each byte, and the special token


class Tokenizer:
    """Text to ids and back, as a ``tokenizer.json`` says (the file format of Hugging Face's tokenizers).

    Text is only text: where it spells a special token, that is encoded letter by letter, as any other words are, and
    no special id is added at its ends. So a special id can come from nobody but the caller.

    Args:
        content: The JSON, UTF-8.
        source: What to call it in messages: a path or URL.

    Raises:
        ValueError: ``content`` is no tokenizer.
    """

    def __init__(self, content: bytes, *, source: str = "tokenizer.json") -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"{source}: not a tokenizer.json: {error}") from error
        self._tokenizer.encode_special_tokens = True
        self._content = content
        self.sha256: Final = hashlib.sha256(content).hexdigest()
        """Checksum of the content: what a dataset records as its tokenizer's identity."""
        self.vocab_size: Final = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        """One more than the highest id: what a dataset of these ids needs. Ids below it may be unused."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a tokenizer.json.

        Raises:
            OSError: It cannot be read.
            ValueError: It is no tokenizer.
        """
        return cls(Path(path).read_bytes(), source=os.fspath(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the very bytes that :attr:`sha256` identifies."""
        Path(path).write_bytes(self._content)

    def id_of(self, token: str) -> int | None:
        """The id of one token, such as ``<|endoftext|>``; None where the vocabulary has no such token."""
        return self._tokenizer.token_to_id(token)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, in order; all processors work on a batch."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids, special tokens spelt out. An id that the vocabulary lacks, and half a character, is lost."""
        return self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


def train_byte_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE, which has ids for any text, and ``<|endoftext|>`` as id 0.

    The same texts in the same order give the same tokenizer.

    Args:
        texts: What to learn from.
        vocab_size: Ids wanted, at least 257; text with little variety may end in fewer.

    Raises:
        ValueError: ``vocab_size`` is too small.
    """
    if vocab_size < _MIN_BPE_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; wanted at least {_MIN_BPE_VOCAB_SIZE}: the 256 bytes and {END_OF_TEXT}"
        )
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level: Any = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.pre_tokenizer = byte_level
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return Tokenizer(trained.to_str().encode("utf-8"))
