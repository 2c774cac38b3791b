"""Objects under a URL of an object store, or of any other fsspec filesystem.

What differs between the clients is in ``obstore_client`` and ``fsspec_client``; here is what they have in common: one
policy for failures, one language for errors, and a client that is made when it is first needed, in each process anew.
"""

import contextlib
import importlib.util
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeVar

from shardstream.errors import IntegrityError, ShardstreamError, StorageError
from shardstream.storage.client import Body, Client, ClientUpload
from shardstream.storage.retry import Fault, ShortBodyError, chain_of, code_of, fault_of, persistently, status_of

T = TypeVar("T")
_log = logging.getLogger("shardstream")

_OBSTORE_SCHEMES: Final = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
# Long enough that latency does not count, short enough that a few of them at a time spread over connections.
RANGE_BYTES: Final = 2**23
_RANGE_NOT_SATISFIABLE: Final = 416
# What may travel in a pickle: where, but not who. A secret must never leave the process.
_PUBLIC_OPTIONS: Final = {"anon", "endpoint_url", "profile", "region"}
_PUBLIC_CLIENT_KWARGS: Final = {"endpoint_url", "region_name"}

# obstore's threads do not come along when a process forks, and it waits for them for ever.
_obstore_pid: int | None = None


@dataclass
class Traffic:
    """What a store was asked for so far, in this process."""

    num_requests: int = 0
    num_retries: int = 0
    num_bytes: int = 0
    """Bytes of objects that were received."""


class RemoteStore:
    """Objects under a URL. Every failure is a StorageError that names the object.

    Args:
        uri: Any URL that fsspec knows.
        storage_options: As s3fs, gcsfs, adlfs or whichever fsspec filesystem takes them.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        self.uri = uri.rstrip("/")
        self.traffic = Traffic()
        self._options = dict(storage_options)
        self._client: Client | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        scheme = self.uri.partition("://")[0]
        if scheme not in _OBSTORE_SCHEMES:
            self._client = self._new_client()  # without a request; a scheme that nobody knows is refused at once

    @property
    def public_options(self) -> dict[str, Any]:
        """The options that are no secret."""
        options = {name: value for name, value in self._options.items() if name in _PUBLIC_OPTIONS}
        for_client = self._options.get("client_kwargs", {})
        if places := {name: value for name, value in for_client.items() if name in _PUBLIC_CLIENT_KWARGS}:
            options["client_kwargs"] = places
        return options

    def get(self, name: str, *, max_bytes: int) -> bytes:
        return bytes(self.body(name, max_bytes=max_bytes).data)

    def body(self, name: str, *, max_bytes: int) -> Body:
        """A whole object, cut at ``max_bytes``, and which version of it that is."""

        def get(client: Client) -> Body:
            try:
                body = client.get(name, 0, max_bytes)
            except Exception as error:
                if not _is_beyond_the_end(error):
                    raise
                return Body(memoryview(b""), client.size_version(name)[1])  # an empty object has no range at all
            self._count(num_bytes=len(body.data))
            return body

        return self._persistently("read", name, get)

    def get_range(self, name: str, start: int, stop: int) -> memoryview:
        if start == stop:
            return memoryview(b"")

        def get(client: Client) -> memoryview:
            data = client.get(name, start, stop).data
            self._check_length(client, name, len(data), start, stop)
            return data

        with self._truncation_told(name, start):
            return self._persistently("read", name, get)

    def write_range(self, name: str, start: int, stop: int, write: Callable[[int, memoryview], object]) -> None:
        def pass_on(client: Client) -> None:
            offset = 0
            for data in client.stream(name, start, stop):
                write(offset, data)
                offset += len(data)
            self._check_length(client, name, offset, start, stop)

        if start == stop:
            return
        with self._truncation_told(name, start):
            self._persistently("read", name, pass_on)

    def _check_length(self, client: Client, name: str, num_bytes: int, start: int, stop: int) -> None:
        self._count(num_bytes=num_bytes)
        if num_bytes > stop - start:
            raise StorageError(
                f"{self._where(name)}: cannot read: {num_bytes} bytes came where {stop - start} were asked for; the server "
                "takes no ranges, as a static file server should"
            )
        if num_bytes != stop - start:
            size = client.size_version(name)[0]
            if size < stop:
                raise IntegrityError(f"{self._where(name)}: truncated: {size} bytes, wanted {stop} at least")
            raise ShortBodyError(f"{num_bytes} bytes came, wanted {stop - start} from offset {start}")

    @contextlib.contextmanager
    def _truncation_told(self, name: str, start: int) -> Iterator[None]:
        """Tell an object that ends before a range from a store that fails."""
        try:
            yield
        except StorageError as error:
            if _is_beyond_the_end(error):
                raise IntegrityError(f"{self._where(name)}: truncated: it ends before byte {start}") from error
            raise

    def version(self, name: str) -> str | None:
        """What tells an object from another one of its name; None where the store does not say."""
        return self._persistently("read", name, lambda client: client.size_version(name)[1])

    def open(self, name: str) -> BinaryIO:
        size = self.size(name)
        if size is None:
            raise StorageError(f"{self._where(name)}: cannot read: there is no such file")
        return io.BufferedReader(_RangedFile(self, name, size), RANGE_BYTES)

    def size(self, name: str) -> int | None:
        try:
            return self._persistently("read", name, lambda client: client.size_version(name)[0])
        except StorageError as error:
            if fault_of(error) is Fault.MISSING:
                return None
            raise

    def names(self) -> list[str]:
        return sorted(self._persistently("list", "", lambda client: client.names()))

    def create(self, name: str) -> "_RemoteUpload":
        return _RemoteUpload(self._once("create", name, lambda client: client.create(name)), self._where(name))

    def put(self, name: str, data: bytes, *, overwrite: bool) -> None:
        was_lost = False  # whether a try may have worked although its answer never came

        def put(client: Client) -> None:
            nonlocal was_lost
            try:
                client.put(name, data, overwrite=overwrite)
            except Exception as error:
                if was_lost and fault_of(error) is Fault.EXISTS and client.get(name, 0, len(data) + 1).data == data:
                    return  # it did
                was_lost = was_lost or fault_of(error) is Fault.PASSING
                raise

        self._persistently("write", name, put)

    def delete(self, name: str) -> None:
        try:
            self._persistently("delete", name, lambda client: client.delete(name))
        except StorageError as error:
            if fault_of(error) is not Fault.MISSING:
                raise

    def delete_partials(self) -> None:
        """Nothing to do: an object store shows no unfinished upload."""

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        del name
        return contextlib.nullcontext()

    def _where(self, name: str) -> str:
        return f"{self.uri}/{name}".rstrip("/")

    def _once(self, action: str, name: str, call: Callable[[Client], T]) -> T:
        with translated(action, self._where(name)):
            return call(self._own_client())

    def _persistently(self, action: str, name: str, call: Callable[[Client], T]) -> T:
        def try_it() -> T:
            self._count(num_requests=1)
            return call(self._own_client())

        def failed(error: BaseException) -> None:
            self._count(num_retries=1)
            _log.warning("%s: cannot %s, trying again: %s", self._where(name), action, said(error))

        with translated(action, self._where(name)):
            return persistently(try_it, renew=self._forget_client, failed=failed)

    def _count(self, *, num_requests: int = 0, num_retries: int = 0, num_bytes: int = 0) -> None:
        with self._own_lock():
            self.traffic.num_requests += num_requests
            self.traffic.num_retries += num_retries
            self.traffic.num_bytes += num_bytes

    def _own_lock(self) -> threading.Lock:
        """The lock; in a forked child a new one, since a thread that no longer exists may hold the old."""
        if self._pid != os.getpid():
            self._lock = threading.Lock()
            self._client = None
            self._pid = os.getpid()
        return self._lock

    def _own_client(self) -> Client:
        with self._own_lock():
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _forget_client(self) -> None:
        """Have the next request ask for credentials anew."""
        with self._own_lock():
            self._client = None

    def _new_client(self) -> Client:
        global _obstore_pid  # noqa: PLW0603 - what obstore cannot undo is a fact of the process
        scheme = self.uri.partition("://")[0]
        if scheme in _OBSTORE_SCHEMES and importlib.util.find_spec("obstore") and _obstore_pid in {None, os.getpid()}:
            from shardstream.storage.obstore_client import ObstoreClient  # noqa: PLC0415 - an extra's

            _obstore_pid = os.getpid()
            return ObstoreClient(self.uri, self._options)
        from shardstream.storage.fsspec_client import FsspecClient  # noqa: PLC0415 - 50 ms that only its users pay

        return FsspecClient(self.uri, self._options)


class _RangedFile(io.RawIOBase):
    """An object as a file, read range by range, so that a failure in its middle costs one range."""

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._offset = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        return self._offset

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._offset + len(view), self._size)
        if stop <= self._offset:
            return 0
        data = self._store.get_range(self._name, self._offset, stop)
        view[: len(data)] = data
        self._offset = stop
        return len(data)


class _RemoteUpload:
    """A client's upload, its errors in our language."""

    def __init__(self, upload: ClientUpload, where: str) -> None:
        self._upload, self._where = upload, where

    def write(self, data: memoryview) -> None:
        with translated("write", self._where):
            self._upload.write(data)

    def commit(self) -> None:
        with translated("write", self._where):
            self._upload.commit()

    def abort(self) -> None:
        with contextlib.suppress(Exception):  # whoever gives up has an error to show already
            self._upload.abort()


