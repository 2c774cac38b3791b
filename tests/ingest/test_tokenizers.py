"""A tokenizer by name: what all kinds have in common."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.ingest.tokenizer import END_OF_TEXT
from shardstream.ingest.tokenizers import load_tokenizer
from tests.ingest.tokenizer_kinds import (
    KINDS,
    LOSSLESS,
    TEKKEN_FILES,
    TEXT,
    byte_bpe,
    sentencepiece_model,
    wordpiece,
    write_two_files,
)

UNKNOWN = {"<unk>", "[UNK]"}  # what a vocabulary without all bytes makes of what it lacks


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_text_is_only_text(kind: str, data: st.DataObject) -> None:
    """No text yields a special id, whatever it spells; ids are below the vocabulary's size."""
    tokenizer = KINDS[kind]()
    special = {tokenizer.id_of(token) for token in tokenizer.special_tokens() if token not in UNKNOWN}
    spelt = st.sampled_from(tokenizer.special_tokens())
    texts = data.draw(st.lists(TEXT | spelt | st.builds("{}{}{}".format, TEXT, spelt, TEXT), max_size=4))

    encoded = tokenizer.encode_batch(texts)

    assert [(ids.dtype.name, ids.ndim) for ids in encoded] == [("uint32", 1)] * len(texts)
    assert all(token < tokenizer.vocab_size and token not in special for ids in encoded for token in ids.tolist())
    assert [ids.tolist() for text in texts for ids in tokenizer.encode_batch([text])] == [
        ids.tolist() for ids in encoded
    ]
    if kind in LOSSLESS:
        assert [tokenizer.decode(ids) for ids in encoded] == texts


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_ids_and_are_spelt_out(kind: str) -> None:
    """Each special token has an id of its own, decoded as its name; its end of text is one; no other token has any."""
    tokenizer = KINDS[kind]()
    special = tokenizer.special_tokens()
    ids = [number for token in special if (number := tokenizer.id_of(token)) is not None]

    assert ids == sorted(set(ids))
    assert [tokenizer.decode([number]) for number in ids] == list(special)
    assert {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} <= {*ids, None}
    assert tokenizer.eos_id is not None
    assert tokenizer.id_of("<|nothing|>") is None


@pytest.mark.parametrize("kind", KINDS)
def test_words_between_special_ids_are_decoded(kind: str) -> None:
    """What was written with special ids around it comes back with their names around it."""
    tokenizer = KINDS[kind]()
    [ids] = tokenizer.encode_batch(["the cat"])

    assert tokenizer.eos_id is not None
    end = tokenizer.decode([tokenizer.eos_id])

    text = tokenizer.decode(np.array([tokenizer.eos_id, *ids, tokenizer.eos_id]))

    assert (text[: len(end)], text[-len(end) :]) == (end, end)
    assert text[len(end) : -len(end)].strip() == "the cat"


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_refused(kind: str) -> None:
    """A lone surrogate, which JSON may spell, has no UTF-8 and no ids."""
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        KINDS[kind]().encode_batch(["the cat", "half a \ud800 character"])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_the_vocabulary_lacks_are_lost(kind: str) -> None:
    """What is no id of the vocabulary is left out of the text."""
    tokenizer = KINDS[kind]()
    [ids] = tokenizer.encode_batch(["cat"])

    lost = [-1, tokenizer.vocab_size, tokenizer.vocab_size + 70_000, 2**32]

    assert tokenizer.decode([*ids, *lost]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_content(kind: str) -> None:
    """A checksum is 64 hex digits, and no two kinds have the same."""
    sha256 = KINDS[kind]().sha256

    assert len(bytes.fromhex(sha256)) == 32
    assert [other for other in KINDS if KINDS[other]().sha256 == sha256] == [kind]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of each kind."""
    made = tmp_path / "small"
    made.mkdir()
    byte_bpe().save(made / "tokenizer.json")
    write_two_files(made)
    (made / "tokenizer.model").write_bytes(sentencepiece_model())
    (made / "tekken.json").symlink_to(TEKKEN_FILES[0])
    return made


def test_a_folder_is_its_first_tokenizer(folder: Path) -> None:
    """Of a folder the tokenizer.json counts, then the vocabulary, then the SentencePiece model, then the tekken file."""
    classes = []
    for removed in ("tokenizer.json", "vocab.json", "tokenizer.model", "tekken.json"):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.name == "small"
        classes.append((type(tokenizer).__name__, tokenizer.vocab_size))
        (folder / removed).unlink()

    assert classes == [
        ("JsonTokenizer", byte_bpe().vocab_size),
        ("JsonTokenizer", byte_bpe().vocab_size),
        ("SentencePieceTokenizer", 80),
        ("TiktokenTokenizer", 131072),
    ]
    with pytest.raises(ValueError, match=r"small: no tokenizer in this folder; wanted tokenizer\.json, "):
        load_tokenizer(folder)


def test_a_folder_of_two_models_is_ambiguous(tmp_path: Path) -> None:
    """Where two files may be meant, both are named."""
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(sentencepiece_model())

    with pytest.raises(ValueError, match=r": a\.model and b\.model may both be meant; name one of them$"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_is_named_after_its_file_or_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is called as all of its kind has its folder's name, another its own; a link's target names neither."""
    byte_bpe().save(tmp_path / "mine.json")
    (tmp_path / "mine.model.json").symlink_to("mine.json")
    (tmp_path / "mine.model.v3").write_bytes(sentencepiece_model())
    (tmp_path / "cached").mkdir()
    (tmp_path / "cached" / "tokenizer.json").symlink_to("../mine.json")
    monkeypatch.chdir(folder)

    assert load_tokenizer("tokenizer.json").name == "small"
    assert load_tokenizer("../mine.json").name == "mine.json"
    assert load_tokenizer("../mine.model.json").name == "mine.model.json"
    assert load_tokenizer("../mine.model.v3").name == "mine.model.v3"
    assert load_tokenizer("../cached/tokenizer.json").name == "cached"
    assert load_tokenizer("merges.txt").name == "small"
    assert load_tokenizer("bytes").name == "bytes"


@pytest.mark.parametrize(
    "name", ["here.json", "no/such/folder/tokenizer.json", "here.model", "vocab.json", "/nowhere.txt"]
)
def test_a_missing_file_is_not_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is called as a file is a file."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FileNotFoundError):
        load_tokenizer(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "tokenizer of mine"])
