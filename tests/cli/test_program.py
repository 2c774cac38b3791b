"""The program as a whole: its face, its exit status, how it ends."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import interrupt

OPTIONS = {
    "demo": ["--out", "--seed", "--source", "--vocab-size"],
    "tokenize": [
        "--add-bos",
        "--address",
        "--compression",
        "--engine",
        "--eos",
        "--json",
        "--on-error",
        "--out",
        "--overwrite",
        "--part-bytes",
        "--processes",
        "--shard-tokens",
        "--shuffle-documents",
        "--side-files",
        "--special-text",
        "--text-field",
        "--tokenizer",
    ],
    "write": [
        "--allow-eos-in-documents",
        "--column",
        "--compression",
        "--dtype",
        "--eos-id",
        "--json",
        "--out",
        "--overwrite",
        "--resume",
        "--shard-tokens",
        "--tokenizer-name",
        "--vocab-size",
    ],
    "adopt": [
        "--dtype",
        "--eos-id",
        "--json",
        "--no-checksum",
        "--out",
        "--overwrite",
        "--threads",
        "--tokenizer-name",
        "--vocab-size",
    ],
    "merge": ["--json", "--out", "--overwrite"],
    "copy": ["--json", "--threads"],
    "info": ["--json"],
    "verify": ["--json", "--threads", "--trust-locations"],
    "peek": ["--json", "--length", "--position", "--seed", "--tokenizer", "--trust-locations"],
    "bench": [
        "--batch-size",
        "--cache-dir",
        "--context-length",
        "--json",
        "--max-cache-bytes",
        "--seconds",
        "--trust-locations",
    ],
    "warm": [
        "--batch-size",
        "--block-tokens",
        "--buffer-blocks",
        "--cache-dir",
        "--context-length",
        "--dp-rank",
        "--dp-world-size",
        "--json",
        "--lanes",
        "--max-cache-bytes",
        "--order",
        "--seed",
    ],
    "cache": [],
    "cache ls": ["--cache-dir", "--json"],
    "cache verify": ["--cache-dir", "--json"],
    "cache prune": ["--all", "--cache-dir", "--json", "--max-bytes"],
}


def options_in(text: str) -> list[str]:
    """The options that a help lists, each at the beginning of its row."""
    return sorted(set(re.findall(r"^│ +\*? *(--[a-z-]+)", text, flags=re.MULTILINE)))


def test_help_lists_the_verbs_in_the_order_of_the_work(run) -> None:
    """`shardstream --help` names every verb, demo first, and says what an exit status means."""
    text = run("--help").stdout

    assert re.findall(r"^│ ([a-z]+)  ", text, flags=re.MULTILINE) == [verb for verb in OPTIONS if " " not in verb]
    assert options_in(text) == ["--help", "--version"]
    assert "The exit status is 0 when all is well" in text


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_of_a_verb_lists_its_options_and_teaches_by_example(run, verb: str) -> None:
    """The options of each verb are these and no others; its help ends in examples that begin with the verb's name."""
    text = run(*verb.split(), "--help", COLUMNS="200").stdout

    assert options_in(text) == sorted([*OPTIONS[verb], "--help"])
    assert "Examples:" in text
    assert f"$ shardstream {verb} " in text or f"| shardstream {verb} " in text or verb == "demo"


def test_help_of_the_cache_lists_its_verbs(run) -> None:
    """`shardstream cache --help` names what can be done with the cache, looking first."""
    text = run("cache", "--help").stdout

    assert re.findall(r"^│ ([a-z]+)  ", text, flags=re.MULTILINE) == ["ls", "verify", "prune"]


def test_no_verb_at_all_shows_the_help(run) -> None:
    """Without a verb the program shows its help, and its exit status is that of wrong use."""
    assert "Commands" in run(status=2).stdout


def test_version(run) -> None:
    """`--version` prints the name and the version."""
    assert re.fullmatch(r"shardstream \d+\.\d+\.\d+\S*\n", run("--version").stdout)


@pytest.mark.parametrize("module", ["torch", "pyarrow", "tokenizers", "fsspec"])
def test_help_imports_nothing_heavy(module: str) -> None:
    """Start-up is quick: what only some verbs need is not imported for all."""
    script = f"import sys, shardstream.cli; assert {module!r} not in sys.modules"

    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--bogus"], "Error: No such option '--bogus'.\nTry: shardstream --help\n", id="option"),
        pytest.param(["bogus"], "Error: No such command 'bogus'.\nTry: shardstream --help\n", id="verb"),
        pytest.param(["info"], "Error: Missing argument 'URI'.\nTry: shardstream info --help\n", id="argument"),
    ],
)
def test_wrong_use_is_status_2_and_one_line_on_stderr(run, arguments: list[str], message: str) -> None:
    """A wrong command is named in one line with where to look, on standard error; the exit status is 2."""
    done = run(*arguments, status=2)

    assert (done.stdout, done.stderr) == ("", message)


