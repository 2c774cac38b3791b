"""JSON lines: what is a document, what is a bad record, and that a cut anywhere changes nothing."""

import gzip
import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shardstream import FormatError, StorageError
from shardstream.ingest import input_file, json_lines
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece
from shardstream.ingest.input_file import InputFile
from shardstream.ingest.json_lines import json_line_pieces

LINES = st.lists(
    st.one_of(
        st.text(max_size=20).map(lambda text: json.dumps({"text": text}).encode()),
        st.text(max_size=20).map(lambda text: json.dumps({"n": [1, {}], "text": text}, ensure_ascii=False).encode()),
        st.sampled_from(
            [b"", b" \t\r", b'{"text":"a"}\r', b"[1]", b'{"text":null}', b'{"text":"\xff"}', b"{", b"x" * 90]
        ),
    ),
    max_size=12,
)


def read(
    path: str, start: int = 0, stop: int | None = None, text_field: str = "text"
) -> tuple[list[DocumentPiece], list[BadRecord]]:
    """All documents and all bad records of a range."""
    bad: list[BadRecord] = []
    pieces = json_line_pieces(InputFile(path), start, stop, text_field=text_field, on_bad_record=bad.append)
    return list(pieces), bad


def texts(path: str) -> list[str]:
    """The texts of a file without bad records."""
    pieces, bad = read(path)
    assert bad == []
    return [piece.text for piece in pieces]


def reasons(path: str, text_field: str = "text") -> list[tuple[str, str]]:
    """Key and reason of each bad record."""
    return [(record.key, record.reason) for record in read(path, text_field=text_field)[1]]


@given(
    lines=LINES,
    has_mark=st.booleans(),
    is_ended=st.booleans(),
    cuts=st.lists(st.integers(0, 500), max_size=6),
    block_bytes=st.integers(1, 40),
    max_line_bytes=st.integers(30, 60),
)
def test_a_cut_anywhere_changes_nothing(
    *, lines: list[bytes], has_mark: bool, is_ended: bool, cuts: list[int], block_bytes: int, max_line_bytes: int
) -> None:
    """Ranges one after the other give the documents and bad records of the whole, under the same keys."""
    data = b"\xef\xbb\xbf" * has_mark + b"\n".join(lines) + b"\n" * is_ended
    bounds = [0, *sorted(cuts), len(data)] if all(cut <= len(data) for cut in cuts) else [0, len(data)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = str(Path(folder) / "a.jsonl")
        Path(path).write_bytes(data)
        patch.setattr(json_lines, "_MAX_LINE_BYTES", max_line_bytes)
        whole, whole_bad = read(path)
        patch.setattr(input_file, "_BLOCK_BYTES", block_bytes)
        parts = [read(path, start, stop) for start, stop in pairwise(bounds)]

    pieces = [piece for part, _ in parts for piece in part]
    bad = [record for _, part in parts for record in part]
    assert [(piece.text, piece.key) for piece in pieces] == [(piece.text, piece.key) for piece in whole]
    assert [record.key for record in bad] == [record.key for record in whole_bad]
    assert sum(piece.num_bytes for piece in pieces) <= len(data)
    for piece in pieces:
        line = data[int(piece.key.removeprefix("byte ")) :].removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0]
        assert json.loads(line)["text"] == piece.text


def test_a_document_says_where_it_comes_from(place) -> None:
    """Path, offset of the line, and the bytes passed since the one before."""
    path = place("a.jsonl", b'{"text": "a"}\n\n{"text": "", "n": {"text": 1}}\n')

    assert read(path)[0] == [
        DocumentPiece("a", True, path, "byte 0", 46),
        DocumentPiece("", True, path, "byte 15", 0),
    ]


def test_a_field_may_have_any_name(place) -> None:
    """A dot in it has no meaning."""
    path = place("a.jsonl", '{"a": {"b": "x"}, "a.b": "y", "ü": "z"}'.encode())

    assert [read(path, text_field=name)[0][0].text for name in ("a.b", "ü")] == ["y", "z"]


@pytest.mark.parametrize("name", ['a"b', "a\\b", "\ud800"])
def test_a_field_that_cannot_be_asked_for_is_a_wrong_argument(place, name: str) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match="^text_field is .*, which cannot be read: "):
        read(place("a.jsonl", b""), text_field=name)


def test_the_last_field_of_a_name_counts(place) -> None:
    """As everywhere where JSON is read."""
    assert texts(place("a.jsonl", b'{"text": 1, "text": "a"}')) == ["a"]


