"""Many calls, some at a time; the first failure ends all."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def call_all(
    call: Callable[[S], T], items: Iterable[S], *, num_threads: int, name: str, is_over: threading.Event
) -> tuple[T, ...]:
    """Call ``call`` with each item, ``num_threads`` of them at a time.

    The first failure, or Ctrl-C, is raised as soon as the threads have ended: calls that have not begun never do, and
    those that take long should look at ``is_over``, which is set.

    Returns:
        The results, in the order of the items.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix=name) as threads:
        futures = [threads.submit(call, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            is_over.set()
            for future in futures:
                future.cancel()
    return tuple(future.result() for future in futures)
