"""The queue: its bound, requests whose clients hang up, the limit of time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from served import png, served
from waiting import wait_until

from runtime.inference.batcher import Batching
from runtime.predictor import Predictor


def test_a_full_queue_is_told_at_once(held, picture):
    server, gate = held(queue=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(server.predict, picture) for _ in range(2)]
        wait_until(lambda: server.service.admission.count == 2)
        reply = server.predict(picture)
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        assert reply.error == "server: 2 requests wait or run already; ask again in 1 s"
        assert server.ask("/v1/models").status == 200  # what needs no network is answered
        gate.open()
        assert [one.result().status for one in waiting] == [200, 200]
    assert server.predict(picture).status == 200
    wait_until(lambda: server.service.admission.count == 0)


def test_the_advice_to_wait_is_the_time_of_a_request():
    from runtime.serve.admission import Admission

    admission = Admission(1)
    for seconds, advice in ((0.0, "1"), (3.2, "4"), (500.0, "60")):
        admission.seconds = seconds
        assert admission.refusal().headers["Retry-After"] == advice


def test_a_client_that_hangs_up_leaves_the_queue(held, picture):
    server, gate = held(queue=8)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
    clients = [server.connect() for _ in range(4)]
    for client in clients:
        client.sendall(head + picture)
    assert gate.entered.acquire(timeout=60)  # the first one runs, and cannot be taken back
    wait_until(lambda: server.service.admission.count == 4)
    for client in clients:
        client.close()
    wait_until(lambda: server.service.admission.count == 0)
    gate.open()
    assert server.predict(picture).status == 200
    assert gate.runs == 2  # the first one and this; three were taken back
    metrics = server.ask("/metrics").body.decode()
    assert 'unet_requests_total{endpoint="/v1/predict",model="brightness",status="499"} 4.0' in metrics


def test_the_limit_of_time(held, picture):
    server, gate = held(seconds=0.3)
    reply = server.predict(picture)
    assert (reply.status, reply.error) == (
        504,
        "server: no answer within 0.3 s; send a smaller image, or ask again later",
    )
    wait_until(lambda: server.service.admission.count == 0)
    gate.open()


def test_a_body_that_comes_slowly(models, picture):
    with served({"m": models["brightness"]}, seconds=0.3) as server, server.connect() as client:
        client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
        answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"body: was not complete after 0.3 s; send it faster" in answer
        wait_until(lambda: server.service.admission.count == 0)


def test_a_client_that_sends_half_and_hangs_up(server, picture):
    for sent in (
        b"POST /v1/predict HTTP/1.1\r\nHo",
        b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx",
    ):
        with server.connect() as client:
            client.sendall(sent)
    wait_until(lambda: server.service.admission.count == 0)
    assert server.predict(picture).status == 200


def test_an_image_in_tiles_is_given_up_between_them(held):
    """A cancelled image of many tiles must not hold up the others."""
    server, gate = held(seconds=1.0)
    assert server.predict(png(np.zeros((64, 64, 3), np.uint8)), "?tile=8x8").status == 504
    gate.open()
    assert server.predict(png(np.zeros((4, 4, 3), np.uint8))).status == 200
    assert gate.runs == 2  # one of some hundred tiles, and this image


def test_requests_run_in_batches(models, picture):
    with served({"m": models["brightness"]}, max_batch=4, max_delay_ms=60_000) as server:
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: server.predict(picture).status, range(4)))
        assert replies == [200] * 4
        assert 'unet_batch_size_sum{model="m"} 4.0' in server.ask("/metrics").body.decode()
        assert 'unet_batch_size_count{model="m"} 1.0' in server.ask("/metrics").body.decode()


def test_a_predictor_counts_its_batches_and_replays_its_sample(models):
    import asyncio

    counts = []
    images = np.random.default_rng(1).integers(0, 256, (3, 5, 6, 3), np.uint8)
    batching = Batching(max_batch=None, on_batch=counts.append)
    with Predictor(models["conv"], "cpu", batching=batching) as predictor:
        found = asyncio.run(predictor.run_async(images))
        np.testing.assert_allclose(found, predictor.run(images), atol=1e-6)
        assert counts == [1, 1, 1]  # the CPU takes one at a time
        assert predictor.replay() == predictor.report.golden_error
