"""A process that tokenizes parts. :mod:`shardstream.ingest.processes` speaks JSON lines with it.

It ends when its standard input does: so it outlives neither a parent that was killed nor one that has no more work.
"""

import contextlib
import functools
import os
import queue
import sys
import threading
import traceback
from typing import Any, BinaryIO, Final, NoReturn

import msgspec

from shardstream.errors import FormatError, ShardstreamError, StorageError
from shardstream.ingest.part import Advance, Settings, write_part
from shardstream.ingest.plan import InputRange
from shardstream.ingest.tokenizer import Tokenizer
from shardstream.ingest.tokenizers import load_tokenizer

# A worker is one core's worth: tokenizers would start a thread for each core in every one of them.
ONE_THREAD: Final = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The first line that a worker reads: what all its parts have in common."""

    tokenizer: str
    """What ``load_tokenizer`` takes."""
    settings: Settings
    storage_options: dict[str, Any] | None

    def __repr__(self) -> str:
        """Of the storage options, which may hold credentials, the names alone."""
        names = ", ".join(self.storage_options or ())
        return f"Setup(tokenizer={self.tokenizer!r}, settings={self.settings!r}, storage_options=<{names}>)"

    def __rich_repr__(self) -> None:  # type: ignore[override]
        """Nothing: rich, which would show the fields of a ``Struct``, falls back on ``__repr__``."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Every other line that it reads: a part."""

    index: int
    uri: str
    ranges: tuple[InputRange, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line that it writes: some progress, then that the part is done, or what went wrong."""

    advance: Advance | None = None
    is_done: bool = False
    error: str | None = None
    """The class of the error: one of ``shardstream.errors``, or ImportError."""
    message: str = ""

    @classmethod
    def of(cls, error: Exception) -> "Answer":
        """What went wrong, as the job raises it."""
        found = job_error_of(error)
        return cls(error="ImportError" if isinstance(found, ImportError) else type(found).__name__, message=str(found))


def main(tokenizer: Tokenizer | None) -> NoReturn:
    """Tokenize parts until standard input ends.

    Args:
        tokenizer: The job's, unless it has changed meanwhile; None if it is yet to be loaded.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, lines), daemon=True).start()
    try:
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
            try:
                _work(lines, answers, tokenizer)
            except Exception as error:  # noqa: BLE001 - the parent raises it
                if not isinstance(error, (ShardstreamError, OSError)):
                    traceback.print_exc()  # nobody foresaw it, so where it happened matters
                _say(answers, Answer.of(error))
    finally:
        # Whatever happened, never back to where this process was forked, nor Python's own way out, which would stumble
        # over the thread that waits at standard input.
        sys.stderr.flush()
        os._exit(1)


def _work(lines: "queue.SimpleQueue[bytes]", answers: BinaryIO, tokenizer: Tokenizer | None) -> NoReturn:
    setup = msgspec.json.decode(lines.get(), type=Setup)
    sha256 = setup.settings.tokenizer.sha256
    if tokenizer is None or tokenizer.sha256 != sha256:
        tokenizer = agreed_tokenizer(setup.tokenizer, sha256)
    while True:
        task = msgspec.json.decode(lines.get(), type=Task)
        write_part(
            task.ranges,
            task.uri,
            index=task.index,
            settings=setup.settings,
            tokenizer=tokenizer,
            advance=lambda advance: _say(answers, Answer(advance=advance)),
            storage_options=setup.storage_options,
        )
        _say(answers, Answer(is_done=True))


def job_error_of(error: Exception) -> ShardstreamError | ImportError:
    """What a job raises where a part of it raised ``error``.

    The job's arguments have been checked by then: what is no error of ours yet is one of the place, or nobody foresaw it.
    """
    if isinstance(error, (ShardstreamError, ImportError)):
        return error
    if isinstance(error, OSError):
        return StorageError(str(error))
    return ShardstreamError(f"{type(error).__name__}: {error}")


@functools.lru_cache(maxsize=1)
def agreed_tokenizer(name: str, sha256: str) -> Tokenizer:
    """The job's tokenizer, loaded once per process.

    Raises:
        FormatError: It is another one than the job began with.
    """
    tokenizer = load_tokenizer(name)
    if tokenizer.sha256 != sha256:
        raise FormatError(f"{name}: the tokenizer has changed since the job began")
    return tokenizer


def _listen(source: BinaryIO, lines: "queue.SimpleQueue[bytes]") -> None:
    with contextlib.suppress(ConnectionError):  # a parent that was killed has not read all
        for line in source:
            lines.put(line)
    os._exit(0)


def _say(answers: BinaryIO, answer: Answer) -> None:
    answers.write(msgspec.json.encode(answer) + b"\n")
    answers.flush()
