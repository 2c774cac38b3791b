"""One policy: what each library's failures mean, and what is done about them."""

import asyncio
from typing import Any

import aiohttp
import pytest
import yarl
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
)
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from obstore.exceptions import GenericError

from shardstream.storage import retry
from shardstream.storage.retry import Fault, ShortBodyError, code_of, fault_of, persistently, status_of

OBSTORE = "Generic S3 error: Error performing GET http://127.0.0.1/b/o in 1ms - "


def botocore_error(status: int, code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def http_error(status: int) -> aiohttp.ClientResponseError:
    url = yarl.URL("http://127.0.0.1/")
    request = aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(request, (), status=status)


def obstore_error(text: str) -> GenericError:
    return GenericError(OBSTORE + text)


FAULTS: list[tuple[BaseException, Fault]] = [
    (botocore_error(503, "SlowDown"), Fault.PASSING),
    (botocore_error(500, "InternalError"), Fault.PASSING),
    (botocore_error(429, "TooManyRequests"), Fault.PASSING),
    (botocore_error(408, "RequestTimeout"), Fault.PASSING),
    (botocore_error(403, "AccessDenied"), Fault.DENIED),
    (botocore_error(401, "Unauthorized"), Fault.DENIED),
    (botocore_error(404, "NoSuchKey"), Fault.MISSING),
    (botocore_error(412, "PreconditionFailed"), Fault.EXISTS),
    (botocore_error(409, "BucketAlreadyExists"), Fault.EXISTS),
    (botocore_error(409, "OperationAborted"), Fault.PASSING),
    (botocore_error(409, "ConditionalRequestConflict"), Fault.PASSING),
    (botocore_error(400, "ExpiredToken"), Fault.EXPIRED),
    (botocore_error(403, "RequestExpired"), Fault.EXPIRED),
    (botocore_error(400, "400"), Fault.EXPIRED),  # a HEAD, whose answer has no body to say more
    (botocore_error(400, "InvalidArgument"), Fault.LASTING),
    (botocore_error(501, "NotImplemented"), Fault.LASTING),
    (botocore_error(301, "PermanentRedirect"), Fault.LASTING),
    (EndpointConnectionError(endpoint_url="http://x"), Fault.PASSING),  # while the server is started again
    (ConnectTimeoutError(endpoint_url="http://x"), Fault.PASSING),
    (ProxyConnectionError(proxy_url="http://x"), Fault.PASSING),
    (ReadTimeoutError(endpoint_url="http://x"), Fault.PASSING),
    (HTTPClientError(error="broken"), Fault.PASSING),
    (NoCredentialsError(), Fault.LASTING),
    (http_error(502), Fault.PASSING),
    (http_error(404), Fault.MISSING),
    (http_error(0), Fault.LASTING),
    (aiohttp.ServerDisconnectedError(), Fault.PASSING),
    (aiohttp.ClientPayloadError(), Fault.PASSING),
    (obstore_error("Server returned error response: status code: 503 Service Unavailable"), Fault.PASSING),
    (obstore_error("HTTP error: error sending request"), Fault.PASSING),
    (obstore_error("HTTP error: request or response body error"), Fault.PASSING),
    (obstore_error("status: 400 Bad Request: <Error><Code>ExpiredToken</Code></Error>"), Fault.EXPIRED),
    (obstore_error("something else"), Fault.LASTING),
    (ShortBodyError("3 bytes came"), Fault.PASSING),
    (ConnectionResetError(), Fault.PASSING),
    (TimeoutError(), Fault.PASSING),
    (asyncio.TimeoutError(), Fault.PASSING),
    (type("TimeoutError", (Exception,), {"__module__": "asyncio.exceptions"})(), Fault.PASSING),  # until Python 3.11
    (FileNotFoundError(), Fault.MISSING),
    (FileExistsError(), Fault.EXISTS),
    (PermissionError(), Fault.DENIED),
    (OSError("disk"), Fault.LASTING),
    (ValueError("status"), Fault.LASTING),
    (KeyboardInterrupt(), Fault.LASTING),
]


@pytest.mark.parametrize(("error", "fault"), FAULTS, ids=range(len(FAULTS)))
def test_what_an_error_means(error: BaseException, fault: Fault) -> None:
    """Each library's word for a failure is known, also when another error was raised from it."""
    outer = OSError("a library's own")
    outer.__cause__ = error

    assert fault_of(error) is fault
    assert fault_of(outer) is fault


@given(status=st.integers(100, 599), code=st.from_regex(r"\w{1,20}", fullmatch=True))
def test_a_status_is_read_from_every_library(status: int, code: str) -> None:
    """Status and S3's own word are found in an answer, whichever library tells of it, and nowhere else."""
    botocore = botocore_error(status, code)
    obstore = obstore_error(f"Server returned status: {status} X: <Error><Code>{code}</Code></Error>")

    assert (status_of(botocore), code_of(botocore)) == (status, code)
    assert (status_of(obstore), code_of(obstore)) == (status, code)
    assert status_of(http_error(status)) == status
    assert (status_of(ValueError("12345")), code_of(ValueError("12345"))) == (None, "")


def test_an_answer_without_a_status() -> None:
    """An error of botocore that tells no status has none."""
    error = ClientError({}, "GetObject")

    assert (status_of(error), code_of(error)) == (None, "")


class Calls:
    """Raises one error after another, then returns; counts what happened."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.num_calls = self.num_renewals = 0
        self.failures: list[BaseException] = []

    def __call__(self) -> str:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def renew(self) -> None:
        self.num_renewals += 1

    def persist(self) -> Any:
        return persistently(self, renew=self.renew, failed=self.failures.append)


@pytest.mark.usefixtures("quick_retries")
class TestPersistently:
    """It goes on as long as that makes sense."""

    def test_what_passes_is_tried_again(self) -> None:
        """Promise 10: failures that pass do not reach the caller; each is told, and asks for no credentials."""
        errors = [ConnectionResetError(), botocore_error(503, "SlowDown"), ShortBodyError()]
        calls = Calls(*errors)

        assert calls.persist() == "done"
        assert calls.failures == errors
        assert (calls.num_calls, calls.num_renewals) == (4, 0)

    @pytest.mark.parametrize(
        "error", [botocore_error(403, "AccessDenied"), FileNotFoundError(), ValueError(), KeyboardInterrupt()]
    )
    def test_what_lasts_fails_at_once(self, error: BaseException) -> None:
        """Promise 10: what another try cannot change is raised as it is, after one call."""
        calls = Calls(error)

        with pytest.raises(type(error)) as excinfo:
            calls.persist()

        assert excinfo.value is error
        assert (calls.num_calls, calls.failures) == (1, [])

    def test_expired_credentials_are_renewed(self) -> None:
        """Promise 10: credentials that expired are renewed before the next try."""
        calls = Calls(botocore_error(400, "ExpiredToken"), TimeoutError(), botocore_error(400, "ExpiredToken"))

        assert calls.persist() == "done"
        assert (calls.num_calls, calls.num_renewals) == (4, 2)

    def test_fresh_credentials_that_are_refused_too(self) -> None:
        """After three renewals it is not a matter of the credentials' age."""
        calls = Calls(*[botocore_error(400, "ExpiredToken")] * 9)

        with pytest.raises(ClientError):
            calls.persist()

        assert (calls.num_calls, calls.num_renewals) == (4, 3)

    @pytest.mark.usefixtures("few_retries")
    def test_what_does_not_pass_in_time(self) -> None:
        """When the time is over, the last failure is raised."""
        errors = [ConnectionResetError(str(number)) for number in range(10_000)]
        calls = Calls(*errors)

        with pytest.raises(ConnectionResetError) as excinfo:
            calls.persist()

        assert excinfo.value is errors[calls.num_calls - 1]
        assert 1 < calls.num_calls < 10_000


def test_pauses_grow_and_end() -> None:
    """A store that fails is asked less and less, at most every ten seconds, and for a minute and a half."""
    assert retry._FIRST_PAUSE_S < retry._LONGEST_PAUSE_S < retry.RETRY_FOR_S
