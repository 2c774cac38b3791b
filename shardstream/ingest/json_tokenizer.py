"""Tokenizers of Hugging Face's library: ``tokenizer.json``, vocabulary with merges, and one that is learnt here."""

import hashlib
import itertools
import json
import os
import secrets
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstream.ingest.tokenizer import END_OF_TEXT, as_value_errors, joins_words

if TYPE_CHECKING:
    from shardstream.ingest.fast_bpe import FastBpe

try:
    import tokenizers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("this tokenizer needs tokenizers: pip install 'shardstream[tokenizers]'") from error

_MIN_BPE_VOCAB_SIZE: Final = 257  # each byte, and the special token

# What the files beside a tokenizer.json call these tokens, and the names that are taken where they do not say; the first
# that the vocabulary has. GPT-2, Llama 3, Llama 2 and its kin, Gemma; BERT's [CLS] and [SEP] stand around sentences and
# are no ends of a document.
_WELL_KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "bos": ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<s>", "<bos>"),  # noqa: RUF001 - DeepSeek's
    "eos": (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>"),  # noqa: RUF001 - same
    "pad": ("<|finetune_right_pad_id|>", "<|pad|>", "<|padding|>", "<pad>", "[PAD]"),
}
# What normalizers replace in the tokenizers that there are: a space by SentencePiece's mark, or several by one.
_LOCAL_PATTERNS: Final = ({"String": " "}, {"Regex": " {2,}"})
# Characters whose UTF-8 has every byte that UTF-8 can have.
_OF_EVERY_BYTE: Final = "".join(
    chr(number)
    for numbers in (
        *(range(0x100), range(0x100, 0x1000, 0x40)),  # each byte that goes on, and each that begins two; E0
        *(range(0x1000, 0x10000, 0x1000), range(0x10000, 0x110000, 0x10000)),  # each that begins three and four
    )
    for number in numbers
)
# Classes whose words are cut as GPT-2's are. What others (Qwen2Tokenizer ...) do is not in their vocabulary and merges.
_GPT2_CLASSES: Final = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer")


