"""Tokenizing on a Ray cluster: the dataset of one machine, whatever happens to tasks and nodes."""

import contextlib
import functools
import json
import logging
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from ray.data.datasource import WriteResult
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray
from ray.exceptions import RayTaskError

import shardstream
from shardstream import FormatError, Manifest, ShardstreamError, StorageError, TokenizeProgress
from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.ingest.part import Advance
from shardstream.ingest.worker import ONE_THREAD, Setup, Task
from shardstream.integrations import ray_data
from shardstream.integrations.ray_data import Encode, RayEngine, TokenDatasink
from tests.conftest import S3Place
from tests.ingest.local_processes import run_tasks

# A cluster starts in 5 s; on a busy machine it takes a minute.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

EOS_ID = 256
WAIT_S = 60  # for what takes a second where nothing else runs
ENCODE = Encode("bytes")
BYTES: dict[str, Any] = {"vocab_size": ENCODE.vocab_size, "tokenizer": ENCODE.identity}
NUM_PARTS = 6
PART_BYTES = 20_000  # one file, not two

# Workers know no test module: what it defines goes to them as it is.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without processors, and two nodes of one each; this process is its driver."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        # A node is lost when several looks at it fail; by default they are seconds apart.
        often = {"health_check_period_ms": 200}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": often}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()
        until(lambda: not processes_of_ray(folder))
    shutil.rmtree(folder)


def processes_of_ray(folder: str) -> list[str]:
    """Names of those whose environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"RAY_TMPDIR={folder}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [name for name in found if "/ray/" in name or "ray::" in name]


def until(is_so: Callable[[], object]) -> None:
    limit = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < limit, f"still not so after {WAIT_S} s"
        time.sleep(0.01)


def texts_of(num_documents: int) -> list[str]:
    rng = random.Random(3)
    words = ["tree", "Größe", "日本", "\n", "naïve", "🙂", "<|endoftext|>"]
    return [" ".join(rng.choices(words, k=rng.randrange(20, 60))) for _ in range(num_documents)]


TEXTS = texts_of(40 * NUM_PARTS)


def stream_of(texts: list[str]) -> list[int]:
    """The tokens of a dataset of texts: the oracle."""
    return [token for text in texts for token in [*text.encode(), EOS_ID]]


def write_inputs(folder: Path) -> Path:
    folder.mkdir()
    for number in range(NUM_PARTS):
        texts = TEXTS[40 * number : 40 * (number + 1)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """As many files as parts."""
    return write_inputs(tmp_path / "inputs")


OPTIONS: dict[str, Any] = {"tokenizer": "bytes", "part_bytes": PART_BYTES, "shard_tokens": 500}


@pytest.fixture
def tokenize(inputs: Path, tmp_path: Path) -> Callable[..., Manifest]:
    def run(**options: Any) -> Manifest:
        given = OPTIONS | options
        return shardstream.tokenize([inputs], given.pop("uri", tmp_path / "out"), **given)

    return run


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What processes of this machine make of such inputs."""
    folder = tmp_path_factory.mktemp("local")
    return shardstream.tokenize([write_inputs(folder / "inputs")], folder / "out", processes=2, **OPTIONS)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def files_of(manifest: Manifest) -> set[str]:
    return {"manifest.json", *(shard.name for shard in manifest.shards)}


# ---- The job's parts on a cluster


def test_a_cluster_writes_the_dataset_of_one_machine(cluster, tokenize, tmp_path: Path) -> None:
    """Digest, account and progress are those of local processes, and nothing else is left at the target."""
    local = tokenize(uri=tmp_path / "local", processes=2)
    told: list[TokenizeProgress] = []
    manifest = tokenize(engine=RayEngine(), progress=told.append)

    assert manifest.digest == local.digest
    assert manifest.metadata == local.metadata
    assert files_below(tmp_path / "out") == files_of(manifest)
    assert shardstream.open(tmp_path / "out")[:].tolist() == stream_of(TEXTS)
    assert told[-1] == (told[-1].total_bytes, told[-1].total_bytes, len(TEXTS), manifest.num_tokens, 0)


