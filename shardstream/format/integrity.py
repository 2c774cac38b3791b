"""Whether bytes are the ones that a shard entry promises."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import IntegrityError
from shardstream.format.manifest import Manifest, ShardEntry, SideFile, StoredBytes
from shardstream.format.zstd_shard import decompressed_blocks

# Large enough that hashing and NumPy run without the interpreter's lock, small enough to stay in a core's cache.
_READ_BYTES: Final = 2**20


class ShardTally:
    """Checksum and statistics of one shard, gathered block by block: what its entry must say.

    Args:
        eos_id: The id to count, or None to count none.
    """

    def __init__(self, eos_id: int | None) -> None:
        self._eos_id = eos_id
        self._sha256 = hashlib.sha256()
        self._num_tokens = 0
        self._num_bytes = 0
        self._num_eos = 0
        self._min_token: int | None = None
        self._max_token: int | None = None

    def widen(self, low: int, high: int) -> None:
        """Take note that tokens of the shard go from ``low`` to ``high``."""
        self._min_token = low if self._min_token is None else min(low, self._min_token)
        self._max_token = high if self._max_token is None else max(high, self._max_token)

    def update(self, tokens: NDArray[np.unsignedinteger[Any]]) -> None:
        """Add the next tokens: 1-D, contiguous, in the stored dtype. Their range is :meth:`widen`'s business."""
        self._sha256.update(tokens.data)
        self._num_tokens += len(tokens)
        self._num_bytes += tokens.nbytes
        if self._eos_id is not None:
            self._num_eos += int(np.count_nonzero(tokens == self._eos_id))

    def entry(self, name: str, stored: StoredBytes | None = None) -> ShardEntry:
        """The entry of a shard that holds exactly the tokens seen, and is stored so."""
        return ShardEntry(
            name=name,
            num_tokens=self._num_tokens,
            num_bytes=self._num_bytes,
            sha256=self._sha256.hexdigest(),
            min_token=self._min_token,
            max_token=self._max_token,
            num_eos=None if self._eos_id is None else self._num_eos,
            stored=stored,
        )


def size_problem(entry: ShardEntry, file_bytes: int) -> str | None:
    """What is wrong with a file of ``file_bytes`` bytes that should be this shard, or None."""
    return length_problem(file_bytes, entry.file_bytes)


def length_problem(file_bytes: int, wanted: int) -> str | None:
    """What is wrong with a file of ``file_bytes`` bytes where the manifest says another length, or None."""
    if file_bytes == wanted:
        return None
    adjective = "truncated" if file_bytes < wanted else "too long"
    return f"{adjective}: {file_bytes} bytes, the manifest says {wanted}"


def side_file_problem(blocks: Iterable[bytes | memoryview], side_file: SideFile) -> str | None:
    """What is wrong with a side file that consists of these blocks, or None; those after one too many are not asked for."""
    sha256 = hashlib.sha256()
    num_bytes = 0
    for block in blocks:
        sha256.update(block)
        num_bytes += len(block)
        if num_bytes > side_file.num_bytes:
            return f"too long: bytes follow after the {side_file.num_bytes} that the manifest says"
    return length_problem(num_bytes, side_file.num_bytes) or _checksum_problem(sha256.hexdigest(), side_file.sha256)


def content_problem(manifest: Manifest, entry: ShardEntry, file: BinaryIO) -> str | None:
    """Read a whole shard, raw or compressed, from its first byte on; say what is wrong with it, or None.

    Args:
        manifest: The dataset that the shard belongs to.
        entry: The shard's row. What it leaves out (an adopted file's checksum, say) is not compared.
        file: The shard, open at offset 0. Bounded memory: it is read in blocks.
    """
    tally = ShardTally(manifest.eos_id)
    blocks = decompressed_blocks(file.read, entry) if entry.stored else raw_blocks(file, entry)
    try:
        for block in blocks:
            tokens = np.frombuffer(block, dtype=manifest.dtype)
            tally.update(tokens)
            tally.widen(int(tokens.min()), int(tokens.max()))
    except IntegrityError as error:
        return str(error)
    return _entry_problem(manifest, entry, tally.entry(entry.name))


def raw_blocks(file: BinaryIO, entry: ShardEntry) -> Iterator[memoryview]:
    """The bytes of a raw shard's tokens; each block is valid until the next is asked for.

    Raises:
        IntegrityError: The file ends before the last token, or goes on after it.
    """
    file.seek(entry.byte_offset)
    block = bytearray(_READ_BYTES)
    num_unread = entry.num_bytes
    while num_unread:
        wanted = memoryview(block)[: min(num_unread, _READ_BYTES)]
        filled = 0
        while filled < len(wanted):
            got = file.readinto(wanted[filled:])  # type: ignore[attr-defined]  # every binary file has it; typeshed's BinaryIO has not
            if not got:
                raise IntegrityError(
                    f"truncated: {entry.num_bytes - num_unread + filled} bytes of tokens, wanted {entry.num_bytes}"
                )
            filled += got
        yield wanted
        num_unread -= filled
    if file.read(1):
        raise IntegrityError(f"too long: bytes follow after the {entry.file_bytes} that the manifest says")


def _checksum_problem(found: str | None, wanted: str | None) -> str | None:
    return None if found == wanted else f"checksum is sha256 {found}, the manifest says {wanted}"


def _entry_problem(manifest: Manifest, entry: ShardEntry, found: ShardEntry) -> str | None:
    if entry.sha256 is not None and (problem := _checksum_problem(found.sha256, entry.sha256)):
        twin = next((shard.name for shard in manifest.shards if shard.sha256 == found.sha256), None)
        return f"{problem}; its bytes are those of {twin}" if twin else problem
    if found.max_token is not None and found.max_token >= manifest.vocab_size:
        return f"holds id {found.max_token}, not below vocab_size {manifest.vocab_size}"
    for field in ("min_token", "max_token", "num_eos"):
        stated, actual = getattr(entry, field), getattr(found, field)
        if stated is not None and stated != actual:
            return f"{field} is {actual}, the manifest says {stated}"
    return None
