"""Sizes as people type them."""

import pytest
import rich_click as click
from hypothesis import given
from hypothesis import strategies as st

from shardstream.cli.size import size_of


@given(st.integers(0, 9999), st.sampled_from(["", "k", "M", "G", "T", "P"]), st.sampled_from(["", "B", "i", "iB"]))
def test_units_are_decimal_and_those_with_an_i_binary(number: int, prefix: str, unit: str) -> None:
    """A size is its number times a power of 1,000, or with an i of 1,024, however its letters are written."""
    unit = unit if prefix else unit.replace("i", "")
    expected = number * (1024 if "i" in unit else 1000) ** "_kMGTP".index(prefix or "_")

    assert {size_of(spelt(f"{number}{prefix}{unit}")) for spelt in (str, str.lower, str.upper)} == {expected}


@pytest.mark.parametrize(("typed", "num_bytes"), [("1.5TB", 1_500_000_000_000), (" 0.5 KiB ", 512), (".5k", 500)])
def test_a_size_may_have_a_point_and_spaces(typed: str, num_bytes: int) -> None:
    """Fractions are understood."""
    assert size_of(typed) == num_bytes


@pytest.mark.parametrize("typed", ["", "GB", "-1", "1iB", "10XB", "1e9", "1,000", "٣GB"])
def test_what_is_no_size_is_refused(typed: str) -> None:
    """Anything else is refused with an example of what is wanted."""
    with pytest.raises(click.BadParameter, match="wanted one such as 10GB or 500MiB"):
        size_of(typed)
