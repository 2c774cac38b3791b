"""Tokenizers of Hugging Face's library."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from shardstream.ingest.json_tokenizer import JsonTokenizer, train_byte_bpe
from shardstream.ingest.tokenizer import END_OF_TEXT
from shardstream.ingest.tokenizers import load_tokenizer
from tests.ingest.tokenizer_kinds import (
    GPT2,
    LINES,
    TEXT,
    added_token,
    byte_bpe,
    byte_ranks,
    edited_json,
    json_tokenizer,
    unigram,
    write_two_files,
)


def test_training_is_repeatable() -> None:
    """The same texts give the same tokenizer, byte for byte; other texts another."""
    assert train_byte_bpe(iter(LINES), vocab_size=330).sha256 == byte_bpe().sha256
    assert train_byte_bpe(["other text, of other words"] * 9, vocab_size=330).sha256 != byte_bpe().sha256


def test_the_vocabulary_is_as_large_as_wanted_or_as_the_text_allows() -> None:
    """``vocab_size`` bounds the ids; little text ends in fewer, and one below 257 is refused."""
    assert train_byte_bpe(LINES, vocab_size=280).vocab_size == 280
    assert train_byte_bpe(["ab ab"], vocab_size=1000).vocab_size == 259
    with pytest.raises(
        ValueError, match=r"^vocab_size is 256; wanted at least 257: the 256 bytes and <\|endoftext\|>$"
    ):
        train_byte_bpe(LINES, vocab_size=256)


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    """The file's bytes are what the checksum identifies."""
    path = tmp_path / "tokenizer.json"
    byte_bpe().save(path)

    loaded = load_tokenizer(path)

    assert hashlib.sha256(path.read_bytes()).hexdigest() == byte_bpe().sha256 == loaded.sha256
    assert loaded.vocab_size == byte_bpe().vocab_size
    assert loaded.encode_batch(LINES)[0].tolist() == byte_bpe().encode_batch(LINES)[0].tolist()


def edited(**fields: Any) -> JsonTokenizer:
    """The small tokenizer with other fields; those of the model under ``model``."""
    return JsonTokenizer(edited_json(byte_bpe()._content, **fields).encode())


@cache
def _asking_for(fields: str) -> JsonTokenizer:
    return edited(**json.loads(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 64},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": END_OF_TEXT,
            }
        },
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
            }
        },
        {"model": {"dropout": 0.9}},
    ],
    ids=lambda fields: next(iter(fields)),
)
@given(texts=st.lists(TEXT, min_size=1, max_size=3))
def test_only_the_text_decides(fields: dict[str, Any], texts: list[str]) -> None:
    """Nothing is cut off, filled up, put around a text or left to chance, though the file asks for it."""
    # Not by the other library, which never hears of these fields.
    expected = [ids.tolist() for ids in byte_bpe()._encode_all(texts)]

    assert [ids.tolist() for ids in _asking_for(json.dumps(fields))._encode_all(texts)] == expected


def test_added_tokens_that_are_not_special_are_text() -> None:
    """They are found in text, as the file says; an end of text is special whatever the file says."""
    tokenizer = edited(
        added_tokens=[
            added_token(END_OF_TEXT, 0),
            added_token("<think>", byte_bpe().vocab_size),
            added_token("<secret>", byte_bpe().vocab_size + 1, special=True),
        ]
    )

    [ids] = tokenizer.encode_batch([f"<think>{END_OF_TEXT}<secret>"])

    assert tokenizer.special_tokens() == (END_OF_TEXT, "<secret>")
    assert ids[0] == tokenizer.id_of("<think>") == byte_bpe().vocab_size
    assert ids[1:].tolist() == byte_bpe().encode_batch([f"{END_OF_TEXT}<secret>"])[0].tolist()
    assert tokenizer.decode(ids) == f"<think>{END_OF_TEXT}<secret>"


