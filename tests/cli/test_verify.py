"""``shardstream verify``: good and bad datasets."""

import json
import re
from pathlib import Path


def test_a_good_dataset_is_status_0(run, write_dataset) -> None:
    """All well: one line with shards, tokens, size and rate."""
    dataset = write_dataset(range(1000))

    assert re.fullmatch(
        r"all well: 16 shards, 1,000 tokens, 2\.0 kB, read in [\d.]+ m?s, [\d,]+ MB/s\n",
        run("verify", dataset.uri, "--threads", 3).stdout,
    )


def test_a_bad_dataset_is_status_1_and_each_bad_shard_is_named(run, write_dataset) -> None:
    """A missing, a cut and an altered shard are each named with what is wrong."""
    dataset = write_dataset(range(1000))
    folder = Path(dataset.uri)
    (folder / "shard-000001.bin").unlink()
    (folder / "shard-000003.bin").write_bytes(b"cut")
    (folder / "shard-000015.bin").write_bytes(bytes(80))

    lines = run("verify", folder, status=1).stdout.splitlines()

    assert lines[0] == "shard-000001.bin: missing"
    assert lines[1] == "shard-000003.bin: truncated: 3 bytes, the manifest says 128"
    assert lines[2].startswith("shard-000015.bin: checksum is sha256 ")
    assert lines[3].startswith("3 bad shards: 16 shards, 1,000 tokens, ")
    assert len(lines) == 4


def test_verify_as_json(run, write_dataset) -> None:
    """--json says the verdict, the problems and the rate; the exit status is the same."""
    dataset = write_dataset(range(1000))
    (Path(dataset.uri) / "shard-000001.bin").unlink()

    report = json.loads(run("verify", dataset.uri, "--json", status=1).stdout)

    assert report.pop("seconds") > 0
    assert report.pop("mb_per_second") > 0
    assert report == {
        "uri": dataset.uri,
        "ok": False,
        "digest": dataset.manifest.digest,
        "num_shards": 16,
        "num_tokens": 1000,
        "num_bytes": 2000,
        "problems": [{"shard": "shard-000001.bin", "problem": "missing"}],
    }


def test_no_threads_is_wrong_use(run) -> None:
    """At least one thread is needed."""
    assert "0 is not in the range x>=1" in run("verify", "x", "--threads", 0, status=2).stderr
