"""A file of ids by its name."""

import pytest

from shardstream.ingest.token_files import open_token_file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.bin", "raw ids do not say their dtype; give it, such as uint16$"),
        ("a.txt", r"its name must end in \.npy, \.bin, \.parquet, \.arrow or \.feather; "),
        ("a", "its name must end in "),
        ("a.bin.zip", "an archive of files; unpack it, or name what is in it, as zip://ids.npy::.*a.bin.zip$"),
        ("a.tar.gz", "an archive of files; unpack it, or name what is in it, as tar://ids.npy::.*a.tar.gz$"),
        ("a.parquet.gz", "cannot be read from within gzip; decompress it first$"),
    ],
)
def test_a_name_that_does_not_tell_is_refused(place, name: str, message: str) -> None:
    """How a file is read follows from its name; one that says nothing is refused, with what helps."""
    with pytest.raises(ValueError, match=message):
        open_token_file(place(name, b"123"), dtype=None, column=None)
