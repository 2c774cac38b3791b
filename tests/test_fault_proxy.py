"""The proxy that other tests trust: each fault does what it says, and the counts are true."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests import fault_proxy as module
from tests.fault_proxy import FAULTS, FaultProxy

BODY = bytes(range(256)) * 4
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=anyone/20260101/us-east-1/s3/aws4_request"}  # enough for moto


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def connect(endpoint_url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(endpoint_url).netloc, timeout=10)


def ask(connection: http.client.HTTPConnection, method: str, path: str, **headers: str) -> Answer:
    """One request on a connection that stays open."""
    connection.request(method, path, body=BODY if method == "PUT" else None, headers={**SIGNED, **headers})
    response = connection.getresponse()
    return Answer(response.status, dict(response.getheaders()), response.read())


def await_requests(proxy: FaultProxy, num_requests: int) -> None:
    while len(proxy.requests) < num_requests:
        time.sleep(0.001)


@pytest.fixture
def path(moto_s3) -> str:
    """Of an object that holds BODY."""
    moto_s3.client.put_object(Bucket=moto_s3.bucket, Key="object", Body=BODY)
    return f"/{moto_s3.bucket}/object"


@pytest.fixture
def proxy(moto_s3, fault_proxy):
    return fault_proxy(moto_s3.endpoint_url)


@pytest.fixture
def connection(proxy):
    connection = connect(proxy.endpoint_url)
    yield connection
    connection.close()


def test_without_faults_signed_requests_pass(s3, fault_proxy) -> None:
    """Through the proxy an S3 client writes, lists, reads, looks at and deletes as it does without; signatures hold."""
    proxy = fault_proxy(s3.endpoint_url)
    client = s3.server.client_at(proxy.endpoint_url)
    large = BODY * 3000  # several pieces

    client.put_object(Bucket=s3.bucket, Key="a b/ü", Body=large)
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=s3.bucket)["Contents"]] == ["a b/ü"]
    assert client.get_object(Bucket=s3.bucket, Key="a b/ü")["Body"].read() == large
    assert client.get_object(Bucket=s3.bucket, Key="a b/ü", Range="bytes=1000-2023")["Body"].read() == large[1000:2024]
    assert client.head_object(Bucket=s3.bucket, Key="a b/ü")["ContentLength"] == len(large)
    client.delete_object(Bucket=s3.bucket, Key="a b/ü")
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket=s3.bucket, Key="a b/ü")
    client.close()

    assert [(request.method, request.outcome) for request in proxy.requests] == [
        ("PUT", "200"),
        ("GET", "200"),
        ("GET", "200"),
        ("GET", "206"),
        ("HEAD", "200"),
        ("DELETE", "204"),
        ("GET", "404"),
    ]
    assert proxy.most_at_once == 1


def test_an_answer_is_the_upstreams(proxy, moto_s3, path, connection) -> None:
    """Status, headers and body are those of the upstream; a range is recorded with the bytes that were sent."""
    direct = connect(moto_s3.endpoint_url)
    expected = ask(direct, "GET", path, Range="bytes=10-19")
    direct.close()

    answer = ask(connection, "GET", path, Range="bytes=10-19")

    for name in ("Connection", "Date", "x-amzn-requestid"):
        answer.headers.pop(name, None)
        expected.headers.pop(name, None)
    assert answer == expected
    assert answer.body == BODY[10:20]
    assert proxy.requests == [("GET", path, "bytes=10-19", "206", 10)]
    assert proxy.num_bytes_sent == 10


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("429", "TooManyRequests"),
        ("500", "InternalError"),
        ("503", "SlowDown"),
        ("403", "AccessDenied"),
        ("404", "NoSuchKey"),
    ],
)
def test_an_error_is_s3s(fault, code, proxy, path, connection) -> None:
    """An error comes with S3's code, without reaching the upstream, on a connection that stays open; HEAD has no body."""
    proxy.rates = {fault: 1.0}
    answer = ask(connection, "GET", path)
    put = ask(connection, "PUT", path + "-new")
    head = ask(connection, "HEAD", path)

    proxy.rates = {}
    assert ask(connection, "GET", path + "-new").status == 404

    assert f"<Code>{code}</Code>".encode() in answer.body
    assert (answer.status, put.status, head.status) == (int(fault),) * 3
    assert head.body == b""
    assert [request.outcome for request in proxy.requests] == [fault, fault, fault, "404"]
    assert proxy.requests[0].num_bytes == len(answer.body)


