"""The public names as a user's type checker sees them; checked, never run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.checkpoint.stateful import Stateful

import shardstream

with shardstream.DatasetWriter(Path("dataset"), vocab_size=50257, eos_id=50256, tokenizer={"name": "gpt2"}) as writer:
    writer.append([1, 2, 3])
    writer.append(np.arange(3))
    writer.append(torch.arange(3))
    writer.append_document([1, 2])
    durable: int = writer.num_tokens + writer.num_documents
manifest: shardstream.Manifest = writer.manifest
digest: str = manifest.digest
name: str = manifest.shards[0].name

dataset: shardstream.TokenDataset = shardstream.open("dataset", storage_options={"anon": True})
length: int = len(dataset)
token: np.unsignedinteger[Any] = dataset[5]
tokens: NDArray[np.unsignedinteger[Any]] = dataset[10:20]
windows: NDArray[np.unsignedinteger[Any]] = dataset.windows(np.arange(4), 8)
windows = dataset.windows([1, 2, 3], 8, out=windows)
is_ok: bool = dataset.verify(num_threads=2, progress=lambda entry: entry.num_bytes).ok

inputs, targets = shardstream.get_batch(dataset, 4, 8, "cpu", generator=torch.Generator(), vocab_size=50257)
inputs, targets = shardstream.get_batch(np.arange(100, dtype=np.int32), 4, 8)
shape: torch.Size = inputs.shape

with shardstream.BatchStream(
    dataset, batch_size=4, context_length=8, order="block-shuffle", lanes=2, epochs=1
) as stream:
    for inputs, targets in stream:
        shape = inputs.shape + targets.shape
    state: dict[str, Any] = stream.state_dict()
    stream.load_state_dict(state)
    num_batches: int = len(stream)
    positions: NDArray[np.int64] = stream.positions
    stats: shardstream.StreamStats = stream.stats()
    share: float = stats.wait_share
stateful: Stateful = stream

document: shardstream.SourceDocument = dataset.document_at(0)
origin: tuple[int, str, str] = (document.start, document.source, document.key)
downloaded: tuple[shardstream.ShardEntry, ...] = dataset.download(stream.shards(), progress=lambda entry: entry.name)
cached: list[shardstream.CachedShard] = shardstream.ShardCache("cache", 10**9).shards()
copied: tuple[shardstream.ShardEntry, ...] = shardstream.copy(
    Path("dataset"), "s3://bucket/dataset", dst_storage_options={"profile": "me"}, progress=lambda num_bytes: num_bytes
)
adopted: shardstream.Manifest = shardstream.adopt(
    ["train.bin", Path("ids.npy")], "adopted", vocab_size=50257, dtype="uint16", progress=lambda num_bytes: num_bytes
)
merged: shardstream.Manifest = shardstream.merge(["all/part-0", Path("all/part-1")], "all", overwrite=True)
error: type[shardstream.ShardstreamError] = shardstream.errors.FormatError
