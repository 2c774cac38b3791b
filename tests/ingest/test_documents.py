"""Documents of all kinds of files: that parts of any size give the same."""

import bz2
import contextlib
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
def private_file() -> Iterator[str]:
    """A file that this process may see and may not read, also where it is started by root."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(b"text")
        read(InputRange(str(path), "text"))  # imports what is needed while that may be read
        os.chmod(folder, 0o755)  # noqa: PTH101
        path.chmod(0)
        if user == 0:
            os.seteuid(65_534)
        yield str(path)
        os.seteuid(user)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "arrow"])
def test_a_file_that_may_not_be_read_is_a_bad_record(private_file: str, kind: Kind) -> None:
    """Its permissions are a fact about the input, as its bytes are; it is one record, however many ranges it has."""
    assert [read(InputRange(private_file, kind, start)) for start in (0, 1)] == [
        ([], [BadRecord(private_file, "", "cannot be read: Permission denied")]),
        ([], []),
    ]


def test_a_plan_passes_over_a_file_that_may_not_be_read(private_file: str) -> None:
    """Who reads it reports it."""
    plan = plan_parts([str(Path(private_file).parent)], part_bytes=1)

    assert [one.path for part in plan.parts for one in part] == [private_file]


def test_a_server_that_refuses_is_no_bad_record(moto_s3, fault_proxy) -> None:
    """Credentials may have expired: all other files would be left out too, and nothing is wrong with them."""
    with fsspec.open(f"{moto_s3.url}/a.txt", "wb", **moto_s3.storage_options) as file:
        file.write(b"text")
    proxy = fault_proxy(moto_s3.endpoint_url, rates={"403": 1.0})
    bad: list[BadRecord] = []

    for endpoint_url, error in ((moto_s3.endpoint_url, None), (proxy.endpoint_url, PermissionError)):
        options = moto_s3.storage_options_at(endpoint_url)
        one = InputRange(f"{moto_s3.url}/a.txt", "text")
        pieces = pieces_of(one, text_field="text", on_bad_record=bad.append, storage_options=options)
        with pytest.raises(error) if error else contextlib.nullcontext():
            assert [piece.text for piece in pieces] == ["text"]
    assert bad == []


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
