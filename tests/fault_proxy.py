"""A reverse proxy before an S3 server that fails as object storage fails: by chance with a seed, counted, switchable.

Usage: fault_proxy.py UPSTREAM [--rate 0.3] [--faults 429,500,503] [--seed 0] ...

As a program it prints its port, serves until it is told to end (SIGTERM, SIGINT), and prints its counts as JSON.

==========  ==========================================================================================================
``429``     S3's error ``TooManyRequests``; the request does not reach the upstream. Nor do those of the next four.
``500``     ``InternalError``
``503``     ``SlowDown``
``403``     ``AccessDenied``
``404``     ``NoSuchKey``
``reset``   The connection is reset before the request reaches the upstream.
``lost``    The connection is reset after the upstream has done what it was asked: its answer is lost.
``stall``   Half of the body, then silence for ``stall_s``, then the connection is closed. Without a body: silence alone.
``short``   Half of the body that the headers promise, then the connection is closed.
``wrong``   One byte of the body is another one; length, ETag and checksums are the right object's.
==========  ==========================================================================================================

An answer without a body cannot be ``short`` or ``wrong``: it passes, and is recorded as what it is.
"""

import argparse
import http.client
import io
import itertools
import json
import random
import signal
import socket
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

S3_CODES = {
    "429": "TooManyRequests",
    "500": "InternalError",
    "503": "SlowDown",
    "403": "AccessDenied",
    "404": "NoSuchKey",
}
FAULTS = (*S3_CODES, "reset", "lost", "stall", "short", "wrong")
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
PIECE_BYTES = 2**18
UPSTREAM_TIMEOUT_S = 60


class Request(NamedTuple):
    """What was asked, and what came of it."""

    method: str
    path: str  # with its query
    range: str | None  # the header, such as "bytes=0-99"
    outcome: str  # the status that was sent, the fault's name, or "expired"
    num_bytes: int  # of the body that was sent


