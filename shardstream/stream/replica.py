"""Which data-parallel replica this process is: told, or asked of torch.distributed, never guessed."""

import operator
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Replica(NamedTuple):
    """A process's place among those that train on different samples."""

    dp_rank: int
    dp_world_size: int
    source: str
    """Who said so, for the log."""


def replica_of(dp_rank: int | None, dp_world_size: int | None, mesh: "DeviceMesh | None") -> Replica:
    """The replica that the arguments name; without any, the one that torch.distributed knows.

    Args:
        dp_rank, dp_world_size: Both, or neither.
        mesh: The data-parallel part of a device mesh: one dimension, or several, counted with the last one fastest.

    Raises:
        ValueError: The arguments are incomplete, contradict one another or are out of range; or nothing was said
            although this is one of several processes.
    """
    if mesh is not None:
        if dp_rank is not None or dp_world_size is not None:
            raise ValueError("mesh says what dp_rank and dp_world_size are: give either the mesh or the two numbers")
        return _of_mesh(mesh)
    if dp_rank is not None and dp_world_size is not None:
        dp_rank, dp_world_size = operator.index(dp_rank), operator.index(dp_world_size)
        if not 0 <= dp_rank < dp_world_size:
            raise ValueError(
                f"dp_rank is {dp_rank}; wanted 0 to {dp_world_size - 1} (dp_world_size is {dp_world_size})"
            )
        return Replica(dp_rank, dp_world_size, "the arguments")
    if dp_rank is not None or dp_world_size is not None:
        raise ValueError(f"dp_rank is {dp_rank} and dp_world_size is {dp_world_size}: give both, or neither")
    return _of_processes()


def _of_mesh(mesh: "DeviceMesh") -> Replica:
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("mesh does not hold this process; give it the data-parallel part of a mesh that does")
    dp_rank = 0
    for place, size in zip(coordinate, mesh.shape, strict=True):
        dp_rank = dp_rank * size + place
    return Replica(dp_rank, mesh.size(), f"the mesh {mesh.mesh_dim_names or mesh.shape}")


def _of_processes() -> Replica:
    import torch.distributed  # noqa: PLC0415 - a machine that only writes datasets has no torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Replica(torch.distributed.get_rank(), torch.distributed.get_world_size(), "torch.distributed")
    # The one variable that shardstream reads, and only to refuse: every rank would train on the same samples.
    num_processes = os.environ.get("WORLD_SIZE", "1")
    if num_processes != "1":
        raise ValueError(
            f"WORLD_SIZE is {num_processes}, but nobody said which of these processes this is; call "
            "torch.distributed.init_process_group() first, or give dp_rank and dp_world_size, or mesh"
        )
    return Replica(0, 1, "nothing: a single process")
