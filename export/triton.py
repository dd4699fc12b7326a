"""A model repository for NVIDIA Triton Inference Server: the ONNX file, its configuration, and data to warm it up.

After model_config.proto (the schema of config.pbtxt) and the documentation of Triton's ONNX Runtime backend.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path

import onnx

from runtime.card import CARD_KEY, ModelCard
from runtime.devices.profiles import profile_of
from runtime.errors import ConfigError, ModelError, OutputError
from runtime.model_file.golden import GOLDEN_KEY, Golden
from runtime.model_file.metadata import read_metadata
from runtime.options import ProviderOptions
from runtime.predictor import Predictor
from runtime.support.files import make_folder, replacing, write_bytes, write_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names of models: they are folders and parts of addresses."""

MAX_BATCH = 1_024
QUEUE_DELAY = 2_000
"""Microseconds that a request waits for others to share its batch."""

WORKSPACE = 2 * 2**30
"""Bytes of GPU memory that TensorRT may use beside weights and values."""

CONFIG, MODEL, WARMUP = "config.pbtxt", "1/model.onnx", "warmup/image"
"""What a model's folder holds; Triton looks for the data of `model_warmup` in warmup/."""

REPLACED = ".replaced"
"""In a model's folder: what was there before, until it is deleted. Triton ignores folders there that are no number,
but takes any folder beside the models for a model.
"""


def write_repository(
    model: str | os.PathLike[str], folder: str | os.PathLike[str], *, name: str | None = None, max_batch: int = 8
) -> Path:
    """Write FOLDER/NAME for Triton and return it; the same model that is already there is replaced.

    Args:
        model: an ONNX file that `unet-export` wrote.
        folder: the repository, which may hold other models.
        name: of the model in the repository; by default `model_name` of the card's.
        max_batch: images that the server may put into one batch, 1 to `MAX_BATCH`.

    Raises:
        ModelError: the file is damaged or a raw export.
        ConfigError: no valid name or batch.
        OutputError: FOLDER/NAME is another model or holds other files, or cannot be written; it stays as it was.
    """
    source = Path(model)
    card = Predictor(source, device="cpu").card
    golden = Golden.from_json(read_metadata(source)[GOLDEN_KEY])
    if type(max_batch) is not int or not 1 <= max_batch <= MAX_BATCH:
        raise ConfigError(f"largest batch on Triton: found {max_batch!r}, expected 1 to {MAX_BATCH}")
    target = place_of(card, folder, name)
    make_folder(folder)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with replacing(temporary / MODEL) as part:
            shutil.copyfile(source, part)
        write_bytes(temporary / WARMUP, golden.image.tobytes())
        write_text(temporary / CONFIG, config_of(source, card, golden, target.name, max_batch))
        _rename(temporary, target)
    finally:
        if not (temporary / REPLACED).exists():  # it could not be put back
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def place_of(card: ModelCard, folder: str | os.PathLike[str], name: str | None = None) -> Path:
    """FOLDER/NAME, where a file with this card would be written; nothing is made. Raises as `write_repository`."""
    name = model_name(card.name) if name is None else name
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name of the model on Triton: found {name!r}, expected letters, digits, '.', '_' and '-', a letter or "
            "digit first; give another one"
        )
    repository = Path(folder)
    if repository.is_dir() and not os.access(repository, os.W_OK):
        raise OutputError(f"{repository}: cannot be written (permission denied); choose another place")
    _check_replaceable(repository / name, card)
    return repository / name


def model_name(name: str) -> str:
    """The name on Triton of a card's: the same, or where Triton does not take it, with "_" for what it does not."""
    if NAME.fullmatch(name):
        return name
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._-")[:100] or "model"


def config_of(source: Path, card: ModelCard, golden: Golden, name: str, max_batch: int) -> str:
    """The text of config.pbtxt."""
    channels, classes = card.architecture.in_channels, card.architecture.classes
    height, width = card.input.size
    failed = card.proof is not None and card.proof.gate is not None and not card.proof.gate.passed
    parts = [
        "# Warning: this file failed its gate when it was exported, and was written all the same; see its card.\n"
        if failed
        else "",
        f'''\
name: "{name}"
platform: "onnxruntime_onnx"

# The batch is the first axis and not among dims. Height and width are free; the model was trained at {height}x{width}
# (fit: {card.input.fit}).
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, {channels} ] }} ]  # height, width, {card.input.channels}
output [ {{ name: "probability" data_type: TYPE_FP32 dims: [ {classes}, -1, -1 ] }} ]  # classes, height, width

# Read by clients, not by the server: size, fit, class names and threshold, as in the ONNX file.
parameters {{ key: "{CARD_KEY}" value {{ string_value: {json.dumps(card.to_json())} }} }}

{_instances(card)}
''',
        _batching(max_batch),
        _warmup(card, golden, max_batch),
        "" if card.target == "cpu" or _has_uint8_values(source, card) else _tensorrt(source, card, name, max_batch),
    ]
    return "\n".join(part for part in parts if part)


def _instances(card: ModelCard) -> str:
    if card.target == "cpu":
        return """\
# The file is written for CPUs.
instance_group [ { count: 1 kind: KIND_CPU } ]"""
    return """\
# On each GPU, or on the CPU where there is none. A count of 2 copies one request's data while another one is computed.
instance_group [ { count: 1 kind: KIND_AUTO } ]"""


def _batching(max_batch: int) -> str:
    if max_batch == 1:
        return ""
    return f"""\
# Optional: requests of one size wait up to the delay for others, and leave at once as a batch of the largest size.
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY} }}
"""


