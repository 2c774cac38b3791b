"""A progress bar in bytes, on standard error; nothing where that is no terminal."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from shardstream.cli.report import console_of


class Show(Protocol):
    """What :func:`job_bar` gives."""

    def __call__(self, num_bytes: int, total_bytes: int, note: str) -> object:
        """Say how far the work has come, in bytes of all, and in words."""
        ...


@contextlib.contextmanager
def progress_bar(what: str, num_bytes: int | None, *, is_quiet: bool) -> Iterator[Callable[[int], object]]:
    """Show how far a work has come while the ``with`` block runs; the bar goes away with it.

    Args:
        what: The work, such as ``writing``.
        num_bytes: All of it; None where nobody knows.
        is_quiet: Show nothing.

    Yields:
        What to call, from any thread, with the bytes done since the last call.
    """
    with _bar(what, num_bytes, is_quiet=is_quiet) as update:
        yield lambda num_new_bytes: update(advance=num_new_bytes)


@contextlib.contextmanager
def job_bar(what: str, *, is_quiet: bool) -> Iterator[Show]:
    """The same for a work that finds out how large it is, and has more to tell than bytes.

    Args:
        what: The work, such as ``tokenizing``.
        is_quiet: Show nothing.

    Yields:
        What to call with the bytes done so far, those of all, and a note.
    """
    with _bar(what, None, is_quiet=is_quiet) as update:
        yield lambda num_bytes, total_bytes, note: update(completed=num_bytes, total=total_bytes, note=note)


@contextlib.contextmanager
def _bar(what: str, num_bytes: int | None, *, is_quiet: bool) -> Iterator[Callable[..., object]]:
    if is_quiet or not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich.progress import (  # noqa: PLC0415 - only a terminal needs it
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console_of(sys.stderr), transient=True) as bars:
        yield functools.partial(bars.update, bars.add_task(what, total=num_bytes, note=""))