class FaultProxy:
    """Serves at ``endpoint_url`` what ``upstream`` serves, with faults. ``close()`` leaves no thread behind.

    The Host header passes as the client sent it, so that signatures stay valid.

    ``rates``, ``methods``, ``only``, ``delay_s`` and ``stall_s`` may be assigned while it runs.

    Args:
        upstream: Endpoint of the server behind it, such as "http://127.0.0.1:5000".
        rates: Probability of each fault, by its name; together at most 1. One random number decides on each request.
        seed: The same requests in the same order get the same faults.
        methods: Only these requests fail or wait.
        only: Only requests whose path contains this fail or wait.
        delay_s: How long a request waits before it is looked at.
        stall_s: How long ``stall`` is silent.
        expire_every: ``GET /credentials`` answers as the container endpoint of AWS does, with a new session token each
            time. A request with another token than the newest, or one that comes after this number of requests with
            it, gets 400 ``ExpiredToken``. The upstream must then ignore signatures, as moto does: it knows none of
            these credentials.

    Raises:
        ValueError: A fault has no such name, or the rates exceed 1.
    """

    def __init__(
        self,
        upstream: str,
        *,
        rates: Mapping[str, float] = MappingProxyType({}),
        seed: int = 0,
        methods: Collection[str] = METHODS,
        only: str = "",
        delay_s: float = 0.0,
        stall_s: float = 60.0,
        expire_every: int | None = None,
    ) -> None:
        parts = urlsplit(upstream)
        self.upstream = parts.hostname or "", parts.port or 80
        self.rates = rates
        self.methods = methods
        self.only = only
        self.delay_s = delay_s
        self.stall_s = stall_s
        self.expire_every = expire_every
        self.num_tokens = 0  # credentials handed out
        self.most_at_once = 0
        self.closing = threading.Event()
        self._num_uses = 0  # of the newest token
        self._requests: list[Request] = []
        self._served: set[_Handler] = set()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()

    @property
    def rates(self) -> Mapping[str, float]:
        return self._rates

    @rates.setter
    def rates(self, rates: Mapping[str, float]) -> None:
        if unknown := set(rates) - set(FAULTS):
            raise ValueError(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
        if sum(rates.values()) > 1:
            raise ValueError(f"the rates add up to {sum(rates.values())}, which is more than 1")
        self._rates = MappingProxyType(dict(rates))

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """All requests, as their answers began; those of ``/credentials`` are not among them."""
        with self._lock:
            return self._requests.copy()

    @property
    def num_bytes_sent(self) -> int:
        return sum(request.num_bytes for request in self.requests)

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What follows is the handlers' part. What they say of a request, they say before the client can know its end:
    # whoever got an answer finds it recorded.

    def draw(self) -> str | None:
        """The fault of the next request, if any."""
        rates = self.rates
        with self._lock:
            number = self._random.random()
        for name, bound in zip(rates, itertools.accumulate(rates.values()), strict=True):
            if number < bound:
                return name
        return None

    def new_token(self) -> str:
        with self._lock:
            self.num_tokens += 1
            self._num_uses = 0
            return f"token-{self.num_tokens}"

    def use_token(self, token: str | None) -> bool:
        """Whether a request with this token may pass."""
        if self.expire_every is None:
            return True
        with self._lock:
            self._num_uses += token == f"token-{self.num_tokens}"
            return token == f"token-{self.num_tokens}" and self._num_uses <= self.expire_every

    def enter(self, handler: "_Handler") -> None:
        with self._lock:
            self._served.add(handler)
            self.most_at_once = max(self.most_at_once, len(self._served))

    def leave(self, handler: "_Handler") -> None:
        with self._lock:
            self._served.discard(handler)

    def record(self, request: Request) -> int:
        with self._lock:
            self._requests.append(request)
            return len(self._requests) - 1

    def count(self, number: int, num_bytes: int) -> None:
        with self._lock:
            request = self._requests[number]
            self._requests[number] = request._replace(num_bytes=request.num_bytes + num_bytes)


class _Server(socketserver.ThreadingTCPServer):
    """Daemon threads, and yet all of them have ended after ``server_close``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request, client_address) -> None:
        thread = threading.Thread(target=self._serve, args=[request, client_address], daemon=True)
        self._connections[thread] = request
        thread.start()

    def _serve(self, request, client_address) -> None:
        self.process_request_thread(request, client_address)
        del self._connections[threading.current_thread()]

    def server_close(self) -> None:
        super().server_close()
        for thread, connection in self._connections.copy().items():
            with suppress(OSError):  # its client has gone
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, with as many requests as it likes."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are written apart; the body shall not wait for an acknowledgement

    def handle(self) -> None:
        with suppress(OSError, http.client.HTTPException):  # the client has gone, or the upstream's answer broke off
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.proxy = self.server.proxy
        self.proxy.enter(self)
        try:
            if self.proxy.expire_every is not None and self.path == "/credentials":
                self._send_credentials()
            else:
                self._serve()
        finally:
            self.proxy.leave(self)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names that BaseHTTPRequestHandler looks for

    def _serve(self) -> None:
        fault = None
        if self.command in self.proxy.methods and self.proxy.only in self.path:
            self.proxy.closing.wait(self.proxy.delay_s)
            fault = self.proxy.draw()
        if fault == "reset":
            self._reset(fault)
        elif fault in S3_CODES:
            self._send_error(int(fault), S3_CODES[fault], fault)
        elif "chunked" in self.headers.get("Transfer-Encoding", ""):
            self._send_error(411, "MissingContentLength", "411")  # as S3 does
        elif not self.proxy.use_token(self.headers["x-amz-security-token"]):
            self._send_error(400, "ExpiredToken", "expired")
        else:
            self._pass_on(fault)

    def _pass_on(self, fault: str | None) -> None:
        with closing(http.client.HTTPConnection(*self.proxy.upstream, timeout=UPSTREAM_TIMEOUT_S)) as upstream:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            for piece in self._body():
                upstream.send(piece)
            answer = upstream.getresponse()
            if fault == "lost":
                self._reset(fault)
            else:
                self._send_answer(answer, fault)

    def _send_answer(self, answer: http.client.HTTPResponse, fault: str | None) -> None:
        own = {"connection", "keep-alive", "transfer-encoding"}  # each connection has its own
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in own]
        body: io.BufferedIOBase = answer
        num_bytes = answer.length
        if num_bytes is None:  # it comes in chunks, as lists and errors do: small enough to be held
            whole = answer.read()
            body, num_bytes = io.BytesIO(whole), len(whole)
            headers.append(("Content-Length", str(num_bytes)))
        if num_bytes == 0 and fault in ("short", "wrong"):
            fault = None
        number = self._record(fault or str(answer.status))
        if num_bytes or fault is None:
            self._send_head(answer.status, headers, is_all=num_bytes == 0)
        stop = num_bytes // 2 if fault in ("stall", "short") else num_bytes
        begin = 0
        while begin < stop:
            piece = bytearray(body.read(min(PIECE_BYTES, stop - begin)))
            if not piece:
                raise http.client.IncompleteRead(b"", stop - begin)
            if fault == "wrong" and begin <= stop // 2 < begin + len(piece):
                piece[stop // 2 - begin] ^= 1
            begin += len(piece)
            self.proxy.count(number, len(piece))
            if begin == num_bytes:
                self.proxy.leave(self)
            self.wfile.write(piece)
        if fault == "stall":
            self.proxy.closing.wait(self.proxy.stall_s)
        if fault in ("stall", "short"):
            self.close_connection = True

    def _send_error(self, status: int, code: str, outcome: str) -> None:
        """An error in S3's words; the connection stays open."""
        for _ in self._body():
            pass
        xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>Injected</Message></Error>'
        self._record(outcome, 0 if self.command == "HEAD" else len(xml))
        self._send_whole(status, "application/xml", xml)

    def _send_credentials(self) -> None:
        expiration = datetime.now(timezone.utc) + timedelta(hours=1)
        credentials = {
            "AccessKeyId": "accesskey1",
            "SecretAccessKey": "secretkey1",
            "Token": self.proxy.new_token(),
            "Expiration": f"{expiration:%Y-%m-%dT%H:%M:%SZ}",
        }
        self._send_whole(200, "application/json", json.dumps(credentials))

    def _send_whole(self, status: int, content_type: str, body: str) -> None:
        self._send_head(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))], is_all=True)
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def _send_head(self, status: int, headers: Iterable[tuple[str, str]], *, is_all: bool) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if is_all:
            self.proxy.leave(self)
        self.end_headers()

    def _reset(self, fault: str) -> None:
        self._record(fault)
        self.proxy.leave(self)
        # Closed at once and with all that refers to it: the server would say goodbye first, which is no reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def _record(self, outcome: str, num_bytes: int = 0) -> int:
        return self.proxy.record(Request(self.command, self.path, self.headers["Range"], outcome, num_bytes))

    def _body(self) -> Iterator[bytes]:
        """What the client sends, in pieces."""
        remaining = int(self.headers.get("Content-Length", 0))
        while remaining:
            piece = self.rfile.read(min(PIECE_BYTES, remaining))
            if not piece:
                raise ConnectionAbortedError
            remaining -= len(piece)
            yield piece


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A reverse proxy before an S3 server that fails as object storage fails."
    )
    parser.add_argument("upstream", help="such as http://127.0.0.1:5000")
    parser.add_argument("--rate", type=float, default=0.0, help="probability that a request fails")
    parser.add_argument("--faults", default="429,500,503,reset,stall,short", help="among which the rate is divided")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS), help="of the requests that fail or wait")
    parser.add_argument("--only", default="", help="part of the path of the requests that fail or wait")
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--stall-s", type=float, default=60.0)
    parser.add_argument("--expire-every", type=int, help="requests per session token; see GET /credentials")
    options = vars(parser.parse_args())
    faults, rate = options.pop("faults").split(","), options.pop("rate")
    options["methods"] = options["methods"].split(",")

    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(
        signal.SIG_BLOCK, ends
    )  # here and in the threads that are started now, so that sigwait gets them
    with FaultProxy(rates=dict.fromkeys(faults, rate / len(faults)), **options) as proxy:
        print(proxy.port, flush=True)
        signal.sigwait(ends)
        outcomes = Counter(request.outcome for request in proxy.requests)
        counts = {"num_requests": outcomes.total(), "num_bytes_sent": proxy.num_bytes_sent}
        print(json.dumps({**counts, "most_at_once": proxy.most_at_once, "outcomes": outcomes}))


if __name__ == "__main__":
    main()
