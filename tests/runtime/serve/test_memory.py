"""Bodies of requests are freed with their answers, without a run of the garbage collector."""

import gc

import numpy as np
import pytest
from served import multipart, png
from waiting import wait_until

from runtime.serve.bodies import ImageBody
from runtime.serve.tensors import InferRequest

TENSOR = b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, %d], "data": [%s]}]}'


def held_bodies():
    """The bodies that are alive; `isinstance` would ask stand-ins of other libraries for their class, and they warn."""
    return [one for one in gc.get_objects() if type(one) in (ImageBody, InferRequest)]


FORM, KIND = multipart(b"no image")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/predict", png(np.zeros((4, 4, 3), np.uint8)), {}, 200),
        ("/v1/predict", b"no image", {}, 400),
        ("/v1/predict", FORM, {"Content_Type": KIND}, 400),
        ("/v1/predict?model=x", b"no image", {}, 404),
        ("/v1/predict?format=x", b"no image", {}, 400),
        ("/v1/predict?size=0x0", b"no image", {}, 400),
        ("/v2/models/brightness/infer", TENSOR % (3, b"0," * 11 + b"0"), {}, 200),
        ("/v2/models/brightness/infer", TENSOR % (2, b"0," * 7 + b"0"), {}, 400),
    ],
    ids=["image", "no image", "form", "no model", "no format", "no size", "tensor", "wrong tensor"],
)
def test_a_body_is_freed_with_its_answer(server, path, body, headers, status):
    assert server.ask(path, body, **headers).status == status
    wait_until(lambda: not held_bodies())


@pytest.mark.usefixtures("no_collector")
def test_a_body_whose_time_is_over_is_freed(held):
    server, gate = held(seconds=0.3)
    assert server.predict(png(np.zeros((4, 4, 3), np.uint8))).status == 504
    gate.open()
    wait_until(lambda: not held_bodies())


@pytest.mark.usefixtures("no_collector")
def test_a_body_whose_client_hung_up_is_freed(held, picture):
    server, gate = held()
    with server.connect() as client:
        client.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture
        )
        assert gate.entered.acquire(timeout=60)
    gate.open()
    wait_until(lambda: not held_bodies())
