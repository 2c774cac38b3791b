"""Processes of this machine: an engine for tests, and those that it started."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from shardstream.ingest.part import Advance
from shardstream.ingest.processes import Processes
from shardstream.ingest.worker import Setup, Task


def run_tasks(tasks: Sequence[Task], setup: Setup, advance: Callable[[Advance], object], *, num_processes: int) -> None:
    """Write all parts in processes of their own."""
    with Processes(setup.tokenizer, num_processes) as run:
        run(tasks, setup, advance)


def children_of(pid: int) -> set[int]:
    """Processes that a process started, dead ones that it has not taken leave of among them. Linux only."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(status.parent.name))
    return found
