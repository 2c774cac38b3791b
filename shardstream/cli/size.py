"""A number of bytes as a person types it."""

import re
from typing import Final

import rich_click as click

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+) *(?:([kmgtp])(i?))?b?", re.IGNORECASE | re.ASCII)
_PREFIXES: Final = ("", "k", "m", "g", "t", "p")


def size_of(typed: str) -> int:
    """Bytes of ``10GB``, ``500MiB``, ``1.5 TB`` or a plain number: units are decimal, those with an i binary.

    Raises:
        click.BadParameter: It is none of these.
    """
    found = _SIZE.fullmatch(typed.strip())
    if found is None:
        raise click.BadParameter(f"{typed!r} is no number of bytes; wanted one such as 10GB or 500MiB")
    number, prefix, binary = found.groups(default="")
    factor: int = (1024 if binary else 1000) ** _PREFIXES.index(prefix.lower())
    return round(float(number) * factor)
