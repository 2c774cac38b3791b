"""Encodings of tiktoken, and tekken files."""

import base64
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from shardstream.ingest.tiktoken_tokenizer import TiktokenTokenizer, tekken_of, tokenizer_of_encoding
from shardstream.ingest.tokenizer import END_OF_TEXT
from shardstream.ingest.tokenizers import load_tokenizer
from tests.ingest.tokenizer_kinds import GPT2, LLAMA3, TEKKEN_FILES, TEXT, byte_ranks, tiktoken_like

PLUGIN = f"""
RANKS = {{bytes([byte]): byte for byte in range(256)}} | {{b"ab": 256}}
def small():
    return dict(name="small", pat_str={GPT2!r}, mergeable_ranks=RANKS, special_tokens={{"<|endoftext|>": 300}})
def endless():
    return dict(name="endless", pat_str={GPT2!r}, mergeable_ranks=RANKS, special_tokens={{}})
ENCODING_CONSTRUCTORS = {{"small": small, "endless": endless}}
"""


def _run(script: str, tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "tiktoken_ext").mkdir()
    (tmp_path / "tiktoken_ext" / "ours.py").write_text(PLUGIN)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", f"from shardstream.ingest.tokenizers import load_tokenizer\n{script}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths, "TIKTOKEN_CACHE_DIR": ""} | environment,
    )


def test_an_encoding_has_a_name(tmp_path: Path) -> None:
    """What tiktoken knows by name, also through a plugin, is found by it; its end of text is, if it has one."""
    script = """
for name in ("tiktoken:small", "tiktoken:endless"):
    t = load_tokenizer(name)
    print(t.name, t.eos_id, t.bos_id, t.pad_id, t.vocab_size, t.encode_batch(["ab<|endoftext|>"])[0].tolist()[:3])
"""
    done = _run(script, tmp_path)

    assert done.stdout.splitlines() == [
        "tiktoken:small 300 None None 301 [256, 60, 124]",
        "tiktoken:endless None None None 257 [256, 60, 124]",
    ]


def test_an_unknown_encoding_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    """A name that tiktoken does not know is answered by those that it does."""
    done = _run("load_tokenizer('tiktoken:tiny')", tmp_path)

    message = done.stderr.splitlines()[-1]
    assert message.startswith("ValueError: tiktoken:tiny: tiktoken knows no such encoding; it knows ")
    assert " small" in message


def test_an_encoding_that_cannot_be_downloaded_says_what_to_do(tmp_path: Path) -> None:
    """Without a network an encoding that is not in tiktoken's cache is told so, with what helps."""
    proxy = "http://127.0.0.1:9"
    done = _run("load_tokenizer('tiktoken:cl100k_base')", tmp_path, HTTPS_PROXY=proxy, https_proxy=proxy, NO_PROXY="")

    message = done.stderr.splitlines()[-1]
    assert message.startswith("OSError: tiktoken:cl100k_base cannot be downloaded: ")
    assert "set TIKTOKEN_CACHE_DIR to a folder where it was downloaded before" in message


@given(text=TEXT)
def test_ids_are_the_librarys(text: str) -> None:
    """The ids are those of tiktoken for text that holds no special token, whatever it spells."""
    encoding = tiktoken.Encoding("x", pat_str=LLAMA3, mergeable_ranks=byte_ranks(), special_tokens={END_OF_TEXT: 999})

    assert tiktoken_like(LLAMA3).encode_batch([text])[0].tolist() == encoding.encode_ordinary(text)


def test_the_checksum_is_of_all_that_decides_ids() -> None:
    """Ranks, pattern and special tokens change it; the order in which they are given does not."""
    ranks = byte_ranks()
    special = {"<a>": 500, "<b>": 501}

    def sha256(pattern: str = GPT2, ranks: dict[bytes, int] = ranks, special: dict[str, int] = special) -> str:
        encoding = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        return tokenizer_of_encoding(encoding, name="x").sha256

    reversed_ranks, reversed_special = dict(reversed(ranks.items())), dict(reversed(special.items()))
    others = [sha256(LLAMA3), sha256(ranks=ranks | {b"zzz": 480}), sha256(special={"<a>": 500})]

    assert sha256(ranks=reversed_ranks, special=reversed_special) == sha256()
    assert len({sha256(), *others}) == 4


# Tekken


@cache
def both(path: Path) -> tuple[TiktokenTokenizer, Tekkenizer]:
    ours = load_tokenizer(path)
    assert isinstance(ours, TiktokenTokenizer)
    return ours, Tekkenizer.from_file(path)


@pytest.mark.parametrize("path", TEKKEN_FILES, ids=lambda path: path.stem)
@settings(max_examples=50)  # the library that is compared with takes long to load, and tens of milliseconds for a text
@given(text=TEXT | st.text())
def test_tekken_ids_are_those_of_mistrals_library(path: Path, text: str) -> None:
    """Any text has the ids that Mistral's own library gives it."""
    ours, theirs = both(path)

    [ids] = ours.encode_batch([text])

    assert ids.tolist() == theirs.encode(text, bos=False, eos=False)
    assert ours.decode(ids) == text


@pytest.mark.parametrize("path", TEKKEN_FILES, ids=lambda path: path.stem)
def test_tekken_is_mistrals_own(path: Path) -> None:
    """Python's source, and every special token, has the ids of Mistral's own library."""
    ours, theirs = both(path)
    sources = [
        Path(sys.modules[name].__file__ or "").read_text(encoding="utf-8") for name in ("json", "os", "subprocess")
    ]

    assert [ids.tolist() for ids in ours.encode_batch(sources)] == [
        theirs.encode(text, bos=False, eos=False) for text in sources
    ]
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.n_words,
        theirs.bos_id,
        theirs.eos_id,
        theirs.pad_id,
    )
    assert [ours.id_of(token) for token in ours.special_tokens()] == list(range(theirs.num_special_tokens))
    assert [theirs.id_to_piece(number) for number in range(theirs.num_special_tokens)] == list(ours.special_tokens())


