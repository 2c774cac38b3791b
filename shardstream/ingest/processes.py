"""Parts on this machine: some processes, each with one part at a time and one thread.

They are plain programs that read JSON from a pipe, not children of multiprocessing: a script that calls ``tokenize`` needs
no ``if __name__ == "__main__"``, nothing is forked, nothing is pickled, and no part waits for another.
"""

import builtins
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final

import msgspec

from shardstream import errors
from shardstream.errors import ShardstreamError
from shardstream.ingest.part import Advance
from shardstream.ingest.worker import ONE_THREAD, Answer, Setup, Task

# The child searches modules where this process does: not in the folder that it happens to run in.
_PROGRAM: Final = """
import json, sys
sys.path = json.loads(sys.argv[1])
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
        ShardstreamError, ValueError, OSError: What went wrong in a part. The other processes are ended at once; what
            is durable stays.
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
        # The processes end before the pool waits for its threads: one that failed, or Ctrl-C, ends all.
        for worker in workers:
            stack.callback(worker.kill)
        futures = [pool.submit(worker.run, next_task, advance_alone) for worker in workers]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()


class _Worker:
    """One process, and the thread that speaks with it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def __enter__(self) -> "_Worker":
        self._process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C is the parent's to hear, which ends its processes
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what it did not read any more
                pipe.close()  # type: ignore[union-attr] # both are pipes

    def kill(self) -> None:
        self._process.kill()

    def run(self, next_task: Callable[[], Task | None], advance: Callable[[Advance], object]) -> None:
        """Give the process part after part until there are no more."""
        self._tell(self._setup)
        while (task := next_task()) is not None:
            self._tell(task)
            for answer in self._answers():
                if answer.error is not None:
                    raise _error_of(answer)
                if answer.is_done:
                    break
                advance(answer.advance or Advance())

    def _tell(self, what: Setup | Task) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        with contextlib.suppress(BrokenPipeError):  # it has ended: its last answer says why
            self._process.stdin.write(msgspec.json.encode(what) + b"\n")
            self._process.stdin.flush()

    def _answers(self) -> Iterator[Answer]:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            yield msgspec.json.decode(line, type=Answer)
        raise ShardstreamError(
            f"a tokenizing process ended without a word (status {self._process.wait()}): killed, or out of memory; the "
            "same call goes on from what is durable, fewer processes take less memory"
        )


def _error_of(answer: Answer) -> Exception:
    known = getattr(errors, str(answer.error), None) or getattr(builtins, str(answer.error), None)
    if isinstance(known, type) and issubclass(known, (ShardstreamError, ValueError, OSError, ImportError)):
        with contextlib.suppress(TypeError):  # UnicodeDecodeError wants more than a message
            return known(answer.message)
    return ShardstreamError(f"{answer.error}: {answer.message}")
