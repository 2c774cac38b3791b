"""``tokenize``: text to one dataset, for any number of processes, exactly once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import shardstream
from shardstream import FormatError, ResumeError, ShardstreamError, StorageError, TokenizeProgress
from shardstream.ingest import processes
from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.ingest.part import Advance
from shardstream.ingest.worker import Setup, Task
from tests.conftest import S3Place
from tests.ingest.local_processes import children_of, run_tasks

EOS_ID = 256
Tokenize = Callable[..., shardstream.Manifest]


def texts_of(num_documents: int, seed: int = 3) -> list[str]:
    rng = random.Random(seed)
    words = ["tree", "Größe", "日本", "\n", "naïve", "a" * 30, "🙂", "<|endoftext|>"]
    return [" ".join(rng.choices(words, k=rng.randrange(1, 60))) for _ in range(num_documents)]


def ids_of(texts: list[str]) -> list[int]:
    """What the dataset should hold: the oracle."""
    return [token for text in texts for token in [*text.encode(), EOS_ID]]


TEXTS = texts_of(200)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """200 documents in three files of JSON lines, one of them small."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    for number, (start, stop) in enumerate([(0, 90), (90, 93), (93, 200)]):
        lines = [json.dumps({"id": index, "text": TEXTS[index]}) for index in range(start, stop)]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tokenize(inputs: Path, tmp_path: Path) -> Tokenize:
    """The job, with small parts and shards unless a test says otherwise."""

    def run(**options: Any) -> shardstream.Manifest:
        given: dict[str, Any] = {
            "tokenizer": "bytes",
            "part_bytes": 4000,
            "shard_tokens": 1000,
            "processes": 2,
        } | options
        return shardstream.tokenize(given.pop("inputs", [inputs]), given.pop("uri", tmp_path / "out"), **given)

    return run


class Crashed(Exception):  # noqa: N818 - it is no error
    pass


def crash(tokenize: Tokenize, uri: Path, **options: Any) -> None:
    """Begin a job and end it before its first part."""

    def engine(*_: object) -> None:
        raise Crashed

    with pytest.raises(Crashed):
        tokenize(uri=uri, processes=None, engine=engine, **options)


def tokens_at(uri: object) -> list[int]:
    tokens: list[int] = shardstream.open(str(uri))[:].tolist()
    return tokens


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_any_number_of_processes_writes_the_same_dataset(tokenize, tmp_path: Path, processes: int) -> None:
    """The dataset holds every document in the order of the inputs, each ended by eos, whoever tokenized it."""
    manifest = tokenize(processes=processes)
    dataset = shardstream.open(tmp_path / "out")

    assert dataset[:].tolist() == ids_of(TEXTS)
    assert dataset.verify().ok
    assert manifest == dataset.manifest
    assert manifest.digest == tokenize(uri=tmp_path / "other", processes=3).digest
    assert (manifest.num_documents, manifest.vocab_size) == (200, 257)
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.sha256 == ByteTokenizer().sha256


@pytest.mark.parametrize("part_bytes", [400, 3000, 10**9])
def test_parts_cut_the_shards_and_not_the_stream(tokenize, tmp_path: Path, part_bytes: int) -> None:
    """However the inputs are cut into parts, the token stream is the same."""
    tokenize(part_bytes=part_bytes)

    assert tokens_at(tmp_path / "out") == ids_of(TEXTS)


def test_nothing_stays_but_the_dataset(tokenize, tmp_path: Path) -> None:
    """When the dataset is published, its folder holds the manifest and what that lists."""
    manifest = tokenize(side_files=True)

    listed = {name for shard in manifest.shards for name in (shard.name, shard.documents_name)}
    assert files_below(tmp_path / "out") == sorted({"manifest.json", *listed})


