"""obstore as a client: S3, Google Cloud Storage and Azure.

Its store is used as it is, not through its fsspec class: that one copies each body once more, hands each request to an
event loop in another thread, and has no conditional put. Options are those of s3fs, gcsfs and adlfs all the same, so
that they mean one thing whichever client is installed.
"""

import contextlib
import functools
import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import obstore
from obstore.store import S3Store, from_url

from shardstream.storage.client import ENDPOINT_VARIABLES, Body, ClientUpload, s3_endpoint
from shardstream.storage.retry import RETRY_FOR_S

# A request that has not been answered, or whose bytes have stopped coming, for so long has failed.
_CLIENT_OPTIONS: Final = {"allow_http": True, "connect_timeout": "10s", "read_timeout": "30s", "timeout": "300s"}
# The allocator gives memory of this size out again and again; that of whole objects the kernel has to clear each time,
# which took longer than all else.
_CHUNK_BYTES: Final = 2**20
# S3 takes 10,000 parts of an object: 160 GB. Four at a time keep a fast network busy.
_PART_BYTES: Final = 2**24
_NUM_PARTS_AT_A_TIME: Final = 4
# How long credentials from botocore are used before it is asked again; it renews those that are about to expire.
_CREDENTIALS_FOR: Final = timedelta(minutes=5)
_S3_NAMES: Final = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "endpoint_url": "endpoint",
    "anon": "skip_signature",
    "region": "region",
}
_S3_CREDENTIALS: Final = ("access_key_id", "secret_access_key", "session_token")
_GOOGLE_NAMES: Final = {"token": "service_account", "anon": "skip_signature"}
_AZURE_NAMES: Final = {
    "account_name": "account_name",
    "account_key": "account_key",
    "sas_token": "sas_token",
    "tenant_id": "tenant_id",
    "client_id": "client_id",
    "client_secret": "client_secret",
    "anon": "skip_signature",
}


class ObstoreClient:
    """Objects under one URL.

    Args:
        url: Of S3, Google Cloud Storage or Azure.
        options: As the fsspec filesystem of that scheme takes them.

    Raises:
        ValueError: An option is not known, or an endpoint has no scheme.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        scheme, _, rest = url.partition("://")
        new_store: Callable[..., Any]
        if scheme in {"s3", "s3a"}:
            bucket, _, prefix = rest.partition("/")
            # Not from a URL: there obstore does not know the name of the setting that is nearer than the environment.
            new_store = functools.partial(S3Store, bucket, prefix=prefix or None)
            config, credentials = _s3_config(options)
        else:
            names = _GOOGLE_NAMES if scheme in {"gs", "gcs"} else _AZURE_NAMES
            new_store = functools.partial(from_url, f"{'gs' if scheme in {'gs', 'gcs'} else scheme}://{rest}")
            config, credentials = _renamed(options, names), None
        arguments: dict[str, Any] = {
            "config": config,
            "client_options": _CLIENT_OPTIONS,
            "credential_provider": credentials,
        }
        self._store = new_store(retry_config={"max_retries": 0}, **arguments)
        # The parts of an upload are tried again by whoever knows which of them have arrived.
        timeout = timedelta(seconds=RETRY_FOR_S)
        self._upload_store = new_store(retry_config={"max_retries": 10, "retry_timeout": timeout}, **arguments)

    def get(self, name: str, start: int, stop: int) -> Body:
        result = obstore.get(self._store, name, options={"range": (start, stop)})
        return Body(memoryview(result.bytes()), result.meta["e_tag"])

    def stream(self, name: str, start: int, stop: int) -> Iterator[memoryview]:
        result = obstore.get(self._store, name, options={"range": (start, stop)})
        return map(memoryview, result.stream(min_chunk_size=_CHUNK_BYTES))

    def size_version(self, name: str) -> tuple[int, str | None]:
        meta = obstore.head(self._store, name)
        return meta["size"], meta["e_tag"]

    def names(self) -> list[str]:
        return [meta["path"] for batch in obstore.list(self._store) for meta in batch]

    def put(self, name: str, data: bytes, *, overwrite: bool) -> None:
        obstore.put(self._store, name, data, mode="overwrite" if overwrite else "create", use_multipart=False)

    def create(self, name: str) -> ClientUpload:
        return _ObstoreUpload(self._upload_store, name)

    def delete(self, name: str) -> None:
        obstore.delete(self._store, name)


class _AbortedError(Exception):
    pass


class _ObstoreUpload:
    """A multipart upload: blocks go to a thread from which obstore takes them. It sends parts while more come."""

    def __init__(self, store: Any, name: str) -> None:
        self._blocks: queue.Queue[bytes | None] = queue.Queue(maxsize=2)  # None: no more
        self._is_aborted = False
        self._is_ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._send, args=(store, name), name=f"shardstream-put-{name}", daemon=True
        )
        self._thread.start()

    def write(self, data: memoryview) -> None:
        if data:  # nothing would be taken for the end
            self._put(bytes(data))  # the memory is the caller's again

    def commit(self) -> None:
        self._end()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        self._is_aborted = True
        self._end()

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            with contextlib.suppress(Exception):  # commit() raises it
                self._put(None)
        self._thread.join()

    def _put(self, block: bytes | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._blocks.put(block, timeout=1.0)  # a thread that has failed takes no more
            except queue.Full:
                continue
            return

    def _send(self, store: Any, name: str) -> None:
        try:
            obstore.put(
                store,
                name,
                self._parts(),
                use_multipart=True,
                chunk_size=_PART_BYTES,
                max_concurrency=_NUM_PARTS_AT_A_TIME,
            )
        except BaseException as error:  # noqa: BLE001 - raised in the writer's thread
            self._error = error

    def _parts(self) -> Iterator[bytes]:
        while block := self._blocks.get():
            yield block
        if self._is_aborted:
            raise _AbortedError


def _renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """fsspec's options as obstore calls them; an empty one is as if not given."""
    config = {}
    for option, value in options.items():
        if option not in names:
            raise ValueError(f"storage option {option!r} is not known; wanted one of {', '.join(names)}")
        if value not in {None, ""}:
            config[names[option]] = value
    return config


