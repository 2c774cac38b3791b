"""Byte-level BPE by tiktoken's core: the ids of tokenizers, or none."""

import json
import random
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from shardstream.ingest import fast_bpe
from shardstream.ingest.fast_bpe import FastBpe, disputed_characters, fast_bpe_of
from shardstream.ingest.json_tokenizer import JsonTokenizer, train_byte_bpe
from shardstream.ingest.tokenizer import END_OF_TEXT
from shardstream.ingest.tokenizers import load_tokenizer
from tests.ingest.tokenizer_kinds import (
    LINES,
    LLAMA3,
    O200K,
    TEXT,
    added_token,
    edited_json,
    write_two_files,
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
PATTERNS = {"GPT-2": GPT2, "Llama 3": LLAMA3, "Qwen2": QWEN2, "o200k": O200K}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

# White space of all kinds, letters of all kinds, digits, marks, letters whose other case is ASCII, the last of planes.
HARD = st.sampled_from(
    " \t\n\r\v\f\x1c\x1f\x85\u00a0\u1680\u180e\u2003\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
    "'sSdDtTmMrReEvVlL\u017f\u212a\u2019\u0149\ufb05\ufb06\u00df\u0130\u0131\u01c5\u02b0\u0301\u0e33\u093f\u200d"
    "019\u00b2\u00bd\u0661\u2167\u4e00\uac00\ud7a4\uffff\U0001f642\U00010d40\U000323b0\U0001e5d0\U0010ffff.,-_/(\x00"
)
HARD_TEXT = st.lists(HARD | st.characters(exclude_categories=["Cs"]), max_size=60).map("".join) | TEXT


def split_by(pattern: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {**BYTE_LEVEL, "use_regex": False},
        ],
    }


def letters() -> list[str]:
    """The letters of the 256 bytes, as the library knows them."""
    return [letter for letter, number in sorted(_byte_vocabulary().items(), key=lambda item: item[1])]


@cache
def _byte_vocabulary() -> dict[str, int]:
    return {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def bpe(
    merges: Sequence[tuple[str, str]],
    *,
    vocab: Sequence[str] = (),
    ids: random.Random | None = None,
    **model: Any,
) -> tokenizers.Tokenizer:
    """A byte-level BPE of these merges, and of more tokens than they make; its ids in any order."""
    tokens = list(dict.fromkeys([*letters(), *(left + right for left, right in merges), *vocab]))
    numbers = list(range(len(tokens)))
    if ids:
        ids.shuffle(numbers)
    made = tokenizers.Tokenizer(models.BPE(dict(zip(tokens, numbers, strict=True)), list(merges), **model))
    byte_level: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = byte_level
    return made


def edited(slow: tokenizers.Tokenizer, **fields: Any) -> tokenizers.Tokenizer:
    """The tokenizer with other fields in its file; those of the model under ``model``."""
    return tokenizers.Tokenizer.from_str(edited_json(slow.to_str(), **fields))


@cache
def trained(pattern: str, vocab_size: int) -> tuple[tokenizers.Tokenizer, FastBpe]:
    slow: Any = tokenizers.Tokenizer(models.BPE())
    slow.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    slow = edited(slow, pre_tokenizer=split_by(pattern))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=letters(), show_progress=False)
    slow.train_from_iterator([Path(__file__).read_text("utf-8"), *LINES], trainer)
    fast = fast_bpe_of(slow)
    assert fast is not None
    return slow, fast


def assert_same(slow: tokenizers.Tokenizer, fast: FastBpe, texts: list[str]) -> None:
    """Rare characters, which the engines are not asked of, are declined; nothing else is."""
    found = [fast.encode(text) for text in texts]

    for text, ids, theirs in zip(texts, found, slow.encode_batch(texts), strict=True):
        if max(text, default="") >= "\U00040000":
            assert ids is None
            continue
        assert ids is not None
        assert ids.dtype == np.uint32
        assert ids.tolist() == theirs.ids, text


# Laws


@pytest.mark.parametrize("vocab_size", [256, 300, 700])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@given(text=HARD_TEXT)
def test_a_learnt_bpe_has_the_same_ids(pattern: str, vocab_size: int, text: str) -> None:
    """Whatever the text, the expression and the size of the vocabulary, the ids are those of tokenizers."""
    slow, fast = trained(pattern, vocab_size)

    assert_same(slow, fast, [text])


MERGE_LISTS = st.lists(st.tuples(st.integers(0), st.integers(0)), min_size=1, max_size=14)