def test_an_unknown_url_scheme_is_wrong_use(run) -> None:
    """A URL that nobody can open is wrong use."""
    assert run("info", "nosuch://bucket/x", status=2).stderr.startswith("Error: Protocol not known: nosuch\n")


def test_errors_are_red_where_colour_is_wanted(run) -> None:
    """An error is red where colour is forced, and plain under NO_COLOR."""
    assert "\x1b[1;31mError: \x1b[0m\x1b[31mNo such" in run("x", status=2, FORCE_COLOR="1").stderr
    assert "\x1b[" not in run("x", status=2, NO_COLOR="1").stderr


def test_a_closed_pipe_ends_the_program_quietly(program: str, write_dataset) -> None:
    """A reader that has seen enough, such as `head`, causes no message."""
    dataset = write_dataset(np.zeros(300_000, np.uint16), shard_tokens=2**20)
    command = f"'{program}' peek '{dataset.uri}' --position 0 --length 300000 | head -c 10; echo ${{PIPESTATUS[0]}} >&2"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("tokens 0 t", "1\n")


def test_a_short_report_into_a_closed_pipe_is_quiet_too(program: str, write_dataset) -> None:
    """The same when all that was printed is still buffered when the reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [program, "info", write_dataset([1]).uri, "--json"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that Linux has")
@pytest.mark.parametrize("arguments", [["info", "{uri}"], ["--version"]], ids=["report", "version"])
def test_a_full_disk_is_an_error(program: str, write_dataset, arguments: list[str]) -> None:
    """A report that cannot be written is an error, never a silent success."""
    uri = write_dataset([1]).uri
    command = [program, *(argument.format(uri=uri) for argument in arguments)]

    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")


def test_ctrl_c_is_status_130_and_says_how_to_go_on(start, tmp_path: Path) -> None:
    """Ctrl-C ends a verb with status 130, no traceback, and a word on how to go on."""
    os.mkfifo(tmp_path / "tokenizer.json")
    started = start("peek", "dataset", "--tokenizer", "tokenizer.json")
    with (tmp_path / "tokenizer.json").open("wb"):  # waits until the program reads
        assert interrupt(started) == "Error: interrupted; nothing was changed, the same command starts again"


def test_a_closed_standard_output_is_no_error(program: str, write_dataset) -> None:
    """A program without standard output, such as a daemon's child, works all the same."""
    done = subprocess.run(
        [program, "verify", write_dataset([1]).uri],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(1),
        check=True,
    )

    assert done.stderr == b""


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_an_interrupted_write_goes_on_with_resume(start, run, tmp_path: Path, option: str) -> None:
    """Ctrl-C during `write` publishes nothing and keeps full shards; --resume ends in the digest of a whole run."""
    ids = " ".join(map(str, range(300_000)))
    arguments = ["write", "-", "--vocab-size", 2**20, "--shard-tokens", 2**16]
    started = start(*arguments, "--out", "dataset", option)
    started.stdin.write(ids)
    started.stdin.flush()
    while not (tmp_path / "dataset" / "shard-000000.bin").exists():
        time.sleep(0.01)

    message = interrupt(started)
    report = json.loads(run(*arguments, "--out", "dataset", "--resume", "--json", stdin=ids).stdout)
    whole = json.loads(run(*arguments, "--out", "whole", "--json", stdin=ids).stdout)

    expected = "--resume in place of --overwrite" if option == "--overwrite" else "--resume"
    assert message == (
        "Error: interrupted; nothing is published, but full shards are kept: the same command with "
        f"{expected} goes on from there"
    )
    assert report["num_resumed_tokens"] % 2**16 == 0
    assert report["num_resumed_tokens"] > 0
    assert report["digest"] == whole["digest"]


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["table", "json"])
def test_progress_is_shown_on_a_terminal_alone(program: str, tmp_path: Path, option: list[str]) -> None:
    """A terminal sees a bar in bytes, on standard error; --json silences it, and standard output never holds it."""
    np.save(tmp_path / "ids.npy", np.zeros(1_000_000, np.uint16))
    terminal, stderr = pty.openpty()

    done = subprocess.run(
        [program, "write", "ids.npy", "--vocab-size", "9", "--out", "dataset", *option],
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    os.close(stderr)
    with contextlib.suppress(OSError), open(terminal, "rb") as shown:  # noqa: PTH123 - a descriptor; Linux says EIO where the other end is closed
        seen = shown.read1(100_000) if not option else b"".join(shown)
        assert (b"writing" in seen, b"2.0" in seen) == (not option, not option)

    assert b"writing" not in done.stdout
