"""A tokenizer job at its target: which parts are there, and how they become one dataset.

The job's record, ``journal/tokenize.json``, stands there from before the first part until the dataset is published: who
runs the same command again goes on, who runs another is refused. A part is done when its manifest is there; nothing else
is remembered anywhere.
"""

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shardstream.errors import FormatError, ResumeError, StorageError
from shardstream.format.manifest import MANIFEST_NAME, Manifest
from shardstream.ingest.part import DOCUMENT_CHARACTERS, SHUFFLE_CHARACTERS, Settings
from shardstream.ingest.plan import Plan
from shardstream.storage.store import store_of
from shardstream.write.dataset_writer import checked_metadata
from shardstream.write.journal import JOURNAL_FOLDER, LOCK_NAME
from shardstream.write.merge import merged_manifest
from shardstream.write.target import (
    PARTS_FOLDER,
    TOKENIZE_NAME,
    check_target,
    clear_target,
    delete_all,
    publish_manifest,
    read_manifest,
    read_manifests,
    target_names,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from shardstream.storage.store import Store

# Of the job's checksum, in the names of its parts: a task of another job here, that was taken for lost, may end late.
_NUM_NAME_LETTERS: Final = 12
_MAX_RECORD_BYTES: Final = 2**20


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    tokenize_version: int = 1
    settings: Settings
    num_parts: int
    inputs_sha256: str
    parts_sha256: str


class Job:
    """A job that holds its target while its ``with`` block runs.

    Args:
        uri: Where the dataset goes.
        settings: What decides the dataset, beside the inputs.
        plan: The inputs, cut into parts.
        metadata: Kept in the manifest.
        overwrite: Replace the dataset, or what an unfinished run left, at ``uri``.
        storage_options: Passed to the fsspec filesystem.

    Raises:
        StorageError: The target holds something else, or another process writes there.
        ResumeError: An unfinished job of other inputs or settings is there; the message names the field.
    """

    def __init__(
        self,
        uri: str,
        settings: Settings,
        plan: Plan,
        *,
        metadata: Mapping[str, Any],
        overwrite: bool,
        storage_options: Mapping[str, Any] | None,
    ) -> None:
        self.settings: Final = settings
        self.plan: Final = plan
        self._metadata = checked_metadata(metadata)
        self._overwrite = overwrite
        self._store: Store = store_of(uri, storage_options)
        self._record = _Record(
            settings=settings,
            num_parts=len(plan.parts),
            inputs_sha256=plan.inputs_sha256,
            parts_sha256=plan.parts_sha256,
        )
        self._sha256: Final = hashlib.sha256(msgspec.json.encode(self._record, order="sorted")).hexdigest()
        self._name: Final = self._sha256[:_NUM_NAME_LETTERS]
        self._stack = contextlib.ExitStack()
        self.manifest: Manifest | None = None
        """The dataset, once it is published; from the beginning where an earlier run came to its end."""

    def __enter__(self) -> "Self":
        """Claim the target."""
        with contextlib.ExitStack() as stack:
            # Looked at before the lock too: a folder that is not ours is left without a trace.
            self._check(target_names(self._store))
            stack.enter_context(self._store.lock(LOCK_NAME))
            names = target_names(self._store)
            self._check(names)
            if self._overwrite:
                clear_target(self._store, names)
            has_record = TOKENIZE_NAME in names and not self._overwrite
            if self.manifest is None and not has_record:
                self._store.put(TOKENIZE_NAME, msgspec.json.encode(self._record), overwrite=True)
            # The record goes last: without it, all is tidy, and what lies beside the dataset is somebody else's.
            if self.manifest is not None and has_record:
                self._clean_up(names)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the target go; parts that are done stay for the next run."""
        self._stack.close()

    @property
    def uri(self) -> str:
        """Where the dataset goes."""
        return self._store.uri

    def part_uri(self, index: int) -> str:
        """Where a part goes. Tries that may run at once add ``-`` and letters and digits of their own."""
        return f"{self.uri}/{PARTS_FOLDER}/{index:06d}-{self._name}"

    def todo(self) -> list[int]:
        """Numbers of the parts that are not done."""
        done = self._folders_done(target_names(self._store))
        return [index for index in range(len(self.plan.parts)) if index not in done]

    def publish(self) -> Manifest:
        """Make the dataset exist, when all parts are done; then remove what only the job needed.

        Raises:
            FormatError: The inputs hold no document.
            StorageError: A part was written where this process cannot see it.
        """
        names = target_names(self._store)
        folders = self._folders_done(names)
        for index in range(len(self.plan.parts)):
            if index not in folders:
                raise StorageError(
                    f"{self.uri}: part {index} was written, but is not there; all machines that write parts have to "
                    "share the target: give an object store's URL, or a folder of a shared filesystem"
                )
        parts = read_manifests(self._store, [folders[index] for index in range(len(self.plan.parts))])
        if not any(part.num_tokens for part in parts.values()):
            clear_target(self._store, names)
            left_out = _sum_of(parts, "num_empty_documents"), _sum_of(parts, "num_bad_records")
            raise FormatError(
                f"the inputs hold no document; {left_out[0]} empty ones and {left_out[1]} bad records were left out"
            )
        metadata = {**self._metadata, "tokenize": self._account_of(parts)}
        manifest = merged_manifest(parts, metadata=metadata)
        publish_manifest(self._store, manifest, overwrite=False)
        self.manifest = manifest
        self._clean_up(names)
        return manifest

    def _check(self, names: list[str]) -> None:
        """Refuse a target that this job must not touch; empty it if that is wished."""
        if self._overwrite:
            check_target(self._store, names, overwrite=True, resume=False)
            return
        if MANIFEST_NAME in names:
            manifest = read_manifest(self._store)
            account = manifest.metadata.get("tokenize")
            if isinstance(account, dict) and account.get("job_sha256") == self._sha256:
                self.manifest = manifest
                return
        is_ours = TOKENIZE_NAME in names and MANIFEST_NAME not in names
        check_target(self._store, names, overwrite=False, resume=is_ours)
        if is_ours:
            self._check_record()

    def _check_record(self) -> None:
        data = self._store.get(TOKENIZE_NAME, max_bytes=_MAX_RECORD_BYTES)
        try:
            found = msgspec.json.decode(data, type=_Record)
        except msgspec.DecodeError as error:
            raise FormatError(
                f"{self.uri}/{TOKENIZE_NAME}: {error}; the record is damaged, start again with overwrite=True"
            ) from error
        for field, before, now in _differences(found, self._record):
            raise ResumeError(
                f"{self.uri}: {field} was {before!r} when this job was begun and is {now!r} now; go on with the same "
                "inputs and settings, or start again with overwrite=True"
            )

    def _folders_done(self, names: Sequence[str]) -> dict[int, str]:
        manifest = re.compile(rf"({PARTS_FOLDER}/(\d{{6,}})-{self._name}(?:-[0-9a-z]+)?)/{re.escape(MANIFEST_NAME)}")
        found = filter(None, map(manifest.fullmatch, names))
        return {int(match[2]): match[1] for match in sorted(found, key=lambda match: match[1], reverse=True)}

    def _account_of(self, parts: Mapping[str, Manifest]) -> dict[str, Any]:
        """How the dataset came about, for its manifest."""
        seed = self.settings.shuffle_seed
        buffer = {"buffer_characters": SHUFFLE_CHARACTERS, "extra_characters_per_document": DOCUMENT_CHARACTERS}
        return {
            "job_sha256": self._sha256,
            "inputs_sha256": self.plan.inputs_sha256,
            "num_parts": len(parts),
            "num_ignored_files": self.plan.num_ignored,
            "num_empty_documents": _sum_of(parts, "num_empty_documents"),
            "num_bad_records": _sum_of(parts, "num_bad_records"),
            "add_bos": self.settings.add_bos,
            "special_text": self.settings.special_text,
            "shuffle": None if seed is None else {"seed": seed, **buffer},
        }

    def _clean_up(self, names: Sequence[str]) -> None:
        """Remove all that is not of the dataset, the record last."""
        assert self.manifest is not None  # noqa: S101 - only a published job comes here
        kept = {name for shard in self.manifest.shards for name in (shard.name, shard.documents_name)}
        ours = [name for name in names if name.startswith((f"{PARTS_FOLDER}/", f"{JOURNAL_FOLDER}/"))]
        delete_all(self._store, [name for name in ours if name not in {*kept, TOKENIZE_NAME}])
        self._store.delete_partials()  # of tries that were killed; another try wrote their parts in another folder
        self._store.delete(TOKENIZE_NAME)


def _sum_of(parts: Mapping[str, Manifest], what: str) -> int:
    return sum(int(part.metadata.get(what, 0)) for part in parts.values())


def _differences(before: _Record, now: _Record) -> list[tuple[str, Any, Any]]:
    fields = [(field, getattr(before, field), getattr(now, field)) for field in _Record.__struct_fields__]
    settings = [
        (field, getattr(before.settings, field), getattr(now.settings, field)) for field in Settings.__struct_fields__
    ]
    return [row for row in (*settings, *(row for row in fields if row[0] != "settings")) if row[1] != row[2]]