@pytest.mark.parametrize(("fault", "is_done"), [("reset", False), ("lost", True)])
def test_a_reset(fault, is_done, proxy, path, connection) -> None:
    """The connection is reset; "reset" keeps the request from the upstream, "lost" loses the answer only."""
    proxy.rates = {fault: 1.0}
    with pytest.raises(ConnectionResetError) as excinfo:
        ask(connection, "PUT", path + "-new")
    assert excinfo.type is ConnectionResetError  # and not RemoteDisconnected, the orderly end without an answer

    proxy.rates = {}
    connection.close()
    assert ask(connection, "GET", path + "-new").status == (200 if is_done else 404)
    assert proxy.requests[0] == ("PUT", path + "-new", None, fault, 0)


def test_a_short_body(proxy, path, connection) -> None:
    """Half of the promised bytes come, then the end of the connection; an answer without a body passes."""
    proxy.rates = {"short": 1.0}

    assert ask(connection, "HEAD", path).status == 200
    with pytest.raises(http.client.IncompleteRead) as excinfo:
        ask(connection, "GET", path)

    assert excinfo.value.partial == BODY[:512]
    assert excinfo.value.expected == 512
    assert [(request.outcome, request.num_bytes) for request in proxy.requests] == [("200", 0), ("short", 512)]


def test_a_wrong_body(proxy, path, connection, moto_s3) -> None:
    """One byte differs, at the right length and with the ETag of the right object."""
    proxy.rates = {"wrong": 1.0}

    answer = ask(connection, "GET", path)

    assert len(answer.body) == len(BODY)
    assert sum(a != b for a, b in zip(answer.body, BODY, strict=True)) == 1
    assert answer.headers["ETag"] == moto_s3.client.head_object(Bucket=moto_s3.bucket, Key="object")["ETag"]
    assert [request.outcome for request in proxy.requests] == ["wrong"]


@pytest.mark.parametrize(("method", "num_bytes"), [("GET", 512), ("HEAD", 0), ("PUT", 0)])
def test_a_stall(method, num_bytes, proxy, path, connection) -> None:
    """After half of the body, or before an answer that has none, nothing more comes."""
    proxy.rates = {"stall": 1.0}

    connection.request(method, path, body=BODY if method == "PUT" else None, headers=SIGNED)
    if num_bytes:
        response = connection.getresponse()
        assert response.read(num_bytes) == BODY[:num_bytes]
        response.close()
    await_requests(proxy, 1)
    connection.sock.settimeout(0.1)

    with pytest.raises(TimeoutError):
        connection.sock.recv(1)
    assert proxy.requests == [(method, path, None, "stall", num_bytes)]


def test_a_stall_ends(proxy, path, connection) -> None:
    """After stall_s the connection is closed."""
    proxy.rates, proxy.stall_s = {"stall": 1.0}, 0.01

    with pytest.raises(http.client.IncompleteRead):
        ask(connection, "GET", path)


def test_a_seed_repeats(moto_s3, path, fault_proxy) -> None:
    """The same seed gives the same faults, another one others, at about the rates that were asked for."""

    def outcomes(seed: int) -> list[str]:
        proxy = fault_proxy(moto_s3.endpoint_url, rates={"503": 0.3, "429": 0.2}, seed=seed)
        connection = connect(proxy.endpoint_url)
        for _ in range(60):
            ask(connection, "GET", path)
        connection.close()
        return [request.outcome for request in proxy.requests]

    first = outcomes(1)

    assert first == outcomes(1) != outcomes(2)
    assert set(first) == {"503", "429", "200"}
    assert Counter(first)["200"] == pytest.approx(30, abs=15)


def test_only_some_requests_fail(proxy, path, connection) -> None:
    """Faults keep to the methods and paths that they are meant for."""
    proxy.rates, proxy.methods, proxy.only = {"503": 1.0}, {"GET"}, "object"

    statuses = [ask(connection, *request).status for request in (("GET", path), ("HEAD", path), ("GET", "/"))]

    assert statuses == [503, 200, 200]


