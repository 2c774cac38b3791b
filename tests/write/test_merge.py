"""Parts written in parallel become one dataset."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import shardstream
from shardstream import DatasetWriter, FormatError, StorageError, merge
from shardstream.format.integrity import content_problem
from shardstream.format.manifest import Manifest


def write_part(uri: Any, tokens: list[int], **options: Any) -> Manifest:
    with DatasetWriter(uri, **{"vocab_size": 100, "shard_tokens": 4, "eos_id": 9, **options}) as writer:
        writer.append_document(tokens)
    return writer.manifest


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_parts_follow_one_another_without_a_copy(kind: str, tmp_path: Path) -> None:
    """The merged stream is the parts' streams in the order given; short and empty parts may stand anywhere."""
    root = str(tmp_path) if kind == "local" else f"memory:/{tmp_path}"
    write_part(f"{root}/b", [1, 2, 3, 4, 5])
    write_part(f"{root}/a/deep", [6], shard_tokens=3)
    with DatasetWriter(f"{root}/empty", vocab_size=100, eos_id=9):
        pass

    manifest = merge([f"{root}/b", f"{root}/empty", f"{root}/a/deep"], root, metadata={"run": 1})

    assert [shard.name for shard in manifest.shards] == [
        "b/shard-000000.bin",
        "b/shard-000001.bin",
        "a/deep/shard-000000.bin",
    ]
    assert (manifest.num_tokens, manifest.num_documents, manifest.metadata) == (8, 2, {"run": 1})
    dataset = shardstream.open(root)
    assert dataset.manifest == manifest
    assert dataset.verify().ok
    if kind == "local":
        assert dataset[:].tolist() == [1, 2, 3, 4, 5, 9, 6, 9]
        assert dataset.windows([3], 4).tolist() == [[4, 5, 9, 6]]


def test_compressed_parts_are_merged_as_they_are(tmp_path: Path) -> None:
    """Compressed and raw parts make one dataset, with the digest that it has where no part is compressed."""
    for kind, compressions in {"mixed": ("zstd", None), "raw": (None, None)}.items():
        write_part(tmp_path / kind / "a", [1, 2, 3, 4, 5], compression=compressions[0])
        write_part(tmp_path / kind / "b", [6], compression=compressions[1])
    mixed, raw = (merge([tmp_path / kind / part for part in "ab"], tmp_path / kind) for kind in ("mixed", "raw"))

    assert mixed.digest == raw.digest
    assert [(shard.name, bool(shard.stored)) for shard in mixed.shards] == [
        ("a/shard-000000.bin.zst", True),
        ("a/shard-000001.bin.zst", True),
        ("b/shard-000000.bin", False),
    ]
    for shard in mixed.shards:
        with (tmp_path / "mixed" / shard.name).open("rb") as file:
            assert content_problem(mixed, shard, file) is None


def test_side_files_come_along(tmp_path: Path) -> None:
    """The side files of parts lie where the merged manifest looks for them, and lead back through it."""
    for part in "ab":
        with DatasetWriter(tmp_path / part, vocab_size=100, shard_tokens=4, eos_id=9, side_files=True) as writer:
            writer.append_document([1, 2, 3, 4, 5], source=part)
    merge([tmp_path / part for part in "ab"], tmp_path)
    dataset = shardstream.open(tmp_path)

    assert [shard.documents_name for shard in dataset.manifest.shards] == [
        f"{part}/shard-{index:06d}.documents.parquet" for part in "ab" for index in range(2)
    ]
    assert [dataset.document_at(position).source for position in range(12)] == [*"aaaaaabbbbbb"]
    assert dataset.verify().ok


def test_the_order_of_many_parts_is_the_one_given(tmp_path: Path) -> None:
    """However many manifests are read at once, the stream is the parts' in their order, and the first bad one is named."""
    written = write_part(tmp_path / "000", [1]).to_json()
    parts = [tmp_path / f"{number:03d}" for number in range(60)]
    for part in parts[1:]:
        part.mkdir()
        (part / "manifest.json").write_bytes(written)
    manifest = merge(parts[::-1], tmp_path)
    for number in (7, 40):
        (parts[number] / "manifest.json").write_text("{}")

    assert [shard.name for shard in manifest.shards] == [f"{part.name}/shard-000000.bin" for part in parts[::-1]]
    with pytest.raises(FormatError, match="007/manifest.json: not a shardstream manifest"):
        merge(parts, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 101}, "vocab_size is 101, that of the first part is 100; parts must agree"),
        ({"eos_id": 8}, "tokenizer is .*eos_id=8.*parts must agree"),
    ],
)
def test_parts_that_differ_are_refused(options, message, tmp_path: Path) -> None:
    """Parts of another vocabulary or tokenizer are a FormatError that names part and field."""
    write_part(tmp_path / "a", [1])
    write_part(tmp_path / "b", [1], **options)

    with pytest.raises(FormatError, match=message):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_wrong_parts_are_refused(tmp_path: Path) -> None:
    """No part, a part twice, one outside the target, and one that is no dataset are each refused."""
    write_part(tmp_path / "all/a", [1])
    write_part(tmp_path / "b", [1])

    with pytest.raises(ValueError, match="no parts: give at least one"):
        merge([], tmp_path)
    with pytest.raises(ValueError, match="all/a is given twice"):
        merge([tmp_path / "all/a"] * 2, tmp_path / "all")
    with pytest.raises(ValueError, match="b does not lie below .*all; a merged dataset refers to its parts in place"):
        merge([tmp_path / "all/a", tmp_path / "b"], tmp_path / "all")
    with pytest.raises(ValueError, match="does not lie below"):
        merge([tmp_path / "all"], tmp_path / "all")
    with pytest.raises(StorageError, match="none/manifest.json: cannot read"):
        merge([tmp_path / "all/none"], tmp_path / "all")


def test_a_dataset_that_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    """Merging onto a manifest needs overwrite=True."""
    write_part(tmp_path / "a", [1])
    write_part(tmp_path / "b", [2])
    merge([tmp_path / "a"], tmp_path)

    with pytest.raises(StorageError, match="manifest.json: it exists already"):
        merge([tmp_path / "b"], tmp_path)
    merge([tmp_path / "b"], tmp_path, overwrite=True)
    assert shardstream.open(tmp_path)[:].tolist() == [2, 9]


def test_adopted_parts_are_refused(tmp_path: Path) -> None:
    """A part that refers to files elsewhere cannot be merged by its names."""
    manifest = write_part(tmp_path / "a", [1])
    shards = tuple(msgspec.structs.replace(shard, location="/elsewhere") for shard in manifest.shards)
    (tmp_path / "a/manifest.json").write_bytes(msgspec.structs.replace(manifest, shards=shards).to_json())

    with pytest.raises(FormatError, match="a/shard-000000.bin: an adopted file"):
        merge([tmp_path / "a"], tmp_path)


def test_unknown_row_fields_survive_a_merge(tmp_path: Path) -> None:
    """What a later version added to a row is kept."""
    manifest = write_part(tmp_path / "a", [1])
    later = msgspec.structs.replace(manifest, shard_extra={"shard-000000.bin": {"color": "red"}})
    (tmp_path / "a/manifest.json").write_bytes(later.to_json())

    assert merge([tmp_path / "a"], tmp_path).shard_extra == {"a/shard-000000.bin": {"color": "red"}}
