"""One call at a time whose result is wanted later, in a thread or at once.

What concurrent.futures would do takes 100 microseconds for a call and its result once the caller's caches are cold; two
queues take 25. That is half of what a loop with slow steps waits at all.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

# A disk that does not answer must not hold up the interpreter's exit.
_JOIN_S: Final = 1.0


class Ahead(Generic[T]):
    """Begins a call, and returns its result or raises its error when asked."""

    def __init__(self) -> None:
        self.is_pending = False
        """Whether a call was begun whose result nobody has taken."""
        self._calls: queue.SimpleQueue[Callable[[], T] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
        self._end: weakref.finalize[Any, Any] | None = None

    def begin(self, call: Callable[[], T], *, in_thread: bool) -> None:
        """Begin a call; the one before must have been taken.

        Args:
            call: What to call.
            in_thread: Whether in the thread; otherwise it has ended when this returns.
        """
        self.is_pending = True
        if not in_thread:
            self._outcomes.put(_outcome_of(call))
            return
        if self._end is None:
            # It holds the queues alone, so that whoever began a call can be forgotten. Joined when that is so, or at exit.
            thread = threading.Thread(
                target=_serve, args=(self._calls, self._outcomes), name="shardstream-ahead", daemon=True
            )
            thread.start()
            self._end = weakref.finalize(self, _stop, thread, self._calls)
        self._calls.put(call)

    def result(self) -> T:
        """What the call returned, or the error that it raised; waits for its end.

        Interrupted while it waits, it can be asked again.
        """
        outcome = self._outcomes.get()
        self.is_pending = False
        return outcome()

    def close(self) -> None:
        """Wait for what was begun, forget it, and end the thread."""
        if self.is_pending:
            self._outcomes.get()
            self.is_pending = False
        if self._end is not None:
            self._end()
            self._end = None


def _outcome_of(call: Callable[[], T]) -> Callable[[], T]:
    """What returns the result of a call, or raises its error."""
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: result


def _serve(calls: "queue.SimpleQueue[Callable[[], T] | None]", outcomes: "queue.SimpleQueue[Callable[[], T]]") -> None:
    while call := calls.get():
        outcomes.put(_outcome_of(call))
        del call  # and whatever it holds


def _stop(thread: threading.Thread, calls: "queue.SimpleQueue[Callable[[], T] | None]") -> None:
    calls.put(None)
    if thread is not threading.current_thread():  # which may be the one that forgot the owner last
        thread.join(_JOIN_S)
