"""On a cluster of containers, nodes may be killed and come back in other numbers: what is learnt from stays the same."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.docker.conftest import DATASET, Cluster, Container, Gateway, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(400), pytest.mark.usefixtures("dataset_bytes")]

TRAINER = "/opt/shardstream/train_gpt.py"
TINY = ("--layers=1", "--heads=2", "--width=32", "--context-length=64", "--global-batch-size=12", "--log-every=5")
BATCH = 12  # samples: one, two and three nodes share them
CHECKPOINT_EVERY = 10  # steps
MANY = 100_000  # steps: killed before it is done with them


class Line(NamedTuple):
    """Of a position log."""

    step: int
    sample: int
    position: int


class Nodes:
    """What stays when containers come and go: an address and a cache for each node, a folder that all of them see."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._containers: list[Container] = []
        self.shared, self.memory = folder / "shared", folder / "memory"
        for path in (self.shared, self.memory):
            path.mkdir()
            path.chmod(0o777)
        self.addresses = [cluster.address(number) for number in range(3)]
        self._caches = [cluster.volume() for _ in self.addresses]

    def start(self, number: int, num_nodes: int, *arguments: object, env: dict[str, Any] | None = None) -> Container:
        """Start a node as torchrun's rank ``number``."""
        options = (
            "--ip", self.addresses[number], "--entrypoint", "torchrun", "--user", os.getuid(),
            "--volume", f"{self._caches[number]}:/cache", "--volume", f"{self.shared}:/checkpoints",
            "--volume", f"{self.memory}:/dev/shm",
        )  # fmt: skip
        environment = {
            "PET_NNODES": num_nodes,
            "PET_NODE_RANK": number,
            "PET_MASTER_ADDR": self.addresses[0],
            "PET_MASTER_PORT": 29500,
        }
        command = (TRAINER, DATASET, *TINY, "--order=block-shuffle", *arguments)
        container = self._cluster.start("train", *command, options=options, env=environment | (env or {}))
        self._containers.append(container)
        return container

    def close(self) -> None:
        """Free their addresses."""
        docker("rm", "--force", *(container.name for container in self._containers))

    def log(self, name: str) -> list[Line]:
        """What the ranks of one attempt wrote down, by step and sample."""
        return sorted(
            Line(*map(int, line.split()))
            for path in self.shared.glob(f"{name}.rank*")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        )


@pytest.fixture
def nodes(cluster: Cluster, folder: Path) -> Iterator[Nodes]:
    nodes = Nodes(cluster, folder)
    yield nodes
    nodes.close()


def test_killed_on_two_nodes_ended_on_one_and_on_three(nodes: Nodes, gateway: Gateway, dataset_bytes: int) -> None:
    """Killed on two nodes, resumed on one, ended on three: the samples are those of one run that nobody disturbed."""
    begin_bytes = [gateway.num_sent_bytes(address) for address in nodes.addresses]
    checkpoint = ("--checkpoint=/checkpoints/gpt.pt", f"--checkpoint-every={CHECKPOINT_EVERY}")

    def attempt(num_nodes: int, num_steps: int) -> list[Container]:
        log = f"--position-log=/checkpoints/on-{num_nodes}"
        return [nodes.start(node, num_nodes, *checkpoint, log, f"--steps={num_steps}") for node in range(num_nodes)]

    first, second = attempt(2, MANY)
    first.wait_for(lambda: any(line.step > 2 * CHECKPOINT_EVERY + 2 for line in nodes.log("on-2")))
    docker("kill", second.name)
    status_of_the_other = first.wait(60)
    done = nodes.log("on-2")[-1].step
    (alone,) = attempt(1, done + CHECKPOINT_EVERY + 5)
    assert alone.wait() == 0, alone.output
    stop = done + 3 * CHECKPOINT_EVERY
    three = attempt(3, stop)
    statuses = [node.wait() for node in three]
    undisturbed = nodes.start(0, 1, "--position-log=/checkpoints/undisturbed", f"--steps={stop}")
    assert undisturbed.wait() == 0, undisturbed.output

    assert status_of_the_other != 0, first.output
    assert statuses == [0, 0, 0], three[0].output
    attempts = [nodes.log(name) for name in ("on-2", "on-1", "on-3")]
    begins = [log[0].step for log in attempts]
    assert 0 == begins[0] < begins[1] < begins[2]
    standing = [
        line
        for log, end in zip(attempts, [*begins[1:], stop], strict=True)
        for line in log
        if line.step < end  # what came after the last checkpoint is done again
    ]
    assert [line.sample for line in standing] == list(range(BATCH * stop))
    assert standing == nodes.log("undisturbed")
    for address, before in zip(nodes.addresses, begin_bytes, strict=True):
        assert dataset_bytes <= gateway.num_sent_bytes(address) - before <= 1.1 * dataset_bytes
    assert list(nodes.memory.iterdir()) == [], "nothing is left in /dev/shm"


