"""The benchmarks of tools/bench run, on sizes so small that what they measure means nothing."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import S3Place

BENCH = Path(__file__).parents[2] / "tools" / "bench"

pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmarks come with the checkout, not with the wheel")

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="memory and page cache are looked at through Linux's /proc"
)


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCH / f"{name}.py", *options], capture_output=True, text=True, check=False, timeout=110
    )


def check_quick_run(name: str, num_bars: int, folder: Path) -> None:
    """A quick run succeeds, writes its figures with all that they depend on, and removes its data."""
    (folder / "data").mkdir()

    result = run(name, "--quick", "--json", str(folder / "figures.json"), "--dir", str(folder / "data"))

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("bar ") == num_bars
    assert not any((folder / "data").iterdir())
    content = json.loads((folder / "figures.json").read_bytes())
    assert content["benchmark"] == name
    assert content["quick"] is True
    assert set(content["machine"]) == {"cpu", "cores", "memory_gib", "kernel", "filesystem"}
    assert set(content["versions"]) == {"python", "numpy", "torch", "shardstream"}
    assert content["date"].endswith("+00:00")
    assert "git_commit" in content
    assert content["setup"]
    assert content["figures"]
    assert len(content["bars"]) == num_bars


@pytest.fixture(scope="module")
def measure() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("measure", BENCH / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


@needs_linux
@pytest.mark.parametrize(("name", "num_bars"), [("read", 6), ("write", 2), ("open", 2), ("stream", 11)])
def test_a_quick_run_leaves_figures_and_nothing_else(name: str, num_bars: int, tmp_path: Path) -> None:
    """A quick run succeeds, writes its figures with all that they depend on, and removes its data."""
    check_quick_run(name, num_bars, tmp_path)


@needs_linux
def test_a_quick_run_against_an_s3(s3: S3Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same against the S3 of the environment, where no object stays either."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.server.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3.server.region)

    check_quick_run("remote", 7, tmp_path)

    names = [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]]
    assert not [name for name in names if name.startswith("shardstream-bench-")]


def test_a_benchmark_without_its_server_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an S3 in the environment, remote.py names the command that starts one."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)

    result = run("remote", "--quick")

    assert result.returncode == 1
    assert 'eval "$(tools/s3_gateway up)" starts one' in result.stderr


@pytest.mark.parametrize("name", ["read", "write", "open", "remote"])
def test_help_says_what_is_measured(name: str) -> None:
    """``--help`` succeeds and names the options that all benchmarks share."""
    result = run(name, "--help")

    assert result.returncode == 0, result.stderr
    assert all(option in result.stdout for option in ("--json", "--dir", "--quick"))


@needs_linux
@pytest.mark.parametrize(
    ("figure", "options", "status"),
    [
        pytest.param({"got": 0.9}, [], 0, id="met-exactly"),
        pytest.param({"got": 0.8}, [], 1, id="missed"),
        pytest.param({"got": 0.8, "at_most": True}, [], 0, id="met-at-most"),
        pytest.param({"got": 1.0, "at_most": True}, [], 1, id="missed-at-most"),
        pytest.param({"got": 0.8}, ["--quick"], 0, id="missed-quick"),
    ],
)
def test_a_missed_bar_is_the_exit_status(
    figure: dict[str, Any], options: list[str], status: int, measure: ModuleType, tmp_path: Path
) -> None:
    """A bar that is missed makes the exit status 1, but for a quick run."""
    report = measure.Report("bars", measure.arguments("", [*options, "--json", str(tmp_path / "figures.json")]))
    report.bars.append(measure.Bar(name="a figure", bar=0.9, **figure))

    assert report.finish() == status


def test_contenders_take_turns(measure: ModuleType) -> None:
    """In each round every contender gets the round's input once; round 0 warms up and does not count."""
    calls: list[tuple[str, int]] = []

    timings = measure.take_turns(
        {name: lambda number, name=name: calls.append((name, number)) for name in ("a", "b")},
        lambda number: number,
        num_rounds=2,
    )

    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [len(seconds) for seconds in timings.seconds.values()] == [2, 2]


def test_ratios_compare_best_with_best_and_round_with_round(measure: ModuleType) -> None:
    """The ratio is of the best rounds; the median ratio compares within each round."""
    timings = measure.Timings({"limit": [1.0, 2.0, 4.0], "ours": [2.0, 2.0, 16.0]})

    assert timings.ratio("ours", "limit") == pytest.approx(0.5)
    assert timings.median_ratio("ours", "limit") == pytest.approx(0.5)
