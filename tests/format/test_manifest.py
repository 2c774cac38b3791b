"""The manifest: what goes in comes out, canonically, and the dataset digest names the token stream alone."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardstream import FormatError, Manifest, ShardEntry, TokenizerIdentity
from shardstream.format.manifest import MAX_SIDE_FILE_BYTES, MAX_VOCAB_SIZE, SideFile, StoredBytes, dtype_of_vocab

# A manifest has many fields: drawing one takes a while on a busy machine, and that is no defect of it.
law = settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])

INT64_MAX = 2**63 - 1
MANIFEST_FIELDS = {
    *("format", "version", "dtype", "vocab_size", "shard_tokens", "num_tokens", "num_documents", "tokenizer"),
    *("creator", "metadata", "shards"),
}
ROW_FIELDS = set(ShardEntry.__struct_fields__)

# Whole numbers beyond 64 bits and any finite double are JSON too.
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=8,
)
JSON_OBJECTS = st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=3)
SHA256 = st.binary(min_size=32, max_size=32).map(bytes.hex)
COMPONENTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,20}", fullmatch=True)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join).filter(lambda name: name.lower() != "manifest.json")
VOCAB_SIZES = st.sampled_from([1, 2**16 - 1, 2**16, 2**16 + 1, MAX_VOCAB_SIZE]) | st.integers(1, MAX_VOCAB_SIZE)
# Not INT64_MAX: a shard's bytes are counted in int64 too, and so are the tokens of all shards together.
SHARD_LENGTHS = st.sampled_from([1, 2**31, 2**32 + 1, 2**55]) | st.integers(1, 100)


def unknown_fields(known: set[str], *, min_size: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text(max_size=8).filter(lambda name: name not in known)
    return st.dictionaries(names, JSON_VALUES, min_size=min_size, max_size=3)


@st.composite
def shard_entries(draw: st.DrawFn, name: str, vocab_size: int, *, has_eos: bool) -> ShardEntry:
    itemsize = dtype_of_vocab(vocab_size).itemsize
    num_tokens = draw(SHARD_LENGTHS)
    low, high = sorted(draw(st.tuples(*[st.integers(0, vocab_size - 1)] * 2)))
    stored = draw(
        st.none() | st.builds(StoredBytes, codec=st.just("zstd"), num_bytes=st.integers(1, INT64_MAX), sha256=SHA256)
    )
    return ShardEntry(
        name=name,
        num_tokens=num_tokens,
        num_bytes=num_tokens * itemsize,
        sha256=draw(st.none() | SHA256),
        min_token=draw(st.sampled_from([None, low])),
        max_token=draw(st.sampled_from([None, high])),
        num_eos=draw(st.none() | st.integers(0, num_tokens)) if has_eos else None,
        byte_offset=0 if stored else draw(st.integers(0, 2**60)) * itemsize,
        documents=draw(
            st.none()
            | st.builds(
                SideFile,
                num_documents=st.integers(0, num_tokens),
                num_bytes=st.integers(1, MAX_SIDE_FILE_BYTES),
                sha256=SHA256,
            )
        ),
        location=draw(st.none() | st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)),
        stored=stored,
    )


@st.composite
def tokenizers(draw: st.DrawFn, vocab_size: int) -> TokenizerIdentity:
    ids = st.none() | st.integers(0, vocab_size - 1)
    return TokenizerIdentity(
        name=draw(st.none() | st.text(max_size=8)),
        sha256=draw(st.none() | SHA256),
        eos_id=draw(ids),
        bos_id=draw(ids),
        pad_id=draw(ids),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    vocab_size = draw(VOCAB_SIZES)
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    tokenizer = draw(st.none() | tokenizers(vocab_size))
    has_eos = tokenizer is not None and tokenizer.eos_id is not None
    shards = tuple(draw(shard_entries(name, vocab_size, has_eos=has_eos)) for name in names)
    with_extra = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    return Manifest(
        vocab_size=vocab_size,
        shard_tokens=max([shard.num_tokens for shard in shards], default=1) + draw(st.integers(0, 5)),
        shards=shards,
        num_documents=draw(st.integers(0, INT64_MAX)),
        tokenizer=tokenizer,
        creator=draw(st.text(max_size=8)),
        metadata=draw(JSON_OBJECTS),
        extra=draw(unknown_fields(MANIFEST_FIELDS)),
        tokenizer_extra=draw(unknown_fields(set(TokenizerIdentity.__struct_fields__))) if tokenizer else {},
        shard_extra={name: draw(unknown_fields(ROW_FIELDS, min_size=1)) for name in with_extra},
    )


def parsed(fields: dict[str, Any]) -> Manifest:
    return Manifest.parse(json.dumps(fields).encode())


@law
@given(manifests())
def test_parsing_gives_back_what_was_written(manifest: Manifest) -> None:
    """Any valid manifest, with unknown fields at every level, is equal to itself after JSON."""
    assert Manifest.parse(manifest.to_json()) == manifest


@law
@given(manifests())
def test_canonical_json_is_a_fixed_point(manifest: Manifest) -> None:
    """Canonical JSON, parsed and written again, is the same bytes."""
    assert Manifest.parse(manifest.to_json()).to_json() == manifest.to_json()


@law
@given(manifests(), st.sampled_from([None, 2]), st.booleans(), st.randoms(use_true_random=False))
def test_any_json_layout_means_the_same(
    manifest: Manifest,
    indent: int | None,
    ensure_ascii: bool,
    rng: random.Random,
) -> None:
    """The order of fields, white space and escapes do not matter: any layout leads to the same canonical bytes."""

    def shuffled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        rng.shuffle(pairs)
        return dict(pairs)

    fields = json.loads(manifest.to_json(), object_pairs_hook=shuffled)
    other = json.dumps(fields, indent=indent, ensure_ascii=ensure_ascii).encode()

    assert Manifest.parse(other).to_json() == manifest.to_json()


@law
@given(manifests())
def test_canonical_json_has_its_layout(manifest: Manifest) -> None:
    """Keys are sorted by code point at every level, one row stands on one line, nothing else is white space."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
        return dict(pairs)

    text = manifest.to_json().decode()
    first, *rows, last = text.removesuffix("\n").split("\n") if manifest.shards else [text.removesuffix("\n"), ""]
    fields = json.loads(text, object_pairs_hook=checked)

    assert text.endswith("}\n")
    assert len(rows) == len(manifest.shards)
    assert [json.loads(row.removesuffix(",")) for row in rows] == fields["shards"]
    assert first.endswith('"shards":[') or not rows
    assert last.startswith("]") or not rows