def test_a_special_token_that_merges_would_make_is_not_made() -> None:
    """Where the merges of a BPE lead to a special token, or it takes whole words as they stand, text does not."""
    content = json.loads(byte_bpe()._content)
    number = content["model"]["vocab"]["the"]
    content["added_tokens"].append(content["added_tokens"][0] | {"id": number, "content": "the"})
    for ignore_merges in (False, True):
        content["model"]["ignore_merges"] = ignore_merges
        [ids] = JsonTokenizer(json.dumps(content).encode()).encode_batch(["the"])

        assert number not in ids
        assert byte_bpe().decode(ids) == "the"


def test_merges_may_be_written_in_one_word() -> None:
    """The older form of merges, ``a b``, under the first line of their file or not, makes the same ids."""
    pairs = [" ".join(pair) for pair in json.loads(byte_bpe()._content)["model"]["merges"]]

    for merges in (pairs, ["#version: 0.2 - Trained by `huggingface/tokenizers`", *pairs], ["#version: 0.2", *pairs]):
        ids = edited(model={"merges": merges}).encode_batch(LINES[:1])[0]

        assert ids.tolist() == byte_bpe().encode_batch(LINES[:1])[0].tolist()


def test_the_unknown_word_may_be_special() -> None:
    """A vocabulary of words gives unknown ones the id of ``[UNK]``, also the word ``[UNK]``, and none that of ``[PAD]``."""
    content = {
        "added_tokens": [added_token("[UNK]", 0, special=True), added_token("[PAD]", 1, special=True)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1, "cat": 9}, "unk_token": "[UNK]"},
    }
    tokenizer = JsonTokenizer(json.dumps(content).encode())

    assert tokenizer.encode_batch(["cat dog [PAD] [UNK]"])[0].tolist() == [9, 0, 0, 0]
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (1, 10)


def test_a_unigram_model_finds_no_special_token_in_text() -> None:
    """Though ``</s>`` is a piece of its vocabulary, text that spells it is made of other pieces."""
    tokenizer = unigram()

    assert tokenizer.eos_id == 1
    assert 1 not in tokenizer.encode_batch(["the</s>cat", "</s>"])[0]


def test_vocab_size_counts_gaps() -> None:
    """Ids that are left unused below the highest count: a dataset must hold that."""
    content = json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 9}, "unk_token": "a"}})

    assert JsonTokenizer(content.encode()).vocab_size == 10


BROKEN_NORMALIZER = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "no object with a model in it"),
        (b"[1]", "no object with a model in it"),
        (b"", "Expecting value"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b'{"model": {"type": "Nothing", "vocab": {}}}', ""),
        (b'{"model": {}}', "KeyError: 'vocab'"),
        (b"[" * 100_000, "RecursionError: "),
        (edited_json(byte_bpe()._content, normalizer=BROKEN_NORMALIZER).encode(), "PanicException: "),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', ""),
    ],
    ids=[
        *("empty object", "list", "nothing", "no UTF-8", "another model", "no vocabulary", "too deep", "panic"),
        "merges of nothing",
    ],
)
def test_what_is_no_tokenizer_is_refused(content: bytes, reason: str) -> None:
    """Content that is no tokenizer.json is a ValueError that names the source."""
    with pytest.raises(ValueError, match=rf"^here\.json: not a tokenizer\.json: .*{reason}"):
        JsonTokenizer(content, source="here.json")


BYTE_LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def of_letters(letters: Sequence[str], *, added: Sequence[str] = (), **fields: Any) -> JsonTokenizer:
    """A BPE that merges nothing; the fields of its model under ``model``."""
    model = {"type": "BPE", "vocab": {letter: n for n, letter in enumerate(letters)}, "merges": []}
    tokens = [added_token(content, len(letters) + n) for n, content in enumerate(added)]
    content = {"model": model | fields.pop("model", {}), "added_tokens": tokens, **fields}
    return JsonTokenizer(json.dumps(content).encode(), source="here.json")


