"""Manifests that are broken or meant to harm: each is a FormatError that says what is wrong, and never anything else.

Most are a valid manifest with one thing spoilt; ``spoilt`` puts a value at a path such as ``("shards", 1, "name")``.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

import shardstream
from shardstream import FormatError, IntegrityError, Manifest, ShardstreamError, StorageError

Fields = dict[str, Any]
WriteRaw = Callable[..., Path]
FieldPath = tuple["str | int", ...]

INT64_MAX = 2**63 - 1
SHA256 = "0123456789abcdef" * 4
ROW = ("shards", 1)

# Field, JSON type, and whether it may be null.
TYPES: dict[FieldPath, tuple[str, bool]] = {
    ("format",): ("str", False),
    ("version",): ("int", False),
    ("dtype",): ("str", False),
    ("vocab_size",): ("int", False),
    ("shard_tokens",): ("int", False),
    ("num_tokens",): ("int", False),
    ("num_documents",): ("int", False),
    ("tokenizer",): ("object", True),
    ("tokenizer", "name"): ("str", True),
    ("tokenizer", "sha256"): ("str", True),
    ("tokenizer", "eos_id"): ("int", True),
    ("tokenizer", "bos_id"): ("int", True),
    ("tokenizer", "pad_id"): ("int", True),
    ("creator",): ("str", False),
    ("metadata",): ("object", False),
    ("shards",): ("array", False),
    ("shards", 1): ("object", False),
    ("shards", 1, "name"): ("str", False),
    ("shards", 1, "num_tokens"): ("int", False),
    ("shards", 1, "num_bytes"): ("int", False),
    ("shards", 1, "sha256"): ("str", True),
    ("shards", 1, "min_token"): ("int", True),
    ("shards", 1, "max_token"): ("int", True),
    ("shards", 1, "num_eos"): ("int", True),
    ("shards", 1, "byte_offset"): ("int", False),
    ("shards", 1, "location"): ("str", True),
    ("shards", 1, "stored"): ("object", True),
    ("shards", 2, "stored", "codec"): ("str", False),
    ("shards", 2, "stored", "num_bytes"): ("int", False),
    ("shards", 2, "stored", "sha256"): ("str", False),
    ("shards", 1, "documents"): ("object", True),
    ("shards", 0, "documents", "num_documents"): ("int", False),
    ("shards", 0, "documents", "num_bytes"): ("int", False),
    ("shards", 0, "documents", "sha256"): ("str", False),
}
VALUES: list[tuple[str, Any]] = [
    ("str", "7"),
    ("int", 7),
    ("float", 1.0),
    ("float", 1.5),
    ("bool", True),
    ("null", None),
    ("array", [7]),
    ("object", {"a": 7}),
]
MAX_OF_COUNT = (INT64_MAX, [2**63, 2**64, 10**400])
MAX_OF_ID = (2**32 - 1, [2**32, 2**63, 2**64])
# Field, least value, greatest value, and values beyond it.
BOUNDS: dict[FieldPath, tuple[int, tuple[int, list[int]]]] = {
    ("version",): (1, MAX_OF_COUNT),
    ("vocab_size",): (1, (2**32, [2**32 + 1, 2**63])),
    ("shard_tokens",): (1, MAX_OF_COUNT),
    ("num_tokens",): (0, MAX_OF_COUNT),
    ("num_documents",): (0, MAX_OF_COUNT),
    ("tokenizer", "eos_id"): (0, MAX_OF_ID),
    ("tokenizer", "bos_id"): (0, MAX_OF_ID),
    ("tokenizer", "pad_id"): (0, MAX_OF_ID),
    ("shards", 1, "num_tokens"): (1, MAX_OF_COUNT),
    ("shards", 1, "num_bytes"): (1, MAX_OF_COUNT),
    ("shards", 1, "min_token"): (0, MAX_OF_ID),
    ("shards", 1, "max_token"): (0, MAX_OF_ID),
    ("shards", 1, "num_eos"): (0, MAX_OF_COUNT),
    ("shards", 1, "byte_offset"): (0, MAX_OF_COUNT),
    ("shards", 2, "stored", "num_bytes"): (1, MAX_OF_COUNT),
    ("shards", 0, "documents", "num_documents"): (0, MAX_OF_COUNT),
    ("shards", 0, "documents", "num_bytes"): (1, (2**31, [2**31 + 1, 2**63, 2**64])),
}
REQUIRED = ["version", "dtype", "vocab_size", "shard_tokens", "num_tokens", "num_documents", "shards"]
REQUIRED_IN_ROW: list[FieldPath] = [
    ("shards", 1, "name"),
    ("shards", 1, "num_tokens"),
    ("shards", 1, "num_bytes"),
    ("shards", 2, "stored", "codec"),
    ("shards", 2, "stored", "num_bytes"),
    ("shards", 2, "stored", "sha256"),
    ("shards", 0, "documents", "num_documents"),
    ("shards", 0, "documents", "num_bytes"),
    ("shards", 0, "documents", "sha256"),
]


def dotted(path: FieldPath) -> str:
    """The path as messages write it."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def spoilt(fields: Fields, path: FieldPath, value: Any) -> Fields:
    """A copy of the manifest with ``value`` at ``path``."""
    copied = copy.deepcopy(fields)
    place: Any = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copied