def test_canonical_json_spares_white_space_and_escapes() -> None:
    """Canonical strings are UTF-8, escape only what JSON demands, and the short way where there is one."""
    text = '"\\/\b\f\n\r\t\0\x1f\x7f\u2028é\U0001f418'
    manifest = Manifest(vocab_size=1, shard_tokens=1, shards=(), metadata={"text": text, "n": [1, -2, None, True]})

    written = manifest.to_json()

    metadata = (
        rb'"metadata":{"n":[1,-2,null,true],"text":"\"\\/\b\f\n\r\t\u0000\u001f' + "\x7f\u2028é\U0001f418".encode()
    )
    assert metadata + b'"},' in written


def test_canonical_json_leaves_out_what_says_nothing() -> None:
    """A field of a row or tokenizer that is null is not written, nor a byte_offset of 0, nor an absent tokenizer."""
    entry = ShardEntry(name="a", num_tokens=1, num_bytes=2)
    manifest = Manifest(vocab_size=1, shard_tokens=1, shards=(entry,))

    assert manifest.to_json() == (
        b'{"creator":"","dtype":"uint16","format":"shardstream","metadata":{},"num_documents":0,"num_tokens":1,'
        b'"shard_tokens":1,"shards":[\n{"name":"a","num_bytes":2,"num_tokens":1}\n],"version":1,"vocab_size":1}\n'
    )


def test_null_says_the_same_as_nothing(fields: dict[str, Any]) -> None:
    """A field that may be null is the same when it is absent."""
    for row in fields["shards"]:
        row.update(dict.fromkeys(ROW_FIELDS - {*row, "byte_offset"}), num_eos=None)
    fields["tokenizer"] = {"name": None, "sha256": None, "eos_id": None, "bos_id": None, "pad_id": None}

    manifest = parsed(fields)

    assert b"null" not in manifest.to_json()
    assert manifest.tokenizer == TokenizerIdentity()
    assert manifest.eos_id is None


