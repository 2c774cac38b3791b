"""What many tests need: small datasets, and S3 with and without faults."""

import functools
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

import shardstream
from shardstream import TokenDataset
from tests.fault_proxy import FaultProxy

# A disk may be slow for a moment; that is no defect of what is tested.
settings.register_profile("shardstream", deadline=None)
settings.load_profile("shardstream")

WriteDataset = Callable[..., TokenDataset]

# As it was before any test: the fixtures of a session may be set up in the midst of one, without its AWS settings.
SURROUNDINGS = dict(os.environ)


@pytest.fixture(autouse=True)
def no_aws_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an S3 is, and who may use it, reaches a test through the fixtures below alone."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards are cached by default: in no user's home, and in no two tests the same."""
    folder = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "shardstream"


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """Write tokens and open what came of it."""

    def write(tokens: Any, *, vocab_size: int = 1000, shard_tokens: int = 64, **options: Any) -> TokenDataset:
        uri = options.pop("uri", tmp_path / "dataset")
        with shardstream.DatasetWriter(uri, vocab_size=vocab_size, shard_tokens=shard_tokens, **options) as writer:
            writer.append(tokens)
        return shardstream.open(uri)

    return write


@pytest.fixture
def tokens() -> NDArray[np.uint16]:
    """A thousand ids below 1000, none of them twice in a row by chance only."""
    return np.random.default_rng(7).integers(0, 1000, 1000, dtype=np.uint16)


MOTO = """
import logging, sys
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until its test session ends, in whatever way
"""
MOTO_STARTS_S = 60  # 2 s where nothing else runs


@dataclass(frozen=True)
class S3Server:
    """Where an S3 is, and who may use it."""

    endpoint_url: str
    key: str
    secret: str
    region: str = "us-east-1"

    @functools.cached_property
    def client(self) -> Any:
        return self.client_at(self.endpoint_url)

    def client_at(self, endpoint_url: str, **config: Any) -> Any:
        import botocore.session  # noqa: PLC0415 - 0.5 s that most tests do without
        from botocore.config import Config  # noqa: PLC0415

        with pytest.MonkeyPatch.context() as patch:
            forget_user(patch)
            return botocore.session.Session().create_client(
                "s3",
                endpoint_url=endpoint_url,
                aws_access_key_id=self.key,
                aws_secret_access_key=self.secret,
                region_name=self.region,
                config=Config(s3={"addressing_style": "path"}, **config),
            )


@dataclass(frozen=True)
class S3Place:
    """A place for a dataset, in a bucket of its own."""

    server: S3Server
    bucket: str
    prefix: str = "some/prefix"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def endpoint_url(self) -> str:
        return self.server.endpoint_url

    @property
    def client(self) -> Any:
        """A botocore client that looks at the objects behind the package's back."""
        return self.server.client

    @property
    def storage_options(self) -> dict[str, Any]:
        """The options that s3fs knows."""
        return self.storage_options_at(self.endpoint_url)

    def storage_options_at(self, endpoint_url: str) -> dict[str, Any]:
        """The same for another way to the server, such as a fault proxy's."""
        return {
            "key": self.server.key,
            "secret": self.server.secret,
            "endpoint_url": endpoint_url,
            "client_kwargs": {"region_name": self.server.region},
        }


def forget_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the user's: neither credentials, nor a profile, nor a proxy on the way to loopback."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"s3_server", "moto_server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("s3")


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """An S3 in memory that asks for no valid signature, in a process of its own."""
    # Coverage would slow it down, and there is nothing of ours to see.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "COVERAGE_"))}
    with subprocess.Popen(
        [sys.executable, "-c", MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], MOTO_STARTS_S)[0], f"no moto after {MOTO_STARTS_S} s"
            port = process.stdout.readline().decode().strip()
            assert port, "moto ended before it served; its message stands above"
            server = S3Server(f"http://127.0.0.1:{port}", key="anyone", secret="anything")
            yield server
            server.client.close()
        finally:
            process.kill()


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """The S3 of the environment if SHARDSTREAM_TEST_S3 is set, as .ci/run does; otherwise moto's."""
    if not SURROUNDINGS.get("SHARDSTREAM_TEST_S3"):
        yield request.getfixturevalue("moto_server")
        return
    server = S3Server(
        SURROUNDINGS["AWS_ENDPOINT_URL"],
        key=SURROUNDINGS["AWS_ACCESS_KEY_ID"],
        secret=SURROUNDINGS["AWS_SECRET_ACCESS_KEY"],
        region=SURROUNDINGS["AWS_REGION"],
    )
    yield server
    server.client.close()


def fresh_place(server: S3Server) -> Iterator[S3Place]:
    place = S3Place(server, f"test-{uuid.uuid4()}")
    place.client.create_bucket(Bucket=place.bucket)
    yield place
    for page in place.client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket):
        for entry in page.get("Contents", []):
            place.client.delete_object(Bucket=place.bucket, Key=entry["Key"])


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Place]:
    """An empty bucket; nothing but what a test passes on says how to reach it."""
    forget_user(monkeypatch)
    yield from fresh_place(s3_server)


@pytest.fixture
def moto_s3(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Place]:
    """The same at moto's always: for what a server with real signatures would refuse."""
    forget_user(monkeypatch)
    yield from fresh_place(moto_server)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """Start a proxy before an endpoint that fails as told; see tests/fault_proxy.py."""
    with ExitStack() as proxies:

        def start(upstream: str, **faults: Any) -> FaultProxy:
            return proxies.enter_context(FaultProxy(upstream, **faults))

        yield start
