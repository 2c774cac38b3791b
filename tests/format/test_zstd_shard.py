"""A stored zstd frame gives the raw shard, or an error that names what is wrong with it: never more, never less."""

from __future__ import annotations

import gzip
import hashlib
import io
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shardstream import IntegrityError, ShardEntry
from shardstream.format.manifest import StoredBytes
from shardstream.format.zstd_shard import MAX_WINDOW_BYTES, decompressed_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
RAW = bytes(range(100)) * 20
FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(RAW)
# A frame by hand: no size of its content, no checksum, a window of 1 KiB unless another descriptor is given.
HEADER = zstandard.FRAME_HEADER + b"\0\0"
EMPTY_FRAME = HEADER + b"\1\0\0"
SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\1\0\0\0x"


def block(kind: int, num_bytes: int, content: bytes, *, is_last: bool = False) -> bytes:
    """A zstd block: 0 raw, 1 a run of one byte, 2 compressed, 3 reserved."""
    return (num_bytes << 3 | kind << 1 | is_last).to_bytes(3, "little") + content


def entry_of(stored: bytes, num_bytes: int) -> ShardEntry:
    """The entry of a shard of ``num_bytes`` raw bytes that is truly stored as ``stored``."""
    sha256 = hashlib.sha256(stored).hexdigest()
    about = StoredBytes(codec="zstd", num_bytes=len(stored), sha256=sha256)
    return ShardEntry(name="a.bin.zst", num_tokens=num_bytes, num_bytes=num_bytes, stored=about)


def decompressed(stored: bytes, entry: ShardEntry | None = None, *, num_bytes: int = len(RAW)) -> bytes:
    read = io.BytesIO(stored).read
    return b"".join(bytes(block) for block in decompressed_blocks(read, entry or entry_of(stored, num_bytes)))


def problem_of(stored: bytes, entry: ShardEntry | None = None, *, num_bytes: int = len(RAW)) -> str:
    with pytest.raises(IntegrityError) as caught:
        decompressed(stored, entry, num_bytes=num_bytes)
    return str(caught.value)


def trickle(data: bytes, sizes: list[int]) -> Callable[[int], bytes]:
    """Gives what is asked for in smaller pieces, of these sizes in turn."""
    file, turn = io.BytesIO(data), iter(range(10**9))
    return lambda num_bytes: file.read(min(num_bytes, sizes[next(turn) % len(sizes)]))


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8),
    repeats=st.integers(1, 2000),
    level=st.sampled_from([-5, 1, 3, 19]),
    has_size=st.booleans(),
    has_checksum=st.booleans(),
    sizes=st.lists(st.integers(1, 50_000), min_size=1, max_size=5),
)
def test_any_frame_gives_its_raw_bytes(
    pieces: list[bytes], repeats: int, level: int, *, has_size: bool, has_checksum: bool, sizes: list[int]
) -> None:
    """However a frame was made and however its bytes arrive, what comes out is what went in, in blocks of a MiB."""
    raw = b"".join(piece * repeats for piece in pieces)
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=has_checksum)
    frame = compressor.compressobj(len(raw)) if has_size else compressor.compressobj()
    stored = b"".join(
        frame.compress(piece * repeats) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for piece in pieces
    )
    stored += frame.flush()

    blocks = [bytes(block) for block in decompressed_blocks(trickle(stored, sizes), entry_of(stored, len(raw)))]

    assert b"".join(blocks) == raw
    assert {len(block) for block in blocks[:-1]} <= {MIB}
    assert 0 < len(blocks[-1]) <= MIB


