"""A few threads that may be left behind: a server that does not answer must not hold up the interpreter's exit.

concurrent.futures joins its threads at exit, however long that takes.
"""

import heapq
import itertools
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")
_Task: TypeAlias = "tuple[Callable[[], Any], Future[Any]]"

# close() takes no longer, whatever the threads are doing.
_JOIN_S: Final = 0.5


class _Tasks:
    """What is to be done, the most urgent first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Task]] = []  # the numbers are all different, so tasks are never compared
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # One True for each task. A destructor may call end(): it touches this queue alone, which allows for that.
        self._signals: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def put(self, task: _Task, urgency: float) -> None:
        with self._lock:
            heapq.heappush(self._heap, (urgency, next(self._numbers), task))
        self._signals.put(True)  # noqa: FBT003 - a signal

    def get(self) -> "_Task | None":
        """The next task; waits for one. None after the end, which comes when all have been taken."""
        if not self._signals.get():
            return None
        with self._lock:
            return heapq.heappop(self._heap)[-1]

    def end(self) -> None:
        """Let one thread end."""
        self._signals.put(False)  # noqa: FBT003 - a signal


class Workers:
    """Calls in the order of their urgency, ``num_threads`` of them at a time; equals in the order of their submission.

    Args:
        num_threads: How many; they are started when there is something to do.
        name: What the threads are called.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._tasks = _Tasks()
        self._threads: list[threading.Thread] = []
        # It holds the tasks alone, so that whoever submitted can be forgotten.
        self._end = weakref.finalize(self, _stop, self._threads, self._tasks)

    def submit(self, call: Callable[[], T], *, urgency: float = 0) -> "Future[T]":
        """Have it called, the smaller ``urgency`` the sooner; a future that is cancelled before its turn never is, nor is one that comes after the end."""
        future: Future[T] = Future()
        if self._end.alive and len(self._threads) < self._num_threads:
            thread = threading.Thread(
                target=_serve, args=(self._tasks,), name=f"{self._name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        self._tasks.put((call, future), urgency)
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
        tasks.end()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(_JOIN_S / len(threads))