class JsonTokenizer:
    """What a ``tokenizer.json`` says. See :class:`shardstream.ingest.tokenizer.Tokenizer`.

    Of the file only that counts which makes ids of text: its truncation, padding and post-processor, which would cut
    text off or put ids around it, and a dropout, which would make ids random, are left aside.

    Special are the added tokens that the file calls so, and those that begin, end and pad texts. Text never becomes one
    of them, not even where the model's vocabulary could: a Unigram model finds ``</s>`` in text, though it is told to
    leave special tokens alone. Added tokens that the file does not call special (``<think>`` in some, runs of spaces
    in others) are text, and are found in it.

    Args:
        content: The JSON, UTF-8.
        name: What a person calls it.
        source: What to call it in messages: a path or URL.
        named_tokens: The tokens that begin, end and pad texts, by ``bos``, ``eos`` and ``pad``; None for a token that
            the tokenizer is known not to have. For what is not given, well-known names are tried.
        sha256: Checksum of its files, where it is not made of one tokenizer.json.

    Raises:
        ValueError: ``content`` is no tokenizer, or one that would lose text in silence.
    """

    def __init__(
        self,
        content: bytes,
        *,
        name: str = "tokenizer.json",
        source: str = "tokenizer.json",
        named_tokens: Mapping[str, str | None] | None = None,
        sha256: str | None = None,
    ) -> None:
        self._content = content
        self.name: Final = name
        self.sha256: Final = sha256 or hashlib.sha256(content).hexdigest()
        try:
            with as_value_errors():
                document = _checked(json.loads(content))
                vocabulary = _vocabulary(document)
                named = _found(named_tokens or {}, vocabulary.__contains__)
                added = {token["content"] for token in document["added_tokens"] if token["special"]}
                self._special: Final = tuple(sorted({*named.values(), *added}, key=vocabulary.__getitem__))
                # As secret as to be in no text.
                self._hidden: Final = {token: f"{secrets.token_hex(16)}-{vocabulary[token]}" for token in self._special}
                self._tokenizer: Final = _for_text(document, self._hidden)
        except ValueError as error:
            raise ValueError(f"{source}: not a tokenizer.json: {error}") from error
        if lost := _lost_letters(self._tokenizer):
            raise ValueError(
                f"{source}: text would be lost: the BPE has no token for {len(lost)} letters that it is given, such as "
                f"{lost[0]!r}, and neither an unk_token nor byte_fallback to take their place"
            )
        self.vocab_size: Final = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_id: Final = self.id_of(named["bos"]) if "bos" in named else None
        self.eos_id: Final = self.id_of(named["eos"]) if "eos" in named else None
        self.pad_id: Final = self.id_of(named["pad"]) if "pad" in named else None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer.json, byte for byte as it was read or learnt."""
        Path(path).write_bytes(self._content)

    def id_of(self, token: str) -> int | None:
        """The id of one token."""
        return self._tokenizer.token_to_id(self._hidden.get(token, token))

    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens, by id."""
        return self._special

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text.

        A byte-level BPE is faster by another library, on the thread that asks: see :mod:`shardstream.ingest.fast_bpe`.
        On what is left all processors work, unless the environment tells otherwise.
        """
        fast = self._fast_bpe
        found = [fast.encode(text) if fast else None for text in texts]
        others = iter(self._encode_all([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        return [next(others) if ids is None else ids for ids in found]

    def _encode_all(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        try:
            with as_value_errors():
                encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except ValueError:
            "".join(texts).encode("utf-8")  # of half a character the library says no more than that it is no text
            raise
        # Through an array the ids are copied at memory speed; NumPy would look at each of a list's integers.
        return [np.frombuffer(array("I", encoding.ids), dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids."""
        known = range(self.vocab_size)
        tokens = [token for token in np.asarray(ids).tolist() if token in known]
        return self._as_it_stands.decode(tokens, skip_special_tokens=False)

    def joins_words(self) -> bool:
        """By its vocabulary and normalizer; a Unigram model weighs a text as a whole, unless it gets it word by word."""
        document = json.loads(self._tokenizer.to_str())  # as the library understood it: older files name no types
        if not _is_local(document["normalizer"]):
            return True
        pre_tokenizer: Any = self._tokenizer.pre_tokenizer
        decoder: Any = self._tokenizer.decoder
        is_unigram = document["model"]["type"] == "Unigram"
        if is_unigram and (pre_tokenizer is None or len(pre_tokenizer.pre_tokenize_str("a b")) == 1):
            return True
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        return joins_words([decoder.decode([piece]) if decoder else piece for piece in pieces])

    @cached_property
    def _fast_bpe(self) -> "FastBpe | None":
        """Made when the first text comes: it takes a moment."""
        try:
            from shardstream.ingest.fast_bpe import fast_bpe_of  # noqa: PLC0415 - its library may be missing
        except ModuleNotFoundError:  # slower, and the same ids
            return None
        return fast_bpe_of(self._tokenizer)

    @cached_property
    def _as_it_stands(self) -> tokenizers.Tokenizer:
        """The tokenizer with its special tokens by their names: who only encodes never needs it."""
        return _for_text(_checked(json.loads(self._content)), {})


def load_vocab_and_merges(vocab: Path, merges: Path, *, name: str) -> JsonTokenizer:
    """The byte-level BPE of a vocabulary and its merges, which cuts words as GPT-2 does.

    Raises:
        OSError: One of the files cannot be read.
        ValueError: They are no such vocabulary and merges, or lack some byte, or a tokenizer_config.json beside them names
            another kind.
    """
    if not merges.exists():
        raise FileNotFoundError(f"{vocab}: a vocabulary needs its merges, and {merges} does not exist")
    vocab_bytes, merges_bytes = vocab.read_bytes(), merges.read_bytes()
    class_name = _beside(vocab, "tokenizer_config.json").get("tokenizer_class")
    if class_name is not None and str(class_name).removesuffix("Fast") not in _GPT2_CLASSES:
        raise ValueError(
            f"{vocab}: tokenizer_config.json names a {class_name}, which may cut words otherwise than GPT-2 does; name "
            "its tokenizer.json"
        )
    named_tokens = named_tokens_beside(vocab)
    try:
        with as_value_errors():
            bpe = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(os.fspath(vocab), os.fspath(merges)))
    except ValueError as error:
        raise ValueError(f"{vocab}: not a vocabulary with merges in {merges}: {error}") from error
    _make_byte_level(bpe)
    found = _found(named_tokens, lambda token: bpe.token_to_id(token) is not None)
    bpe.add_special_tokens([*found.values()])
    return JsonTokenizer(
        bpe.to_str().encode("utf-8"),
        name=name,
        source=os.fspath(vocab),
        named_tokens=named_tokens,
        sha256=hashlib.sha256(vocab_bytes + merges_bytes).hexdigest(),
    )


def train_byte_bpe(texts: Iterable[str], *, vocab_size: int) -> JsonTokenizer:
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
    _make_byte_level(trained)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return JsonTokenizer(trained.to_str().encode("utf-8"))


