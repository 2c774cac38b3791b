"""Options and environment mean one thing, whichever client is installed."""

import importlib.util
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest

from shardstream.errors import StorageError
from shardstream.storage import obstore_client as module
from shardstream.storage.obstore_client import ObstoreClient
from shardstream.storage.remote_store import RemoteStore
from tests.conftest import forget_user
from tests.storage.shards import random_bytes

DATA = random_bytes(100)


@pytest.fixture
def url(s3) -> str:
    """A prefix that holds DATA, for everybody to read, under the name "object"."""
    s3.client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/object", Body=DATA, ACL="public-read")
    return str(s3.url)


class TokenServer(ThreadingHTTPServer):
    """Answers every GET with one byte, and keeps the session tokens that came along."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _TokenHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _TokenHandler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers["x-amz-security-token"])
        self.send_response(206)
        for name, value in {
            "Content-Length": "1",
            "Content-Range": "bytes 0-0/1",
            "ETag": '"1"',
            "Last-Modified": self.date_time_string(),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"1")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def token_server() -> Iterator[TokenServer]:
    server = TokenServer()
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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

    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
    def test_an_option_is_nearer(self, name: str, client, s3, url, monkeypatch) -> None:
        """An endpoint that is given as an option is asked, whatever the environment says."""
        monkeypatch.setenv(name, "http://127.0.0.1:9")

        assert read(url, **s3.storage_options) == DATA

    def test_the_other_scheme(self, client, s3, url) -> None:
        """s3a:// is s3://."""
        assert read(url.replace("s3://", "s3a://"), **s3.storage_options) == DATA

    @pytest.mark.parametrize("empty", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "option"])
    def test_an_empty_endpoint(self, empty: str, client, s3, url, monkeypatch) -> None:
        """An endpoint that is empty is as if not given: the next place is looked at."""
        other = "AWS_ENDPOINT_URL_S3" if empty == "AWS_ENDPOINT_URL" else "AWS_ENDPOINT_URL"
        monkeypatch.setenv(other, s3.endpoint_url)
        options = {"key": s3.server.key, "secret": s3.server.secret, "region": s3.server.region}
        if empty == "option":
            options["endpoint_url"] = ""
        else:
            monkeypatch.setenv(empty, "")

        assert read(url, **options) == DATA

    @pytest.mark.parametrize("where", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "option", "client_kwargs"])
    def test_an_endpoint_without_a_scheme(self, where: str, client, url, monkeypatch) -> None:
        """An endpoint without https:// is refused before any request, with one that would do."""
        wrong = "s3.example.com"
        options: dict[str, Any] = {"key": "k", "secret": "s"}
        if where == "option":
            options["endpoint_url"] = wrong
        elif where == "client_kwargs":
            options["client_kwargs"] = {"endpoint_url": wrong}
        else:
            monkeypatch.setenv(where, wrong)
        message = f"object: cannot read: endpoint '{wrong}' has no scheme; wanted such as https://{wrong}"

        with pytest.raises(StorageError, match=message):
            read(url, **options)

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


@pytest.mark.parametrize("empty", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("options", "environment", "region"),
    [
        ({"region": "mars-1"}, {"AWS_REGION": "venus-1"}, "mars-1"),
        ({}, {"AWS_REGION": "venus-1", "AWS_DEFAULT_REGION": "moon-1"}, "venus-1"),
        ({}, {"AWS_DEFAULT_REGION": "moon-1"}, "moon-1"),
        ({}, {}, "us-east-1"),
    ],
)
def test_where_every_endpoint_is_empty_aws_is_asked(
    options: dict[str, Any], environment: dict[str, str], region: str, empty: str, monkeypatch
) -> None:
    """An empty endpoint and no other is AWS itself in the region that is given; obstore takes the setting as it is."""
    forget_user(monkeypatch)
    for name, value in {empty: "", **environment}.items():
        monkeypatch.setenv(name, value)
    options = {"key": "k", "secret": "s", **options}

    config, _ = module._s3_config(options)

    endpoint = config.get("aws_endpoint_url_s3") or config["endpoint"]
    assert endpoint == f"https://s3.{region}.amazonaws.com"
    assert ObstoreClient("s3://bucket/x", options)._store is not None


OPTIONS = {"key": "k", "secret": "s"}
VARIABLES = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


@pytest.mark.parametrize(
    ("options", "variables", "sent"),
    [
        (OPTIONS | {"token": ""}, {}, None),
        (OPTIONS, {"AWS_SESSION_TOKEN": ""}, None),
        (OPTIONS, {"AWS_SESSION_TOKEN": "another key's"}, None),
        (OPTIONS | {"token": "mine"}, {"AWS_SESSION_TOKEN": "another key's"}, "mine"),
        ({}, VARIABLES | {"AWS_SESSION_TOKEN": ""}, None),
        ({}, VARIABLES | {"AWS_SESSION_TOKEN": "mine"}, "mine"),
    ],
)
def test_a_token_belongs_to_its_key(  # noqa: PLR0917 - pytest passes by name
    options: dict[str, str], variables: dict[str, str], sent: str | None, client, token_server, monkeypatch
) -> None:
    """A token is sent with the key that it came with, and an empty one is none."""
    forget_user(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    RemoteStore("s3://bucket/x", options | {"endpoint_url": token_server.url}).get_range("object", 0, 1)

    assert token_server.tokens == [sent]


def test_empty_credentials_are_none(client, s3, url, monkeypatch) -> None:
    """Empty variables are no credentials, and nobody asks without a signature because of them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")

    with pytest.raises(StorageError, match="object: cannot read: Unable to locate credentials"):
        read(url, endpoint_url=s3.endpoint_url)


def test_without_botocore_obstore_looks_by_itself(monkeypatch) -> None:
    """Where botocore is not installed, credentials come from where obstore finds them."""
    forget_user(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    assert module._s3_config({"region": "r"}) == ({"region": "r"}, None)


def test_botocore_does_not_override(monkeypatch, tmp_path: Path) -> None:
    """A region that is given is nearer than the profile's; credentials are asked for anew every few minutes."""
    (tmp_path / "config").write_text(
        "[default]\nregion = far\naws_access_key_id = k\naws_secret_access_key = s\nendpoint_url = http://far\n"
    )
    forget_user(monkeypatch)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    config, credentials = module._s3_config({"region": "near"})

    assert config == {"region": "near", "endpoint": "http://far"}
    assert credentials is not None
    found = credentials()
    assert (found["access_key_id"], found["secret_access_key"], found["token"]) == ("k", "s", None)


def test_a_profile_that_names_no_endpoint(monkeypatch, tmp_path: Path) -> None:
    """Where nobody names an endpoint, obstore finds AWS's own by the region."""
    forget_user(monkeypatch)
    (tmp_path / "config").write_text("[default]\nregion = far\naws_access_key_id = k\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    config, _ = module._s3_config({})

    assert config == {"region": "far"}


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
