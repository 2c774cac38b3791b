"""Names that strangers chose, in messages."""

from hypothesis import given
from hypothesis import strategies as st

from shardstream.ingest.shown_names import shown_name, shown_names


@given(st.lists(st.text(max_size=60)))
def test_a_message_stays_short_and_can_be_printed(names: list[str]) -> None:
    """Whatever the names hold, and however many there are."""
    shown = shown_names(names)

    assert shown.isprintable()
    assert len(shown) <= 10 * 500 + 30


def test_names_are_quoted_and_the_rest_is_counted() -> None:
    """Ten of forty characters are shown; of none, nothing."""
    assert shown_names([]) == ""
    assert shown_names(["id", "\x1b[31m"]) == r"'id', '\x1b[31m'"
    assert shown_names(["a"] * 10) == ", ".join(["'a'"] * 10)
    assert shown_names(["a"] * 12) == ", ".join(["'a'"] * 10) + " and 2 more"
    assert shown_name("a" * 40) == repr("a" * 40)
    assert shown_name("a" * 41) == repr("a" * 40) + "..."
