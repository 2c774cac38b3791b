"""Documents of all kinds of files: that parts of any size give the same."""

import bz2
import gzip
import json
import lzma
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shardstream.errors import StorageError
from shardstream.ingest.documents import BadRecord, DocumentPiece, pieces_of
from shardstream.ingest.inputs import Kind
from shardstream.ingest.plan import InputRange, plan_parts

COMPRESSIONS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("", bytes),
    (".gz", gzip.compress),
    (".zst", zstandard.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
]


def write(path: Path, texts: list[str]) -> None:
    """Texts as the suffix asks: one document each, but in a text file, which is one."""
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    compress = dict(COMPRESSIONS).get(path.suffix, bytes)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, chunksize=2)
    elif ".jsonl" in path.suffixes:
        path.write_bytes(compress(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)))
    else:
        path.write_bytes(compress("".join(texts).encode()))


def read(one: InputRange) -> tuple[list[DocumentPiece], list[BadRecord]]:
    """All documents and bad records of a range."""
    bad: list[BadRecord] = []
    return list(pieces_of(one, text_field="text", on_bad_record=bad.append)), bad


@given(
    files=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    ".jsonl",
                    ".parquet",
                    ".feather",
                    *(f"{kind}{suffix}" for kind in (".txt", ".jsonl") for suffix, _ in COMPRESSIONS),
                ]
            ),
            st.lists(st.text("aü\n\U0001f600", max_size=8), max_size=8),
        ),
        min_size=1,
        max_size=5,
    ),
    part_bytes=st.sampled_from([1, 10, 100, 1000, None]),
)
def test_documents_do_not_depend_on_the_parts(files: list[tuple[str, list[str]]], part_bytes: int | None) -> None:
    """All parts one after the other give every document of every file, once, in order, under its own key."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (suffix, texts) in enumerate(files):
            write(Path(folder) / f"{number}{suffix}", texts)
        read_parts = [read(one) for part in plan_parts([folder], part_bytes=part_bytes).parts for one in part]

    pieces = [piece for part, _ in read_parts for piece in part]
    wanted = [texts if ".txt" not in suffix else ["".join(texts)] for suffix, texts in files]
    assert [bad for _, bad in read_parts if bad] == []
    assert [piece.text for piece in pieces] == [text for texts in wanted for text in texts]
    assert all(piece.is_last for piece in pieces)
    assert len({(piece.source, piece.key) for piece in pieces}) == len(pieces)


@pytest.fixture
def private_folder() -> Iterator[Path]:
    """A folder of files that this process may see and may not read, also where it is started by root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        path.write_bytes(b"text")
        read(InputRange(str(path), "parquet"))  # imports what is needed while that may be read
        path.with_name("manifest.json").write_bytes(b'{"format": "')
        os.chmod(folder, 0o755)  # noqa: PTH101
        for file in Path(folder).iterdir():
            file.chmod(0)
        if user == 0:
            os.seteuid(65_534)
        yield Path(folder)
        os.seteuid(user)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "arrow"])
def test_a_file_that_may_not_be_read_is_a_bad_record(private_folder: Path, kind: Kind) -> None:
    """Its permissions are a fact about the input, as its bytes are; it is one record, however many ranges it has."""
    path = str(private_folder / "a.parquet")

    assert [read(InputRange(path, kind, start)) for start in (0, 1)] == [
        ([], [BadRecord(path, "", "cannot be read: Permission denied")]),
        ([], []),
    ]


def test_a_plan_passes_over_a_file_that_may_not_be_read(private_folder: Path) -> None:
    """Who reads it reports it, also where the plan would look whether it can be cut, or is a dataset's manifest."""
    plan = plan_parts([str(private_folder)], part_bytes=1)

    assert {one.path for part in plan.parts for one in part} == {
        str(private_folder / "a.parquet"),
        str(private_folder / "manifest.json"),
    }


SERVER_FAULTS = [PermissionError(13, "credentials have expired"), OSError(5, "the server is down")]


