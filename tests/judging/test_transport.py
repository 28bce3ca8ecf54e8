"""Servers that never end: every one of them is left at the deadline, or at once when the work is given up."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterable

import pytest

from rewarden.judging.transport import MAX_BYTES, Halt, OversizedReply, decoded, post

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def raw(monkeypatch):
    """raw(parts, pause): address of a server that sends these bytes to the first that comes, at most for 5 seconds."""
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(parts: Iterable[bytes], pause: float = 0.0) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(5)
        servers.append(server)

        def serve() -> None:
            try:
                client, _ = server.accept()
                with client:
                    while not client.recv(65536).endswith(b"{}"):
                        pass
                    end = time.monotonic() + 5
                    for part in parts:
                        client.sendall(part)
                        time.sleep(pause)
                        if time.monotonic() > end:
                            return
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1"

    yield start
    for server in servers:
        server.close()


NEVER_ENDING = {
    "a body that drips": lambda: itertools.chain([HEAD + b"Content-Length: 1000000\r\n\r\n"], itertools.repeat(b" ")),
    "headers that drip": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], itertools.repeat(b"x")),
    "endless 100 Continue": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunks that drip": lambda: itertools.chain(
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1\r\n \r\n")
    ),
    "a body without a length": lambda: itertools.chain([HEAD + b"\r\n"], itertools.repeat(b" ")),
    "an error that drips": lambda: itertools.chain(
        [b"HTTP/1.1 500 No\r\nContent-Length: 4000\r\n\r\n"], itertools.repeat(b" ")
    ),
    "nothing at all": lambda: itertools.repeat(b""),
}


@pytest.mark.parametrize("kind", NEVER_ENDING)
def test_the_deadline_holds_for_the_whole_request(raw, kind) -> None:
    start = time.monotonic()
    with pytest.raises(OSError, match=r"no whole reply within 0\.3 s|HTTP Error 500"):
        post(raw(NEVER_ENDING[kind](), 0.02), {}, {}, seconds=0.3, halt=Halt())
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("kind", NEVER_ENDING)
def test_a_request_ends_when_the_work_is_given_up(raw, kind) -> None:
    halt, start = Halt(), time.monotonic()
    threading.Timer(0.2, halt.set).start()
    with pytest.raises(OSError, match=r"given up|HTTP Error 500"):
        post(raw(NEVER_ENDING[kind](), 0.02), {}, {}, seconds=60, halt=halt)
    assert time.monotonic() - start < 2


def test_nothing_is_sent_once_the_work_is_given_up(raw) -> None:
    halt = Halt()
    halt.set()
    with pytest.raises(OSError, match="given up"):
        post(raw([]), {}, {}, seconds=5, halt=halt)


def test_a_whole_reply_comes_through(raw) -> None:
    parts = [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b'4\r\n{"a"\r\n', b"3\r\n: 1\r\n", b"1\r\n}\r\n0\r\n\r\n"]
    assert post(raw([b"HTTP/1.1 100 Continue\r\n\r\n", *parts]), {}, {}, seconds=5, halt=Halt()) == {"a": 1}


def test_endless_fast_bodies_are_left_at_the_size_limit(raw) -> None:
    parts = itertools.chain([HEAD + b"\r\n"], itertools.repeat(b" " * 2**20))
    with pytest.raises(OversizedReply, match="larger than 8 MiB"):
        post(raw(parts), {}, {}, seconds=30, halt=Halt())


def test_size_and_depth_have_limits() -> None:
    assert decoded(b"[" * 40 + b"]" * 40)
    assert decoded(json.dumps({"a": [{}] * 1000}).encode())
    for depth in (60, 900, 100_000):
        with pytest.raises(OversizedReply, match="nested deeper than 50 levels"):
            decoded(b"[" * depth + b"]" * depth)
        with pytest.raises(OversizedReply, match="nested deeper"):
            decoded(b'{"a":' * depth + b"1" + b"}" * depth)
    with pytest.raises(OversizedReply, match="larger than 8 MiB"):
        decoded(b" " * (MAX_BYTES + 1))


def test_threads_do_not_pile_up(raw) -> None:
    before = threading.active_count()
    for _ in range(5):
        post(raw([HEAD + b"Content-Length: 2\r\n\r\n{}"]), {}, {}, seconds=60, halt=Halt())
    time.sleep(0.05)
    assert threading.active_count() <= before + 1
