"""A position -> the document that it belongs to, from the side files of its shard or of an earlier one."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shardstream.errors import FormatError, IntegrityError
from shardstream.format.integrity import side_file_problem
from shardstream.format.manifest import Manifest, ShardEntry, SideFile
from shardstream.format.side_file import ShardDocuments, documents_of
from shardstream.storage.local_store import LocalStore
from shardstream.storage.store import Store

# Who looks at the documents of a window, or of a batch that was read in order, needs no more of them at a time.
_NUM_KEPT: Final = 4
_READ_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class SourceDocument:
    """Where a document of a dataset comes from."""

    start: int
    """Position of its first token in the dataset."""
    source: str
    """As the writer was told: a path or a URL, say."""
    key: str
    """Which document of that source: a line, say; empty where there is but one."""


class SideFiles:
    """The side files of one dataset. Threads may use it at once; the last few files stay in memory.

    Args:
        store, manifest: The dataset.
        bounds: First position of each shard, then the number of tokens; shape (num_shards + 1,).
        follow_links: Whether a side file may lie outside the dataset's folder.
    """

    def __init__(self, store: Store, manifest: Manifest, bounds: NDArray[np.int64], *, follow_links: bool) -> None:
        self._store = store
        self._shards = manifest.shards
        self._bounds = bounds
        self._follow_links = follow_links
        # No method of self: the cycle would keep the files until the garbage collector comes by.
        self._documents = lru_cache(_NUM_KEPT)(partial(_documents_of, store, follow_links))

    def document_at(self, position: int) -> SourceDocument:
        """The document that the token at ``position``, which is in the dataset, belongs to."""
        shard = int(np.searchsorted(self._bounds, position, side="right")) - 1
        stop = position + 1 - int(self._bounds[shard])
        while True:
            entry = self._shards[shard]
            if entry.documents is None:
                raise FormatError(
                    f"{self._store.uri}: shard {entry.name} has no side file, so where its tokens come from is not "
                    "known; a dataset written with side_files=True knows it"
                )
            if entry.documents.num_documents:
                documents = self._documents(entry, entry.documents)
                if documents.starts[0] < stop:
                    start, source, key = documents.last_before(stop)
                    return SourceDocument(start=int(self._bounds[shard]) + start, source=source, key=key)
            if shard == 0:
                raise FormatError(f"{self._store.uri}: no side file lists a document that starts up to {position}")
            shard -= 1
            stop = self._shards[shard].num_tokens

    def problem_of(self, entry: ShardEntry, side_file: SideFile) -> str | None:
        """What is wrong with the side file of a shard, or None. It is read in blocks, and not understood."""
        name = entry.documents_name
        _check_inside(self._store, name, follow_links=self._follow_links)
        if self._store.size(name) is None:
            return f"side file {name}: missing"
        with self._store.open(name) as file:
            problem = side_file_problem(iter(partial(file.read, _READ_BYTES), b""), side_file)
        return f"side file {name}: {problem}" if problem else None


def _check_inside(store: Store, name: str, *, follow_links: bool) -> None:
    """Refuse links out, as for shards."""
    if isinstance(store, LocalStore):
        store.path(name, follow_links=follow_links)


def _documents_of(store: Store, follow_links: bool, entry: ShardEntry, side_file: SideFile) -> ShardDocuments:  # noqa: FBT001 - bound once, in order
    name = entry.documents_name
    _check_inside(store, name, follow_links=follow_links)
    data = store.get(name, max_bytes=side_file.num_bytes + 1)
    try:
        return documents_of(data, entry, side_file)
    except (FormatError, IntegrityError) as error:
        raise type(error)(f"{store.uri}/{name}: {error}") from error
