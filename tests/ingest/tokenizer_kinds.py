"""Small tokenizers of each kind, and text that is hard on them."""

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mistral_common
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.ingest.json_tokenizer import JsonTokenizer, train_byte_bpe
from shardstream.ingest.sentencepiece_tokenizer import SentencePieceTokenizer
from shardstream.ingest.tiktoken_tokenizer import tokenizer_of_encoding
from shardstream.ingest.tokenizer import END_OF_TEXT, Tokenizer
from shardstream.ingest.tokenizers import load_tokenizer

LINES = ["the cat sat on the mat, wasn't it?", "The dog ate 1234 of the cat's hats; then it slept.", "было слово"] * 9
TEKKEN_FILES = sorted((Path(mistral_common.__file__).parent / "data").glob("tekken_*.json"))

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_WORDS = [
    *("the", "cat", "Cat's", "DON'T", "слово", "語", "naïve", "e\u0301", "ΑΣ", "1234", "3.14", "x", "\U0001f642"),
    *(" ", " ", " ", "\n", "\n", "  ", "\t", "\r\n", "\u00a0", "▁", "Ġ", ".", ", ", "(", "_", "-"),
    *("</s>", "<s>", "<unk>", "<pad>", "[UNK]", "[SEP]", END_OF_TEXT, "<SPECIAL_20>", "<0x0A>"),
]
TEXT = st.lists(st.sampled_from(_WORDS) | st.text(max_size=4), max_size=30).map("".join)


@cache
def byte_bpe() -> JsonTokenizer:
    return train_byte_bpe(LINES, vocab_size=330)


def edited_json(content: str | bytes, **fields: Any) -> str:
    """A tokenizer.json with other fields; those of the model under ``model``."""
    document = json.loads(content)
    model = document["model"] | fields.pop("model", {})
    return json.dumps(document | fields | {"model": model})


def added_token(content: str, number: int, *, special: bool = False) -> dict[str, Any]:
    """An added token as a tokenizer.json has it."""
    flags = dict.fromkeys(["lstrip", "rstrip", "normalized", "single_word"], False)
    return {"id": number, "content": content, "special": special} | flags


def write_two_files(folder: Path, prefix: str = "") -> Path:
    """The byte-level BPE as GPT-2's two files; the path of its vocabulary."""
    model = json.loads(byte_bpe()._content)["model"]
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / f"{prefix}merges.txt").write_text(f"#version: 0.2\n{merges}")
    vocab = folder / f"{prefix}vocab.json"
    vocab.write_text(json.dumps(model["vocab"]))
    return vocab


@cache
def digits_apart() -> JsonTokenizer:
    """As StarCoder's: a byte-level BPE whose words are cut in a way that no other library is asked for."""
    byte_level = json.loads(byte_bpe()._content)["pre_tokenizer"]
    steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    return JsonTokenizer(
        edited_json(byte_bpe()._content, pre_tokenizer={"type": "Sequence", "pretokenizers": steps}).encode()
    )


def byte_ranks() -> dict[bytes, int]:
    """The tokens of the byte-level BPE, as tiktoken wants them."""
    pieces = json.loads(byte_bpe()._content)["model"]["vocab"]
    byte_of = {letter: token for token, letter in _letters_of_bytes().items()}
    ranks = sorted((number, bytes(byte_of[letter] for letter in piece)) for piece, number in pieces.items() if number)
    single = {bytes([byte]): byte for byte in range(256)}
    return single | {token: 256 + number for number, (_, token) in enumerate(t for t in ranks if len(t[1]) > 1)}


def _letters_of_bytes() -> dict[int, str]:
    """As GPT-2 writes them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@cache
def tiktoken_like(pattern: str) -> Tokenizer:
    ranks = byte_ranks()
    special = {END_OF_TEXT: len(ranks) + 1, "<|fim|>": len(ranks) + 5}
    encoding = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    return tokenizer_of_encoding(encoding, name="small")


def json_tokenizer(trained: tokenizers.Tokenizer, **named_tokens: str | None) -> JsonTokenizer:
    return JsonTokenizer(trained.to_str().encode(), named_tokens=named_tokens)


@cache
def metaspace(prepend: str = "always", *, splits: bool = True) -> JsonTokenizer:
    """A BPE of words that begin with their space; as Llama 2's where it does not split them before."""
    trained: Any = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"]))
    trained.decoder = decoders.Metaspace(prepend_scheme=prepend)
    if not splits:
        trained.pre_tokenizer = None
        trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return json_tokenizer(trained)


