"""The answers of CUDA and TensorRT: golden samples, parity with the CPU in each precision, placement of nodes."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from benchmarks.gpu_run.findings import Finding, Scalar
from benchmarks.gpu_run.processes import StepContext
from benchmarks.gpu_run.sessions import (
    CUDA_DEVICE,
    CpuReference,
    Gap,
    Images,
    Model,
    answer_of,
    cpu_session,
    tried,
    within,
)
from runtime.card import Precision
from runtime.devices.device import Device
from runtime.devices.registry import golden_tolerance
from runtime.devices.session import Session
from runtime.errors import one_line
from runtime.predictor import Predictor

SHAPES = ((1, 56, 88), (2, 160, 240), (1, 37, 501), (4, 320, 480))
"""Batches of synthetic images, (batch, height, width), on and off the stride; pictures of the data set come after."""

PROFILE = {"max_batch": 4, "min_size": (32, 88), "max_size": (320, 512)}
"""Options of TensorRT's profile that takes the golden sample and all of `SHAPES`."""

FULL_PRECISION = 1e-4
"""Error that is expected of an fp32 file that multiplies in fp32."""


def on_cuda(context: StepContext) -> Iterator[Finding]:
    """Compare CUDA's answers in each precision, with TF32 and without."""
    for precision in get_args(Precision):
        for tf32 in (True, False):
            name = f"{precision}, TF32 {'on' if tf32 else 'off'}"
            if not context.model(precision).exists():
                yield Finding.skipped(name, "there is no file of this precision; see step models")
                continue
            yield from tried(name, partial(compared, context, precision, name, CUDA_DEVICE, tf32=tf32))
        if context.model(precision).exists() and not context.is_stand_in:
            yield predictor_finding(context.model(precision), f"{precision}, as users open it")


def on_tensorrt(context: StepContext) -> Iterator[Finding]:
    """Build an engine of each file, compare its answers, and start from the cached engine again."""
    for precision in get_args(Precision):
        if not context.model(precision).exists():
            continue
        folder = context.out / "engines"
        for name in (f"{precision}, engine built", f"{precision}, engine from the cache"):
            options = {"engine_folder": folder, **PROFILE}
            yield from tried(name, partial(compared, context, precision, name, Device(kind="tensorrt"), **options))


def compared(
    context: StepContext, precision: Precision, name: str, device: Device, **options: object
) -> Iterator[Finding]:
    """Open a file on a device, and compare its golden sample and its answers at several shapes with the CPU's.

    The CPU's answer is the same file's. The share of flipped pixels is against the fp32 file, and over the pictures.
    """
    model = Model.read(context.model(precision))
    started = time.perf_counter()
    session = model.open(device, **options)
    seconds: dict[str, Scalar] = {} if context.is_stand_in else {"opened_s": round(time.perf_counter() - started, 2)}
    yield Finding.measured(f"{name}, placement", {**session.placement(), **seconds})
    limit = golden_tolerance(model.card, device.kind, model.golden)
    if model.card.precision == "fp32" and options.get("tf32") is False:
        limit = max(FULL_PRECISION, model.card.proof.tolerance or 0.0 if model.card.proof else 0.0)
    yield golden_finding(context, model, session, f"{name}, golden sample", limit)
    reference = CpuReference(model=model, is_stand_in=context.is_stand_in)
    for shape in SHAPES if model.card.input.padded else ():
        subject = f"{name}, {'x'.join(map(str, shape))}"
        yield reference.check(subject, partial(answer_of, session), limit, model.images(shape))
    pictures = model.pictures(context)
    if pictures:
        yield picture_finding(context, model, session, f"{name}, {len(pictures)} pictures", pictures, limit)
    session.close()


def predictor_finding(path: Path, subject: str) -> Finding:
    """Open a file on CUDA by `Predictor`, which refuses a wrong golden sample and heavy nodes that run elsewhere."""
    try:
        with Predictor(path, CUDA_DEVICE.kind) as predictor:
            return Finding.verdict(subject, True, one_line(str(predictor.report)))
    except Exception as error:  # ONNX Runtime's errors share no base class
        return Finding.failure(subject, error)


def golden_finding(context: StepContext, model: Model, session: Session, subject: str, limit: float) -> Finding:
    """Replay all images of the golden sample."""
    error = model.golden.largest_error(partial(answer_of, session), model.card.input.fixed_size)
    if context.is_stand_in:
        return Finding(subject=subject, state="ran")
    return within(subject, error, limit, {"simulated": model.golden.tf32_error})


def picture_finding(
    context: StepContext, model: Model, session: Session, subject: str, pictures: Sequence[Images], limit: float
) -> Finding:
    """Compare the answers to real pictures with the same file's on the CPU, and with those of the fp32 file."""
    answers = [answer_of(session, picture) for picture in pictures]
    if context.is_stand_in:
        return Finding(subject=subject, state="ran")
    own, full = (
        Gap.worst(
            [
                Gap.between(answer, answer_of(cpu_session(path), picture), model.card.output)
                for answer, picture in zip(answers, pictures, strict=True)
            ]
        )
        for path in (model.path, context.model("fp32"))
    )
    return within(subject, own.error, limit, {"error_of_fp32": full.error, "flipped": full.flipped})
