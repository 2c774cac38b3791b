"""Whether files in some folders were changed, as the kernel tells it (inotify).

A file that is truncated while it is mapped kills the process that reads it next, so a reader wants to know before each
batch; a look at each file would take longer than the batch. Linux only, and on a network's disk the changes of other
machines stay unseen.
"""

import ctypes
import os
import select
import threading
import weakref
from typing import Final

# From <sys/inotify.h>: written to or truncated, moved from here or to here, deleted.
_CHANGES: Final = 0x0002 | 0x0040 | 0x0080 | 0x0200
_EVENTS_BYTES: Final = 2**16


class FolderWatch:
    """Watches folders from the moment they are added, in the process that made it."""

    def __init__(self) -> None:
        self.pid: Final = os.getpid()
        """A forked child needs a watch of its own: of a shared one, each event reaches one process."""
        self._folders: set[str] = set()
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError:  # pragma: no cover - not Linux
            return
        if descriptor >= 0:  # a user may have no more than 128 of them
            self._descriptor = descriptor
            self._poll = select.poll()  # a third of the time that a read of nothing takes
            self._poll.register(descriptor, select.POLLIN)
            weakref.finalize(self, os.close, descriptor)

    def add(self, folder: str) -> None:
        """Watch a folder too; one that cannot be watched is left alone."""
        if self._descriptor is not None and folder not in self._folders:
            self._folders.add(folder)
            self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _CHANGES)

    def has_changed(self) -> bool:
        """Whether any file in the folders was changed since this was asked last."""
        # Who comes while another thread asks is answered by the looks that follow there.
        if self._descriptor is None or not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._poll.poll(0):
                return False
            os.read(self._descriptor, _EVENTS_BYTES)
            return True
        finally:
            self._lock.release()
