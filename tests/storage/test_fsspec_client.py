"""Any filesystem of fsspec as a client; s3fs with the settings that S3 needs."""

from pathlib import Path

import pytest

from shardstream.storage import fsspec_client as module
from shardstream.storage.fsspec_client import FsspecClient


def test_any_filesystem_will_do(tmp_path: Path) -> None:
    """What fsspec knows is a client: put, get, look, list, delete."""
    client = FsspecClient(f"file://{tmp_path}", {})

    client.put("a", b"hello", overwrite=False)
    with pytest.raises(FileExistsError):
        client.put("a", b"other", overwrite=False)

    assert client.get("a", 1, 3).data == b"el"
    assert b"".join(client.stream("a", 0, 100)) == b"hello"
    assert client.size_version("a") == (5, None)
    assert client.names() == ["a"]
    client.delete("a")
    assert client.names() == []


def test_what_is_aborted_is_never_seen(tmp_path: Path) -> None:
    """An upload shows itself when it is committed, never when it is forgotten."""
    client = FsspecClient(f"file://{tmp_path}", {})
    for is_wanted in (True, False):
        upload = client.create(f"wanted {is_wanted}")
        upload.write(memoryview(b"x"))
        if is_wanted:
            upload.commit()
        else:
            upload.abort()
        del upload

    assert client.names() == ["wanted True"]


def test_s3fs_has_our_own_policy() -> None:
    """No try but ours, no pause of minutes, no listing from memory; what the user sets in these stays."""
    arguments = module._s3fs_arguments({"region": "eu-1", "config_kwargs": {"read_timeout": 7}, "key": "k"})

    assert arguments == {
        "key": "k",
        "client_kwargs": {"region_name": "eu-1"},
        "config_kwargs": {"connect_timeout": 10, "read_timeout": 7, "retries": {"total_max_attempts": 1}},
        "use_listings_cache": False,
    }


def test_without_s3fs_the_remedy_is_named(monkeypatch) -> None:
    """Where no client of S3 is installed, the error says what to install."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(ModuleNotFoundError, match=r"s3:// needs a client of S3: pip install 'shardstream\[s3\]'"):
        FsspecClient("s3://bucket/x", {})
