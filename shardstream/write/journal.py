"""What an unfinished dataset has safe already: the writer's memory across a crash.

The journal is a folder ``journal/`` beside the shards: a head that says how the dataset is being written, and one small
object per durable shard. Objects, not lines of a growing file: an object store cannot append, and one way for all
stores is one way to test. A record is written after its shard is durable, so what is recorded is there; the folder is
removed when the manifest is published.
"""

import re
from typing import Any, Final

import msgspec

from shardstream.errors import FormatError, ResumeError, StorageError
from shardstream.format.manifest import ShardEntry, TokenizerIdentity
from shardstream.storage.store import Store

JOURNAL_FOLDER: Final = "journal"
LOCK_NAME: Final = f"{JOURNAL_FOLDER}/lock"
_RECORD_NAME: Final = re.compile(rf"{JOURNAL_FOLDER}/\d{{6,}}\.json")
_HEAD_NAME: Final = f"{JOURNAL_FOLDER}/head.json"
_MAX_RECORD_BYTES: Final = 2**20


class JournalHead(msgspec.Struct, frozen=True, kw_only=True):
    """How the dataset is being written; a run that resumes it must say the same."""

    journal_version: int = 1
    vocab_size: int
    shard_tokens: int
    tokenizer: TokenizerIdentity | None
    compression: str | None = None
    side_files: bool = False


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the token stream stands at the end of a durable shard."""

    num_documents: int = 0
    """Documents that are complete."""
    document_tokens: int = 0
    """Tokens of the next document that are durable: a shard may end inside a document."""
    document_sha256: str | None = None
    """Checksum of those tokens, in the stored dtype: proof that the same document is sent again."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    shard: ShardEntry
    progress: Progress


class Journal:
    """The journal in one store. The caller holds the store's lock.

    Args:
        store: Where the dataset is being written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, head: JournalHead) -> None:
        """Write the head of a new journal."""
        self._store.put(_HEAD_NAME, msgspec.json.encode(head), overwrite=True)

    def record(self, index: int, shard: ShardEntry, progress: Progress) -> None:
        """Remember that shard number ``index`` is durable."""
        data = msgspec.json.encode(_Record(shard=shard, progress=progress))
        self._store.put(_record_name(index), data, overwrite=True)

    def recover(self, head: JournalHead) -> tuple[list[ShardEntry], Progress]:
        """The shards that are durable, without a gap, and where the stream stands after them.

        Raises:
            ResumeError: The journal was begun with other settings; the message names the first that differs.
            StorageError: There is no head, since an overwrite was killed.
            FormatError: The journal is damaged.
        """
        if _HEAD_NAME not in (names := set(self._store.names())):
            raise StorageError(f"{self._store.uri}: an overwrite broke off here; overwrite=True starts again")
        found = _read(self._store, _HEAD_NAME, JournalHead)
        for field in JournalHead.__struct_fields__:
            before, now = getattr(found, field), getattr(head, field)
            if before != now:
                raise ResumeError(
                    f"{self._store.uri}: {field} was {before!r} when this dataset was begun and is {now!r} now; "
                    "resume with the same settings, or start again with overwrite=True"
                )
        shards: list[ShardEntry] = []
        progress = Progress()
        while (name := _record_name(len(shards))) in names:
            record = _read(self._store, name, _Record)
            # A short shard was to be the last: more may follow now, so it is written again.
            is_full = record.shard.num_tokens == head.shard_tokens
            if not is_full or not self._is_there(record.shard):
                break
            shards.append(record.shard)
            progress = record.progress
        # A later shard may have become durable before one that never did: its record must not outlive this look.
        for name in names.difference(map(_record_name, range(len(shards)))):
            if _RECORD_NAME.fullmatch(name):
                self._store.delete(name)
        return shards, progress

    def _is_there(self, shard: ShardEntry) -> bool:
        """Whether a shard, and the side file that was written with it, still are where they were."""
        if self._store.size(shard.name) != shard.file_bytes:
            return False
        return shard.documents is None or self._store.size(shard.documents_name) == shard.documents.num_bytes

    def remove(self) -> None:
        """Delete the journal; its head last, so that what a crash leaves of it is still one."""
        names = [name for name in self._store.names() if name.startswith(f"{JOURNAL_FOLDER}/") and name != LOCK_NAME]
        for name in sorted(names, key=lambda name: name == _HEAD_NAME):
            self._store.delete(name)


def _record_name(index: int) -> str:
    return f"{JOURNAL_FOLDER}/{index:06d}.json"


def _read(store: Store, name: str, type_: type[Any]) -> Any:
    try:
        return msgspec.json.decode(store.get(name, max_bytes=_MAX_RECORD_BYTES), type=type_)
    except msgspec.DecodeError as error:
        raise FormatError(
            f"{store.uri}/{name}: {error}; the journal is damaged, start again with overwrite=True"
        ) from error