def test_a_byte_order_mark_is_dropped(place) -> None:
    """At the start of the file; a line that holds nothing else is blank."""
    assert texts(place("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n')) == ["a"]
    assert texts(place("b.jsonl", b"\xef\xbb\xbf")) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a', "not JSON: Input data was truncated; wanted one JSON object on each line"),
        (b'{"text": "a"} x', "not JSON: JSON is malformed: trailing characters"),
        (b'{"a":' * 10_000, "not JSON: maximum recursion depth exceeded"),
        (rb'{"text": "\ud800 a"}', "not JSON: "),
        (rb'{"text": "\udc00"}', "not JSON: JSON is malformed: invalid utf-16 surrogate pair"),
        (b'{"text": "\xff"}', "not UTF-8: invalid start byte; wanted JSON in UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8: invalid continuation byte; wanted JSON in UTF-8"),
        (b'[{"text": "a"}]', "an array; wanted a JSON object on each line"),
        (b'"a"', "a string; wanted a JSON object on each line"),
        (b"{}", "no field 'text'; the object has nothing; name the field of the text"),
        (b'{"id": 1, "body": ""}', "no field 'text'; the object has 'id', 'body'; name the field of the text"),
        (b'{"text": null}', "field 'text' is null; wanted a string"),
        (b'{"text": {"a": 1}}', "field 'text' is an object; wanted a string"),
        (b'{"text": 1.5}', "field 'text' is a number; wanted a string"),
        (b'{"text": true}', "field 'text' is a boolean; wanted a string"),
        (b'{"text": "a", "text": 1}', "field 'text' is a number; wanted a string"),
    ],
)
def test_a_bad_line_is_reported_and_passed_over(place, line: bytes, reason: str) -> None:
    """With its offset and its line; the lines around it are documents."""
    path = place("a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')

    pieces, bad = read(path)

    assert [piece.text for piece in pieces] == ["a", "b"]
    assert [(record.source, record.key) for record in bad] == [(path, "byte 14")]
    assert bad[0].reason.startswith(f"line 2: {reason}")


def test_a_message_does_not_grow_with_a_line(place) -> None:
    """What a stranger calls a field is shown in part, and without control codes."""
    path = place("a.jsonl", json.dumps({"\x1b[31m" + "x" * 100_000: 1}).encode())

    ((_, reason),) = reasons(path)

    assert reason.isprintable()
    assert len(reason) < 200


def test_who_starts_in_the_middle_has_not_counted_lines(place) -> None:
    """A range that does not begin the file names the offset alone."""
    path = place("a.jsonl", b"1\n2\n")

    assert read(path, 1)[1] == [BadRecord(path, "byte 2", "a number; wanted a JSON object on each line")]


def test_a_line_that_is_too_long_is_never_held(place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported once, and the next line is a document."""
    monkeypatch.setattr(json_lines, "_MAX_LINE_BYTES", 20)
    monkeypatch.setattr(input_file, "_BLOCK_BYTES", 8)
    path = place("a.jsonl", b'{"text": "a"}\n' + b"x" * 1000 + b'\n{"text": "b"}\n' + b"x" * 1000)
    reason = "a line of more than 20 bytes; wanted one JSON object on each line"

    assert [piece.text for piece in read(path)[0]] == ["a", "b"]
    assert reasons(path) == [("byte 14", reason), ("byte 1029", reason)]


def test_a_range_within_a_long_line_stops_early(place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of one line, cut into many ranges, is not read to its end by each of them."""
    monkeypatch.setattr(input_file, "_BLOCK_BYTES", 8)
    file = InputFile(place("a.jsonl", b"x" * 1000))

    with file.open() as data:
        assert list(json_lines._line_blocks(data, 100, 120)) == []
        assert data.tell() < 140


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_lines_keep_what_comes_before_damage(place, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    """Lines before the place where a file was cut short are documents; then one bad record for the file."""
    lines = [json.dumps({"text": f"{n} " * 20}).encode() + b"\n" for n in range(1000)]
    data = compress(b"".join(lines[:500])) + compress(b"".join(lines[500:]))

    assert len(texts(place(f"whole.jsonl{suffix}", data))) == 1000
    pieces, bad = read(place(f"cut.jsonl{suffix}", data[:-20]))
    assert [piece.text for piece in pieces] == [f"{n} " * 20 for n in range(len(pieces))]
    assert 500 <= len(pieces) < 1000
    assert [(record.key, record.reason.partition(":")[0]) for record in bad] == [
        ("", "cannot be decompressed to its end")
    ]
    assert bad[0].reason.endswith("; the lines before are kept")
    assert sum(piece.num_bytes for piece in pieces) <= len(data)


def test_a_bad_record_may_stop_the_reading(place) -> None:
    """What the caller raises comes through, even where it is an error of the same kind as the reader's own."""

    def stop(record: BadRecord) -> None:
        raise FormatError(record.reason)

    for name, data in (("a.jsonl", b"1\n"), ("a.jsonl.gz", b"no gzip")):
        pieces = json_line_pieces(InputFile(place(name, data)), 0, None, text_field="text", on_bad_record=stop)
        with pytest.raises(FormatError, match="a number; wanted|cannot be decompressed"):
            list(pieces)


def test_a_place_that_fails_is_no_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another try may read it: the error ends the reading."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 10)
    monkeypatch.setattr(input_file, "_BLOCK_BYTES", 8)

    with InputFile(str(tmp_path / "a.jsonl")).open() as data:
        lines = json_lines._lines(data, 0, 1000, "a")
        next(lines)
        data.close()
        with pytest.raises(StorageError, match="a.jsonl: cannot be read to its end: .*closed"):
            list(lines)