class Gate:
    """Holds a task when it tells of its progress, in the middle of a part."""

    def __init__(self, tell: Callable[..., object], folder: Path) -> None:
        self._tell = tell
        self._folder = folder

    def __call__(self, tally: Any, part: int, name: str, news: Advance) -> Any:
        if news.num_documents:
            until(lambda: [*self._folder.glob(f"out/parts/*-{name}")])  # threads write
            self._hold()
        return self._tell(tally, part, name, news)

    def _hold(self) -> None:
        (self._folder / f"held-{os.getpid()}").touch()
        until((self._folder / "open").exists)


class DeadlyGate(Gate):
    """Kills the first process that tells."""

    def _hold(self) -> None:
        with contextlib.suppress(FileExistsError):
            (self._folder / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)


def engine_with(gate: type[Gate], folder: Path, tries: set[str]) -> Callable[..., None]:
    """An engine whose tasks come to a gate, and that notes the folders that tries of parts have left."""

    def run(tasks: Any, *others: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray_data, "_tell", gate(ray_data._tell, folder))
            try:
                RayEngine()(tasks, *others)
            finally:
                tries.update(path.name for path in Path(tasks[0].uri).parent.glob("*"))

    return run


def test_a_task_killed_inside_its_part_leaves_no_trace(cluster, tokenize, local, tmp_path: Path) -> None:
    """The part is written again, in another folder; the dataset has it once."""
    tries: set[str] = set()
    manifest = tokenize(engine=engine_with(DeadlyGate, tmp_path, tries))

    assert len(tries) == NUM_PARTS + 1
    assert manifest.digest == local.digest
    assert files_below(tmp_path / "out") == files_of(manifest)


def test_a_part_that_kills_its_process_each_time_ends_the_job(cluster, tokenize, tmp_path: Path, monkeypatch) -> None:
    """It is not tried for ever."""
    monkeypatch.setattr(ray_data, "_MAX_RETRIES", 0)
    with pytest.raises(ShardstreamError, match="Ray could not write all parts"):
        tokenize(engine=engine_with(DeadlyGate, tmp_path, set()))

    assert not (tmp_path / "out/manifest.json").exists()


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # ended, and its parent has not asked


def test_a_node_killed_inside_two_parts_leaves_no_trace(cluster, tokenize, local, tmp_path: Path) -> None:
    """What its tasks had begun is written by the node that is left, and progress does not count it twice."""
    tries: set[str] = set()
    told: list[TokenizeProgress] = []

    def kill_a_node() -> None:
        until(lambda: len(list(tmp_path.glob("held-*"))) == 2)
        held = [int(path.name.removeprefix("held-")) for path in tmp_path.glob("held-*")]
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        try:
            until(lambda: not all(map(is_alive, held)))  # its task, which would go on for a moment
        finally:
            (tmp_path / "open").touch()

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    manifest = tokenize(engine=engine_with(Gate, tmp_path, tries), progress=told.append)
    killer.join()
    cluster.add_node(num_cpus=1)  # for the tests that follow

    assert len(tries) == NUM_PARTS + 1
    assert manifest.digest == local.digest
    assert files_below(tmp_path / "out") == files_of(manifest)
    assert told[-1].num_documents == len(TEXTS)


