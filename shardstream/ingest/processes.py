"""Parts on this machine: some processes, each with one part at a time and one thread.

They come from a plain program that loads the tokenizer once and forks (:mod:`shardstream.ingest.fork_server`), and read
JSON from a socket. They are no children of multiprocessing: a script that calls ``tokenize`` needs no
``if __name__ == "__main__"``, nothing of its own is forked, nothing is pickled, and no part waits for another.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

import msgspec

from shardstream import errors
from shardstream.ingest.fork_server import SIGNALLED
from shardstream.ingest.part import Advance
from shardstream.ingest.worker import ONE_THREAD, Answer, Setup, Task

if TYPE_CHECKING:
    from typing_extensions import Self

# The program searches modules where this process does, and from the first import on: `python -c` would begin in the
# folder that it happens to run in, where a `json.py` may lie.
_PROGRAM: Final = """
import sys
_, tokenizer, *sys.path[:] = sys.argv
from shardstream.ingest.fork_server import main
main(tokenizer)
"""


class Processes:
    """Processes that are about to tokenize, while its ``with`` block runs.

    They begin to load at once, so that the job can be planned in the meantime.

    Args:
        tokenizer: What ``load_tokenizer`` takes.
        num_processes: How many at a time.
    """

    def __init__(self, tokenizer: str, num_processes: int) -> None:
        self._tokenizer = tokenizer
        self._num_processes = num_processes

    def __enter__(self) -> "Self":
        self._workers: list[_Worker] = []
        self._control, theirs = socket.socketpair()
        try:
            self._server = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-c", _PROGRAM, self._tokenizer, *sys.path],
                stdin=theirs.fileno(),
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # Ctrl-C is the parent's to hear, which ends its processes
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes; what they still did is left as it is."""
        self._end()
        for worker in self._workers:
            worker.close()
        self._control.close()

    def __call__(self, tasks: Sequence[Task], setup: Setup, advance: Callable[[Advance], object]) -> None:
        """Write all parts, those first that come first; returns when all are done.

        Args:
            tasks: The parts.
            setup: What they have in common.
            advance: Called as the work goes on, by one thread at a time.

        Raises:
            ShardstreamError, ImportError: What went wrong in a part. The other processes are ended at once; what is
                durable stays.
        """
        waiting = iter(tasks)
        lock = threading.Lock()

        def next_task() -> Task | None:
            with lock:
                return next(waiting, None)

        def advance_alone(done: Advance) -> None:
            with lock:
                advance(done)

        for _ in range(min(self._num_processes, len(tasks))):
            self._workers.append(_Worker(self._control))
        self._control.shutdown(socket.SHUT_WR)  # those were all
        with ThreadPoolExecutor(max(1, len(self._workers))) as pool:
            try:
                futures = [pool.submit(self._run, worker, setup, next_task, advance_alone) for worker in self._workers]
                finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
            except BaseException:  # one that failed, or Ctrl-C, ends all: the pool waits for threads that wait for them
                self._end()
                raise
        for worker in self._workers:
            worker.hang_up()
        self._server.wait()

    def _run(
        self,
        worker: "_Worker",
        setup: Setup,
        next_task: Callable[[], Task | None],
        advance: Callable[[Advance], object],
    ) -> None:
        """Give a process part after part until there are no more."""
        worker.tell(setup)
        while (task := next_task()) is not None:
            worker.tell(task)
            while not (answer := worker.answer() or self._last_answer()).is_done:
                if answer.error is not None:
                    worker.answer()  # none: those were its last words, and it has ended
                    raise _error_of(answer.error, answer.message)
                advance(answer.advance or Advance())

    def _end(self) -> int:
        """End all processes at once; returns how the first ended that did not end well, as ``Popen`` says it."""
        for worker in self._workers:
            worker.hang_up()  # were the server killed, nobody else would tell them
        with contextlib.suppress(OSError):  # it has ended
            self._control.shutdown(socket.SHUT_RDWR)
        self._server.terminate()
        status = self._server.wait()
        return SIGNALLED - status if status > SIGNALLED else status

    def _last_answer(self) -> Answer:
        """In place of a process that ended without a word; all others are ended."""
        status = self._end()
        why = "killed, or out of memory: fewer processes take less" if status < 0 else "what it printed says why"
        return Answer(
            error="ShardstreamError",
            message=f"a tokenizing process ended without a word (status {status}): {why}; the same call goes on from "
            "what is durable",
        )


class _Worker:
    """The way to one process and back.

    Args:
        server: The process that forks it, which may have ended: then this one ends without a word.
    """

    def __init__(self, server: socket.socket) -> None:
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        with theirs, contextlib.suppress(ConnectionError):
            socket.send_fds(server, [b"1"], [theirs.fileno()])

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def hang_up(self) -> None:
        """Have the process end, and what is read from it."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def tell(self, what: Setup | Task) -> None:
        with contextlib.suppress(ConnectionError):  # it has ended: its last answer says why
            self._socket.sendall(msgspec.json.encode(what) + b"\n")

    def answer(self) -> Answer | None:
        """What it says next; None if it has ended."""
        line = b""
        with contextlib.suppress(ConnectionError):  # it had not read all
            line = self._lines.readline()
        # Half a line is what it began to say.
        return msgspec.json.decode(line, type=Answer) if line.endswith(b"\n") else None


def _error_of(kind: str, message: str) -> Exception:
    error: Exception = ImportError(message) if kind == "ImportError" else getattr(errors, kind)(message)
    return error
