"""Objects under one URI: on a local disk, in an object store, or behind any other fsspec URL.

A store knows names and bytes, nothing of datasets.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

from shardstream.storage.local_store import LocalStore
from shardstream.storage.remote_store import RemoteStore


class Upload(Protocol):
    """One object on its way: nobody sees it before :meth:`commit` returns."""

    def write(self, data: memoryview) -> None:
        """Add bytes; the memory is the caller's again when this returns."""
        ...

    def commit(self) -> None:
        """Make the object durable under its name, in place of what was there."""
        ...

    def abort(self) -> None:
        """Forget the object."""
        ...


class Store(Protocol):
    """Objects under one URI. Every failure is a StorageError that names the object."""

    uri: str

    @property
    def public_options(self) -> dict[str, Any]:
        """The storage options that are no secret."""
        ...

    def get(self, name: str, *, max_bytes: int) -> bytes:
        """A whole object; more than ``max_bytes`` bytes of it are never read."""
        ...

    def get_range(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes ``[start, stop)`` of an object, all of them."""
        ...

    def write_range(self, name: str, start: int, stop: int, write: Callable[[int, memoryview], object]) -> None:
        """Pass on bytes ``[start, stop)`` of an object while they arrive.

        Args:
            name: Name of the object.
            start, stop: Offsets, half-open.
            write: Called with an offset that counts from ``start``, and bytes. After a failure it begins again at 0.
        """
        ...

    def version(self, name: str) -> str | None:
        """What tells an object from another one of its name; None where the store does not say."""
        ...

    def open(self, name: str) -> BinaryIO:
        """An object, to be read from its beginning."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of an object, or None where there is none."""
        ...

    def names(self) -> list[str]:
        """Names of all objects, sorted; unfinished uploads are not among them."""
        ...

    def create(self, name: str) -> Upload:
        """Begin to write an object."""
        ...

    def put(self, name: str, data: bytes, *, overwrite: bool) -> None:
        """Write a whole object, atomically; without ``overwrite`` an object that exists is a StorageError."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...

    def delete_partials(self) -> None:
        """Remove what uploads left that never came to their end; only for who holds the lock."""
        ...

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold a lock that dies with the process; a StorageError when another process holds it.

        Object stores have none: there the conditional put of the manifest lets one writer win.
        """
        ...


def store_of(uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at a local path, a ``file://`` URL or any other URL that fsspec knows.

    Args:
        uri: Folder or URL prefix. Nothing is opened or created, and no client is made before it is needed.
        storage_options: As the fsspec filesystem takes them; credentials belong here or in the environment.

    Raises:
        ValueError: fsspec does not know the scheme.
        ImportError: The scheme needs a package that is not installed.
    """
    uri = os.fspath(uri)
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStore(uri)
    if scheme in {"file", "local"}:
        return LocalStore(rest)
    return RemoteStore(uri, storage_options or {})