def test_the_manifest_says_how_the_dataset_came_about(tokenize, inputs: Path) -> None:
    """Its metadata counts what was left out and names the options, beside what the caller wants kept."""
    (inputs / "3.jsonl").write_text('{"text": ""}\n{"text": "x"}\n{"text": null}\n{"text": ""}\n')
    manifest = tokenize(on_error="skip", metadata={"run": 7})

    account = manifest.metadata["tokenize"]
    assert manifest.metadata["run"] == 7
    assert (account["num_empty_documents"], account["num_bad_records"]) == (2, 1)
    assert (account["add_bos"], account["special_text"], account["shuffle"]) == (False, "encode", None)
    assert manifest.num_documents == 201
    shuffled = tokenize(on_error="skip", shuffle_documents=7, overwrite=True)
    assert shuffled.metadata["tokenize"]["shuffle"] == {
        "seed": 7,
        "buffer_characters": 2**25,
        "extra_characters_per_document": 256,
    }


def test_a_job_that_is_done_is_not_done_again(tokenize, tmp_path: Path) -> None:
    """The same call on a complete dataset returns its manifest and touches nothing."""
    manifest = tokenize()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    assert tokenize(processes=1) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_part_of_another_job_is_not_taken(tokenize, tmp_path: Path) -> None:
    """A task of a job that was given up may end when another one, with other settings, is at work there."""

    def late(*given: Any) -> None:
        run_tasks(*given, num_processes=1)
        raise Crashed

    with pytest.raises(Crashed):
        tokenize(uri=tmp_path / "other", processes=None, engine=late, shuffle_documents=7)
    crash(tokenize, tmp_path / "out")
    shutil.copytree(tmp_path / "other/parts", tmp_path / "out/parts")
    manifest = tokenize()

    assert manifest.digest == tokenize(uri=tmp_path / "clean").digest
    assert files_below(tmp_path / "out") == sorted(["manifest.json", *(shard.name for shard in manifest.shards)])


def test_a_crash_while_tidying_up_is_mended(tokenize, tmp_path: Path) -> None:
    """What a run that died after publishing left behind is removed by the same call."""
    crash(tokenize, tmp_path / "out")
    record = (tmp_path / "out/journal/tokenize.json").read_bytes()
    done = tokenize()
    (tmp_path / "out/journal").mkdir()
    (tmp_path / "out/journal/tokenize.json").write_bytes(record)
    next(tmp_path.glob("out/parts/000000-*")).joinpath("manifest.json").write_text("left behind")

    assert tokenize() == done
    assert files_below(tmp_path / "out") == sorted(["manifest.json", *(shard.name for shard in done.shards)])


def test_what_lies_beside_a_finished_dataset_stays(tokenize, tmp_path: Path) -> None:
    """Once a job has tidied up, nothing at its target is its own but the dataset: the same call deletes nothing."""
    tokenize()
    with shardstream.DatasetWriter(tmp_path / "out/parts/other", vocab_size=9) as writer:
        writer.append([1, 2])
    (tmp_path / "out/journal").mkdir()
    (tmp_path / "out/journal/notes.txt").write_text("precious")
    before = files_below(tmp_path / "out")

    tokenize()

    assert files_below(tmp_path / "out") == before


PROGRAM = """
import json, sys, shardstream
inputs, uri, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
print("begins", flush=True)
shardstream.tokenize([inputs], uri, tokenizer="bytes", processes=2, **options)
"""


def start(inputs: Path, uri: Path, **options: Any) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(inputs), str(uri), json.dumps(options)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


@pytest.mark.slow
def test_killed_at_any_moment_the_same_call_goes_on(tokenize, tmp_path: Path, inputs: Path) -> None:
    """kill -9 again and again: no dataset or the whole one, parts that are done stay as they are, the digest is the same."""
    options = {"part_bytes": 500, "shard_tokens": 300, "side_files": True}
    expected = tokenize(uri=tmp_path / "expected", **options)
    rng = random.Random(11)
    num_kills = 0
    done: dict[Path, int] = {}
    while num_kills < 25:
        process = start(inputs, tmp_path / "out", **options)
        time.sleep(rng.random() * 0.8)
        is_over = process.poll() is not None
        process.kill()
        process.communicate()
        num_kills += not is_over
        for path, time_written in done.items():
            assert not path.exists() or path.stat().st_mtime_ns == time_written, path
        if (tmp_path / "out/manifest.json").exists():
            assert shardstream.open(tmp_path / "out").manifest.digest == expected.digest
            done = {}
            for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        done |= {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("parts/*/manifest.json")}

    manifest = tokenize(**options)

    assert (manifest.digest, manifest.shards) == (expected.digest, expected.shards)
    assert tokens_at(tmp_path / "out") == ids_of(TEXTS)


