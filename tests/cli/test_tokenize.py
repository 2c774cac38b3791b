"""``shardstream tokenize``."""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardstream
from shardstream import TokenizeProgress
from shardstream.cli.tokenize import _rate

TEXTS = [f"document {number}, of {number * 7} words" for number in range(60)]
IDS = [token for text in TEXTS for token in [*text.encode(), 256]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """60 documents in two files of JSON lines."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, texts in (("a", TEXTS[:40]), ("b", TEXTS[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def test_text_becomes_a_dataset(run, corpus: Path, tmp_path: Path) -> None:
    """Every document is there, in order; the report says what was written, and how fast."""
    done = run("tokenize", corpus, "--tokenizer", "bytes", "--out", "out", "--processes", 2)
    dataset = shardstream.open(tmp_path / "out")

    assert dataset[:].tolist() == IDS
    assert "documents        60\n" in done.stdout
    assert "empty documents  0\n" in done.stdout
    assert "bad records      0\n" in done.stdout
    assert " M tokens/s, " in done.stdout
    assert done.stderr == ""
    assert run("verify", "out").stdout.startswith("all well")


def test_the_same_command_again_finds_it_complete(run, corpus: Path) -> None:
    """Nothing is done twice, and the exit status is 0."""
    command = ("tokenize", corpus, "--tokenizer", "bytes", "--out", "out", "--processes", 1)
    first = run(*command, "--json")
    again = run(*command)

    assert "rate             none: this very job was complete\n" in again.stdout
    assert json.loads(first.stdout)["digest"] in again.stdout


def test_the_rate_is_that_of_this_run() -> None:
    """What an earlier run did is in the progress from its first word on, and not in the rate."""
    told = [TokenizeProgress(num_bytes=7_000_000), TokenizeProgress(9_000_000, 9_000_000, num_tokens=4_000_000)]

    assert _rate(told, seconds=2.0).text == "2.00 M tokens/s, 1.0 MB/s of input"


def test_the_report_as_json(run, corpus: Path) -> None:
    """Counts, digest and rates for a program."""
    report = json.loads(run("tokenize", corpus, "--tokenizer", "bytes", "--out", "out", "--json").stdout)

    assert (report["num_documents"], report["num_tokens"], report["num_bad_records"]) == (60, len(IDS), 0)
    assert report["tokens_per_second"] > 0


def test_a_bad_record_is_named_and_ends_with_status_1(run, corpus: Path, tmp_path: Path) -> None:
    """Data is bad: the file and the line are named, nothing is published; --on-error skip leaves it out, and says so."""
    with (corpus / "a.jsonl").open("a") as file:
        file.write('{"text": 3}\n')
    command = ("tokenize", corpus, "--tokenizer", "bytes", "--out", "out")
    failed = run(*command, status=1)

    assert "a.jsonl, byte " in failed.stderr
    assert "line 41" in failed.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    assert "; --on-error skip leaves such records out and counts them\n" in failed.stderr

    skipped = run(*command, "--on-error", "skip", "--overwrite")

    assert "bad records      1\n" in skipped.stdout
    assert skipped.stderr.startswith("left out: ")
    assert shardstream.open(tmp_path / "out").manifest.num_documents == 60


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_an_input_that_cannot_be_read_ends_with_status_1(run, corpus: Path) -> None:
    """It is there when the command begins, and fails in a process: no use is wrong, and no help is named."""
    failed = run("tokenize", corpus, "/proc/self/mem", "--tokenizer", "bytes", "--out", "out", status=1)

    assert failed.stderr.startswith("Error: [Errno ")
    assert "Try:" not in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl", "--tokenizer", "bytes"], "nowhere.jsonl"),
        (["corpus", "--tokenizer", "missing/tokenizer.json"], "missing/tokenizer.json"),
        (["corpus", "--tokenizer", "bytes", "--processes", "0"], "processes is 0; wanted at least 1"),
        (["corpus", "--tokenizer", "bytes", "--eos", "</s>"], "eos is '</s>'"),
        (["corpus", "--tokenizer", "bytes", "--address", "auto"], "--address names a Ray cluster; give --engine ray"),
        (["corpus", "--tokenizer", "bytes", "--engine", "ray", "--processes", "2"], "--processes are of this machine"),
        (["corpus"], "--tokenizer"),
    ],
)
def test_wrong_use_ends_with_status_2(run, corpus: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    """What is wrong with the command is said, and nothing is written."""
    failed = run("tokenize", *arguments, "--out", "out", status=2)

    assert words in " ".join(failed.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_target_with_another_dataset_is_refused(run, corpus: Path, write_dataset) -> None:
    """Status 1, and the option that helps is named."""
    uri = write_dataset([1, 2, 3]).uri

    failed = run("tokenize", corpus, "--tokenizer", "bytes", "--out", uri, status=1)

    assert "holds a dataset: --overwrite replaces it" in failed.stderr


def test_after_ctrl_c_the_same_command_goes_on(
    run: Callable[..., Any], start: Callable[..., Any], corpus: Path, tmp_path: Path
) -> None:
    """It ends at once with status 130 and says how to go on; then the dataset is whole."""
    # A line to most parts: a hundred are left when the first is done, and each takes some milliseconds.
    command = ("tokenize", corpus, "--tokenizer", "bytes", "--processes", "1", "--part-bytes", "25")
    running = start(*command, "--out", tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/parts/*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()

    assert running.returncode == 130
    assert err == "Error: interrupted; what is durable stays, and the same command goes on from there\n"
    assert not (tmp_path / "out/manifest.json").exists()
    run(*command, "--out", "out")
    assert shardstream.open(tmp_path / "out")[:].tolist() == IDS
