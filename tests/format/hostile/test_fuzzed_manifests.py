"""Manifests mutated at random: each is parsed, or refused with a FormatError, and nothing else ever happens."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardstream import FormatError, Manifest

SHA256 = "0123456789abcdef" * 4
FIELDS: dict[str, Any] = {
    "format": "shardstream",
    "version": 1,
    "dtype": "uint16",
    "vocab_size": 1000,
    "shard_tokens": 8,
    "num_tokens": 12,
    "num_documents": 3,
    "tokenizer": {"name": "t\u00e9st", "sha256": SHA256, "eos_id": 7},
    "creator": "fuzz",
    "metadata": {"a": [1, -2.5e-3, None, True, "\\"], "b": {"c": {}}},
    "later": [{"x": 2**70}],
    "shards": [
        {"name": "a.bin", "num_tokens": 8, "num_bytes": 16, "sha256": SHA256, "byte_offset": 4, "min_token": 0},
        {
            "name": "b/c.bin",
            "num_tokens": 4,
            "num_bytes": 8,
            "max_token": 999,
            "num_eos": 4,
            "location": "/x",
            "z": "\u00e9",
        },
    ],
}
SEEDS = [
    json.dumps(FIELDS, ensure_ascii=False).encode(),
    json.dumps(FIELDS, indent=1).encode(),
    Manifest.parse(json.dumps(FIELDS).encode()).to_json(),
]
FRAGMENTS = [
    *(bytes([byte]) for byte in b'"\\{}[],:-\0\xff\xc3'),
    *(b"null", b"true", b"1e999", b"NaN", b"\\ud800", b"\\u0000", b"9" * 19, b"9" * 400),
    *(b'"version":2,', b'"shards":[],', b"[" * 2000, b'{"a":' * 2000),
]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["flip", "overwrite", "delete", "insert", "splice"]))
        if kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "overwrite":
            data[start:stop] = draw(st.binary(max_size=4))
        elif kind == "delete":
            del data[start:stop]
        elif kind == "insert":
            data[start:start] = draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=4))
        else:
            other = draw(st.sampled_from(SEEDS))
            place = draw(st.integers(0, len(other)))
            data[start:stop] = other[place : place + draw(st.integers(0, 200))]
    return bytes(data)


def parse_or_refuse(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        manifest = Manifest.parse(data)
        assert Manifest.parse(manifest.to_json()) == manifest


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(mutations())
@example(SEEDS[0].replace(b"a.bin", b"a\xff.bin"))
@example(SEEDS[0].replace(b"num_eos", b"num_\xff"))
def test_mutated_manifests_are_parsed_or_refused(data: bytes) -> None:
    """A manifest with bytes flipped, lost, inserted or spliced is a manifest that survives writing, or a FormatError."""
    parse_or_refuse(data)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    """Bytes that never were a manifest are refused."""
    parse_or_refuse(data)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)
PLACES = (
    [(name,) for name in FIELDS] + [("shards", 1, name) for name in FIELDS["shards"][1]] + [("tokenizer", "eos_id")]
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(PLACES), JSON_VALUES, min_size=1, max_size=3))
def test_any_values_in_any_fields_are_parsed_or_refused(values: dict[tuple[Any, ...], Any]) -> None:
    """Whatever JSON stands in a field, the manifest is one that survives writing, or a FormatError."""
    fields = json.loads(json.dumps(FIELDS))
    for path, value in sorted(values.items(), key=lambda item: -len(item[0])):
        place = fields
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    parse_or_refuse(json.dumps(fields).encode())
