"""Any filesystem of fsspec as a client; s3fs with the settings that S3 needs."""

import importlib.util
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

    assert bytes(client.get("a", 1, 3).data) == b"el"
    assert b"".join(client.stream("a", 0, 100)) == b"hello"
    assert client.size_version("a") == (5, None)
    assert client.names() == ["a"]
    client.delete("a")
    assert client.names() == []


def test_an_upload_shows_itself_when_it_is_committed(tmp_path: Path) -> None:
    """Nothing is there before the commit."""
    client = FsspecClient(f"file://{tmp_path}", {})
    upload = client.create("object")
    upload.write(memoryview(b"x"))

    assert client.names() == []
    upload.commit()
    assert client.names() == ["object"]


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
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(ModuleNotFoundError, match=r"s3:// needs a client of S3: pip install 'shardstream\[s3\]'"):
        FsspecClient("s3://bucket/x", {})