def message_of(manifest: Fields | bytes) -> str:
    """The message of the FormatError, without the source that it begins with."""
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    with pytest.raises(FormatError) as caught:
        Manifest.parse(data, source="the source")
    message = str(caught.value)
    assert message.startswith("the source: ")
    return message.removeprefix("the source: ")


def names_of(paths: list[FieldPath] | dict[FieldPath, Any]) -> list[Any]:
    return [pytest.param(path, id=dotted(path)) for path in paths]


# Not a manifest at all


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "manifest: Input data was truncated", id="empty"),
        pytest.param(b" \n", "manifest: Input data was truncated", id="blank"),
        pytest.param(b"tokens", "manifest: JSON is malformed: invalid character (byte 4)", id="text"),
        pytest.param(b"\x93NUMPY", "manifest: JSON is malformed: invalid character (byte 0)", id="numpy"),
        pytest.param(
            b"\xef\xbb\xbf{}", "manifest: JSON is malformed: invalid character (byte 0)", id="byte-order-mark"
        ),
        pytest.param("{}".encode("utf-16"), "manifest: JSON is malformed: invalid character (byte 0)", id="utf-16"),
        pytest.param(b"{'a': 1}", "manifest: JSON is malformed: object keys must be strings (byte 1)", id="python"),
        pytest.param(b"[]", "manifest: Expected `object`, got `array`", id="array"),
        pytest.param(b"7", "manifest: Expected `object`, got `int`", id="number"),
        pytest.param(b'"{}"', "manifest: Expected `object`, got `str`", id="string"),
        pytest.param(b"null", "manifest: Expected `object`, got `null`", id="null"),
        pytest.param(b"{}", "not a shardstream manifest: format is None, wanted 'shardstream'", id="empty-object"),
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes, message: str) -> None:
    """Bytes that are not JSON, and JSON that is not an object, are told apart in the message."""
    assert message_of(data) == message


def test_every_truncation_is_refused(fields: Fields) -> None:
    """A manifest cut anywhere is refused: no prefix of one is one."""
    data = json.dumps(fields).encode()

    messages = {message_of(data[:size]) for size in range(len(data))}

    assert "manifest: Input data was truncated" in messages


@pytest.mark.parametrize("tail", [b"x", b"{}", b"\0", b","])
def test_what_follows_the_manifest_is_refused(fields: Fields, tail: bytes) -> None:
    """Nothing but white space may follow the object."""
    assert message_of(json.dumps(fields).encode() + tail).startswith("manifest: JSON is malformed: trailing characters")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "nan", "1e999", "-1e999"])
@pytest.mark.parametrize("path", names_of([("unknown",), ("metadata", "loss"), ("shards", 1, "unknown")]))
def test_numbers_are_finite(fields: Fields, path: FieldPath, constant: str) -> None:
    """NaN and the infinities are no JSON, wherever they stand, nor is a number too large for a double."""
    data = json.dumps(spoilt(fields, path, "HERE")).replace('"HERE"', constant).encode()

    assert re.search(r"malformed: invalid|: Number out of range", message_of(data))


