"""``shardstream adopt``: token files of other systems become a dataset, where they lie."""

import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shardstream
from shardstream.cli import main
from tests.ingest import foreign

Refused = Callable[..., str]
DOCUMENTS = [[1, 2, 7], [3, 7], [4] * 95]


def test_the_report_says_what_the_files_were_taken_for(run, tmp_path: Path) -> None:
    """Formats, numbers and what reading takes are reported; the files are as they were."""
    a = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    foreign.raw(tmp_path / "b.bin", DOCUMENTS, "<u2")
    foreign.npy(tmp_path / "c.npy", DOCUMENTS, "<i2")
    before = a.read_bytes()

    lines = run(
        "adopt", "a.bin", "b.bin", "c.npy", "--vocab-size", 50257, "--eos-id", 7, "--out", "dataset"
    ).stdout.splitlines()

    assert lines[:5] == [
        f"dataset       {tmp_path / 'dataset'}",
        "taken for     2 files of uint16: raw ids (as nanoGPT's .bin); 1 file of int16: NumPy .npy",
        "elsewhere     3 files; reading takes --trust-locations",
        "tokens        300",
        "documents     6",
    ]
    assert lines[-1].endswith("MB/s, 600 bytes")
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == ["manifest.json"]
    assert a.read_bytes() == before


def test_adopt_as_json(run, tmp_path: Path) -> None:
    """--json says the same; files below the manifest need no trust, and --threads and --tokenizer-name are taken."""
    foreign.llm_c(tmp_path / "a.bin", DOCUMENTS, "<u2")

    report = json.loads(
        run(
            *("adopt", "a.bin", "--vocab-size", 50257, "--out", "."),
            *("--tokenizer-name", "gpt2", "--threads", 1, "--json"),
        ).stdout
    )

    assert report["formats"] == [{"format": "llm.c .bin", "dtype": "uint16", "num_files": 1}]
    assert (report["num_elsewhere"], report["num_tokens"], report["tokenizer"]) == (0, 100, {"name": "gpt2"})
    assert report["digest"] == shardstream.open(tmp_path).manifest.digest
    assert report["mb_per_second"] > 0


def test_verbs_that_read_take_trust_locations(run, tmp_path: Path) -> None:
    """verify, peek and bench follow the manifest to adopted files when told to; who has to be told says so."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    shardstream.adopt([file], tmp_path / "dataset", vocab_size=1000)

    assert "open with --trust-locations" in run("verify", "dataset", status=1).stderr
    assert "all well: 1 shard" in run("verify", "dataset", "--trust-locations").stdout
    assert "1 2 7 3" in run("peek", "dataset", "--position", 0, "--length", 4, "--trust-locations").stdout
    shown = run("bench", "dataset", "--trust-locations", "--seconds", 0, "--batch-size", 1, "--context-length", 8)
    assert "200 bytes" in shown.stdout


def test_a_flipped_bit_in_an_adopted_file_is_found(run, tmp_path: Path) -> None:
    """verify names the shard, with status 1."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    run("adopt", "a.bin", "--vocab-size", 1000, "--out", "dataset")
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])

    shown = run("verify", "dataset", "--trust-locations", status=1).stdout
    assert shown.startswith(f"adopted/{Path(*tmp_path.parts[-2:], 'a.bin')}: checksum is sha256 ")


def test_no_checksum_is_for_a_look(run, tmp_path: Path) -> None:
    """--no-checksum reads no id, so even an id beyond the vocabulary passes; the report says that nothing was read."""
    foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")

    report = json.loads(run("adopt", "a.bin", "--vocab-size", 5, "--out", ".", "--no-checksum", "--json").stdout)

    assert report["num_read_bytes"] == 0
    assert report["num_tokens"] == 100
    assert "holds id 7, not below vocab_size 5" in run("verify", ".", status=1).stdout


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What adopt says of arguments that it refuses, and the exit status; within this process, which is quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def message(status: int, *arguments: object) -> str:
        with pytest.raises(SystemExit, match=f"^{status}$"):
            main(["adopt", *map(str, arguments)])
        return capsys.readouterr().err

    return message


def test_bad_files_are_status_1_and_leave_nothing(refused: Refused, tmp_path: Path) -> None:
    """A file that was cut, one of other ids, and a target that is taken are named; no manifest appears."""
    foreign.npy(tmp_path / "cut.npy", DOCUMENTS, "<u2").write_bytes(b"\x93NUMPY\x01\x00")
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    out = ("--out", "dataset")

    assert "cut.npy: not a .npy file" in refused(1, "cut.npy", "--vocab-size", 1000, *out)
    assert "a.bin: token 2 of the file is 7; wanted 0 to 6" in refused(1, "a.bin", "--vocab-size", 7, *out)
    assert not (tmp_path / "dataset").exists()
    shardstream.adopt([file], tmp_path / "dataset", vocab_size=8)
    assert "it holds a dataset already; --overwrite replaces its manifest" in refused(
        1, "a.bin", "--vocab-size", 9, *out
    )


def test_a_dataset_is_replaced_when_told(run, tmp_path: Path) -> None:
    """--overwrite puts another manifest in the place of one that is there."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    shardstream.adopt([file], tmp_path / "dataset", vocab_size=8)

    run("adopt", "a.bin", "--vocab-size", 9, "--out", "dataset", "--overwrite")

    assert shardstream.open(tmp_path / "dataset", trust_locations=True).vocab_size == 9


def test_wrong_use_is_status_2(refused: Refused, tmp_path: Path) -> None:
    """Missing files, a dtype that cannot be, a file given twice, and missing options are wrong use."""
    foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")

    options = ("--vocab-size", 1000, "--out", "dataset")
    assert "b.bin: no such file" in refused(2, "b.bin", *options)
    assert "a.bin is given twice" in refused(2, "a.bin", "./a.bin", *options).replace("./", "")
    assert "dtype is 'uint32': ids of uint32" in refused(2, "a.bin", "--dtype", "uint32", *options)
    assert "eos_id is 1000" in refused(2, "a.bin", "--eos-id", 1000, *options)
    assert "Missing option '--vocab-size'" in refused(2, "a.bin", "--out", "dataset")
    assert not (tmp_path / "dataset").exists()


def test_a_terminal_sees_how_far_it_has_come(program: str, tmp_path: Path) -> None:
    """A bar in bytes is shown on a terminal's standard error."""
    np.zeros(1_000_000, np.uint16).tofile(tmp_path / "a.bin")
    terminal, stderr = pty.openpty()

    subprocess.run(
        [program, "adopt", "a.bin", "--vocab-size", "9", "--dtype", "uint16", "--out", "dataset"],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    os.close(stderr)

    with open(terminal, "rb", buffering=0) as shown:  # noqa: PTH123 - a descriptor
        assert b"reading" in shown.read(100_000)
