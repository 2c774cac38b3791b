"""The installed program, as a user runs it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import S3Place

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def program() -> str:
    """Path of the ``shardstream`` script that belongs to this Python."""
    path = Path(sys.executable).with_name("shardstream")
    assert path.exists(), f"{path}: install the package first, as tools/test does"
    return str(path)


@pytest.fixture
def run(program: str, tmp_path: Path) -> Run:
    """Run a verb in ``tmp_path``; the exit status must be the expected one, and nothing may print a traceback."""

    def run_program(
        *arguments: object, status: int = 0, stdin: bytes | str = b"", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [program, *map(str, arguments)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100", "PYTHONWARNINGS": "error", **environment},
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == status, f"exit status {done.returncode}, not {status}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run_program


@pytest.fixture
def cloud(s3: S3Place, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    """A bucket, for someone whose environment says how to reach it."""
    for name, value in environment_of(s3, s3.endpoint_url).items():
        monkeypatch.setenv(name, value)
    return s3


def environment_of(place: S3Place, endpoint_url: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": place.server.key,
        "AWS_SECRET_ACCESS_KEY": place.server.secret,
        "AWS_REGION": place.server.region,
        "AWS_ENDPOINT_URL": endpoint_url,
    }


@pytest.fixture
def start(program: str, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a verb in ``tmp_path``, with pipes; it is ended with the test at the latest."""
    with contextlib.ExitStack() as stack:

        def start_program(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
            started = subprocess.Popen(
                [program, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, **environment},
                # Tests that run in the background may ignore the signal, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
            )
            stack.enter_context(started)
            stack.callback(started.kill)
            return started

        yield start_program


def interrupt(started: "subprocess.Popen[str]") -> str:
    """Press Ctrl-C; return what the program has to say."""
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert started.returncode == 130, err
    return err.strip()
