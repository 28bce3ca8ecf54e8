"""One HTTP request with one deadline for all of it, a limit on the size of the reply, and an end as soon as it is asked for."""

from __future__ import annotations

import functools
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

MAX_BYTES = 8 * 2**20
"""Of a reply; twenty log-probabilities for each of 2,000 tokens take less than half."""
MAX_DEPTH = 50
"""Levels of nesting in a reply; a chat completion with log-probabilities has 7."""

_ERROR_BYTES = 4096
_DECODING = threading.Lock()  # one at a time: decoded, a hostile reply takes twenty times its room


class OversizedReply(OSError):
    """A reply is larger or nested deeper than any chat completion is."""


class Halt:
    """A flag that many threads watch; setting it also cuts the connections that they are waiting for."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._open: set[Connection] = set()

    def set(self) -> None:
        """Raise the flag and cut every connection."""
        with self._lock:
            self._event.set()
            for each in self._open:
                each.cut()

    def is_set(self) -> bool:
        """Whether it is raised."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the flag, at most so long; returns whether it is raised."""
        return self._event.wait(seconds)

    def add(self, connection: Connection) -> None:
        """Cut this connection too when the flag is raised."""
        with self._lock:
            self._open.add(connection)
            if self._event.is_set():
                connection.cut()

    def remove(self, connection: Connection) -> None:
        """This connection is done."""
        with self._lock:
            self._open.discard(connection)


class Connection:
    """The connection of one request: from the first to the last byte it has so many seconds, however they are spent.

    A socket's own time-out starts again with every byte. Here a timer cuts the connection, through a second handle to it, so
    that TLS handshakes, proxies, endless headers and replies that drip are cut alike.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds
        self.is_cut = False
        self._handle: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self.cut)
        self._timer.daemon = True
        self._timer.start()

    def connect(self, address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        """A connection to the first address of the host that answers, within what is left of the time."""
        failed: OSError = TimeoutError("no time is left to connect")
        for family, kind, protocol, _name, where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            left = self.end - time.monotonic()
            if left <= 0:
                break
            found = socket.socket(family, kind, protocol)
            try:
                found.settimeout(left)
                self._watch(found)
                found.connect(where)
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                found.close()
                failed = error
                continue
            return found
        raise failed

    def check(self) -> None:
        """Say so when it was cut; what has come by then may look whole.

        Raises:
            OSError: When its time is over, or it was given up.
        """
        if time.monotonic() >= self.end:
            raise TimeoutError(f"no whole reply within {self.seconds:g} s")
        if self.is_cut:
            raise ConnectionAbortedError("given up")

    def cut(self) -> None:
        """End it now; whoever waits for it gets an error."""
        with self._lock:
            self.is_cut = True
            if self._handle is not None:
                with suppress(OSError):  # not connected, or over already
                    self._handle.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the timer and the handle."""
        self._timer.cancel()
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _watch(self, found: socket.socket) -> None:
        with self._lock:
            if self.is_cut:
                raise ConnectionAbortedError("given up")
            if self._handle is not None:
                self._handle.close()
            self._handle = found.dup()


def post(url: str, body: Mapping[str, Any], headers: Mapping[str, str], *, seconds: float, halt: Halt) -> Any:
    """The decoded JSON reply to one request.

    Args:
        url: Where to.
        body: Sent as JSON.
        headers: Sent as they are.
        seconds: For everything: connection, request, headers and body of the reply.
        halt: Ends the request when it is raised.

    Raises:
        urllib.error.HTTPError: When the status is an error, with the beginning of its body read.
        OversizedReply: When the reply is too large, or nested too deep.
        OSError: When the connection fails, is cut, or time is over.
        ValueError: When the reply is no JSON.
    """
    request = urllib.request.Request(url, json.dumps(body).encode(), dict(headers), method="POST")
    connection = Connection(seconds)
    halt.add(connection)
    try:
        with _opener(connection).open(request, timeout=seconds) as response:
            content = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise _with_its_body(error) from None
    except (OSError, http.client.HTTPException) as error:
        connection.check()
        raise _without_wrapper(error) from None
    finally:
        halt.remove(connection)
        connection.close()
    connection.check()
    return decoded(content)


def decoded(content: bytes) -> Any:
    """The JSON value in the bytes.

    Raises:
        OversizedReply: When it is too large, or nested too deep.
        ValueError: When it is none.
    """
    if len(content) > MAX_BYTES:
        raise OversizedReply(f"the reply is larger than {MAX_BYTES // 2**20} MiB")
    with _DECODING:
        try:
            found = json.loads(content)
        except RecursionError:
            found = None
            too_deep = True
        else:
            too_deep = _is_deeper(found, MAX_DEPTH)
    if too_deep:
        raise OversizedReply(f"the reply is nested deeper than {MAX_DEPTH} levels")
    return found


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for one in inner for each in one if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _with_its_body(error: urllib.error.HTTPError) -> urllib.error.HTTPError:
    """The error with the beginning of its body, read while there is time."""
    content = b""
    with error, suppress(OSError, http.client.HTTPException, ValueError):
        content = error.read(_ERROR_BYTES)
    found = urllib.error.HTTPError(error.url, error.code, str(error.reason), error.headers, None)
    found.content = content  # type: ignore[attr-defined]
    return found


def _without_wrapper(error: Exception) -> Exception:
    """What went wrong itself, without what urllib puts around it."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return inner if isinstance(inner, OSError | http.client.HTTPException) else OSError(str(inner))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address; it becomes an error with its status instead."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        return None


class _Http(urllib.request.HTTPHandler):
    """Plain connections that a `Connection` opens."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_made_by(self.connection, http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
    """The same over TLS."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_made_by(self.connection, http.client.HTTPSConnection), req)


def _made_by(connection: Connection, kind: Callable[..., Any]) -> Any:
    @functools.wraps(kind)
    def make(host: str, **settings: Any) -> Any:
        found = kind(host, **settings)
        found._create_connection = connection.connect
        return found

    return make


def _opener(connection: Connection) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects, _Http(connection), _Https(connection))
