"""Figures as a person reads them."""

import pytest

from shardstream.cli.report import printable, seconds_text, size_text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (30 * 10**12, "30.0 TB"),
        (5 * 10**21, "5,000.0 EB"),
    ],
)
def test_sizes_are_in_decimal_units(num_bytes: int, text: str) -> None:
    """Sizes are told in powers of a thousand, exact below one."""
    assert size_text(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1234.5, "1,234 s"),
        (12.345, "12.3 s"),
        (1.0, "1 s"),
        (0.012345, "12.3 ms"),
        (0.00001234, "12.3 µs"),
        (0.0, "0 µs"),
    ],
)
def test_durations_have_three_digits_that_count(seconds: float, text: str) -> None:
    """Durations are told in the unit that suits them."""
    assert seconds_text(seconds) == text


def test_what_could_steer_a_terminal_is_spelt_out() -> None:
    """Control characters are shown as escapes, line breaks too unless they are wanted; letters of all scripts stay."""
    assert printable("aß語\x1b[0m\n\x9b", kept="") == "aß語\\x1b[0m\\n\\x9b"
    assert printable("a\n\tb\x07", kept="\n\t") == "a\n\tb\\x07"
