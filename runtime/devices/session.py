"""Session: a model on one device, by ONNX Runtime, which is proved to run there."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runtime.card import ModelCard
from runtime.devices.default_logger import no_default_warnings, session_severity, without_first_gpu
from runtime.devices.device import Device
from runtime.devices.placement import Node, misplaced_nodes, node_placement, placement
from runtime.devices.profiles import Shape, full_batches
from runtime.errors import ClosedError, ConfigError, DeviceError, ImageError, ModelError, UnetError, one_line
from runtime.options import ProviderOptions
from runtime.support.cpu_count import allowed_cores

Note = Callable[[str], None]
"""Tells the user one line."""

SIGNATURE = [("image", "tensor(uint8)", 4), ("probability", "tensor(float)", 4)]
"""Name, type and number of axes of a graph's input and output."""

CLOSED = "predictor: is closed; open another one"

UNKNOWN_OPTION = re.compile(r'(?:Unknown provider option: "|Invalid TensorRT EP option: )(\w+)')
REFUSED_VALUE = re.compile(
    r"""(?:Failed to parse provider option "|The value for the key ')(\w+)(?:' should be ([^.\n]+))?"""
)
"""Words by which ONNX Runtime's providers refuse an option or its value, with its name and what they would take."""

NO_GRAPH_CAPTURE = "cannot use the graph capture feature"
"""Words by which ONNX Runtime refuses to open a model for CUDA graphs."""

NO_REASON = re.compile(
    r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\)(?: \[with [^\]]*\])? | ; (?:hostname|file|line)=[^;]*(?= ;|$)"
)
"""Parts of ONNX Runtime's errors: file, line and function in its sources; the machine's name."""

DLPACK_CPU, DLPACK_CUDA = 1, 2
"""Values of DLDeviceType in dlpack.h."""


class BatchOutput(NamedTuple):
    """The answer to a batch: probability float32 [batch, classes, height, width], and the seconds spent copying it and
    the batch between the memory of the CPU and the device's."""

    probability: NDArray[np.float32]
    copy_seconds: float = 0.0

    @classmethod
    def joined(cls, parts: "Sequence[BatchOutput]", count: int) -> "BatchOutput":
        """Join the answers to the parts of a batch of `count` images; the last part may answer a few more."""
        if len(parts) == 1 and len(parts[0].probability) == count:
            return parts[0]
        probability = np.concatenate([part.probability for part in parts])[:count]
        return cls(probability, sum(part.copy_seconds for part in parts))


