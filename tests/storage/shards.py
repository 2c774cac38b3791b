"""Shards that tests download, and the entries that describe them."""

import hashlib
import os
from pathlib import Path

from shardstream.format.manifest import ShardEntry, StoredBytes
from shardstream.storage.cache import Partial


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def random_bytes(num_bytes: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(str(seed).encode()).digest(num_bytes)


def entry_of(data: bytes, name: str = "a.bin", *, stored: bytes | None = None, byte_offset: int = 0) -> ShardEntry:
    """The row of a shard of these raw bytes."""
    return ShardEntry(
        name=name,
        num_tokens=len(data) // 2,
        num_bytes=len(data),
        sha256=sha256(data),
        byte_offset=byte_offset,
        stored=StoredBytes(codec="zstd", num_bytes=len(stored), sha256=sha256(stored)) if stored else None,
    )


class Fill:
    """Fills partial files with one shard's bytes, and counts how often."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.num_calls = 0

    def __call__(self, partial: Partial) -> None:
        self.num_calls += 1
        partial.write(0, memoryview(self.data))


def content(pin: os.PathLike[str] | None) -> bytes:
    assert pin is not None
    return Path(pin).read_bytes()
