"""Questions that only a device can answer: changes of shape, a full card, threads, CUDA graphs, DLPack."""

import math
import time
from collections.abc import Iterator
from functools import partial
from threading import Thread
from typing import get_args

import numpy as np

from benchmarks.gpu_run.findings import Finding, Scalar
from benchmarks.gpu_run.processes import StepContext
from benchmarks.gpu_run.sessions import (
    TIMING_S,
    CardMemory,
    CpuReference,
    Gap,
    Images,
    Model,
    Probabilities,
    answer_of,
    tried,
    within,
)
from benchmarks.measuring.rounds import MIN_ROUNDS, interleave
from runtime.card import Precision, UNetConfig
from runtime.devices.registry import golden_tolerance
from runtime.errors import one_line
from runtime.options import Heuristics

SMALL_SHAPE, LARGE_SHAPE = (1, 160, 240), (1, 320, 480)
TURNS = "AABBAB"

LIMIT, MANY = 600 * 2**20, (64, 480, 640)
"""Bytes of the card for ONNX Runtime, and a batch that needs more than these."""

LARGE = (1, 1536, 2048)
"""An image for which the card has no room."""

THREADS, RUNS = 8, 20
GRAPH_SHAPES, GRAPH_ROUNDS = ((1, 160, 240), (2, 160, 240), (1, 96, 96)), 4


def change_of_shape(context: StepContext) -> Iterator[Finding]:
    """Time runs of shapes A and B in the order A A B B A B, for each of cuDNN's heuristics."""
    model = Model.read(context.model("fp32"))
    images = {"A": model.images(SMALL_SHAPE), "B": model.images(LARGE_SHAPE)}
    shapes = {name: "x".join(map(str, batch.shape[:3])) for name, batch in images.items()}

    def timed(heuristics: Heuristics) -> Iterator[Finding]:
        session = model.open(cudnn_heuristics=heuristics)
        figures: dict[str, Scalar] = {}
        for number, name in enumerate(TURNS, 1):
            started = time.perf_counter()
            session.run(images[name])
            figures[f"{number}_{name}_ms"] = round(1e3 * (time.perf_counter() - started), 2)
        text = f"A is {shapes['A']}, B is {shapes['B']}"
        yield Finding.measured(f"heuristics {heuristics}", {} if context.is_stand_in else figures, text)

    for heuristics in get_args(Heuristics):
        yield from tried(f"heuristics {heuristics}", partial(timed, heuristics))