class Session:
    """A model on one device; each backend derives its own from this class.

    Attributes:
        device: where it runs.
        nodes: where ONNX Runtime put each node of the graph.
        bf16: True if the file is computed in bf16, as its card permits.
        arithmetic: that of the network's layers, "" if the program that runs it does not tell.
    """

    bf16 = False
    arithmetic = ""

    def __init__(self, inference: Any, device: Device, card: ModelCard) -> None:
        self.device = device
        self.nodes: tuple[Node, ...] = node_placement(inference)
        self._card = card
        self._inference: Any = inference

    @property
    def engine(self) -> str:
        """Name and version of the program that runs it."""
        return f"ONNX Runtime {onnxruntime.__version__}"

    def run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        """Answer a batch uint8 [batch, height, width, channels]; any number of threads may call this at once.

        For a file of one shape the batch is split into such batches, and the last one is filled up.

        Raises:
            DeviceError: the device fails, most likely because it is out of memory.
            ClosedError: the session is closed.
        """
        fixed = self._card.input.fixed_batch
        try:
            if fixed is None:
                return self._run(batch)
            return BatchOutput.joined([self._run(part) for part in full_batches(batch, fixed)], len(batch))
        except UnetError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise self._failure(list(batch.shape), error) from error

    def run_steady(self, batch: NDArray[np.uint8]) -> BatchOutput:
        """`run`, for a caller whose batches have changing numbers of images.

        On CUDA a smaller batch may be padded to the one before it, where that saves more time than it takes.
        """
        return self.run(batch)

    def run_dlpack(self, tensor: Any) -> Any:
        """Answer a batch in the device's own memory, without a copy, for any library that speaks DLPack.

        Args:
            tensor: uint8 [batch, height, width, channels], contiguous, writable, on this session's device: a torch or
                CuPy array on the GPU, a numpy array on the CPU. On a GPU it must be ready: synchronise the stream that
                wrote it first.

        Returns:
            `onnxruntime.OrtValue` float32 [batch, classes, height, width] on the same device, for `from_dlpack` of that
            library. Batches are neither split nor padded, so a new shape may cost a choice of kernels.

        Raises:
            ImageError: the tensor has another type, shape, layout or device.
            DeviceError, ClosedError: as `run`.
        """
        self._open_inference()
        value = self._imported(tensor)
        try:
            return self._run_value(value)
        except UnetError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise self._failure(value.shape(), error) from error

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002 - TensorRT's is choosy
        """Return True if a batch of (batch, height, width) can run here."""
        return True

    def takes_whole(self, shape: Shape) -> bool:  # noqa: ARG002 - as above
        """Return True if it can run in one part and without padding, as `run_dlpack` does."""
        return True

    def placement(self) -> Mapping[str, int]:
        """Count the graph's nodes by execution provider."""
        return placement(self.nodes)

    def prepare(self) -> None:
        """Run one batch of the trained size, so that the first user does not wait for what happens once."""
        self.run(np.zeros((1, *self._card.input.size, self._card.architecture.in_channels), np.uint8))

    def close(self) -> None:
        """Give the model's memory back, as soon as runs in other threads have ended; running it again raises."""
        self._inference = None

    def _run(self, batch: NDArray[np.uint8]) -> BatchOutput:
        return BatchOutput(self._open_inference().run(["probability"], {"image": batch})[0])

    def _run_value(self, value: Any) -> Any:
        return run_value(self._open_inference(), value, self.device.index)

    def _imported(self, tensor: Any) -> Any:
        channels, fixed = self._card.architecture.in_channels, self._card.input.fixed_shape
        sizes = "batch, height, width" if fixed is None else ", ".join(map(str, fixed))
        expected = f"uint8 [{sizes}, {channels}] on {self.device}"
        try:
            value = onnxruntime.OrtValue.from_dlpack(tensor)
        except Exception as error:  # each library has its own
            found = f"{type(tensor).__name__} {getattr(tensor, 'dtype', '')} {list(getattr(tensor, 'shape', ()))}"
            raise ImageError(
                f"tensor: found {found}, which DLPack does not take, expected a contiguous, writable {expected}"
            ) from error
        shape, kind, place = value.shape(), value.data_type(), tuple(value.__dlpack_device__())
        here = (DLPACK_CUDA, self.device.index) if self.device.numbered else (DLPACK_CPU, 0)
        strange = fixed is not None and tuple(shape[:3]) != fixed
        if kind != "tensor(uint8)" or len(shape) != 4 or shape[3] != channels or 0 in shape or place != here or strange:
            raise ImageError(f"tensor: found {kind} {shape} on {value.device_name()}, expected {expected}")
        return value

    def _open_inference(self) -> Any:
        inference = self._inference
        if inference is None:
            raise ClosedError(CLOSED)
        return inference

    def _failure(self, shape: list[int], error: Exception) -> DeviceError:
        return DeviceError(
            f"device {self.device}: cannot run a batch of {shape} ({reason_of(error)}); try a smaller one"
        )


def reason_of(error: BaseException) -> str:
    """Return in one line what ONNX Runtime's error says, without places in its source code and the machine's name."""
    return one_line(NO_REASON.sub("", str(error)))[:300]


def run_copied(inference: Any, place: tuple[str, int], batch: NDArray[np.uint8], options: Any) -> BatchOutput:
    """Copy a batch into the session's own arena, run, and copy the answer out; both copies are timed.

    Only one run of a session may be at work: then ONNX Runtime copies the batch in the run's own stream, and before it.
    """
    start = time.perf_counter()
    binding = inference.io_binding()
    try:
        binding.bind_cpu_input("image", np.ascontiguousarray(batch))
        binding.bind_output("probability", *place)
        copied = time.perf_counter()
        inference.run_with_iobinding(binding, options)
        done = time.perf_counter()
        answer = owned(binding.get_outputs()[0].numpy())
    finally:  # a traceback that holds the binding must not hold its memory
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
    return BatchOutput(answer, copied - start + time.perf_counter() - done)


