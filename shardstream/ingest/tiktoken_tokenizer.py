"""Tokenizers that OpenAI's tiktoken runs: its own encodings by name, and Mistral's tekken files."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.ingest.tokenizer import END_OF_TEXT, as_value_errors, joins_words

try:
    import tiktoken
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("this tokenizer needs tiktoken: pip install 'shardstream[tokenizers]'") from error

_NUM_BYTES: Final = 256
_MAX_TEKKEN_SPECIAL_TOKENS: Final = 2**16  # the files that there are have 1000
# Letters, digits, marks, signs, white space of many kinds: a pattern that leaves characters out is seen before any text.
_EVERY_CLASS: Final = "aB ßЖ語ªǅ\u0301 it's 1²Ⅷ\u0663 -_.,(/$+^€\U0001f642\u200d\x00\ue000\u2028\t\u00a0x\n\n\r\n  y \n"
# Tekken files of before version 8 do not list their special tokens: they are these, in this order.
_TEKKEN_SPECIAL_TOKENS: Final = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


class TiktokenTokenizer:
    """An encoding of tiktoken. See :class:`shardstream.ingest.tokenizer.Tokenizer`.

    Args:
        encoding: The encoding.
        name: What a person calls it.
        sha256: Checksum of all that decides ids.
        bos, eos, pad: The special tokens that begin, end and pad texts; None, or one that it lacks, for none.
    """

    def __init__(
        self,
        encoding: tiktoken.Encoding,
        *,
        name: str,
        sha256: str,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
    ) -> None:
        self._encoding = encoding
        self._special: Final = {token: encoding.encode_single_token(token) for token in encoding.special_tokens_set}
        self.name: Final = name
        self.sha256: Final = sha256
        self.vocab_size: Final = encoding.max_token_value + 1
        self.bos_id: Final = self._special.get(bos or "")
        self.eos_id: Final = self._special.get(eos or "")
        self.pad_id: Final = self._special.get(pad or "")
        ranks = encoding._mergeable_ranks  # noqa: SLF001 - its README extends encodings by it
        self._num_bytes: Final = np.zeros(1 + max(ranks.values()), np.int64)
        self._num_bytes[list(ranks.values())] = [len(token) for token in ranks]

    def id_of(self, token: str) -> int | None:
        """The id of one token."""
        try:
            return self._encoding.encode_single_token(token)
        except KeyError:
            return None

    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens, by id."""
        return tuple(sorted(self._special, key=self._special.__getitem__))

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, by the thread that asks.

        Raises:
            UnicodeEncodeError: A text holds half a character, a lone surrogate.
            ValueError: A text holds a run of white space that is too long for the library, about a million characters;
                or the encoding's pattern leaves characters of it out.
        """
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> NDArray[np.uint32]:
        with as_value_errors():
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        # What the pattern does not match the library leaves out; what it matches comes back byte for byte.
        num_bytes, num_encoded = len(text.encode("utf-8")), int(self._num_bytes[ids].sum())
        if num_encoded != num_bytes:
            raise ValueError(
                f"the pattern of tokenizer {self.name} leaves out {num_bytes - num_encoded} of the {num_bytes} bytes of this text"
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids; bytes that are no UTF-8 are replaced by U+FFFD."""
        spelt = []
        for token in np.asarray(ids).tolist():
            with suppress(KeyError, OverflowError):  # a gap in the vocabulary, and what is no id at all
                spelt.append(self._encoding.decode_single_token_bytes(token))
        return b"".join(spelt).decode("utf-8", errors="replace")

    def joins_words(self) -> bool:
        """By its vocabulary."""
        return joins_words([token.decode("utf-8", errors="replace") for token in self._encoding.token_byte_values()])


def load_encoding(name: str) -> TiktokenTokenizer:
    """An encoding that tiktoken knows by name, such as ``cl100k_base``, or that a plugin gave it.

    Raises:
        OSError: Its vocabulary is neither in tiktoken's cache nor can it be downloaded.
        ValueError: There is none of that name.
    """
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:
        raise OSError(
            f"tiktoken:{name} cannot be downloaded: {error}; without a network, set TIKTOKEN_CACHE_DIR to a folder where "
            "it was downloaded before, or name a local file: the tokenizer.json of the same vocabulary"
        ) from error
    except ValueError as error:
        known = ", ".join(tiktoken.list_encoding_names())
        raise ValueError(f"tiktoken:{name}: tiktoken knows no such encoding; it knows {known}") from error
    return tokenizer_of_encoding(encoding, name=f"tiktoken:{name}")


