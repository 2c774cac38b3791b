"""Tokenizers of SentencePiece: one ``.model`` file."""

import hashlib
import re
from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.ingest.tokenizer import joins_words

try:
    import sentencepiece
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("this tokenizer needs sentencepiece: pip install 'shardstream[tokenizers]'") from error

_RANKS: Final = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")


class SentencePieceTokenizer:
    """What a ``.model`` file says. See :class:`shardstream.ingest.tokenizer.Tokenizer`.

    Special are the model's control symbols and its unknown token: SentencePiece never finds them in text. Its
    user-defined symbols are text, and found wherever a text spells them; that is what they are for.

    Most models normalize text, so what is decoded is not always what was encoded: white space is made one, and lost at
    the ends.

    Args:
        content: The file's bytes.
        name: What a person calls it.
        source: What to call it in messages: a path or URL.

    Raises:
        ValueError: ``content`` is no model.
    """

    def __init__(self, content: bytes, *, name: str, source: str) -> None:
        model = sentencepiece.SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(content)
            self._pieces: Final[list[str]] = [model.id_to_piece(token) for token in range(model.get_piece_size())]
        except (RuntimeError, UnicodeDecodeError) as error:
            hint = (
                "; it holds tiktoken's ranks, as Llama 3's does: name its tokenizer.json"
                if _RANKS.match(content)
                else ""
            )
            raise ValueError(f"{source}: not a SentencePiece model{hint}") from error
        self._model = model
        self.name: Final = name
        self.sha256: Final = hashlib.sha256(content).hexdigest()
        self.vocab_size: Final = len(self._pieces)
        self.bos_id: Final = _known(model.bos_id())
        self.eos_id: Final = _known(model.eos_id())
        self.pad_id: Final = _known(model.pad_id())
        self._special_ids: Final = [
            token for token in range(self.vocab_size) if model.is_control(token) or model.is_unknown(token)
        ]

    def id_of(self, token: str) -> int | None:
        """The id of one piece."""
        number: int = self._model.piece_to_id(token)
        return number if self._pieces[number] == token else None

    def special_tokens(self) -> tuple[str, ...]:
        """The control symbols and the unknown token, by id."""
        return tuple(self._pieces[token] for token in self._special_ids)

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, by the thread that asks."""
        # As bytes, since the library has no clear word on half a character.
        encoded = [self._model.encode(text.encode("utf-8"), out_type=int) for text in texts]
        return [np.frombuffer(array("I", ids), dtype=np.uint32) for ids in encoded]

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids."""
        special, known = set(self._special_ids), range(self.vocab_size)
        tokens = [token for token in np.asarray(ids).tolist() if token in known]
        runs = [(is_special, list(run)) for is_special, run in groupby(tokens, key=special.__contains__)]
        return "".join(
            "".join(map(self._pieces.__getitem__, run)) if is_special else self._model.decode(run)
            for is_special, run in runs
        )

    def joins_words(self) -> bool:
        """By its vocabulary; only of a BPE, since the others weigh a text as a whole, in sums that are rounded."""
        # The scores of a BPE are the places of its merges, the others' are logarithms.
        is_bpe = all(self._model.get_score(token).is_integer() for token in range(self.vocab_size))
        return not is_bpe or joins_words(self._pieces)


def _known(token: int) -> int | None:
    return None if token < 0 else token