@pytest.mark.parametrize(
    "path",
    names_of(
        [
            ("creator",),
            ("unknown",),
            ("format",),
            ("dtype",),
            ("metadata", "key"),
            ("tokenizer", "name"),
            ("shards", 1, "name"),
            ("shards", 1, "sha256"),
            ("shards", 1, "location"),
            ("shards", 1, "unknown"),
            ("shards", 2, "stored", "codec"),
        ]
    ),
)
@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"], ids=lambda text: text.hex()
)
def test_text_is_utf8(fields: Fields, path: FieldPath, text: bytes) -> None:
    """Bytes that are not UTF-8 are refused in every string, overlong forms and encoded surrogates among them."""
    data = json.dumps(spoilt(fields, path, "HERE")).encode().replace(b'"HERE"', b'"' + text + b'"')

    assert "'utf-8' codec can't decode byte" in message_of(data)


@pytest.mark.parametrize(
    "parent", names_of([(), ("metadata",), ("tokenizer",), ("shards", 1), ("shards", 2, "stored")])
)
def test_field_names_are_utf8(fields: Fields, parent: FieldPath) -> None:
    """Bytes that are not UTF-8 are refused in the name of a field, at every level."""
    data = json.dumps(spoilt(fields, (*parent, "HERE"), 1)).encode().replace(b'"HERE"', b'"\xff"')

    assert "'utf-8' codec can't decode byte" in message_of(data)


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00", r"\ud800\ud800", r"\ud800x", r"\udc00\ud800"])
@pytest.mark.parametrize("path", names_of([("creator",), ("metadata", "key"), ("shards", 1, "name"), ("unknown",)]))
def test_surrogates_come_in_pairs(fields: Fields, path: FieldPath, text: str) -> None:
    """Half a surrogate pair is no text."""
    data = json.dumps(spoilt(fields, path, "HERE")).replace('"HERE"', f'"{text}"').encode()

    assert re.search(r"^manifest: (JSON is malformed: |Input data was truncated)", message_of(data))


@pytest.mark.parametrize("path", names_of([("metadata",), ("unknown",), ("shards",), ("shards", 1, "unknown")]))
@pytest.mark.parametrize(
    "nested",
    [
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="arrays"),
        pytest.param(b"[" * 100_000, id="open-arrays"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="objects"),
    ],
)
def test_nesting_is_bounded(fields: Fields, path: FieldPath, nested: bytes) -> None:
    """A hundred thousand brackets overflow no stack."""
    data = json.dumps(spoilt(fields, path, "HERE")).encode().replace(b'"HERE"', nested)

    assert "recursion depth" in message_of(data)


# Version


def test_higher_version_is_refused(fields: Fields) -> None:
    """A manifest of a later version is refused, and the message says what helps."""
    assert message_of(fields | {"version": 2}) == (
        "version is 2, this shardstream reads up to 1; install a newer shardstream"
    )


def test_higher_version_is_told_before_anything_else() -> None:
    """Another version may give every other field another type, so nothing else of it is looked at."""
    later = {"format": "shardstream", "version": 2, "dtype": 7, "shards": "in another file", "vocab_size": None}

    assert message_of(later).startswith("version is 2, this shardstream reads up to 1")


def test_other_formats_are_refused(fields: Fields) -> None:
    """JSON of another system is told by its name, or by having none."""
    assert message_of(fields | {"format": "mds"}) == "not a shardstream manifest: format is 'mds', wanted 'shardstream'"
    del fields["format"]
    assert message_of(fields) == "not a shardstream manifest: format is None, wanted 'shardstream'"


# Types and bounds of single fields


@pytest.mark.parametrize(
    ("path", "got", "value"),
    [
        pytest.param(path, got, value, id=f"{dotted(path)}={value!r}")
        for path, (wanted, is_nullable) in TYPES.items()
        for got, value in VALUES
        if got != wanted and not (is_nullable and got == "null")
    ],
)
def test_every_field_has_one_type(fields: Fields, path: FieldPath, got: str, value: Any) -> None:
    """A value of another JSON type is refused, with the field, the type wanted and the type found."""
    wanted, is_nullable = TYPES[path]

    message = message_of(spoilt(fields, path, value))

    assert message == f"{dotted(path)}: Expected `{wanted}{' | null' if is_nullable else ''}`, got `{got}`"


