"""What can go wrong, as a tree.

    ShardstreamError
    ├── FormatError      (ValueError)  a manifest that breaks the specification, an input that is not what its name says
    ├── IntegrityError                 bytes that are not the ones the manifest promises
    ├── StorageError     (OSError)     a place that cannot be read or written, or already holds something else
    └── ResumeError      (ValueError)  a run that cannot go on from the state it was given

A wrong argument is none of these: it is a plain ValueError, TypeError or IndexError.
"""


class ShardstreamError(Exception):
    """Anything that shardstream itself finds wrong."""


class FormatError(ShardstreamError, ValueError):
    """A manifest breaks the specification, or an input file is not what its name or its header says."""


class IntegrityError(ShardstreamError):
    """Bytes differ from what the manifest promises: a shard is missing, short, long or altered."""


class StorageError(ShardstreamError, OSError):
    """A place cannot be read or written, or already holds something that must not be replaced."""


class ResumeError(ShardstreamError, ValueError):
    """A run cannot go on from the state it was given; the message names the field that contradicts it."""