def test_what_can_be_no_name_is_refused(name: str) -> None:
    """A name that is neither a file's nor one of the Hub is answered by what is wanted, without a network."""
    with pytest.raises(ValueError, match=r" is neither a file or folder nor the name of a tokenizer; wanted .*'bytes'"):
        load_tokenizer(name)


@pytest.mark.parametrize("name", ["s3://bucket/tokenizer.json", "https://here/org/name"])
def test_a_tokenizer_is_here(name: str) -> None:
    """An address elsewhere is answered as such, not as a file that does not exist."""
    with pytest.raises(ValueError, match=rf"^'{name}': a tokenizer is a local file or folder; copy it here first$"):
        load_tokenizer(name)


def test_a_name_that_the_hub_forbids_is_refused() -> None:
    """What looks like a name of the Hub and can be none is told like one that the Hub does not know."""
    with pytest.raises(OSError, match=r"^'a--b' is no file or folder here, and the Hugging Face Hub gave no such "):
        load_tokenizer("a--b")


def _loaded_in_a_process(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = f"from shardstream.ingest.tokenizers import load_tokenizer; t = load_tokenizer({name!r}); print(t.name, t.sha256)"
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["gpt2", "org/name"])
def test_a_hub_without_a_network_says_what_to_do(name: str, tmp_path: Path) -> None:
    """Where the Hub cannot be reached, that is said at once, with what to name instead."""
    done = _loaded_in_a_process(name, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))

    message = done.stderr.splitlines()[-1]
    assert message.startswith(
        f"OSError: '{name}' is no file or folder here, and the Hugging Face Hub gave no such tokenizer: "
    )
    assert message.endswith("without a network, name a local file: tokenizer.json, a SentencePiece .model, tekken.json")
    assert "Retrying" not in done.stderr


def test_a_tokenizer_of_the_hub_that_is_here_needs_no_network(tmp_path: Path) -> None:
    """What was downloaded once is found by its name."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    byte_bpe().save(snapshot / "tokenizer.json")

    done = _loaded_in_a_process("org/name", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))

    assert done.stdout == f"org/name {byte_bpe().sha256}\n"


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("tokenizers", "tokenizer.json"),
        ("tokenizers", "vocab.json"),
        ("sentencepiece", "tokenizer.model"),
        ("tiktoken", "tekken.json"),
        ("tiktoken", "tiktoken:cl100k_base"),
        ("huggingface_hub", "gpt2"),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(library: str, name: str, folder: Path) -> None:
    """Without the library of its kind a tokenizer says what to install; those that do not need it are there."""
    script = f"""
import sys
sys.modules[{library!r}] = None
from shardstream.ingest.tokenizers import load_tokenizer
print(load_tokenizer("bytes").vocab_size)
load_tokenizer({name!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=folder)

    assert done.stdout == "257\n"
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ModuleNotFoundError: ")
    assert message.endswith(f" needs {library}: pip install 'shardstream[tokenizers]'")


def test_end_of_text_is_the_same_word_everywhere() -> None:
    """What a tokenizer of bytes and one that is learnt here call the end of a text is one name."""
    assert [load_tokenizer("bytes").id_of(END_OF_TEXT), byte_bpe().id_of(END_OF_TEXT)] == [256, 0]
    assert wordpiece().id_of(END_OF_TEXT) is None
