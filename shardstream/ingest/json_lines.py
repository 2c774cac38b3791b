"""JSON lines -> documents: one field of the object on each line."""

import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple

import msgspec

from shardstream.errors import FormatError
from shardstream.ingest.document_pieces import BadRecord, DocumentPiece, OnBadRecord
from shardstream.ingest.input_file import InputFile, blocks_of
from shardstream.ingest.shown_names import shown_names

# A longer line is passed over and never held: a file without line ends must not fill memory.
_MAX_LINE_BYTES: Final = 2**28
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_NAMES_OF_TYPES: Final[dict[type, str]] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "an array",
    str: "a string",
    type(None): "null",
}


class _Line(NamedTuple):
    data: bytes
    """Without its line end."""
    offset: int
    """Of its first byte."""


def json_line_pieces(
    file: InputFile, start: int, stop: int | None, *, text_field: str, on_bad_record: OnBadRecord
) -> Iterator[DocumentPiece]:
    """The documents of all lines whose first byte is in ``[start, stop)``. Lines of white space alone are passed over.

    Of the other fields only their form is looked at. A byte order mark at the file's start is dropped. Memory is
    bounded by some seven times the longest line, which may take 256 MiB: measured are three times of ASCII, and seven of
    a text with one emoji, whose every character Python keeps in four bytes.

    Args:
        file: Lines of JSON, UTF-8, each an object.
        start, stop: Offsets in the file, half-open; None is its end. A compressed file is read from 0 to None.
        text_field: Name of the field that holds the text, a string.
        on_bad_record: Gets every line that is no such object and, once, that the rest of a compressed file is lost.

    Raises:
        ValueError: ``text_field`` cannot be the name of a field.
        OSError: The file cannot be read.
    """
    text_of = _text_decoder(text_field)
    limit = sys.maxsize if stop is None else stop
    num_passed = start
    with file.decompressed() as (data, stored):
        for number, line in enumerate(_lines(data, start, limit, file.name), 1):
            if isinstance(line, BadRecord):
                on_bad_record(line)
                continue
            try:
                text = text_of(line.data)
            except FormatError as error:
                where = f"line {number}: " if start == 0 else ""  # who begins in the middle has not counted
                on_bad_record(BadRecord(file.name, f"byte {line.offset}", f"{where}{error}"))
                continue
            if text is not None:
                now = min(stored.tell(), limit)
                yield DocumentPiece(text, True, file.name, f"byte {line.offset}", now - num_passed)  # noqa: FBT003
                num_passed = now


def _lines(data: BinaryIO, start: int, stop: int, name: str) -> Iterator[_Line | BadRecord]:
    """The lines whose first byte is in ``[start, stop)``; what is too long or cannot be decompressed in their place."""
    try:
        for offset, lines in _line_blocks(data, start, stop):
            position = offset
            for line in [None] if lines is None else _without_mark(lines, offset).split(b"\n"):
                if position >= stop:
                    return
                if line is None or len(line) > _MAX_LINE_BYTES:
                    reason = f"a line of more than {_MAX_LINE_BYTES} bytes; wanted one JSON object on each line"
                    yield BadRecord(name, f"byte {position}", reason)
                else:
                    yield _Line(line, position)
                position += 0 if line is None else len(line) + 1
    except FormatError as error:
        yield BadRecord(name, "", f"{error}; the lines before are kept")


def _without_mark(lines: bytes, offset: int) -> bytes:
    """Spaces in place of a byte order mark, so that offsets stay true."""
    if offset == 0 and lines.startswith(_BYTE_ORDER_MARK):
        return b" " * len(_BYTE_ORDER_MARK) + lines[len(_BYTE_ORDER_MARK) :]
    return lines


def _line_blocks(data: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes | None]]:
    """Whole lines, many at once, and the offset of the first; None in place of a line that is too long.

    The first line begins after the first line end from ``start - 1`` on. The last block may hold lines beyond ``stop``.
    """
    offset = max(start - 1, 0)  # of what is pending: the beginning of a line
    pending: list[bytes] = []
    num_pending = 0
    is_passing_over = start > 0  # the rest of a line that is not wanted
    if start > 0:
        data.seek(offset)
    for block in blocks_of(data):
        rest = block
        if is_passing_over:
            end = block.find(b"\n") + 1
            is_passing_over = end == 0
            offset += end or len(block)
            rest = block[end:] if end else b""
        end = rest.rfind(b"\n") + 1
        if end:
            lines = b"".join([*pending, rest[: end - 1]])
            yield offset, lines
            offset += len(lines) + 1
            pending, num_pending, rest = [], 0, rest[end:]
        pending.append(rest)
        num_pending += len(rest)
        if num_pending > _MAX_LINE_BYTES:
            yield offset, None
            offset += num_pending
            pending, num_pending, is_passing_over = [], 0, True
        if offset >= stop:
            return
    if num_pending:
        yield offset, b"".join(pending)


def _text_decoder(text_field: str) -> Callable[[bytes], str | None]:
    """What finds the text of a line: None where the line is blank, a FormatError where it holds none."""
    try:
        # Values of other fields are passed over and never made.
        only_text = msgspec.defstruct("OnlyText", [("text", str)], rename={"text": text_field}, gc=False)
    except ValueError as error:
        raise ValueError(f"text_field is {text_field!r}, which cannot be read: {error}") from error
    decode = msgspec.json.Decoder(only_text).decode

    def text_of(line: bytes) -> str | None:
        try:
            text: str = decode(line).text  # type: ignore[attr-defined]
        except (ValueError, RecursionError):
            return _text_of_odd_line(line, text_field) if line.strip() else None
        return text

    return text_of


def _text_of_odd_line(line: bytes, text_field: str) -> str:
    """The text where the last field of several that bear the name is one; else what is wrong."""
    try:
        found = msgspec.json.decode(line)
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8: {error.reason}; wanted JSON in UTF-8") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}; wanted one JSON object on each line") from error
    if not isinstance(found, dict):
        raise FormatError(f"{_NAMES_OF_TYPES[type(found)]}; wanted a JSON object on each line")
    if text_field not in found:
        names = shown_names(list(found)) or "nothing"
        raise FormatError(f"no field {text_field!r}; the object has {names}; name the field of the text")
    text = found[text_field]
    if not isinstance(text, str):
        raise FormatError(f"field {text_field!r} is {_NAMES_OF_TYPES[type(text)]}; wanted a string")
    return text