def test_every_field_is_read(fields: dict[str, Any]) -> None:
    """Each field of the JSON is where the Python names say."""
    manifest = parsed(fields)

    assert msgspec.to_builtins(manifest.shards) == tuple(fields["shards"])
    assert msgspec.to_builtins(manifest.tokenizer) == fields["tokenizer"]
    for name in ("vocab_size", "shard_tokens", "num_tokens", "num_documents", "creator", "metadata"):
        assert getattr(manifest, name) == fields[name]
    assert manifest.dtype == np.dtype("<u2")
    assert manifest.num_bytes == 40
    assert manifest.eos_id == 7
    assert manifest.extra == {}
    assert manifest.shard_extra == {}


def test_optional_fields_may_be_absent(fields: dict[str, Any]) -> None:
    """A manifest needs no tokenizer, creator or metadata, and a row no more than a name and two counts."""
    for name in ("tokenizer", "creator", "metadata"):
        del fields[name]
    fields["shards"] = [{name: row[name] for name in ("name", "num_tokens", "num_bytes")} for row in fields["shards"]]

    manifest = parsed(fields)

    assert (manifest.tokenizer, manifest.creator, manifest.metadata) == (None, "", {})
    assert {shard.sha256 for shard in manifest.shards} == {None}
    assert {shard.byte_offset for shard in manifest.shards} == {0}


def test_unknown_fields_are_kept(fields: dict[str, Any]) -> None:
    """A field that version 1 does not know, in the manifest or a row, changes nothing and is not lost."""
    known = parsed(fields)
    fields["later"] = {"b": [1, None], "a": 2**64}
    fields["shards"][1]["later"] = {"x": 0.5}

    manifest = parsed(fields)

    assert manifest.extra == {"later": {"b": [1, None], "a": 2**64}}
    assert manifest.shard_extra == {"b/c=1.bin": {"later": {"x": 0.5}}}
    assert manifest.shards == known.shards
    assert manifest.digest == known.digest
    assert json.loads(manifest.to_json()) == fields


def test_a_dataset_may_be_empty() -> None:
    """No shards, no tokens: that is a dataset."""
    manifest = Manifest(vocab_size=1, shard_tokens=1, shards=())

    assert Manifest.parse(manifest.to_json()).num_tokens == 0


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, "<u2"), (65535, "<u2"), (65536, "<u2"), (65537, "<u4"), (2**32, "<u4")]
)
def test_dtype_follows_from_the_vocabulary(vocab_size: int, dtype: str) -> None:
    """Ids take two bytes up to a vocabulary of 65,536 and four beyond it, little-endian."""
    assert dtype_of_vocab(vocab_size).str == dtype
    assert Manifest(vocab_size=vocab_size, shard_tokens=1, shards=()).dtype.str == dtype


@pytest.mark.parametrize("vocab_size", [0, -1, 2**32 + 1])
def test_vocabulary_has_bounds(vocab_size: int) -> None:
    """A vocabulary of no ids, or of more than four bytes can count, is an error that says what was wanted."""
    with pytest.raises(ValueError, match=rf"^vocab_size is {vocab_size}; wanted 1 to 4294967296"):
        dtype_of_vocab(vocab_size)
    with pytest.raises(FormatError, match=rf"^vocab_size is {vocab_size}; wanted 1 to 4294967296"):
        Manifest(vocab_size=vocab_size, shard_tokens=1, shards=())


# The dataset digest


def digest_by_the_book(manifest: Manifest) -> str:
    lines = ["shardstream digest 1", f"{manifest.dtype.name} {manifest.vocab_size}"]
    lines += [f"{shard.num_tokens} {shard.sha256 or '-'}" for shard in manifest.shards]
    return hashlib.sha256("".join(line + "\n" for line in lines).encode("ascii")).hexdigest()


@law
@given(manifests())
def test_digest_is_what_the_specification_says(manifest: Manifest) -> None:
    """The dataset digest is the sha256 of the lines that the specification names."""
    assert manifest.digest == digest_by_the_book(manifest)


