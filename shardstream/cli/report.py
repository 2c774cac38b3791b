"""How a report is printed: lines for a person, or JSON."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TextIO

import rich_click as click

if TYPE_CHECKING:
    from rich.console import Console

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and no progress.")

_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


class Fact(NamedTuple):
    """One line of a report."""

    key: str
    """Its name in JSON."""
    label: str
    """Its name for a person."""
    value: Any
    """What JSON says."""
    text: str
    """What a person reads."""


def count(key: str, label: str, value: int) -> Fact:
    """How many."""
    return Fact(key, label, value, f"{value:,}")


def size(key: str, label: str, num_bytes: int) -> Fact:
    """How many bytes."""
    return Fact(key, label, num_bytes, size_text(num_bytes))


def text(key: str, label: str, value: str) -> Fact:
    """A word or a name."""
    return Fact(key, label, value, value)


def rate(num_bytes: int, seconds: float) -> Fact:
    """How fast bytes went somewhere."""
    mb_per_second = num_bytes / seconds / 1e6
    return Fact("mb_per_second", "rate", mb_per_second, f"{mb_per_second:,.0f} MB/s, {size_text(num_bytes)}")


def size_text(num_bytes: int) -> str:
    """Bytes in decimal units: ``12.3 MB``."""
    value, unit = float(num_bytes), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:  # noqa: PLR2004 - prints as 1,000.0
        value, unit = value / 1000, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}" if unit else f"{num_bytes:,} bytes"


def counted(number: int, noun: str) -> str:
    """How many of what: ``1 shard``, ``2 shards``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def seconds_text(seconds: float) -> str:
    """A duration with three digits that count: ``1.23 s``, ``45.6 ms``."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"  # noqa: PLR2004
    return f"{seconds * 1e6:.3g} µs"


def print_report(facts: Sequence[Fact], *, as_json: bool) -> None:
    """Print a report on standard output."""
    if as_json:
        print_json({fact.key: fact.value for fact in facts})
        return
    width = max(len(fact.label) for fact in facts)
    for fact in facts:
        print_labelled(fact.label, fact.text, width=width)


def print_labelled(label: str, value: str, *, width: int) -> None:
    """Print one line on standard output: a label of ``width`` columns, and text that a terminal folds beside it."""
    from rich.table import Table  # noqa: PLC0415 - 30 ms
    from rich.text import Text  # noqa: PLC0415

    console = console_of(sys.stdout)
    if console.is_terminal:
        line = Table.grid(padding=(0, 2))
        line.add_column(width=width, style="bold")
        line.add_column(overflow="fold")
        line.add_row(label, Text(printable(value)))
        console.print(line)
    else:  # a program that reads it wants whole lines
        console.print(f"{label:{width}}  {printable(value)}", soft_wrap=True)


def print_json(value: Any) -> None:
    """Print JSON on standard output; ASCII alone, whatever the terminal."""
    click.echo(json.dumps(value, indent=2))


def console_of(stream: TextIO) -> "Console":
    """A rich console; colours only where ``stream`` is a terminal, and NO_COLOR does not say otherwise."""
    from rich.console import Console  # noqa: PLC0415 - 30 ms

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def printable(value: str, *, kept: str = "") -> str:
    """Text from elsewhere, with what could steer a terminal spelt out, except the characters in ``kept``."""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in value)