def owned(answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an array that owns its memory; on the CPU the array of an OrtValue is its buffer itself."""
    return answer if answer.flags.owndata else answer.copy()


def run_value(inference: Any, value: Any, index: int, options: Any = None, answer: Any = None) -> Any:
    """Run an OrtValue where it is, on the device `index` of its kind, and return the answer's OrtValue.

    That is `answer`, if one is given; otherwise it is made in the session's own arena on that device.
    """
    binding = inference.io_binding()
    try:
        binding.bind_ortvalue_input("image", value)
        if answer is None:
            binding.bind_output("probability", value.device_name(), index)
        else:
            binding.bind_ortvalue_output("probability", answer)
        inference.run_with_iobinding(binding, options)
        return binding.get_outputs()[0]
    finally:
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()


def open_inference(path: Path, device: Device, chain: list[tuple[str, dict[str, str]]], options: Any) -> Any:
    """Open an `onnxruntime.InferenceSession` that runs on `device`, and look up whether it does.

    Args:
        chain: execution providers with their options, best first; the first one is the device's.
        options: see `session_options`.

    Raises:
        ConfigError: a provider does not know an option, or does not take its value, or CUDA graphs cannot hold the
            model's runs.
        DeviceError: the model would run somewhere else, in whole or in a part that matters.
        ModelError: the graph's input and output are not those of `unet-export`.
    """
    provider = chain[0][0]
    try:
        with no_default_warnings(chain):
            inference = onnxruntime.InferenceSession(
                str(path), options, providers=without_first_gpu(chain), enable_fallback=0
            )
    except Exception as error:  # ONNX Runtime's errors share no base class
        if refused := refused_option(str(error), chain):
            raise ConfigError(refused) from error
        raise
    if provider not in inference.get_providers():
        raise DeviceError(f"device {device}: ONNX Runtime opened the model on {inference.get_providers()[0]} instead")
    found = [(item.name, item.type, len(item.shape)) for item in (*inference.get_inputs(), *inference.get_outputs())]
    if found != SIGNATURE:
        raise ModelError(f"{path}: found the inputs and outputs {found}, expected {SIGNATURE}; export it again")
    misplaced = misplaced_nodes(node_placement(inference), provider)
    if misplaced:
        raise DeviceError(f"device {device}: {sum(misplaced.values())} nodes would run elsewhere: {dict(misplaced)}")
    return inference


def refused_option(said: str, chain: list[tuple[str, dict[str, str]]]) -> str | None:
    """Return what to tell of an option that ONNX Runtime does not take; None if it `said` something else."""
    version = onnxruntime.__version__
    if NO_GRAPH_CAPTURE in said:
        return (
            f"cuda_graphs: found True, which ONNX Runtime {version} does not take for this model: its runs copy values "
            "between the GPU and the CPU; leave it out"
        )
    if unknown := UNKNOWN_OPTION.search(said):
        return f"extra: found {unknown[1]!r}, which ONNX Runtime {version} does not know; leave it out"
    if not (refused := REFUSED_VALUE.search(said)):
        return None
    name, expected = refused.groups()
    value = next((own[name] for _, own in chain if name in own), "")
    advice = f"expected {expected}" if expected else "leave it out"
    return f"extra: found {name!r} with the value {value!r}, which ONNX Runtime {version} refuses; {advice}"


def session_options(threads: int, options: ProviderOptions | None = None) -> Any:
    """Make the `onnxruntime.SessionOptions` of all devices, which record each node's provider.

    The session prints nothing to standard error, unless the logger "runtime" is set to DEBUG: then its warnings too.
    See also `runtime.devices.default_logger`.

    Memory patterns are off: ONNX Runtime keeps one for each shape and lays out a block for it, so memory grows with
    varied shapes. A U-Net of 5 levels (2.8 M weights) after 500 sizes from 32 to 700: 404 MB and growing with them, 278
    MB and flat without, for the same CPU time; 224 MB, peaks of 395 MB and 15 % more CPU time without the arena.
    """
    options = options or ProviderOptions()
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = session_severity()
    made.enable_mem_pattern = False
    made.enable_cpu_mem_arena = options.arena
    made.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    cores = allowed_cores()
    if options.pinned and threads == len(cores) > 1:
        places = ";".join(str(core + 1) for core in cores[1:])  # numbered from 1; the first is left to who calls
        made.add_session_config_entry("session.intra_op_thread_affinities", places)
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return made
