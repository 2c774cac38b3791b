"""S3 through each of the clients, and failures that do not take minutes."""

import os

import pytest

from shardstream.storage import fsspec_client, obstore_client, remote_store, retry


def choose_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have stores take s3fs, as in a process that was forked from one that used obstore."""
    monkeypatch.setattr(remote_store, "_obstore_pid", -os.getpid())


@pytest.fixture(params=["obstore", "s3fs"])
def client(request, monkeypatch) -> str:
    """The library that speaks to S3."""
    if request.param == "s3fs":
        choose_s3fs(monkeypatch)
    return str(request.param)


@pytest.fixture
def quick_retries(monkeypatch) -> None:
    """Pauses of milliseconds between tries."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "_LONGEST_PAUSE_S", 0.01)


@pytest.fixture
def few_retries(quick_retries, monkeypatch) -> None:
    """A store that fails for good is given up after a moment."""
    monkeypatch.setattr(retry, "RETRY_FOR_S", 0.2)
    monkeypatch.setattr(obstore_client, "RETRY_FOR_S", 0.2)


@pytest.fixture
def quick_timeouts(monkeypatch) -> None:
    """Silence of a second is a failure."""
    timeouts = {"allow_http": True, "connect_timeout": "10s", "read_timeout": "1s", "timeout": "30s"}
    monkeypatch.setattr(obstore_client, "_CLIENT_OPTIONS", timeouts)
    monkeypatch.setattr(fsspec_client, "_S3_TIMEOUTS", {"connect_timeout": 10, "read_timeout": 1})
