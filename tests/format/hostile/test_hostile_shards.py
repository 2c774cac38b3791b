"""Shards that are not what their manifest says: ``verify`` names the shard and the damage, and reading never crashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream
from shardstream import FormatError, IntegrityError, ShardstreamError

WriteRaw = Callable[..., Path]
Damage = Callable[[Path], None]

SHARDS = {"a.bin": range(10), "sub/b.bin": range(10, 20), "c.bin": range(100, 107)}


@pytest.fixture
def folder(write_raw: WriteRaw) -> Path:
    """A good dataset of three shards, the second one in a folder of its own, the third one short."""
    return write_raw(SHARDS)


def problems_of(folder: Path, **options: Any) -> dict[str, str]:
    with shardstream.open(folder, **options) as dataset:
        return {problem.shard: problem.problem for problem in dataset.verify().problems}


def assert_unreadable(folder: Path, match: str, error: type[ShardstreamError] = IntegrityError) -> None:
    """Every way to read a token of sub/b.bin raises, again and again; the other shards can be read all the while."""
    with shardstream.open(folder) as dataset:
        for _ in range(2):
            for read in (
                lambda: dataset.windows([12], 3),
                lambda: dataset.windows([0, 12, 21], 2),
                lambda: dataset.windows([8], 5),
                lambda: dataset[15],
                lambda: dataset[-20:],
            ):
                with pytest.raises(error, match=match) as caught:
                    read()
                assert "sub" in str(caught.value)
            assert dataset.windows([0, 20, 24], 3).tolist() == [[0, 1, 2], [100, 101, 102], [104, 105, 106]]


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def replace_by(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES = [
    pytest.param(Path.unlink, "missing", "missing", id="missing"),
    pytest.param(lambda path: truncate(path, 0), "truncated: 0 bytes", "truncated: 0 bytes", id="empty"),
    pytest.param(lambda path: truncate(path, 1), "truncated: 1 bytes", "truncated: 1 bytes", id="one-byte"),
    pytest.param(lambda path: truncate(path, 19), "truncated: 19 bytes", "truncated: 19 bytes", id="short-by-a-byte"),
    pytest.param(lambda path: truncate(path, 18), "truncated: 18 bytes", "truncated: 18 bytes", id="short-by-a-token"),
    pytest.param(lambda path: truncate(path, 21), "too long: 21 bytes", "too long: 21 bytes", id="long-by-a-byte"),
    pytest.param(lambda path: truncate(path, 2**40), "too long: 1099511627776 bytes", "too long", id="sparse-tebibyte"),
    pytest.param(replace_by(Path.mkdir), "not a regular file", "not a regular file", id="folder"),
    pytest.param(replace_by(os.mkfifo), "not a regular file", "not a regular file", id="pipe"),
]


def test_a_good_dataset_has_no_problems(folder: Path) -> None:
    """The dataset that these tests damage is good before."""
    assert problems_of(folder) == {}
    assert shardstream.open(folder)[:].tolist() == [id_ for ids in SHARDS.values() for id_ in ids]


@pytest.mark.parametrize(("damage", "reported", "raised"), DAMAGES)
def test_damage_is_reported(folder: Path, damage: Damage, reported: str, raised: str) -> None:
    """``verify`` names the one shard that is damaged, says how, and says nothing of the others."""
    del raised
    damage(folder / "sub/b.bin")

    problems = problems_of(folder)

    assert list(problems) == ["sub/b.bin"]
    assert reported in problems["sub/b.bin"]


@pytest.mark.parametrize(("damage", "reported", "raised"), DAMAGES)
def test_damaged_shards_are_not_read(folder: Path, damage: Damage, reported: str, raised: str) -> None:
    """Reading a shard that is missing, of another size, or no file raises an IntegrityError; the others can be read."""
    del reported
    damage(folder / "sub/b.bin")

    assert_unreadable(folder, raised)


def test_damage_between_open_and_read_is_found(folder: Path) -> None:
    """A shard that is cut after the dataset was opened, but before it is mapped, is an IntegrityError all the same."""
    with shardstream.open(folder) as dataset:
        assert dataset[0] == 0
        truncate(folder / "sub/b.bin", 4)

        with pytest.raises(IntegrityError, match="truncated: 4 bytes, the manifest says 20"):
            dataset.windows([10], 1)


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_reported(folder: Path, name: str, place: str, bit: int) -> None:
    """One bit that is wrong, anywhere in a shard, is a problem of that shard alone."""
    data = bytearray((folder / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[place]] ^= 1 << bit
    (folder / name).write_bytes(data)

    problems = problems_of(folder)

    assert list(problems) == [name]
    assert problems[name].startswith(f"checksum is sha256 {hashlib.sha256(data).hexdigest()}, the manifest says ")


def test_swapped_shards_are_reported(folder: Path) -> None:
    """Two shards of one length that changed places are both reported, each with the name of the other."""
    (folder / "a.bin").rename(folder / "other")
    (folder / "sub/b.bin").rename(folder / "a.bin")
    (folder / "other").rename(folder / "sub/b.bin")

    problems = problems_of(folder)

    assert list(problems) == ["a.bin", "sub/b.bin"]
    assert problems["a.bin"].endswith("; its bytes are those of sub/b.bin")
    assert problems["sub/b.bin"].endswith("; its bytes are those of a.bin")


def test_swapped_shards_of_different_lengths_are_reported(folder: Path) -> None:
    """Two shards of different lengths that changed places have the wrong size, and cannot be read."""
    (folder / "c.bin").rename(folder / "other")
    (folder / "sub/b.bin").rename(folder / "c.bin")
    (folder / "other").rename(folder / "sub/b.bin")

    problems = problems_of(folder)

    assert {name: problem.partition(":")[0] for name, problem in problems.items()} == {
        "sub/b.bin": "truncated",
        "c.bin": "too long",
    }
    with pytest.raises(IntegrityError, match="truncated: 14 bytes, the manifest says 20"):
        shardstream.open(folder).windows([12], 2)


def test_all_damaged_shards_are_reported(folder: Path) -> None:
    """A damaged shard does not hide the next: all are reported, in shard order."""
    (folder / "c.bin").unlink()
    truncate(folder / "a.bin", 3)
    (folder / "sub/b.bin").write_bytes(bytes(20))

    assert list(problems_of(folder)) == list(SHARDS)


@pytest.mark.parametrize("num_threads", [1, 2, None])
def test_verify_reports_damage_with_any_number_of_threads(folder: Path, num_threads: int | None) -> None:
    """The report is the same however many shards are read at a time."""
    (folder / "a.bin").unlink()

    report = shardstream.open(folder).verify(num_threads=num_threads)

    assert not report.ok
    assert [problem.shard for problem in report.problems] == ["a.bin"]


def test_a_folder_of_the_right_size_is_reported(tmp_path: Path, write_raw: WriteRaw) -> None:
    """A folder whose size on disk happens to be that of the shard is not taken for it."""
    probe = tmp_path / "probe"
    probe.mkdir()
    num_tokens = max(probe.stat().st_size // 2, 1)
    folder = write_raw({"a.bin": [0] * num_tokens})
    replace_by(Path.mkdir)(folder / "a.bin")

    assert "not a regular file" in problems_of(folder)["a.bin"]
    with pytest.raises(IntegrityError, match="not a regular file"):
        shardstream.open(folder).windows([0], 1)


# Links


def outside(folder: Path) -> Path:
    """The second shard, moved out of the dataset's folder."""
    target = folder.parent / "outside"
    (folder / "sub").rename(target)
    return target