@pytest.mark.parametrize("path", names_of(BOUNDS))
def test_every_count_has_a_least_value(fields: Fields, path: FieldPath) -> None:
    """A count below its least value is refused, with the field and the bound."""
    least, _ = BOUNDS[path]

    for value in (least - 1, -(2**31), -(2**63), -(2**64)):
        message = message_of(spoilt(fields, path, value))
        assert message.startswith(f"{dotted(path)}: Expected `int")
        assert message.endswith(f" >= {least}")


@pytest.mark.parametrize("path", names_of(BOUNDS))
def test_every_count_has_a_greatest_value(fields: Fields, path: FieldPath) -> None:
    """A count above its greatest value is refused, with the field and the bound; no number is wrapped or rounded."""
    _, (greatest, values) = BOUNDS[path]

    for value in values:
        message = message_of(spoilt(fields, path, value))
        assert message.startswith(f"{dotted(path)}: ")
        assert message.endswith((f" <= {greatest}", "Integer value out of range"))


def test_an_endless_number_is_refused(fields: Fields) -> None:
    """A whole number of ten thousand digits is refused even where any number may stand."""
    data = json.dumps(fields | {"unknown": 0}).replace('"unknown": 0', '"unknown": 1' + "0" * 10_000)

    assert message_of(data.encode()) == "unknown: Integer value out of range"


@pytest.mark.parametrize("path", names_of([path for path in TYPES if path[-1] == "sha256"]))
@pytest.mark.parametrize(
    "value", ["", SHA256[1:], SHA256 + "0", SHA256.upper(), "g" + SHA256[1:], SHA256 + "\n", "\n" + SHA256]
)
def test_checksums_are_64_lower_case_hex_digits(fields: Fields, path: FieldPath, value: str) -> None:
    """A checksum of another length, case or alphabet is refused."""
    assert message_of(spoilt(fields, path, value)).startswith(f"{dotted(path)}: Expected `str")


@pytest.mark.parametrize(
    ("path", "value", "bound"),
    [
        (("tokenizer", "name"), "x" * 1025, "<= 1024"),
        (("shards", 1, "location"), "", ">= 1"),
        (("shards", 1, "location"), "x" * 4097, "<= 4096"),
    ],
)
def test_strings_have_bounds(fields: Fields, path: FieldPath, value: str, bound: str) -> None:
    """A string that is too long, or empty where something must be named, is refused with the bound."""
    message = message_of(spoilt(fields, path, value))

    assert message.startswith(f"{dotted(path)}: Expected `str")
    assert message.endswith(f"of length {bound}")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dtype",), "<u2"),
        (("dtype",), "int32"),
        (("dtype",), "uint64"),
        (("dtype",), "UINT16"),
        (("shards", 2, "stored", "codec"), "gzip"),
        (("shards", 2, "stored", "codec"), ""),
    ],
)
def test_choices_are_closed(fields: Fields, path: FieldPath, value: str) -> None:
    """A dtype or codec that version 1 does not have is refused by its name."""
    assert message_of(spoilt(fields, path, value)) == f"{dotted(path)}: Invalid enum value {value!r}"


@pytest.mark.parametrize("name", REQUIRED)
def test_required_fields_are_missed(fields: Fields, name: str) -> None:
    """A manifest without a required field is refused, and the message names the field."""
    del fields[name]

    # Without a version nothing says that it is not a later one; it counts as incomplete, not as old.
    assert message_of(fields) == f"missing field {name!r}; the manifest is incomplete"


@pytest.mark.parametrize("path", names_of(REQUIRED_IN_ROW))
def test_required_fields_of_a_row_are_missed(fields: Fields, path: FieldPath) -> None:
    """A row without a required field is refused, and the message names the row and the field."""
    row = fields["shards"][path[1]]
    del (row[path[2]] if len(path) > len(ROW) + 1 else row)[path[-1]]

    assert message_of(fields) == f"{dotted(path[:-1])}: Object missing required field `{path[-1]}`"


def test_an_unknown_field_of_stored_is_refused(fields: Fields) -> None:
    """How bytes are stored must be understood whole: an unknown field there is refused."""
    message = message_of(spoilt(fields, ("shards", 2, "stored", "later"), 1))

    assert message == "shards[2].stored: Object contains unknown field `later`"


