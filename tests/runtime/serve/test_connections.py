"""Bare connections: slow, cut, garbage, several requests on one."""

import pytest
from served import is_closed_within, served

from runtime.serve import connections

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def hasty(models, monkeypatch):
    """A server that waits for a header for a tenth of a second."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    with served({"m": models["brightness"]}) as server:
        yield server


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_header_that_does_not_end(hasty, begin):
    with hasty.connect() as client:
        client.sendall(begin)
        assert is_closed_within(client, 30)


def test_the_second_header_on_a_connection_that_does_not_end(hasty):
    with hasty.connect() as client:
        client.sendall(GET)
        assert client.recv(10_000).startswith(b"HTTP/1.1 200 OK")
        client.sendall(b"GET / HT")
        assert is_closed_within(client, 30)


def test_a_request_that_takes_longer_than_a_header_may_is_answered(held, picture, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.05)
    server, gate = held()
    with server.connect() as client:
        client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture)
        assert gate.entered.acquire(timeout=60)
        assert not is_closed_within(client, 0.2)
        gate.open()
        assert client.recv(10_000).startswith(b"HTTP/1.1 200 OK")


def test_a_connection_serves_many_requests(server):
    with server.connect() as client:
        for _ in range(3):
            client.sendall(GET)
            assert client.recv(10_000).startswith(b"HTTP/1.1 200 OK")
        client.sendall(GET + GET)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 2:
            found += client.recv(10_000)


@pytest.mark.parametrize("garbage", [b"\0\xff" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\0", b"A" * 70_000])
def test_garbage_is_refused_and_the_connection_closed(server, garbage):
    with server.connect() as client:
        client.sendall(garbage)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert server.ask("/v2/health/live").status == 200


def test_a_body_that_is_turned_away_is_read_so_that_the_answer_is(held, picture):
    """A client that writes all before it reads would find its connection reset."""
    server, gate = held(queue=1)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.predict, picture)
        assert gate.entered.acquire(timeout=60)
        assert server.predict(bytes(8 * 2**20)).status == 429
        gate.open()
        assert first.result().status == 200
