"""Bare connections: slow, cut, garbage, several requests on one."""

import socket
from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np
import pytest
from served import is_closed_within, png, served
from waiting import wait_until

from runtime.serve import connections

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def hasty(models, monkeypatch):
    """A server that waits for a header for a tenth of a second."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.1)
    with served({"m": models["brightness"]}) as server:
        yield server


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nA: "])
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
        client.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture
        )
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


def unread(server):
    """Ask for 16 MB on a connection, and read only the first byte."""
    image = png(np.zeros((2000, 2000, 3), np.uint8))
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect(("127.0.0.1", urlsplit(server.url).port))
    head = f"POST /v1/predict?format=npy HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
    client.sendall(head.encode() + image)
    assert client.recv(1) == b"H"
    return client


def test_an_answer_that_nobody_reads_keeps_its_place(models, picture):
    """Its bytes are in memory, so that clients could fill that."""
    with served({"m": models["brightness"]}, queue=2) as server:
        with unread(server), unread(server):
            assert server.predict(picture).status == 429
        wait_until(lambda: server.service.admission.count == 0)
        assert server.predict(picture).status == 200


def test_an_answer_that_nobody_reads_is_given_up(models, monkeypatch):
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.1)
    with served({"m": models["brightness"]}) as server, unread(server) as client:
        wait_until(lambda: server.service.admission.count == 0)
        found = 0
        with suppress(ConnectionResetError):
            while part := client.recv(2**20):
                found += len(part)
        assert found < 16_000_000


def test_a_large_answer_comes_whole(server, models, monkeypatch):
    from runtime.output_formats import FORMATS
    from runtime.predictor import Predictor

    monkeypatch.setattr(connections, "STALL_SECONDS", 60)
    image = png(np.random.default_rng(1).integers(0, 256, (700, 900, 3), np.uint8))
    expected = FORMATS["npy"].encode(Predictor(models["brightness"], "cpu").predict(image))
    assert server.predict(image, "?format=npy").body == expected
