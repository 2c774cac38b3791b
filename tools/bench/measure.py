"""What the benchmarks share: contenders that take turns, the machine, memory, bars, tables and JSON.

Absolute figures drift from hour to hour and from machine to machine, so a benchmark runs what it judges and what it
judges by side by side: in each round every contender does the same work once, one after the other. A contender's time
is the best of its rounds, since whatever else the machine does can only add to it; the median over all rounds of the
ratio within a round stands beside it in the JSON and shows whether the best was luck.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

T = TypeVar("T")

HERE = Path(__file__).parent
MIB = 2**20


class Timings:
    """Seconds of each contender in each round.

    Args:
        seconds: Contender -> its seconds, round by round; all of one length.
    """

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = seconds

    def best(self, name: str) -> float:
        """Seconds of the contender's best round."""
        return min(self.seconds[name])

    def ratio(self, name: str, limit: str) -> float:
        """How fast the contender is, in units of the limit: best round against best round."""
        return self.best(limit) / self.best(name)

    def median_ratio(self, name: str, limit: str) -> float:
        """The same within each round; the median over the rounds."""
        pairs = zip(self.seconds[limit], self.seconds[name], strict=True)
        return statistics.median(of_limit / of_name for of_limit, of_name in pairs)


def claim_memory(num_bytes: int) -> None:
    """Touch memory, and free it for who comes next.

    A virtual machine may have given freed memory back to its host, and then whoever takes it first pays for that.
    """
    np.full(num_bytes, 1, np.uint8)


def take_turns(
    contenders: Mapping[str, Callable[[T], object]],
    prepare: Callable[[int], T],
    *,
    num_rounds: int,
    before_each: Callable[[], object] = lambda: None,
) -> Timings:
    """Time contenders that alternate, round by round: A B C, A B C, ...

    Args:
        contenders: Name -> work of one round, given that round's input.
        prepare: Number of the round -> the input that all contenders get in it; not timed.
        num_rounds: Rounds that count; one more, number 0, goes before them and does not.
        before_each: Called before each contender's turn; not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for number in range(num_rounds + 1):
            given = prepare(number)
            for name, run in contenders.items():
                before_each()
                begin = time.perf_counter()
                run(given)
                took = time.perf_counter() - begin
                if number > 0:
                    seconds[name].append(took)
    finally:
        gc.enable()
    return Timings(seconds)


@dataclass(frozen=True, kw_only=True)
class Growth(Generic[T]):
    """What an action did to the memory of its process, in bytes."""

    result: T
    kept: int
    """Resident memory after it, less before."""
    peak: int
    """The highest resident memory during it, less before."""


def memory_growth(action: Callable[[], T]) -> Growth[T]:
    """Run an action and watch resident memory; in a fresh process, as earlier work may have left memory to reuse.

    Reads /proc, so Linux only.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # sets VmHWM back to VmRSS
    before = _status_bytes("VmRSS")
    result = action()
    return Growth(result=result, kept=_status_bytes("VmRSS") - before, peak=_status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.removesuffix("kB")) * 1024
    raise LookupError(f"/proc/self/status has no {name}")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a figure has to reach."""

    name: str
    bar: float
    got: float
    unit: str = ""
    at_most: bool = False
    """Whether less is better."""

    @property
    def is_met(self) -> bool:
        """Whether it did."""
        return self.got <= self.bar if self.at_most else self.got >= self.bar

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return f"bar {self.bar:.2f}{self.unit}  got {self.got:.2f}{self.unit}  {verdict}  {self.name}"


def arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that every benchmark has: ``json``, ``dir``, ``quick``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go; by default a file in results/")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where data is written, some GB of it, and removed again; default %(default)s",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes: shows that the benchmark runs, measures nothing, misses no bar",
    )
    options = parser.parse_args(argv)
    if sys.platform != "linux":
        parser.error("memory and the page cache are watched through Linux's /proc")
    return options


@contextmanager
def scratch_folder(options: argparse.Namespace) -> Iterator[Path]:
    """A folder in ``--dir`` that is gone afterwards."""
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shardstream-bench-", dir=options.dir) as folder:
        yield Path(folder)


@dataclass
class Report:
    """Everything that one run of a benchmark says."""

    benchmark: str
    options: argparse.Namespace
    setup: dict[str, Any] = field(default_factory=dict)
    """How it was measured: sizes, rounds, state of the page cache."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A pipe has no width: what a person wants to keep should not be folded at 80 columns.
        self._console = Console() if Console().is_terminal else Console(width=160)
        self._date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._load = list(os.getloadavg())
        self.say(f"{self.benchmark}: {_one_line(_machine(self.options.dir))}; {_one_line(_versions())}")

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False, markup=False)

    def show(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; the first column holds names, the others numbers."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table, highlight=False)

    def finish(self) -> int:
        """Print the bars, write the JSON, and return the exit status: 1 if a bar was missed."""
        for bar in self.bars:
            self.say(str(bar))
        suffix = "-quick" if self.options.quick else ""
        path = self.options.json or HERE / "results" / f"{self.benchmark}{suffix}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "benchmark": self.benchmark,
            "quick": self.options.quick,
            "date": self._date,
            "git_commit": _git("rev-parse", "HEAD"),
            "git_is_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
            "machine": _machine(self.options.dir),
            "versions": _versions(),
            "load_average": {"before": self._load, "after": list(os.getloadavg())},
            "setup": self.setup,
            "figures": self.figures,
            "bars": [{**asdict(bar), "is_met": bar.is_met} for bar in self.bars],
        }
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        self.say(f"written to {path}")
        return int(not self.options.quick and not all(bar.is_met for bar in self.bars))


def _one_line(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _machine(folder: Path) -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "filesystem": _filesystem(folder),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    name = facts.get("model name") or platform.processor() or "unknown"
    # A virtual machine may hide the name; family and model still tell the generation.
    return f"{name} family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts else name


def _filesystem(folder: Path) -> str:
    """Type of the filesystem that holds a folder: the mount whose path is its longest prefix."""
    folder = folder.resolve()
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = [line.split()[1:3] for line in lines]
    holding = [(point, kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1] if holding else "unknown"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: _version(name) for name in ("numpy", "torch", "shardstream")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(HERE), *words],  # noqa: S607 - whichever git the developer uses
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout
