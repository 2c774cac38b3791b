"""Text -> one dataset: ``tokenize``."""

import contextlib
import fnmatch
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from shardstream.format.manifest import Manifest
from shardstream.ingest.input_places import absolute, split_glob
from shardstream.ingest.job import Job
from shardstream.ingest.part import NUM_BAD_RECORDS_SHOWN, Advance, OnError, Settings, SpecialText, identity_of
from shardstream.ingest.plan import plan_parts
from shardstream.ingest.processes import Processes
from shardstream.ingest.tokenizer import Tokenizer
from shardstream.ingest.tokenizers import load_tokenizer
from shardstream.ingest.worker import Setup, Task
from shardstream.write.dataset_writer import DEFAULT_SHARD_TOKENS
from shardstream.write.zstd_upload import Compression

_log = logging.getLogger("shardstream")

# Who writes the parts: called with them, with what they have in common, and with what to call as the work goes on;
# returns when all are done. A part may be tried more than once, also at once: see ``Job.part_uri``.
Engine: TypeAlias = Callable[[Sequence[Task], Setup, Callable[[Advance], object]], None]


class TokenizeProgress(NamedTuple):
    """How far a tokenizer job has come."""

    num_bytes: int = 0
    """Stored bytes of the inputs that are done, in earlier runs too."""
    total_bytes: int = 0
    num_documents: int = 0
    """Documents tokenized in this run."""
    num_tokens: int = 0
    num_bad_records: int = 0
    """Records left out in this run."""

    @property
    def note(self) -> str:
        """What there is beside bytes, in words."""
        left_out = f", {self.num_bad_records:,} bad records" if self.num_bad_records else ""
        return f"{self.num_documents:,} documents, {self.num_tokens:,} tokens{left_out}"


def tokenize(
    inputs: Sequence[str | os.PathLike[str]],
    uri: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str],
    text_field: str = "text",
    eos: str | None = None,
    add_bos: bool = False,
    special_text: SpecialText = "encode",
    on_error: OnError = "stop",
    shuffle_documents: int | None = None,
    side_files: bool = False,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    part_bytes: int | None = None,
    compression: Compression | None = None,
    metadata: Mapping[str, Any] | None = None,
    processes: int | None = None,
    engine: Engine | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[TokenizeProgress], object] | None = None,
) -> Manifest:
    """Tokenize text into a dataset, on all processors of this machine or on a cluster.

    The inputs are cut into parts, by their sizes alone. Each part is written by one process; when all are there, one
    manifest makes them a dataset. So its digest does not depend on ``processes``, and after a crash, or Ctrl-C, the same
    call goes on: a part that is done is never done again, and one that was begun on this machine goes on from its last
    full shard.

    Args:
        inputs: Files, folders, glob patterns or fsspec URLs of them, in the order of the stream: JSON lines (also
            compressed), Parquet and Arrow, of which one field is read; any other file is text, and one document.
        uri: Folder or URL of the dataset; empty, or not there yet, or holding this very job, unfinished or done.
        tokenizer: A tokenizer's file or folder, ``bytes``, ``tiktoken:NAME``, or a name on the Hugging Face Hub.
        text_field: The field of JSON lines, or the column, that holds the text.
        eos: The token that ends each document, as the vocabulary spells it; None takes the tokenizer's own.
        add_bos: Begin each document with the tokenizer's own token for that.
        special_text: What happens where text spells a special token, such as ``<|endoftext|>``: ``"encode"`` takes it as
            the letters that it is, ``"refuse"`` makes the document a bad record. Never does text become a special token.
        on_error: What a bad record does: ``"stop"`` ends the job with its file and place, ``"skip"`` leaves it out, counts
            it and logs the first.
        shuffle_documents: A seed: documents are put in a new order, within buffers of 2**25 characters, where each
            document counts for 256 more than it has. A text longer than 2**23 characters keeps its place.
        side_files: Write beside each shard where its documents come from; see ``TokenDataset.document_at``.
        shard_tokens: Tokens of each shard but the last of a part.
        part_bytes: About how many stored bytes of the inputs make a part; None makes 256 parts, of 2 MiB to 1 GiB.
        compression: As for ``DatasetWriter``.
        metadata: Kept in the manifest, beside ``tokenize``, which says how the dataset came about.
        processes: How many work at a time; None is one for each processor that this process may use.
        engine: Who writes the parts in place of processes on this machine, such as
            ``shardstream.integrations.ray_data.RayEngine``; the dataset is the same.
        overwrite: Replace the dataset, or what another job left, at ``uri``.
        storage_options: Passed to the fsspec filesystem of inputs and target. Processes on this machine read them as
            JSON.
        progress: Called as the work goes on, by one thread at a time.

    Returns:
        The manifest. ``metadata["tokenize"]`` counts the documents that were empty and the records that were bad.

    Raises:
        TypeError: ``inputs`` is one path, or JSON cannot say the metadata or a storage option.
        ValueError: An argument is out of range, or nothing to read was found.
        FormatError: A record is bad, or there is no document at all.
        StorageError: The target holds something else, or something cannot be read or written.
        ResumeError: An unfinished job with other inputs or settings is at ``uri``; the message names the difference.
    """
    if processes is not None and engine is not None:
        raise ValueError("processes are of this machine, which an engine does not use: give one of the two")
    if isinstance(inputs, (str, os.PathLike)):
        raise TypeError(f"inputs is one path; wanted a list of them, such as [{os.fspath(inputs)!r}]")
    if engine is None:
        _check_json(storage_options or {})
    num_processes = _num_processors() if processes is None else processes
    if num_processes < 1:
        raise ValueError(f"processes is {processes}; wanted at least 1")
    name = os.fspath(tokenizer)
    with contextlib.nullcontext(engine) if engine else Processes(name, num_processes) as run:
        settings = _settings_of(
            load_tokenizer(name),
            eos=eos,
            add_bos=add_bos,
            text_field=text_field,
            special_text=special_text,
            on_error=on_error,
            shuffle_seed=shuffle_documents,
            side_files=side_files,
            shard_tokens=shard_tokens,
            compression=compression,
        )
        _check_apart([os.fspath(one) for one in inputs], os.fspath(uri))
        plan = plan_parts([os.fspath(one) for one in inputs], part_bytes=part_bytes, storage_options=storage_options)
        if plan.num_ignored:
            _log.warning(
                "left out: %d files in folders, whose suffixes name no kind of text; name them by a pattern, such as '**/*.py'",
                plan.num_ignored,
            )
        job = Job(
            os.fspath(uri),
            settings,
            plan,
            metadata=metadata or {},
            overwrite=overwrite,
            storage_options=storage_options,
        )
        with job:
            if job.manifest is not None:
                return job.manifest
            todo = job.todo()
            counter = _Counter(plan.num_bytes, progress)
            counter.advance(
                Advance(num_bytes=plan.num_bytes - sum(one.num_bytes for i in todo for one in plan.parts[i]))
            )
            run(
                [Task(index=index, uri=job.part_uri(index), ranges=plan.parts[index]) for index in todo],
                Setup(tokenizer=name, settings=settings, storage_options=dict(storage_options or {}) or None),
                counter.advance,
            )
            return job.publish()


