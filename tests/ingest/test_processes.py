"""Processes that tokenize parts: how they begin, fail and end."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

import shardstream
from shardstream import FormatError, ResumeError, ShardstreamError, StorageError, TokenizeProgress
from shardstream.format.manifest import TokenizerIdentity
from shardstream.ingest import processes
from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.ingest.json_tokenizer import train_byte_bpe
from shardstream.ingest.part import Advance, Settings
from shardstream.ingest.plan import InputRange
from shardstream.ingest.processes import Processes
from shardstream.ingest.worker import Answer, Setup, Task
from tests.ingest.local_processes import children_of, run_tasks

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
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


@pytest.mark.parametrize(("num_tasks", "num_processes"), [(0, 2), (1, 100_000), (5, 2)])
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
import json, sys
import msgspec
from shardstream.ingest.processes import Processes
from shardstream.ingest.worker import Setup, Task
setup, tasks = json.loads(sys.argv[1])
with Processes("bytes", 2) as run:
    run([msgspec.convert(task, Task) for task in tasks], msgspec.convert(setup, Setup), lambda _: None)
"""


def long_tasks(folder: Path) -> list[Task]:
    """Two that take some seconds each."""
    path = folder / "long.jsonl"
    path.write_text("".join(json.dumps({"text": "words " * 100}) + "\n" for _ in range(100_000)))
    ranges = (InputRange(str(path), "jsonl", num_bytes=path.stat().st_size),)
    return [Task(index=index, uri=str(folder / f"part-{index}"), ranges=ranges) for index in range(2)]


@needs_proc
def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    """kill -9 of the parent ends them all, whatever they were doing, in a moment."""
    arguments = json.dumps(msgspec.to_builtins([setup(), long_tasks(tmp_path)]))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, arguments])
    wait_for(lambda: len(list(tmp_path.glob("part-*/journal/head.json"))) == 2)
    [server] = children_of(parent.pid)
    started = {server, *children_of(server)}
    assert len(started) == 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()

    wait_for(lambda: not any(is_alive(pid) for pid in started))


@needs_proc
def test_processes_fork_while_there_is_one_thread(tmp_path: Path) -> None:
    """Whatever libraries the tokenizer needs: of another thread a child would inherit the locks alone."""
    tokenizer = tmp_path / "tokenizer.json"
    train_byte_bpe(["some text", "some more"], vocab_size=260).save(tokenizer)
    (tmp_path / "0.txt").write_text("some text")
    others = children_of(os.getpid())
    num_threads: list[int] = []

    def count(progress: TokenizeProgress) -> None:
        if progress.num_documents:
            [server] = children_of(os.getpid()) - others
            num_threads.append(len(list(Path(f"/proc/{server}/task").iterdir())))

    shardstream.tokenize([tmp_path / "0.txt"], tmp_path / "out", tokenizer=tokenizer, processes=1, progress=count)

    assert set(num_threads) == {1}


@needs_proc
def test_processes_that_are_not_wanted_end_at_once() -> None:
    """A job that is refused does not wait for what is still loading."""
    others = children_of(os.getpid())
    with Processes("bytes", 3):
        [server] = children_of(os.getpid()) - others
    assert not is_alive(server)
    assert children_of(os.getpid()) == others


@needs_proc
def test_processes_go_on_without_the_one_that_forked_them(tmp_path: Path) -> None:
    """Were it killed, for want of memory say, the parts are written all the same."""
    others = children_of(os.getpid())
    victims: list[int] = []

    def kill_the_server(_: Advance) -> None:
        if not victims:
            victims.extend(children_of(os.getpid()) - others)
            os.kill(victims[0], signal.SIGKILL)

    run_tasks(tasks_in(tmp_path, 5), setup(), kill_the_server, num_processes=2)

    assert len(victims) == 1
    assert len(list(tmp_path.glob("part-*/manifest.json"))) == 5


@needs_proc
def test_an_error_ends_processes_whose_server_is_gone(tmp_path: Path) -> None:
    """Nobody works on after an error was raised: the place is free for another try."""
    others = children_of(os.getpid())
    workers: set[int] = set()

    def kill_the_server(_: Advance) -> None:
        [server] = children_of(os.getpid()) - others
        workers.update(children_of(server))
        os.kill(server, signal.SIGKILL)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_tasks(long_tasks(tmp_path), setup(), kill_the_server, num_processes=2)

    assert len(workers) == 2
    wait_for(lambda: not any(is_alive(pid) for pid in workers))


def test_a_tokenizer_that_is_gone_is_named(tmp_path: Path) -> None:
    """It was there when the job was planned."""
    gone = msgspec.structs.replace(setup(), tokenizer=str(tmp_path / "tokenizer.json"))

    with pytest.raises(StorageError, match=r"No such file or directory: '\S+tokenizer\.json'"):
        run_tasks(tasks_in(tmp_path, 1), gone, lambda _: None, num_processes=1)


def test_what_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no descriptors."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    descriptors = open_descriptors()

    with pytest.raises(FileNotFoundError, match="/nowhere/python"), Processes("bytes", 3):
        pass

    assert open_descriptors() == descriptors


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
