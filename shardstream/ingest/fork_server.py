"""A process that loads the tokenizer once and forks those that use it. :mod:`shardstream.ingest.processes` starts it.

To load a tokenizer, and to prove that a faster library makes the same ids, takes a second and a hundred MB. This is done
once for all processes, while the job is still being planned. To fork is safe here: there is one thread, and nothing is
open.
"""

import gc
import os
import signal
import socket
import sys
from typing import Final, NoReturn

from shardstream.ingest import worker
from shardstream.ingest.tokenizer import Tokenizer
from shardstream.ingest.tokenizers import load_tokenizer

SIGNALLED: Final = 128
"""What a signal's number is added to, in the exit status of this process."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGCHLD)


def main(tokenizer: str) -> NoReturn:
    """Load, fork a worker for each socket that comes through standard input, and wait for them.

    SIGTERM ends the workers at once. Without it they end as their sockets do, so that none outlives the parent. The
    status of the first that did not end well becomes the status of this process; a signal, as shells do, is told as 128
    and its number.

    Args:
        tokenizer: What ``load_tokenizer`` takes.
    """
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no output of the job
    loaded = _loaded(tokenizer)
    gc.freeze()  # what was loaded is not looked through again, which would copy it into each of them
    alive: set[int] = set()
    with socket.socket(fileno=sys.stdin.fileno()) as parent:
        while (own := _received(parent)) is not None:
            # Signals are waited for, and interrupt nothing; but while there is nobody to end, SIGTERM may end this one.
            signal.signal(signal.SIGCHLD, lambda *_: None)  # or macOS would forget it
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            alive.add(_forked(own, loaded))
            os.close(own)
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


def _received(parent: socket.socket) -> int | None:
    """The socket of another worker; None if there are no more, or the job has been refused."""
    _, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
    return descriptors[0] if descriptors else None


def _loaded(name: str) -> Tokenizer | None:
    """The tokenizer, ready for its first text; None if it cannot be loaded, which the workers will report."""
    try:
        tokenizer = load_tokenizer(name)
        tokenizer.encode_batch(["a"])
    except Exception:  # noqa: BLE001 - any library's
        return None
    return tokenizer


def _forked(own: int, tokenizer: Tokenizer | None) -> int:
    """The process id of a new worker, which speaks through the socket ``own``."""
    pid = os.fork()
    if not pid:
        for stream in (sys.stdin, sys.stdout):
            os.dup2(own, stream.fileno())
        os.close(own)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        worker.main(tokenizer)
    return pid
