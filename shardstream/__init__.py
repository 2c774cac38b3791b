"""Sharded, streaming token datasets: tokens to shards, shards to batches of training samples.

Importing this opens nothing, starts nothing and reads no environment variable; torch is imported by the first call
that makes a tensor.
"""

from shardstream import errors
from shardstream.errors import FormatError, IntegrityError, ResumeError, ShardstreamError, StorageError
from shardstream.format.manifest import Manifest, ShardEntry, TokenizerIdentity
from shardstream.ingest.adopt import adopt
from shardstream.ingest.pipeline import TokenizeProgress, tokenize
from shardstream.read.side_files import SourceDocument
from shardstream.read.token_dataset import ShardProblem, TokenDataset, VerifyReport
from shardstream.read.token_dataset import open_dataset as open  # noqa: A004 - `shardstream.open` reads as `gzip.open` does
from shardstream.storage.cache import CachedShard, ShardCache
from shardstream.stream.batch_stream import BatchStream, StreamStats
from shardstream.stream.get_batch import get_batch
from shardstream.write.copy import copy
from shardstream.write.dataset_writer import DatasetWriter
from shardstream.write.merge import merge

__all__ = [
    "BatchStream",
    "CachedShard",
    "DatasetWriter",
    "FormatError",
    "IntegrityError",
    "Manifest",
    "ResumeError",
    "ShardCache",
    "ShardEntry",
    "ShardProblem",
    "ShardstreamError",
    "SourceDocument",
    "StorageError",
    "StreamStats",
    "TokenDataset",
    "TokenizeProgress",
    "TokenizerIdentity",
    "VerifyReport",
    "adopt",
    "copy",
    "errors",
    "get_batch",
    "merge",
    "open",
    "tokenize",
]
