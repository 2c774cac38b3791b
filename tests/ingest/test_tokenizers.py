"""A tokenizer by file: ids, identity, vocabulary."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.ingest.tokenizers import END_OF_TEXT, Tokenizer, train_byte_bpe

TEXTS = ["the cat sat on the mat", "the dog ate the cat's hat", "the end"] * 3
TOKENIZER = train_byte_bpe(TEXTS, vocab_size=280)


def test_training_is_repeatable() -> None:
    """The same texts give the same tokenizer, byte for byte; other texts another."""
    assert train_byte_bpe(iter(TEXTS), vocab_size=280).sha256 == TOKENIZER.sha256
    assert train_byte_bpe(["other text, of other words"] * 9, vocab_size=280).sha256 != TOKENIZER.sha256


def test_the_vocabulary_is_as_large_as_wanted_or_as_the_text_allows() -> None:
    """``vocab_size`` bounds the ids; little text ends in fewer, and one below 257 is refused."""
    assert TOKENIZER.vocab_size == 280
    assert train_byte_bpe(["ab ab"], vocab_size=1000).vocab_size == 259
    with pytest.raises(
        ValueError, match=r"^vocab_size is 256; wanted at least 257: the 256 bytes and <\|endoftext\|>$"
    ):
        train_byte_bpe(TEXTS, vocab_size=256)


@given(st.lists(st.text() | st.just(f"a{END_OF_TEXT}b"), max_size=5))
def test_text_comes_back_and_is_only_text(texts: list[str]) -> None:
    """Any text is encoded without loss, and none yields a special id, even where it spells one."""
    encoded = TOKENIZER.encode_batch(texts)

    assert [TOKENIZER.decode(ids) for ids in encoded] == texts
    assert all(ids.dtype == np.uint32 and ids.ndim == 1 for ids in encoded)
    assert all(0 < token < TOKENIZER.vocab_size for ids in encoded for token in ids)


def test_a_special_token_is_decoded_as_its_name() -> None:
    """The end-of-text token has an id, and is spelt out; an unknown token has none."""
    end = TOKENIZER.id_of(END_OF_TEXT)

    assert end == 0
    assert TOKENIZER.decode([end]) == END_OF_TEXT
    assert TOKENIZER.id_of("<|nothing|>") is None


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    """The file's bytes are what the checksum identifies."""
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)

    loaded = Tokenizer.load(path)

    assert hashlib.sha256(path.read_bytes()).hexdigest() == TOKENIZER.sha256 == loaded.sha256
    assert loaded.vocab_size == 280
    assert loaded.encode_batch(TEXTS)[0].tolist() == TOKENIZER.encode_batch(TEXTS)[0].tolist()


def test_no_special_id_is_added_by_a_template(tmp_path: Path) -> None:
    """A post-processor that would put special ids around each text adds none."""
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    content = json.loads(path.read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }

    [ids] = Tokenizer(json.dumps(content).encode()).encode_batch(["the cat"])

    assert 0 not in ids


def test_vocab_size_counts_gaps() -> None:
    """Ids that an added token leaves unused below it count: a dataset must hold the highest."""
    content = json.dumps(
        {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 9}, "unk_token": "a"}}
    )

    assert Tokenizer(content.encode()).vocab_size == 10


@pytest.mark.parametrize("content", [b"{}", b"", b"\xff", b"[1]"], ids=["empty object", "nothing", "no UTF-8", "list"])
def test_what_is_no_tokenizer_is_refused(content: bytes) -> None:
    """Content that is no tokenizer.json is a ValueError that names the source."""
    with pytest.raises(ValueError, match=r"^here\.json: not a tokenizer\.json: "):
        Tokenizer(content, source="here.json")


def test_a_missing_package_is_named_with_its_remedy() -> None:
    """Without tokenizers the module says what to install."""
    script = "import sys; sys.modules['tokenizers'] = None; import shardstream.ingest.tokenizers"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.stderr.endswith(
        "ModuleNotFoundError: a tokenizer needs tokenizers: pip install 'shardstream[tokenizers]'\n"
    )
