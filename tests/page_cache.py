"""What of a file the page cache holds, and how to empty it."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def drop(path: Path) -> None:
    """Have the page cache forget a file, as far as its filesystem lets it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached_pages(path: Path) -> NDArray[np.bool_]:
    """Whether each page of a file is there. Reading with RWF_NOWAIT would tell too, and make the kernel read ahead."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
        address = content.ctypes.data
        del content  # the map could not be closed
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        if mincore(address, len(mapped), pages.ctypes.data) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
    is_cached: NDArray[np.bool_] = pages & 1 == 1
    return is_cached