def test_most_at_once(proxy, path) -> None:
    """Requests that are served at the same time are counted."""
    proxy.rates = {"stall": 1.0}
    connections = [connect(proxy.endpoint_url) for _ in range(5)]

    for connection in connections:
        connection.request("GET", path, headers=SIGNED)
    await_requests(proxy, 5)

    assert proxy.most_at_once == 5
    for connection in connections:
        connection.close()


def test_one_after_the_other(proxy, path) -> None:
    """A request whose answer has come is not served any more."""
    for method in ["GET", "HEAD"] * 25:
        connection = connect(proxy.endpoint_url)
        ask(connection, method, path)
        assert not proxy._served
        connection.close()

    assert proxy.most_at_once == 1
    assert len(proxy.requests) == 50


def test_tokens_expire(moto_s3, path, fault_proxy) -> None:
    """A token is good for so many requests, unless there is a newer one; then S3's ExpiredToken comes."""
    proxy = fault_proxy(moto_s3.endpoint_url, expire_every=2)
    connection = connect(proxy.endpoint_url)

    def credentials() -> Any:
        return json.loads(ask(connection, "GET", "/credentials").body)

    def status(token: str) -> int:
        return ask(connection, "GET", path, **{"x-amz-security-token": token}).status

    first = credentials()
    assert [status(first["Token"]) for _ in range(3)] == [200, 200, 400]
    assert b"<Code>ExpiredToken</Code>" in ask(connection, "GET", path).body
    second, third = credentials(), credentials()
    assert [status(second["Token"]), status(third["Token"])] == [400, 200]
    connection.close()

    left = datetime.fromisoformat(first["Expiration"].replace("Z", "+00:00")) - datetime.now(timezone.utc)
    assert 3500 < left.total_seconds() <= 3600
    assert set(first) == {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"}
    assert [request.outcome for request in proxy.requests] == ["200", "200", "expired", "expired", "expired", "200"]
    assert proxy.num_tokens == 3


def test_an_sdk_finds_the_credentials(moto_s3, fault_proxy, monkeypatch) -> None:
    """AWS_CONTAINER_CREDENTIALS_FULL_URI leads botocore to a token, which it sends."""
    import botocore.session  # noqa: PLC0415

    proxy = fault_proxy(moto_s3.endpoint_url, expire_every=2)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", proxy.endpoint_url + "/credentials")
    client = botocore.session.Session().create_client("s3", endpoint_url=proxy.endpoint_url, region_name="us-east-1")

    client.list_objects_v2(Bucket=moto_s3.bucket)
    client.list_objects_v2(Bucket=moto_s3.bucket)
    with pytest.raises(client.exceptions.ClientError, match="ExpiredToken"):
        client.list_objects_v2(Bucket=moto_s3.bucket)
    client.close()


def test_close_leaves_no_thread(moto_s3, path) -> None:
    """Threads of idle connections and of stalls end with the proxy, at once, and its port is free."""
    before = threading.active_count()
    with FaultProxy(moto_s3.endpoint_url, rates={"stall": 1.0}, only="object") as proxy:
        idle, stalled = connect(proxy.endpoint_url), connect(proxy.endpoint_url)
        ask(idle, "GET", "/")
        stalled.request("GET", path, headers=SIGNED)
        await_requests(proxy, 2)
        assert threading.active_count() > before + 2

    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        connect(proxy.endpoint_url).connect()
    idle.close()
    stalled.close()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"504": 0.1}, f"there is no fault 504; there are {', '.join(FAULTS)}"),
        ({"503": 0.6, "500": 0.6}, "more than 1"),
    ],
)
def test_wrong_rates(rates, message) -> None:
    """A fault that does not exist and rates above 1 are refused."""
    with pytest.raises(ValueError, match=message):
        FaultProxy("http://127.0.0.1:1", rates=rates)


def test_the_program(moto_s3, path) -> None:
    """As a program it prints its port, fails at the rate that it was told, and ends with its counts."""
    command = [sys.executable, str(Path(module.__file__)), moto_s3.endpoint_url, "--rate", "1", "--faults", "503,429"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        connection = connect(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        statuses = {ask(connection, "GET", path).status for _ in range(20)}
        connection.close()
        process.send_signal(signal.SIGTERM)
        counts = json.loads(process.stdout.read())

    assert statuses == {503, 429}
    assert counts["num_requests"] == 20
    assert counts["outcomes"].keys() == {"503", "429"}
    assert counts["most_at_once"] == 1