def link_file(folder: Path) -> None:
    target = outside(folder)
    (folder / "sub").mkdir()
    (folder / "sub/b.bin").symlink_to(target / "b.bin")


def link_folder(folder: Path) -> None:
    (folder / "sub").symlink_to(outside(folder))


def link_by_dots(folder: Path) -> None:
    outside(folder)
    (folder / "sub").symlink_to("../outside")


def link_in_two_steps(folder: Path) -> None:
    target = outside(folder)
    (folder / "step").symlink_to(target)
    (folder / "sub").symlink_to("step")


LINKS = pytest.mark.parametrize("link", [link_file, link_folder, link_by_dots, link_in_two_steps])


@LINKS
def test_links_out_of_the_folder_are_refused(folder: Path, link: Damage) -> None:
    """A link that leads out of the dataset's folder is reported by ``verify``, and never followed to read tokens."""
    link(folder)

    problems = problems_of(folder)

    assert list(problems) == ["sub/b.bin"]
    assert "a symbolic link" in problems["sub/b.bin"]
    assert_unreadable(folder, "a symbolic link .* trust_locations=True", FormatError)


@LINKS
def test_trusted_links_are_followed(folder: Path, link: Damage) -> None:
    """With trust the same link is followed: the user said that he made it."""
    link(folder)

    assert problems_of(folder, trust_locations=True) == {}
    with shardstream.open(folder, trust_locations=True) as dataset:
        assert dataset[10:20].tolist() == list(range(10, 20))


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/proc/self/mem"])
@pytest.mark.parametrize("trust_locations", [False, True])
def test_links_to_devices_are_reported(folder: Path, target: str, *, trust_locations: bool) -> None:
    """A link to a device is reported and not read, even where links are followed."""
    if not Path(target).exists():
        pytest.skip(f"no {target} here")
    replace_by(lambda path: path.symlink_to(target))(folder / "sub/b.bin")

    assert list(problems_of(folder, trust_locations=trust_locations)) == ["sub/b.bin"]
    with (
        shardstream.open(folder, trust_locations=trust_locations) as dataset,
        pytest.raises((IntegrityError, FormatError)),
    ):
        dataset.windows([12], 2)


