"""A network of containers with an S3 in it; tools/cluster_test builds the images and asks for these tests."""

import json
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

S3 = {
    "AWS_ENDPOINT_URL": "http://s3:7480",
    "AWS_ACCESS_KEY_ID": "accesskey1",
    "AWS_SECRET_ACCESS_KEY": "secretkey1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
DATASET = "s3://corpora/http"
_GET = re.compile(r' beast: \S+ (\S+) - \S+ \[\S+ \S+\] "GET \S+ HTTP/1\.1" 20\d (\d+) ')


def docker(*arguments: object, check: bool = True) -> str:
    """Run a command of the engine's client; what it printed."""
    command = ["docker", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Container:
    """A program in a container, while it runs and after."""

    def __init__(self, name: str) -> None:
        self.name = name

    def wait(self, timeout_s: float = 120) -> int:
        """Until it ends; the exit status."""
        self.wait_for(lambda: not self.is_running, timeout_s)
        return int(docker("inspect", "--format", "{{.State.ExitCode}}", self.name))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{self.name}: not within {timeout_s} s: {self.output}"
            time.sleep(0.1)

    def outlives(self, seconds: float) -> bool:
        """Whether it still runs after so long a time."""
        deadline_s = time.monotonic() + seconds
        while self.is_running and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return self.is_running

    @property
    def is_running(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.name) == "true"

    @property
    def output(self) -> str:
        """What it printed, errors too."""
        done = subprocess.run(
            ["docker", "logs", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        return done.stdout


class Cluster:
    """Containers and volumes that see one another, and nobody else sees."""

    def __init__(self) -> None:
        self._label = f"shardstream-test-{uuid.uuid4().hex[:8]}"
        self.network = self._network()

    def start(
        self, image: str, *arguments: object, options: tuple[object, ...] = (), env: dict[str, Any] | None = None
    ) -> Container:
        """Start a container, with the S3's settings in its environment."""
        variables = [option for item in (S3 | (env or {})).items() for option in ("--env", "{}={}".format(*item))]
        name = docker(
            "run", "--detach", "--label", self._label, "--network", self.network, *variables, *options,
            f"shardstream:{image}", *arguments,
        )  # fmt: skip
        return Container(name)

    def run(self, image: str, *arguments: object, options: tuple[object, ...] = ()) -> str:
        """Run a container to its end, which has to be a good one; what it printed."""
        container = self.start(image, *arguments, options=options)
        assert container.wait() == 0, container.output
        return container.output

    def volume(self) -> str:
        return docker("volume", "create", "--label", self._label)

    def address(self, number: int) -> str:
        """An address that no container has unless it was asked for."""
        return f"{self.network_prefix}.{200 + number}"

    def close(self) -> None:
        if containers := docker("ps", "--all", "--quiet", "--filter", f"label={self._label}").split():
            docker("rm", "--force", "--volumes", *containers)
        if volumes := docker("volume", "ls", "--quiet", "--filter", f"label={self._label}").split():
            docker("volume", "rm", *volumes)
        docker("network", "rm", self.network, check=False)

    def _network(self) -> str:
        """Only in a range that was asked for may containers ask for addresses: ask for the one that is free."""
        free = docker("network", "create", self._label)
        subnet = json.loads(docker("network", "inspect", free))[0]["IPAM"]["Config"][0]["Subnet"]
        docker("network", "rm", free)
        self.network_prefix = subnet.rsplit(".", 1)[0]
        docker("network", "create", "--label", self._label, "--subnet", subnet, self._label)
        return self._label


class Gateway:
    """The gateway's container, and what its log says."""

    def __init__(self, container: Container) -> None:
        self.name = container.name
        self._container = container

    def num_sent_bytes(self, address: str) -> int:
        """What was sent to one address in answer to GETs."""
        return sum(int(size) for client, size in _GET.findall(self._container.output) if client == address)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def gateway(cluster: Cluster) -> Gateway:
    container = cluster.start("s3", options=("--init", "--network-alias", "s3"))
    container.wait_for(lambda: docker("inspect", "--format", "{{.State.Health.Status}}", container.name) == "healthy")
    return Gateway(container)


@pytest.fixture(scope="session")
def dataset_bytes(cluster: Cluster, gateway: Gateway) -> int:
    """Write the dataset in a container: Python's own `http`, ten small shards. Its bytes."""
    script = (
        'shardstream tokenize "$(python -c "import http; print(http.__path__[0])")/*.py" '
        f"--tokenizer bytes --shard-tokens 16384 --out {DATASET}"
    )
    cluster.run("writer", "-c", script, options=("--entrypoint", "sh"))
    facts: dict[str, Any] = json.loads(cluster.run("writer", "info", DATASET, "--json"))
    num_bytes: int = facts["num_bytes"]
    return num_bytes


@pytest.fixture(scope="session")
def writer_with_faketime(cluster: Cluster) -> str:
    """The writer's image, and a program in it that has others see another time."""
    dockerfile = (
        "FROM shardstream:writer\n"
        "USER root\n"
        "RUN apt-get update -qq && apt-get install -qq --no-install-recommends faketime >/dev/null\n"
        "USER 65532\n"
    )
    command = ["docker", "build", "--network", "host", "--tag", "shardstream:writer-with-faketime", "-"]
    subprocess.run(command, input=dockerfile, capture_output=True, text=True, check=True, timeout=200)
    return "writer-with-faketime"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to mount, for any user."""
    tmp_path.chmod(0o777)
    return tmp_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("SHARDSTREAM_TEST_DOCKER") == "1":
        return
    for item in items:
        if item.get_closest_marker("docker"):
            item.add_marker(pytest.mark.skip(reason="needs images of this very tree: run tools/cluster_test"))
