"""A text file is one document, whole or in pieces, or a bad record."""

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shardstream import StorageError
from shardstream.ingest import input_file, text_file
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece
from shardstream.ingest.input_file import InputFile
from shardstream.ingest.text_file import text_pieces

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def read(path: str) -> tuple[list[DocumentPiece], list[BadRecord]]:
    """The pieces and the bad records of a file."""
    bad: list[BadRecord] = []
    return list(text_pieces(InputFile(path), bad.append)), bad


@given(
    text=st.text(max_size=60),
    suffix=st.sampled_from([".txt", ".txt.gz", ".txt.zst"]),
    has_mark=st.booleans(),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
)
def test_pieces_are_the_text(text: str, suffix: str, has_mark: bool, sizes: tuple[int, int, int]) -> None:
    """Joined, they are the file's text without its byte order mark; a long one has pieces of one size, then a rest."""
    text = text.removeprefix("\ufeff")
    max_whole, piece_characters, block_bytes = sizes
    data = ("\ufeff" * has_mark + text).encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(COMPRESSIONS[path.suffix](data))
        num_bytes = path.stat().st_size
        patch.setattr(text_file, "_MAX_WHOLE_CHARACTERS", max_whole)
        patch.setattr(text_file, "_PIECE_CHARACTERS", piece_characters)
        patch.setattr(input_file, "_BLOCK_BYTES", block_bytes)
        pieces, bad = read(str(path))

    assert bad == []
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert {(piece.source, piece.key) for piece in pieces} == {(str(path), "")}
    assert sum(piece.num_bytes for piece in pieces) == num_bytes
    if len(text) <= max_whole:
        assert len(pieces) == 1
    else:
        assert {len(piece.text) for piece in pieces[:-1]} <= {piece_characters}
        assert 1 <= len(pieces[-1].text) <= piece_characters


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_one_bad_byte_at_the_end_leaves_no_piece(place, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """A text that is too long to be held is looked at as a whole before its first piece is given."""
    monkeypatch.setattr(text_file, "_MAX_WHOLE_CHARACTERS", 10)
    monkeypatch.setattr(text_file, "_PIECE_CHARACTERS", 5)
    data = "\ufeffü".encode() * 10 + b"\xff"
    path = place(f"a.txt{suffix}", gzip.compress(data) if suffix else data)

    assert read(path) == (
        [],
        [BadRecord(path, "", "not UTF-8 at byte 50: invalid start byte; convert the file to UTF-8")],
    )


@given(
    text=st.text(max_size=20),
    block_bytes=st.integers(1, 8),
    tail=st.sampled_from([b"\xff", b"\xe2\x82", b"\xed\xa0\x80"]),
)
def test_the_first_bad_byte_is_named(text: str, block_bytes: int, tail: bytes) -> None:
    """Wherever blocks end, and also where the file ends within a character."""
    data = text.encode() + tail
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_file, "_BLOCK_BYTES", block_bytes)
        path = Path(folder) / "a.txt"
        path.write_bytes(data)
        pieces, bad = read(str(path))

    assert pieces == []
    assert [record.reason.partition(":")[0] for record in bad] == [f"not UTF-8 at byte {len(text.encode())}"]


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".gz", gzip.compress(b"text" * 99, mtime=0)[:-9]),
        (".zst", zstandard.compress(b"text" * 99)[:-3]),
        (".xz", b"none"),
    ],
)
def test_what_cannot_be_decompressed_is_a_bad_record(place, suffix: str, data: bytes) -> None:
    """A part of a text is no document."""
    path = place(f"a.txt{suffix}", data)

    pieces, bad = read(path)

    assert pieces == []
    assert [(record.key, record.reason.partition(":")[0]) for record in bad] == [
        ("", "cannot be decompressed to its end")
    ]


def test_a_text_that_changes_under_the_reader_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first pieces may be in the dataset already."""
    monkeypatch.setattr(text_file, "_MAX_WHOLE_CHARACTERS", 10)
    monkeypatch.setattr(text_file, "_PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(input_file, "_BLOCK_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 40_000)
    bad: list[BadRecord] = []
    pieces = text_pieces(InputFile(str(path)), bad.append)
    next(pieces)

    path.write_bytes(b"x" * 30_000 + b"\xff" * 10_000)

    with pytest.raises(StorageError, match="a.txt: has changed while it was read: not UTF-8 at byte 30000: "):
        list(pieces)
