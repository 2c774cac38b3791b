"""Processes that tokenize parts: how they begin, fail and end."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from shardstream import FormatError, ResumeError, ShardstreamError, StorageError
from shardstream.format.manifest import TokenizerIdentity
from shardstream.ingest import processes
from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.ingest.part import Advance, Settings
from shardstream.ingest.plan import InputRange
from shardstream.ingest.processes import run_tasks
from shardstream.ingest.worker import Answer, Setup, Task

SETTINGS = Settings(
    tokenizer=TokenizerIdentity(name="bytes", sha256=ByteTokenizer().sha256, eos_id=256),
    vocab_size=257,
    text_field="text",
    add_bos=False,
    special_text="encode",
    on_error="stop",
    shuffle_seed=None,
    side_files=False,
    shard_tokens=100,
    compression=None,
)


def setup(**changes: Any) -> Setup:
    return Setup(tokenizer="bytes", settings=msgspec.structs.replace(SETTINGS, **changes), storage_options=None)


def tasks_in(folder: Path, num_tasks: int) -> list[Task]:
    tasks = []
    for index in range(num_tasks):
        path = folder / f"{index}.txt"
        path.write_text(f"text {index} " * 20)
        ranges = (InputRange(str(path), "text", num_bytes=path.stat().st_size),)
        tasks.append(Task(index=index, uri=str(folder / f"part-{index}"), ranges=ranges))
    return tasks


@pytest.mark.parametrize(("num_tasks", "num_processes"), [(0, 2), (1, 4), (5, 2)])
def test_all_parts_are_written(tmp_path: Path, num_tasks: int, num_processes: int) -> None:
    """As many processes as wanted, never more than there are parts; progress comes from all of them."""
    told: list[Advance] = []
    tasks = tasks_in(tmp_path, num_tasks)
    run_tasks(tasks, setup(), told.append, num_processes=num_processes)

    assert all((tmp_path / f"part-{index}/manifest.json").exists() for index in range(num_tasks))
    assert sum(one.num_documents for one in told) == num_tasks
    assert sum(one.num_bytes for one in told) == sum(one.num_bytes for task in tasks for one in task.ranges)


def test_another_tokenizer_than_the_job_began_with_is_refused(tmp_path: Path, capfd) -> None:
    """A process that finds other ids under the tokenizer's name writes nothing, and says nothing beside the error."""
    identity = TokenizerIdentity(name="bytes", sha256="0" * 64, eos_id=256)

    with pytest.raises(FormatError, match="bytes: the tokenizer has changed since the job began"):
        run_tasks(tasks_in(tmp_path, 3), setup(tokenizer=identity), lambda _: None, num_processes=2)

    assert not list(tmp_path.glob("part-*"))
    assert capfd.readouterr().err == ""


def test_an_error_of_a_part_is_raised_as_what_it_was(tmp_path: Path) -> None:
    """Its message survives the way between processes; nothing goes on after it. What the system refuses is of a place."""
    tasks = tasks_in(tmp_path, 40)
    Path(tasks[0].ranges[0].path).unlink()

    with pytest.raises(StorageError, match=r"^\S+0\.txt: no such file"):
        run_tasks(tasks, setup(), lambda _: None, num_processes=1)

    assert not (tmp_path / "part-1").exists()


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (FormatError("what is wrong"), FormatError, "what is wrong"),
        (ResumeError("what is wrong"), ResumeError, "what is wrong"),
        (OSError(errno.ENOSPC, "No space left", "a"), StorageError, "[Errno 28] No space left: 'a'"),
        (ModuleNotFoundError("what is missing"), ImportError, "what is missing"),
        (ValueError("what is wrong"), ShardstreamError, "ValueError: what is wrong"),
        (KeyError("a"), ShardstreamError, "KeyError: 'a'"),
    ],
)
def test_an_error_has_one_meaning_on_its_way(error: Exception, expected: type[Exception], message: str) -> None:
    """What goes wrong in a part is bad data, or a place: never an argument of the job, which was checked before."""
    answer = Answer.of(error)
    assert answer.error is not None
    found = processes._error_of(answer.error, answer.message)

    assert type(found) is expected
    assert str(found) == message


def test_a_process_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Python there is an error, and no wait; nobody killed it, and the message does not say so."""
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(
        ShardstreamError, match=r"ended without a word \(status 1\): what it printed says why; the same"
    ):
        run_tasks(tasks_in(tmp_path, 1), setup(), lambda _: None, num_processes=1)


def test_a_process_runs_no_module_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds modules where this process does: a json.py beside the inputs is no program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    run_tasks(tasks_in(tmp_path, 1), setup(), lambda _: None, num_processes=1)

    assert (tmp_path / "part-0/manifest.json").exists()


def test_a_setup_does_not_show_its_secrets() -> None:
    """Storage options may be credentials: their names alone are shown, also by rich."""
    secret = msgspec.structs.replace(setup(), storage_options={"key": "me", "secret": "hidden"})

    assert repr(secret).endswith(", storage_options=<key, secret>)")
    assert pretty_repr(secret) == repr(secret)
    assert repr(setup()).endswith(", storage_options=<>)")


def test_an_error_that_nobody_foresaw_shows_where_it_happened(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is no error of data or of a place is raised here with its name, and the process prints its traceback."""
    task = Task(index=0, uri="nowhere://at/all", ranges=())

    with pytest.raises(ShardstreamError, match="^ValueError: .*nowhere"):
        run_tasks([task], setup(), lambda _: None, num_processes=1)

    shown = capfd.readouterr().err
    assert "Traceback" in shown
    assert "Fatal" not in shown


PARENT = """
import json, sys, time
import msgspec
from shardstream.ingest import processes
from shardstream.ingest.worker import Setup, Task
setup, tasks = json.loads(sys.argv[1])
tasks = [msgspec.convert(task, Task) for task in tasks]
print("begins", flush=True)
processes.run_tasks(tasks, msgspec.convert(setup, Setup), lambda _: None, num_processes=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    """kill -9 of the parent ends them all, whatever they were doing, in a moment."""
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": "words " * 100}) + "\n" for _ in range(100_000)))
    tasks = [
        Task(
            index=index,
            uri=str(tmp_path / f"part-{index}"),
            ranges=(InputRange(str(tmp_path / "long.jsonl"), "jsonl"),),
        )
        for index in range(2)
    ]
    arguments = json.dumps(msgspec.to_builtins([setup(), tasks]))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, arguments], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begins\n"
    children: list[str] = []
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("part-*/journal/head.json"))) < 2 and time.monotonic() < deadline:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        time.sleep(0.01)
    assert len(children) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()

    while any(is_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert not any(is_alive(pid) for pid in children)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