def test_a_node_may_be_late(nodes: Nodes) -> None:
    """The first node waits for one that comes half a minute later."""
    first = nodes.start(0, 2, "--steps=3")
    is_waiting = first.outlives(30)
    second = nodes.start(1, 2, "--steps=3")

    assert is_waiting, first.output
    assert [first.wait(), second.wait()] == [0, 0], first.output


def test_a_wrong_master_address_ends_in_time(nodes: Nodes) -> None:
    """A node that is told a wrong address of the first one says so and ends when its time is up."""
    lost = nodes.start(1, 2, "--steps=3", env={"PET_MASTER_ADDR": "nobody", "PET_RDZV_CONF": "timeout=5"})

    assert lost.wait(90) != 0
    assert "nobody" in lost.output


def test_locked_down(cluster: Cluster) -> None:
    """With a read-only root, any user, little shared memory and one writable volume, the defaults work."""
    locked = (
        "--read-only",
        "--user",
        "12345",
        "--shm-size=64m",
        "--tmpfs",
        "/tmp",
        "--volume",
        f"{cluster.volume()}:/cache",
    )
    trainer = (TRAINER, DATASET, "--steps=20")

    report = cluster.run("writer", "warm", DATASET, options=locked)
    trained = cluster.run("train", *trainer, options=(*locked, "--entrypoint", "python"))

    assert "downloaded" in report
    assert "step 20  loss" in trained
    assert "num_downloads=0" in trained, "the writer's image filled the cache that the trainer reads"


def test_the_store_may_go_away_for_a_while(cluster: Cluster, gateway: Gateway) -> None:
    """A trainer that cannot reach its S3 for some seconds waits, and goes on."""
    docker("network", "disconnect", cluster.network, gateway.name)
    try:
        trainer = cluster.start("train", TRAINER, DATASET, "--steps=5", options=("--entrypoint", "python"))
        is_waiting = trainer.outlives(15)
    finally:
        docker("network", "connect", "--alias", "s3", cluster.network, gateway.name)

    assert is_waiting, trainer.output
    assert trainer.wait() == 0, trainer.output
    assert "step 5  loss" in trainer.output


@pytest.mark.parametrize(
    ("uri", "env", "options", "message"),
    [
        pytest.param(DATASET, {"AWS_SECRET_ACCESS_KEY": "hushhush"}, (), "403", id="wrong-key"),
        pytest.param("s3://nowhere/http", {}, (), "no such bucket", id="missing-bucket"),
        pytest.param("s3://corpora/none", {}, (), "manifest.json", id="missing-dataset"),
        pytest.param(DATASET, {}, ("--tmpfs", "/cache:size=64k,mode=1777"), "No space left", id="full-cache"),
        pytest.param(DATASET, {}, ("--tmpfs", "/cache:ro"), "Read-only file system", id="read-only-cache"),
        pytest.param(DATASET, {"XDG_CACHE_HOME": "/root/cache"}, (), "Permission denied", id="foreign-cache"),
    ],
)
def test_what_cannot_pass_ends_the_job(
    cluster: Cluster, uri: str, env: dict[str, str], options: tuple[str, ...], message: str
) -> None:
    """A fault that waiting does not mend ends the trainer, which names it, and never the secret."""
    trainer = cluster.start("train", TRAINER, uri, "--steps=5", options=("--entrypoint", "python", *options), env=env)

    assert trainer.wait() == 1
    assert message in trainer.output.splitlines()[-1]
    assert not any(secret in trainer.output for secret in ("secretkey1", "hushhush"))


@pytest.mark.parametrize("clock", ["-5h", "+5h"])
def test_a_wrong_clock_is_named_in_time(cluster: Cluster, writer_with_faketime: str, clock: str) -> None:
    """A machine whose clock is hours off is told so within a minute, since S3 takes no request of another time."""
    options = ("--entrypoint", "faketime")
    late = cluster.start(
        writer_with_faketime, "--exclude-monotonic", "-f", clock, "shardstream", "info", DATASET, options=options
    )

    assert late.wait(60) == 1
    assert "RequestTimeTooSkewed; this machine's clock is wrong" in late.output
