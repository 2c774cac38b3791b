"""Parts on this machine: some processes, each with one part at a time and one thread.

They are plain programs that read JSON from a pipe, not children of multiprocessing: a script that calls ``tokenize`` needs
no ``if __name__ == "__main__"``, nothing is forked, nothing is pickled, and no part waits for another.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import IO, Final, cast

import msgspec

from shardstream import errors
from shardstream.errors import ShardstreamError
from shardstream.ingest.part import Advance
from shardstream.ingest.worker import ONE_THREAD, Answer, Setup, Task

# The child searches modules where this process does, and from the first import on: `python -c` would begin in the folder
# that it happens to run in, where a `json.py` may lie.
_PROGRAM: Final = """
import sys
sys.path[:] = sys.argv[1:]
from shardstream.ingest.worker import main
main()
"""


def run_tasks(tasks: Sequence[Task], setup: Setup, advance: Callable[[Advance], object], *, num_processes: int) -> None:
    """Write all parts, those first that come first; returns when all are done.

    Args:
        tasks: The parts.
        setup: What they have in common.
        advance: Called as the work goes on, by one thread at a time.
        num_processes: How many at a time.

    Raises:
        ShardstreamError, ImportError: What went wrong in a part. The other processes are ended at once; what is durable
            stays.
    """
    waiting = iter(tasks)
    lock = threading.Lock()

    def next_task() -> Task | None:
        with lock:
            return next(waiting, None)

    def advance_alone(done: Advance) -> None:
        with lock:
            advance(done)

    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(setup)) for _ in range(min(num_processes, len(tasks)))]
        pool = stack.enter_context(ThreadPoolExecutor(max(1, len(workers))))
        try:
            futures = [pool.submit(worker.run, next_task, advance_alone) for worker in workers]
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except BaseException:  # one that failed, or Ctrl-C, ends all: the pool waits for threads that wait for them
            for worker in workers:
                worker.kill()
            raise


class _Worker:
    """One process, and the thread that speaks with it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def __enter__(self) -> "_Worker":
        self._process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-c", _PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C is the parent's to hear, which ends its processes
        )
        self._stdin, self._stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for the process, which ends with its standard input."""
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # what it did not read any more
                pipe.close()
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    def run(self, next_task: Callable[[], Task | None], advance: Callable[[Advance], object]) -> None:
        """Give the process part after part until there are no more."""
        self._tell(self._setup)
        while (task := next_task()) is not None:
            self._tell(task)
            while not (answer := self._answer()).is_done:
                if answer.error is not None:
                    self._process.wait()  # those were its last words
                    raise _error_of(answer.error, answer.message)
                advance(answer.advance or Advance())

    def _tell(self, what: Setup | Task) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: its last answer says why
            self._stdin.write(msgspec.json.encode(what) + b"\n")
            self._stdin.flush()

    def _answer(self) -> Answer:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):  # nothing any more, or what it began to say
            status = self._process.wait()
            why = "killed, or out of memory: fewer processes take less" if status < 0 else "what it printed says why"
            raise ShardstreamError(
                f"a tokenizing process ended without a word (status {status}): {why}; the same call goes on from what is "
                "durable"
            )
        return msgspec.json.decode(line, type=Answer)


def _error_of(kind: str, message: str) -> Exception:
    error: Exception = ImportError(message) if kind == "ImportError" else getattr(errors, kind)(message)
    return error