def tokenizer_of_encoding(encoding: tiktoken.Encoding, *, name: str) -> TiktokenTokenizer:
    """An encoding as a tokenizer, with ``<|endoftext|>`` as its end of text, if it has one."""
    return TiktokenTokenizer(encoding, name=name, sha256=_sha256_of(encoding), eos=END_OF_TEXT)


def tekken_of(content: bytes, *, name: str, source: str) -> TiktokenTokenizer:
    """Mistral's tekken file as a tokenizer.

    Its special tokens come first: the id of a token is its rank after them. Of the file's vocabulary only so many tokens
    are used as its configuration says.

    Args:
        content: The JSON, UTF-8.
        name: What a person calls it.
        source: What to call it in messages: a path or URL.

    Raises:
        ValueError: ``content`` is no tekken file.
    """
    try:
        with as_value_errors():
            tokenizer = TiktokenTokenizer(
                _tekken_encoding(json.loads(content), name=name),
                name=name,
                sha256=hashlib.sha256(content).hexdigest(),
                bos="<s>",
                eos="</s>",
                pad="<pad>",
            )
            tokenizer.encode_batch([_EVERY_CLASS])
    except ValueError as error:
        raise ValueError(f"{source}: not a tekken file: {error}") from error
    return tokenizer


def _tekken_encoding(document: Mapping[str, Any], *, name: str) -> tiktoken.Encoding:
    config = document["config"]
    num_special = int(config["default_num_special_tokens"])
    if not 0 <= num_special <= _MAX_TEKKEN_SPECIAL_TOKENS:
        raise ValueError(f"default_num_special_tokens is {num_special}; wanted 0 to {_MAX_TEKKEN_SPECIAL_TOKENS}")
    num_tokens = int(config["default_vocab_size"]) - num_special
    return tiktoken.Encoding(
        name,
        pat_str=config["pattern"],
        mergeable_ranks=_tekken_ranks(document["vocab"][: max(0, num_tokens)], num_special),
        special_tokens=_tekken_special_tokens(document, num_special),
    )


def _tekken_special_tokens(document: Mapping[str, Any], num_special: int) -> dict[str, int]:
    listed = document.get("special_tokens")
    named = (
        list(zip(_TEKKEN_SPECIAL_TOKENS, range(num_special), strict=False))
        if listed is None
        else [(token["token_str"], int(token["rank"])) for token in listed]
    )
    # The library's own names of places that are kept for later.
    spare = set(range(num_special)).difference(rank for _, rank in named)
    tokens = [*named, *((f"<SPECIAL_{rank}>", rank) for rank in spare)]
    if len(dict(tokens)) != num_special or {rank for _, rank in tokens} != set(range(num_special)):
        raise ValueError(f"its special tokens are not {num_special}, each with a rank of its own below that")
    return dict(tokens)


def _tekken_ranks(tokens: Sequence[Mapping[str, Any]], num_special: int) -> dict[bytes, int]:
    ranks = {base64.b64decode(token["token_bytes"]): num_special + int(token["rank"]) for token in tokens}
    if sorted(ranks.values()) != list(range(num_special, num_special + len(tokens))):
        raise ValueError("the ranks of its vocabulary are not 0, 1, 2 ..., each once")
    if missing := [byte for byte in range(_NUM_BYTES) if bytes([byte]) not in ranks]:
        raise ValueError(f"{len(missing)} of the {_NUM_BYTES} bytes have no id")
    return ranks


def _sha256_of(encoding: tiktoken.Encoding) -> str:
    """Checksum of an encoding's ranks, as tiktoken's own files have them, then of its special tokens and its pattern."""
    digest = hashlib.sha256()
    ranks = encoding._mergeable_ranks  # noqa: SLF001 - its README extends encodings by these three
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        digest.update(base64.b64encode(token) + b" %d\n" % rank)
    special = sorted(encoding._special_tokens.items())  # noqa: SLF001 - same
    digest.update(json.dumps([special, encoding._pat_str]).encode("ascii"))  # noqa: SLF001 - same
    return digest.hexdigest()
