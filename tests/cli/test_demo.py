"""``shardstream demo``: the whole job."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import shardstream
from shardstream.cli import main
from shardstream.cli.program import RefusedData

SOURCE = """def count(words):
    '''Count words; a text may spell <|endoftext|> and still be text.'''
    return {word: words.count(word) for word in words}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of an installed package: 40 files, one of them no UTF-8, and some that are no part of it."""
    folder = tmp_path / "site-packages" / "source"
    (folder / "site-packages").mkdir(parents=True)
    (folder / "empty").mkdir()
    for number in range(40):
        (folder / f"module_{number}.py").write_text(SOURCE * 20 + f"# {number}\n")
    (folder / "latin.py").write_bytes(b"# na\xefve\n")
    (folder / "site-packages" / "other.py").write_text("raise SystemExit")
    (folder / "readme.txt").write_text("no source")
    (folder / "link.py").symlink_to("module_0.py")
    return folder


def test_demo_does_the_whole_job(run, source: Path, tmp_path: Path) -> None:
    """Text becomes documents, a tokenizer, a verified dataset and batches; the commands that it names then work."""
    arguments = ["demo", "--source", source, "--vocab-size", 300, "--seed", 1]
    done = run(*arguments)
    dataset = shardstream.open(tmp_path / "shardstream-demo" / "dataset")

    assert f".py files in {source}; 1 more with bytes that are no UTF-8, left out\n" in done.stdout
    assert "text       40 documents, " in done.stdout
    assert "verified   1 shard, all well, " in done.stdout
    assert "inputs   (64, 256), torch.int64, on cpu: [" in done.stdout
    num_windows = (len(dataset) - 1) // 256
    assert f"{num_windows} samples, {num_windows} different ones of {num_windows} windows\n" in done.stdout
    assert "\n128 tokens from position " in done.stdout
    assert done.stderr == ""
    assert (dataset.manifest.num_documents, dataset.manifest.shards[0].num_eos) == (40, 40)
    commands = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  shardstream ")]
    assert [command[0] for command in commands] == ["info", "peek", "verify", "bench"]
    peeked = run(*commands[1], "--position", -1)
    assert (peeked.stdout[-22:], peeked.stderr) == ("as text\n<|endoftext|>\n", "")

    again = run(*arguments)

    assert shardstream.open(tmp_path / "shardstream-demo" / "dataset").manifest.digest == dataset.manifest.digest
    assert again.stdout.splitlines()[-12:] == done.stdout.splitlines()[-12:]


@pytest.mark.parametrize("other", ["tokenizer.json", "thesis.txt"])
def test_demo_touches_no_folder_of_somebody_else(run, write_dataset, tmp_path: Path, other: str) -> None:
    """A folder that holds anything but an earlier demo is refused, and left as it is."""
    write_dataset([1], uri=tmp_path / "out" / "dataset")
    (tmp_path / "out" / other).touch()

    assert run("demo", "--out", "out", status=1).stderr == (
        "Error: out: holds something else than an earlier demo; choose another folder with --out\n"
    )


def test_demo_says_what_is_wrong_with_its_arguments(run, source: Path) -> None:
    """A folder without source is bad data; one that is missing, and a vocabulary too small, are wrong use."""
    assert (
        "holds no .py files; name a folder of Python source with --source"
        in run("demo", "--source", source / "empty", status=1).stderr
    )
    assert "nowhere: No such file or directory\n" in run("demo", "--source", "nowhere", status=2).stderr
    assert (
        "vocab_size is 256; wanted at least 257: the 256 bytes and <|endoftext|>\n"
        in run("demo", "--source", source, "--vocab-size", 256, status=2).stderr
    )


@pytest.mark.parametrize(
    ("missing", "named"), [(["torch"], "torch"), (["torch", "tokenizers"], "torch and tokenizers")]
)
def test_demo_says_what_to_install(missing: list[str], named: str) -> None:
    """Without torch or tokenizers the demo names the remedy, before it has done anything."""
    script = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
from shardstream.cli import main
main(["demo"], prog_name="shardstream")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: shardstream demo needs {named}: pip install 'shardstream[torch,tokenizers]'\n"


def test_an_interrupted_demo_can_be_run_again(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Ctrl-C in the middle of the demo is status 130, and says that it can simply be run again."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("shardstream.cli.demo"), "_run", interrupt)

    with pytest.raises(SystemExit, match="^130$"):
        main(["demo"])
    assert capsys.readouterr().err == "Error: interrupted; run it again, what it left is replaced\n"


def test_a_demo_that_does_not_verify_is_an_error(write_dataset) -> None:
    """Were the demo's dataset damaged, the demo would say so."""
    dataset = write_dataset([1, 2, 3])
    Path(dataset.uri, "shard-000000.bin").write_bytes(b"")

    with pytest.raises(RefusedData, match="shard-000000.bin: truncated: 0 bytes, the manifest says 6$"):
        importlib.import_module("shardstream.cli.demo")._verify(dataset)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_demo_on_the_standard_library(run, tmp_path: Path) -> None:
    """The real demo takes less than three minutes, and verifies."""
    done = run("demo", "--out", "here")

    dataset = shardstream.open(tmp_path / "here" / "dataset")
    assert dataset.manifest.num_documents > 1000
    assert len(dataset.manifest.shards) > 3
    assert f"verified   {len(dataset.manifest.shards)} shards, all well" in done.stdout