def test_a_part_goes_on_from_its_last_full_shard(tokenize, tmp_path: Path) -> None:
    """Of a part that was begun, the shards that are durable are not written again."""
    path = tmp_path / "long.jsonl"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 80)
    path.write_text(lines + "no JSON\n")
    options = {"inputs": [path], "part_bytes": 10**9, "shard_tokens": 200_000, "processes": 1}
    with pytest.raises(FormatError):
        tokenize(**options)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("shard-*.bin")}
    path.write_text(lines + "\n" * 8)

    manifest = tokenize(**options)

    assert len(shards) >= 5
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert manifest.num_documents == 200 * 80
    assert tokens_at(tmp_path / "out") == ids_of(TEXTS * 80)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_worker_that_dies_ends_the_job_and_the_same_call_goes_on(tokenize, tmp_path: Path, inputs: Path) -> None:
    """A process that is killed, for want of memory say, is named with its status; nothing is published."""
    others = children_of(os.getpid())  # this very process may have servers that other tests need
    victims: list[int] = []

    def kill_a_worker(progress: TokenizeProgress) -> None:
        if progress.num_documents and not victims:
            [server] = children_of(os.getpid()) - others
            victims.extend(children_of(server))
            os.kill(victims[0], signal.SIGKILL)

    with pytest.raises(ShardstreamError, match=r"a tokenizing process ended without a word \(status -9\): killed"):
        tokenize(progress=kill_a_worker)
    assert not (tmp_path / "out/manifest.json").exists()

    tokenize()

    assert tokens_at(tmp_path / "out") == ids_of(TEXTS)


def test_a_worker_that_dies_while_it_speaks(tokenize, monkeypatch) -> None:
    """Half an answer is none: it is named like any other that was killed."""
    half = """if 1:
        import os, socket
        parent = socket.socket(fileno=0)
        _, [own], _, _ = socket.recv_fds(parent, 1, 1)
        os.write(own, b'{"adv')
        os.kill(os.getpid(), 9)
    """
    monkeypatch.setattr(processes, "_PROGRAM", half)

    with pytest.raises(ShardstreamError, match=r"a tokenizing process ended without a word \(status -9\): killed"):
        tokenize()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard_tokens": 500}, "shard_tokens was 1000 when this job was begun and is 500 now"),
        ({"add_bos": False, "text_field": "id"}, "text_field was 'text'"),
        ({"shuffle_documents": 1}, "shuffle_seed was None"),
        ({"part_bytes": 3000}, "num_parts was"),
    ],
)
def test_another_job_does_not_go_on(
    tokenize, tmp_path: Path, inputs: Path, options: dict[str, Any], words: str
) -> None:
    """What was begun with other settings or inputs is refused, naming the difference; overwrite starts again."""
    crash(tokenize, tmp_path / "out")

    with pytest.raises(ResumeError, match=words) as caught:
        tokenize(**options)
    assert "go on with the same inputs and settings, or start again with overwrite=True" in str(caught.value)
    (inputs / "3.jsonl").write_text("")
    with pytest.raises(ResumeError, match="inputs_sha256 was"):
        tokenize()

    assert tokenize(shard_tokens=500, overwrite=True).num_documents == 200


def test_a_job_with_other_parts_does_not_go_on(tokenize, tmp_path: Path) -> None:
    """As many parts of the same inputs, cut elsewhere, are other parts: together with those that are done they lose text."""
    folder = tmp_path / "sizes"
    folder.mkdir()
    for number, size in enumerate([6, 4, 5, 5]):
        (folder / f"{number}.txt").write_text(str(number) * size)

    def stop_after_one(tasks: Sequence[Task], *others: Any) -> None:
        assert len(tasks) == 2
        run_tasks(tasks[:1], *others, num_processes=1)
        raise Crashed

    with pytest.raises(Crashed):
        tokenize(inputs=[folder], part_bytes=10, processes=None, engine=stop_after_one)

    with pytest.raises(ResumeError, match="parts_sha256 was"):
        tokenize(inputs=[folder], part_bytes=15)


