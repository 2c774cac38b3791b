"""What all tokenizers have in common, whichever library runs them."""

import pytest

from shardstream.ingest.tokenizer import as_value_errors


def test_an_interrupt_is_no_error_of_a_library() -> None:
    """Who stops the program stops it, though all else that is raised becomes a ValueError."""
    with pytest.raises(KeyboardInterrupt), as_value_errors():
        raise KeyboardInterrupt
