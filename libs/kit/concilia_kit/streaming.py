"""One HTTP/1.1 connection for large bodies: files are sent by the kernel where the line is plain TCP, answers read in
pieces.

`httpx` moves a megabyte with five times the work. What a client of it was made with holds here too: its address, its
headers and hooks, its way to sign in, the proxies of the environment.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from concilia_kit.problems import Problem
from concilia_kit.storedfile import StoredFile

SILENCE_SECONDS = 60.0
PIECE = 256 * 1024
_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 1.0  # between two calls of `check` while the line is silent
_MAX_PROBLEM = 64 * 1024
_MAX_SENDFILE = 2**20

Check = Callable[[], None]

LINE_ERRORS = (OSError, http.client.HTTPException)
"""What a method here raises when the line breaks, or nothing moves for `SILENCE_SECONDS`."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of an open file: where they begin and how many there are."""

    file: StoredFile
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's status and headers; its body is still on the line."""

    status: int
    headers: httpx.Headers


class Line:
    """A connection to the service of an `httpx.Client`, made when it is needed and made anew after an error.

    `check` is called every second or megabyte and may raise to stop; `moved` is told of bytes of bodies as they go out.
    A context manager. Not thread-safe.
    """

    def __init__(self, to: httpx.Client, check: Check, moved: Callable[[int], None] = lambda _count: None) -> None:
        self._to = to
        self._check = check
        self._moved = moved
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._spent = False  # what is left of a body would be taken for the next request

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        if self._response is not None:
            self._response.close()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._response = None

    def ask(self, method: str, path: str, headers: dict[str, str], body: Part | None = None) -> Answer:
        """Send a request and read the answer's head; signs in anew, once, where the client's way to do so does.

        Raises `Problem` for an answer of 400 and above, and `LINE_ERRORS`.
        """
        request = self._to.build_request(method, path, headers={"Accept-Encoding": "identity", **headers})
        for hook in self._to.event_hooks["request"]:
            hook(request)
        signing_in = (self._to.auth or httpx.Auth()).sync_auth_flow(request)
        try:
            asked = next(signing_in)
            while True:
                response = self._exchange(asked, body)
                answer = Answer(response.status, httpx.Headers(response.getheaders()))
                try:
                    asked = signing_in.send(httpx.Response(answer.status, headers=answer.headers, request=asked))
                except StopIteration:
                    break
                self._drain(response)
        except BaseException:
            self.close()
            raise
        finally:
            signing_in.close()
        if answer.status >= 400:
            raise Problem.from_document(_document(self._drain(response)), answer.status, answer.headers)
        if response.length == 0 or method == "HEAD" or answer.status in (204, 304):
            self._drain(response)
        return answer

    def body(self) -> Iterator[bytes]:
        """The rest of the last answer, in pieces of `PIECE` bytes at most. Raises `LINE_ERRORS`."""
        response = self._response
        if response is None:
            return
        try:
            # The first piece may be in memory already, having come with the head.
            while piece := response.read1(PIECE):
                yield piece
                self._check()
                if response.length:
                    self._await(select.POLLIN)
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        except BaseException:
            self.close()
            raise
        self._drain(response)

    def _exchange(self, request: httpx.Request, body: Part | None) -> http.client.HTTPResponse:
        if self._response is not None:
            self.close()  # the last answer was not read to its end
        connection = self._connection = self._connection or _connect(self._to, request.url)
        connection.putrequest(request.method, _target(self._to, request.url), skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if body is None or name != "content-length":
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(body.count))
        connection.endheaders()
        assert connection.sock is not None
        connection.sock.settimeout(SILENCE_SECONDS)
        # What waits in the kernel is lost when the line breaks, and counts as moved long before it is.
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE)
        whole = body is None or self._send(connection, body)
        self._await(select.POLLIN)
        self._response = connection.getresponse()
        self._spent = not whole
        return self._response

    def _send(self, connection: http.client.HTTPConnection, body: Part) -> bool:
        """Whether all of it was sent, or the service answered before that."""
        sock = connection.sock
        assert sock is not None
        offset, end = body.offset, body.offset + body.count
        encrypted = isinstance(sock, ssl.SSLSocket)
        try:
            while offset < end:
                self._check()
                # On an encrypted line what can be read may be no answer.
                if not encrypted and self._await(select.POLLOUT | select.POLLIN) & select.POLLIN:
                    return False
                if encrypted or body.file.seal is not None:
                    piece = body.file.read(offset, min(PIECE, end - offset))
                    sock.sendall(piece)
                    count = len(piece)
                else:
                    count = os.sendfile(sock.fileno(), body.file.descriptor, offset, min(_MAX_SENDFILE, end - offset))
                if count == 0:
                    raise ValueError("the file became shorter while it was sent")
                offset += count
                self._moved(count)
        except (BrokenPipeError, ConnectionResetError):
            return False  # perhaps with a word of why, which is read next
        return True

    def _await(self, events: int) -> int:
        """Until the line is ready for one of `events`; those it is ready for. Raises `TimeoutError`."""
        connection = self._connection
        sock = None if connection is None else connection.sock
        if sock is None:  # the answer is the connection's last, and has the socket
            return 0
        if isinstance(sock, ssl.SSLSocket) and events == select.POLLIN and sock.pending():
            return events
        poll = select.poll()
        poll.register(sock, events)
        silent_since = time.monotonic()
        while not (found := poll.poll(_LOOK_SECONDS * 1000)):
            self._check()
            if time.monotonic() - silent_since > SILENCE_SECONDS:
                raise TimeoutError(f"nothing moved for {SILENCE_SECONDS:g} s")
        return found[0][1]

    def _drain(self, response: http.client.HTTPResponse) -> bytes:
        """What is left of an answer, at most what a problem may have; the connection is kept where that is all."""
        content = response.read(_MAX_PROBLEM)
        if response.length or response.will_close or self._spent:
            self.close()
        elif not response.isclosed():
            response.read()
        self._response = None
        return content


def _connect(to: httpx.Client, url: httpx.URL) -> http.client.HTTPConnection:
    """A connection to a URL's host, or to the proxy that the environment names for it."""
    proxy = _proxy(to, url)
    host, port = (url.host, url.port) if proxy is None else (proxy.host, proxy.port)
    if url.scheme == "https":
        context = getattr(to, "authorities", None) or httpx.create_ssl_context(trust_env=to.trust_env)
        encrypted = http.client.HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=context)
        if proxy is not None:
            encrypted.set_tunnel(url.host, url.port or 443)
        return encrypted
    return http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)


def _proxy(to: httpx.Client, url: httpx.URL) -> httpx.URL | None:
    if not to.trust_env or urllib.request.proxy_bypass(url.host):
        return None
    known = urllib.request.getproxies()
    named = known.get(url.scheme) or known.get("all")
    return httpx.URL(named if "://" in named else f"http://{named}") if named else None


def _target(to: httpx.Client, url: httpx.URL) -> str:
    """What stands after the method: the path, or all of the URL for a proxy that passes plain requests on."""
    if url.scheme == "http" and _proxy(to, url) is not None:
        return str(url)
    return url.raw_path.decode("ascii")


def _document(content: bytes) -> dict[str, object]:
    try:
        document = json.loads(content)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
