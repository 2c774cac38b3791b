"""A reading job that is killed at a random instant, again and again. Run by test_killed_reader.py.

Usage: killed_reader.py DATASET FOLDER NUM_KILLS [MAX_CACHE_BYTES]

Two jobs at a time read one dataset, each from its own last state; with a bound, through one cache that does not hold it
all, so that shards come and go while jobs are killed. Every restart must have its first batch within 5 s
and go on where the last saved state stands; /dev/shm must stay as it was.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import shardstream


def read(uri: str, folder: Path, max_cache_bytes: int | None) -> None:
    """Go on from the last state; save one after each batch, until killed."""
    started = time.monotonic()
    dataset = shardstream.open(uri, max_cache_bytes=max_cache_bytes)
    order = {"order": "shuffle"} if max_cache_bytes is None else {"order": "block-shuffle", "buffer_blocks": 2}
    stream = shardstream.BatchStream(dataset, batch_size=8, context_length=16, dp_rank=0, dp_world_size=1, **order)
    state = folder / "state.json"
    if state.exists():
        stream.load_state_dict(json.loads(state.read_text()))
    next(stream)
    with (folder / "first").open("a") as file:
        file.write(f"{time.monotonic() - started}\n")
    while True:
        (folder / "state.partial").write_text(json.dumps(stream.state_dict()))
        (folder / "state.partial").replace(state)
        next(stream)


def num_firsts(folder: Path) -> int:
    """How many restarts of a job have had their first batch."""
    return len((folder / "first").read_text().split()) if (folder / "first").exists() else 0


def await_first(folder: Path, num_before: int) -> None:
    """Wait until the job that runs now has its first batch."""
    deadline = time.monotonic() + 5
    while num_firsts(folder) == num_before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def await_no_more_in(shared_memory: set[str]) -> None:
    """Wait until nothing new is in /dev/shm: other programs' files go, what a killed job left would stay."""
    deadline = time.monotonic() + 20
    while added := set(os.listdir("/dev/shm")) - shared_memory:  # noqa: PTH208
        assert time.monotonic() < deadline, added
        time.sleep(0.1)


def main() -> None:
    uri, folder, num_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    max_cache_bytes = int(sys.argv[4]) if len(sys.argv) > 4 else None
    torch.set_num_threads(1)
    shared_memory = set(os.listdir("/dev/shm"))  # noqa: PTH208
    before: dict[int, int] = {}
    children: dict[int, int] = {}
    for kill in range(num_kills):
        job = kill % 2
        if job in children:
            if kill % 4 < 2:  # every other time only after the first batch, which may take 5 s
                await_first(folder / str(job), before[job])
            time.sleep(random.uniform(0, 0.05))
            os.kill(children[job], signal.SIGKILL)
            os.waitpid(children[job], 0)
        (folder / str(job)).mkdir(exist_ok=True)
        before[job] = num_firsts(folder / str(job))
        children[job] = os.fork()
        if not children[job]:
            try:
                read(uri, folder / str(job), max_cache_bytes)
            finally:
                os._exit(1)
    for job, child in children.items():
        await_first(folder / str(job), before[job])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    await_no_more_in(shared_memory)

    for job in children:
        firsts = [float(line) for line in (folder / str(job) / "first").read_text().split()]
        state = json.loads((folder / str(job) / "state.json").read_text())
        assert len(firsts) > num_kills // 8, "most were killed before their first batch"
        assert max(firsts) < 5
        assert state["num_samples"] >= 8 * len(firsts) / 2
        print(f"job {job}: {len(firsts)} restarts, first batch after {max(firsts):.3f} s at most, {state}")


if __name__ == "__main__":
    main()
