"""``shardstream write``: every kind of input, what is refused, how a run goes on."""

import gzip
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import shardstream

ROWS = [[1, 2, 3], [], [4], [5, 6]]


def test_all_flat_inputs_are_joined_in_order(run, tmp_path: Path) -> None:
    """Arrays, raw files, compressed or not, columns and standard input follow one another as one token stream."""
    np.save(tmp_path / "a.npy", np.array([10, 11], np.int64))
    np.array([20, 21], ">u4").tofile(tmp_path / "b.bin")
    (tmp_path / "c.bin.zst").write_bytes(zstandard.compress(np.array([30, 31], ">u4").tobytes()))
    (tmp_path / "d.bin.gz").write_bytes(gzip.compress(np.array([40], ">u4").tobytes()))
    pq.write_table(pa.table({"text": ["x", "y"], "ids": [50, 51]}), tmp_path / "e.parquet")
    pq.write_table(pa.table({"ids": ROWS}), tmp_path / "f.parquet")
    inputs = ["a.npy", "b.bin", "c.bin.zst", "d.bin.gz", "-", "e.parquet", "f.parquet"]

    done = run(
        "write", *inputs, "--dtype", ">u4", "--vocab-size", 1000, "--out", "dataset", "--shard-tokens", 8, "--json",
        "--tokenizer-name", "mine", stdin=np.array([45, 46], ">u4").tobytes(),
    )  # fmt: skip

    report = json.loads(done.stdout)
    dataset = shardstream.open(tmp_path / "dataset")
    assert dataset[:].tolist() == [10, 11, 20, 21, 30, 31, 40, 45, 46, 50, 51, 1, 2, 3, 4, 5, 6]
    assert report.pop("seconds") > 0
    assert report.pop("mb_per_second") > 0
    assert report == {
        "uri": str(tmp_path / "dataset"),
        "num_tokens": 17,
        "num_documents": 0,
        "vocab_size": 1000,
        "dtype": "uint16",
        "num_bytes": 34,
        "num_shards": 3,
        "shard_tokens": 8,
        "tokenizer": {"name": "mine"},
        "digest": dataset.manifest.digest,
        "creator": dataset.manifest.creator,
        "metadata": {},
    }
    assert done.stderr == ""


def test_rows_are_documents_where_there_is_an_eos_id(run, tmp_path: Path) -> None:
    """With --eos-id each row of a column of lists is a document and ends in that id."""
    pq.write_table(pa.table({"ids": ROWS, "mask": ROWS}), tmp_path / "rows.parquet")

    text = run(
        "write", "rows.parquet", "--column", "ids", "--eos-id", 0, "--vocab-size", 70_000, "--out", "dataset"
    ).stdout

    dataset = shardstream.open(tmp_path / "dataset")
    assert dataset[:].tolist() == [1, 2, 3, 0, 0, 4, 0, 5, 6, 0]
    assert (dataset.manifest.num_documents, dataset.manifest.eos_id, dataset.dtype.name) == (4, 0, "uint32")
    assert "documents     4\n" in text
    assert "tokenizer     eos_id 0\n" in text
    assert "shards        1 (0 full, 1 short)\n" in text
    assert "MB/s of uint32 tokens\n" in text
    assert "stored size" not in text


def test_compressed_shards_are_told_with_both_sizes(run, tmp_path: Path) -> None:
    """With --compression the same dataset lies in smaller files, and the summary gives their size beside the raw one."""
    arguments = ["write", "-", "--vocab-size", 9, "--shard-tokens", 1000]
    ids = "1 2 3 4 " * 625
    report = json.loads(run(*arguments, "--compression", "zstd", "--out", "small", "--json", stdin=ids).stdout)
    text = run(*arguments, "--compression", "zstd", "--out", "again", stdin=ids).stdout
    raw = json.loads(run(*arguments, "--out", "raw", "--json", stdin=ids).stdout)

    sizes = [path.stat().st_size for path in (tmp_path / "small").glob("shard-*.bin.zst")]
    assert (len(sizes), sum(sizes)) == (3, report["stored_bytes"])
    assert report["stored_bytes"] < report["num_bytes"] == 5000
    assert "size          5.0 kB\n" in text
    assert f"stored size   {sum(sizes)} bytes, 0.0" in text
    assert report["digest"] == raw["digest"]
    assert "stored_bytes" not in raw