@pytest.mark.parametrize("num_bytes", [MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_blocks_are_a_mib_but_the_last(num_bytes: int) -> None:
    """Blocks meet at multiples of a MiB, where no token is cut in two."""
    stored = zstandard.compress(bytes(num_bytes))

    lengths = [len(block) for block in decompressed_blocks(io.BytesIO(stored).read, entry_of(stored, num_bytes))]

    assert lengths == [MIB] * (num_bytes // MIB) + [num_bytes % MIB] * (num_bytes % MIB > 0)


@pytest.mark.parametrize("num_bytes", range(1, len(FRAME)))
def test_an_object_that_was_cut_is_truncated(num_bytes: int) -> None:
    """An object that ends before the size in the manifest is told with both figures."""
    problem = problem_of(FRAME[:num_bytes], entry_of(FRAME, len(RAW)))

    assert problem == f"truncated: {num_bytes} bytes are stored, the manifest says {len(FRAME)}"


@pytest.mark.parametrize("num_bytes", range(4, len(FRAME)))
def test_a_frame_that_was_cut_is_no_frame(num_bytes: int) -> None:
    """A frame that was cut before it was stored, be it by the last byte of its checksum, is told; none is read as whole."""
    assert problem_of(FRAME[:num_bytes]) == "the zstd frame was cut short: the stored object ends inside it"


def test_an_object_that_goes_on_is_not_read_on() -> None:
    """Of an object that is too long, or never ends, no more than one byte too many is asked for."""
    asked = []

    def endless(num_bytes: int) -> bytes:
        asked.append(num_bytes)
        done = sum(asked) - num_bytes
        return FRAME[done : done + num_bytes].ljust(num_bytes, b"\0")

    with pytest.raises(IntegrityError, match=f"^too long: more than the {len(FRAME)} bytes that the manifest says$"):
        list(decompressed_blocks(endless, entry_of(FRAME, len(RAW))))
    assert sum(asked) == len(FRAME) + 1


@given(offset=st.integers(0, len(FRAME) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_told_by_the_checksum(offset: int, bit: int) -> None:
    """Whatever a flipped bit does to the frame, the message is that other bytes are there than were stored."""
    damaged = bytearray(FRAME)
    damaged[offset] ^= 1 << bit
    entry = entry_of(FRAME, len(RAW))
    found, expected = (hashlib.sha256(data).hexdigest() for data in (damaged, FRAME))

    problem = problem_of(bytes(damaged), entry)

    assert problem == f"checksum of the stored object is sha256 {found}, the manifest says {expected}"


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        (b"\0", "other bytes follow"),
        (b"\0" * 2**19, "other bytes follow"),
        (SKIPPABLE_FRAME, "other bytes follow"),
        (EMPTY_FRAME, "a second zstd frame follows"),
        (FRAME, "a second zstd frame follows"),
    ],
    ids=["byte", "many-bytes", "skippable-frame", "empty-frame", "same-frame"],
)
def test_nothing_may_follow_the_frame(rest: bytes, what: str) -> None:
    """One frame and nothing else: not a byte, not a frame that holds nothing."""
    assert problem_of(FRAME + rest) == f"{what} after the zstd frame; wanted one frame and nothing else"


@pytest.mark.parametrize(
    ("stored", "begins"),
    [(RAW, "00010203"), (gzip.compress(RAW, mtime=0), "1f8b0800"), (SKIPPABLE_FRAME + FRAME, "502a4d18"), (b"(", "28")],
    ids=["raw", "gzip", "skippable-frame", "one-byte"],
)
def test_what_is_no_zstd_frame_is_told(stored: bytes, begins: str) -> None:
    """An object of another codec is told by how it begins."""
    assert problem_of(stored) == f"not a zstd frame: it begins with {begins}, wanted 28b52ffd"


@pytest.mark.parametrize(
    ("difference", "problem"),
    [
        (-1, f"decompresses to more than the {len(RAW) - 1} bytes that the manifest says"),
        (1, f"decompresses to {len(RAW)} bytes, the manifest says {len(RAW) + 1}"),
    ],
)
def test_another_length_than_the_manifest_says_is_told(difference: int, problem: str) -> None:
    """A whole frame that holds more or fewer bytes than the shard is told."""
    assert problem_of(FRAME, num_bytes=len(RAW) + difference) == problem


def test_a_bomb_is_stopped_at_its_first_block_too_many() -> None:
    """A few KiB that stand for a GiB are stopped where the shard should end, and take no memory."""
    num_blocks = 2**13
    bomb = b"".join([HEADER[:5], b"\x38", *[block(1, 2**17, b"x")] * num_blocks, block(0, 0, b"", is_last=True)])
    entry = entry_of(bomb, 2**17 + 10)

    tracemalloc.start()
    try:
        problem = problem_of(bomb, entry)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(decompressed(bomb, num_bytes=num_blocks * 2**17)) == 2**30
    assert problem == f"decompresses to more than the {2**17 + 10} bytes that the manifest says"
    assert peak < 2 * MIB


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (HEADER + block(3, 0, b"", is_last=True), "corrupt"),
        (HEADER + block(1, 2**17, b"x", is_last=True), "too small"),
        (HEADER + block(0, 2**20, bytes(2**20), is_last=True), "corrupt"),
        (HEADER + block(2, 9, b"garbage!!", is_last=True), "corrupt"),
        (zstandard.FRAME_HEADER + b"\x20\5" + block(0, 3, b"abc", is_last=True), "corrupt"),
        (zstandard.FRAME_HEADER + b"\4\0" + block(0, 3, b"abc", is_last=True) + b"\0\0\0\0", "checksum"),
        (zstandard.FRAME_HEADER + b"\1\0\7" + block(0, 3, b"abc", is_last=True), "[Dd]ictionary"),
        (zstandard.FRAME_HEADER + b"\x08\0" + block(0, 3, b"abc", is_last=True), "[Uu]nsupported"),
        (zstandard.FRAME_HEADER + b"\0\xff" + block(0, 3, b"abc", is_last=True), "too much memory"),
    ],
    ids=[
        "reserved-block",
        "run-beyond-the-window",
        "raw-block-too-large",
        "compressed-block",
        "content-size",
        "frame-checksum",
        "dictionary",
        "reserved-bit",
        "window-beyond-zstd",
    ],
)
def test_a_damaged_frame_is_told_in_zstds_words(stored: bytes, reason: str) -> None:
    """A frame that breaks the rules of zstd is told, with what zstd says of it."""
    with pytest.raises(IntegrityError, match=f"^the zstd frame is damaged: .*{reason}"):
        decompressed(stored, num_bytes=2**21)


def frame_of_window(window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return frame.compress(RAW) + frame.flush()


def test_the_window_is_bounded() -> None:
    """A frame that asks for more memory than 8 MiB to decompress it is refused, with both figures and what to do."""
    problem = problem_of(frame_of_window(24))

    assert MAX_WINDOW_BYTES == 8 * MIB
    assert decompressed(frame_of_window(23)) == RAW
    assert problem == (
        "the zstd frame needs a window of 16777216 bytes, allowed are 8388608; compress it again, with `zstd -19` at "
        "most and without --long"
    )


@pytest.mark.parametrize("level", [1, 19])
def test_what_the_zstd_program_makes_is_taken(level: int) -> None:
    """All of zstd's levels up to 19 stay within the window, whether it knows the length or not."""
    raw = RAW * 10_000

    for length in (-1, len(raw)):
        frame = zstandard.ZstdCompressor(level=level).compressobj(length)
        assert decompressed(frame.compress(raw) + frame.flush(), num_bytes=len(raw)) == raw


def test_a_raw_shard_has_nothing_to_decompress() -> None:
    """An entry without ``stored`` is a mistake of the caller."""
    entry = ShardEntry(name="a.bin", num_tokens=1, num_bytes=2)

    with pytest.raises(ValueError, match="a.bin is raw; there is nothing to decompress"):
        list(decompressed_blocks(lambda _: b"", entry))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_integrity_error(rest: bytes) -> None:
    """Whatever follows zstd's first four bytes gives what was asked for or an IntegrityError, nothing else."""
    stored = zstandard.FRAME_HEADER + rest
    outcome: Any = None
    try:
        outcome = decompressed(stored, num_bytes=3)
    except IntegrityError:
        return

    assert len(outcome) == 3
