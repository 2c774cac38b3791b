"""Eight processes in a real device mesh: what each gets of the samples. Run by test_replica.py.

Usage: mesh_processes.py DATASET FOLDER
"""

import json
import os
import sys
import traceback
from pathlib import Path

import pytest
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import shardstream

SHAPE = (2, 2, 2)


def positions(dataset: shardstream.TokenDataset, **place: object) -> list[int]:
    stream = shardstream.BatchStream(dataset, batch_size=4, context_length=3, **place)  # type: ignore[arg-type]
    next(stream)
    return list(stream.positions.tolist())


def work(rank: int, uri: str, folder: Path) -> None:
    """One of the processes."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=8)
    mesh = init_device_mesh("cpu", SHAPE, mesh_dim_names=("dp_replicate", "dp_shard", "tp"))
    dataset = shardstream.open(uri)
    found = {
        "one dimension": positions(dataset, mesh=mesh["dp_shard"]),
        "two dimensions": positions(dataset, mesh=mesh["dp_replicate", "dp_shard"]),
        "all processes": positions(dataset),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="give either the mesh or the two numbers"):
        positions(dataset, mesh=mesh["tp"], dp_rank=0, dp_world_size=1)
    if rank == 0:
        without_me = DeviceMesh("cpu", [1, 2], _init_backend=False, _rank=0)
        with pytest.raises(ValueError, match="mesh does not hold this process"):
            positions(dataset, mesh=without_me)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    uri, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    children = []
    for rank in range(8):  # forked, since importing torch eight times would take most of the time
        child = os.fork()
        if child == 0:
            try:
                work(rank, uri, folder)
            except BaseException:  # noqa: BLE001 - a child must not run what follows
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)

    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(8)]
    for rank, mine in enumerate(found):
        for other_rank, theirs in enumerate(found):
            # The places of rank are its binary digits: replicate, shard, tensor parallel.
            for name, bits in (("one dimension", 0b010), ("two dimensions", 0b110), ("all processes", 0b111)):
                is_peer = rank & bits == other_rank & bits
                same = set(mine[name]) == set(theirs[name])
                disjoint = not set(mine[name]) & set(theirs[name])
                assert same if is_peer else disjoint, (rank, other_rank, name)


if __name__ == "__main__":
    main()
