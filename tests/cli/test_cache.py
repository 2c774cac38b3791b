"""``shardstream cache``: what is there, whether it is whole, and how it goes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import shardstream

NUM_SHARDS = 4
SHARD_BYTES = 2048


@pytest.fixture
def filled(tmp_path: Path) -> shardstream.ShardCache:
    """A cache of four shards, the first of them used last."""
    with shardstream.DatasetWriter(
        tmp_path / "zstd", vocab_size=2**16, shard_tokens=1024, compression="zstd"
    ) as writer:
        writer.append(np.arange(NUM_SHARDS * 1024))
    cache_dir = tmp_path / "cache"
    with shardstream.open(tmp_path / "zstd", cache_dir=cache_dir) as dataset:
        for shard in reversed(range(NUM_SHARDS)):
            dataset.download([shard])
    return shardstream.ShardCache(cache_dir)


def test_ls_lists_shards_used_last_first_and_totals(run, filled: shardstream.ShardCache) -> None:
    """Each shard has a line with the beginning of its checksum, its size and when it was used; totals come last."""
    lines = run("cache", "ls", "--cache-dir", filled.folder).stdout.splitlines()

    assert [line.split()[0] for line in lines[:-1]] == [shard.sha256[:12] for shard in filled.shards()]
    assert all(re.fullmatch(r"[0-9a-f]{12}       2\.0 kB  used \d{4}-\d\d-\d\d \d\d:\d\d", line) for line in lines[:-1])
    assert lines[-1] == f"4 shards, 8.2 kB in {filled.folder}, 0 in use"


def test_ls_shows_what_is_in_use(run, filled: shardstream.ShardCache, tmp_path: Path) -> None:
    """A shard that a process has pinned is marked as in use."""
    with shardstream.open(tmp_path / "zstd", cache_dir=filled.folder) as dataset:
        assert dataset[1024] == 1024  # of the second shard
        lines = run("cache", "ls", "--cache-dir", filled.folder).stdout.splitlines()
        entry = dataset.manifest.shards[1]

    assert [line.split()[0] for line in lines[:-1] if line.endswith("  in use")] == [str(entry.sha256)[:12]]
    assert lines[-1].endswith(", 1 in use")


def test_ls_as_json(run, filled: shardstream.ShardCache) -> None:
    """--json gives whole checksums, bytes, and seconds since 1970."""
    report = json.loads(run("cache", "ls", "--cache-dir", filled.folder, "--json").stdout)

    assert report == {
        "cache_dir": str(filled.folder),
        "num_shards": NUM_SHARDS,
        "num_bytes": NUM_SHARDS * SHARD_BYTES,
        "num_in_use": 0,
        "shards": [
            {"sha256": shard.sha256, "num_bytes": SHARD_BYTES, "used_s": shard.used_s, "in_use": False}
            for shard in filled.shards()
        ],
    }


@pytest.mark.parametrize("arguments", [["ls"], ["verify"], ["prune", "--all"]], ids=" ".join)
def test_a_cache_that_is_not_there_is_empty_and_stays_away(run, own_cache: Path, arguments: list[str]) -> None:
    """Without --cache-dir the user's cache is meant; looking at one that does not exist does not make it."""
    report = json.loads(run("cache", *arguments, "--json").stdout)

    assert (report["cache_dir"], report["num_shards"], report["num_bytes"]) == (str(own_cache), 0, 0)
    assert not own_cache.exists()


def test_memory_is_no_place_for_a_cache(run) -> None:
    """A folder in /dev/shm is wrong use."""
    assert "which is memory, not a disk" in run("cache", "ls", "--cache-dir", "/dev/shm/x", status=2).stderr


def test_verify_of_whole_shards_is_status_0(run, filled: shardstream.ShardCache) -> None:
    """All well: one line with shards, size and rate; the same as JSON."""
    text = run("cache", "verify", "--cache-dir", filled.folder).stdout
    report = json.loads(run("cache", "verify", "--cache-dir", filled.folder, "--json").stdout)

    assert re.fullmatch(
        rf"all well: 4 shards, 8\.2 kB in {filled.folder}, read in [\d.]+ \S+, [\d,]+ MB/s\n",
        text,
    )
    assert (report["ok"], report["damaged"], report["num_shards"]) == (True, [], NUM_SHARDS)


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["table", "json"])
def test_verify_throws_damaged_shards_away(run, filled: shardstream.ShardCache, option: list[str]) -> None:
    """A shard whose bytes have changed is named and removed, and the exit status is 1; a second look finds all well."""
    damaged = filled.shards()[2].sha256
    path = filled.folder / f"{damaged}.tokens"
    path.chmod(0o644)
    path.write_bytes(bytes(SHARD_BYTES))

    out = run("cache", "verify", "--cache-dir", filled.folder, *option, status=1).stdout
    again = run("cache", "verify", "--cache-dir", filled.folder).stdout

    if option:
        assert json.loads(out)["damaged"] == [damaged]
        assert json.loads(out)["ok"] is False
    else:
        assert out.splitlines()[0] == f"{damaged}: damaged, thrown away"
        assert out.splitlines()[1].startswith("1 damaged shard: 4 shards, 8.2 kB in ")
    assert again.startswith("all well: 3 shards")
    assert not path.exists()


def test_prune_removes_what_was_used_longest_ago(run, filled: shardstream.ShardCache) -> None:
    """--max-bytes leaves as many shards as fit, those used last, and says which went."""
    before = filled.shards()

    lines = run("cache", "prune", "--cache-dir", filled.folder, "--max-bytes", "5kB").stdout.splitlines()

    assert filled.shards() == before[:2]
    assert lines[:2] == [f"{shard.sha256[:12]}       2.0 kB  removed" for shard in reversed(before[2:])]
    assert lines[2:] == [f"removed 2 shards, 4.1 kB; 2 shards, 4.1 kB left in {filled.folder}, 0 in use"]


def test_prune_all_leaves_shards_in_use_and_the_files_of_others(
    run, filled: shardstream.ShardCache, tmp_path: Path
) -> None:
    """--all removes every shard but those that are read now; a file that is not the cache's stays."""
    (filled.folder / "notes.txt").write_text("mine")
    with shardstream.open(tmp_path / "zstd", cache_dir=filled.folder) as dataset:
        assert dataset[0] == 0
        report = json.loads(run("cache", "prune", "--all", "--cache-dir", filled.folder, "--json").stdout)
        entry = dataset.manifest.shards[0]

    assert (report["num_shards"], report["num_in_use"], len(report["removed"])) == (1, 1, 3)
    assert [shard.sha256 for shard in filled.shards()] == [entry.sha256]
    assert (filled.folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Error: say how much to remove: either --max-bytes SIZE or --all\n"),
        (["--all", "--max-bytes", "0"], "Error: say how much to remove: either --max-bytes SIZE or --all\n"),
        (["--max-bytes", "much"], "Error: Invalid value for '--max-bytes': 'much' is no number of bytes"),
    ],
    ids=["nothing", "both", "no size"],
)
def test_prune_must_know_how_much(run, options: list[str], message: str) -> None:
    """Either a bound or everything; anything else is wrong use, and removes nothing."""
    assert run("cache", "prune", *options, status=2).stderr.startswith(message)