def _s3_config(options: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[], dict[str, Any]] | None]:
    """obstore's settings, and where its credentials come from if it does not find them by itself."""
    options = dict(options)
    profile = options.pop("profile", None)
    client_kwargs = dict(options.pop("client_kwargs", {}))
    for option, name in (("region_name", "region"), ("endpoint_url", "endpoint_url")):
        if option in client_kwargs:
            options[name] = client_kwargs.pop(option)
    if client_kwargs:
        raise ValueError(f"client_kwargs {', '.join(client_kwargs)}: not known; wanted region_name or endpoint_url")
    config = _renamed(options, _S3_NAMES)
    own = [config.get(name) for name in _S3_CREDENTIALS]
    in_environment = [os.environ.get(f"AWS_{name.upper()}") for name in _S3_CREDENTIALS]
    has_profile = profile is not None or "AWS_PROFILE" in os.environ
    credentials = None
    if own[0] is not None:
        credentials = _without_token(*own)
    elif config.get("skip_signature"):
        pass
    elif all(in_environment[:2]) and not has_profile:
        credentials = _without_token(*in_environment)
    elif importlib.util.find_spec("botocore") is not None:
        config, credentials = _with_botocore(config, profile)
    return _with_endpoint(config), credentials


def _without_token(key: str | None, secret: str | None, token: str | None) -> Callable[[], dict[str, Any]] | None:
    """Key and secret without a token, or None where obstore would not add the environment's, another key's or empty."""
    if token or secret is None or "AWS_SESSION_TOKEN" not in os.environ:
        return None
    return lambda: {"access_key_id": key, "secret_access_key": secret, "token": None, "expires_at": None}


def _with_endpoint(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that leave obstore no endpoint to find by itself: one that is empty or has no scheme is a panic in its Rust."""
    variables = os.environ.keys() & set(ENDPOINT_VARIABLES)
    endpoint = s3_endpoint(config.get("endpoint"))
    if endpoint is None and variables:  # empty ones; it would go here if they were not there
        region = config.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        endpoint = f"https://s3.{region or 'us-east-1'}.amazonaws.com"
    if endpoint is None:
        return config
    # This variable would override the setting `endpoint`.
    name = "aws_endpoint_url_s3" if "AWS_ENDPOINT_URL_S3" in variables else "endpoint"
    return {**config, name: endpoint}


def _with_botocore(config: dict[str, Any], profile: str | None) -> tuple[dict[str, Any], Callable[[], dict[str, Any]]]:
    """Settings and credentials from wherever AWS's own tools take them: profiles, containers, machines, single sign-on."""
    from botocore.exceptions import NoCredentialsError  # noqa: PLC0415 - an extra's, and 60 ms
    from botocore.session import Session  # noqa: PLC0415

    session = Session(profile=profile)
    region = session.get_config_variable("region")
    endpoint = session.get_scoped_config().get("endpoint_url")
    if region and "region" not in config:
        config = {**config, "region": region}
    if endpoint := s3_endpoint(config.get("endpoint"), endpoint):
        config = {**config, "endpoint": endpoint}
    found = session.get_credentials()
    if found is None:
        raise NoCredentialsError

    def credentials() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(timezone.utc) + _CREDENTIALS_FOR,
        }

    return config, credentials
