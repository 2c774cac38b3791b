"""A progress bar in bytes, on standard error; nothing where that is no terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from shardstream.cli.report import console_of


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
    if is_quiet or not sys.stderr.isatty():
        yield lambda num_bytes: num_bytes
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
    )
    with Progress(*columns, console=console_of(sys.stderr), transient=True) as bars:
        bar = bars.add_task(what, total=num_bytes)
        yield lambda num_bytes: bars.advance(bar, num_bytes)
