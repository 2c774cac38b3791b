"""A writer killed with SIGKILL at each step it takes on the disk, or at random instants; what is left is checked.

Run as a program, so that it can fork without pytest's threads. Prints how many kills it survived.

    python killed_writer.py FOLDER steps|instants fresh|overwrite [NUM_KILLS]
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import shardstream

NUM_DOCUMENTS = 14
EOS_ID = 99
STEPS = ("fsync", "replace", "link", "unlink", "mkdir", "rmdir", "open")


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, EOS_ID, rng.integers(0, 20)) for _ in range(NUM_DOCUMENTS)]


def write(folder: Path, **options: Any) -> str:
    """The job: all documents from where the writer says that they are safe."""
    with shardstream.DatasetWriter(folder, vocab_size=100, shard_tokens=32, eos_id=EOS_ID, **options) as writer:
        for document in documents()[writer.num_documents :]:
            writer.append_document(document)
    return writer.manifest.digest


def write_other(folder: Path) -> str:
    """The dataset that an overwrite replaces."""
    with shardstream.DatasetWriter(folder, vocab_size=100, shard_tokens=8) as writer:
        writer.append(np.arange(24))
    return writer.manifest.digest


def kill_at_step(number: int) -> None:
    """From now on count calls into the kernel that change the disk, and die before the one with this number."""
    lock = threading.Lock()
    count = 0

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            with lock:
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for step in STEPS:
        setattr(os, step, counted(getattr(os, step)))


def run_child(folder: Path, options: dict[str, Any], *, step: int | None = None, seconds: float | None = None) -> bool:
    """Run the job in a child that is killed; say whether it ended before that."""
    child = os.fork()
    if child == 0:
        if step is not None:
            kill_at_step(step)
        write(folder, **options)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def check(folder: Path, digests: set[str]) -> None:
    """No dataset, or a whole one that may be there."""
    try:
        dataset = shardstream.open(folder)
    except shardstream.StorageError:
        return
    assert dataset.verify().ok, dataset.verify()
    assert dataset.manifest.digest in digests, dataset.manifest


def check_end(folder: Path, digest: str) -> None:
    """The dataset, whole, and nothing beside it."""
    dataset = shardstream.open(folder)
    assert dataset.manifest.digest == digest
    assert dataset.manifest.num_documents == NUM_DOCUMENTS
    assert dataset.verify().ok
    expected = np.concatenate([np.append(document, EOS_ID) for document in documents()])
    assert (dataset[:] == expected).all()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == {"manifest.json", *(shard.name for shard in dataset.manifest.shards)}, names


def main() -> None:
    folder, mode, start = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    num_kills = int(sys.argv[4]) if len(sys.argv) > 4 else 10**6
    digest = write(folder)  # the first run imports and warms up; the second one's duration counts
    begin = time.perf_counter()
    write(folder, overwrite=True)
    duration = time.perf_counter() - begin
    rng = random.Random(0)
    kills = number = 0
    while kills < num_kills:
        number += 1
        shutil.rmtree(folder)
        digests = {digest}
        options: dict[str, Any] = {"resume": True}
        if start == "overwrite":
            digests.add(write_other(folder))
            options = {"overwrite": True}
        moment: dict[str, Any] = {"step": number} if mode == "steps" else {"seconds": rng.uniform(0, duration)}
        is_ended = run_child(folder, options, **moment)
        check(folder, digests)
        kills += not is_ended
        if mode == "steps" and is_ended:
            break
        if start == "fresh" and rng.random() < 0.5:  # killed again while it resumes
            run_child(folder, options, step=rng.randint(1, 30))
            check(folder, digests)
        assert write(folder, **options) == digest
        check_end(folder, digest)
    print(kills)


if __name__ == "__main__":
    main()
