"""The Open Inference Protocol, by Triton's own client and by hand."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from served import served

from runtime.card import ModelCard
from runtime.predictor import Predictor
from runtime.serve.problems import RequestRefusedError
from runtime.serve.tensors import MAX_JSON, MAX_VALUES, read_infer_request

http = pytest.importorskip("tritonclient.http")

IMAGES = np.random.default_rng(3).integers(0, 256, (2, 6, 9, 3), np.uint8)


@pytest.fixture(scope="module")
def client(server):
    with http.InferenceServerClient(server.url.removeprefix("http://")) as one:
        yield one


def tensor(images=IMAGES, *, binary=True):
    one = http.InferInput("image", list(images.shape), "UINT8")
    one.set_data_from_numpy(images, binary_data=binary)
    return one


def test_server_and_models_are_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("softmax")
    assert client.is_model_ready("softmax", "1")
    assert not client.is_model_ready("car")
    assert not client.is_model_ready("softmax", "2")
    assert client.get_server_metadata()["extensions"] == [
        *("binary_tensor_data", "model_configuration", "model_repository(index)")
    ]
    assert client.get_model_repository_index() == [
        {"name": "brightness", "version": "1", "state": "READY"},
        {"name": "softmax", "version": "1", "state": "READY"},
    ]


def test_metadata_and_config(client):
    for version in ("", "1"):
        assert client.get_model_metadata("softmax", version) == {
            "name": "softmax",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
            "outputs": [{"name": "probability", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
        }
        config = client.get_model_config("softmax", version)
        assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}]
        assert config["output"] == [{"name": "probability", "data_type": "TYPE_FP32", "dims": [3, -1, -1]}]
        assert config["max_batch_size"] == 8
        card = ModelCard.from_json(config["parameters"]["unet.card"]["string_value"])
        assert card.output.classes == ("red", "green", "blue")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
def test_infer(client, models, binary_in, binary_out, packing):
    outputs = None if binary_out is None else [http.InferRequestedOutput("probability", binary_data=binary_out)]
    answer = client.infer(
        "softmax",
        [tensor(binary=binary_in)],
        outputs=outputs,
        request_id="seven",
        request_compression_algorithm=packing,
        response_compression_algorithm=packing,
    )
    with Predictor(models["softmax"], "cpu") as predictor:
        np.testing.assert_array_equal(answer.as_numpy("probability"), predictor.run(IMAGES))
    head = answer.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("seven", "softmax", "1")


def test_many_requests_at_once(server, models):
    with http.InferenceServerClient(server.url.removeprefix("http://"), concurrency=8) as client:
        waiting = [client.async_infer("brightness", [tensor(IMAGES[:1] + np.uint8(step))]) for step in range(16)]
        found = [one.get_result().as_numpy("probability") for one in waiting]
    with Predictor(models["brightness"], "cpu") as predictor:
        for step, probability in enumerate(found):
            np.testing.assert_array_equal(probability, predictor.run(IMAGES[:1] + np.uint8(step)))


def test_errors_reach_the_client(client):
    with pytest.raises(
        http.InferenceServerException, match=r"^\[404\] model: found 'car', expected brightness, softmax$"
    ):
        client.infer("car", [tensor()])
    with pytest.raises(http.InferenceServerException, match=r"expected uint8 .*height, width, 3"):
        client.infer("softmax", [tensor(IMAGES[..., :1].copy())])
    with pytest.raises(http.InferenceServerException, match="found a batch of 9, expected at most 8"):
        client.infer("softmax", [tensor(np.repeat(IMAGES[:1], 9, axis=0))])
    with pytest.raises(http.InferenceServerException, match="no shared memory and no classification"):
        client.infer("softmax", [tensor()], outputs=[http.InferRequestedOutput("probability", class_count=2)])
    with pytest.raises(http.InferenceServerException, match=r"\[404\] version: found '2', expected 1"):
        client.get_model_metadata("softmax", "2")


def test_a_file_of_one_shape(write_model):
    path = write_model("conv", fixed_batch=2, size=(8, 12), fit="stretch", stride=4)
    images = np.random.default_rng(4).integers(0, 256, (2, 8, 12, 3), np.uint8)
    with served({"conv": path}) as server, http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        config = client.get_model_config("conv")
        assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [2, 8, 12, 3])
        found = client.infer("conv", [tensor(images)]).as_numpy("probability")
        with pytest.raises(http.InferenceServerException, match="found a batch of 1, expected exactly 2"):
            client.infer("conv", [tensor(images[:1])])
    with Predictor(path, "cpu") as predictor:
        np.testing.assert_array_equal(found, predictor.run(images))


ONE = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (b"\xff", "request: is not JSON"),
        (b"[" * 100_000, "request: is not JSON"),
        ([], "inputs: is missing or of another type, expected list"),
        ({"inputs": []}, "inputs: found 0, expected one of the name image"),
        ({"inputs": [[]]}, "name: is missing or of another type, expected str"),
        ({"inputs": [ONE | {"name": "x"}]}, "inputs: found x of UINT8, expected image of UINT8"),
        ({"inputs": [ONE | {"datatype": "FP32"}]}, "inputs: found image of FP32, expected image of UINT8"),
        ({"inputs": [ONE | {"shape": [3]}]}, "shape: found [3], expected [batch, height, width, channels]"),
        ({"inputs": [ONE | {"shape": [1, -1, -1, 3]}]}, "shape: found [1, -1, -1, 3], expected"),
        ({"inputs": [ONE | {"shape": [1, True, 1, 3]}]}, "shape: found [1, true, 1, 3], expected"),
        ({"inputs": [ONE | {"shape": [2**30, 2**30, 2**30, 3]}]}, "data: found 3 values, expected"),
        ({"inputs": [ONE | {"data": [1, 2]}]}, "data: found 2 values, expected 3 integers, 0 to 255"),
        ({"inputs": [ONE | {"data": [1, 2, 256]}]}, "data: found 3 values, expected 3 integers"),
        ({"inputs": [ONE | {"data": [1, 2, -1]}]}, "data: found 3 values, expected 3 integers"),
        ({"inputs": [ONE | {"data": [1, 2, 2.5]}]}, "data: found 3 values, expected 3 integers"),
        ({"inputs": [ONE | {"data": [1, 2, True]}]}, "data: found 3 values, expected 3 integers"),
        ({"inputs": [ONE | {"data": [1, 2, "x"]}]}, "data: found 3 values, expected 3 integers"),
        ({"inputs": [ONE | {"data": [1, [2, 3]]}]}, "data: found 2 values, expected 3 integers"),
        ({"inputs": [ONE | {"data": [[[[[[[[[1, 2]]]]], []]]]]}]}, "data: found "),
        ({"inputs": [ONE | {"data": [10**30, 2, 3]}]}, "data: found 3 values, expected 3 integers"),
        ({"inputs": [ONE | {"data": []}]}, "data: found 0 values, expected 3 integers"),
        (
            {"inputs": [ONE | {"parameters": {"binary_data_size": 3}}]},
            "image: found 0 bytes, binary_data_size 3, expected 3",
        ),
        (
            {"inputs": [ONE | {"parameters": {"shared_memory_region": "x"}}]},
            "parameters: this server has no shared memory",
        ),
        ({"inputs": [ONE | {"parameters": [1]}]}, "parameters: this server has no shared memory"),
        ({"inputs": [ONE], "outputs": [{"name": "x"}]}, "outputs: found x, expected probability"),
        ({"inputs": [ONE], "outputs": 3}, "parameters or outputs: is of another type"),
        ({"inputs": [ONE], "id": 3}, "id: expected a text"),
    ],
)
def test_requests_that_are_not_of_the_protocol(server, request_, text):
    body = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
    reply = server.ask("/v2/models/brightness/infer", body)
    assert reply.status == 400, reply.body
    assert reply.error.startswith(text)
    assert reply.error.endswith("; see GET /v2/models/MODEL")


@pytest.mark.parametrize("length", ["-1", "x", "99999", "9" * 5_000, "2.5"])
def test_a_header_length_that_is_none(server, length):
    reply = server.ask("/v2/models/brightness/infer", b"{}", Inference_Header_Content_Length=length)
    assert reply.status == 400
    assert reply.error.startswith("Inference-Header-Content-Length: found '")


def test_limits_hold_for_tensors(models):
    with served({"m": models["brightness"]}, max_network_pixels=20, max_pixels=30) as server:
        for shape, status in (([1, 4, 5, 3], 200), ([1, 3, 7, 3], 400), ([2, 4, 4, 3], 400)):
            body = json.dumps({"inputs": [ONE | {"shape": shape, "data": [7] * int(np.prod(shape))}]}).encode()
            assert server.ask("/v2/models/m/infer", body).status == status, shape


def test_the_documented_client_gets_what_the_predictor_gives(server, models, root, tmp_path, monkeypatch):
    text = (root / "docs" / "serving.md").read_text()
    (script,) = [one for one in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "tritonclient.http" in one]
    Image.fromarray(IMAGES[0]).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    address = server.url.removeprefix("http://")
    exec(script.replace("image.jpg", "image.png").replace("localhost:8000", address).replace('"car"', '"softmax"'), {})
    with Image.open("mask.png") as picture:
        found = np.asarray(picture)
    expected = Predictor(models["softmax"], "cpu").predict("image.png").mask
    assert len(np.unique(expected)) == 3
    assert np.array_equal(found, expected)


def test_texts_among_the_numbers_take_no_memory(models):
    """Numpy's own choice of a type would give each of them the place of the longest."""
    body = json.dumps({"inputs": [ONE | {"shape": [1, 1, 10_000, 3], "data": ["x" * 1_000, *[""] * 29_999]}]}).encode()
    card = Predictor(models["softmax"], "cpu").card
    tracemalloc.start()
    with pytest.raises(RequestRefusedError, match="data: found 30000 values, expected 30000 integers"):
        read_infer_request(body, None, card)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(body)