def test_an_unknown_field_of_documents_is_ignored(fields: Fields) -> None:
    """A side file is read or left: what a later version says of it does not keep anybody from the tokens."""
    manifest = Manifest.parse(json.dumps(spoilt(fields, ("shards", 0, "documents", "later"), 1)).encode())

    assert manifest == Manifest.parse(json.dumps(fields).encode())


@pytest.mark.parametrize("name", ["x" * 250 + ".bin", "x/" * 505 + "y.bin.zst"])
def test_the_name_of_a_side_file_is_bounded_too(fields: Fields, name: str) -> None:
    """A shard's name that leaves no room for its side file's is refused where there is one, and only there."""
    alone = Manifest.parse(json.dumps(spoilt(fields, (*ROW, "name"), name)).encode())

    assert alone.shards[1].name == name
    assert message_of(spoilt(fields, ("shards", 0, "name"), name)).startswith(
        f"shard {name!r}: its name leaves no room for that of its side file; wanted a shorter one"
    )


def test_errors_beside_unknown_fields_name_their_row(fields: Fields) -> None:
    """A row with unknown fields is checked like any other, and the message names the row."""
    fields["shards"][0]["later"] = 1

    assert message_of(spoilt(fields, (*ROW, "num_tokens"), "8")) == "shards[1].num_tokens: Expected `int`, got `str`"
    assert message_of(spoilt(fields, ROW, [])) == "shards[1]: Expected `object`, got `array`"


# Fields that contradict one another


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("num_tokens",), 21, "num_tokens is 21, but the rest of the manifest makes it 20"),
        (("num_tokens",), 19, "num_tokens is 19, but the rest of the manifest makes it 20"),
        (("dtype",), "uint32", "dtype is uint32, but the rest of the manifest makes it uint16"),
        (("shard_tokens",), 7, "shard 'a.bin': num_tokens is 8, more than shard_tokens, 7"),
        ((*ROW, "num_tokens"), 7, "shard 'b/c=1.bin': num_bytes is 16, but 7 tokens take 14"),
        ((*ROW, "num_bytes"), 17, "shard 'b/c=1.bin': num_bytes is 17, but 8 tokens take 16"),
        ((*ROW, "num_tokens"), 2**62, f"shard 'b/c=1.bin': num_bytes is 16, but {2**62} tokens take {2**63}"),
        ((*ROW, "max_token"), 1000, "shard 'b/c=1.bin': max_token is 1000, not below vocab_size 1000"),
        ((*ROW, "min_token"), 1000, "shard 'b/c=1.bin': min_token is 1000, not below vocab_size 1000"),
        (
            (*ROW,),
            {"name": "b", "num_tokens": 1, "num_bytes": 2, "min_token": 2, "max_token": 1},
            "shard 'b': min_token 2 is above max_token 1",
        ),
        (("tokenizer", "bos_id"), 1000, "tokenizer.bos_id is 1000, not below vocab_size 1000"),
        (("tokenizer", "pad_id"), 1000, "tokenizer.pad_id is 1000, not below vocab_size 1000"),
        (("tokenizer",), {}, "shard 'b/c=1.bin': num_eos is 8, but tokenizer.eos_id is absent"),
        ((*ROW, "num_eos"), 9, "shard 'b/c=1.bin': num_eos is 9, more than its 8 tokens"),
        (
            (*ROW, "byte_offset"),
            3,
            "shard 'b/c=1.bin': byte_offset is 3; wanted a multiple of 2, and none in a compressed shard",
        ),
        (
            ("shards", 2, "byte_offset"),
            2,
            "shard 'd.bin': byte_offset is 2; wanted a multiple of 2, and none in a compressed shard",
        ),
        ((*ROW, "name"), "a.bin", "shard 'a.bin' is listed twice; names must be unique"),
        (
            (*ROW, "name"),
            "a.documents.parquet",
            "shard 'a.documents.parquet' is listed twice; names must be unique",
        ),
        (
            ROW,
            {
                "name": "a.bin.zst",
                "num_tokens": 8,
                "num_bytes": 16,
                "documents": {"num_documents": 0, "num_bytes": 600, "sha256": SHA256},
            },
            "side file 'a.documents.parquet' is listed twice; names must be unique",
        ),
        (
            ("shards", 0, "documents", "num_documents"),
            9,
            "shard 'a.bin': documents.num_documents is 9, more than its 8 tokens",
        ),
        (("tokenizer", "eos_id"), 1000, "tokenizer.eos_id is 1000, not below vocab_size 1000"),
        (("vocab_size",), 999, "shard 'b/c=1.bin': max_token is 999, not below vocab_size 999"),
        (("vocab_size",), 65537, "shard 'a.bin': num_bytes is 16, but 8 tokens take 32"),
    ],
)
def test_contradictions_are_refused(fields: Fields, path: FieldPath, value: Any, message: str) -> None:
    """Fields that cannot all be true are refused, with both figures."""
    assert message_of(spoilt(fields, path, value)) == message


