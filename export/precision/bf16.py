"""The gate of bf16: a file's answers, as OpenVINO computes them in bf16, on real images.

The file is not changed. What passes is written beside its golden sample, and only then may a device compute it so.
A CPU with AVX-512 but without instructions for bf16 computes it step by step, slowly, and rounds by the same rule: the
root mean square of its errors was that of AMX and of AVX512-BF16 within 1 %, on two networks (the instructions hidden
by ONEDNN_MAX_CPU_ISA). With AVX2 alone OpenVINO 2026.4 fails.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from export.precision.gate import FP16_FLIPPED, bf16_is_good
from export.precision.judge import measured
from export.proof import ExpectedAnswer, graph_run, proof_rows
from export.samples import Samples
from runtime.card import Bf16Permission, ModelCard
from runtime.devices.backend import SessionRequest
from runtime.devices.device import Device
from runtime.devices.openvino import OpenVinoSession, is_installed, reason_of
from runtime.errors import ConfigError, DeviceError
from runtime.model_file.golden import Golden, NetworkFunction
from runtime.options import ProviderOptions
from runtime.support.cpu_count import available_threads, has_avx512
from unet_core.reporting.progress import Display

MACHINE = "give the same command on a machine with AVX-512 (avx512bw in /proc/cpuinfo), or leave out --allow bf16"


def require_bf16() -> None:
    """Raise an error, before the work begins, if bf16 cannot be judged on this machine.

    Raises:
        ConfigError: OpenVINO is not installed.
        DeviceError: this CPU cannot compute bf16, not even slowly.
    """
    if not is_installed():
        raise ConfigError(
            "--allow bf16: is judged by OpenVINO, which is not installed; pip install openvino, or leave it out"
        )
    if not has_avx512():
        raise DeviceError(f"--allow bf16: this CPU cannot compute bf16, not even slowly; {MACHINE}")


def judge_bf16(
    model: onnx.ModelProto,
    exact: NetworkFunction,
    card: ModelCard,
    samples: Samples,
    pictures: Sequence[ExpectedAnswer],
    golden: Golden,
    max_flipped: float | None,
    display: Display,
) -> tuple[Bf16Permission, str | None]:
    """Judge the answers of a graph in bf16; return the verdict, and why the images can show nothing, if so.

    Args:
        model: the graph of the file, fp32 or int8.
        exact: the fp32 network.
        card: the file's card.
        samples: real images to judge on.
        pictures: pictures of the proof.
        golden: the file's golden sample.
        max_flipped: largest share (0..1) of flipped pixels that passes; None: 0.01 %, or the limits of an int8 file.
        display: shows progress.

    Raises:
        DeviceError: OpenVINO cannot compute the graph in bf16 here.
    """
    limit = FP16_FLIPPED if max_flipped is None and card.precision == "fp32" else max_flipped
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(model.SerializeToString())
        session = open_in_bf16(file, card)

        def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return session.run(images).probability

        gate, doubt, _ = measured(run, exact, card, samples, (), partial(bf16_is_good, limit=limit), display, "bf16")
        without = graph_run(model)
        answers = [(case, without(case.images)) for case, _ in pictures]
        permission = Bf16Permission(
            gate=gate,
            max_flipped=limit,
            golden_error=min(golden.largest_error(run, card.input.fixed_size), 1.0),
            max_abs_error=max(row.parity.max_abs_error for row in proof_rows(run, answers, card.output)),
            provider=f"{session.engine} in {session.arithmetic}",
        )
        session.close()  # on Windows a file that is open cannot be removed
    return permission, doubt


def open_in_bf16(file: Path, card: ModelCard) -> OpenVinoSession:
    """Open a file in OpenVINO on this CPU, in bf16 whatever its card says; raises a DeviceError if that fails."""
    request = SessionRequest(
        path=file,
        device=Device(kind="openvino", numbered=False, unit="CPU"),
        card=card,
        options=ProviderOptions(),
        threads=available_threads(),
    )
    try:
        session = OpenVinoSession(request, bf16=True)
    except DeviceError:
        raise
    except Exception as error:  # OpenVINO raises RuntimeError, and others for what it does not know
        raise DeviceError(f"--allow bf16: OpenVINO cannot compute bf16 here ({reason_of(error)}); {MACHINE}") from error
    if session.arithmetic == "u8":
        raise ConfigError("--allow bf16: all layers of this file are int8, so there is nothing to allow; leave it out")
    if "bf16" not in session.arithmetic:
        raise DeviceError(f"--allow bf16: OpenVINO computes all layers in {session.arithmetic} here; {MACHINE}")
    return session
