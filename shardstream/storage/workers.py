"""A few threads that may be left behind: a server that does not answer must not hold up the interpreter's exit.

concurrent.futures joins its threads at exit, however long that takes.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")
_Tasks: TypeAlias = "queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]"

# close() takes no longer, whatever the threads are doing.
_JOIN_S: Final = 0.5


class Workers:
    """Calls in the order in which they were submitted, ``num_threads`` of them at a time.

    Args:
        num_threads: How many; they are started when there is something to do.
        name: What the threads are called.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._tasks: _Tasks = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # It holds the queue alone, so that whoever submitted can be forgotten.
        self._end = weakref.finalize(self, _stop, self._threads, self._tasks)

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Have it called; a future that is cancelled before its turn never is, nor is one that comes after the end."""
        future: Future[T] = Future()
        if self._end.alive and len(self._threads) < self._num_threads:
            thread = threading.Thread(
                target=_serve, args=(self._tasks,), name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._tasks.put((call, future))
        if not self._end.alive:
            future.cancel()  # the threads may be gone, and who waits for it would wait for ever
        return future

    def close(self) -> None:
        """Finish what was submitted and end the threads; those that take longer than half a second are left behind."""
        self._end()


def _serve(tasks: _Tasks) -> None:
    while task := tasks.get():
        call, future = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
        del task, call, future  # and whatever they hold


def _stop(threads: list[threading.Thread], tasks: _Tasks) -> None:
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(_JOIN_S / len(threads))
