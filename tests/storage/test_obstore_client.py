"""Options and environment mean one thing, whichever client is installed."""

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import obstore
import pytest

from shardstream.errors import StorageError
from shardstream.storage import obstore_client as module
from shardstream.storage.obstore_client import ObstoreClient
from shardstream.storage.remote_store import RemoteStore
from tests.storage.shards import random_bytes

DATA = random_bytes(100)


@pytest.fixture
def url(s3) -> str:
    """A prefix that holds DATA, for everybody to read, under the name "object"."""
    s3.client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/object", Body=DATA, ACL="public-read")
    return str(s3.url)


def read(url: str, **options: Any) -> bytes:
    return RemoteStore(url, options).get("object", max_bytes=1000)


class TestOptionsAndEnvironment:
    """Promise of the storage options: obstore and s3fs take the same."""

    def test_options(self, client, s3, url) -> None:
        """Key, secret, endpoint and region as options of their own; None is as if not given."""
        server = s3.server

        data = read(
            url, key=server.key, secret=server.secret, endpoint_url=s3.endpoint_url, region=server.region, token=None
        )

        assert data == DATA

    def test_client_kwargs(self, client, s3, url) -> None:
        """Endpoint and region may stand in client_kwargs."""
        kwargs = {"endpoint_url": s3.endpoint_url, "region_name": s3.server.region}

        assert read(url, key=s3.server.key, secret=s3.server.secret, client_kwargs=kwargs) == DATA

    def test_nobody(self, client, s3, url) -> None:
        """``anon`` reads what is public, without credentials."""
        assert read(url, anon=True, endpoint_url=s3.endpoint_url, region=s3.server.region) == DATA

    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
    def test_environment(self, name: str, client, s3, url, monkeypatch) -> None:
        """Endpoint, credentials and region come from the environment."""
        monkeypatch.setenv(name, s3.endpoint_url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.server.key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.server.secret)
        monkeypatch.setenv("AWS_DEFAULT_REGION", s3.server.region)

        assert read(url) == DATA

    @pytest.mark.parametrize("how", ["option", "variable"])
    @pytest.mark.parametrize("with_endpoint", ["profile", "environment", "option"])
    def test_profile(  # noqa: PLR0917 - pytest passes by name
        self, how: str, with_endpoint: str, client, s3, url, tmp_path: Path, monkeypatch
    ) -> None:
        """A profile of AWS's config file says who, where and in which region; the environment and options are nearer."""
        wrong = "http://127.0.0.1:9"
        endpoint = s3.endpoint_url if with_endpoint == "profile" else wrong
        (tmp_path / "config").write_text(
            f"[profile mine]\naws_access_key_id = {s3.server.key}\naws_secret_access_key = {s3.server.secret}\n"
            f"region = {s3.server.region}\nendpoint_url = {endpoint}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        options: dict[str, Any] = {}
        if how == "option":
            options["profile"] = "mine"
        else:
            monkeypatch.setenv("AWS_PROFILE", "mine")
        if with_endpoint == "environment":
            monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
        if with_endpoint == "option":
            options["endpoint_url"] = s3.endpoint_url

        assert read(url, **options) == DATA

    def test_token(self, client, moto_s3, fault_proxy) -> None:
        """A session token is sent along."""
        moto_s3.client.put_object(Bucket=moto_s3.bucket, Key=f"{moto_s3.prefix}/object", Body=DATA)
        proxy = fault_proxy(moto_s3.endpoint_url, expire_every=100)
        token = proxy.new_token()

        assert read(moto_s3.url, **moto_s3.storage_options_at(proxy.endpoint_url), token=token) == DATA

    def test_nobody_at_all(self, client, s3, url) -> None:
        """Without any credentials the error says that there are none."""
        with pytest.raises(StorageError, match="object: cannot read: Unable to locate credentials"):
            read(url, endpoint_url=s3.endpoint_url)

    def test_an_option_that_nobody_knows(self, client, url) -> None:
        """A misspelt option is refused by name, before any request, with those that there are."""
        with pytest.raises(StorageError, match="storage option 'sercet' is not known; wanted one of .*secret"):
            read(url, key="k", sercet="s")


def test_unknown_client_kwargs() -> None:
    """What obstore cannot do is not passed over in silence."""
    with pytest.raises(ValueError, match="client_kwargs verify: not known; wanted region_name or endpoint_url"):
        ObstoreClient("s3://bucket/x", {"client_kwargs": {"verify": False}})


@pytest.mark.parametrize(
    ("url", "options", "expected_url", "config"),
    [
        ("gs://b/p", {"token": "key.json"}, "gs://b/p", {"service_account": "key.json"}),
        ("gcs://b/p", {"anon": True}, "gs://b/p", {"skip_signature": True}),
        (
            "az://b/p",
            {"account_name": "n", "account_key": "k", "tenant_id": None},
            "az://b/p",
            {"account_name": "n", "account_key": "k"},
        ),
        ("abfs://b/p", {"sas_token": "s", "anon": False}, "abfs://b/p", {"sas_token": "s", "skip_signature": False}),
        ("s3a://b/p", {"anon": True}, "s3://b/p", {"skip_signature": True}),
    ],
)
def test_other_clouds(
    url: str, options: dict[str, Any], expected_url: str, config: dict[str, Any], monkeypatch
) -> None:
    """The options of gcsfs and adlfs are those of obstore by other names; there is no server of theirs to ask."""
    made: list[tuple[str, Any]] = []
    monkeypatch.setattr(module, "from_url", lambda url, *, config, **_: made.append((url, config)))

    ObstoreClient(url, options)

    assert made == [(expected_url, config)] * 2


@pytest.mark.parametrize("url", ["gs://bucket/x", "az://container/x"])
def test_options_of_other_clouds_that_nobody_knows(url: str) -> None:
    """A misspelt option is refused by name."""
    with pytest.raises(ValueError, match="storage option 'sercet' is not known; wanted one of .*anon"):
        ObstoreClient(url, {"sercet": "s"})


@pytest.mark.parametrize("url", ["gs://bucket/x", "az://container/x"])
def test_other_clouds_take_what_they_are_given(url: str) -> None:
    """obstore itself takes the translated options."""
    options: dict[str, Any] = {"anon": True}
    if url.startswith("az"):
        options |= {"account_name": "name"}

    assert ObstoreClient(url, options)._store is not None


def test_without_botocore_obstore_looks_by_itself(monkeypatch) -> None:
    """Where botocore is not installed, credentials come from where obstore finds them."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    assert module._s3_config({"region": "r"}) == ({"region": "r"}, None)


def test_botocore_does_not_override(monkeypatch, tmp_path: Path) -> None:
    """A region that is given is nearer than the profile's; credentials are asked for anew every few minutes."""
    (tmp_path / "config").write_text(
        "[default]\nregion = far\naws_access_key_id = k\naws_secret_access_key = s\nendpoint_url = http://far\n"
    )
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)

    config, credentials = module._s3_config({"region": "near"})

    assert config == {"region": "near", "endpoint": "http://far"}
    assert credentials is not None
    found = credentials()
    assert (found["access_key_id"], found["secret_access_key"], found["token"]) == ("k", "s", None)


class Failing:
    """What obstore's put does, for an upload that fails at once."""

    def __init__(self) -> None:
        self.may_fail = threading.Event()

    def __call__(self, *_: Any, **__: Any) -> None:
        self.may_fail.wait()
        raise OSError("no")


def test_a_write_that_waits_hears_of_the_failure(monkeypatch) -> None:
    """A writer that waits for its block to be taken is told when the upload fails, and does not wait for ever."""
    failing = Failing()
    monkeypatch.setattr(obstore, "put", failing)  # a server cannot be made to fail in just that moment
    upload = module._ObstoreUpload(None, "x")
    upload.write(memoryview(b"1"))
    upload.write(memoryview(b"2"))  # nothing takes them; there is room for two
    threading.Timer(0.1, failing.may_fail.set).start()

    with pytest.raises(OSError, match="no"):
        upload.write(memoryview(b"3"))
    with pytest.raises(OSError, match="no"):
        upload.commit()
    upload.abort()