@pytest.mark.parametrize("is_ray_first", [True, False])
def test_a_job_goes_on_where_another_engine_stopped(cluster, tokenize, local, tmp_path: Path, is_ray_first) -> None:
    """Parts that one machine did are not done again on a cluster, nor the other way round."""
    engines: list[Any] = [RayEngine(), functools.partial(run_tasks, num_processes=1)]
    first, second = engines if is_ray_first else reversed(engines)
    num_documents: list[int] = []

    def half(tasks: Any, *others: Any) -> None:
        first(tasks[: NUM_PARTS // 2], *others)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(engine=half)
    manifest = tokenize(engine=second, progress=lambda progress: num_documents.append(progress.num_documents))

    assert manifest.digest == local.digest
    assert num_documents[-1] == len(TEXTS) // 2
    assert files_below(tmp_path / "out") == files_of(manifest)


def test_a_bad_record_is_the_error_that_one_machine_raises(cluster, tokenize, inputs, tmp_path: Path) -> None:
    """It is raised as it is, at once, and what Ray would add to it is not there."""
    (inputs / "4.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(FormatError) as expected:
        tokenize(uri=tmp_path / "other", processes=1)
    with pytest.raises(FormatError) as found:
        tokenize(engine=RayEngine())

    assert str(found.value) == str(expected.value)
    assert type(found.value) is FormatError
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_input_that_a_node_cannot_read_is_named_with_the_node(cluster, tokenize, inputs) -> None:
    """An OSError of a task says where it was."""

    def engine(*given: Any) -> None:
        (inputs / "2.jsonl").unlink()
        RayEngine()(*given)

    with pytest.raises(StorageError, match=r"^on node \S+: .*2\.jsonl"):
        tokenize(engine=engine)


class LateGate(Gate):
    """Holds it when it has told."""

    def __call__(self, *told: Any) -> Any:
        heard = self._tell(*told)
        if told[-1].num_documents:
            self._hold()
        return heard


def test_progress_that_raises_ends_the_job(cluster, tokenize, tmp_path: Path) -> None:
    """An error in the caller's progress is the caller's to see, and soon: parts that nobody has begun stay undone."""

    def progress(told: TokenizeProgress) -> None:
        if told.num_documents:
            (tmp_path / "open").touch()
            raise ZeroDivisionError

    tries: set[str] = set()
    with pytest.raises(ZeroDivisionError):
        tokenize(engine=engine_with(LateGate, tmp_path, tries), progress=progress)

    assert 0 < len(tries) < NUM_PARTS
    assert not (tmp_path / "out/manifest.json").exists()


def test_parts_go_to_a_bucket(cluster, tokenize, s3: S3Place, local) -> None:
    """Workers reach object storage with the storage options of the job."""
    manifest = tokenize(uri=s3.url, engine=RayEngine(), storage_options=s3.storage_options)
    dataset = shardstream.open(s3.url, storage_options=s3.storage_options)

    assert manifest.digest == local.digest
    assert dataset.verify().ok


def run_cli(inputs: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "shardstream", "tokenize", str(inputs), "--tokenizer", "bytes", "--out", str(out)]
    options = ("--part-bytes", str(PART_BYTES), "--shard-tokens", "500", "--json", *options)
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_line_takes_a_cluster(cluster, inputs, local, tmp_path: Path) -> None:
    """``shardstream tokenize --engine ray --address A`` writes the same dataset, and says no more than locally."""
    with run_cli(inputs, tmp_path / "out", "--engine", "ray", "--address", cluster.address) as process:
        output, errors = process.communicate(timeout=WAIT_S)

    assert (process.returncode, errors) == (0, "")
    assert json.loads(output)["digest"] == local.digest


def test_ray_that_the_engine_started_ends_with_it(tokenize, inputs, tmp_path: Path) -> None:
    """Without an address, and no cluster on this machine, one is started, and Ctrl-C ends it too."""
    small = PART_BYTES // 10  # so many parts that Ctrl-C comes in time
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        with run_cli(inputs, tmp_path / "out", "--engine", "ray", "--part-bytes", str(small)) as process:
            until(lambda: process.poll() is not None or list(tmp_path.glob("out/parts/*/manifest.json")))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=WAIT_S)
        until(lambda: not processes_of_ray(folder))
    shutil.rmtree(folder)

    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    tokenize(processes=1, part_bytes=small)
    assert shardstream.open(tmp_path / "out")[:].tolist() == stream_of(TEXTS)


def test_nothing_to_do_needs_no_cluster(job) -> None:
    """A job whose parts are all done starts nothing: nobody listens at that address."""
    RayEngine(address="127.0.0.1:1")([], job[1], print)


# ---- A part, in this process


@pytest.fixture
def job(tokenize: Callable[..., Manifest]) -> tuple[list[Task], Setup]:
    """What an engine is given."""
    given: list[Any] = []

    def engine(*arguments: Any) -> None:
        given.extend(arguments)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(engine=engine, on_error="skip")
    tasks, setup, _ = given
    return tasks, setup


def at_once(result: bool) -> "Future[bool]":
    heard: Future[bool] = Future()
    heard.set_result(result)
    return heard


def write_here(tasks: list[Task], setup: Setup) -> Advance:
    tally = ray_data._Tally()

    def tell(*told: Any) -> "Future[bool]":
        return at_once(tally.add(*told))

    with mock.patch.dict(os.environ):
        for task in tasks:
            ray_data._write(task, setup, tell)
        assert os.environ.items() >= ONE_THREAD.items()
    return tally.take()


def test_each_try_of_a_part_has_a_folder_of_its_own(job) -> None:
    """Two tries of one part do not meet, and tell the same; what comes last counts."""
    (task, *_), setup = job
    news = write_here([task, task], setup)
    folders = list(Path(task.uri).parent.iterdir())

    assert [shardstream.open(folder).manifest.num_documents for folder in folders] == [40, 40]
    assert len({shardstream.open(folder).manifest.digest for folder in folders}) == 1
    assert (news.num_documents, news.num_bytes) == (40, task.ranges[0].num_bytes)


def test_bad_records_are_counted_once(job, inputs) -> None:
    """Each record that is left out is told by its place, and counted once where a part is tried twice."""
    (task, *_), setup = job
    num_bytes = (inputs / "0.jsonl").stat().st_size
    (inputs / "0.jsonl").write_text('{"text": 3}\n{"text": "fine"}\n{}'.ljust(num_bytes))
    news = write_here([task, task], setup)

    assert news.num_bad_records == 2
    assert {record.partition(",")[0] for record in news.left_out} == {str(inputs / "0.jsonl")}
    assert len(set(news.left_out)) == 2


def test_an_error_of_the_system_names_the_node(job, inputs) -> None:
    """What one node cannot read, others may."""
    (inputs / "0.jsonl").unlink()
    with pytest.raises(ray_data._PartError) as caught:
        write_here(*job)

    assert str(caught.value.args[0]).startswith(f"on node {platform.node()}: ")


def test_another_tokenizer_than_the_jobs_is_refused(job) -> None:
    """A node whose file of that name is another one writes nothing."""
    tasks, setup = job
    identity = msgspec.structs.replace(setup.settings.tokenizer, sha256="0" * 64)
    other = msgspec.structs.replace(setup, settings=msgspec.structs.replace(setup.settings, tokenizer=identity))
    with pytest.raises(ray_data._PartError) as caught:
        write_here(tasks, other)

    assert isinstance(caught.value.args[0], FormatError)


def test_a_try_that_was_taken_for_lost_counts_no_more() -> None:
    """What it had told is taken back when another try begins, and what it goes on to tell is dropped."""
    tally = ray_data._Tally()
    tally.add(0, "a", Advance(num_documents=5, num_tokens=50, num_bytes=500, num_bad_records=5, left_out=("x",)))
    tally.add(1, "b", Advance(num_documents=1, num_tokens=10, num_bytes=100, num_bad_records=1))
    before = tally.take()
    tally.add(0, "c", Advance(num_documents=2, num_tokens=20, num_bytes=200, num_bad_records=2))
    tally.add(0, "a", Advance(num_documents=1, num_tokens=1, num_bytes=1, num_bad_records=1))

    assert before == Advance(num_documents=6, num_tokens=60, num_bytes=600, num_bad_records=6, left_out=("x",))
    assert tally.take() == Advance(num_documents=-3, num_tokens=-30, num_bytes=-300, num_bad_records=-3)
    assert tally.take() == Advance()


def test_a_tally_that_was_stopped_says_so() -> None:
    """Whoever tells hears whether the job goes on."""
    tally = ray_data._Tally()
    before = tally.add(0, "a", Advance())
    tally.stop()

    assert (before, tally.add(0, "a", Advance())) == (True, False)


@pytest.fixture
def tally(cluster) -> Iterator[Any]:
    with ray_data._running_tally() as tally:
        yield tally


def test_a_task_hears_that_the_job_was_stopped(tally) -> None:
    """Or that nobody knows of it any more; where no answer comes in time, it goes on."""
    ray_data._check_goes_on(Future(), timeout_s=0)
    ray_data._check_goes_on(ray_data._tell(tally, 0, "a", Advance()), timeout_s=WAIT_S)
    ray.get(tally.stop.remote())
    with pytest.raises(ray_data._PartError, match="the job was stopped"):
        ray_data._check_goes_on(ray_data._tell(tally, 0, "a", Advance()), timeout_s=WAIT_S)
    ray.kill(tally)
    with pytest.raises(ray_data._PartError, match="the job was stopped"):
        ray_data._check_goes_on(ray_data._tell(tally, 0, "a", Advance()), timeout_s=WAIT_S)


@pytest.mark.parametrize("num_told", [0, 1, 2])
def test_a_part_of_a_job_that_was_stopped_is_not_finished(job, num_told: int) -> None:
    """Whether its task hears of it in the middle of its part, at the end, or when it is published already."""
    told: list[Any] = []

    def tell(*news: Any) -> "Future[bool]":
        told.append(news)
        return at_once(len(told) <= num_told)

    (task, *_), setup = job
    with pytest.raises(ray_data._PartError, match="the job was stopped"):
        ray_data._write(task, setup, tell)
    assert len(told) == num_told + 1
    assert len([*Path(task.uri).parent.glob("*/manifest.json")]) == (num_told == 2)


class Holding:
    """Tasks that wait until a file is there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "open"
        self.begun: list[Any] = []

    def tasks(self, num_tasks: int) -> Iterator[Any]:
        path = self._path

        def hold() -> None:
            until(path.exists)

        for _ in range(num_tasks):
            self.begun.append(ray.remote(num_cpus=0)(hold).remote())
            yield self.begun[-1]

    def release(self, *_: object) -> None:
        self._path.touch()


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Holding]:
    holding = Holding(tmp_path)
    yield holding
    holding.release()
    ray.wait(holding.begun, num_returns=len(holding.begun), timeout=WAIT_S)


@pytest.mark.parametrize(("resources", "num_begun"), [({}, 2), ({"CPU": 2.0}, 4), ({"CPU": 8.0}, 9)])
def test_few_tasks_begin_before_others_end(tally, holding, monkeypatch, resources, num_begun: int) -> None:
    """Two for each processor, and two for a cluster that has none yet; in the end all have ended."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ray_data._run_all, holding.tasks(9), tally, print)
        until(lambda: len(holding.begun) == num_begun)
        assert not wait([running], timeout=2).done
        assert len(holding.begun) == num_begun
        holding.release()
        running.result(timeout=WAIT_S)
    assert len(holding.begun) == 9


def test_a_cluster_that_grows_gets_more_to_do(tally, holding, monkeypatch) -> None:
    """Also while no task ends."""
    resources: dict[str, float] = {}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ray_data._run_all, holding.tasks(9), tally, print)
        until(lambda: len(holding.begun) == 2)
        resources["CPU"] = 3.0
        until(lambda: len(holding.begun) == 6)
        holding.release()
        running.result(timeout=WAIT_S)


@pytest.mark.parametrize("num_others", [0, 2])
def test_a_task_that_fails_stops_the_job(tally, holding, num_others: int) -> None:
    """Those that have begun are stopped, and have ended when the error comes."""

    def fail() -> None:
        raise ZeroDivisionError

    class Stopping:
        """The tally, and tasks that hear of a stop."""

        take = tally.take
        stop = SimpleNamespace(remote=lambda: (tally.stop.remote(), holding.release()))

    tasks = [*holding.tasks(num_others), ray.remote(num_cpus=0)(fail).remote()]
    with pytest.raises(ZeroDivisionError):
        ray_data._run_all(iter(tasks), Stopping(), print)

    assert not ray.get(tally.add.remote(0, "a", Advance()))
    assert ray.wait(tasks, num_returns=len(tasks), timeout=0)[1] == []


def test_progress_is_told_while_no_task_ends(tally, holding, monkeypatch) -> None:
    """So an error of the caller ends the job on a cluster whose tasks hang, or wait; they are not waited for long."""
    monkeypatch.setattr(ray_data, "_STOP_TIMEOUT_S", 0.1)

    def advance(_: Advance) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ray_data._run_all(holding.tasks(2), tally, advance)

    assert not ray.get(tally.add.remote(0, "a", Advance()))


@pytest.mark.parametrize("is_engine", [True, False])
def test_a_storage_option_that_cannot_be_sent_is_named_without_the_others(job, tmp_path, is_engine: bool) -> None:
    """Ray would show all of them, secrets too."""
    options = {"secret": "hunter2", "session": threading.Lock()}
    with pytest.raises(TypeError, match=r"storage_options\['session'\] is of type lock; wanted") as caught:
        if is_engine:
            RayEngine()(job[0], msgspec.structs.replace(job[1], storage_options=options), print)
        else:
            TokenDatasink(tmp_path / "other", vocab_size=9, storage_options=options)

    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


# ---- Somebody's own pipeline


@pytest.fixture
def rows(tmp_path: Path) -> "ray.data.Dataset":
    """The texts in Parquet files, each file one task's."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(NUM_PARTS):
        pq.write_table(pa.table({"text": TEXTS[40 * number : 40 * (number + 1)]}), folder / f"{number}.parquet")
    dataset = ray.data.read_parquet(str(folder), override_num_blocks=NUM_PARTS)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset


def test_rows_of_texts_become_a_dataset_in_three_lines(cluster, rows, tmp_path: Path) -> None:
    """Read, encode, write; a task whose process is killed on the way leaves nothing of its first try."""
    killed = tmp_path / "killed"

    def die_once(batch: dict[str, Any]) -> dict[str, Any]:
        if TEXTS[100] in batch["text"]:
            with contextlib.suppress(FileExistsError):
                killed.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return batch

    ids = rows.map_batches(die_once, batch_size=10).map_batches(ENCODE, batch_format="pyarrow")
    ids.write_datasink(TokenDatasink(tmp_path / "out", shard_tokens=500, **BYTES))
    dataset = shardstream.open(tmp_path / "out")

    assert killed.exists()
    assert dataset[:].tolist() == stream_of(TEXTS)
    assert dataset.manifest.num_documents == len(TEXTS)
    assert dataset.verify().ok
    assert files_below(tmp_path / "out") == files_of(dataset.manifest)


def test_a_task_that_raises_publishes_nothing(cluster, rows, tmp_path: Path) -> None:
    """What was written goes, the error comes, and overwrite=True starts again."""

    def refuse(batch: dict[str, Any]) -> dict[str, Any]:
        if TEXTS[200] in batch["text"]:
            raise ValueError("not this one")
        return batch

    sink = TokenDatasink(tmp_path / "out", **BYTES)
    with pytest.raises(RayTaskError, match="not this one"):
        rows.map_batches(refuse).map_batches(ENCODE).write_datasink(sink)
    with pytest.raises(StorageError, match="overwrite=True starts again"):
        write_tasks(TokenDatasink(tmp_path / "out", **BYTES), ids_table([1]))
    write_tasks(TokenDatasink(tmp_path / "out", overwrite=True, **BYTES), ids_table([1]))
    dataset = shardstream.open(tmp_path / "out")

    assert dataset[:].tolist() == [1, EOS_ID]
    assert files_below(tmp_path / "out") == files_of(dataset.manifest)


# ---- The datasink, its calls as Ray Data makes them


def write_tasks(sink: TokenDatasink, *tasks: pa.Table) -> None:
    """Each table is the block of a task; the last task is done first."""
    sink.on_write_start(tasks[0].schema if tasks else None)
    try:
        done = [sink.write([table], SimpleNamespace(task_idx=index)) for index, table in enumerate(tasks)]
        sink.on_write_complete(WriteResult(sum(table.num_rows for table in tasks), 0, done[::-1]))
    except Exception as error:
        sink.on_write_failed(error)
        raise


def ids_table(*rows: object) -> pa.Table:
    return pa.table({"tokens": pa.array(rows, pa.list_(pa.int64()))})


@settings(max_examples=30)  # each writes up to four durable datasets
@given(st.lists(st.lists(st.lists(st.integers(0, 8), max_size=5), max_size=4), min_size=1, max_size=4), st.booleans())
def test_documents_stand_in_the_order_of_the_tasks(tasks, has_eos) -> None:
    """The stream is every row of every task, whichever was done first; each ended by eos_id if there is one."""
    rows = [row for task in tasks for row in task]
    end = [9] if has_eos else []
    with tempfile.TemporaryDirectory() as folder:
        sink = TokenDatasink(folder, vocab_size=10, eos_id=end[0] if end else None, shard_tokens=3)
        if not rows:
            with pytest.raises(FormatError, match="no row"):
                write_tasks(sink, *(ids_table(*task) for task in tasks))
            return
        write_tasks(sink, *(ids_table(*task) for task in tasks))
        dataset = shardstream.open(folder)

        assert dataset[:].tolist() == [token for row in rows for token in [*row, *end]]
        assert dataset.manifest.num_documents == len(rows) * has_eos
        assert files_below(Path(folder)) == files_of(dataset.manifest)


@pytest.mark.parametrize(
    "block",
    [
        pa.table({"tokens": pa.array([[1, 2], [3, 4]], pa.large_list(pa.uint16()))}),
        pa.table({"tokens": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))}),
        pa.table({"tokens": ArrowTensorArray.from_numpy(np.array([[1, 2], [3, 4]]))}),
        pa.table({"tokens": ArrowVariableShapedTensorArray.from_numpy([np.array([1, 2]), np.array([3, 4])])}),
        pd.DataFrame({"tokens": [[1, 2], [3, 4]]}),
        pd.DataFrame({"tokens": [np.array([1, 2]), np.array([3, 4])]}),
    ],
    ids=["large list", "list of fixed size", "tensors", "ragged tensors", "pandas lists", "pandas arrays"],
)
def test_lists_come_in_any_form_that_ray_gives_them(block, tmp_path: Path) -> None:
    """Arrow's lists, Ray's tensors, pandas' objects."""
    sink = TokenDatasink(tmp_path, vocab_size=10, eos_id=9)
    sink.on_write_start()
    sink.on_write_complete(WriteResult(2, 0, [sink.write([block], SimpleNamespace(task_idx=0))]))

    assert shardstream.open(tmp_path)[:].tolist() == [1, 2, 9, 3, 4, 9]


def test_a_lost_try_is_not_in_the_dataset(tmp_path: Path) -> None:
    """Of two tries of a task, the one that Ray names counts, and the other is deleted, unfinished or not."""
    sink = TokenDatasink(tmp_path, vocab_size=10, eos_id=9)
    sink.on_write_start()
    task, table = SimpleNamespace(task_idx=0), ids_table([1, 2])
    sink.write([table], task)
    with pytest.raises(ValueError, match="wanted 0 to 9"):
        sink.write([table, ids_table([10])], task)
    sink.on_write_complete(WriteResult(1, 0, [sink.write([table], task)]))
    dataset = shardstream.open(tmp_path)

    assert dataset[:].tolist() == [1, 2, 9]
    assert files_below(tmp_path) == files_of(dataset.manifest)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (ids_table([1], None), "column 'tokens' has a row that is null"),
        (pa.table({"ids": [[1]], "n": [1]}), "no column 'tokens'; the rows have: ids, n"),
        (ids_table([1, 10]), "token at position 1 is 10; wanted 0 to 9"),
        (ids_table([1, 9]), "token at position 1 is eos_id 9, inside document 0"),
    ],
)
def test_rows_that_are_no_ids_are_refused(table, message, tmp_path: Path) -> None:
    """The message says what is wrong, and nothing is published or left but the record."""
    with pytest.raises(ValueError, match=message):
        write_tasks(TokenDatasink(tmp_path, vocab_size=10, eos_id=9), ids_table([1]), table)

    assert files_below(tmp_path) == {"journal/datasink.json"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"vocab_size": 2.5}, "integer"),
        ({"shard_tokens": -1}, "shard_tokens"),
        ({"compression": "gzip"}, "compression"),
        ({"eos_id": 10}, "eos_id is 10; wanted 0 to 9"),
        ({"tokenizer": {"vocabulary": 1}}, "vocabulary"),
        ({"metadata": {"run": object()}}, "not JSON serializable"),
    ],
)
def test_wrong_options_of_a_datasink_are_refused_at_once(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Not in each task, nor when all rows are written."""
    with pytest.raises((TypeError, ValueError), match=message):
        TokenDatasink(tmp_path, **{"vocab_size": 10} | wrong)

    assert list(tmp_path.iterdir()) == []


def test_a_target_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    """Other files, and a dataset that is not to be replaced, are refused, and still there."""
    write_tasks(TokenDatasink(tmp_path / "dataset", vocab_size=10), ids_table([1, 2]))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/notes.txt").touch()
    before = files_below(tmp_path)

    for place in ("dataset", "files"):
        sink = TokenDatasink(tmp_path / place, vocab_size=10)
        with pytest.raises(StorageError, match="not empty") as caught:
            sink.on_write_start()
        sink.on_write_failed(caught.value)
    assert files_below(tmp_path) == before


def test_overwrite_replaces_a_dataset(tmp_path: Path) -> None:
    """The old one is gone, its parts too."""
    write_tasks(TokenDatasink(tmp_path, vocab_size=10), ids_table([1, 2]), ids_table([3]))
    write_tasks(TokenDatasink(tmp_path, vocab_size=10, overwrite=True, metadata={"a": 1}), ids_table([4]))
    dataset = shardstream.open(tmp_path)

    assert dataset[:].tolist() == [4]
    assert dataset.manifest.metadata == {"a": 1}
    assert files_below(tmp_path) == files_of(dataset.manifest)


def test_a_dataset_that_another_published_meanwhile_stays(tmp_path: Path) -> None:
    """Of two writes, the manifest lets one win; the other deletes nothing but its own."""
    sink = TokenDatasink(tmp_path, vocab_size=10)
    sink.on_write_start()
    done = [sink.write([ids_table([1])], SimpleNamespace(task_idx=0))]
    write_tasks(TokenDatasink(tmp_path, vocab_size=10, overwrite=True), ids_table([2]))
    with pytest.raises(ShardstreamError) as caught:
        sink.on_write_complete(WriteResult(1, 0, done))
    sink.on_write_failed(caught.value)

    assert shardstream.open(tmp_path)[:].tolist() == [2]
    assert shardstream.open(tmp_path).verify().ok


@pytest.mark.parametrize("make", [list, np.array, pa.array, pd.Series], ids=["lists", "numpy", "arrow", "pandas"])
def test_texts_come_in_any_batch_format(make) -> None:
    """Encode gives one column of lists of ids, a row for each text, special text as its letters."""
    texts = ["ab", "<|endoftext|>", "é"]
    column = make(texts)
    batch = pa.table({"text": column}) if isinstance(column, pa.Array) else {"text": column}

    assert ENCODE(batch).to_pydict() == {"tokens": [list(text.encode()) for text in texts]}
    assert ENCODE({"text": []}).num_rows == 0
    assert ENCODE.identity["sha256"] == ByteTokenizer().sha256


def test_what_is_no_text_is_refused() -> None:
    """A null, a number, and a batch without the column."""
    with pytest.raises(FormatError, match="column 'text', row 1 of a batch is None; wanted text"):
        ENCODE({"text": ["a", None]})
    with pytest.raises(ValueError, match="no column 'text'; the rows have: body"):
        ENCODE({"body": ["a"]})


def test_a_missing_ray_is_named_with_the_remedy() -> None:
    """Importing the module without Ray says what to install."""
    program = "import sys; sys.modules['ray'] = None; import shardstream.integrations.ray_data"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert "needs Ray Data: pip install 'shardstream[ray]'" in done.stderr