def config(**changes: Any) -> dict[str, Any]:
    return {"config": {"pattern": LLAMA3, "default_vocab_size": 290, "default_num_special_tokens": 30} | changes}


def small_tekken(**changes: Any) -> bytes:
    tokens = sorted(byte_ranks().items(), key=lambda item: item[1])
    document = {
        **config(),
        "vocab": [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for token, rank in tokens],
        "special_tokens": None,
    }
    return json.dumps(document | changes).encode()


def test_tekken_takes_of_its_vocabulary_what_the_configuration_says() -> None:
    """Special tokens come first, those that the file does not name are spare; the vocabulary ends where it says."""
    unnamed = tekken_of(small_tekken(), name="small", source="small.json")
    named = tekken_of(
        small_tekken(special_tokens=[{"rank": 1, "token_str": "</s>", "is_control": True}]),
        name="small",
        source="small.json",
    )

    assert (unnamed.vocab_size, named.vocab_size) == (290, 290)
    assert (unnamed.eos_id, named.eos_id) == (2, 1)
    assert unnamed.special_tokens()[19:21] == ("[TOOL_CONTENT]", "<SPECIAL_20>")
    assert named.special_tokens()[:3] == ("<SPECIAL_0>", "</s>", "<SPECIAL_2>")
    assert unnamed.encode_batch(["A"])[0].tolist() == [30 + ord("A")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": None}, "TypeError: "),
        (config(pattern=r"\p{L}+"), r"the pattern of tokenizer here leaves out \d+ of the \d+ bytes of this text"),
        (
            config(pattern=r"\S+|[^\S\n]+"),
            r"the pattern of tokenizer here leaves out \d+ of the \d+ bytes of this text",
        ),
        (config(pattern=""), "PanicException: "),
        (config(pattern=r"\p{L}*"), "PanicException: "),
        (config(default_num_special_tokens=10**12), "default_num_special_tokens is 1000000000000; wanted 0 to 65536"),
        (config(default_num_special_tokens=-1), "default_num_special_tokens is -1; wanted 0 to 65536"),
        (config(default_vocab_size=float("inf")), "OverflowError: "),
        (config(default_vocab_size=0), "256 of the 256 bytes have no id"),
        ({"vocab": []}, "256 of the 256 bytes have no id"),
        (
            {"vocab": [{"rank": 5, "token_bytes": "AA=="}]},
            r"the ranks of its vocabulary are not 0, 1, 2 \.\.\., each once",
        ),
        ({"vocab": [{"rank": 0}]}, "KeyError: 'token_bytes'"),
        ({"vocab": [{"rank": -1, "token_bytes": "AA=="}]}, "the ranks of its vocabulary are not "),
        ({"special_tokens": [7]}, "TypeError: "),
        (
            {"special_tokens": [{"rank": 30, "token_str": "<s>"}]},
            "its special tokens are not 30, each with a rank of its own",
        ),
        ({"special_tokens": [{"rank": -1, "token_str": "<s>"}]}, "its special tokens are not 30, "),
        *(
            ({"special_tokens": [{"rank": first, "token_str": "<s>"}, other]}, "its special tokens are not 30, ")
            for first, other in [
                (3, {"rank": 3, "token_str": "</s>"}),
                (3, {"rank": 4, "token_str": "<s>"}),
                (3, {"rank": 4, "token_str": "<SPECIAL_5>"}),
            ]
        ),
    ],
)
def test_a_damaged_tekken_file_is_refused(changes: dict[str, Any], reason: str) -> None:
    """What is missing or makes no sense is named with the file."""
    with pytest.raises(ValueError, match=rf"^here\.json: not a tekken file: .*{reason}"):
        tekken_of(small_tekken(**changes), name="here", source="here.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(small_tekken()[:-9], "Unterminated string "), (b"[" * 100_000, "RecursionError: "), (b"[7]", "TypeError: ")],
    ids=["truncated", "too deep", "a list"],
)
def test_what_is_no_tekken_file_is_refused(content: bytes, reason: str) -> None:
    """Half a file, and JSON of another shape, is named with the file."""
    with pytest.raises(ValueError, match=rf"^here\.json: not a tekken file: {reason}"):
        tekken_of(content, name="here", source="here.json")


def test_text_that_a_pattern_leaves_out_is_not_lost() -> None:
    """Where a pattern matches only some texts as a whole, the others are refused, with how much would be missing."""
    letters = tiktoken_like(r"\p{L}+")

    assert letters.encode_batch(["ab", ""])[0].tolist() == [*b"ab"]
    with pytest.raises(ValueError, match="^the pattern of tokenizer small leaves out 7 of the 11 bytes of this text$"):
        letters.encode_batch(["ab", "ab 12 é…"])


def test_a_pattern_that_the_library_cannot_run_is_refused() -> None:
    """Where the library panics, that is an error of the text, and not the end of the process."""
    with pytest.raises(ValueError, match="^PanicException: "):
        tiktoken_like(r"\p{L}*").encode_batch(["ab 12"])


def test_white_space_without_end_is_refused() -> None:
    """A run of white space that the library cannot take is an error, and no other ids."""
    with pytest.raises(ValueError, match="Max stack size exceeded"):
        tiktoken_like(LLAMA3).encode_batch([" " * 1_100_000 + "x"])
