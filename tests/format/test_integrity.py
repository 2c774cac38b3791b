"""Bytes against a shard entry: what is tallied, and how each kind of damage is told."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardstream import Manifest, ShardEntry, TokenizerIdentity
from shardstream.format.integrity import ShardTally, content_problem, size_problem
from shardstream.format.manifest import StoredBytes

EOS_ID = 7
BLOCK_TOKENS = 2**19  # a shard is read in blocks of this many uint16 ids


def entry_of(tokens: NDArray[Any], **fields: Any) -> ShardEntry:
    tally = ShardTally(EOS_ID)
    tally.update(tokens)
    entry = {name: getattr(tally.entry("a.bin"), name) for name in ShardEntry.__struct_fields__}
    return ShardEntry(**entry | fields)


def manifest_of(*entries: ShardEntry, vocab_size: int = 1000, eos_id: int | None = EOS_ID) -> Manifest:
    shard_tokens = max(entry.num_tokens for entry in entries)
    tokenizer = TokenizerIdentity(eos_id=eos_id)
    return Manifest(vocab_size=vocab_size, shard_tokens=shard_tokens, shards=entries, tokenizer=tokenizer)


def problem_of(entry: ShardEntry, data: bytes, **options: Any) -> str | None:
    return content_problem(manifest_of(entry, **options), entry, io.BytesIO(data))


def as_stored(entry: ShardEntry, data: bytes) -> ShardEntry:
    """The entry of the same shard, stored as ``data``."""
    stored = StoredBytes(codec="zstd", num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return msgspec.structs.replace(entry, stored=stored)


@pytest.fixture
def tokens() -> NDArray[np.uint16]:
    """A hundred ids, all below 1000, eos among them."""
    ids = np.arange(100, dtype="<u2") * 10
    ids[3] = EOS_ID
    return ids


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), max_size=5), st.sampled_from(["<u2", "<u4"]))
def test_tally_is_that_of_all_tokens_at_once(blocks: list[list[int]], dtype: str) -> None:
    """However a shard is cut into blocks, its entry says what one look at all of its tokens would."""
    arrays = [np.array(block, dtype="<u4").astype(dtype) for block in blocks]
    eos_id = next((int(array[0]) for array in arrays if len(array)), 0)
    everything = np.concatenate([np.empty(0, dtype), *arrays])

    tally = ShardTally(eos_id)
    for array in arrays:
        tally.update(array)
        if len(array):
            tally.widen(int(array.min()), int(array.max()))
    entry = tally.entry("a.bin")

    assert entry.name == "a.bin"
    assert entry.num_tokens == len(everything)
    assert entry.num_bytes == everything.nbytes
    assert entry.sha256 == hashlib.sha256(everything.tobytes()).hexdigest()
    assert entry.min_token == (everything.min() if len(everything) else None)
    assert entry.max_token == (everything.max() if len(everything) else None)
    assert entry.num_eos == (everything == eos_id).sum()


def test_tally_without_eos_counts_none(tokens: NDArray[np.uint16]) -> None:
    """Where no id ends documents, the entry does not say how many there are."""
    tally = ShardTally(None)
    tally.update(tokens)

    assert tally.entry("a.bin").num_eos is None


STORED = StoredBytes(codec="zstd", num_bytes=5, sha256="0" * 64)


@pytest.mark.parametrize(
    ("fields", "file_bytes", "problem"),
    [
        pytest.param({}, 16, None, id="right"),
        pytest.param({}, 15, "truncated: 15 bytes, the manifest says 16", id="short"),
        pytest.param({}, 0, "truncated: 0 bytes, the manifest says 16", id="empty"),
        pytest.param({}, 17, "too long: 17 bytes, the manifest says 16", id="long"),
        pytest.param({"byte_offset": 4}, 20, None, id="header"),
        pytest.param({"byte_offset": 4}, 16, "truncated: 16 bytes, the manifest says 20", id="header-missing"),
        pytest.param({"stored": STORED}, 5, None, id="stored"),
        pytest.param({"stored": STORED}, 16, "too long: 16 bytes, the manifest says 5", id="stored-raw"),
    ],
)
def test_size_of_a_file_is_exact(fields: dict[str, Any], file_bytes: int, problem: str | None) -> None:
    """A file has the header, the tokens and nothing else, or the stored size; a message gives both figures."""
    entry = ShardEntry(name="a.bin", num_tokens=8, num_bytes=16, **fields)

    assert size_problem(entry, file_bytes) == problem


def test_right_bytes_are_no_problem(tokens: NDArray[np.uint16]) -> None:
    """A shard that is what its entry says has no problem."""
    assert problem_of(entry_of(tokens), tokens.tobytes()) is None


def test_entry_that_says_little_is_compared_in_little(tokens: NDArray[np.uint16]) -> None:
    """What an entry leaves out, its file cannot contradict."""
    entry = ShardEntry(name="a.bin", num_tokens=len(tokens), num_bytes=tokens.nbytes)

    assert problem_of(entry, tokens[::-1].tobytes()) is None


def test_header_is_skipped(tokens: NDArray[np.uint16]) -> None:
    """Bytes before ``byte_offset`` belong to nobody: they may change."""
    entry = entry_of(tokens, byte_offset=6)

    assert problem_of(entry, b"header" + tokens.tobytes()) is None
    assert problem_of(entry, b"HEADER" + tokens.tobytes()) is None


@pytest.mark.parametrize("num_lost", [1, 2, 199, 200])
def test_truncation_is_found_while_reading(tokens: NDArray[np.uint16], num_lost: int) -> None:
    """A shard that ends early is told with how much of it there is."""
    problem = problem_of(entry_of(tokens), tokens.tobytes()[:-num_lost])

    assert problem == f"truncated: {200 - num_lost} bytes of tokens, wanted 200"


def test_appended_bytes_are_found_while_reading(tokens: NDArray[np.uint16]) -> None:
    """A shard that goes on after its tokens is told."""
    problem = problem_of(entry_of(tokens), tokens.tobytes() + b"\0")

    assert problem == "too long: bytes follow after the 200 that the manifest says"


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("offset", [0, 99, 199])
def test_one_flipped_bit_is_found(tokens: NDArray[np.uint16], offset: int, bit: int) -> None:
    """One bit changes the checksum; the message gives both."""
    data = bytearray(tokens.tobytes())
    data[offset] ^= 1 << bit
    entry = entry_of(tokens)

    problem = problem_of(entry, bytes(data))

    assert problem == f"checksum is sha256 {hashlib.sha256(data).hexdigest()}, the manifest says {entry.sha256}"


@pytest.mark.parametrize("offset", [0, 2**20 - 1, 2**20, 2**21 - 1, 2**21, 2**21 + 1])
def test_damage_is_found_in_every_block(offset: int) -> None:
    """A shard of several blocks is read to its end, and each byte of it counts."""
    tokens = np.arange(2 * BLOCK_TOKENS + 1, dtype="<u4").astype("<u2") % 1000
    entry = entry_of(tokens)
    data = bytearray(tokens.tobytes())

    assert problem_of(entry, bytes(data)) is None
    data[offset] ^= 1
    assert str(problem_of(entry, bytes(data))).startswith("checksum is sha256 ")


def test_short_reads_are_put_together(tokens: NDArray[np.uint16]) -> None:
    """A file that gives less than it was asked for, as network files may, is read to its end all the same."""

    class Trickle(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:7])

    entry = entry_of(tokens)

    assert content_problem(manifest_of(entry), entry, Trickle(tokens.tobytes())) is None


def test_bytes_of_another_shard_are_recognised(tokens: NDArray[np.uint16]) -> None:
    """Where the bytes are those of another shard of the dataset, the message says which."""
    first, second = entry_of(tokens), entry_of(tokens[::-1].copy(), name="b.bin")

    problem = content_problem(manifest_of(first, second), first, io.BytesIO(tokens[::-1].tobytes()))

    assert str(problem).endswith("; its bytes are those of b.bin")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"min_token": 1}, "min_token is 0, the manifest says 1"),
        ({"max_token": 991}, "max_token is 990, the manifest says 991"),
        ({"num_eos": 2}, "num_eos is 1, the manifest says 2"),
    ],
)
def test_wrong_statistics_are_found(tokens: NDArray[np.uint16], fields: dict[str, int], problem: str) -> None:
    """What an entry says about its tokens is checked one by one, even where the checksum is right."""
    assert problem_of(entry_of(tokens, **fields), tokens.tobytes()) == problem


def test_id_beyond_the_vocabulary_is_found(tokens: NDArray[np.uint16]) -> None:
    """An id that the vocabulary does not have is a problem even in a shard whose entry says nothing of its ids."""
    entry = ShardEntry(name="a.bin", num_tokens=len(tokens), num_bytes=tokens.nbytes)

    assert problem_of(entry, tokens.tobytes(), vocab_size=990) == "holds id 990, not below vocab_size 990"
    assert problem_of(entry, tokens.tobytes(), vocab_size=991) is None


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_a_compressed_shard_is_checked_to_its_end(dtype: str) -> None:
    """Of a compressed shard every raw byte counts, in blocks that begin and end between tokens."""
    tokens = np.arange(2 * BLOCK_TOKENS + 1, dtype=dtype) % (1000 if dtype == "<u2" else 70_000)
    vocab_size = 1000 if dtype == "<u2" else 70_000
    other = tokens.copy()
    other[-1] ^= 1
    good, bad = zstandard.compress(tokens.tobytes()), zstandard.compress(other.tobytes())
    found, expected = (hashlib.sha256(array.tobytes()).hexdigest() for array in (other, tokens))

    assert problem_of(as_stored(entry_of(tokens), good), good, vocab_size=vocab_size) is None
    assert problem_of(as_stored(entry_of(tokens), bad), bad, vocab_size=vocab_size) == (
        f"checksum is sha256 {found}, the manifest says {expected}"
    )


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda data: data[:-1], "truncated: "),
        (lambda data: data + b"x", "too long: "),
        (lambda data: data[:-1] + b"x", "checksum of the stored object is sha256 "),
        (lambda data: bytes(len(data)), "checksum of the stored object is sha256 "),
    ],
    ids=["short", "long", "last-byte", "zeros"],
)
def test_another_object_than_was_stored_is_told_first(tokens: NDArray[np.uint16], spoil: Any, problem: str) -> None:
    """Size and checksum of the stored object come before anything that is wrong inside it."""
    data = zstandard.compress(tokens.tobytes())

    assert str(problem_of(as_stored(entry_of(tokens), data), spoil(data))).startswith(problem)


def test_a_stored_object_that_is_no_frame_of_the_shard_is_told(tokens: NDArray[np.uint16]) -> None:
    """An object that is the one in the manifest, but not one zstd frame of the shard's length, is a problem."""
    raw = tokens.tobytes()
    frame = zstandard.compress(raw)

    def problem_of_stored(data: bytes) -> str | None:
        return problem_of(as_stored(entry_of(tokens), data), data)

    assert problem_of_stored(frame) is None
    assert str(problem_of_stored(raw)).startswith("not a zstd frame: it begins with ")
    assert str(problem_of_stored(frame + frame)).startswith("a second zstd frame follows ")
    assert problem_of_stored(zstandard.compress(raw[:-1])) == "decompresses to 199 bytes, the manifest says 200"
    assert str(problem_of_stored(zstandard.compress(raw + raw))).startswith("decompresses to more than the 200 bytes ")


def test_what_a_compressed_shard_holds_is_checked_as_that_of_a_raw_one(tokens: NDArray[np.uint16]) -> None:
    """Vocabulary and statistics are compared with the raw tokens."""
    data = zstandard.compress(tokens.tobytes())
    bare = ShardEntry(name="a.bin", num_tokens=len(tokens), num_bytes=tokens.nbytes)

    assert problem_of(as_stored(bare, data), data, vocab_size=990) == "holds id 990, not below vocab_size 990"
    assert problem_of(as_stored(bare, data), data, vocab_size=991) is None
    wrong = as_stored(entry_of(tokens, num_eos=2), data)
    assert problem_of(wrong, data) == "num_eos is 1, the manifest says 2"
