"""Read in the parent, then in children that it starts; each must read the same, and soon.

Run as a program, so that it can fork without pytest's threads, and so that children can import it.

    python reading_children.py PLACE fork|spawn|forkserver dataset|stream|loader|stateful|refused [ranges]

What the parent has brought into a cache is deleted before children start: they ask the store themselves.
"""

import itertools
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import shardstream

NUM_CHILDREN = 2
DEADLINE_S = 10  # without the start of Python and the import of torch, which take what they take
HANGS_S = 60
CONTEXT_LENGTH = 16
STARTS = np.arange(0, 900, 7)


def windows_of(dataset: shardstream.TokenDataset) -> bytes:
    return dataset.windows(STARTS, CONTEXT_LENGTH).tobytes()


def batches_of(stream: Any) -> bytes:
    return pickle.dumps([(inputs.tolist(), targets.tolist()) for inputs, targets in itertools.islice(stream, 5)])


def stream_of(dataset: shardstream.TokenDataset) -> shardstream.BatchStream:
    return shardstream.BatchStream(dataset, batch_size=4, context_length=CONTEXT_LENGTH)


def child(queue: Any, read: Callable[[Any], bytes], source: Any) -> None:
    begin = time.perf_counter()
    queue.put((read(source), time.perf_counter() - begin))


def check_children(context: Any, read: Callable[[Any], bytes], source: Any, expected: bytes) -> None:
    """Children that get ``source``, already used, read what is expected of them."""
    queue = context.Queue()
    children = [context.Process(target=child, args=(queue, read, source)) for _ in range(NUM_CHILDREN)]
    for process in children:
        process.start()
    for _ in children:
        what, seconds = queue.get(timeout=HANGS_S)
        assert what == expected
        assert seconds < DEADLINE_S, seconds
    for process in children:
        process.join(HANGS_S)
        assert process.exitcode == 0, process.exitcode


def check_dataset(dataset: shardstream.TokenDataset, context: Any) -> None:
    check_children(context, windows_of, dataset, windows_of(dataset))


def check_stream(dataset: shardstream.TokenDataset, context: Any) -> None:
    with stream_of(dataset) as stream, stream_of(dataset) as other:
        batches_of(stream)
        other.load_state_dict(stream.state_dict())
        check_children(context, batches_of, stream, batches_of(other))


def check_loader(dataset: shardstream.TokenDataset, context: Any) -> None:
    from torch.utils.data import DataLoader  # noqa: PLC0415 - children that read a dataset import no torch

    from shardstream.integrations.torch_dataset import WindowDataset  # noqa: PLC0415

    windows = WindowDataset(dataset, CONTEXT_LENGTH)
    expected = list(DataLoader(windows, batch_size=4))
    loader = DataLoader(windows, batch_size=4, num_workers=2, multiprocessing_context=context, timeout=HANGS_S)
    for (inputs, targets), (expected_inputs, expected_targets) in zip(loader, expected, strict=True):
        assert inputs.equal(expected_inputs)
        assert targets.equal(expected_targets)


def check_stateful(dataset: shardstream.TokenDataset, context: Any) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: PLC0415

    from shardstream.integrations.torch_dataset import BatchStreamDataset  # noqa: PLC0415

    def loader_of(stream: shardstream.BatchStream) -> StatefulDataLoader[Any]:
        return StatefulDataLoader(
            BatchStreamDataset(stream),
            batch_size=None,
            num_workers=1,
            multiprocessing_context=context,
            timeout=HANGS_S,
        )

    with stream_of(dataset) as stream, stream_of(dataset) as resumed, stream_of(dataset) as expected:
        loader = loader_of(stream)
        first = batches_of(loader)
        state = loader.state_dict()
        del loader
        resumed_loader = loader_of(resumed)
        resumed_loader.load_state_dict(state)
        assert first == batches_of(expected)
        assert batches_of(resumed_loader) == batches_of(expected)


def check_refused(dataset: shardstream.TokenDataset, context: Any) -> None:
    from torch.utils.data import DataLoader  # noqa: PLC0415

    from shardstream.integrations.torch_dataset import BatchStreamDataset  # noqa: PLC0415

    with stream_of(dataset) as stream:
        loader = DataLoader(
            BatchStreamDataset(stream), batch_size=None, num_workers=2, multiprocessing_context=context, timeout=HANGS_S
        )
        with pytest.raises(ValueError, match="num_workers is 2, and each worker would read every batch of the stream"):
            next(iter(loader))


def main() -> None:
    place, method, job, *reading = sys.argv[1:]
    if job != "dataset":
        multiprocessing.set_forkserver_preload(["torch"])  # once, not in every child
    checks = {
        "dataset": check_dataset,
        "stream": check_stream,
        "loader": check_loader,
        "stateful": check_stateful,
        "refused": check_refused,
    }
    with shardstream.open(place, cache_dir=False if reading == ["ranges"] else None) as dataset:
        dataset[:]
        if dataset.cache is not None:
            dataset.close()
            dataset.cache.evict(down_to_bytes=0)
        checks[job](dataset, multiprocessing.get_context(method))
    print("read")


if __name__ == "__main__":
    main()
