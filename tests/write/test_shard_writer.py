"""One shard on its way, seen from where its bytes go."""

import contextlib
import hashlib
from typing import Literal

import numpy as np
import pytest
import zstandard

from shardstream import ShardEntry
from shardstream.write.shard_writer import NUM_BLOCKS, BlockPool, ShardWriter


class Recorder:
    """Where a shard's bytes go; the first write may fail."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.log: list[str] = []
        self.data = b""

    def write(self, data: memoryview) -> None:
        self.log.append(f"write {len(data)}")
        self.data += data
        if self.fails:
            raise OSError("broken")

    def commit(self) -> None:
        self.log.append("commit")

    def abort(self) -> None:
        self.log.append("abort")

    def publish(self, entry: ShardEntry) -> ShardEntry:
        """Take the shard's entry, and give back the one to keep."""
        self.log.append(entry.name)
        return entry


def written(
    recorder: Recorder, *, is_wanted: bool = True, compression: Literal["zstd"] | None = None
) -> tuple[ShardWriter, BlockPool]:
    """A shard to which more blocks were sent than there are, and its pool."""
    pool = BlockPool(4, np.dtype("<u2"))
    shard = ShardWriter(recorder, "a.bin", eos_id=None, compression=compression, pool=pool)
    shard.widen(7, 7)
    for _ in range(NUM_BLOCKS + 2):
        block = pool.take()
        block[:] = 7
        shard.write(block, 3)
    if is_wanted:
        shard.finish(recorder.publish)
    else:
        shard.abandon()
    return shard, pool


def test_a_shard_is_published_after_its_commit() -> None:
    """All blocks are written, then committed, then published, and the entry counts what was sent."""
    recorder = Recorder(fails=False)
    shard, _ = written(recorder)
    entry = shard.entry()

    assert recorder.log == [*["write 6"] * (NUM_BLOCKS + 2), "commit", "a.bin"]
    assert entry is not None
    assert (entry.num_tokens, entry.min_token, entry.num_eos) == (3 * (NUM_BLOCKS + 2), 7, None)


def test_a_compressed_shard_is_one_frame_that_its_entry_describes() -> None:
    """The bytes that go to the store are one zstd frame of the tokens; the entry tells them from the raw ones."""
    recorder = Recorder(fails=False)
    shard, _ = written(recorder, compression="zstd")
    entry = shard.entry()

    raw = np.full(3 * (NUM_BLOCKS + 2), 7, "<u2").tobytes()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(recorder.data) == raw
    assert zstandard.get_frame_parameters(recorder.data).has_checksum
    assert recorder.log[-2:] == ["commit", "a.bin"]
    assert entry is not None
    assert entry.stored is not None
    assert (entry.num_bytes, entry.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    stored = (entry.stored.codec, entry.stored.num_bytes, entry.stored.sha256)
    assert stored == ("zstd", len(recorder.data), hashlib.sha256(recorder.data).hexdigest())


@pytest.mark.parametrize(("fails", "is_wanted"), [(True, True), (False, False)])
def test_a_compressed_shard_that_does_not_come_to_its_end_is_aborted(*, fails: bool, is_wanted: bool) -> None:
    """After a failed write, or where it is not wanted, a compressed shard is aborted and never committed."""
    recorder = Recorder(fails=fails)
    shard, pool = written(recorder, is_wanted=is_wanted, compression="zstd")
    with contextlib.suppress(OSError):
        assert shard.entry() is None

    assert recorder.log[-1] == "abort"
    assert "commit" not in recorder.log
    assert len([pool.take() for _ in range(NUM_BLOCKS)]) == NUM_BLOCKS


def test_after_an_error_nothing_more_is_written_and_no_caller_waits_for_a_block() -> None:
    """A failed write ends the shard, yet every block comes back."""
    recorder = Recorder(fails=True)
    shard, pool = written(recorder)

    with pytest.raises(OSError, match="broken"):
        shard.entry()
    assert recorder.log == ["write 6", "abort"]
    assert len([pool.take() for _ in range(NUM_BLOCKS)]) == NUM_BLOCKS


def test_an_abandoned_shard_is_aborted() -> None:
    """A shard that is not wanted is written no further, and has no entry."""
    recorder = Recorder(fails=False)
    shard, _ = written(recorder, is_wanted=False)

    assert shard.entry() is None
    assert recorder.log[-1] == "abort"
    assert "commit" not in recorder.log