def test_an_input_that_changes_meanwhile_ends_the_job(tokenize, tmp_path: Path, inputs: Path) -> None:
    """A line that is added between two parts of a file would be in none of them, or cut in two."""

    def add_a_line_first(tasks: Sequence[Task], *others: Any) -> None:
        with (inputs / "0.jsonl").open("a") as file:
            file.write('{"text": "one more"}\n')
        run_tasks(tasks, *others, num_processes=1)

    with pytest.raises(StorageError, match=r"0\.jsonl: has changed since the job was planned: \d+ bytes then, \d+ now"):
        tokenize(processes=None, engine=add_a_line_first)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_damaged_record_is_no_job(tokenize, tmp_path: Path) -> None:
    """A record that cannot be read is named; overwrite starts again."""
    (tmp_path / "out/journal").mkdir(parents=True)
    (tmp_path / "out/journal/tokenize.json").write_text("{")

    with pytest.raises(FormatError, match="tokenize.json: .*the record is damaged, start again with overwrite=True"):
        tokenize()

    assert tokenize(overwrite=True).num_documents == 200


def test_a_target_that_holds_something_else_is_refused(tokenize, tmp_path: Path) -> None:
    """Another dataset is replaced only with overwrite, other files never."""
    with shardstream.DatasetWriter(tmp_path / "out", vocab_size=9) as writer:
        writer.append([1, 2])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").write_text("precious")

    with pytest.raises(StorageError, match="it holds a dataset: overwrite=True replaces it"):
        tokenize()
    with pytest.raises(StorageError, match="it holds 1 other files, such as thesis.txt"):
        tokenize(uri=tmp_path / "thesis", overwrite=True)

    assert tokenize(overwrite=True).num_documents == 200
    assert files_below(tmp_path / "thesis") == ["thesis.txt"]


def test_what_a_job_left_can_be_replaced_by_a_writer(tokenize, tmp_path: Path, inputs: Path) -> None:
    """The parts of an unfinished job are ours: overwrite of any writer removes them."""
    (inputs / "3.jsonl").write_text("no JSON\n")
    with pytest.raises(FormatError):
        tokenize(processes=1)
    assert list((tmp_path / "out/parts").rglob("shard-*.bin"))

    with shardstream.DatasetWriter(tmp_path / "out", vocab_size=9, overwrite=True) as writer:
        writer.append([1, 2])

    assert files_below(tmp_path / "out") == ["manifest.json", "shard-000000.bin"]


def test_two_jobs_do_not_share_a_target(tokenize, tmp_path: Path) -> None:
    """While one job is at work, another one is refused."""
    refusals: list[str] = []

    def try_it_too(_: TokenizeProgress) -> None:
        if not refusals:
            with pytest.raises(StorageError, match="another process is writing here") as caught:
                tokenize()
            refusals.append(str(caught.value))

    assert tokenize(progress=try_it_too).num_documents == 200
    assert refusals


def test_progress_ends_with_everything(tokenize, inputs: Path) -> None:
    """What is told adds up: bytes of all inputs, in one run or two; documents and tokens of this run."""
    told: list[TokenizeProgress] = []
    num_bytes = sum(path.stat().st_size for path in inputs.iterdir())
    manifest = tokenize(progress=told.append)

    assert told[-1] == TokenizeProgress(num_bytes, num_bytes, 200, manifest.num_tokens, 0)
    assert told[-1].note == f"200 documents, {manifest.num_tokens:,} tokens"
    assert [one.num_bytes for one in told] == sorted(one.num_bytes for one in told)


def test_a_run_that_goes_on_begins_where_the_last_one_ended(tokenize, inputs: Path) -> None:
    """Parts that are done are no work: their bytes count from the start, their documents do not."""
    (inputs / "3.jsonl").write_text("no JSON\n")
    with pytest.raises(FormatError):
        tokenize(processes=1)
    (inputs / "3.jsonl").write_text("\n" * 8)
    told: list[TokenizeProgress] = []

    tokenize(progress=told.append)

    assert told[0].num_bytes > 0
    assert (told[0].num_documents, told[-1].num_bytes) == (0, told[-1].total_bytes)
    assert told[-1].num_documents < 100


