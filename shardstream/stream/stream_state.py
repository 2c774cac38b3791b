"""Where a batch stream stands, as JSON of less than 1 KB, and the proof that another one goes on with the same samples."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from shardstream.errors import ResumeError
from shardstream.order.orders import ORDER_VERSION, Order

# Enough to tell any two orders apart, few enough to be computed in a millisecond.
NUM_PROOF_POSITIONS: Final = 1_024
_MAX_NUM_SAMPLES: Final = 2**62


class StreamState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What decides all samples to come. No rank, no batch size: it can be loaded at any."""

    order_version: int
    dataset_digest: str
    order: str
    order_parameters: dict[str, int]
    seed: int
    context_length: int
    num_samples: int
    """Samples that the training loop has consumed, on all ranks together, since the run began."""
    positions_sha256: str
    """Checksum of the start positions of the last 1,024 of them, as little-endian int64."""


def state_of(order: Order, *, dataset_digest: str, seed: int, context_length: int, num_samples: int) -> StreamState:
    """The state after ``num_samples`` samples."""
    return StreamState(
        order_version=ORDER_VERSION,
        dataset_digest=dataset_digest,
        order=order.name,
        order_parameters=order.parameters,
        seed=seed,
        context_length=context_length,
        num_samples=num_samples,
        positions_sha256=_positions_sha256(order, num_samples),
    )


def _positions_sha256(order: Order, num_samples: int) -> str:
    samples = np.arange(max(0, num_samples - NUM_PROOF_POSITIONS), num_samples, dtype=np.int64)
    return hashlib.sha256(order.starts(samples).astype("<i8").tobytes()).hexdigest()


_SAME_ARGUMENTS: Final = "to go on with the same samples, make the stream with the arguments of the run that saved it"
_REMEDIES: Final = {
    "order_version": "install the version of shardstream that saved it",
    "dataset_digest": "open the dataset that the run was trained on",
    "positions_sha256": "the state was edited or damaged, or the order is computed wrongly here; do not go on from it",
}


def checked_state(state: Mapping[str, Any], state_at: Callable[[int], StreamState], *, lanes: int) -> int:
    """Compare a loaded state with the stream that is to go on from it.

    Args:
        state: What ``state_dict()`` returned once.
        state_at: The stream's own state after so many samples.
        lanes: Lanes of its order.

    Returns:
        Samples consumed.

    Raises:
        ResumeError: It is no state, or one of another stream; the message names the field.
    """
    try:
        loaded = msgspec.convert(state, StreamState)
    except msgspec.ValidationError as error:
        raise ResumeError(f"this is no state of a batch stream: {error}; wanted what state_dict() returned") from error
    if not 0 <= loaded.num_samples < _MAX_NUM_SAMPLES or loaded.num_samples % lanes:
        raise ResumeError(
            f"num_samples is {loaded.num_samples} in the state; wanted a multiple of the {lanes} lanes, 0 or more and "
            "below 2**62"
        )
    own = state_at(loaded.num_samples)
    for field in StreamState.__struct_fields__:
        before, now = getattr(loaded, field), getattr(own, field)
        if before != now:
            remedy = _REMEDIES.get(field, _SAME_ARGUMENTS)
            raise ResumeError(f"{field} is {before!r} in the state, and {now!r} in this stream; {remedy}")
    return loaded.num_samples
