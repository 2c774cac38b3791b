"""A folder of text: which files, in which order, read how."""

from pathlib import Path

import pytest

from shardstream.ingest.documents import Document, read_document, text_files


def test_files_come_in_one_order_whatever_the_disk_says(tmp_path: Path) -> None:
    """Files are sorted by path; other suffixes, skipped folders and links are left out."""
    for name in ("b.py", "a/z.py", "a/b.txt", "c/skipped/x.py", "c/d/y.py", "a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
    (tmp_path / "loop").symlink_to(tmp_path)

    found = text_files(tmp_path, suffixes={".py", ".md"}, skipped_folders={"skipped"})

    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.md", "a/z.py", "b.py", "c/d/y.py"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A folder that is not there is no empty folder."""
    with pytest.raises(FileNotFoundError):
        text_files(tmp_path / "nowhere", suffixes={".py"})


@pytest.mark.parametrize(
    ("data", "document"),
    [
        (b"a\r\n\xc3\xbc", Document(text="a\r\nü", num_bytes=5, is_repaired=False)),
        (b"a\xffb", Document(text="a\ufffdb", num_bytes=3, is_repaired=True)),
        (b"", Document(text="", num_bytes=0, is_repaired=False)),
    ],
    ids=["utf-8", "not utf-8", "empty"],
)
def test_text_is_utf_8_and_what_is_not_is_replaced(tmp_path: Path, data: bytes, document: Document) -> None:
    """Line ends stay as they are; bytes that are no UTF-8 become U+FFFD, and the document says so."""
    (tmp_path / "x").write_bytes(data)

    assert read_document(tmp_path / "x") == document
