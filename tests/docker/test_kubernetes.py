"""What docker/kubernetes says is what Kubernetes takes, and its parts fit one another."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it publishes no types
import pytest
import yaml  # type: ignore[import-untyped]  # it publishes no types

README = Path(__file__).parents[2] / "README.md"
FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))

pytestmark = pytest.mark.skipif(not FILES, reason="docker/ comes with the checkout, not with the wheel")


def objects_of(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("version", ["1.27", "1.33"])
def test_schema(path: Path, version: str) -> None:
    """Every object has the fields that this version of Kubernetes knows, and no others."""
    for described in objects_of(path):
        kubernetes_validate.validate(described, version, strict=True)


def test_parts_fit() -> None:
    """Each pod is told the right number of nodes, and finds the first one under the service's name."""
    service, job = objects_of(FOLDER / "job.yaml")
    (secret,) = objects_of(FOLDER / "secret.yaml")
    pod = job["spec"]["template"]["spec"]
    (trainer,) = pod["containers"]
    env = {variable["name"]: variable.get("value") for variable in trainer["env"]}
    options = dict(argument.split("=", 1) for argument in trainer["args"] if argument.startswith("--"))
    num_ranks = int(env["PET_NNODES"]) * int(env["PET_NPROC_PER_NODE"])

    assert int(env["PET_NNODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert env["PET_MASTER_ADDR"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert int(options["--global-batch-size"]) % num_ranks == 0
    assert trainer["resources"]["limits"] == {"nvidia.com/gpu": int(env["PET_NPROC_PER_NODE"])}
    assert trainer["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"], "optional": True}}]
    assert {mount["name"] for mount in trainer["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_a_new_job_leaves_the_secret_alone() -> None:
    """Each command that is shown applies one file: the Job's would else bring the Secret's example back."""
    texts = [path.read_text() for path in (README, *FILES)]
    applied = {path for text in texts for path in re.findall(r"kubectl apply -f ([\w./-]+)", text)}

    assert applied == {f"docker/kubernetes/{path.name}" for path in FILES}