def full_card(context: StepContext) -> Iterator[Finding]:
    """Run a batch that does not fit, twice; then a shape that failed once, when there is room again; then close."""
    model = Model.read(context.model("fp32"))
    reference, limit = CpuReference(model=model, is_stand_in=context.is_stand_in), tolerance(model)
    session = model.open(gpu_mem_limit=LIMIT, max_batch=MANY[0])
    two = model.images((2, *MANY[1:]))
    subject = f"{MANY[0]} images of {MANY[2]}x{MANY[1]} with {LIMIT >> 20} MiB"

    def last_two(images: Images) -> Probabilities:
        return answer_of(session, np.tile(images, (MANY[0] // 2, 1, 1, 1)))[-2:]

    for which in ("first", "second"):
        yield reference.check(f"{subject}, {which} time", last_two, limit, two)
    yield reference.check("one of these images afterwards", partial(answer_of, session), limit, two[:1])
    session.close()
    yield from tried("a shape that failed once", lambda: stale_plan(context, model))
    yield from tried("memory after close", lambda: given_back(model))


def stale_plan(context: StepContext, model: Model) -> Iterator[Finding]:
    """Let an image fail for want of memory, and run the same shape when there is room: is it another plan's answer?"""
    reference = CpuReference(model=model, is_stand_in=context.is_stand_in)
    session, large = model.open(), model.images(LARGE)
    session.run(model.images((1, 64, 64)))
    card, room = CardMemory(), room_for_one(model)
    card.hold(card.free() - room)
    subject = f"{LARGE[2]}x{LARGE[1]} with {room >> 20} MiB free"
    try:
        session.run(large)
        yield Finding.measured(subject, {}, "it fitted, so the next finding proves nothing")
    except Exception as error:  # ONNX Runtime's errors share no base class
        yield Finding.measured(subject, {}, f"{type(error).__name__}: {one_line(str(error))}"[:300])
    card.release()
    yield reference.check("the same shape with room", partial(answer_of, session), tolerance(model), large)
    session.close()


def room_for_one(model: Model) -> int:
    """Return the bytes for one and a half of the values that the first level holds, which needs two at once."""
    network = model.card.architecture
    width = network.widths[0] if isinstance(network, UNetConfig) else 16
    return 6 * math.prod(LARGE) * width


def given_back(model: Model) -> Iterator[Finding]:
    """Measure the card's free memory before a session is open, while it is, and after it is closed."""
    card = CardMemory()
    before = card.free()
    session = model.open()
    session.run(model.images(LARGE_SHAPE))
    opened = card.free()
    session.close()
    del session
    after = card.free()
    figures = {"held_mib": (before - opened) >> 20, "held_after_close_mib": (before - after) >> 20}
    yield Finding.measured("memory after close", figures)


def threads(context: StepContext) -> Iterator[Finding]:
    """Run two shapes from many threads at once, and compare every answer."""
    model = Model.read(context.model("fp32"))
    session, limit = model.open(), tolerance(model)
    batches = [model.images((1 + number % 2, *SMALL_SHAPE[1:])) for number in range(THREADS)]
    reference = CpuReference(model=model, is_stand_in=context.is_stand_in)
    expected = [None if context.is_stand_in else reference.expected(batch) for batch in batches]
    errors, messages = list[float](), list[str]()

    def work(number: int) -> None:
        for _ in range(RUNS):
            try:
                answer, right = session.run(batches[number]).probability, expected[number]
            except Exception as error:  # ONNX Runtime's errors share no base class
                messages.append(f"{type(error).__name__}: {one_line(str(error))}"[:300])
                continue
            errors.append(0.0 if right is None else Gap.between(answer, right, model.card.output).error)

    workers = [Thread(target=work, args=(number,)) for number in range(THREADS)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = round(time.perf_counter() - started, 2)
    subject = f"{THREADS} threads, {RUNS} runs each"
    if messages:
        yield Finding.verdict(subject, False, f"{len(messages)} of {THREADS * RUNS} runs failed: {messages[0]}")
    elif context.is_stand_in:
        yield Finding(subject=subject, state="ran")
    else:
        yield within(subject, max(errors), limit, {"seconds": seconds})


def graphs(context: StepContext) -> Iterator[Finding]:
    """Capture CUDA graphs of several shapes, replay them in turns, and time one image with graphs and without."""
    for precision in get_args(Precision):
        if context.model(precision).exists():
            yield from tried(f"graphs, {precision}", partial(graphs_of, context, precision))


def graphs_of(context: StepContext, precision: str) -> Iterator[Finding]:
    """Capture, replay and time the graphs of one file.

    The first shape is replayed after each other shape's plans were built; a wrong answer then means that its graph was
    destroyed with its plans.
    """
    model = Model.read(context.model(precision))
    reference, limit = CpuReference(model=model, is_stand_in=context.is_stand_in), tolerance(model)
    session, plain = model.open(cuda_graphs=True), model.open()
    batches = [model.images(shape) for shape in GRAPH_SHAPES]
    shapes = ", ".join("x".join(map(str, shape)) for shape in GRAPH_SHAPES)
    for turn in range(1, GRAPH_ROUNDS + 1):
        yield reference.check(f"{precision}, round {turn}: {shapes}", partial(answer_of, session), limit, *batches)
    if not context.is_stand_in:
        calls = {"graph_ms": partial(session.run, batches[0]), "plain_ms": partial(plain.run, batches[0])}
        times = interleave(calls, 2 * MIN_ROUNDS, budget_s=TIMING_S)
        medians = {name: float(np.median(values)) for name, values in times.items()}
        yield Finding.measured(f"{precision}, one image of 240x160", medians)
    session.close()
    plain.close()


def dlpack(context: StepContext) -> Iterator[Finding]:
    """Hand a tensor of PyTorch on the GPU to a session, and the answer back, without a copy."""
    import torch
    from torch.utils.dlpack import from_dlpack

    model = Model.read(context.model("fp32"))
    session, images = model.open(), model.images((2, *SMALL_SHAPE[1:]))

    def answer(batch: Images) -> Probabilities:
        tensor = torch.from_numpy(batch).cuda()
        torch.cuda.synchronize()
        found: Probabilities = from_dlpack(session.run_dlpack(tensor)).cpu().numpy()
        return found

    reference = CpuReference(model=model, is_stand_in=context.is_stand_in)
    yield reference.check("DLPack with PyTorch", answer, tolerance(model), images)


def tolerance(model: Model) -> float:
    """Return the largest error that CUDA is allowed in this file."""
    return golden_tolerance(model.card, "cuda", model.golden)
