"""Tokenizing on a Ray cluster.

Two ways. ``shardstream.tokenize(..., engine=RayEngine())`` is the tokenizer job, each part a task of the cluster. For who
has a pipeline of Ray Data, :class:`Encode` turns texts into ids and :class:`TokenDatasink` writes them::

    encode = Encode("tokenizer.json")
    ids = ray.data.read_parquet("s3://raw/web").map_batches(encode, batch_format="pyarrow")
    ids.write_datasink(TokenDatasink("s3://corpora/web", vocab_size=encode.vocab_size, tokenizer=encode.identity))

Ray runs a task again when its process or its node is lost, and it may be wrong about the loss. So every try writes a
folder of its own below ``parts/``, and one manifest, published when all tasks are done, lists one try of each. Inputs,
tokenizer and target have to be reachable by the same name from every node: object storage, or a shared filesystem.

The engine's parts are plain tasks. As rows of a Ray dataset they took a fifth longer: it begins one task, knows the
cluster's processors a second later, and begins each further task 0.1 to 0.2 s after the one before has ended (Ray 2.60).
"""

import contextlib
import functools
import itertools
import logging
import operator
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError  # noqa: A004 - Python 3.10 has two
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from shardstream.errors import FormatError, ShardstreamError, StorageError
from shardstream.format.manifest import dtype_of_vocab
from shardstream.ingest.part import Advance, identity_of, write_part
from shardstream.ingest.tokenizers import load_tokenizer
from shardstream.ingest.worker import ONE_THREAD, Setup, Task, agreed_tokenizer, job_error_of
from shardstream.storage.store import store_of
from shardstream.write.dataset_writer import (
    DEFAULT_SHARD_TOKENS,
    DatasetWriter,
    check_shards,
    checked_metadata,
    tokenizer_identity,
)
from shardstream.write.journal import LOCK_NAME
from shardstream.write.merge import merge
from shardstream.write.target import (
    DATASINK_NAME,
    PARTS_FOLDER,
    check_target,
    clear_target,
    delete_all,
    target_names,
)
from shardstream.write.zstd_upload import Compression

if TYPE_CHECKING:
    from concurrent.futures import Future

try:
    import ray
    import ray.data
    from ray import cloudpickle
    from ray.data.block import BlockAccessor
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "shardstream.integrations.ray_data needs Ray Data: pip install 'shardstream[ray]'"
    ) from error

# Of one task, lost with its process or its node.
_MAX_RETRIES: Final = 10
# For each processor one that runs and one that waits: none is ever idle, and a cluster that grows with its work grows.
_TASKS_PER_PROCESSOR: Final = 2
# The driver asks what is new, and how large the cluster is, once in so many seconds; a task tells twice as often.
_PROGRESS_S: Final = 1.0
_TELL_TIMEOUT_S: Final = 10
# Tasks of a job that was stopped end when they hear of it, soon after they have begun; none is waited for any longer.
_STOP_TIMEOUT_S: Final = 10

# Takes the number of a part, the name of a try, and what is new of it; says later whether the job goes on.
_Tell: TypeAlias = Callable[[int, str, Advance], "Future[bool]"]


