"""``shardstream copy``: from any store to any store."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstream
from tests.cli.conftest import environment_of, interrupt
from tests.conftest import S3Place
from tests.fault_proxy import FaultProxy

TOKENS = np.arange(5000) % 1000


def test_there_and_back_again(run, write_dataset, cloud: S3Place, tmp_path: Path) -> None:
    """A dataset travels from a folder to S3, within S3, and back to a folder: every file is the same."""
    dataset = write_dataset(TOKENS, shard_tokens=1024, compression="zstd")
    other = cloud.url + "-2"

    text = run("copy", dataset.uri, cloud.url).stdout
    run("copy", cloud.url, other, "--threads", 1)
    report = json.loads(run("copy", other, "back", "--json").stdout)

    stored_bytes = sum(entry.file_bytes for entry in dataset.manifest.shards)
    assert re.search(r"^shards +5\n.*\nthere already +0\ncopied +5\n", text, flags=re.MULTILINE)
    assert report.pop("seconds") > 0
    assert report.pop("mb_per_second") > 0
    assert report == {
        "uri": "back",
        "digest": dataset.manifest.digest,
        "num_shards": 5,
        "num_bytes": stored_bytes,
        "num_present_shards": 0,
        "num_copied_shards": 5,
    }
    assert files_in(tmp_path / "back") == files_in(Path(dataset.uri))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_again_copies_nothing(run, write_dataset) -> None:
    """A copy that is complete is found to be so."""
    dataset = write_dataset(TOKENS, shard_tokens=1024)
    run("copy", dataset.uri, "there")

    report = json.loads(run("copy", dataset.uri, "there", "--json").stdout)

    assert (report["num_present_shards"], report["num_copied_shards"], report["mb_per_second"]) == (5, 0, 0)


def test_what_is_bad_or_in_the_way_is_status_1(run, write_dataset, tmp_path: Path) -> None:
    """A damaged shard, a target that holds something else and a source that is none are each named."""
    dataset = write_dataset(TOKENS, shard_tokens=1024)
    (Path(dataset.uri) / "shard-000002.bin").write_bytes(bytes(2048))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")

    damaged = run("copy", dataset.uri, "there", "--threads", 1, status=1).stderr
    full = run("copy", dataset.uri, "full", status=1).stderr
    missing = run("copy", "nowhere", "there", status=1).stderr

    assert f"Error: {dataset.uri}/shard-000002.bin: checksum is sha256 " in damaged
    assert not (tmp_path / "there" / "manifest.json").exists()
    assert full == (
        f"Error: {tmp_path}/full: not empty, it holds 1 other files, such as notes.txt; choose an empty place\n"
    )
    assert "nowhere/manifest.json: cannot read: there is no such file" in missing


def test_a_place_that_nobody_knows_is_wrong_use(run, write_dataset) -> None:
    """An unknown scheme of either URL is wrong use."""
    uri = write_dataset([1]).uri

    assert run("copy", uri, "nosuch://x", status=2).stderr.startswith("Error: Protocol not known: nosuch\n")
    assert run("copy", "nosuch://x", uri, status=2).stderr.startswith("Error: Protocol not known: nosuch\n")


@pytest.fixture
def stalled(start, run, write_dataset, cloud: S3Place, fault_proxy) -> tuple[Any, FaultProxy]:
    """A copy from S3 to the folder ``there`` that stands still in its last shard of five."""
    run("copy", write_dataset(TOKENS, shard_tokens=1024).uri, cloud.url)
    proxy = fault_proxy(cloud.endpoint_url, rates={"stall": 1.0}, only="shard-000004", methods=["GET"], stall_s=0.5)
    started = start("copy", cloud.url, "there", "--threads", 1, **environment_of(cloud, proxy.endpoint_url))
    while not any(request.outcome == "stall" for request in proxy.requests):
        assert started.poll() is None
        time.sleep(0.01)
    return started, proxy


def test_ctrl_c_keeps_what_is_copied(run, stalled: tuple[Any, FaultProxy], cloud: S3Place, tmp_path: Path) -> None:
    """Ctrl-C publishes nothing; the same command copies only what is missing."""
    started, proxy = stalled

    proxy.rates = {"404": 1.0}  # so that the request ends, and the program with it
    message = interrupt(started)
    report = json.loads(run("copy", cloud.url, "there", "--json").stdout)

    assert message.splitlines()[-1] == "Error: interrupted; nothing is published, the same command goes on"
    assert (report["num_present_shards"], report["num_copied_shards"]) == (4, 1)
    assert np.array_equal(shardstream.open(tmp_path / "there")[:], TOKENS)


def test_a_killed_copy_goes_on(run, stalled: tuple[Any, FaultProxy], cloud: S3Place, tmp_path: Path) -> None:
    """A copy that was killed goes on in the same way, and what it left half written is gone."""
    started, _ = stalled
    started.kill()
    started.wait()
    left = files_in(tmp_path / "there")

    report = json.loads(run("copy", cloud.url, "there", "--json").stdout)

    assert any(name.endswith(".partial") for name in left)
    assert "manifest.json" not in left
    assert (report["num_present_shards"], report["num_copied_shards"]) == (4, 1)
    assert sorted(files_in(tmp_path / "there")) == [
        "manifest.json",
        *(f"shard-{index:06d}.bin" for index in range(5)),
    ]