@pytest.mark.parametrize("fault", SERVER_FAULTS, ids=["refuses", "fails"])
@pytest.mark.parametrize("call", ["info", "open"])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize(
    ("suffix", "kind"), [(".txt", "text"), (".jsonl", "jsonl"), (".parquet", "parquet"), (".feather", "arrow")]
)
def test_a_server_that_fails_ends_the_reading(  # noqa: PLR0917 - what is multiplied
    tmp_path: Path,
    faults: dict[tuple[str, str], OSError],
    suffix: str,
    kind: Kind,
    start: int,
    call: str,
    fault: OSError,
) -> None:
    """No document is left out for it, and no record is called bad: another try may read all of them."""
    write(tmp_path / f"a{suffix}", ["a", "b", "c"])
    fsspec.filesystem("memory").pipe(f"/in/a{suffix}", (tmp_path / f"a{suffix}").read_bytes())
    one = InputRange(f"faulty://in/a{suffix}", kind, start)
    assert read(one)[0]
    bad: list[BadRecord] = []
    faults[call, f"/in/a{suffix}"] = fault

    with pytest.raises(OSError) as caught:
        list(pieces_of(one, text_field="text", on_bad_record=bad.append))

    assert caught.value is fault
    assert bad == []


@pytest.mark.parametrize("fault", SERVER_FAULTS, ids=["refuses", "fails"])
@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_a_server_that_fails_leaves_no_plan(
    tmp_path: Path, faults: dict[tuple[str, str], OSError], suffix: str, fault: OSError
) -> None:
    """Where a file may be cut is not known: another try would make other parts of the same inputs."""
    write(tmp_path / f"a{suffix}", ["a", "b", "c"])
    fsspec.filesystem("memory").pipe(f"/in/a{suffix}", (tmp_path / f"a{suffix}").read_bytes())
    assert len(plan_parts(["faulty://in"], part_bytes=1).parts) == 2
    faults["open", f"/in/a{suffix}"] = fault

    with pytest.raises(OSError) as caught:
        plan_parts(["faulty://in"], part_bytes=1)

    assert caught.value is fault


def test_documents_come_from_s3(moto_s3) -> None:
    """Files at any depth, in the plan and in the reading."""
    for name in ("b.txt", "a/c.txt", "a/.hidden/d.txt", ".e.txt"):
        with fsspec.open(f"{moto_s3.url}/{name}", "wb", **moto_s3.storage_options) as file:
            file.write(name.encode())

    plan = plan_parts([moto_s3.url], storage_options=moto_s3.storage_options)
    pieces = [
        piece
        for one in plan.parts[0]
        for piece in pieces_of(one, text_field="text", on_bad_record=print, storage_options=moto_s3.storage_options)
    ]

    assert [piece.text for piece in pieces] == ["a/c.txt", "b.txt"]


@pytest.mark.parametrize("num_texts", [1, 5], ids=["shorter", "longer"])
@pytest.mark.parametrize("part_bytes", [1, None], ids=["cut", "whole"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".jsonl.gz", ".parquet", ".feather"])
def test_a_file_that_has_changed_ends_the_reading(
    tmp_path: Path, suffix: str, part_bytes: int | None, num_texts: int
) -> None:
    """Rows that nobody reads, or half lines, are never left out without a word."""
    path = tmp_path / f"a{suffix}"
    write(path, ["word " * 9, "another " * 9, "b", "c"])
    num_bytes = path.stat().st_size
    parts = plan_parts([str(path)], part_bytes=part_bytes).parts
    write(path, ["a longer word " * 9] * num_texts)
    assert path.stat().st_size != num_bytes

    for [one] in parts:
        with pytest.raises(StorageError) as caught:
            read(one)
        assert str(caught.value) == (
            f"{path}: has changed since the job was planned: {num_bytes} bytes then, {path.stat().st_size} now; begin "
            "again when nothing writes to it any more"
        )


def test_a_file_that_is_gone_ends_the_reading(place) -> None:
    """The inputs are no longer those of the plan."""
    path = place("a.txt", b"")

    with pytest.raises(FileNotFoundError, match="a.txtx: no such file$"):
        read(InputRange(f"{path}x", "text"))


def test_documents_come_through_any_filesystem(tmp_path: Path) -> None:
    """Options reach the filesystem, here a cache in front of another one, in the plan as in the reading."""
    with fsspec.open("memory://in/a.txt", "wb") as file:
        file.write(b"text")
    options = {"simplecache": {"cache_storage": str(tmp_path)}}

    plan = plan_parts(["simplecache::memory://in"], storage_options=options)
    pieces = list(pieces_of(plan.parts[0][0], text_field="text", on_bad_record=print, storage_options=options))

    assert [(piece.text, piece.source) for piece in pieces] == [("text", "simplecache::memory://in/a.txt")]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"text"]
    fsspec.filesystem("memory").store.clear()