class RayEngine:
    """Writes the parts of ``shardstream.tokenize(..., engine=RayEngine())`` as tasks of a Ray cluster.

    The dataset is the one that processes of one machine write, and a job begun by one is gone on with by the other. A
    task takes one processor. A task whose process or node is lost runs again, elsewhere; a bad record ends the job.

    Args:
        address: The cluster, as ``ray.init`` takes it: ``"auto"``, or HOST:PORT. None finds that of ``RAY_ADDRESS``, or one
            that runs on this machine, and else starts one, which ends with the job. Where Ray is initialised already,
            that is used and this is not.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address

    def __call__(self, tasks: Sequence[Task], setup: Setup, advance: Callable[[Advance], object]) -> None:
        """Write all parts; returns when all are done.

        Args:
            tasks: The parts.
            setup: What they have in common.
            advance: Called as the work goes on, by one thread at a time. What a lost task had told is taken back.

        Raises:
            ShardstreamError, ImportError: What went wrong in a part, or with the cluster.
            TypeError: A storage option cannot be sent to a node.
        """
        if not tasks:
            return
        _check_sendable(setup.storage_options or {})
        setup = msgspec.structs.replace(setup, tokenizer=_name_on_nodes(setup.tokenizer))
        with _connection(self._address), _running_tally() as tally:
            write = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(_write)
            tell = functools.partial(_tell, tally)
            try:
                _run_all((write.remote(task, setup, tell) for task in tasks), tally, advance)
            except RayError as error:
                if isinstance(error, RayTaskError) and isinstance(error.cause, _PartError):
                    raise error.cause.args[0] from error
                raise ShardstreamError(f"Ray could not write all parts: {error}") from error


class TokenDatasink(ray.data.Datasink[tuple[int, str]]):
    """Writes rows of ids as one dataset: ``ray_dataset.write_datasink(TokenDatasink(uri, vocab_size=...))``.

    Each row is a document. Each write task writes a part; when all are done, one manifest makes them a dataset, in the
    order of the tasks. That is the order of the rows where ``DataContext.execution_options.preserve_order`` is set. What
    tries of a task wrote that were lost is not in the dataset, and is deleted.

    When the write fails, nothing is published, and what was written is deleted. A record stays, since tasks may have been
    at work still: ``overwrite=True`` starts again.

    Args:
        uri: A folder that all nodes share, or any fsspec URL; empty, or not there yet.
        vocab_size: Number of ids, 1 to 2**32.
        column: The column of lists of ids.
        eos_id: The id that ends each document; None, where ``tokenizer`` names none either, writes the ids and no more.
        tokenizer, shard_tokens, metadata, compression: As for ``DatasetWriter``.
        overwrite: Replace the dataset, or what a failed write left, at ``uri``.
        storage_options: Passed to the fsspec filesystem, on every node.

    Raises:
        TypeError, ValueError: An argument is out of range, or JSON cannot say the metadata.
        ValueError: ``write_datasink`` finds an id outside the vocabulary, ``eos_id`` in a row, or no such column.
        FormatError: There is no row at all.
        StorageError: The target is not empty, or cannot be written.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        vocab_size: int,
        column: str = "tokens",
        eos_id: int | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        shard_tokens: int = DEFAULT_SHARD_TOKENS,
        metadata: Mapping[str, Any] | None = None,
        compression: Compression | None = None,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._storage_options = dict(storage_options or {})
        _check_sendable(self._storage_options)
        self._store = store_of(uri, self._storage_options)
        self._column = column
        self._metadata = checked_metadata(metadata)
        self._overwrite = overwrite
        self._has_documents = eos_id is not None or (tokenizer or {}).get("eos_id") is not None
        self._writer_options: dict[str, Any] = {
            "vocab_size": vocab_size,
            "shard_tokens": shard_tokens,
            "eos_id": eos_id,
            "tokenizer": tokenizer,
            "compression": compression,
        }
        _check(**self._writer_options)
        # Part of each folder's name: a write deletes what itself wrote, and no other's.
        self._write_id = uuid.uuid4().hex[:12]
        self._is_under_way = False

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Claim the target."""
        del schema
        with self._store.lock(LOCK_NAME):
            names = target_names(self._store)
            if DATASINK_NAME in names and not self._overwrite:
                raise StorageError(
                    f"{self._store.uri}: a TokenDatasink is at work here, or one failed; overwrite=True starts again"
                )
            check_target(self._store, names, overwrite=self._overwrite, resume=False)
            clear_target(self._store, names)
            self._store.put(DATASINK_NAME, b"{}", overwrite=False)
        self._is_under_way = True

    def write(self, blocks: Iterable[Any], ctx: Any) -> tuple[int, str]:
        """Write one part.

        Returns:
            The number of the task, and the folder of this try of it.
        """
        number = ctx.task_idx
        folder = f"{PARTS_FOLDER}/{number:06d}-{self._write_id}{_name_of_try()}"
        with DatasetWriter(
            f"{self._store.uri}/{folder}", storage_options=self._storage_options, **self._writer_options
        ) as writer:
            append = writer.append_document if self._has_documents else writer.append
            for block in blocks:
                for ids in _rows_of(block, self._column):
                    append(ids)
        return number, folder

    def on_write_complete(self, write_result: Any) -> None:
        """Publish the dataset; then remove what is not of it."""
        folders = [f"{self._store.uri}/{folder}" for _, folder in sorted(write_result.write_returns)]
        if not write_result.num_rows:
            raise FormatError(f"{self._store.uri}: there was no row to write")
        manifest = merge(folders, self._store.uri, metadata=self._metadata, storage_options=self._storage_options)
        self._is_under_way = False
        self._delete_parts(kept={shard.name for shard in manifest.shards})
        self._store.delete(DATASINK_NAME)

    def on_write_failed(self, error: Exception) -> None:
        """Delete what was written, as far as tasks are not at work still."""
        del error
        if self._is_under_way:
            self._is_under_way = False
            with contextlib.suppress(StorageError):  # the error that brought us here is the one to show
                self._delete_parts(kept=set())

    def _delete_parts(self, *, kept: set[str]) -> None:
        ours = [name for name in target_names(self._store) if name.startswith(f"{PARTS_FOLDER}/")]
        delete_all(self._store, [name for name in ours if self._write_id in name and name not in kept])
        self._store.delete_partials()


class Encode:
    """Texts -> ids, for ``map_batches`` of a Ray dataset; see :class:`TokenDatasink`.

    Text is only text: where it spells a special token, that is encoded as any other letters are, and no special id is
    added. Each process of a cluster loads the tokenizer once. A task is one processor's work, so give Hugging Face's
    tokenizers one thread: ``map_batches(encode, runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false"}})``.

    Args:
        tokenizer: As for ``shardstream.tokenize``: a file or folder, which every node has, or a name.
        text_column: The column of texts.
        column: The column of lists of ids that takes the place of all columns.

    Attributes:
        vocab_size: Number of ids, for the writer.
        identity: Name, checksum and special ids of the tokenizer, for the writer.

    Raises:
        ValueError, OSError: There is no such tokenizer. When called: there is no such column.
        FormatError: When called: a row holds no text.
    """

    def __init__(self, tokenizer: str | os.PathLike[str], *, text_column: str = "text", column: str = "tokens") -> None:
        self._tokenizer = _name_on_nodes(os.fspath(tokenizer))
        self._text_column = text_column
        self._column = column
        loaded = load_tokenizer(self._tokenizer)
        self.vocab_size: int = loaded.vocab_size
        self.identity: dict[str, Any] = msgspec.to_builtins(identity_of(loaded, eos_id=loaded.eos_id))

    def __call__(self, batch: Any) -> pa.Table:
        """Encode a batch.

        Args:
            batch: Of any ``batch_format``: columns by name.

        Returns:
            One column of lists of ids, a row for each text.
        """
        _check_column(batch, self._text_column)
        found = batch[self._text_column]
        texts = found.to_pylist() if isinstance(found, pa.ChunkedArray) else list(found)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise FormatError(
                    f"column {self._text_column!r}, row {index} of a batch is {text!r:.50}; wanted text, filter it out"
                )
        tokenizer = agreed_tokenizer(self._tokenizer, self.identity["sha256"])
        ids = tokenizer.encode_batch(texts)
        bounds = np.cumsum([0, *map(len, ids)])
        values = np.concatenate([np.empty(0, dtype=np.uint32), *ids])
        return pa.table({self._column: pa.LargeListArray.from_arrays(bounds, values)})


def _run_all(tasks: "Iterator[ray.ObjectRef[None]]", tally: Any, advance: Callable[[Advance], object]) -> None:
    """Take tasks, which begin as they are taken, a few at a time, until all have ended; say what the tally hears.

    If one fails, or ``advance`` does, or this thread is interrupted, the job is stopped, and those that have begun are
    waited for.
    """
    running: list[ray.ObjectRef[None]] = []
    told_at = time.monotonic()
    try:
        while True:
            # A cluster that grows with its work may have none yet.
            num_processors = max(1, int(ray.cluster_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]
            running += itertools.islice(tasks, max(0, _TASKS_PER_PROCESSOR * num_processors - len(running)))
            if not running:
                break
            done, running = ray.wait(running, timeout=_PROGRESS_S)
            ray.get(done)
            if time.monotonic() >= told_at + _PROGRESS_S:
                advance(ray.get(tally.take.remote()))
                told_at = time.monotonic()
        advance(ray.get(tally.take.remote()))
    except BaseException:
        tally.stop.remote()
        if running:
            ray.wait(running, num_returns=len(running), timeout=_STOP_TIMEOUT_S)
        raise


def _write(task: Task, setup: Setup, tell: _Tell) -> None:
    """Write a part: a task of the cluster. What becomes of what it wrote, the job decides."""
    # Before a library asks for them. As a runtime_env they would cost the processes that Ray has ready.
    os.environ.update(ONE_THREAD)
    name = _name_of_try()
    # A task may wait for a processor until its job is forgotten. The answer takes 0.1 s, so it is looked at later, but
    # before the part is published.
    heard = tell(task.index, name, Advance())

    def advance(news: Advance) -> None:
        nonlocal heard
        _check_goes_on(heard, timeout_s=0)
        heard = tell(task.index, name, news)

    try:
        write_part(
            task.ranges,
            f"{task.uri}-{name}",
            index=task.index,
            settings=setup.settings,
            tokenizer=agreed_tokenizer(setup.tokenizer, setup.settings.tokenizer.sha256),
            advance=advance,
            storage_options=setup.storage_options,
        )
        _check_goes_on(heard, timeout_s=_TELL_TIMEOUT_S)  # when all tasks have ended, nobody asks the tally any more
    except _PartError:
        raise
    except OSError as error:
        raise _PartError(StorageError(f"on node {platform.node()}: {error}")) from error
    except Exception as error:
        raise _PartError(job_error_of(error)) from error


class _PartError(Exception):
    """Takes an error, its one argument, to the driver as it is: Ray would add to its message."""


class _Tally:
    """Adds up what tasks tell: an actor beside the driver. Of each part, the last try counts."""

    def __init__(self) -> None:
        self._untold = Advance()
        self._tries: dict[int, list[str]] = {}
        self._undoing: dict[int, Advance] = {}
        self._is_stopped = False

    def add(self, part: int, name: str, news: Advance) -> bool:
        """A try of a part, by its name, has done so much more. Returns whether the job goes on."""
        tries = self._tries.setdefault(part, [])
        if name not in tries:
            tries.append(name)
            self._untold += self._undoing.pop(part, Advance())
        if name == tries[-1]:  # else it was taken for lost, another try has begun, and it goes on all the same
            self._untold += news
            self._undoing[part] = self._undoing.get(part, Advance()) + -news
        return not self._is_stopped

    def take(self) -> Advance:
        """What is new since the last call."""
        news, self._untold = self._untold, Advance()
        return news

    def stop(self) -> None:
        """End the job: each task hears of it soon."""
        self._is_stopped = True


def _tell(tally: Any, part: int, name: str, news: Advance) -> "Future[bool]":
    """Tell the actor.

    A future, since a task that waits by ``ray.get`` lends its processor to another one.
    """
    heard: Future[bool] = tally.add.remote(part, name, news).future()
    return heard


def _check_goes_on(heard: "Future[bool]", *, timeout_s: float) -> None:
    """See whether the job goes on, as far as that is heard in time.

    Raises:
        _PartError: The job was stopped.
    """
    try:
        goes_on = heard.result(timeout_s)
    except TimeoutError:
        goes_on = True
    except RayError:  # the tally ends with the job
        goes_on = False
    if not goes_on:
        raise _PartError(ShardstreamError("the job was stopped"))


@contextlib.contextmanager
def _running_tally() -> Iterator[Any]:
    """A tally, beside this process."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tally: Any = ray.remote(num_cpus=0)(_Tally).options(scheduling_strategy=here).remote()
    try:
        yield tally
    finally:
        ray.kill(tally)


@contextlib.contextmanager
def _connection(address: str | None) -> Iterator[None]:
    """Ray, initialised; what is begun here is ended here."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _check(
    *,
    vocab_size: int,
    shard_tokens: int,
    eos_id: int | None,
    tokenizer: Mapping[str, Any] | None,
    compression: Compression | None,
) -> None:
    """Refuse now what a ``DatasetWriter`` would refuse in each task."""
    dtype_of_vocab(operator.index(vocab_size))
    tokenizer_identity(tokenizer, eos_id, vocab_size)
    check_shards(shard_tokens, compression)


def _check_sendable(storage_options: Mapping[str, Any]) -> None:
    """Refuse what Ray would refuse in words that show all options, and so what is secret in them."""
    for key, value in storage_options.items():
        if not _is_sendable(value):
            raise TypeError(
                f"storage_options[{key!r}] is of type {type(value).__name__}; wanted what can be sent to a node: strings, "
                "numbers, and lists and dicts of them"
            )


def _is_sendable(value: object) -> bool:
    try:
        cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - any object's own
        return False
    return True


def _name_on_nodes(tokenizer: str) -> str:
    """The same tokenizer for a process with another working folder."""
    return os.path.abspath(tokenizer) if os.path.exists(tokenizer) else tokenizer  # noqa: PTH100, PTH110 - links stay


def _name_of_try() -> str:
    return uuid.uuid4().hex


def _rows_of(block: Any, column: str) -> Iterator[Any]:
    """The lists of ids in a block, in any form in which Ray Data keeps lists."""
    accessor = BlockAccessor.for_block(block)
    if not accessor.num_rows():
        return
    _check_column(block, column)
    if isinstance(block, pa.Table) and pa.types.is_nested(block.schema.field(column).type):
        for row in block.column(column):
            if not row.is_valid:
                raise FormatError(f"column {column!r} has a row that is null; wanted a list of ids, filter it out")
            yield row.values
    else:
        yield from accessor.to_numpy(column)


def _check_column(table: Any, column: str) -> None:
    names = table.column_names if isinstance(table, pa.Table) else list(table)
    if column not in names:
        raise ValueError(f"no column {column!r}; the rows have: {', '.join(map(str, names))}")