def test_decimal_ids_come_through_standard_input(run, tmp_path: Path) -> None:
    """Without --dtype standard input is decimal ids between any white space; the last word needs none after it."""
    run("write", "-", "--vocab-size", 1000, "--out", "dataset", stdin="1 2\t3\r\n\n4\n 007\v8\f9")

    assert shardstream.open(tmp_path / "dataset")[:].tolist() == [1, 2, 3, 4, 7, 8, 9]


def test_no_input_at_all_is_an_empty_dataset(run, tmp_path: Path) -> None:
    """An empty array, an empty raw file and an empty column make a dataset of no tokens."""
    np.save(tmp_path / "a.npy", np.empty(0, np.int64))
    (tmp_path / "b.bin").touch()
    pq.write_table(pa.table({"ids": pa.array([], pa.list_(pa.int32()))}), tmp_path / "c.parquet")

    run("write", "a.npy", "b.bin", "-", "c.parquet", "--dtype", "u2", "--vocab-size", 9, "--out", "dataset")

    assert len(shardstream.open(tmp_path / "dataset")) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.npy"], "nope.npy: no such file"),
        (["."], ".: a folder; name the files in it"),
        (["flat.bin"], "flat.bin: raw ids do not say their dtype; give it, such as uint16"),
        (["flat.bin", "--dtype", "float32"], "dtype is 'float32'; wanted NumPy's name of an integer dtype"),
        (["-", "-"], "standard input, -, can be read once"),
        (["flat.npy", "--vocab-size", "0"], "vocab_size is 0; wanted 1 to 4294967296"),
        (["flat.npy", "--eos-id", "1000"], "eos_id is 1000; wanted 0 to 999"),
        (["flat.npy", "--compression", "gzip"], "Invalid value for '--compression': 'gzip' is not"),
        (["flat.npy", "--overwrite", "--resume"], "overwrite and resume contradict one another"),
        (["flat.npy", "--out", "nosuch://x"], "Protocol not known: nosuch"),
        (
            ["rows.parquet", "--column", "text"],
            "rows.parquet: wanted a column 'text' of ids or of lists of ids; of that kind it has: 'ids'",
        ),
        (
            ["rows.parquet", "flat.npy", "--eos-id", "0"],
            "rows.parquet has rows, which --eos-id makes documents, and flat.npy has none; write them as two datasets",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_writes_nothing(run, tmp_path: Path, arguments: list[str], message: str) -> None:
    """What the command line says wrong is status 2, with a message that names it; the target is not touched."""
    np.save(tmp_path / "flat.npy", np.arange(5))
    np.arange(5, dtype=np.uint16).tofile(tmp_path / "flat.bin")
    pq.write_table(pa.table({"ids": ROWS, "text": ["a", "b", "c", "d"]}), tmp_path / "rows.parquet")

    done = run("write", "--vocab-size", 1000, "--out", "dataset", *arguments, status=2)

    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.endswith("\nTry: shardstream write --help\n")
    assert done.stdout == ""
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (
            ["flat.npy", "-"],
            "7 8\n9 1000 1",
            "standard input, which begins at position 5: token at position 8 is 1000; ",
        ),
        (["-"], "1\n2 x3\n", "standard input, line 2: 'x3' is no id; wanted decimal numbers"),
        (["odd.bin", "--dtype", "uint16"], "", "odd.bin: 5 bytes are no multiple of 2, the size of uint16; the dtype"),
        (["-", "--dtype", "uint16"], "abc", "standard input: 3 bytes are no multiple of 2, the size of uint16; the"),
        (
            ["rows.parquet", "--eos-id", "4"],
            "",
            "rows.parquet, row 2: token at position 5 is eos_id 4, inside document",
        ),
        (["float.npy"], "", "float.npy: shape (5,) and dtype float64; wanted one dimension of integers"),
    ],
    ids=["too-large", "word", "odd", "odd-stdin", "eos", "float"],
)
def test_refused_data_publishes_nothing(run, tmp_path: Path, arguments: list[str], stdin: str, message: str) -> None:
    """Data that is refused is status 1, with a message that says where it is; there is no dataset then."""
    np.save(tmp_path / "flat.npy", np.arange(5))
    np.save(tmp_path / "float.npy", np.zeros(5))
    (tmp_path / "odd.bin").write_bytes(b"12345")
    pq.write_table(pa.table({"ids": ROWS}), tmp_path / "rows.parquet")

    done = run("write", "--vocab-size", 1000, "--out", "dataset", "--json", *arguments, status=1, stdin=stdin)

    assert done.stderr.startswith(f"Error: {message}")
    assert done.stdout == ""
    assert not (tmp_path / "dataset" / "manifest.json").exists()