def named_tokens_beside(path: Path) -> dict[str, str | None]:
    """The tokens that begin, end and pad texts, as the files beside a tokenizer's file say.

    Raises:
        ValueError: One of those files is damaged.
    """
    named: dict[str, str | None] = {}
    for file_name in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one prevails
        says = _beside(path, file_name)
        for role, field in ((role, f"{role}_token") for role in _WELL_KNOWN):
            if field in says:
                token = says[field]
                token = token.get("content", token) if isinstance(token, dict) else token
                if not isinstance(token, str | None):
                    raise ValueError(
                        f"{path.with_name(file_name)}: {field} is {says[field]!r}; wanted a token, an object with its "
                        "content, or null"
                    )
                named[role] = token
    return named


def _beside(path: Path, file_name: str) -> dict[str, Any]:
    beside = path.with_name(file_name)
    try:
        document = json.loads(beside.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{beside}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{beside}: not a JSON object")  # noqa: TRY004 - a file's content, no argument
    return document


def _make_byte_level(bpe: tokenizers.Tokenizer) -> None:
    byte_level: Any = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = byte_level
    bpe.decoder = tokenizers.decoders.ByteLevel()


def _checked(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ValueError("no object with a model in it")  # noqa: TRY004 - a file's content, no argument
    return {"added_tokens": [], **document}


def _vocabulary(document: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token, added ones included. A Unigram model lists them with their scores, in the order of ids."""
    vocab = document["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {token: number for number, (token, _) in enumerate(vocab)}
    return {**ids, **{token["content"]: token["id"] for token in document["added_tokens"]}}


def _found(named_tokens: Mapping[str, str | None], is_known: Callable[[str], bool]) -> dict[str, str]:
    """Those tokens, or else well-known ones, that the vocabulary has."""
    candidates = {role: (named_tokens[role],) if role in named_tokens else _WELL_KNOWN[role] for role in _WELL_KNOWN}
    found = {
        role: next((name for name in names if name is not None and is_known(name)), None)
        for role, names in candidates.items()
    }
    return {role: name for role, name in found.items() if name is not None}


def _is_local(normalizer: Mapping[str, Any] | None) -> bool:
    """Whether a normalizer looks at no white space together with what is beside it."""
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_is_local, normalizer["normalizers"]))
    return normalizer["type"] != "Replace" or normalizer["pattern"] in _LOCAL_PATTERNS


def _lost_letters(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Letters that a BPE is given of some text, and leaves out in silence; a byte's letter, where it is byte-level."""
    model: Any = tokenizer.model
    if not isinstance(model, tokenizers.models.BPE) or model.unk_token is not None:
        return []
    found_before = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    text = "".join(character for character in _OF_EVERY_BYTE if character not in found_before)
    normalizer: Any = tokenizer.normalizer
    pre_tokenizer: Any = tokenizer.pre_tokenizer
    text = normalizer.normalize_str(text) if normalizer else text
    pieces = [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer else [text]
    return [letter for letter in sorted({*"".join(pieces)}) if not model.tokenize(letter)]


def _for_text(document: Mapping[str, Any], hidden: Mapping[str, str]) -> tokenizers.Tokenizer:
    """The tokenizer that makes the same ids of text, the whole text and nothing but the text.

    Args:
        document: The tokenizer.json.
        hidden: Special tokens, and names for them that no text spells: under these they keep their ids.
    """
    model = dict(document["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {hidden.get(token, token): number for token, number in vocab.items()}
    else:
        model["vocab"] = [[hidden.get(token, token), score] for token, score in vocab]
    if "merges" in model:
        # The older form is one string; the library leaves the first line of a merges.txt out of it.
        pairs = [
            merge.split(" ") if isinstance(merge, str) else merge
            for merge in model["merges"]
            if not (isinstance(merge, str) and merge.startswith("#version"))
        ]
        # Nor is a special token made by merging; in most files none would be, and to see that is quick.
        if not hidden.keys().isdisjoint(itertools.chain(*pairs, map("".join, pairs))):
            pairs = [pair for pair in pairs if hidden.keys().isdisjoint((*pair, "".join(pair)))]
        model["merges"] = pairs
    if "unk_token" in model:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if "dropout" in model:
        model["dropout"] = None
    added = [
        {**token, "content": hidden[token["content"]]} if token["content"] in hidden else token
        for token in document["added_tokens"]
    ]
    for_text = {
        **document,
        "model": model,
        "added_tokens": added,
        "truncation": None,
        "padding": None,
        "post_processor": None,
    }
    return tokenizers.Tokenizer.from_str(msgspec.json.encode(for_text).decode())  # a tenth of what json takes
