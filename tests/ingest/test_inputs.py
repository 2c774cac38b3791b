"""Which files the inputs are."""

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from shardstream import DatasetWriter
from shardstream.ingest.inputs import Inputs, find_inputs


def names(found: Inputs) -> list[str]:
    """The last component of each path."""
    return [file.path.rpartition("/")[2] for file in found.files]


def folder_of(path: str) -> str:
    """All but the last component."""
    return path.rpartition("/")[0]


def test_a_folder_gives_what_its_suffixes_tell(place) -> None:
    """Known suffixes, also compressed ones, in the order of paths; others are ignored and counted."""
    for name in ("b.jsonl", "c.txt.gz", "d.parquet", "a/z.feather", "a/e.py", "README", "f.npy", "g.JSON.zst"):
        path = place(f"top/{name}", b"123")
    folder = path[: path.index("top") + 3]

    found = find_inputs([folder], None)

    assert [(file.path.removeprefix(f"{folder}/"), file.kind, file.codec) for file in found.files] == [
        ("a/z.feather", "arrow", None),
        ("b.jsonl", "jsonl", None),
        ("c.txt.gz", "text", "gzip"),
        ("d.parquet", "parquet", None),
        ("g.JSON.zst", "jsonl", "zstd"),
    ]
    assert {file.num_bytes for file in found.files} == {3}
    assert found.num_ignored == 3


def test_a_file_that_is_named_is_text_unless_its_suffix_tells_else(place) -> None:
    """By itself or by a glob; the order of the inputs stays."""
    paths = [place(f"in/{name}", b"") for name in ("b.py", "a.log", "c.jsonl", ".hidden.py")]

    found = find_inputs([paths[2], paths[1], folder_of(paths[0]) + "/*.py"], None)

    assert names(found) == ["c.jsonl", "a.log", "b.py"]
    assert [file.kind for file in found.files] == ["jsonl", "text", "text"]
    assert names(find_inputs([paths[3]], None)) == [".hidden.py"]


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("*", ["a.py", "b.py"]),
        ("*/*", ["d.py"]),
        ("**", ["a.py", "b.py", "d.py", "c.py"]),
        ("**/*.py", ["a.py", "b.py", "d.py", "c.py"]),
        ("x/**/c.py", ["c.py"]),
        ("x/**/y/*", ["c.py"]),
        ("[bc].p?", ["b.py"]),
    ],
)
def test_globs_match_component_by_component(place, pattern: str, matching: list[str]) -> None:
    """A star stays within a name; two stand for folders at any depth, or none."""
    for name in ("a.py", "b.py", "x/y/c.py", "x/d.py"):
        path = place(f"top/{name}", b"")
    folder = path[: path.index("top") + 3]

    assert names(find_inputs([f"{folder}/{pattern}"], None)) == matching


def test_what_exists_is_no_glob(place) -> None:
    """A name with brackets is that name."""
    path = place("in/a[1].txt", b"")
    place("in/a1.txt", b"")

    assert [file.path for file in find_inputs([path], None).files] == [path]


def test_a_relative_name_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes may work in other folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()

    assert find_inputs(["a.txt"], None) == find_inputs([f"file://{tmp_path}/a.txt"], None) == find_inputs(["."], None)


def test_what_cannot_be_taken_is_refused_with_a_remedy(place) -> None:
    """Nothing, a name that is not there, a glob that matches nothing, a folder without text, a file named twice."""
    path = place("in/a.bin", b"")
    folder = folder_of(path)

    with pytest.raises(ValueError, match="^no inputs; name files, folders or globs"):
        find_inputs([], None)
    with pytest.raises(FileNotFoundError, match="in/b: no such file or folder$"):
        find_inputs([f"{folder}/b"], None)
    for pattern in ("/*.py", "/x/*", "/a.bin/*"):
        with pytest.raises(FileNotFoundError, match=r": matches no file; '\*\*' stands for folders at any depth"):
            find_inputs([folder + pattern], None)
    with pytest.raises(ValueError, match=r"none of its 1 files ends in .txt .* by a glob such as '.*in/\*\*/\*.py'$"):
        find_inputs([folder], None)
    with pytest.raises(
        ValueError, match=r"a.bin: named twice, the second time by '.*in/\*'; every file may be named once$"
    ):
        find_inputs([path, f"{folder}/*"], None)


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.feather.zst"])
def test_a_compressed_column_file_is_refused(place, name: str) -> None:
    """It would have to be read as a whole."""
    path = place(f"in/{name}", b"")

    for given in (path, folder_of(path)):
        with pytest.raises(ValueError, match="cannot be read from within (gzip|zstd); decompress it first$"):
            find_inputs([given], None)


@pytest.mark.parametrize(
    "name", ["a.zip", "a.txt.zip", "a.ZIP", "a.tar", "a.tar.gz", "a.tgz", "a.tbz", "a.tbz2", "a.txz", "a.tar.zst"]
)
def test_an_archive_is_refused(place, name: str) -> None:
    """Files in it would be lost, or run into one another."""
    path = place(f"in/{name}", b"")

    with pytest.raises(ValueError, match=r": an archive of files; unpack it, or name what is in it, as (zip|tar)://"):
        find_inputs([path], None)


def test_files_in_an_archive_are_named_as_its_refusal_says(tmp_path: Path) -> None:
    """What the message shows is a glob of all texts at any depth."""
    (tmp_path / "a.txt").write_bytes(b"12")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.txt", "top/a.txt")
        archive.write(tmp_path / "a.txt", "b.txt")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive_of_tapes:
        archive_of_tapes.add(tmp_path / "a.txt", "top/a.txt")
        archive_of_tapes.add(tmp_path / "a.txt", "b.txt")

    for name in ("a.zip", "a.tar.gz"):
        with pytest.raises(ValueError, match="an archive of files") as caught:
            find_inputs([str(tmp_path / name)], None)
        found = find_inputs([str(caught.value).rpartition(" as ")[2]], None)
        assert [(file.path.partition("::")[0][6:], file.num_bytes) for file in found.files] == [
            ("b.txt", 2),
            ("top/a.txt", 2),
        ]


def test_a_dataset_is_no_input(tmp_path: Path) -> None:
    """Tokens given in place of text are told by their manifest, also in a folder among text."""
    with DatasetWriter(tmp_path / "in/dataset", vocab_size=10) as writer:
        writer.append([1, 2])
    (tmp_path / "in/a.txt").touch()

    for given in ("in", "in/dataset", "in/dataset/manifest.json"):
        with pytest.raises(ValueError, match=r"manifest.json: a dataset's manifest; wanted text"):
            find_inputs([str(tmp_path / given)], None)


def test_another_manifest_is_json_lines(place) -> None:
    """The name alone makes no dataset."""
    path = place("in/manifest.json", b'{"text": "a"}')

    assert [file.kind for file in find_inputs([path], None).files] == ["jsonl"]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """No record of such a source could be kept."""
    (tmp_path / os.fsdecode(b"a\xff.txt")).touch()

    with pytest.raises(ValueError, match=r"a\\udcff.txt': the name is not UTF-8, and no record of it could be kept"):
        find_inputs([str(tmp_path)], None)
