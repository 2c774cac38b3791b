"""The installed program, as a user runs it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