def loop_of_file(folder: Path) -> None:
    (folder / "sub/b.bin").unlink()
    (folder / "sub/b.bin").symlink_to("b.bin")


def loop_of_folder(folder: Path) -> None:
    outside(folder)
    (folder / "sub").symlink_to("sub")


@pytest.mark.parametrize("loop", [loop_of_file, loop_of_folder])
@pytest.mark.parametrize("trust_locations", [False, True])
def test_loops_of_links_are_reported(folder: Path, loop: Damage, *, trust_locations: bool) -> None:
    """A link that leads to itself is a problem that ``verify`` reports, and an error of ours when it is read."""
    loop(folder)

    assert list(problems_of(folder, trust_locations=trust_locations)) == ["sub/b.bin"]
    with shardstream.open(folder, trust_locations=trust_locations) as dataset, pytest.raises(ShardstreamError):
        dataset.windows([12], 2)


def test_a_file_in_place_of_a_folder_is_reported(folder: Path) -> None:
    """Where the shard's folder is a file, ``verify`` reports the shard, and reading it is an error of ours."""
    outside(folder)
    (folder / "sub").write_text("")

    assert list(problems_of(folder)) == ["sub/b.bin"]
    with pytest.raises(ShardstreamError, match="sub/b.bin"):
        shardstream.open(folder).windows([12], 2)


# Figures that no file can have


@pytest.mark.parametrize("num_tokens", [2**31, 2**40, 2**61])
def test_a_huge_claim_allocates_nothing(folder: Path, num_tokens: int) -> None:
    """A row that claims exbibytes over a file of 20 bytes is an IntegrityError, and takes no memory before."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["shards"][1] |= {"num_tokens": num_tokens, "num_bytes": 2 * num_tokens}
    manifest |= {"num_tokens": num_tokens + 17, "shard_tokens": num_tokens}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")

    with shardstream.open(folder) as dataset:
        assert len(dataset) == num_tokens + 17
        tracemalloc.start()
        try:
            for read in (
                lambda: dataset.windows([10], 4),
                lambda: dataset.windows([9 + num_tokens], 4),
                lambda: dataset[10:20],
                lambda: dataset[num_tokens],
            ):
                with pytest.raises(IntegrityError, match=f"truncated: 20 bytes, the manifest says {2 * num_tokens}"):
                    read()
            problems = {problem.shard: problem.problem for problem in dataset.verify().problems}
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert dataset[-7:].tolist() == list(range(100, 107))

    assert problems == {"sub/b.bin": f"truncated: 20 bytes, the manifest says {2 * num_tokens}"}
    assert peak < 2**24


def test_a_header_beyond_the_file_is_found(write_raw: WriteRaw) -> None:
    """A ``byte_offset`` that leads beyond the end of the file, or of all files, is an IntegrityError."""
    for byte_offset in (2, 2**40, 2**63 - 2):
        folder = write_raw({"a.bin": [1, 2, 3]}, rows={"byte_offset": byte_offset})

        assert problems_of(folder) == {"a.bin": f"truncated: 6 bytes, the manifest says {byte_offset + 6}"}
        with pytest.raises(IntegrityError, match=f"truncated: 6 bytes, the manifest says {byte_offset + 6}"):
            shardstream.open(folder).windows([0], 1)


@pytest.mark.parametrize("name", ["x" * 256, "x" * 256 + "/a", "/".join(["x" * 255] * 4)])
def test_names_that_no_disk_can_hold_are_errors_of_ours(folder: Path, name: str) -> None:
    """A name too long for the file system is refused, or reported by ``verify`` and an error of ours when read."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["shards"][1]["name"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")

    with pytest.raises(ShardstreamError):
        shardstream.open(folder).windows([12], 2)
    with contextlib.suppress(FormatError):
        assert list(problems_of(folder)) == [name]


def test_ids_beyond_the_vocabulary_are_reported(write_raw: WriteRaw) -> None:
    """A shard whose bytes are as promised, but whose ids the vocabulary does not have, is reported with the id."""
    folder = write_raw({"a.bin": [1, 999], "b.bin": [1, 1000]})

    assert problems_of(folder) == {"b.bin": "holds id 1000, not below vocab_size 1000"}


def test_wrong_statistics_are_reported(write_raw: WriteRaw) -> None:
    """A row that misstates the ids of its shard is reported, although the bytes are right."""
    folder = write_raw({"a.bin": [1, 2]}, rows={"min_token": 0})

    assert problems_of(folder) == {"a.bin": "min_token is 1, the manifest says 0"}
