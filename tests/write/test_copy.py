"""``shardstream.copy``: the same bytes elsewhere, or nothing."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import shardstream
from shardstream.storage.store import store_of
from shardstream.write.copy import _Copying
from tests.conftest import S3Place

NUM_SHARDS = 5


def write(uri: Any, *, compression: Any = None, first: int = 0, **options: Any) -> shardstream.Manifest:
    with shardstream.DatasetWriter(
        uri, vocab_size=2**16, shard_tokens=64, compression=compression, overwrite=True, **options
    ) as writer:
        writer.append(np.arange(first, first + 64 * (NUM_SHARDS - 1) + 5))
    return writer.manifest


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("route", list(itertools.product(["local", "s3"], repeat=2)), ids="-".join)
def test_a_copy_is_the_same_bytes_in_any_store(
    s3: S3Place, tmp_path: Path, route: tuple[str, str], compression: str | None
) -> None:
    """From any store to any store: the same objects, byte for byte, and no journal left."""
    places: dict[str, list[Any]] = {"local": [tmp_path / "a", tmp_path / "b"], "s3": [s3.url + "/a", s3.url + "/b"]}
    src, dst = places[route[0]][0], places[route[1]][1]
    options: dict[str, Any] = {"storage_options": s3.storage_options}
    write(src, compression=compression, **options)

    copied = shardstream.copy(src, dst, **options)

    source, target = (store_of(uri, s3.storage_options) for uri in (src, dst))
    assert len(copied) == NUM_SHARDS
    assert source.names() == target.names()
    for name in source.names():
        assert source.get(name, max_bytes=10_000) == target.get(name, max_bytes=10_000)


def write_documents(uri: Any, **options: Any) -> shardstream.Manifest:
    """A dataset with side files."""
    with shardstream.DatasetWriter(uri, vocab_size=100, shard_tokens=8, eos_id=9, side_files=True, **options) as writer:
        for number in range(5):
            writer.append_document([number] * 4, source="s", key=str(number))
    return writer.manifest


def test_side_files_are_copied_and_verified(s3: S3Place, tmp_path: Path) -> None:
    """Side files travel with their shards, there and back; one that is lost is brought back, a damaged one is refused."""
    options: dict[str, Any] = {"storage_options": s3.storage_options}
    manifest = write_documents(tmp_path / "a")
    lost = manifest.shards[1]
    sizes: list[int] = []

    shardstream.copy(tmp_path / "a", s3.url, **options)
    shardstream.copy(s3.url, tmp_path / "b", **options, progress=sizes.append)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    assert sum(sizes) == manifest.num_bytes
    (tmp_path / "b" / lost.documents_name).unlink()
    assert shardstream.copy(tmp_path / "a", tmp_path / "b") == (lost,)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    data = bytearray((tmp_path / "a" / lost.documents_name).read_bytes())
    data[20] ^= 1
    (tmp_path / "a" / lost.documents_name).write_bytes(data)
    with pytest.raises(
        shardstream.IntegrityError, match=r"shard-000001.documents.parquet: checksum is sha256 .*verify"
    ):
        shardstream.copy(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_each_store_may_have_options_of_its_own(s3: S3Place, moto_s3: S3Place, tmp_path: Path) -> None:
    """The target's storage options are the source's unless it has its own."""
    write(s3.url, storage_options=s3.storage_options)

    with pytest.raises(shardstream.StorageError):
        shardstream.copy(tmp_path, moto_s3.url, storage_options={"anon": True}, dst_storage_options={})
    shardstream.copy(
        s3.url, moto_s3.url, storage_options=s3.storage_options, dst_storage_options=moto_s3.storage_options
    )

    assert shardstream.open(moto_s3.url, storage_options=moto_s3.storage_options, cache_dir=False)[70] == 70


class _CrashError(Exception):
    pass


def crashing_after(num_calls: int) -> Callable[[int], None]:
    calls = itertools.count(1)

    def progress(num_bytes: int) -> None:
        if next(calls) > num_calls:
            raise _CrashError

    return progress


@pytest.mark.parametrize("store", ["local", "s3"])
@pytest.mark.parametrize("num_shards", range(NUM_SHARDS))
def test_a_copy_that_broke_off_goes_on(s3: S3Place, tmp_path: Path, store: str, num_shards: int) -> None:
    """After a crash in any shard no dataset is there, and the next run copies the shards that are not, and no others."""
    src, dst = tmp_path / "a", tmp_path / "b" if store == "local" else s3.url
    manifest = write(src)
    options: dict[str, Any] = {"storage_options": s3.storage_options, "num_threads": 1}

    with pytest.raises(_CrashError):
        shardstream.copy(src, dst, **options, progress=crashing_after(num_shards))
    with pytest.raises(shardstream.StorageError, match="there is no such file"):
        shardstream.open(dst, storage_options=s3.storage_options)
    copied = shardstream.copy(src, dst, **options)

    assert copied == manifest.shards[num_shards:]
    assert store_of(dst, s3.storage_options).names() == store_of(src).names()
    assert shardstream.open(dst, storage_options=s3.storage_options).verify().ok


def test_a_crash_before_the_journal_is_removed_leaves_a_whole_copy(tmp_path: Path) -> None:
    """The manifest is there and so is the journal: the next run removes it and copies nothing."""
    write(tmp_path / "a")
    shardstream.copy(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "journal").mkdir()
    (tmp_path / "b" / "journal" / "copy.json").write_bytes((tmp_path / "a" / "manifest.json").read_bytes())

    assert shardstream.copy(tmp_path / "a", tmp_path / "b") == ()
    assert files_in(tmp_path / "b") == files_in(tmp_path / "a")


def test_shards_that_were_lost_or_cut_are_copied_again(tmp_path: Path) -> None:
    """Of a copy that is complete, shards that are missing or have another size are brought back."""
    manifest = write(tmp_path / "a")
    shardstream.copy(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "shard-000001.bin").unlink()
    (tmp_path / "b" / "shard-000003.bin").write_bytes(b"cut")

    assert shardstream.copy(tmp_path / "a", tmp_path / "b") == (manifest.shards[1], manifest.shards[3])
    assert files_in(tmp_path / "b") == files_in(tmp_path / "a")


def test_progress_adds_up_to_the_stored_bytes(tmp_path: Path) -> None:
    """Whether copied or found to be there, each stored byte is reported once."""
    write(tmp_path / "a", compression="zstd")
    expected = sum(path.stat().st_size for path in (tmp_path / "a").glob("shard-*"))

    for _ in range(2):
        reported: list[int] = []
        shardstream.copy(tmp_path / "a", tmp_path / "b", progress=reported.append)
        assert sum(reported) == expected


def test_a_dataset_without_shards_is_its_manifest(tmp_path: Path) -> None:
    """An empty dataset can be copied too."""
    with shardstream.DatasetWriter(tmp_path / "a", vocab_size=9):
        pass

    assert shardstream.copy(tmp_path / "a", tmp_path / "b") == ()
    assert len(shardstream.open(tmp_path / "b")) == 0


def test_a_header_is_copied_and_is_no_part_of_the_checksum(tmp_path: Path) -> None:
    """Of a file with a foreign header before its tokens all bytes are copied, and the tokens are verified."""
    manifest = write(tmp_path / "a")
    shard = tmp_path / "a" / "shard-000000.bin"
    shard.write_bytes(b"headings" + shard.read_bytes())
    headed = msgspec.structs.replace(manifest.shards[0], byte_offset=8)
    changed = msgspec.structs.replace(manifest, shards=(headed, *manifest.shards[1:]))
    (tmp_path / "a" / "manifest.json").write_bytes(changed.to_json())

    shardstream.copy(tmp_path / "a", tmp_path / "b")

    assert files_in(tmp_path / "b") == files_in(tmp_path / "a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "shard-000002.bin: missing"),
        (lambda path: path.write_bytes(b"cut"), "shard-000002.bin: truncated: 3 bytes, the manifest says 128"),
        (lambda path: path.write_bytes(bytes(130)), "shard-000002.bin: too long: 130 bytes, the manifest says 128"),
        (lambda path: path.write_bytes(bytes(128)), "shard-000002.bin: checksum is sha256 [0-9a-f]{64}, the manifest"),
    ],
    ids=["missing", "cut", "too long", "altered"],
)
def test_a_bad_shard_publishes_nothing(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    """A shard that is not what the manifest says stops the copy, and is named; it is not in the target."""
    write(tmp_path / "a")
    damage(tmp_path / "a" / "shard-000002.bin")

    with pytest.raises(shardstream.IntegrityError, match=message):
        shardstream.copy(tmp_path / "a", tmp_path / "b")

    assert not {"manifest.json", "shard-000002.bin"} & set(files_in(tmp_path / "b"))


def test_a_link_out_of_the_source_is_refused(tmp_path: Path) -> None:
    """A shard that is a link to a file elsewhere is not copied."""
    write(tmp_path / "a")
    shard = tmp_path / "a" / "shard-000000.bin"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(shardstream.FormatError, match="a symbolic link where a shard should be"):
        shardstream.copy(tmp_path / "a", tmp_path / "b")


def test_a_fault_on_the_way_is_made_good(s3: S3Place, tmp_path: Path, fault_proxy) -> None:
    """A body that arrives with a wrong byte is asked for again; what is written is right, and progress adds up."""
    manifest = write(s3.url, storage_options=s3.storage_options)
    proxy = fault_proxy(s3.endpoint_url, rates={"wrong": 0.3}, seed=3, only="shard-", methods=["GET"])
    reported: list[int] = []

    shardstream.copy(
        s3.url,
        tmp_path / "b",
        storage_options=s3.storage_options_at(proxy.endpoint_url),
        num_threads=1,
        progress=reported.append,
    )

    assert "wrong" in {request.outcome for request in proxy.requests}
    assert sum(reported) == manifest.num_bytes
    assert shardstream.open(tmp_path / "b").verify().ok


def test_threads_stop_when_one_has_failed(tmp_path: Path) -> None:
    """A copy that is given up ends within a range, and leaves no part of a shard."""
    manifest = write(tmp_path / "a")
    copying = _Copying(store_of(tmp_path / "a"), store_of(tmp_path / "b"), frozenset(), lambda num_bytes: num_bytes)
    copying._is_over.set()

    with pytest.raises(shardstream.StorageError, match="the copy was given up"):
        copying.run(manifest, 1)

    assert files_in(tmp_path / "b") == {}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"first": 1},
            r"a dataset that is another one \(digest [0-9a-f]{64}, not [0-9a-f]{64}\); choose an empty place",
        ),
        ({"compression": "zstd"}, r"a dataset that is another one \(stored in another way\); choose an empty place"),
    ],
    ids=["other tokens", "other bytes"],
)
def test_another_dataset_is_left_alone(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    """A target that holds another dataset, be it the same tokens stored otherwise, is refused and stays."""
    write(tmp_path / "a")
    write(tmp_path / "b", **other)
    before = files_in(tmp_path / "b")

    with pytest.raises(shardstream.StorageError, match=message):
        shardstream.copy(tmp_path / "a", tmp_path / "b")

    assert files_in(tmp_path / "b") == before


def test_the_unfinished_copy_of_another_dataset_is_left_alone(tmp_path: Path) -> None:
    """A copy that broke off goes on with the dataset that it began with, and with no other."""
    write(tmp_path / "a")
    write(tmp_path / "c", first=1)
    with pytest.raises(_CrashError):
        shardstream.copy(tmp_path / "a", tmp_path / "b", num_threads=1, progress=crashing_after(2))
    before = files_in(tmp_path / "b")

    with pytest.raises(shardstream.StorageError, match="the unfinished copy of a dataset that is another one"):
        shardstream.copy(tmp_path / "c", tmp_path / "b")

    assert files_in(tmp_path / "b") == before


def test_files_of_others_and_unfinished_datasets_are_left_alone(tmp_path: Path) -> None:
    """A target with anything else in it is refused: files, or a dataset that a writer has not finished."""
    write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    writer = shardstream.DatasetWriter(tmp_path / "c", vocab_size=9)

    with pytest.raises(shardstream.StorageError, match="it holds 1 other files, such as notes.txt; choose an empty"):
        shardstream.copy(tmp_path / "a", tmp_path / "b")
    with pytest.raises(shardstream.StorageError, match="it holds a dataset that is being written; choose an empty"):
        shardstream.copy(tmp_path / "a", tmp_path / "c")
    writer.close()

    assert files_in(tmp_path / "b") == {"notes.txt": b"mine"}


def test_a_writer_may_replace_an_unfinished_copy(tmp_path: Path) -> None:
    """A writer refuses an unfinished copy, and with overwrite removes it: all of its shards, whatever their names."""
    write(tmp_path / "all" / "part-0")
    write(tmp_path / "all" / "part-1")
    shardstream.merge([tmp_path / "all" / "part-0", tmp_path / "all" / "part-1"], tmp_path / "all")
    with pytest.raises(_CrashError):
        shardstream.copy(tmp_path / "all", tmp_path / "b", num_threads=1, progress=crashing_after(3))

    with pytest.raises(shardstream.StorageError, match="overwrite=True starts again"):
        shardstream.DatasetWriter(tmp_path / "b", vocab_size=9)
    with pytest.raises(shardstream.StorageError, match="overwrite=True starts again"):
        shardstream.DatasetWriter(tmp_path / "b", vocab_size=9, resume=True)
    with shardstream.DatasetWriter(tmp_path / "b", vocab_size=9, overwrite=True) as writer:
        writer.append([1])

    assert sorted(files_in(tmp_path / "b")) == ["manifest.json", "shard-000000.bin"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"location": "/elsewhere/a.bin"},
            "lies elsewhere, at '/elsewhere/a.bin'; a copy of adopted files would be none",
        ),
        ({"sha256": None}, "has no checksum, so a copy could not be verified; adopt it again with checksums"),
    ],
    ids=["adopted", "no checksum"],
)
def test_what_cannot_be_verified_is_not_copied(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Adopted files, and shards without a checksum, are refused before anything is written."""
    manifest = write(tmp_path / "a")
    shards = tuple(msgspec.structs.replace(entry, **change) for entry in manifest.shards)
    (tmp_path / "a" / "manifest.json").write_bytes(msgspec.structs.replace(manifest, shards=shards).to_json())

    with pytest.raises(shardstream.FormatError, match=message):
        shardstream.copy(tmp_path / "a", tmp_path / "b")

    assert not (tmp_path / "b").exists()