def test_positions_fit_64_bits(fields: Fields) -> None:
    """Shards that are possible one by one, but have too many tokens together, are refused."""
    num_tokens = 2**62 - 1
    fields["shards"] = [{"name": f"{i}", "num_tokens": num_tokens, "num_bytes": 2 * num_tokens} for i in range(3)]
    fields["shard_tokens"] = num_tokens

    assert message_of(fields) == (f"num_tokens is {3 * num_tokens}, more than positions can count ({INT64_MAX})")


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/passwd", "a/../b", "a/..", "..", ".", "./a", "a/./b", "~", "~root/x"),
        *(".hidden", "a/.hidden", "a//b", "a/", "/", "//host/share", "a\\b", "..\\x", "\\\\host\\share", "C:x", "C:/x"),
        *("", " ", "a b", " a", "a ", "a\n", "a\nb", "a\rb", "a\tb", "a\0b", "a\x1b[2Jb", "\ufeffa"),
        *("http://host/x", "s3://bucket/x", "file:///etc/passwd", "a?b", "a#b", "a%2e%2e", "a*", "a|b", "$HOME", "`x`"),
        *("é", "\u0430", "a\u202eb", "\uff0e\uff0e/x", "\U0001f418", "-rf", "=x"),
        *("manifest.json", "MANIFEST.JSON", "Manifest.json"),
        *("x" * 1025, "x/" * 512 + "y"),
    ],
)
def test_names_are_plain_and_relative(fields: Fields, name: str) -> None:
    """A name that leaves the folder, hides, is the manifest, or means something to a shell, URL or system is refused."""
    message = message_of(spoilt(fields, (*ROW, "name"), name))

    assert message == (
        f"shard {name!r}: not a plain relative name; wanted letters, digits and _ . = - between slashes, and no "
        "leading dot"
    )


@pytest.mark.parametrize(
    "name",
    ["a", "0", "_", "shard-000000.bin", "part=7/a.b-c_d.bin", "A/b/C", "a..b", "manifest.json.bak", "x/" * 511 + "yz"],
)
def test_ordinary_names_are_accepted(fields: Fields, name: str) -> None:
    """Letters, digits and ``_ . = -`` make a name, in folders of any depth."""
    manifest = Manifest.parse(json.dumps(spoilt(fields, (*ROW, "name"), name)).encode())

    assert manifest.shards[1].name == name


# Sizes


LONG = "x" * 10**6


@pytest.mark.parametrize(
    "path",
    [("format",), ("dtype",), (*ROW, "name"), ("shards", 2, "stored", LONG), ("shards", 2, "stored", "codec")],
    ids=["format", "dtype", "name", "unknown", "codec"],
)
def test_messages_stay_short(fields: Fields, path: FieldPath) -> None:
    """A message does not repeat a megabyte of what it complains about."""
    assert len(message_of(spoilt(fields, path, LONG))) < 2_000


