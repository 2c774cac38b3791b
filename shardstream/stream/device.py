"""Windows in the stored dtype -> int64 batches on the device.

A token is widened as late as can be: on a CUDA device after it has crossed the bus with its 2 or 4 bytes, elsewhere in
the one copy that makes the batch. Every batch is memory of its own, never written again.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardstream.read.token_dataset import TokenDataset

if TYPE_CHECKING:
    import torch

Batch: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
Windows: TypeAlias = NDArray[np.integer[Any]]
# Two batches may be on their way; before a third is staged, the copy of the first has ended long ago.
_NUM_STAGES: Final = 2


def require_torch(caller: str) -> None:
    """Say how to install torch where it is missing.

    Raises:
        ModuleNotFoundError: It is.
    """
    try:
        import torch  # noqa: F401, PLC0415 - a machine that only writes datasets has none
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{caller} needs PyTorch: pip install 'shardstream[torch]'") from error


def device_of(device: "str | torch.device") -> "torch.device":
    """The device that is meant.

    Raises:
        ValueError: torch knows no such device.
    """
    require_torch("BatchStream")
    import torch  # noqa: PLC0415

    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device is {device!r}; wanted one that torch knows, such as 'cpu', 'cuda' or 'cuda:1'"
        ) from error


def samples_of_windows(windows: Windows) -> Batch:
    """Inputs and targets of windows, in memory of their own.

    Args:
        windows: Shape (B, m + 1), any integer dtype.

    Returns:
        ``inputs`` and ``targets``: int64, contiguous, shape (B, m), on the CPU.
    """
    import torch  # noqa: PLC0415 - a machine that only writes datasets has none

    # One cast each: contiguous, and nothing is copied twice.
    inputs = torch.from_numpy(windows[:, :-1].astype(np.int64, "C"))
    targets = torch.from_numpy(windows[:, 1:].astype(np.int64, "C"))
    return inputs, targets


class HostCopy:
    """Widens on the CPU, and then copies to any device.

    Args:
        device: The device.
        length: Tokens of a window, m + 1.
    """

    runs_ahead = False
    """Whether a batch should be begun while the one before is in use."""

    def __init__(self, device: "torch.device", length: int) -> None:
        self._device = None if device.type == "cpu" else device
        self._length = length

    def begin(self, dataset: TokenDataset, starts: NDArray[np.int64]) -> Callable[[], Batch]:
        """Make the batch of the windows that begin there.

        Returns:
            What returns it: ``inputs`` and ``targets``.
        """
        batch = samples_of_windows(dataset.windows(starts, self._length))
        if self._device is not None:
            batch = batch[0].to(self._device), batch[1].to(self._device)
        return lambda: batch


# Needs a CUDA device: the tests of the `gpu` marker run it.
class CudaCopy:  # pragma: no cover
    """Copies windows to a CUDA device on a stream of its own, while the device computes.

    Args:
        device: The device.
        length: Tokens of a window, m + 1.
        dtype: The stored dtype.
    """

    runs_ahead = True

    def __init__(self, device: "torch.device", length: int, dtype: "np.dtype[np.unsignedinteger[Any]]") -> None:
        import torch  # noqa: PLC0415

        # With its number, since another thread's current device may be another one.
        is_current = device == torch.device("cuda")
        self._device = torch.device("cuda", torch.cuda.current_device()) if is_current else device
        self._length = length
        # torch computes little with unsigned integers: signed ones of the same width travel, and lose their sign there.
        self._torch_dtype = torch.int16 if dtype.itemsize == 2 else torch.int32  # noqa: PLR2004
        self._dtype = dtype
        self._mask = 2 ** (8 * dtype.itemsize) - 1
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stages: list[tuple[torch.Tensor, torch.cuda.Event] | None] = [None] * _NUM_STAGES
        self._turn = 0

    def begin(self, dataset: TokenDataset, starts: NDArray[np.int64]) -> Callable[[], Batch]:
        """Gather the windows that begin there into pinned memory, and begin to copy them.

        Returns:
            What returns the batch: the current stream then waits for the copy, the caller does not.
        """
        import torch  # noqa: PLC0415

        with torch.cuda.device(self._device):
            staged_BT, is_copied = self._stage(len(starts))
            dataset.windows(starts, self._length, out=staged_BT.numpy().view(self._dtype))
            with torch.cuda.stream(self._stream):
                windows_BT = staged_BT.to(self._device, non_blocking=True)
                inputs_BM = windows_BT[:, :-1].to(torch.int64).bitwise_and_(self._mask)
                targets_BM = windows_BT[:, 1:].to(torch.int64).bitwise_and_(self._mask)
                batch = inputs_BM.contiguous(), targets_BM.contiguous()
                is_copied.record()

        def finish() -> Batch:
            current_stream = torch.cuda.current_stream(self._device)
            current_stream.wait_event(is_copied)
            for tensor in batch:
                tensor.record_stream(current_stream)  # its memory is not given away while that stream reads it
            return batch

        return finish

    def _stage(self, num_rows: int) -> "tuple[torch.Tensor, torch.cuda.Event]":
        import torch  # noqa: PLC0415

        self._turn = (self._turn + 1) % _NUM_STAGES
        stage = self._stages[self._turn]
        if stage is None or len(stage[0]) < num_rows:
            staged_BT = torch.empty((num_rows, self._length), dtype=self._torch_dtype, pin_memory=True)
            stage = self._stages[self._turn] = staged_BT, torch.cuda.Event()  # type: ignore[no-untyped-call]
        staged_BT, is_copied = stage
        is_copied.synchronize()
        return staged_BT[:num_rows], is_copied


def device_copy(
    device: "torch.device", length: int, dtype: "np.dtype[np.unsignedinteger[Any]]"
) -> "HostCopy | CudaCopy":
    """How windows get to a device.

    Args:
        device: The device.
        length: Tokens of a window, m + 1.
        dtype: The stored dtype.
    """
    if device.type == "cuda":  # pragma: no cover - the tests of the `gpu` marker run it
        return CudaCopy(device, length, dtype)
    return HostCopy(device, length)
