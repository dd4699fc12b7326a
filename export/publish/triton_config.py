"""The text of config.pbtxt, by which NVIDIA Triton serves an exported file.

After model_config.proto (the schema of config.pbtxt) and the documentation of Triton's ONNX Runtime backend.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import onnx

from runtime.card import CARD_KEY, ModelCard
from runtime.devices.profiles import profile_of
from runtime.model_file.golden import Golden
from runtime.options import ProviderOptions
from runtime.support.sizes import size_text

WARMUP = "warmup/image"
"""File with the data of `model_warmup`; Triton looks for it in warmup/ of the model's folder."""

QUEUE_DELAY = 2_000
"""Time in microseconds that a request waits for others to share its batch."""

WORKSPACE = 2 * 2**30
"""GPU memory in bytes that TensorRT may use besides weights and values."""


def config_text(source: Path, card: ModelCard, golden: Golden, name: str, max_batch: int) -> str:
    """Return the text of config.pbtxt for the exported file `source`, served as `name`.

    A `max_batch` of 0 is that of a file of one shape: the server forms no batches, and requests hold whole ones.
    """
    channels, classes = card.architecture.in_channels, card.architecture.classes
    scaled = f" at {card.input.scale:g} of an image's own size: clients resize by that" * (card.input.scale != 1)
    free = "free" if card.input.padded else f"multiples of {card.input.stride}"
    batch: tuple[int, ...] = ()
    sizes, first = (-1, -1), ""
    about = f"The batch is the first axis and not among dims. Height and width are {free}; the model was trained at"
    if card.input.fixed_batch is not None:
        batch, sizes, first = (card.input.fixed_batch,), card.input.size, "batch, "
        about = (
            "The file takes one shape only, so a request is a whole batch, which is among dims. Images are fitted to"
        )
    image, answer = dims(*batch, *sizes, channels), dims(*batch, classes, *sizes)
    failed = card.proof is not None and card.proof.gate is not None and not card.proof.gate.passed
    parts = [
        "# Warning: this file failed its gate when it was exported, and was written all the same; see its card.\n"
        if failed
        else "",
        f'''\
name: "{name}"
platform: "onnxruntime_onnx"

# {about} {size_text(card.input.size)}
# (width x height, fit: {card.input.fit}{scaled}).
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: TYPE_UINT8 dims: {image} }} ]  # {first}height, width, {card.input.channels}
output [ {{ name: "probability" data_type: TYPE_FP32 dims: {answer} }} ]  # {first}classes, height, width

# Read by clients, not by the server: size, fit, class names and threshold, as in the ONNX file.
parameters {{ key: "{CARD_KEY}" value {{ string_value: {json.dumps(card.to_json())} }} }}

{CPU_INSTANCES if card.target == "cpu" else GPU_INSTANCES}
''',
        BATCHING if max_batch > 1 else "",
        warmup_section(card, golden, max_batch),
        ""
        if card.target == "cpu" or has_uint8_values(source, card)
        else tensorrt_section(source, card, name, max_batch),
    ]
    return "\n".join(part for part in parts if part)


CPU_INSTANCES = """\
# The file is written for CPUs.
instance_group [ { count: 1 kind: KIND_CPU } ]"""

GPU_INSTANCES = """\
# On each GPU, or on the CPU if there is none. A count of 2 copies one request's data while another one is computed.
instance_group [ { count: 1 kind: KIND_AUTO } ]"""

BATCHING = f"""\
# Optional: requests of one size wait up to the delay for others, and leave at once as a batch of the largest size.
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY} }}
"""


def dims(*sizes: int) -> str:
    """Write a list of sizes; -1 stands for a free one."""
    return f"[ {', '.join(map(str, sizes))} ]"


