"""A writer killed with SIGKILL at each step it takes on the disk, or at random instants; what is left is checked.

Run as a program, so that it can fork without pytest's threads. Prints how many kills it survived.

    python killed_writer.py FOLDER steps|instants fresh|overwrite raw|zstd|sided [NUM_KILLS]

``sided`` writes side files, and sends documents in pieces.
"""

import hashlib
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
import zstandard
from pyarrow import parquet

import shardstream
from shardstream.format.integrity import content_problem

NUM_DOCUMENTS = 14
EOS_ID = 99
STEPS = ("fsync", "replace", "link", "unlink", "mkdir", "rmdir", "open")


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, EOS_ID, rng.integers(0, 20)) for _ in range(NUM_DOCUMENTS)]


def write(folder: Path, **options: Any) -> str:
    """The job: all documents from where the writer says that they are safe."""
    with shardstream.DatasetWriter(folder, vocab_size=100, shard_tokens=32, eos_id=EOS_ID, **options) as writer:
        for number in range(writer.num_documents, NUM_DOCUMENTS):
            document = documents()[number]
            pieces = iter(np.array_split(document, 3)) if options.get("side_files") else document
            writer.append_document(pieces, source="a test", key=str(number))
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


def whole_dataset(folder: Path) -> tuple[shardstream.Manifest, np.ndarray] | None:
    """A dataset whose every shard is what its manifest says, and its tokens; None where there is no manifest.

    Nothing of a reader is needed: it could only be more forgiving.
    """
    if not (folder / "manifest.json").exists():
        return None
    manifest = shardstream.Manifest.parse((folder / "manifest.json").read_bytes())
    raw = b""
    for shard in manifest.shards:
        with (folder / shard.name).open("rb") as file:
            assert content_problem(manifest, shard, file) is None, shard
        if shard.documents is not None:
            side_file = (folder / shard.documents_name).read_bytes()
            assert hashlib.sha256(side_file).hexdigest() == shard.documents.sha256, shard
        data = (folder / shard.name).read_bytes()
        raw += zstandard.ZstdDecompressor().decompressobj().decompress(data) if shard.stored else data
    return manifest, np.frombuffer(raw, manifest.dtype)


def check(folder: Path, digests: set[str]) -> None:
    """No dataset, or a whole one that may be there."""
    if dataset := whole_dataset(folder):
        assert dataset[0].digest in digests, dataset[0]


def check_end(folder: Path, digest: str) -> None:
    """The dataset, whole, and nothing beside it."""
    dataset = whole_dataset(folder)
    assert dataset is not None
    manifest, tokens = dataset
    assert manifest.digest == digest
    assert manifest.num_documents == NUM_DOCUMENTS
    expected = np.concatenate([np.append(document, EOS_ID) for document in documents()])
    assert tokens.tolist() == expected.tolist()
    documents_names = {shard.documents_name for shard in manifest.shards if shard.documents}
    if documents_names:
        keys = [key for name in sorted(documents_names) for key in parquet.read_table(folder / name)["key"].to_pylist()]
        assert keys == [str(number) for number in range(NUM_DOCUMENTS)]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == {"manifest.json", *(shard.name for shard in manifest.shards), *documents_names}, names


def main() -> None:
    folder, (mode, start, compression) = Path(sys.argv[1]), sys.argv[2:5]
    num_kills = int(sys.argv[5]) if len(sys.argv) > 5 else 10**6
    how: dict[str, Any] = {
        "compression": "zstd" if compression == "zstd" else None,
        "side_files": compression == "sided",
    }
    digest = write(folder, **how)  # the first run imports and warms up; the second one's duration counts
    begin = time.perf_counter()
    write(folder, **how, overwrite=True)
    duration = time.perf_counter() - begin
    rng = random.Random(0)
    kills = number = 0
    while kills < num_kills:
        number += 1
        shutil.rmtree(folder)
        digests = {digest}
        options: dict[str, Any] = {**how, "resume": True}
        if start == "overwrite":
            digests.add(write_other(folder))
            options = {**how, "overwrite": True}
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