@law
@given(st.data())
def test_digest_ignores_all_but_the_token_stream(data: st.DataObject) -> None:
    """Names, places, statistics, tokenizer, metadata, creator and unknown fields leave the dataset digest as it is."""
    manifest = data.draw(manifests())
    names = data.draw(st.lists(NAMES, unique=True, min_size=len(manifest.shards), max_size=len(manifest.shards)))
    stripped = Manifest(
        vocab_size=manifest.vocab_size,
        shard_tokens=INT64_MAX,
        shards=tuple(
            ShardEntry(name=name, num_tokens=shard.num_tokens, num_bytes=shard.num_bytes, sha256=shard.sha256)
            for name, shard in zip(names, manifest.shards, strict=True)
        ),
        num_documents=data.draw(st.integers(0, INT64_MAX)),
        creator=data.draw(st.text(max_size=8)),
        metadata=data.draw(JSON_OBJECTS),
        extra=data.draw(unknown_fields(MANIFEST_FIELDS)),
    )

    assert stripped.digest == manifest.digest


@law
@given(st.data())
def test_digest_depends_on_all_of_the_token_stream(data: st.DataObject) -> None:
    """Another vocabulary, dtype, shard length, checksum, order or number of shards is another dataset digest."""
    manifest = data.draw(manifests().filter(lambda manifest: len(manifest.shards) > 0))
    shards = list(manifest.shards)
    index = data.draw(st.integers(0, len(shards) - 1))
    shard = shards[index]
    itemsize = manifest.dtype.itemsize
    vocab_size = manifest.vocab_size

    def digest(vocab_size: int, shards: list[ShardEntry]) -> str:
        itemsize = dtype_of_vocab(vocab_size).itemsize
        plain = tuple(
            ShardEntry(
                name=f"{number}",
                num_tokens=shard.num_tokens,
                num_bytes=shard.num_tokens * itemsize,
                sha256=shard.sha256,
            )
            for number, shard in enumerate(shards)
        )
        return Manifest(vocab_size=vocab_size, shard_tokens=INT64_MAX, shards=plain).digest

    longer = msgspec.structs.replace(shard, num_tokens=shard.num_tokens + 1, num_bytes=shard.num_bytes + itemsize)
    altered = msgspec.structs.replace(shard, sha256=hashlib.sha256(b"other").hexdigest())
    unread = msgspec.structs.replace(shard, sha256=None)
    variants = {
        digest(vocab_size, shards),
        digest(vocab_size - 1 if vocab_size == MAX_VOCAB_SIZE else vocab_size + 1, shards),
        digest(2**31 if vocab_size <= 2**16 else 2**16, shards),
        digest(vocab_size, [*shards[:index], longer, *shards[index + 1 :]]),
        digest(vocab_size, [*shards[:index], altered, *shards[index + 1 :]]),
        digest(vocab_size, [*shards[:index], *shards[index + 1 :]]),
        digest(vocab_size, [*shards, longer]),
        digest(vocab_size, [longer, *shards]),
    }

    assert manifest.digest in variants
    assert len(variants) == 8
    assert (digest(vocab_size, [*shards[:index], unread, *shards[index + 1 :]]) == manifest.digest) == (
        shard.sha256 is None
    )


# Size


def test_a_hundred_thousand_shards_are_an_ordinary_dataset() -> None:
    """A manifest of 100,000 rows and 15 * 10**12 tokens is parsed within 100 MB, and every position fits."""
    num_shards, shard_tokens = 100_000, 150_000_000
    shards = tuple(
        ShardEntry(
            name=f"shard-{index:06d}.bin",
            num_tokens=shard_tokens,
            num_bytes=4 * shard_tokens,
            sha256=hashlib.sha256(b"%d" % index).hexdigest(),
            min_token=0,
            max_token=127_999,
            num_eos=100_000,
        )
        for index in range(num_shards)
    )
    tokenizer = TokenizerIdentity(eos_id=128_009)
    data = Manifest(vocab_size=128_256, shard_tokens=shard_tokens, shards=shards, tokenizer=tokenizer).to_json()
    del shards

    tracemalloc.start()
    try:
        manifest = Manifest.parse(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(manifest.shards) == num_shards
    assert manifest.num_tokens == 15 * 10**12
    assert peak + len(data) < 100 * 10**6
