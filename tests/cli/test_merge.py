"""``shardstream merge``: parts become one dataset."""

import json
from pathlib import Path

import shardstream


def test_parts_become_one_dataset_in_order(run, write_dataset, tmp_path: Path) -> None:
    """The token stream is that of the parts, one after the other; --overwrite replaces what was merged before."""
    write_dataset([1, 2], uri=tmp_path / "b")
    write_dataset([3], uri=tmp_path / "a")

    report = json.loads(run("merge", "b", "a", "--out", ".", "--json").stdout)

    assert (report["num_tokens"], report["num_shards"], report["uri"]) == (3, 2, ".")
    assert shardstream.open(tmp_path)[:].tolist() == [1, 2, 3]
    assert "it exists already" in run("merge", "a", "b", "--out", ".", status=1).stderr
    assert "shards        2 (0 full, 2 short)" in run("merge", "a", "b", "--out", ".", "--overwrite").stdout
    assert shardstream.open(tmp_path)[:].tolist() == [3, 1, 2]


def test_what_cannot_be_merged(run, write_dataset, tmp_path: Path) -> None:
    """A part elsewhere, or given twice, is wrong use; parts that disagree, or are missing, are bad data."""
    write_dataset([1, 2], uri=tmp_path / "a")
    write_dataset([3], uri=tmp_path / "b", vocab_size=9)

    assert "does not lie below" in run("merge", "a", "b", "--out", "a", status=2).stderr
    assert "is given twice" in run("merge", "a", "a", "--out", ".", status=2).stderr
    assert "parts must agree" in run("merge", "a", "b", "--out", ".", status=1).stderr
    assert "there is no such file" in run("merge", "a", "c", "--out", ".", status=1).stderr
    assert "Missing argument 'PART...'" in run("merge", "--out", ".", status=2).stderr
