"""Any filesystem of fsspec as a client: s3fs where obstore is not installed, memory, http and dozens more."""

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from shardstream.storage.client import Body, ClientUpload, s3_endpoint
from shardstream.storage.retry import Fault, fault_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Seconds; botocore's own would have a dead connection hang for a minute, five times over.
_S3_TIMEOUTS: Final = {"connect_timeout": 10, "read_timeout": 30}
# Of a part of an upload; botocore's pauses double from half a second on average, which makes a minute of them all.
_MAX_PART_TRIES: Final = 8


class FsspecClient:
    """Objects under one URL.

    Args:
        url: Any URL that fsspec knows.
        options: What its filesystem takes.

    Raises:
        ValueError: fsspec does not know the scheme, or an S3's endpoint has none.
        ImportError: The scheme needs a package that is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        import fsspec  # noqa: PLC0415 - 50 ms that only its users pay

        scheme = url.partition("://")[0]
        arguments = dict(options)
        self._is_s3 = scheme in {"s3", "s3a"}
        if self._is_s3:
            if importlib.util.find_spec("s3fs") is None:
                raise ModuleNotFoundError(f"{scheme}:// needs a client of S3: pip install 'shardstream[s3]'")
            arguments = _s3fs_arguments(arguments)
        self._fs: AbstractFileSystem
        # Not an instance that others share: it would be in another process's state after a fork.
        is_shared = scheme == "memory"
        self._fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=not is_shared, **arguments)
        self._upload_fs = self._fs
        if self._is_s3:
            self._fs.retries = 1  # how often to try is our own policy's business
            # The parts of an upload are tried again by whoever knows which of them have arrived.
            retries = {"retries": {"total_max_attempts": _MAX_PART_TRIES}}
            arguments["config_kwargs"] = {**arguments["config_kwargs"], **retries}  # not the other one's dictionary
            self._upload_fs, _ = fsspec.core.url_to_fs(url, skip_instance_cache=True, **arguments)
        self._root = root.rstrip("/")

    def get(self, name: str, start: int, stop: int) -> Body:
        data: bytes = self._fs.cat_file(self._path(name), start=start, end=stop)
        return Body(memoryview(data), None)

    def stream(self, name: str, start: int, stop: int) -> Iterator[memoryview]:
        yield self.get(name, start, stop).data

    def size_version(self, name: str) -> tuple[int, str | None]:
        self._fs.invalidate_cache()
        return int(self._fs.info(self._path(name))["size"]), None

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        return [path[len(self._root) + 1 :] for path in self._fs.find(self._root)]

    def put(self, name: str, data: bytes, *, overwrite: bool) -> None:
        try:
            self._fs.pipe_file(self._path(name), data, mode="overwrite" if overwrite else "create")
        except Exception as error:
            # When a connection breaks, aiohttp sends a PUT again by itself, and does not say so: it may be our own.
            if not (self._is_s3 and fault_of(error) is Fault.EXISTS) or self.get(name, 0, len(data) + 1).data != data:
                raise

    def create(self, name: str) -> ClientUpload:
        return _FsspecUpload(self._upload_fs, self._path(name))

    def delete(self, name: str) -> None:
        self._fs.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class _FsspecUpload:
    def __init__(self, fs: "AbstractFileSystem", path: str) -> None:
        # An error on the way must not leave a cut object under the final name, as close() alone would.
        self._file = fs.open(path, "wb", autocommit=False)

    def write(self, data: memoryview) -> None:
        self._file.write(data)

    def commit(self) -> None:
        self._file.close()
        self._file.commit()

    def abort(self) -> None:
        self._file.discard()
        self._file.closed = True  # otherwise its destructor would write it after all


def _s3fs_arguments(options: dict[str, Any]) -> dict[str, Any]:
    import fsspec  # noqa: PLC0415 - imported already

    named = inspect.signature(fsspec.get_filesystem_class("s3").__init__).parameters
    known = sorted({*named, "profile", "region"} - {"self", "kwargs"})
    for option in options:  # s3fs would hand it on to botocore, which complains of an argument of its own
        if option not in known:
            raise ValueError(f"storage option {option!r} is not known; wanted one of {', '.join(known)}")
    region = options.pop("region", None)
    client_kwargs = dict(options.pop("client_kwargs", {}))
    if region is not None:
        client_kwargs["region_name"] = region
    if endpoint := s3_endpoint(options.pop("endpoint_url", None) or client_kwargs.pop("endpoint_url", None)):
        options["endpoint_url"] = endpoint
    config_kwargs = {**_S3_TIMEOUTS, "retries": {"total_max_attempts": 1}, **options.pop("config_kwargs", {})}
    return {**options, "client_kwargs": client_kwargs, "config_kwargs": config_kwargs, "use_listings_cache": False}