def test_a_gigabyte_of_manifest_is_refused_unread(tmp_path: Path) -> None:
    """A manifest of a gigabyte is refused with the bound, and no more of it than that comes into memory."""
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**30)

    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"manifest.json: more than 268435456 bytes of manifest; write fewer"):
            shardstream.open(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**28 + 2**20


def test_opening_takes_memory_by_the_manifest_not_by_the_bound(write_raw: WriteRaw) -> None:
    """A dataset with a small manifest opens in little memory: the bound is not reserved beforehand."""
    folder = write_raw({"a.bin": [1, 2, 3]})

    tracemalloc.start()
    try:
        shardstream.open(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**24


@pytest.mark.parametrize("path", names_of([("unknown",), ("metadata", "x")]))
def test_free_fields_do_not_fill_memory(fields: Fields, path: FieldPath) -> None:
    """Free JSON that would grow twentyfold when it is parsed stays bounded: it is refused, or kept as it is."""
    data = json.dumps(spoilt(fields, path, "HERE")).encode().replace(b'"HERE"', b"[" + b"{}," * 2**23 + b"{}]")

    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            Manifest.parse(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 * len(data)


# Rows that ask for trust, or for what this version cannot do


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../outside.bin", "a.bin", "https://host/a.bin", "file:///etc/passwd", "x y"]
)
def test_locations_need_trust(write_raw: WriteRaw, location: str) -> None:
    """A manifest that sends the reader anywhere by a location is refused at open, unless the user trusts it."""
    folder = write_raw({"a.bin": [1, 2, 3]}, rows={"location": location})

    with pytest.raises(FormatError, match=r"shard a\.bin lies elsewhere, at .*trust_locations=True"):
        shardstream.open(folder)


def test_locations_forge_no_lines(write_raw: WriteRaw) -> None:
    """A location is quoted in the message: line ends and control characters of a stranger reach no log or terminal."""
    folder = write_raw({"a.bin": [1, 2, 3]}, rows={"location": "x\n\x1b[2Jall is well"})

    with pytest.raises(FormatError) as caught:
        shardstream.open(folder)
    assert str(caught.value).isprintable()


def test_trusted_locations_are_followed(write_raw: WriteRaw, tmp_path: Path) -> None:
    """With trust a location leads out of the folder, counted from the folder or from the root."""
    for location in ("../outside.bin", str(tmp_path / "outside.bin")):
        folder = write_raw({"a.bin": [1, 2, 3]}, rows={"location": location})
        (folder / "a.bin").replace(tmp_path / "outside.bin")

        with shardstream.open(folder, trust_locations=True) as dataset:
            assert dataset[:].tolist() == [1, 2, 3]
            assert dataset.verify().ok


def test_a_location_with_a_null_byte_is_an_error_of_ours(write_raw: WriteRaw) -> None:
    """Even with trust, a location that no system can open is a ShardstreamError or a problem that verify reports."""
    folder = write_raw({"a.bin": [1, 2, 3]}, rows={"location": "x\0y"})

    with pytest.raises(ShardstreamError):
        shardstream.open(folder, trust_locations=True).windows([0], 2)
    with contextlib.suppress(FormatError):
        assert not shardstream.open(folder, trust_locations=True).verify().ok


def test_raw_bytes_that_claim_to_be_compressed_are_no_tokens(write_raw: WriteRaw) -> None:
    """A shard that is stored otherwise than its row says is an error that names it: its bytes are never taken for tokens."""
    folder = write_raw({"a.bin": [1, 2, 3]}, rows={"stored": {"codec": "zstd", "num_bytes": 6, "sha256": SHA256}})

    with pytest.raises(
        IntegrityError, match=r"a\.bin: checksum of the stored object is sha256 .*; see `shardstream verify"
    ):
        shardstream.open(folder)[:]


# The manifest as a file


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    """A named pipe under the manifest's name is an error at once, not a wait for somebody to write into it."""
    os.mkfifo(tmp_path / "manifest.json")

    with ThreadPoolExecutor(1) as executor:
        opening = executor.submit(shardstream.open, tmp_path)
        is_done = bool(wait([opening], timeout=5).done)
        if not is_done:  # let the thread go
            (tmp_path / "manifest.json").open("wb").close()

    assert is_done
    with pytest.raises(ShardstreamError, match=r"manifest\.json: .*not a regular file"):
        opening.result()


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    """A folder under the manifest's name is a StorageError that says what a dataset is."""
    (tmp_path / "manifest.json").mkdir()

    with pytest.raises(StorageError, match=r"manifest\.json: .*; a dataset is a folder or URL with a manifest\.json"):
        shardstream.open(tmp_path)


def test_messages_name_the_manifest(write_raw: WriteRaw) -> None:
    """What is wrong with a manifest is told with its full path."""
    folder = write_raw({"a.bin": [1, 2, 3]}, num_tokens=4)

    with pytest.raises(FormatError, match=rf"^{re.escape(str(folder))}/manifest\.json: num_tokens is 4"):
        shardstream.open(folder)