def _merges_of(numbers: list[tuple[int, int]], *, is_of_all_splits: bool) -> list[tuple[str, str]]:
    """Merges of what was made before; as converted from tiktoken's files, each with all splits of what it makes."""
    tokens, merges = ["a", "b", "c"], dict[tuple[str, str], None]()
    for left, right in numbers:
        made = tokens[left % len(tokens)] + tokens[right % len(tokens)]
        merges[tokens[left % len(tokens)], tokens[right % len(tokens)]] = None
        tokens = list(dict.fromkeys([*tokens, made]))
        if is_of_all_splits:
            splits = [(made[:cut], made[cut:]) for cut in range(1, len(made))]
            merges |= dict.fromkeys(split for split in splits if {*split} <= {*tokens})
    return [merge for merge in merges if len("".join(merge)) < 12]


@settings(max_examples=100)
@given(
    numbers=MERGE_LISTS,
    is_of_all_splits=st.booleans(),
    vocab=st.lists(st.text("abc", min_size=2, max_size=5), max_size=2),
    ignore_merges=st.booleans(),
    randomness=st.randoms(use_true_random=False),
    is_shuffled=st.booleans(),
    words=st.lists(st.text("abc", min_size=1, max_size=24), min_size=30, max_size=40),
)
def test_any_merges_have_the_same_ids_or_none(  # noqa: PLR0917 - drawn by name
    numbers: list[tuple[int, int]],
    is_of_all_splits: bool,
    vocab: list[str],
    ignore_merges: bool,
    randomness: random.Random,
    is_shuffled: bool,
    words: list[str],
) -> None:
    """Merges in any order, several into one token, tokens that none makes, ids in any order: never another id."""
    merges = _merges_of(numbers, is_of_all_splits=is_of_all_splits)
    if is_shuffled:
        randomness.shuffle(merges)
    slow = bpe(merges, vocab=vocab, ids=randomness, ignore_merges=ignore_merges)
    fast = fast_bpe_of(slow)
    assume(fast is not None)
    assert fast is not None

    assert_same(slow, fast, [*words, "".join(words), *vocab, *("".join(merge) for merge in merges)])


@settings(max_examples=30)
@given(numbers=MERGE_LISTS, ids=st.randoms(use_true_random=False))
def test_merges_as_they_are_learnt_are_taken(numbers: list[tuple[int, int]], ids: random.Random) -> None:
    """Merges of the two that stand side by side most often, which is how a BPE is learnt, are never refused."""
    text = ["".join("abc"[n % 3] for n in pair) * 2 for pair in numbers]
    slow: Any = tokenizers.Tokenizer(models.BPE())
    slow.train_from_iterator(text, trainers.BpeTrainer(vocab_size=40, show_progress=False))
    merges = [tuple(merge) for merge in json.loads(slow.to_str())["model"]["merges"]]

    assert fast_bpe_of(bpe(merges, ids=ids)) is not None


