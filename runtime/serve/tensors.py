"""Requests and responses of the Open Inference Protocol: tensors as JSON or, with its binary extension, as bytes.

After KServe's "Open Inference Protocol (V2)" and the binary tensor data extension of NVIDIA Triton.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.errors import one_line
from runtime.serve.problems import RequestRefusedError

IMAGE, PROBABILITY = "image", "probability"
"""Names of the graph's input and output."""

MAX_BATCH = 8
"""Most images of a request, as in the model repositories that `unet-export --triton` writes for Triton."""


MAX_JSON = 2**23
"""Most bytes of JSON in a request: nothing else runs in the process while it is parsed."""

MAX_VALUES = 2**22
"""Most numbers of an answer in JSON, which takes some 20 bytes for each."""

PIECE = 2**14
"""Numbers that are written as JSON at once; other requests go on in between."""


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request, read and checked: `batch` is uint8 [batch, height, width, channels].

    `binary` is True if the answer is wanted as bytes; `id` is given back.
    """

    batch: NDArray[np.uint8]
    binary: bool
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class InferResponse:
    """The bytes of a response; the first `header_length` of them are JSON, all if it is None."""

    content: bytes
    header_length: int | None = field(default=None)


def read_infer_request(body: bytes, header_length: str | None, card: ModelCard) -> InferRequest:
    """Read a request for a model; `header_length` is the text of its header Inference-Header-Content-Length.

    Raises:
        RequestRefusedError: it is not of the protocol, or its tensors do not fit the model.
    """
    split = len(body)
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,12}", header_length) or int(header_length) > len(body):
            raise refusal(
                f"Inference-Header-Content-Length: found {one_line(header_length)[:20]!r}, expected 0 to {split}"
            )
        split = int(header_length)
    if split > MAX_JSON:
        raise RequestRefusedError(
            413,
            f"request: has {split} bytes of JSON, expected at most {MAX_JSON}; send the numbers as bytes "
            "(binary_data_size)",
        )
    try:
        request = json.loads(body[:split])
    except (ValueError, RecursionError) as error:
        raise refusal(f"request: is not JSON ({one_line(str(error))[:200]})") from error
    inputs = field_of(request, "inputs", list)
    if len(inputs) != 1:
        raise refusal(f"inputs: found {len(inputs)}, expected one of the name {IMAGE}")
    batch = read_tensor(inputs[0], body[split:])
    check_shape(batch, card)
    name = request.get("id")
    if name is not None and not isinstance(name, str):
        raise refusal("id: expected a text")
    binary = wants_bytes(request)
    values = card.architecture.classes * int(np.prod(batch.shape[:3], dtype=np.int64))
    if not binary and values > MAX_VALUES:
        raise refusal(
            f"outputs: has {values} values as JSON, expected at most {MAX_VALUES}; ask for bytes (binary_data)"
        )
    return InferRequest(batch=batch, binary=binary, id=name)


def field_of(data: object, name: str, kind: type) -> Any:
    """Return a field of a JSON object that has to be there and of one type."""
    if not isinstance(data, dict) or not isinstance(data.get(name), kind):
        raise refusal(f"{name}: is missing or of another type, expected {kind.__name__}")
    return data[name]


def read_tensor(tensor: object, binary: bytes) -> NDArray[np.uint8]:
    """Return the input tensor of a request, whose numbers are in JSON or in the bytes behind it."""
    name, datatype, shape = (field_of(tensor, key, kind) for key, kind in TENSOR_FIELDS)
    assert isinstance(tensor, dict)
    if (name, datatype) != (IMAGE, "UINT8"):
        found = one_line(f"{name} of {datatype}")[:100]
        raise refusal(f"inputs: found {found}, expected {IMAGE} of UINT8")
    if len(shape) != 4 or not all(type(side) is int and 0 < side < 2**31 for side in shape):
        raise refusal(f"shape: found {json.dumps(shape)[:100]}, expected [batch, height, width, channels]")
    count = int(np.prod([int(side) for side in shape], dtype=object))
    parameters = tensor.get("parameters") or {}
    if not isinstance(parameters, dict) or "shared_memory_region" in parameters:
        raise refusal("parameters: this server has no shared memory; send the numbers")
    if "binary_data_size" in parameters:
        length = len(binary)
        if parameters["binary_data_size"] != length or length != count:
            declared = json.dumps(parameters["binary_data_size"])[:30]
            raise refusal(f"image: found {length} bytes, binary_data_size {declared}, expected {count} by its shape")
        return np.frombuffer(binary, np.uint8).reshape(shape)
    values = field_of(tensor, "data", list)
    # [...] -> [count]; as objects, since numpy's own choice gives each of several texts the place of the longest
    numbers = np.array(values, dtype=object).reshape(-1).tolist()
    whole = len(numbers) == count and set(map(type, numbers)) == {int} and min(numbers) >= 0 and max(numbers) <= 255
    if not whole:
        raise refusal(f"data: found {len(numbers)} values, expected {count} integers, 0 to 255")
    return np.frombuffer(bytes(numbers), np.uint8).reshape(shape)


TENSOR_FIELDS = (("name", str), ("datatype", str), ("shape", list))


def check_shape(batch: NDArray[np.uint8], card: ModelCard) -> None:
    """Refuse a batch of more images than the protocol's `MAX_BATCH`, or of another number than the file takes.

    Height, width and channels are checked when it runs.
    """
    most = MAX_BATCH if card.input.fixed_batch is None else card.input.fixed_batch
    if len(batch) > most or (card.input.fixed_batch is not None and len(batch) != most):
        exactly = "at most" if card.input.fixed_batch is None else "exactly"
        raise refusal(f"shape: found a batch of {len(batch)}, expected {exactly} {most}")


def wants_bytes(request: dict[str, Any]) -> bool:
    """Return True if a request wants its output as bytes: by itself, or by a parameter for all outputs."""
    everywhere = request.get("parameters") or {}
    outputs = request.get("outputs") or []
    if not isinstance(everywhere, dict) or not isinstance(outputs, list):
        raise refusal("parameters or outputs: is of another type")
    wanted = everywhere.get("binary_data_output", False)
    for output in outputs:
        if field_of(output, "name", str) != PROBABILITY:
            raise refusal(f"outputs: found {one_line(output['name'])[:100]}, expected {PROBABILITY}")
        parameters = output.get("parameters") or {}
        if not isinstance(parameters, dict) or {"classification", "shared_memory_region"} & set(parameters):
            raise refusal("outputs: this server has no shared memory and no classification; leave the parameters out")
        wanted = parameters.get("binary_data", wanted)
    return wanted is True


def write_infer_response(
    request: InferRequest, probability: NDArray[np.float32], name: str, version: str
) -> InferResponse:
    """Write the response to a request; `probability` is float32 [batch, classes, height, width]."""
    numbers = np.ascontiguousarray(probability, "<f4")
    output: dict[str, Any] = {"name": PROBABILITY, "datatype": "FP32", "shape": list(numbers.shape)}
    if request.binary:
        output["parameters"] = {"binary_data_size": numbers.nbytes}
    else:
        output["data"] = []
    head: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        head["id"] = request.id
    text = json.dumps(head | {"outputs": [output]})
    if request.binary:
        return InferResponse(content=text.encode() + numbers.tobytes(), header_length=len(text))
    flat = numbers.reshape(-1)  # [batch, classes, height, width] -> [count]
    pieces = [json.dumps(flat[start : start + PIECE].tolist())[1:-1] for start in range(0, flat.size, PIECE)]
    end = "]}]}"  # of data, output, outputs, head
    return InferResponse(content="".join([text.removesuffix(end), ", ".join(pieces), end]).encode())


def model_metadata(card: ModelCard, name: str, version: str) -> dict[str, Any]:
    """Return the metadata of a model: names, types and shapes, -1 for free sizes."""
    batch, height, width = card.input.fixed_shape or (-1, -1, -1)
    return {
        "name": name,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": IMAGE, "datatype": "UINT8", "shape": [batch, height, width, card.architecture.in_channels]}
        ],
        "outputs": [
            {"name": PROBABILITY, "datatype": "FP32", "shape": [batch, card.architecture.classes, height, width]}
        ],
    }


def model_config(card: ModelCard, name: str, card_key: str) -> dict[str, Any]:
    """Return a model's configuration as Triton writes it, with the card, by which clients resize and decide."""
    described = model_metadata(card, name, "")
    skipped = 0 if card.input.fixed_batch is not None else 1  # Triton leaves the batch out of dims

    def tensor(one: dict[str, Any]) -> dict[str, Any]:
        return {"name": one["name"], "data_type": f"TYPE_{one['datatype']}", "dims": one["shape"][skipped:]}

    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": MAX_BATCH * skipped,
        "input": [tensor(one) for one in described["inputs"]],
        "output": [tensor(one) for one in described["outputs"]],
        "parameters": {card_key: {"string_value": card.to_json()}},
    }


def refusal(text: str) -> RequestRefusedError:
    """Return the error of a request that is not of the protocol."""
    return RequestRefusedError(400, f"{text}; see GET /v2/models/MODEL")