@pytest.mark.parametrize(
    ("letters", "fields", "lost"),
    [
        (["a"], {}, r"\d+ letters that it is given, such as '\\x00'"),
        (["a", "b</w>"], {"model": {"end_of_word_suffix": "</w>"}}, r"\d+ letters"),
        (["a"], {"model": {"byte_fallback": True}}, r"\d+ letters"),
        (BYTE_LETTERS, {}, r"\d+ letters"),
        ([letter for letter in BYTE_LETTERS if letter != "Ġ"], {"pre_tokenizer": BYTE_LEVEL}, "1 letters that it is given, such as 'Ġ'"),
        ([letter for letter in BYTE_LETTERS if letter != "ó"], {"pre_tokenizer": BYTE_LEVEL}, "1 letters that it is given, such as 'ó'"),
    ],
)  # fmt: skip
def test_a_bpe_that_loses_text_is_refused(letters: Sequence[str], fields: dict[str, Any], lost: str) -> None:
    """A BPE leaves out letters without a token in silence, unless it has a token for what is unknown."""
    with pytest.raises(ValueError, match=rf"^here\.json: text would be lost: the BPE has no token for {lost}"):
        of_letters(letters, **fields)


@pytest.mark.parametrize(
    ("letters", "fields"),
    [
        (["a", "?"], {"model": {"unk_token": "?"}}),
        ([f"<0x{byte:02X}>" for byte in range(256)], {"model": {"byte_fallback": True}}),
        (BYTE_LETTERS, {"pre_tokenizer": BYTE_LEVEL}),
        (BYTE_LETTERS, {"normalizer": {"type": "ByteLevel"}}),
        # No UTF-8 has such bytes.
        ([letter for letter in BYTE_LETTERS if letter not in "ÀÁõö÷øùúûüýþÿ"], {"pre_tokenizer": BYTE_LEVEL}),
        # Capital letters never get there.
        (
            [letter for letter in BYTE_LETTERS if letter not in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"],
            {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": BYTE_LEVEL},
        ),
        # Nor do tokens of another list.
        ([letter for letter in BYTE_LETTERS if letter != "Ċ"], {"added": ["\n"], "pre_tokenizer": BYTE_LEVEL}),
    ],
    ids=["unknown", "byte fallback", "bytes", "bytes of a normalizer", "243 bytes", "lower case", "added newline"],
)
def test_a_bpe_that_loses_no_text_is_taken(letters: Sequence[str], fields: dict[str, Any]) -> None:
    """What no text becomes needs no token, and what becomes another token has one."""
    tokenizer = of_letters(letters, **fields)

    assert all(len(ids) for ids in tokenizer.encode_batch(["a", "B", "\n", "語", "\U0010ffff"]))


# What the library cannot do with a text


@pytest.mark.parametrize(
    ("model", "pre_tokenizer", "text", "reason"),
    [
        ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}, None, "a dog", r"Exception: .*\[UNK\]"),
        ({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}, None, "a dog", "Exception: .*unk_id"),
        (
            {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
            {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False},
            "a" * 40 + "b",
            "PanicException: ",
        ),
    ],
    ids=["unknown word", "unknown letter", "a pattern that takes for ever"],
)
def test_what_the_library_cannot_encode_is_told(
    model: dict[str, Any], pre_tokenizer: dict[str, Any] | None, text: str, reason: str
) -> None:
    """A text without ids is a ValueError, also where the library panics, which is no Exception by itself."""
    content = {"model": model, "pre_tokenizer": pre_tokenizer}

    with pytest.raises(ValueError, match=f"^{reason}"):
        JsonTokenizer(json.dumps(content).encode()).encode_batch(["a", text])


# What the library reads otherwise than it is written


@pytest.mark.parametrize(
    ("normalizer", "joins"),
    [
        ({"lowercase": True, "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}, False),
        ({"type": "Sequence", "normalizers": [{"prepend": "x"}]}, False),
        ({"pattern": {"String": "q q"}, "content": "z"}, True),
    ],
    ids=["one", "sequence", "replaces words"],
)
def test_a_normalizer_may_be_without_a_type(normalizer: dict[str, Any], *, joins: bool) -> None:
    """The library knows older files' normalizers by their fields; so is known what they do to words."""
    assert edited(normalizer=normalizer).joins_words() == joins


def test_a_model_may_be_without_a_type() -> None:
    """A Unigram model is known by its fields, too: it weighs a text as a whole."""
    content = json.loads(unigram(splits=False)._content)
    del content["model"]["type"]

    assert JsonTokenizer(json.dumps(content).encode()).joins_words()


def test_what_is_left_aside_may_be_unknown() -> None:
    """A post-processor of a kind that the library does not know, and a mark of byte order, do no harm in decoding either."""
    content = edited_json(byte_bpe()._content, post_processor={"type": "OfTomorrow"})
    tokenizer = JsonTokenizer(b"\xef\xbb\xbf" + content.encode())

    [ids] = tokenizer.encode_batch(["the cat"])

    assert tokenizer.decode([*ids, 0]) == f"the cat{END_OF_TEXT}"


# What the files beside a tokenizer say of its ends


def _load_with(folder: Path, **files: Any) -> JsonTokenizer:
    last = byte_bpe().vocab_size
    names = [END_OF_TEXT, "<s>", "</s>", "<pad>", "<|im_end|>"]
    numbers = [0, *range(last, last + 4)]
    tokens = [added_token(name, number, special=True) for name, number in zip(names, numbers, strict=True)]
    (folder / "tokenizer.json").write_text(edited_json(byte_bpe()._content, added_tokens=tokens))
    for name, document in files.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("files", "bos", "eos", "pad"),
    [
        ({}, "<s>", END_OF_TEXT, "<pad>"),
        ({"tokenizer_config": {"model_max_length": 1024}}, "<s>", END_OF_TEXT, "<pad>"),
        ({"tokenizer_config": {"eos_token": "<|im_end|>", "pad_token": END_OF_TEXT}}, "<s>", "<|im_end|>", END_OF_TEXT),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}, "bos_token": None}}, None, "</s>", "<pad>"),
        ({"special_tokens_map": {"eos_token": "</s>"}}, "<s>", "</s>", "<pad>"),
        (
            {"special_tokens_map": {"eos_token": "</s>"}, "tokenizer_config": {"eos_token": "<|im_end|>"}},
            "<s>",
            "<|im_end|>",
            "<pad>",
        ),
        ({"tokenizer_config": {"eos_token": "<|not in the vocabulary|>"}}, "<s>", None, "<pad>"),
    ],
    ids=["no files", "files that do not say", "config", "objects and null", "map", "both", "unknown"],
)
def test_the_files_beside_it_name_its_ends(
    files: dict[str, Any], bos: str | None, eos: str | None, pad: str | None, tmp_path: Path
) -> None:
    """The tokens that begin, end and pad texts are what the files beside it say, else the first well-known name."""
    tokenizer = _load_with(tmp_path, **files)

    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == tuple(
        None if token is None else tokenizer.id_of(token) for token in (bos, eos, pad)
    )


