"""``shardstream info``: what the manifest says."""

import json
import re
from pathlib import Path

import shardstream


def test_info_says_what_a_dataset_is(run, write_dataset) -> None:
    """The table names size, shards, tokenizer, digest and metadata; control characters in it are spelt out."""
    dataset = write_dataset(
        range(70),
        shard_tokens=32,
        tokenizer={"name": "evil \x1b[31m", "sha256": "ab" * 32},
        eos_id=5,
        metadata={"from": "here", "n": [1]},
    )

    assert run("info", dataset.uri).stdout.splitlines() == [
        f"dataset       {dataset.uri}",
        "tokens        70",
        "documents     0",
        "vocab size    1,000",
        "dtype         uint16",
        "size          140 bytes",
        "shards        3 (2 full, 1 short)",
        "shard tokens  32",
        f"tokenizer     name evil \\x1b[31m, sha256 {'ab' * 32}, eos_id 5",
        f"digest        {dataset.manifest.digest}",
        f"creator       {dataset.manifest.creator}",
        'metadata      {"from": "here", "n": [1]}',
    ]


def test_info_as_json_reads_no_shard(run, write_dataset) -> None:
    """--json prints the same, for programs; shards are not opened, and may even be missing."""
    dataset = write_dataset(range(70), metadata={"n": 1.5})
    for shard in dataset.manifest.shards:
        (Path(dataset.uri) / shard.name).unlink()

    assert json.loads(run("info", dataset.uri, "--json").stdout) == {
        "uri": dataset.uri,
        "num_tokens": 70,
        "num_documents": 0,
        "vocab_size": 1000,
        "dtype": "uint16",
        "num_bytes": 140,
        "num_shards": 2,
        "shard_tokens": 64,
        "tokenizer": {},
        "digest": dataset.manifest.digest,
        "creator": dataset.manifest.creator,
        "metadata": {"n": 1.5},
    }


def test_a_missing_dataset_is_status_1(run, tmp_path: Path) -> None:
    """Where no dataset is, the message says what was looked for."""
    done = run("info", "nowhere", "--json", status=1)

    assert done.stderr == (
        f"Error: {tmp_path}/nowhere/manifest.json: cannot read: there is no such file; a dataset is a folder or URL with "
        "a manifest.json, which its writer adds last\n"
    )
    assert done.stdout == ""


def test_a_broken_manifest_is_status_1(run, tmp_path: Path) -> None:
    """A manifest that breaks the specification is named with what is wrong, and its text cannot steer the terminal."""
    (tmp_path / "manifest.json").write_text('{"format": "\\u001b[31mred"}')

    message = run("info", tmp_path, status=1).stderr

    assert message.startswith(f"Error: {tmp_path}/manifest.json: not a shardstream manifest: format is ")
    assert "\x1b" not in message


def test_adopted_files_are_no_obstacle(run, tmp_path: Path) -> None:
    """Info describes a dataset whose shards lie elsewhere, since it opens none."""
    shard = shardstream.ShardEntry(name="a", num_tokens=1, num_bytes=2, location="/elsewhere/a.bin")
    manifest = shardstream.Manifest(vocab_size=9, shard_tokens=1, shards=(shard,))
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())

    assert "shards        1 (1 full, 0 short)\n" in run("info", tmp_path).stdout


def test_a_terminal_folds_long_values_beside_their_labels(run, write_dataset) -> None:
    """On a terminal a value that is too long goes on below itself; elsewhere lines stay whole."""
    digest = (dataset := write_dataset([1])).manifest.digest

    text = run("info", dataset.uri, FORCE_COLOR="1", COLUMNS="60").stdout
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]

    assert f"digest        {digest[:46]}" in lines
    assert f"{'':14}{digest[46:]}" in lines
    assert "\x1b[1mdigest" in text
