"""Which failures of a remote store pass, and how long to go on trying: the one policy for all of them.

obstore, s3fs and others each have a language of their own for the same answers of a server; here they become one.
"""

import enum
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    import tenacity

T = TypeVar("T")

# From the first failure of a request to the last try. A store that throttles, or whose front end restarts, is back
# within a minute; who waits longer has a job that hangs and does not say why.
RETRY_FOR_S: Final = 90.0
# Full jitter (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/): each pause is drawn
# from zero to a bound that doubles from a quarter of a second to ten seconds.
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 10.0
# Fresh credentials that are refused as well, so often, are no longer a matter of their age.
_MAX_RENEWALS: Final = 3

_OBSTORE_STATUS: Final = re.compile(r"status code: (\d{3})\b|\bstatus: (\d{3})\b")
# What obstore says of a connection that failed, and of a body that ended early.
_OBSTORE_NETWORK: Final = re.compile(
    r"HTTP error|error sending request|error decoding response body|request or response body error|timed out"
)
_XML_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
# S3's answer to two conditional puts at once: neither has won yet.
_CONFLICTS: Final = {"ConditionalRequestConflict", "OperationAborted"}
_EXPIRED: Final = re.compile(r"\b(ExpiredToken\w*|TokenRefreshRequired|RequestExpired)\b")
_BOTOCORE_NETWORK: Final = {
    "ConnectionError",  # not Python's; refused, or not made in time
    "FlexibleChecksumError",  # another byte on its way
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseStreamingError",
}
_BAD_REQUEST, _REQUEST_TIMEOUT, _TOO_MANY_REQUESTS, _SERVER_ERROR, _NOT_IMPLEMENTED = 400, 408, 429, 500, 501


class ShortBodyError(ConnectionError):
    """Fewer bytes came than were asked for."""


class Fault(enum.Enum):
    """What a failure means for whoever tries."""

    PASSING = "it may work at the next try"
    EXPIRED = "it may work with fresh credentials"
    MISSING = "there is no such object"
    DENIED = "the credentials do not suffice"
    EXISTS = "there is such an object already"
    LASTING = "it will not work"


def fault_of(error: BaseException) -> Fault:
    """What an error of obstore, s3fs, another fsspec filesystem or the network means."""
    chain = list(chain_of(error))
    text = "\n".join(map(str, chain))
    status = next(filter(None, map(status_of, chain)), None)
    codes = [code_of(link) for link in chain]
    # The answer to a HEAD has no body, and so no word of what is wrong: fresh credentials are worth a try.
    is_silent = status == _BAD_REQUEST and not any(code and not code.isdigit() for code in codes)
    if is_silent or _EXPIRED.search("\n".join([text, *codes])):
        return Fault.EXPIRED
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    if _CONFLICTS.intersection(codes):
        return Fault.PASSING
    if status == 404 or "FileNotFoundError" in names:  # noqa: PLR2004
        return Fault.MISSING
    if status == 409 or status == 412 or names & {"FileExistsError", "AlreadyExistsError", "PreconditionError"}:  # noqa: PLR2004, PLR1714
        return Fault.EXISTS
    if status in {401, 403} or names & {"PermissionError", "PermissionDeniedError", "UnauthenticatedError"}:
        return Fault.DENIED
    if status is not None:
        is_passing = status in {_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS} or (
            status >= _SERVER_ERROR and status != _NOT_IMPLEMENTED
        )
        return Fault.PASSING if is_passing else Fault.LASTING
    return Fault.PASSING if any(map(_is_of_the_network, chain)) else Fault.LASTING


def persistently(call: Callable[[], T], *, renew: Callable[[], object], failed: Callable[[BaseException], object]) -> T:
    """Call until it works, until it cannot work any more, or until the time is over.

    Args:
        call: What to try.
        renew: Called before the next try when credentials have expired.
        failed: Called with each error after which there is another try.

    Returns:
        What the call returned.

    Raises:
        BaseException: What the last try raised.
    """
    import tenacity  # noqa: PLC0415 - who reads in place never needs it

    num_renewals = 0

    def is_worth_a_try(error: BaseException) -> bool:
        nonlocal num_renewals
        fault = fault_of(error)
        if fault is Fault.EXPIRED and num_renewals < _MAX_RENEWALS:
            num_renewals += 1
            return True
        return fault is Fault.PASSING

    def before_sleep(state: "tenacity.RetryCallState") -> None:
        error = cast("BaseException", cast("tenacity.Future", state.outcome).exception())  # it has failed
        if fault_of(error) is Fault.EXPIRED:
            renew()
        failed(error)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_worth_a_try),
        stop=tenacity.stop_before_delay(RETRY_FOR_S),
        wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(call)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error tells of."""
    response = getattr(error, "response", None)  # botocore's ClientError
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    status = getattr(error, "status", None)  # aiohttp's ClientResponseError
    if isinstance(status, int):
        return status or None
    if found := _OBSTORE_STATUS.search(str(error)):
        return int(found[1] or found[2])
    return None


def code_of(error: BaseException) -> str:
    """S3's own word for an error, such as SlowDown; empty where there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    found = _XML_CODE.search(str(error))
    return found[1] if found else ""


def _is_of_the_network(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    package = type(error).__module__.partition(".")[0]
    # Another class until Python 3.11; by its name, for an eighth of importing shardstream would be to import asyncio.
    if package == "asyncio":
        return "TimeoutError" in kinds
    if package == "obstore":
        return bool(_OBSTORE_NETWORK.search(str(error)))
    if package == "aiohttp":
        return "ClientConnectionError" in kinds or "ClientPayloadError" in kinds
    return package == "botocore" and bool(kinds & _BOTOCORE_NETWORK)