@pytest.mark.parametrize("kind", ["stop", "skip"])
def test_a_bad_record_stops_the_job_or_is_left_out(tokenize, inputs: Path, kind: str, caplog, tmp_path: Path) -> None:
    """The file and the place are named; left out, it is counted, and the first ones are logged."""
    lines = (inputs / "1.jsonl").read_text().splitlines()
    (inputs / "1.jsonl").write_text("\n".join([lines[0], '{"text": 7}', *lines[1:]]) + "\n")
    told: list[TokenizeProgress] = []

    if kind == "stop":
        with pytest.raises(FormatError, match=r"1.jsonl, .*on_error='skip' leaves such records out and counts them"):
            tokenize()
        assert not (tmp_path / "out/manifest.json").exists()
        return
    manifest = tokenize(on_error="skip", progress=told.append)

    assert manifest.metadata["tokenize"]["num_bad_records"] == 1
    assert tokens_at(tmp_path / "out") == ids_of(TEXTS)
    assert [record.getMessage().startswith("left out: ") for record in caplog.records] == [True]
    assert told[-1].note.endswith(", 1 bad records")


def test_only_the_first_bad_records_are_logged(tokenize, inputs: Path, caplog) -> None:
    """A corpus may have millions of them: all are counted, twenty are shown."""
    (inputs / "1.jsonl").write_text("no JSON\n" * 50)

    manifest = tokenize(on_error="skip")

    assert manifest.metadata["tokenize"]["num_bad_records"] == 50
    assert len(caplog.records) == 20


def test_a_bad_record_that_is_told_again_is_logged_once(tokenize, caplog) -> None:
    """An engine may try a part again, and takes its counts back: the record is the same."""
    bad = Advance(num_bad_records=1, left_out=("a.jsonl, byte 0: no JSON",))
    told: list[TokenizeProgress] = []

    def engine(tasks: Sequence[Task], setup: Setup, advance: Callable[[Advance], object]) -> None:
        run_tasks(tasks, setup, advance, num_processes=1)
        for one in (bad, -bad, bad):
            advance(one)

    tokenize(processes=None, engine=engine, progress=told.append)

    assert told[-1].num_bad_records == 1
    assert [record.getMessage() for record in caplog.records] == ["left out: a.jsonl, byte 0: no JSON"]


def test_files_of_no_known_kind_are_counted(tokenize, inputs: Path, caplog) -> None:
    """A folder may hold anything; what is left out of it is said, and how to have it taken."""
    (inputs / "setup.py").write_text("print()")
    manifest = tokenize()

    assert manifest.metadata["tokenize"]["num_ignored_files"] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "left out: 1 files in folders, whose suffixes name no kind of text; name them by a pattern, such as '**/*.py'"
    ]


def test_inputs_without_a_document_make_no_dataset(tokenize, tmp_path: Path) -> None:
    """Nothing is left where nothing was written, and the message says what was left out."""
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n{"text": 1}\n')

    with pytest.raises(FormatError, match="no document; 1 empty ones and 1 bad records were left out"):
        tokenize(inputs=[tmp_path / "empty.jsonl"], on_error="skip")

    assert not (tmp_path / "out").exists() or files_below(tmp_path / "out") == []


def test_eos_and_bos_are_the_named_tokens(tokenize, tmp_path: Path, inputs: Path) -> None:
    """A tokenizer without the token that is asked for is refused; the message names both."""
    with pytest.raises(ValueError, match="eos is '</s>', which tokenizer bytes does not have as a token"):
        tokenize(eos="</s>")
    nameless = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "?": 1}, [], unk_token="?"))
    nameless.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="names no end of text; say which token ends a document with eos"):
        tokenize(tokenizer=tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="add_bos: tokenizer bytes has no token that begins a document"):
        tokenize(add_bos=True)


@pytest.mark.parametrize("inputs", ["text.jsonl", Path("text.jsonl")])
def test_one_path_is_no_list_of_inputs(tokenize, inputs: object) -> None:
    """A string would be taken for a list of paths of one character."""
    with pytest.raises(TypeError, match=r"inputs is one path; wanted a list of them, such as \['text.jsonl'\]"):
        tokenize(inputs=inputs)


