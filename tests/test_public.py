"""The public face: short, sorted, and cheap to import."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import shardstream


def test_public_names_are_sorted_and_true() -> None:
    """``__all__`` lists every public name of the package root, in order."""
    modules = {"cli", "format", "ingest", "integrations", "order", "read", "storage", "stream", "write"}
    public = [name for name in vars(shardstream) if not name.startswith("_") and name not in modules]

    assert sorted(public) == shardstream.__all__


@pytest.mark.parametrize("package", ["torch", "ray", "tokenizers", "pyarrow", "fsspec", "rich", "filelock", "asyncio"])
def test_import_brings_no_heavy_package(package: str) -> None:
    """Promise 23: importing shardstream imports neither torch nor anything else that only some of its users need."""
    script = f"import sys, shardstream; assert {package!r} not in sys.modules"

    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_reads_no_environment_and_opens_nothing() -> None:
    """Importing shardstream reads no variable, opens no file but modules, and starts no thread."""
    script = """
import json, msgspec, numpy, concurrent.futures, importlib.metadata, hashlib, mmap, queue, uuid
import os, sys, threading
class Watched(dict):
    def __getitem__(self, key): raise AssertionError(f"read {key}")
    get = __getitem__
os.environ = Watched()
def audit(event, args):
    if event == "open" and isinstance(args[0], str):
        # The import system itself reads modules and their folders.
        assert args[0].endswith((".py", ".pyc", ".so")) or os.path.isdir(args[0]), args[0]
sys.addaudithook(audit)
import shardstream
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_error_is_of_the_tree() -> None:
    """Each public error is a ShardstreamError, and the builtin error that callers know."""
    assert issubclass(shardstream.FormatError, shardstream.ShardstreamError)
    assert issubclass(shardstream.FormatError, ValueError)
    assert issubclass(shardstream.IntegrityError, shardstream.ShardstreamError)
    assert issubclass(shardstream.StorageError, shardstream.ShardstreamError)
    assert issubclass(shardstream.StorageError, OSError)
    assert issubclass(shardstream.ResumeError, shardstream.ShardstreamError)
    assert issubclass(shardstream.ResumeError, ValueError)


def test_writer_verify_and_reader_need_no_torch(tmp_path) -> None:
    """Promise 23: writing, verifying and reading windows work where torch cannot be imported."""
    script = f"""
import sys
sys.modules["torch"] = sys.modules["tokenizers"] = None
import shardstream
with shardstream.DatasetWriter({str(tmp_path)!r}, vocab_size=10, shard_tokens=4) as writer:
    writer.append([1, 2, 3, 4, 5, 6])
dataset = shardstream.open({str(tmp_path)!r})
assert dataset.verify().ok
assert dataset.windows([2], 3).tolist() == [[3, 4, 5]]
try:
    shardstream.get_batch(dataset, 1, 1)
except ModuleNotFoundError as error:
    assert "pip install 'shardstream[torch]'" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_package_runs_as_a_module() -> None:
    """``python -m shardstream`` is the command line."""
    result = subprocess.run(
        [sys.executable, "-m", "shardstream", "--version"], check=True, capture_output=True, text=True
    )

    assert result.stdout.endswith(f"{version('shardstream')}\n")
