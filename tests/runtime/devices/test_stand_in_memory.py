"""A full card, by ONNX Runtime's own CUDA provider on a stand-in: what fails, what follows, what bounds memory."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.stub

BEGIN = """
import json, sys
import onnxruntime
from on_stand_in import images, mark, open_on, set_memory

ROOM = 140 << 30
answers = {}

def ask(name, function, *arguments):
    mark(name)
    try:
        shape = function(*arguments).shape
        answers[name] = list(shape() if callable(shape) else shape)
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"
    mark("other")

def run(session, *shape):
    return session.run(images(*shape)).probability

def on_device(*shape):
    return onnxruntime.OrtValue.ortvalue_from_numpy(images(*shape), "cuda", 0)
"""
END = """
mark("end")
print(json.dumps(answers))
"""
ONE = (
    "DeviceError: device cuda:0: has too little memory for one image of 1024x1024; predict it in tiles or smaller, or "
)
ONE += "free memory on the GPU (see nvidia-smi)"


def answered(ran, name):
    """Shapes (images, height, width) of the answers of the model's two convolutions, each by its plan, in order."""
    words = [line.split() for line in ran.part(name) if line.startswith("cudnn answer")]
    return [(int(batch), int(height), int(width)) for _, _, batch, _, height, width in words]


def plans(ran, name):
    return ran.part(name).count("cudnn plan")


@pytest.fixture(scope="module")
def full(stand_in, models):
    """A card that is full now and then."""
    code = """
session = open_on(sys.argv[1])
set_memory(40_000_000)
ask("first", run, session, 1, 1024, 1024)
set_memory(ROOM)
ask("second", run, session, 1, 1024, 1024)

session = open_on(sys.argv[1])
ask("small", run, session, 1, 64, 64)
set_memory(120_000_000)
ask("halved", run, session, 8, 1024, 1024)
ask("later", run, session, 8, 1024, 1024)
set_memory(40_000_000)
ask("failed", run, session, 1, 1024, 1032)
set_memory(ROOM)
ask("after", run, session, 1, 1024, 1032)

session = open_on(sys.argv[1])
ask("tensor", session.run_dlpack, on_device(1, 64, 64))
set_memory(60_000_000)
ask("tensor failed", session.run_dlpack, on_device(1, 1024, 1024))
set_memory(ROOM)
ask("tensor after", session.run_dlpack, on_device(1, 1024, 1024))

session = open_on(sys.argv[1])
ask("smallest", run, session, 1, 4, 4)
set_memory(0)
ask("nothing", run, session, 1, 1024, 1024)
ask("still nothing", run, session, 1, 1024, 1024)
set_memory(ROOM)
ask("free", run, session, 1, 1024, 1024)
"""
    return stand_in.run(BEGIN + code + END, models["conv"])


def test_half_the_batch_fits_after_the_arena_was_shrunk(full):
    assert full.answer["halved"] == full.answer["later"] == [8, 1, 1024, 1024]
    whole = [place for place in answered(full, "halved") if place[1] > 4]
    assert whole == [(2, 1024, 1024), *[(1, 1024, 1024)] * 16]  # of two images the second convolution failed
    assert answered(full, "later") == [(1, 1024, 1024)] * 16 and plans(full, "later") == 0


def test_a_shape_that_failed_is_not_answered_by_the_plan_of_another_one(full):
    assert full.answer["failed"].startswith(
        "DeviceError: device cuda:0: has too little memory for one image of 1032x1024"
    )
    assert answered(full, "failed") == [(2, 4, 4)] * 2 and plans(full, "failed") == 2
    assert full.answer["after"] == [1, 1, 1024, 1032]
    assert answered(full, "after") == [(1, 1024, 1032)] * 2 and plans(full, "after") == 2


def test_nor_is_a_tensor(full):
    assert full.answer["tensor failed"].startswith(
        "DeviceError: device cuda:0: cannot run a batch of [1, 1024, 1024, 3] ("
    )
    assert answered(full, "tensor failed")[-2:] == [(2, 4, 4)] * 2
    assert answered(full, "tensor after") == [(1, 1024, 1024)] * 2 and plans(full, "tensor after") == 2


def test_the_very_first_run_may_fail(full):
    assert full.answer["first"] == ONE
    assert full.answer["second"] == [1, 1, 1024, 1024]
    assert answered(full, "second") == [(1, 1024, 1024)] * 2


def test_a_card_without_any_memory_is_told_until_some_is_free(full):
    assert full.answer["nothing"] == ONE
    assert full.answer["still nothing"].startswith("DeviceError: device cuda:0: a run failed, and so does one of ")
    assert full.answer["still nothing"].endswith("; free memory on the GPU (see nvidia-smi) and try again")
    assert answered(full, "nothing") == answered(full, "still nothing") == []  # it asks for memory first
    assert full.answer["free"] == [1, 1, 1024, 1024]
    assert answered(full, "free")[-2:] == [(1, 1024, 1024)] * 2 and plans(full, "free") == 4


def peak(calls):
    """Return the most bytes that these calls asked for and held at once; what was refused counts too."""
    held = most = 0
    for line in calls:
        name, _, size = line.partition(" ")
        held += int(size) if name == "cudaMalloc" else -int(size) if name == "cudaFree" else 0
        most = max(most, held)
    return most


def test_the_memory_limit_bounds_all_that_a_run_holds(stand_in, models):
    code = """
session = open_on(sys.argv[1], gpu_mem_limit=64 << 20)
ask("batch", run, session, 32, 512, 512)
ask("large", run, session, 1, 8000, 8000)
ask("batch again", run, session, 32, 512, 512)
"""
    ran = stand_in.run(BEGIN + code + END, models["softmax"])
    assert ran.answer["batch"] == ran.answer["batch again"] == [32, 3, 512, 512]
    assert ran.answer["large"] == ONE.replace("1024x1024", "8000x8000")
    assert 50 << 20 < peak(ran.calls) <= 64 << 20