def _library() -> list[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [file.read_text("utf-8", errors="replace") for file in files]


@pytest.mark.parametrize(
    ("pattern", "num_files"),
    [
        *(pytest.param(pattern, 10, id=f"{name}, some") for name, pattern in PATTERNS.items()),
        pytest.param(GPT2, None, id="GPT-2, all", marks=pytest.mark.slow),
    ],
)
def test_source_code_has_the_same_ids(pattern: str, num_files: int | None) -> None:
    """Python's standard library, as a text of every day."""
    assert_same(*trained(pattern, 700), _library()[:num_files])


@cache
def of_all_pairs() -> tokenizers.Tokenizer:
    """Every pair of bytes is merged, in any order: where a word ends changes the ids."""
    pairs = [(left, right) for left in letters() for right in letters()]
    random.Random(0).shuffle(pairs)
    return bpe(pairs)


@pytest.mark.parametrize(
    ("pattern", "step"),
    [
        *(pytest.param(pattern, 4111, id=f"{name}, some") for name, pattern in PATTERNS.items()),
        # This one asks for all classes that the others ask for.
        pytest.param(O200K, 11, id="o200k, many", marks=pytest.mark.slow),
    ],
)
def test_every_character_cuts_words_alike(pattern: str, step: int) -> None:
    """Between letters, digits, apostrophes and white space, a character is to both engines of the same class."""
    slow: Any = of_all_pairs()
    slow.pre_tokenizer = trained(pattern, 256)[0].pre_tokenizer
    fast = fast_bpe_of(slow)
    assert fast is not None
    characters = [chr(n) for n in [*range(0x250), *range(0x250, 0xD800, step), *range(0xE000, 0x40000, step)]]

    assert_same(slow, fast, [f"a{c}B 1{c}'{c}e 'L{c} {c}{c}.{c}\n{c}  {c}" for c in [*characters, "\u017f", "\u212a"]])


def test_the_engines_agree_on_all_characters() -> None:
    """With the versions that are installed, no text is declined for the sake of a character."""
    assert [disputed_characters(pattern) for pattern in PATTERNS.values()] == [""] * len(PATTERNS)


# What is taken, and what is not


def test_two_files_are_taken(tmp_path: Path) -> None:
    """A vocabulary with its merges, its end of text among the words, is as fast, and has the same ids."""
    tokenizer = load_tokenizer(write_two_files(tmp_path))
    assert isinstance(tokenizer, JsonTokenizer)
    assert tokenizer._fast_bpe is not None

    assert_same(tokenizer._tokenizer, tokenizer._fast_bpe, [*LINES, END_OF_TEXT])


WHOLE = bpe([("a", "b"), ("ab", "c")])


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}},
        {"pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}},
        {"pre_tokenizer": split_by(GPT2.replace("'ll", "'LL"))},
        {"pre_tokenizer": {**split_by(LLAMA3), "pretokenizers": split_by(LLAMA3)["pretokenizers"][:1]}},
        {"pre_tokenizer": {**split_by(LLAMA3), "pretokenizers": [*split_by(LLAMA3)["pretokenizers"][:1], BYTE_LEVEL]}},
        *(
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split | other, byte_level]}}
            for split, byte_level in [split_by(LLAMA3)["pretokenizers"]]
            for other in ({"behavior": "Removed"}, {"invert": True}, {"pattern": {"String": LLAMA3}})
        ),
        {"model": {"dropout": 0.5}},
        {"model": {"end_of_word_suffix": "w"}},
        {"model": {"continuing_subword_prefix": "b", "merges": []}},
        {"model": {"vocab": {letter: number for number, letter in enumerate(letters()[1:])}, "merges": []}},
        {"model": {"vocab": {letter: number // 2 for number, letter in enumerate(letters())}, "merges": []}},
        {"model": {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "", "max_input_chars_per_word": 9}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_known_to_be_the_same_stays(fields: dict[str, Any]) -> None:
    """Another way to cut words, another model, bytes without a token or with one of another: tokenizers does it."""
    if fields.get("model", {}).get("type") == "WordPiece":
        content = json.loads(WHOLE.to_str())
        content["model"] = fields["model"] | {"vocab": content["model"]["vocab"]}
        other = tokenizers.Tokenizer.from_str(json.dumps(content))
    else:
        other = edited(WHOLE, **fields)

    assert fast_bpe_of(WHOLE) is not None
    assert fast_bpe_of(other) is None


@pytest.mark.parametrize(
    ("merges", "vocab", "ignore_merges", "is_taken"),
    [
        ([("a", "b"), ("b", "c"), ("a", "bc")], [], False, True),
        ([("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")], [], False, True),
        ([("a", "bc"), ("b", "c")], [], False, False),
        ([("ab", "c"), ("b", "c"), ("a", "b")], ["ab"], False, True),
        ([("a", "b"), ("b", "c")], ["abc"], False, True),
        ([("a", "b"), ("b", "c")], ["abc"], True, False),
        ([("a", "b")], ["acb"], False, True),
        ([("a", "b")], ["acb"], True, True),
        ([("a", "b"), ("ab", "é é")], ["é é", "abé é"], False, False),
    ],
    ids=[
        "a merge that never comes up, since another one is before it",
        "two merges into one token, of which one comes up",
        "a token that comes from a merge which is before one of its parts",
        "a merge before its part, which is not reached",
        "a token without a merge, of two parts",
        "a token without a merge, of two parts, that is taken as a word",
        "a token without a merge, of three parts",
        "a token without a merge, of three parts, that is taken as a word",
        "merges of what is no byte",
    ],
)
def test_merges_are_taken_if_they_lead_to_the_same(
    merges: list[tuple[str, str]], vocab: list[str], ignore_merges: bool, is_taken: bool
) -> None:
    """What tiktoken would merge and tokenizers not, or the other way round, is seen."""
    slow = bpe(merges, vocab=vocab, ignore_merges=ignore_merges)
    fast = fast_bpe_of(slow)

    assert (fast is not None) == is_taken
    if fast is not None:
        assert_same(slow, fast, ["abc", "ab", "bc", "acb", "abcabcbacbabc", *vocab])


@pytest.mark.parametrize(("num_bytes", "is_taken"), [(1000, True), (1002, False)])
def test_a_token_without_a_merge_is_not_too_long(num_bytes: int, *, is_taken: bool) -> None:
    """A word of a stranger's file that nothing makes is looked into up to a length: to look takes time by its square."""
    slow = bpe([("a", "b")], vocab=["ab" * (num_bytes // 2)], ignore_merges=True)
    fast = fast_bpe_of(slow)

    assert (fast is not None) == is_taken


def test_a_text_that_spells_an_added_token_is_left_to_tokenizers() -> None:
    """Tokens that are added to a vocabulary are found in text, with or without white space around them."""
    slow = edited(
        WHOLE, added_tokens=[added_token("<think>", 258) | {"lstrip": True}, added_token("<end>", 259, special=True)]
    )
    fast = fast_bpe_of(slow)
    assert fast is not None

    assert fast.encode("ab <think>") is None
    assert_same(slow, fast, ["ab <think", "abc"])


def test_a_special_token_is_no_word() -> None:
    """Where words of the vocabulary are not merged, a special one that no text spells does no harm."""
    slow = edited(
        bpe([("a", "b")], vocab=["xab"], ignore_merges=True), added_tokens=[added_token("xab", 257, special=True)]
    )

    assert fast_bpe_of(bpe([("a", "b")], vocab=["xab"], ignore_merges=True)) is None
    assert fast_bpe_of(slow) is not None


def test_a_normalizer_leaves_ascii_alone() -> None:
    """Of text in another form than NFC tokenizers takes care; ASCII has no other form, unless a token is added in one."""
    slow: Any = edited(WHOLE)
    slow.normalizer = normalizers.NFC()
    fast = fast_bpe_of(slow)
    assert fast is not None

    assert_same(slow, fast, ["abc abc\x7f"])
    assert fast.encode("abc e\u0301") is None
    assert fast_bpe_of(edited(slow, added_tokens=[added_token("\u212a", 258)])) is None


def test_a_character_that_the_engines_dispute_is_left_to_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries of other versions of Unicode may know another letter; of rare characters they are not asked."""
    monkeypatch.setattr(fast_bpe, "disputed_characters", lambda pattern: "]\u0142" if pattern == GPT2 else "")
    fast = fast_bpe_of(WHOLE)
    assert fast is not None

    assert fast.encode("s\u0142owo") is None
    assert fast.encode("\U0001f3f4\U000e0067") is None
    assert fast.encode("\U00040000") is None
    assert_same(WHOLE, fast, ["abc", "ab\u0144c", "\U0001f3f4", "\U0003ffff"])


def test_characters_that_the_engines_dispute_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one engine finds and the other does not is told, wherever it stands among all characters."""
    found = fast_bpe._found_by_tiktoken
    monkeypatch.setattr(
        fast_bpe,
        "_found_by_tiktoken",
        lambda expression, text: (
            found(expression, text).replace("k", "") + ("\U0003ffff" if expression == r"\s" else "")
        ),
    )

    assert disputed_characters.__wrapped__(LLAMA3) == "k\U0003ffff"


def test_white_space_without_end_is_left_to_tokenizers() -> None:
    """A run that is too long for tiktoken's stack is declined, and its ids are there all the same."""
    text = "a" + " " * 1_100_000 + "b"
    tokenizer = JsonTokenizer(WHOLE.to_str().encode())
    assert tokenizer._fast_bpe is not None

    assert tokenizer._fast_bpe.encode(text) is None
    short, ids = tokenizer.encode_batch(["ab", text])
    a, b, space, ab = (WHOLE.token_to_id(token) for token in ("a", "b", "Ġ", "ab"))
    assert short.tolist() == [ab]
    assert (ids[0], ids[-1], {*ids[1:-1].tolist()}, len(ids)) == (a, b, {space}, len(text))


def test_half_a_character_has_no_ids() -> None:
    """A lone surrogate is an error, as everywhere."""
    fast = fast_bpe_of(WHOLE)
    assert fast is not None

    with pytest.raises(UnicodeEncodeError):
        fast.encode("a\ud800")


def test_a_batch_keeps_its_order() -> None:
    """Texts that are left to tokenizers come back at their places."""
    content = edited(WHOLE, added_tokens=[added_token("<think>", 258)]).to_str()

    batch = JsonTokenizer(content.encode()).encode_batch(["ab", "<think>", "", "abc", "a<think>b"])

    ab, abc, a, b = (WHOLE.token_to_id(token) for token in ("ab", "abc", "a", "b"))
    assert [ids.tolist() for ids in batch] == [[ab], [258], [], [abc], [a, 258, b]]


def test_without_tiktoken_it_is_slower() -> None:
    """The ids are there with the library of tokenizers alone."""
    script = f"""
import sys
sys.modules["tiktoken"] = None
from shardstream.ingest.json_tokenizer import train_byte_bpe
tokenizer = train_byte_bpe({LINES!r}, vocab_size=330)
print(tokenizer.encode_batch({LINES[:1]!r})[0].tolist(), tokenizer._fast_bpe)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    expected = train_byte_bpe(LINES, vocab_size=330).encode_batch(LINES[:1])[0].tolist()
    assert (done.stdout, done.stderr) == (f"{expected} None\n", "")
