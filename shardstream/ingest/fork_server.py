"""A process that loads the tokenizer once and forks those that use it. :mod:`shardstream.ingest.processes` starts it.

To load a tokenizer, and to prove that a faster library makes the same ids, takes a second and a hundred MB. This is done
once for all processes, while the job is still being planned. To fork is safe here: there is one thread, and nothing is
open but standard input and the sockets that the workers are for.
"""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from shardstream.ingest import worker
from shardstream.ingest.tokenizer import Tokenizer
from shardstream.ingest.tokenizers import load_tokenizer

SIGNALLED: Final = 128
"""What a signal's number is added to, in the exit status of this process."""
_MAX_COUNT_BYTES: Final = 32
_SIGNALS: Final = (signal.SIGTERM, signal.SIGCHLD)


def main(tokenizer: str, sockets: str) -> NoReturn:
    """Load, read from standard input how many workers are wanted, fork them, and wait for them.

    SIGTERM ends the workers at once. Without it they end as their sockets do, so that none outlives the parent. The
    status of the first that did not end well becomes the status of this process; a signal, as shells do, is told as 128
    and its number.

    Args:
        tokenizer: What ``load_tokenizer`` takes.
        sockets: Descriptors of as many as may be wanted, with commas between.
    """
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no output of the job
    loaded = _loaded(tokenizer)
    num_workers = int(os.read(sys.stdin.fileno(), _MAX_COUNT_BYTES) or 0)  # nothing: the job has been refused
    descriptors = [int(descriptor) for descriptor in sockets.split(",")]
    gc.freeze()  # what was loaded is not looked through again, which would copy it into each of them
    signal.signal(signal.SIGCHLD, lambda *_: None)  # or macOS would forget it
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # they are waited for, and interrupt nothing
    alive = {_forked(descriptor, descriptors, loaded) for descriptor in descriptors[:num_workers]}
    for descriptor in descriptors:
        os.close(descriptor)
    end = 0
    while alive:
        if signal.sigwait(_SIGNALS) == signal.SIGTERM:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        ended = {pid: status for pid, status in (os.waitpid(pid, os.WNOHANG) for pid in alive) if pid}
        alive -= ended.keys()
        for status in ended.values():
            if end in (0, -signal.SIGKILL):  # which may be our own doing
                end = os.waitstatus_to_exitcode(status) or end
    os._exit(end if end >= 0 else SIGNALLED - end)


def _loaded(name: str) -> Tokenizer | None:
    """The tokenizer, ready for its first text; None if it cannot be loaded, which the workers will report."""
    try:
        tokenizer = load_tokenizer(name)
        tokenizer.encode_batch(["a"])
    except Exception:  # noqa: BLE001 - any library's
        return None
    return tokenizer


def _forked(own: int, descriptors: Sequence[int], tokenizer: Tokenizer | None) -> int:
    """The process id of a new worker, which speaks through the socket ``own``."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for stream in (sys.stdin, sys.stdout):
            os.dup2(own, stream.fileno())
        for descriptor in descriptors:
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        worker.main(tokenizer)
    finally:
        os._exit(1)  # never on into what only the server does