@cache
def wordpiece() -> JsonTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trained: Any = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    trained.decoder = decoders.WordPiece()
    return json_tokenizer(trained, eos="[SEP]")


@cache
def replacing() -> JsonTokenizer:
    """Its normalizer makes one word of two."""
    normalizer = {"type": "Replace", "pattern": {"String": "q q"}, "content": "z"}
    return JsonTokenizer(edited_json(byte_bpe()._content, normalizer=normalizer).encode(), named_tokens={"pad": None})


@cache
def secretly_replacing() -> SentencePieceTokenizer:
    """The same, by a rule that is compiled into its model."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("71 20 71\t7A\n")
        rules.flush()
        return sentencepiece_like("bpe", normalization_rule_tsv=rules.name)


@cache
def unigram(*, splits: bool = True) -> JsonTokenizer:
    """As T5's: ``</s>`` is a piece of its vocabulary like any other."""
    trained: Any = tokenizers.Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace() if splits else None
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=12
    )
    trained.train_from_iterator(LINES, trainer)
    trained.decoder = decoders.Metaspace() if splits else None
    return json_tokenizer(trained)


@cache
def word_spanning_bpe() -> JsonTokenizer:
    """Without a pre-tokenizer merges go over white space."""
    trained: Any = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=200, special_tokens=[END_OF_TEXT, "<unk>"]))
    return json_tokenizer(trained)


@cache
def sentencepiece_model(model_type: str = "bpe", **options: Any) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=written,
        model_type=model_type,
        minloglevel=2,
        **{"vocab_size": 400 if options.get("byte_fallback") else 80, "hard_vocab_limit": False, **options},
    )
    return written.getvalue()


@cache
def sentencepiece_like(model_type: str = "bpe", **options: Any) -> SentencePieceTokenizer:
    content = sentencepiece_model(model_type, **options)
    return SentencePieceTokenizer(content, name="small", source="small.model")


@cache
def tekken() -> Tokenizer:
    return load_tokenizer(str(TEKKEN_FILES[-1]))


def _identity_model() -> SentencePieceTokenizer:
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    return sentencepiece_like("bpe", **options)


CUTTABLE: dict[str, Callable[[], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "byte-level BPE": byte_bpe,
    "byte-level BPE, digits apart": digits_apart,
    "GPT-2's pattern": lambda: tiktoken_like(GPT2),
    "Llama 3's pattern": lambda: tiktoken_like(LLAMA3),
    "o200k's pattern": lambda: tiktoken_like(O200K),
    "tekken": tekken,
    "metaspace": metaspace,
    "metaspace, first": lambda: metaspace("first"),
    "metaspace, never": lambda: metaspace("never"),
    "metaspace, not split": lambda: metaspace(splits=False),
    "WordPiece": wordpiece,
    "Unigram by word": unigram,
    "SentencePiece": sentencepiece_like,
    "SentencePiece, no prefix": lambda: sentencepiece_like(
        "bpe", add_dummy_prefix=False, remove_extra_whitespaces=False
    ),
    "SentencePiece, as it is": _identity_model,
}
WHOLE: dict[str, Callable[[], Tokenizer]] = {
    "BPE over words": word_spanning_bpe,
    "BPE that replaces words": replacing,
    "Unigram of texts": lambda: unigram(splits=False),
    "SentencePiece Unigram": lambda: sentencepiece_like("unigram"),
    # A piece with its space loses it, one without has none: neither has the ids of the whole.
    "SentencePiece, no first space": lambda: sentencepiece_like("bpe", add_dummy_prefix=False),
    "SentencePiece over words": lambda: sentencepiece_like("bpe", split_by_whitespace=False, vocab_size=200),
}
KINDS = CUTTABLE | WHOLE
LOSSLESS = [
    *("bytes", "byte-level BPE", "byte-level BPE, digits apart"),
    *("GPT-2's pattern", "Llama 3's pattern", "o200k's pattern", "tekken"),
]
