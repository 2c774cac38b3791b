"""A few threads, in order, that nobody has to wait for."""

import functools
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from shardstream.storage.workers import Workers

WAIT_S = 30


def test_calls_are_made_in_order() -> None:
    """One thread makes calls in the order in which they were submitted, and hands back what they return."""
    workers = Workers(1, "test")
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return -number

    futures = [workers.submit(functools.partial(make, number)) for number in range(20)]

    assert [future.result(WAIT_S) for future in futures] == [-number for number in range(20)]
    assert made == list(range(20))
    workers.close()


def test_the_most_urgent_call_goes_first() -> None:
    """Of the calls that wait, the one of the smallest urgency is made first, and of equals the one submitted first."""
    workers = Workers(1, "test")
    go = threading.Event()
    made: list[tuple[int, int]] = []
    workers.submit(lambda: go.wait(WAIT_S), urgency=-9)
    futures = [
        workers.submit(functools.partial(made.append, (urgency, number)), urgency=urgency)
        for number, urgency in enumerate([2, 0, 1, 0, -1, 2])
    ]
    go.set()
    for future in futures:
        future.result(WAIT_S)

    assert made == sorted(made)
    assert len(made) == 6
    workers.close()


def test_no_more_threads_than_told() -> None:
    """However much is submitted, so many calls run at a time, in threads of the given name that end with close()."""
    workers = Workers(3, "test-few")
    barrier = threading.Barrier(3)

    for future in [workers.submit(lambda: barrier.wait(WAIT_S)) for _ in range(9)]:
        future.result(WAIT_S)

    threads = [thread for thread in threading.enumerate() if thread.name.startswith("test-few-")]
    assert len(threads) == 3
    workers.close()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_what_a_call_raises_is_raised_where_its_result_is_asked_for() -> None:
    """An error, of any kind, does not end the thread."""
    workers = Workers(1, "test")

    def fail() -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        workers.submit(fail).result(WAIT_S)

    assert workers.submit(lambda: 1).result(WAIT_S) == 1
    workers.close()


def test_a_cancelled_call_is_never_made() -> None:
    """What is cancelled before its turn is passed over."""
    workers = Workers(1, "test")
    go = threading.Event()
    made: list[str] = []
    workers.submit(lambda: go.wait(WAIT_S))
    cancelled = workers.submit(lambda: made.append("cancelled"))
    last = workers.submit(lambda: made.append("last"))

    assert cancelled.cancel()
    go.set()
    last.result(WAIT_S)

    assert made == ["last"]
    workers.close()


def test_close_finishes_what_was_submitted() -> None:
    """close() lets calls come to their end; a second one does nothing."""
    workers = Workers(2, "test")
    futures = [workers.submit(lambda: 1) for _ in range(10)]

    workers.close()
    workers.close()

    assert [future.result(WAIT_S) for future in futures] == [1] * 10


@pytest.mark.parametrize("num_before", [0, 1])
def test_after_the_end_nothing_is_begun(num_before: int) -> None:
    """A call that is submitted after close() is cancelled: whoever waits for it hears so, and does not wait for ever."""
    workers = Workers(2, "test-after")
    for _ in range(num_before):
        workers.submit(lambda: 1).result(WAIT_S)
    workers.close()

    with pytest.raises(CancelledError):
        workers.submit(lambda: 1).result(WAIT_S)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-after")]


def test_a_thread_may_close_its_own_workers() -> None:
    """A call that closes the workers it runs in does not wait for itself."""
    workers = Workers(1, "test")

    assert workers.submit(workers.close).result(WAIT_S) is None


def test_forgotten_workers_end_and_hold_nothing() -> None:
    """Threads end with the workers that nobody refers to, and keep nothing of the calls they made."""

    class Anything:
        def method(self) -> None:
            pass

    workers = Workers(1, "test-forgotten")
    anything = Anything()
    weak = weakref.ref(anything)
    workers.submit(anything.method).result(WAIT_S)
    (thread,) = (thread for thread in threading.enumerate() if thread.name.startswith("test-forgotten"))
    del anything, workers
    gc.collect()

    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert weak() is None


def test_a_call_without_end_does_not_hold_up_the_exit() -> None:
    """Promise 18: the interpreter ends although a server never answers."""
    program = (
        "import time; from shardstream.storage.workers import Workers; Workers(1, 'x').submit(lambda: time.sleep(600))"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