def test_the_librarys_arguments_are_named_as_options(run, tmp_path: Path) -> None:
    """A message of the library that would help a Python program says what helps here: options, which then do."""
    pq.write_table(pa.table({"ids": ROWS}), tmp_path / "rows.parquet")
    arguments = ["write", "rows.parquet", "--vocab-size", 9, "--eos-id", 4, "--out", "dataset"]

    assert "or pass --allow-eos-in-documents\n" in run(*arguments, status=1).stderr
    run(*arguments, "--allow-eos-in-documents")
    assert "it holds a dataset: --overwrite replaces it\n" in run(*arguments, status=1).stderr
    run(*arguments, "--allow-eos-in-documents", "--overwrite")


def test_resume_of_a_complete_dataset_changes_nothing(run, tmp_path: Path) -> None:
    """--resume where all is done is fine, refuses more ids and fewer, and says how much was durable."""
    arguments = ["write", "-", "--vocab-size", 9, "--out", "dataset", "--resume"]
    run(*arguments, stdin="1 2 3")
    before = (tmp_path / "dataset" / "manifest.json").read_bytes()

    assert "durable before  3\n" in run(*arguments, stdin="1 2 3").stdout
    assert "the dataset is complete with 3 tokens" in run(*arguments, stdin="1 2 3 4", status=1).stderr
    assert run(*arguments, stdin="1 2", status=1).stderr == (
        f"Error: {tmp_path}/dataset: 3 tokens are durable, and the inputs hold only 2; give the inputs that the run "
        "began with, or start again with --overwrite\n"
    )
    assert (tmp_path / "dataset" / "manifest.json").read_bytes() == before


def is_killed_on_the_way(command: list[str], dataset: Path) -> bool:
    """Run a writer in an empty place and kill it once three shards are durable; whether that came before its end."""
    records = [dataset / "journal" / f"{index:06d}.json" for index in range(3)]
    started = subprocess.Popen(command, cwd=dataset.parent)
    while started.poll() is None and not all(record.exists() for record in records):
        time.sleep(0.001)
    started.kill()
    assert started.wait() in {0, -signal.SIGKILL}
    return not (dataset / "manifest.json").exists()


def test_documents_go_on_after_a_kill(run, program: str, tmp_path: Path) -> None:
    """A run that was killed goes on at the document where its durable shards end, to the digest of a whole run."""
    rows = [list(range(n % 50)) for n in range(20_000)]
    pq.write_table(pa.table({"ids": rows}), tmp_path / "rows.parquet", row_group_size=3000)
    arguments = ["write", "rows.parquet", "--vocab-size", 1000, "--eos-id", 999, "--shard-tokens", 4096]
    dataset = tmp_path / "dataset"
    while not is_killed_on_the_way([program, *map(str, arguments), "--out", str(dataset)], dataset):
        shutil.rmtree(dataset)

    resumed = json.loads(run(*arguments, "--out", "dataset", "--resume", "--json").stdout)
    whole = json.loads(run(*arguments, "--out", "whole", "--json").stdout)

    assert resumed["num_resumed_tokens"] >= 3 * 4096
    assert (resumed["digest"], resumed["num_documents"]) == (whole["digest"], 20_000)


def test_documents_that_the_inputs_no_longer_hold_are_missed(run, tmp_path: Path) -> None:
    """--resume with fewer documents than are durable is refused."""
    arguments = ["write", "rows.parquet", "--vocab-size", 9, "--eos-id", 0, "--out", "dataset", "--resume"]
    pq.write_table(pa.table({"ids": ROWS}), tmp_path / "rows.parquet")
    run(*arguments)
    pq.write_table(pa.table({"ids": ROWS[:2]}), tmp_path / "rows.parquet")

    assert "4 documents are durable, and the inputs hold only 2; " in run(*arguments, status=1).stderr
