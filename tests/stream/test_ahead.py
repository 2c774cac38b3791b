"""One call ahead."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from shardstream.stream.ahead import Ahead


def threads() -> set[threading.Thread]:
    """Those of all owners, also of another test's that nobody has collected yet."""
    return {thread for thread in threading.enumerate() if thread.name == "shardstream-ahead"}


@pytest.mark.parametrize("in_thread", [True, False])
def test_a_result_comes_when_it_is_asked_for(in_thread: bool) -> None:
    """Results and errors come out of result(), one for each call, and the thread ends with close()."""
    before = threads()
    ahead: Ahead[int] = Ahead()
    for number in range(3):
        ahead.begin(lambda number=number: number, in_thread=in_thread)  # type: ignore[misc]
        assert ahead.is_pending
        assert ahead.result() == number
        ahead.begin(lambda: 1 // 0, in_thread=in_thread)
        with pytest.raises(ZeroDivisionError):
            ahead.result()
        assert not ahead.is_pending
    ahead.begin(lambda: 5, in_thread=in_thread)
    ahead.close()
    ahead.close()

    assert not ahead.is_pending
    assert not threads() - before


def test_the_thread_ends_when_its_owner_is_forgotten() -> None:
    """Without close(), the thread ends as soon as nobody can ask any more, even if its own call was the last to know."""

    class Owner:
        def __init__(self, release: Callable[[], object]) -> None:
            self.ahead: Ahead[object] = Ahead()
            self.release = release

        def call(self) -> object:
            return self.release()

    before = threads()
    release = threading.Event()
    owner = Owner(release.wait)
    owner.ahead.begin(owner.call, in_thread=True)
    assert len(threads() - before) == 1
    del owner
    release.set()
    deadline = time.monotonic() + 5
    while threads() - before:
        gc.collect()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_exit_does_not_wait_for_a_call_that_hangs() -> None:
    """Promise 18: the interpreter ends in less than 2 s although a call ahead never does."""
    script = """
import time
from shardstream.stream.ahead import Ahead
ahead = Ahead()
ahead.begin(lambda: time.sleep(1000), in_thread=True)
print(time.time(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=20)

    assert time.time() - float(done.stdout) < 2