def warmup_section(card: ModelCard, golden: Golden, max_batch: int) -> str:
    """Write requests that run before the first real one: the golden sample, and noise of the trained size."""
    golden_size: tuple[int, ...] = golden.image.shape
    trained_size: tuple[int, ...] = (*card.input.size, card.architecture.in_channels)
    if card.input.fixed_batch is not None:
        golden_size = trained_size = (card.input.fixed_batch, *trained_size)
    data = [
        ("golden sample", golden_size, f'input_data_file: "{Path(WARMUP).name}"'),
        ("trained size", trained_size, "random_data: true"),
    ]
    samples = [
        f'''\
  {{
    name: "{what}, batch of {batch}"
    batch_size: {batch}
    inputs {{
      key: "image"
      value {{ data_type: TYPE_UINT8 dims: {dims(*shape)} {content} }}
    }}
  }}'''
        for what, shape, content in data
        for batch in sorted({1, max(1, max_batch)})
    ]
    listed = ",\n".join(samples)
    waits = "memory" if card.target == "cpu" else "GPU libraries, the search for kernels, and TensorRT's engine"
    return f"""\
# Optional: without it the first requests wait for {waits}.
model_warmup [
{listed}
]
"""


def tensorrt_section(source: Path, card: ModelCard, name: str, max_batch: int) -> str:
    """Write the options of TensorRT, with the shapes of its engine unless images may come at any size."""
    lines: list[str] = []  # of a file of one shape: that is the engine's, too
    if card.input.fixed_batch is None:
        profile = replace(profile_of(card, ProviderOptions(max_batch=max_batch)), best=(max_batch, *card.input.size))
        shapes = [f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in profile.options().items()]
        native = card.input.fit == "native"
        lines = [*ANY_SIZE, *(f"# {shape}" for shape in shapes)] if native else [*ONE_SIZE, *shapes]
    listed = "".join(f"        {line}\n" for line in lines)
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"""\
# Optional: on a GPU TensorRT computes what it can, and ONNX Runtime's CUDA provider the rest; ignored on a CPU. Delete
# this section for CUDA alone, and if the server's backend is built without TensorRT: it would refuse the model.
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator [
      {{
        name: "tensorrt"
        # Has to be the file's own. {PRECISION_NOTES[card.precision]}
        parameters {{ key: "precision_mode" value: "{card.precision.upper()}" }}
        parameters {{ key: "max_workspace_size_bytes" value: "{WORKSPACE}" }}
{listed}\
        # Optional: keep engines over restarts. They are found by the graph's name and not by its weights, so the path
        # holds the file's hash; they are executable code, so nobody else may write there.
        # parameters {{ key: "trt_engine_cache_enable" value: "true" }}
        # parameters {{ key: "trt_engine_cache_path" value: "/var/cache/{name}-{digest[:16]}" }}
      }}
    ]
  }}
}}
"""


ONE_SIZE = (
    "# One engine for all shapes from min to max, fastest at opt: the largest batch, which is what a busy server",
    "# computes. Others are refused. Without these three lines any shape is taken, but one that is larger or smaller",
    "# than all before has an engine built, for minutes, while its request waits.",
)

ANY_SIZE = (
    "# Images come at their own size (fit: native), so any shape is taken; but one that is larger or smaller than all",
    "# before has an engine built, for minutes, while its request waits. If you know your sizes, name them (batch x",
    "# height x width x channels) and one engine serves all from min to max, fastest at opt; others are then refused.",
)

PRECISION_NOTES = {
    "fp32": "Convolutions still multiply in TF32 where the GPU can.",
    "fp16": "TensorRT may then use fp16 in layers that the file keeps in fp32 too.",
    "int8": "The scales are in the file, so no calibration table is named.",
}


def has_uint8_values(source: Path, card: ModelCard) -> bool:
    """Return True if the file is int8 for CPUs: TensorRT takes no uint8 values between layers."""
    if card.precision != "int8":
        return False
    graph = onnx.load(source, load_external_data=False).graph
    zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    return any(tensor.name in zeros and tensor.data_type == onnx.TensorProto.UINT8 for tensor in graph.initializer)