def test_json_is_bounded_since_nothing_else_runs_while_it_is_read(server, client):
    reply = server.ask("/v2/models/softmax/infer", b" " * (MAX_JSON + 1))
    assert (reply.status, reply.error) == (
        413,
        f"request: has {MAX_JSON + 1} bytes of JSON, expected at most {MAX_JSON}; send the numbers as bytes "
        "(binary_data_size)",
    )
    images = np.zeros((1, 1_000, MAX_VALUES // 3_000 + 1, 3), np.uint8)
    outputs = [http.InferRequestedOutput("probability", binary_data=False)]
    with pytest.raises(http.InferenceServerException, match=f"values as JSON, expected at most {MAX_VALUES}"):
        client.infer("softmax", [tensor(images)], outputs=outputs)


def test_an_answer_in_json_is_the_same_in_pieces(client, models, monkeypatch):
    monkeypatch.setattr("runtime.serve.tensors.PIECE", 7)
    outputs = [http.InferRequestedOutput("probability", binary_data=False)]
    found = client.infer("softmax", [tensor()], outputs=outputs).as_numpy("probability")
    with Predictor(models["softmax"], "cpu") as predictor:
        np.testing.assert_array_equal(found, predictor.run(IMAGES))


def test_calls_of_the_client_that_are_not_served_say_so(client):
    for call in (
        client.get_inference_statistics,
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        client.get_trace_settings,
        client.get_log_settings,
        lambda: client.load_model("softmax"),
        lambda: client.unload_model("softmax"),
    ):
        with pytest.raises(http.InferenceServerException, match=r"\[40[45]\]"):
            call()