def _check_json(storage_options: Mapping[str, Any]) -> None:
    for key, value in storage_options.items():
        if not _is_json(value):  # which may be a secret, so its type alone is shown
            raise TypeError(
                f"storage_options[{key!r}] is of type {type(value).__name__}; wanted what JSON can say, since the "
                "processes read it from a pipe"
            )


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_apart(inputs: Sequence[str], uri: str) -> None:
    """Refuse a target that the next run, or this very one, would take for a part of its inputs."""
    target = f"{_real(uri)}/"
    for one in inputs:
        path = absolute(one)
        if os.path.isfile(path) and not absolute(uri).startswith(f"{path}/"):  # noqa: PTH113 - of strings, many times
            continue  # below a file lies nothing; to resolve links takes 20 us
        # What exists under the very name of a glob is no glob; which of them it is will be seen later.
        as_folder, as_glob = (absolute(one), ["**"]), split_glob(absolute(one))
        for folder, patterns in (as_folder, as_glob) if as_glob[1] else (as_folder,):
            prefix = f"{_real(folder)}/"
            if target.startswith(prefix) and _may_match_below(target[len(prefix) :].split("/")[:-1], patterns):
                raise ValueError(f"{uri} lies in the input {one}; choose a place outside")


def _real(place: str) -> str:
    path = absolute(place)
    return (path if "://" in path else os.path.realpath(path)).rstrip("/")


def _may_match_below(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a file below a folder, given by its names, may match a glob."""
    if not names or not patterns or patterns[0] == "**":
        return bool(patterns)
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _may_match_below(names[1:], patterns[1:])


def _settings_of(tokenizer: Tokenizer, *, eos: str | None, add_bos: bool, **others: Any) -> Settings:
    """The settings of a job, checked."""
    eos_id = tokenizer.eos_id if eos is None else tokenizer.id_of(eos)
    if eos_id is None and eos is None:
        raise ValueError(f"tokenizer {tokenizer.name} names no end of text; say which token ends a document with eos")
    if eos_id is None:
        raise ValueError(f"eos is {eos!r}, which tokenizer {tokenizer.name} does not have as a token")
    if add_bos and tokenizer.bos_id is None:
        raise ValueError(f"add_bos: tokenizer {tokenizer.name} has no token that begins a document")
    identity = identity_of(tokenizer, eos_id=eos_id)
    checked = {"tokenizer": msgspec.to_builtins(identity), "vocab_size": tokenizer.vocab_size, "add_bos": add_bos}
    try:
        return msgspec.convert(checked | others, Settings)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


class _Counter:
    """Adds up what parts tell of their progress."""

    def __init__(self, total_bytes: int, progress: Callable[[TokenizeProgress], object] | None) -> None:
        self._sum = TokenizeProgress(total_bytes=total_bytes)
        self._shown: list[str] = []
        self._progress: Final = progress

    def advance(self, done: Advance) -> None:
        self._sum = TokenizeProgress(
            num_bytes=self._sum.num_bytes + done.num_bytes,
            total_bytes=self._sum.total_bytes,
            num_documents=self._sum.num_documents + done.num_documents,
            num_tokens=self._sum.num_tokens + done.num_tokens,
            num_bad_records=self._sum.num_bad_records + done.num_bad_records,
        )
        for record in done.left_out:
            if len(self._shown) < NUM_BAD_RECORDS_SHOWN and record not in self._shown:  # a part may be tried again
                self._shown.append(record)
                _log.warning("left out: %s", record)
        if self._progress is not None:
            self._progress(self._sum)


def _num_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover - macOS and Windows