def _warmup(card: ModelCard, golden: Golden, max_batch: int) -> str:
    """Requests before the first one: the golden sample's, and noise of the size that clients will send."""
    golden_size, trained_size = golden.image.shape, (*card.input.size, card.architecture.in_channels)
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
      value {{ data_type: TYPE_UINT8 dims: [ {", ".join(map(str, shape))} ] {content} }}
    }}
  }}'''
        for what, shape, content in data
        for batch in sorted({1, max_batch})
    ]
    listed = ",\n".join(samples)
    waits = "memory" if card.target == "cpu" else "GPU libraries, the search for kernels, and TensorRT's engine"
    return f"""\
# Optional: without it the first requests wait for {waits}.
model_warmup [
{listed}
]
"""


def _tensorrt(source: Path, card: ModelCard, name: str, max_batch: int) -> str:
    mode = card.precision.upper()
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"""\
# Optional: on a GPU TensorRT computes what it can, and ONNX Runtime's CUDA provider the rest; ignored on a CPU. Delete
# this section for CUDA alone, and where the server's backend is built without TensorRT: it would refuse the model.
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator [
      {{
        name: "tensorrt"
        # Has to be the file's own. {_PRECISION_NOTES[card.precision]}
        parameters {{ key: "precision_mode" value: "{mode}" }}
        parameters {{ key: "max_workspace_size_bytes" value: "{WORKSPACE}" }}
{_profile(card, max_batch)}
        # Optional: keep engines over restarts. They are found by the graph's name and not by its weights, so the path
        # holds the file's hash; they are executable code, so nobody else may write there.
        # parameters {{ key: "trt_engine_cache_enable" value: "true" }}
        # parameters {{ key: "trt_engine_cache_path" value: "/var/cache/{name}-{digest[:16]}" }}
      }}
    ]
  }}
}}
"""


def _profile(card: ModelCard, max_batch: int) -> str:
    """The shapes that TensorRT builds its engine for, unless images may come at any size."""
    profile = replace(profile_of(card, ProviderOptions(max_batch=max_batch)), best=(max_batch, *card.input.size))
    native = card.input.fit == "native"
    lines = [f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in profile.options().items()]
    notes = _ANY_SIZE if native else _ONE_SIZE
    return "\n".join(f"        {line}" for line in [*notes, *(f"# {line}" if native else line for line in lines)])


_ONE_SIZE = (
    "# One engine for all shapes from min to max, fastest at opt: the largest batch, which is what a busy server",
    "# computes. Others are refused. Without these three lines any shape is taken, but one that is larger or smaller",
    "# than all before has an engine built, for minutes, while its request waits.",
)

_ANY_SIZE = (
    "# Images come at their own size (fit: native), so any shape is taken; but one that is larger or smaller than all",
    "# before has an engine built, for minutes, while its request waits. Where you know your sizes, name them (batch x",
    "# height x width x channels) and one engine serves all from min to max, fastest at opt; others are then refused.",
)

_PRECISION_NOTES = {
    "fp32": "Convolutions still multiply in TF32 where the GPU can.",
    "fp16": "TensorRT may then use fp16 in layers that the file keeps in fp32 too.",
    "int8": "The scales are in the file, so no calibration table is named.",
}


def _has_uint8_values(source: Path, card: ModelCard) -> bool:
    """Whether an int8 file is made for CPUs: TensorRT takes no uint8 values between layers."""
    if card.precision != "int8":
        return False
    graph = onnx.load(source, load_external_data=False).graph
    zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    return any(tensor.name in zeros and tensor.data_type == onnx.TensorProto.UINT8 for tensor in graph.initializer)


def _check_replaceable(target: Path, card: ModelCard) -> None:
    """Refuse to write over anything but the same model, as this module wrote it."""
    if not os.path.lexists(target):
        return
    advice = "remove it, or give another name (--triton-name)"
    if target.is_symlink() or not target.is_dir():
        raise OutputError(f"{target}: is a file or a link, expected a folder or nothing; {advice}")
    files = {path.relative_to(target) for path in target.rglob("*") if not path.is_dir()}
    found = {path.as_posix() for path in files if path.parts[0] != REPLACED}
    strange = sorted(found - {CONFIG, MODEL, WARMUP})
    if strange:
        raise OutputError(f"{target}: holds {strange[0]}, which unet-export does not write; {advice}")
    if not found:
        return
    try:
        there = ModelCard.from_json(read_metadata(target / MODEL).get(CARD_KEY, ""))
    except ModelError as error:
        raise OutputError(f"{target}: holds no model that unet-export wrote; {advice}") from error
    if _kind(there) != _kind(card) or there.weights_sha256 != card.weights_sha256:
        raise OutputError(
            f"{target}: is another model, {_kind(there)} with weights {there.weights_sha256[:12]}, expected "
            f"{_kind(card)} with {card.weights_sha256[:12]}; {advice}"
        )


def _kind(card: ModelCard) -> str:
    return f"{card.precision}{' for CPUs' if card.target == 'cpu' else ''}"


def _rename(temporary: Path, target: Path) -> None:
    """Put a folder in its place, whole; what was there is put back if that fails or is interrupted, else deleted."""
    old = temporary / REPLACED
    try:
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except BaseException as error:
        _put_back(old, target)
        if not isinstance(error, OSError):
            raise
        raise OutputError(f"{target}: cannot be written ({_reason(error)}); choose another place") from error
    shutil.rmtree(target / REPLACED, ignore_errors=True)


def _put_back(old: Path, target: Path) -> None:
    try:
        if old.exists():
            old.rename(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be put back ({_reason(error)}); move it there from {old}") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