@pytest.mark.parametrize("value", [object(), b"secret", {"secret": {"a"}}])
def test_storage_options_that_no_process_could_be_told_are_refused(tokenize, tmp_path: Path, value: object) -> None:
    """The key and the type are named, the value is not: it may be a secret. Nothing is written."""
    with pytest.raises(
        TypeError, match=r"storage_options\['token'\] is of type \w+; wanted what JSON can say"
    ) as caught:
        tokenize(storage_options={"anon": False, "token": value})

    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"processes": 0}, "processes is 0; wanted at least 1"),
        ({"processes": 1, "engine": print}, "give one of the two"),
        ({"on_error": "ignore"}, "on_error"),
        ({"special_text": "drop"}, "special_text"),
        ({"shuffle_documents": "yes"}, "shuffle_seed"),
        ({"part_bytes": 0}, "part_bytes is 0"),
        ({"shard_tokens": 0}, "shard_tokens"),
    ],
)
def test_wrong_arguments_are_refused(tokenize, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    """Before anything is written, and by name."""
    with pytest.raises(ValueError, match=words):
        tokenize(**({"processes": None} if "engine" in options else {}) | options)

    assert not (tmp_path / "out").exists()


def test_a_part_that_nobody_sees_is_no_dataset(tokenize, tmp_path: Path) -> None:
    """An engine whose parts went where this process cannot look: nothing is published, and the message says why."""
    with pytest.raises(StorageError, match=r"part 0 was written, but is not there; all machines"):
        tokenize(processes=None, engine=lambda *_: None)

    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("", "."),
        ("", "out"),
        ("", "deep/er"),
        ("", "file://out"),
        ("file://", "out"),
        ("/**/*.jsonl", "out"),
        ("file:///**", "out"),
        ("/../inp*/**/*.jsonl", "out"),
        ("/../linked/**", "out"),
        ("/*/*", "out"),
        ("/o*/parts/*/*", "out"),
        ("/*.jsonl", "."),
        ("/0.jsonl", "0.jsonl/out"),
    ],
)
def test_a_target_inside_its_inputs_is_refused(tokenize, inputs: Path, given: str, place: str) -> None:
    """The next run would take the dataset for text, whether a folder, a URL or a pattern names the inputs."""
    (inputs.parent / "linked").symlink_to(inputs)
    one = f"file://{inputs}{given.removeprefix('file://')}" if given.startswith("file://") else f"{inputs}{given}"
    uri = f"file://{inputs}/{place[7:]}" if place.startswith("file://") else f"{inputs}/{place}"

    with pytest.raises(ValueError, match="lies in the input .*; choose a place outside"):
        tokenize(inputs=[one], uri=uri)

    assert len(list(inputs.iterdir())) == 3


@pytest.mark.parametrize(("given", "place"), [("/*.jsonl", "out"), ("/*", "out"), ("/[0-9].*", "a/b"), ("", "../out")])
def test_a_target_beside_its_inputs_is_taken(tokenize, inputs: Path, given: str, place: str) -> None:
    """Where no pattern matches below it, it may stand in their folder: again and again."""
    target = inputs / place
    first = tokenize(inputs=[f"{inputs}{given}"], uri=target)

    assert tokenize(inputs=[f"{inputs}{given}"], uri=target) == first


@pytest.mark.s3
def test_a_job_writes_to_object_storage(tokenize, s3: S3Place, inputs: Path) -> None:
    """Parts, manifest and tidying up in a bucket, from inputs in another folder of it."""
    for path in inputs.iterdir():
        s3.client.put_object(Bucket=s3.bucket, Key=f"raw/{path.name}", Body=path.read_bytes())

    manifest = tokenize(inputs=[f"s3://{s3.bucket}/raw"], uri=s3.url, storage_options=s3.storage_options)

    dataset = shardstream.open(s3.url, cache_dir=False, storage_options=s3.storage_options)
    assert dataset[:].tolist() == ids_of(TEXTS)
    listed = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=s3.prefix)["Contents"]
    assert {one["Key"] for one in listed} == {
        f"{s3.prefix}/{name}" for name in ["manifest.json", *(shard.name for shard in manifest.shards)]
    }
    assert np.array_equal(dataset[:5], np.array(ids_of(TEXTS)[:5]))
