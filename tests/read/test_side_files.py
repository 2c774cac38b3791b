"""From a token back to its document."""

import itertools
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream
from shardstream import DatasetWriter, FormatError, IntegrityError, SourceDocument, StorageError, TokenDataset
from tests.conftest import S3Place

EOS = 99


def write_documents(uri: Any, lengths: list[int], *, shard_tokens: int = 5, **options: Any) -> shardstream.Manifest:
    """Documents of so many tokens, without the ``eos_id`` after each."""
    with DatasetWriter(
        uri, vocab_size=100, eos_id=EOS, shard_tokens=shard_tokens, side_files=True, **options
    ) as writer:
        for number, length in enumerate(lengths):
            writer.append_document([number] * length, source=f"file {number % 3}", key=str(number))
    return writer.manifest


def documents_of(lengths: list[int]) -> list[SourceDocument]:
    """The document of each position."""
    starts = itertools.accumulate((length + 1 for length in lengths), initial=0)
    return [
        SourceDocument(start=start, source=f"file {number % 3}", key=str(number))
        for number, (start, length) in enumerate(zip(starts, lengths, strict=False))
        for _ in range(length + 1)
    ]


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    shard_tokens=st.integers(1, 9),
    compression=st.sampled_from([None, "zstd"]),
)
def test_every_token_leads_to_its_document(lengths, shard_tokens, compression, tmp_path_factory) -> None:
    """Any position, its eos included, has the document that it was written with, in whichever shard that began."""
    folder = tmp_path_factory.mktemp("dataset")
    write_documents(folder, lengths, shard_tokens=shard_tokens, compression=compression)
    expected = documents_of(lengths)

    with shardstream.open(folder) as dataset:
        assert [dataset.document_at(position) for position in range(len(dataset))] == expected
        assert dataset.document_at(-1) == expected[-1]
        assert dataset.verify().ok


def test_a_remote_side_file_is_read_once(s3: S3Place) -> None:
    """Behind a URL one request brings a side file, and the next questions to the same shard need none."""
    lengths = [3, 12, 1]
    write_documents(s3.url, lengths, storage_options=s3.storage_options)
    with shardstream.open(s3.url, storage_options=s3.storage_options) as dataset:
        before = dataset.traffic().num_requests
        found = [dataset.document_at(position) for position in range(len(dataset))]
        num_requests = dataset.traffic().num_requests - before

    assert found == documents_of(lengths)
    assert num_requests == 2  # those of the shards in which documents start
    assert dataset.verify().ok


def test_only_the_last_few_side_files_stay_in_memory(tmp_path: Path) -> None:
    """A side file of the last four is not read again; an older one is."""
    write_documents(tmp_path, [4] * 6)
    dataset = shardstream.open(tmp_path)
    for position in range(0, 30, 5):
        dataset.document_at(position)
    for path in tmp_path.glob("*.parquet"):
        path.unlink()

    assert [dataset.document_at(position).key for position in range(10, 30, 5)] == ["2", "3", "4", "5"]
    with pytest.raises(StorageError, match="shard-000001.documents.parquet: cannot read: there is no such file"):
        dataset.document_at(5)


@pytest.mark.parametrize("position", [10, -11])
def test_a_position_outside_is_an_index_error(position: int, tmp_path: Path) -> None:
    """A position that the dataset has not is refused as an index is."""
    write_documents(tmp_path, [4, 4])

    with pytest.raises(IndexError, match=f"position {position} is not in the dataset's 10 tokens"):
        shardstream.open(tmp_path).document_at(position)


def test_a_dataset_without_side_files_says_so(tmp_path: Path) -> None:
    """Where a shard has no side file, the shard and the way to have one are named, also when others have one."""
    write_documents(tmp_path / "a", [4])
    with DatasetWriter(tmp_path / "b", vocab_size=100, eos_id=EOS) as writer:
        writer.append_document([1])
    shardstream.merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    dataset = shardstream.open(tmp_path)

    assert dataset.document_at(4).key == "0"
    with pytest.raises(FormatError, match=r"shard b/shard-000000.bin has no side file.*side_files=True"):
        dataset.document_at(5)


def test_side_files_that_list_no_first_document_are_refused(tmp_path: Path) -> None:
    """Tokens before the first document that is listed belong to none: the search ends at the first shard."""
    manifest = write_documents(tmp_path, [12, 1])
    first, *others = manifest.shards
    empty = others[0]  # no document starts in it
    (tmp_path / empty.documents_name).replace(tmp_path / first.documents_name)
    shards = (msgspec.structs.replace(first, documents=empty.documents), *others)
    (tmp_path / "manifest.json").write_bytes(msgspec.structs.replace(manifest, shards=shards).to_json())

    with pytest.raises(FormatError, match="no side file lists a document that starts up to 12"):
        shardstream.open(tmp_path).document_at(12)


def dataset_with(folder: Path, name: str, damage: Any) -> TokenDataset:
    write_documents(folder, [4, 4])
    dataset = shardstream.open(folder)
    damage(folder / name)
    return dataset


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def lead_out(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "error", "problem"),
    [
        (flip, IntegrityError, "checksum is sha256 .*, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), IntegrityError, "too long: .*the manifest says"),
        (lambda path: path.write_bytes(b""), IntegrityError, "truncated: .*the manifest says"),
        (lambda path: path.unlink(), StorageError, "there is no such file|missing"),
        (lead_out, FormatError, "a symbolic link where a shard should be"),
        (pipe, StorageError, "not a regular file"),
    ],
    ids=["flip", "too long", "empty", "missing", "link", "pipe"],
)
def test_damage_to_a_side_file_is_found(damage: Any, error: Any, problem: str, tmp_path: Path) -> None:
    """A damaged side file is not believed, verify names it, and the tokens can still be read."""
    dataset = dataset_with(tmp_path, "shard-000001.documents.parquet", damage)

    with pytest.raises(error, match=f"shard-000001.documents.parquet: .*({problem})"):
        dataset.document_at(5)
    [found] = dataset.verify().problems
    assert found.shard == "shard-000001.bin"
    assert "shard-000001.documents.parquet" in found.problem
    assert dataset[:].tolist() == [0, 0, 0, 0, EOS, 1, 1, 1, 1, EOS]