def _is_beyond_the_end(error: BaseException) -> bool:
    """Whether a range was asked for that lies behind an object's last byte."""
    return _RANGE_NOT_SATISFIABLE in map(status_of, chain_of(error))


@contextlib.contextmanager
def translated(action: str, where: str) -> Any:
    """The one place where a library's error becomes ours."""
    try:
        yield
    except ShardstreamError:
        raise
    except Exception as error:
        fault = fault_of(error)
        codes = list(map(code_of, chain_of(error)))
        if fault is Fault.MISSING:
            what = "bucket" if "NoSuchBucket" in codes else "file"
            raise StorageError(f"{where}: cannot {action}: there is no such {what}") from error
        if fault is Fault.EXISTS and action == "write":
            raise StorageError(f"{where}: it exists already, and is left as it is") from error
        hint = {
            Fault.DENIED: "; check the credentials, and what they allow",
            Fault.EXPIRED: "; the credentials have expired, and fresh ones are refused too",
        }.get(fault, "")
        if "RequestTimeTooSkewed" in codes:
            hint = "; this machine's clock is wrong: set it"
        raise StorageError(f"{where}: cannot {action}: {said(error)}{hint}") from error


def said(error: BaseException) -> str:
    """What an error says, without the pages that some libraries add: S3's own words where it has any."""
    links = list(chain_of(error))
    for link in links:
        if (code := code_of(link)) and not code.isdigit():  # for a HEAD, botocore repeats the status
            status = status_of(link)
            return f"HTTP {status} {code}" if status else code
    for link in links:
        if status := status_of(link):
            return f"HTTP {status}"
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] != "None" else type(error).__name__