def test_graphs_are_dropped_before_the_arena_shrinks_and_tensors_are_not_in_their_memory(stand_in, models):
    code = """
session = open_on(sys.argv[1], cuda_graphs=True)
ask("captured", run, session, 1, 64, 64)
ask("replayed", run, session, 1, 64, 64)
tensor = on_device(1, 64, 64)
place = session.run_dlpack(tensor).data_ptr()
(_, buffers), = session._runner._graphs.values()
answers["place"] = place - buffers._input.data_ptr()
ask("replayed again", run, session, 1, 64, 64)
set_memory(40_000_000)
ask("failed", run, session, 1, 1024, 1024)
set_memory(ROOM)
ask("captured again", run, session, 1, 64, 64)
"""
    ran = stand_in.run(BEGIN + code + END, models["conv"])
    graphs = {
        name: [line for line in ran.part(name) if line.startswith(("cudaGraph", "cudaStreamB"))]
        for name in ("captured", "replayed", "replayed again", "failed", "captured again")
    }
    begun = ["cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaGraphLaunch"]
    assert graphs == {
        "captured": begun,
        "replayed": begun[2:],
        "replayed again": begun[2:],
        "failed": [],
        "captured again": begun,
    }
    assert ran.answer["failed"] == ONE
    assert 0 < ran.answer["place"] < 1 << 20  # beside the buffers, in the megabyte that was allocated for them


UNET = Path(__file__).parents[2] / "data" / "v0.1" / "models" / "fp32.onnx"


def test_wherever_a_run_fails_the_next_one_of_its_shape_has_its_own_plans(stand_in):
    code = """
session = open_on(sys.argv[1])
ask("whole", run, session, 1, 256, 256)
failed, tensor = set(), on_device(1, 256, 256)
for step in range(40):
    session = open_on(sys.argv[1])
    run(session, 2, 32, 32)
    set_memory(200_000 * step)
    try:
        session.run_dlpack(tensor) if step % 2 else session.run(images(1, 256, 256))
    except Exception as error:
        failed.add(str(error.__cause__ or error).partition(" node. ")[0].rpartition(" ")[2])
    set_memory(ROOM)
    ask(f"after {step}", run, session, 1, 256, 256)
answers["failed"] = sorted(failed)
"""
    ran = stand_in.run(BEGIN + code + END, UNET)
    assert {"Conv", "Relu", "Concat"} < set(ran.answer["failed"])
    whole = answered(ran, "whole")
    assert len(whole) == 13 and whole[-1] == (1, 256, 256)
    assert [step for step in range(40) if answered(ran, f"after {step}") != whole] == []
    assert {tuple(ran.answer[f"after {step}"]) for step in range(40)} == {(1, 1, 256, 256)}


CONVOLUTIONS = [
    (4, 1),
    (4, 1),
    (8, 2),
    (8, 2),
    (16, 4),
    (16, 4),
    (8, 2),
    (8, 2),
    (8, 2),
    (4, 1),
    (4, 1),
    (4, 1),
    (1, 1),
]
"""Channels of the answer of each convolution of the network, and the fraction of the picture's sides that it has."""


def stray(answers):
    """Answers (batch, channels, height, width) that do not follow in a run: each begins anew, and may end anywhere."""
    found, place = [], 0
    while place < len(answers):
        batch, _, height, width = answers[place]
        run = [(batch, channels, height // part, width // part) for channels, part in CONVOLUTIONS]
        length = next((k for k, pair in enumerate(zip(run, answers[place:], strict=False)) if pair[0] != pair[1]), 13)
        found += [] if length else [answers[place]]
        place += max(1, length)
    return found


@pytest.mark.parametrize("graphs", [False, True])
def test_threads_get_answers_by_their_own_plans_while_the_card_is_full_now_and_then(stand_in, graphs):
    code = """
import random, time
from concurrent.futures import ThreadPoolExecutor

SHAPES = [(count, *size) for count in (1, 2, 5, 9) for size in ((64, 64), (96, 64), (256, 256))]
session = open_on(sys.argv[1], cuda_graphs=sys.argv[2] == "True")
tensors = {shape: on_device(*shape) for shape in SHAPES}

def ask_often(seed):
    choice, outcomes = random.Random(seed).choice, []
    for turn in range(40):
        if seed == 0:
            set_memory(choice([0, 2_000_000, 8_000_000, 20_000_000, ROOM]))
        shape = choice(SHAPES)
        try:
            if choice([True, False]):
                outcomes.append(session.run_dlpack(tensors[shape]).shape()[0] == shape[0])
            else:
                outcomes.append(len(run(session, *shape)) == shape[0])
        except Exception as error:
            outcomes.append(type(error).__name__)
    return outcomes

with ThreadPoolExecutor(4) as pool:
    outcomes = sum(pool.map(ask_often, range(4)), [])
set_memory(ROOM)
answers["right"] = [outcomes.count(True), outcomes.count("DeviceError")]
answers["last"] = [len(run(session, *shape)) for shape in SHAPES]
"""
    ran = stand_in.run(BEGIN + code + END, UNET, graphs)
    words = [line.split()[2:] for line in ran.calls if line.startswith("cudnn answer")]
    assert stray([tuple(map(int, line)) for line in words]) == []
    assert ran.answer["last"] == [1, 1, 1, 2, 2, 2, 5, 5, 5, 9, 9, 9]
    assert sum(ran.answer["right"]) == 160 and ran.answer["right"][0] > 0
