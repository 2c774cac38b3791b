"""Names that strangers chose -> words for a message: short, however many and long they are, and without control codes."""

from collections.abc import Sequence
from typing import Final

_MAX_NAMES: Final = 10
_MAX_CHARACTERS: Final = 40


def shown_names(names: Sequence[str]) -> str:
    """The first ten, each as :func:`shown_name` has it, and how many more there are; nothing of none."""
    shown = ", ".join(map(shown_name, names[:_MAX_NAMES]))
    num_more = len(names) - _MAX_NAMES
    return f"{shown} and {num_more} more" if num_more > 0 else shown


def shown_name(name: str) -> str:
    """The first forty characters in quotes, as Python would write them: what cannot be printed is an escape sequence."""
    return repr(name[:_MAX_CHARACTERS]) + ("..." if len(name) > _MAX_CHARACTERS else "")
