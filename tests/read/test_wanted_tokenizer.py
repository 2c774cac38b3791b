"""The tokenizer that a reader counts on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardstream.errors import FormatError
from shardstream.format.manifest import TokenizerIdentity
from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.read.wanted_tokenizer import check_tokenizer

BYTES = ByteTokenizer()
RECORDED = TokenizerIdentity(name="bytes", sha256=BYTES.sha256, eos_id=256)


@pytest.mark.parametrize(
    "wanted",
    [
        BYTES.sha256,
        BYTES.sha256.upper(),
        {"sha256": BYTES.sha256},
        {"name": "bytes", "eos_id": 256, "pad_id": None},
        BYTES,
        SimpleNamespace(sha256=BYTES.sha256, name="/data/bytes"),
        SimpleNamespace(sha256=None, name="bytes"),
        RECORDED,
    ],
    ids=[
        "sha256",
        "capital digits",
        "mapping",
        "some fields",
        "tokenizer",
        "another name of it",
        "name alone",
        "identity",
    ],
)
def test_the_same_tokenizer_is_accepted(wanted: Any) -> None:
    """What the manifest says is enough; None says nothing, and a checksum more than a name."""
    check_tokenizer("there", RECORDED, wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("0" * 64, f"there: tokenizer.sha256 is '{BYTES.sha256}', wanted '{'0' * 64}'; another tokenizer"),
        ({"name": "bytes", "eos_id": 0}, "there: tokenizer.eos_id is 256, wanted 0; another tokenizer"),
        ({"name": "gpt2"}, "there: tokenizer.name is 'bytes', wanted 'gpt2'; another tokenizer"),
        ({"pad_id": 7}, "there: wanted tokenizer.pad_id 7, but the manifest does not say which it is; open without"),
        (
            SimpleNamespace(sha256=BYTES.sha256, bos_id=1),
            "there: wanted tokenizer.bos_id 1, but the manifest does not say",
        ),
    ],
)
def test_another_tokenizer_is_refused(wanted: Any, message: str) -> None:
    """The field that differs, or that the manifest lacks, is named, with what was found and wanted."""
    with pytest.raises(FormatError) as refused:
        check_tokenizer("there", RECORDED, wanted)

    assert str(refused.value).startswith(message)


def test_a_dataset_of_nobody_is_refused() -> None:
    """A manifest without a tokenizer does not say that it is the wanted one."""
    with pytest.raises(FormatError, match="wanted tokenizer.name 'bytes', but the manifest does not say which it is"):
        check_tokenizer("there", None, {"name": "bytes"})


@pytest.mark.parametrize(
    "wanted",
    [
        *("gpt2", "g" * 64, {"sha256": "bytes"}, {"sha256": 7}, {"sha256": None}, {}, {"vocab": 9}, 3.5, 7),
        *(Path("bytes"), SimpleNamespace(name="bytes"), SimpleNamespace(sha256=None)),
    ],
    ids=repr,
)
def test_what_names_no_tokenizer_is_wrong_use(wanted: Any) -> None:
    """A name in the place of a checksum, an unknown field, a file, or nothing at all would enforce nothing of content."""
    with pytest.raises(ValueError, match=r"; wanted a sha256 of 64 hex digits, or any of name, sha256, eos_id, "):
        check_tokenizer("there", RECORDED, wanted)