@pytest.mark.parametrize(("content", "reason"), [("{", "not JSON: "), ("[]", "not a JSON object")])
def test_a_damaged_file_beside_it_is_named(content: str, reason: str, tmp_path: Path) -> None:
    """Rather than to guess what ends a text, the damage is told."""
    byte_bpe().save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(content)

    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {reason}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("file_name", ["special_tokens_map", "tokenizer_config"])
@pytest.mark.parametrize("token", [{"x": 1}, {"content": 5}, ["a"], 5, False], ids=str)
def test_an_odd_value_beside_it_is_named(file_name: str, token: Any, tmp_path: Path) -> None:
    """A token that is none is told, with its file and field, rather than taken for none."""
    with pytest.raises(
        ValueError, match=rf"{file_name}\.json: eos_token is {re.escape(repr(token))}; wanted a token, an "
    ):
        _load_with(tmp_path, **{file_name: {"eos_token": token}})


# Vocabulary and merges


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    """GPT-2's two files, small."""
    return write_two_files(tmp_path, "small_")


def test_vocabulary_and_merges_are_what_they_were_learnt_as(vocab: Path) -> None:
    """The two files give the ids of the tokenizer that they were taken from; either names them; both are the identity."""
    tokenizer = load_tokenizer(vocab)
    merges = vocab.with_name("small_merges.txt")

    assert (tokenizer.name, tokenizer.eos_id, tokenizer.vocab_size) == ("small_vocab.json", 0, byte_bpe().vocab_size)
    assert tokenizer.special_tokens() == (END_OF_TEXT,)
    assert [ids.tolist() for ids in tokenizer.encode_batch(LINES)] == [
        ids.tolist() for ids in byte_bpe().encode_batch(LINES)
    ]
    assert tokenizer.sha256 == hashlib.sha256(vocab.read_bytes() + merges.read_bytes()).hexdigest()
    assert load_tokenizer(merges).sha256 == tokenizer.sha256


