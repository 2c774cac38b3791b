"""What a library has to know of an object store: the seam between ``remote_store`` and the clients that it chooses from."""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the nearer one first


class Body(NamedTuple):
    """What a client returns for a GET."""

    data: memoryview
    version: str | None
    """What tells the object from another one of its name; None where the client does not say."""


class Client(Protocol):
    """What a library has to know of an object store. Its errors are its own; nothing is tried twice."""

    def get(self, name: str, start: int, stop: int) -> Body:
        """Bytes ``[start, stop)`` of an object, or fewer where it ends before."""
        ...

    def stream(self, name: str, start: int, stop: int) -> Iterator[memoryview]:
        """The same as pieces of about a MiB, as they arrive."""
        ...

    def size_version(self, name: str) -> tuple[int, str | None]:
        """Bytes of an object, and what tells it from another one of its name."""
        ...

    def names(self) -> list[str]:
        """Names of all objects."""
        ...

    def put(self, name: str, data: bytes, *, overwrite: bool) -> None:
        """Write a whole object at once, on condition that there is none unless ``overwrite``."""
        ...

    def create(self, name: str) -> "ClientUpload":
        """Begin an object that is written in parts."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object."""
        ...


class ClientUpload(Protocol):
    """An object on its way."""

    def write(self, data: memoryview) -> None:
        """Add bytes."""
        ...

    def commit(self) -> None:
        """Make it seen."""
        ...

    def abort(self) -> None:
        """Forget it; a second time does nothing."""
        ...


def s3_endpoint(option: str | None, profile: str | None = None) -> str | None:
    """Where an S3 is: as an option, the environment or a profile says, in this order; an empty one says nothing.

    Returns:
        A URL; None is AWS itself.

    Raises:
        ValueError: It has no scheme.
    """
    found = next(filter(None, [option, *map(os.environ.get, ENDPOINT_VARIABLES), profile]), None)
    if found is not None and not found.startswith(("http://", "https://")):
        raise ValueError(f"endpoint {found!r} has no scheme; wanted such as https://{found}")
    return found
