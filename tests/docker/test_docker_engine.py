"""tools/docker_engine, with a shell in the place of the engine's client."""

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "docker_engine"
# An engine that answers, has no image, and pulls or does not.
DOCKER = """#!/bin/bash
echo "$*" >>"$DOCKER_LOG"
case $1 in
  info) exit 0 ;;
  pull) exit "$PULL_STATUS" ;;
  *) exit 1 ;;
esac
"""

pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="tools/ comes with the checkout, not with the wheel")


def run(folder: Path, verb: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a verb did; a base image can be pulled at most, not made."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, text in {"docker": DOCKER, "debootstrap": "#!/bin/bash\nexit 1\n"}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    own = {"PATH": f"{commands}:/usr/bin:/bin", "TMPDIR": str(folder), "DOCKER_LOG": str(folder / "log")}
    return subprocess.run(
        ["bash", PROGRAM, verb], capture_output=True, text=True, check=False, timeout=60, env=own | environment
    )


@pytest.mark.parametrize("verb", ["missing", "up"])
def test_an_image_that_can_be_pulled_is_not_made(tmp_path: Path, verb: str) -> None:
    """Where an engine answers and pulls the base image, nothing is missing and nothing is made."""
    done = run(tmp_path, verb, PULL_STATUS="0")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    calls = (tmp_path / "log").read_text().splitlines()
    assert calls[-1] == "pull --quiet python:3.11-slim-bookworm"
    assert not any(call.startswith("import") for call in calls)


def test_a_dockerd_that_nobody_reaps_is_down(tmp_path: Path) -> None:
    """`down` waits for dockerd's end, not for its parent to take note of it."""
    state = tmp_path / "shardstream-docker"
    state.mkdir()
    with subprocess.Popen(["sleep", "100"], executable="/bin/sleep") as other:
        (state / "docker.pid").write_text(str(other.pid))
        spared = run(tmp_path, "down")
        is_spared = other.poll() is None
        other.kill()
    with subprocess.Popen(["dockerd", "100"], executable="/bin/sleep") as dockerd:
        (state / "docker.pid").write_text(str(dockerd.pid))
        done = run(tmp_path, "down")  # it stays a zombie until the end of this block
        is_zombie = not Path(f"/proc/{dockerd.pid}/cmdline").read_bytes()

    assert (spared.returncode, done.returncode) == (0, 0)
    assert is_spared, "another process has its number"
    assert is_zombie
    assert dockerd.returncode < 0