@given(text=TEXT)
def test_words_are_cut_as_gpt2_cuts_them(text: str) -> None:
    """The ids are those that another library makes of the same vocabulary by GPT-2's pattern."""
    ranks = {token: number + 1 for token, number in byte_ranks().items()}
    model = json.loads(byte_bpe()._content)["model"]
    reference = tiktoken.Encoding("reference", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})

    spelt = [reference.decode_single_token_bytes(token) for token in reference.encode(text)]

    [ids] = byte_bpe()._encode_all([text])  # not by the library that it is compared with
    assert len(model["vocab"]) == len(ranks) + 1
    assert [byte_bpe().decode([token]) for token in ids] == [token.decode(errors="replace") for token in spelt]


def test_transformers_makes_the_same_ids(vocab: Path) -> None:
    """GPT-2's own class, given the two files, agrees."""
    theirs = transformers.GPT2Tokenizer(vocab=str(vocab), merges=str(vocab.with_name("small_merges.txt")))
    text = "  The cat's hat,\n\n\tdidn't 12345 fit…  naïve слово\u00a0語 "

    assert load_tokenizer(vocab).encode_batch([text])[0].tolist() == theirs(text)["input_ids"]


def test_missing_merges_are_named(vocab: Path) -> None:
    """A vocabulary without its merges is no tokenizer."""
    vocab.with_name("small_merges.txt").unlink()

    with pytest.raises(
        FileNotFoundError, match=r"small_vocab\.json: a vocabulary needs its merges, and .*small_merges\.txt"
    ):
        load_tokenizer(vocab)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("small_vocab.json", "{", "not a vocabulary with merges in "),
        ("small_merges.txt", "#version\nzz yy\n", "not a vocabulary with merges in "),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "Qwen2Tokenizer"}',
            "names a Qwen2Tokenizer, which may cut words",
        ),
    ],
)
def test_what_is_not_gpt2s_is_refused(name: str, content: str, reason: str, vocab: Path) -> None:
    """Damaged files, and files of a tokenizer that cuts words otherwise, are told."""
    vocab.with_name(name).write_text(content)

    with pytest.raises(ValueError, match=rf"^.*small_vocab\.json: .*{reason}"):
        load_tokenizer(vocab)


def test_a_vocabulary_of_no_bytes_is_refused(vocab: Path) -> None:
    """A vocabulary that is not one of bytes would lose text."""
    vocab.write_text(json.dumps({"a": 0, "b": 1}))
    vocab.with_name("small_merges.txt").write_text("")

    with pytest.raises(
        ValueError, match=r"small_vocab\.json: text would be lost: the BPE has no token for 241 letters"
    ):
        load_tokenizer(vocab)


def test_gpt2_by_its_class_is_taken(vocab: Path) -> None:
    """A configuration that names GPT-2's class is as good as none."""
    vocab.with_name("tokenizer_config.json").write_text('{"tokenizer_class": "GPT2TokenizerFast", "eos_token": "the"}')

    tokenizer = load_tokenizer(vocab)

    assert tokenizer.special_tokens() == ("the",)
    assert json_tokenizer(byte_bpe()._as_it_stands, eos="the").eos_id == tokenizer.eos_id
