"""Engines that ONNX Runtime's TensorRT provider builds, keeps, finds again and runs, on a stand-in for TensorRT.

Its engines take the shapes of their profile and are read only as they were written. They answer 0.747 everywhere, and
the stand-in for CUDA answers 0.
"""

import json
import re
import shutil
from dataclasses import replace

import pytest

from runtime.card import CARD_KEY

pytestmark = pytest.mark.stub

BEGIN = """
import gc, hashlib, json, os, sys, threading, time
import onnxruntime
from pathlib import Path
from on_stand_in import images, mark, no_golden, open_on, set_memory
from runtime import Predictor
from runtime.options import ProviderOptions

model, folder, answers = sys.argv[1], Path(sys.argv[2]), []

def opened(**options):
    return open_on(model, "tensorrt", engine_folder=folder, **options)

def answer(session, *shape):
    probability = session.run(images(*shape)).probability
    return [*probability.shape, round(float(probability.min()), 3), round(float(probability.max()), 3)]

def asked(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def hold_builds():
    os.environ["STAND_IN_BUILDS_WAIT"] = "1"

def let_builds_go():
    os.environ["STAND_IN_BUILDS_WAIT"] = "0"

def wait_for_build():
    calls = Path(os.environ["STAND_IN_CALLS"])
    while "tensorrt build" not in calls.read_text().rpartition("mark ")[2]:
        time.sleep(0.01)
"""

END = """
print(json.dumps(answers))
"""

ENGINE = 0.747


@pytest.fixture
def run(stand_in, models, tmp_path):
    """Run a program on the stand-in, with a model and a folder for engines."""

    def run_program(code):
        return stand_in.run(BEGIN + code + END, models["conv"], tmp_path / "engines", tensorrt=True)

    return run_program


def engine_calls(calls):
    """The calls about engines, without the builder's options: "build", "engine" (read), "run 1x8x12x3" and so on."""
    called = [call.removeprefix("tensorrt ") for call in calls if call.startswith("tensorrt ")]
    return [
        call for call in called if call.partition(" ")[0] in ("build", "engine", "refused", "context", "run", "close")
    ]


def part(ran, name):
    return engine_calls(ran.part(name))


NEW = ["build", "engine", "context"]
"""Calls of an engine that is built: it is read back from what the builder gave."""

KEPT = ["engine", "context"]


def test_an_engine_is_built_once_and_found_by_the_next_process(run, tmp_path):
    first = run("answers += [answer(opened(), 1, 8, 12)]")
    assert first.answer == [[1, 1, 8, 12, ENGINE, ENGINE]]
    assert engine_calls(first.calls) == [*NEW, "run 1x8x12x3", "close"]
    (manifest,) = (tmp_path / "engines").glob("*/manifest.json")
    names = [re.sub(r"\d{15,}|[0-9a-f]{64}", "HASH", path.name) for path in (tmp_path / "engines").rglob("*.*")]
    assert sorted(names) == [
        "HASH.lock",
        "TensorrtExecutionProvider_cache_sm90.timing",
        "manifest.json",
        "unet_HASH_0_sm90.engine",
        "unet_HASH_0_sm90.profile",
    ]
    files = {path.name for path in manifest.parent.iterdir()} - {manifest.name}
    assert json.loads(manifest.read_bytes())["files"].keys() == files
    second = run(
        """
session = opened()
for shape in ((1, 8, 12), (3, 8, 12), (16, 56, 88), (1, 3, 5)):
    mark(shape)
    answers.append(answer(session, *shape))
mark("outside")
answers += [asked(answer, session, 1, 60, 88), asked(answer, session, 1, 8, 92)]
"""
    )
    assert engine_calls(second.calls)[:2] == KEPT
    assert [part(second, shape) for shape in ("(1, 8, 12)", "(3, 8, 12)", "(16, 56, 88)", "(1, 3, 5)")] == [
        ["run 1x8x12x3"],
        ["run 3x8x12x3"],
        ["run 8x56x88x3"] * 2,
        ["run 1x4x5x3"],
    ]
    assert part(second, "outside") == ["close"]
    assert (first.stderr, second.stderr) == ("", "")
    advice = "or allow_rebuild=True to have another engine built"
    assert second.answer == [
        [1, 1, 8, 12, ENGINE, ENGINE],
        [3, 1, 8, 12, ENGINE, ENGINE],
        [16, 1, 56, 88, ENGINE, ENGINE],
        [1, 1, 3, 5, ENGINE, ENGINE],
        "DeviceError: height of the batch: found 60, the TensorRT engine takes 4 to 56; give "
        f"ProviderOptions(max_size=...), {advice}",
        "DeviceError: width of the batch: found 92, the TensorRT engine takes 4 to 88; give "
        f"ProviderOptions(max_size=...), {advice}",
    ]


def test_the_same_model_by_another_name_has_an_engine_of_its_own(run, models, tmp_path):
    shutil.copy(models["conv"], tmp_path / "renamed.onnx")
    (tmp_path / "moved").mkdir()
    shutil.copy(models["conv"], tmp_path / "moved" / "renamed.onnx")
    ran = run(
        f"""
for path in (model, {str(tmp_path / "renamed.onnx")!r}, model, {str(tmp_path / "moved" / "renamed.onnx")!r}):
    mark("next")
    open_on(path, "tensorrt", engine_folder=folder)
"""
    )
    calls = engine_calls(ran.calls)
    assert calls == [*NEW, "close", *NEW, "close", *KEPT, "close", *KEPT, "close"]


def test_engines_that_are_damaged_or_foreign_are_built_anew(run):
    ran = run(
        """
def engine(suffix=".engine"):
    return next(folder.glob(f"*/*{suffix}"))

def seal():
    manifest = next(folder.glob("*/manifest.json"))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in manifest.parent.iterdir()}
    del files[manifest.name]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": files}))

opened()
whole = engine().read_bytes()
changed = whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]
for name, content, sealed in (
    ("changed", changed, False),
    ("changed and sealed", changed, True),
    ("cut", whole[:1000], True),
    ("empty", b"", True),
):
    engine().write_bytes(content)
    if sealed:
        seal()
    mark(name)
    opened()
for name, suffix in (("without its profile", ".profile"), ("without its engine", ".engine")):
    engine(suffix).unlink()
    seal()
    mark(name)
    opened()
kernels = next(folder.glob("timing-*/*"))
kernels.write_bytes(b"")
mark("no kernels")
opened(max_batch=2)
kernels.write_bytes(b"nonsense")
mark("damaged kernels")
opened(max_batch=3)
answers.append(kernels.read_text())
os.environ["STAND_IN_ENGINE"] = "another version"
mark("of another version")
opened()
mark("afterwards")
opened()
"""
    )
    assert part(ran, "changed") == [*NEW, "close"]
    for name in ("changed and sealed", "cut", "empty", "of another version"):
        assert part(ran, name) == ["refused", *NEW, "close"]
    for name in ("without its profile", "without its engine"):  # built by ONNX Runtime in the old engine's folder first
        assert part(ran, name) == [*NEW, "close", *NEW, "close"]
    assert part(ran, "afterwards") == [*KEPT, "close"]
    assert part(ran, "no kernels") == part(ran, "damaged kernels") == [*NEW, "close"]
    assert [call for call in ran.part("damaged kernels") if "timings" in call] == [
        "tensorrt timings 8",
        "tensorrt timings 0",
    ]
    assert ran.answer == ["timing of 1 builds"]
    assert "TensorRT EP could not create timing cache" in ran.stdout and "they are measured anew\n" in ran.stdout
    reasons = [line for line in ran.stdout.splitlines() if line.startswith("engine ")]
    for reason, expected in zip(
        reasons,
        [
            "_sm90.engine does not have its hash; it is built anew",
            *["TensorRT EP could not deserialize engine from cache"] * 3,
            *["was changed when it was loaded, so TensorRT found it stale; it is built anew"] * 2,
            "TensorRT EP could not deserialize engine from cache",
        ],
        strict=True,
    ):
        assert expected in reason


def test_other_shapes_have_an_engine_built_where_that_is_allowed(run):
    ran = run(
        """
def on_device(*shape):
    value = onnxruntime.OrtValue.ortvalue_from_numpy(images(*shape), "cuda", 0)
    given = session.run_dlpack(value)
    return [*given.shape(), given.device_name(), round(float(given.numpy().max()), 3)]

session = opened(allow_rebuild=True, max_batch=4)
for function, shape in (
    (answer, (1, 8, 200)), (answer, (1, 8, 160)), (on_device, (1, 72, 200)), (on_device, (6, 72, 200)),
    (on_device, (2, 3, 12)),
):
    mark(shape)
    answers.append(function(*([session] if function is answer else []), *shape))
mark("next session")
session = opened(allow_rebuild=True, max_batch=4)
answers.append(answer(session, 1, 8, 200))
mark("while it is built")
hold_builds()
wide = threading.Thread(target=lambda: answers.append(answer(session, 1, 300, 8)))
wide.start()
wait_for_build()
answers.append(answer(session, 1, 8, 12))
let_builds_go()
wide.join()
"""
    )
    assert ran.answer == [
        [1, 1, 8, 200, ENGINE, ENGINE],
        [1, 1, 8, 160, ENGINE, ENGINE],
        [1, 1, 72, 200, "cuda", ENGINE],
        [6, 1, 72, 200, "cuda", ENGINE],
        [2, 1, 3, 12, "cuda", ENGINE],
        [1, 1, 8, 200, ENGINE, ENGINE],
        [1, 1, 8, 12, ENGINE, ENGINE],
        [1, 1, 300, 8, ENGINE, ENGINE],
    ]
    assert part(ran, "(1, 8, 200)") == [*NEW, "close", "run 1x8x200x3"]
    assert part(ran, "(1, 8, 160)") == ["run 1x8x160x3"]
    assert part(ran, "(6, 72, 200)") == [*NEW, "close", "run 6x72x200x3"]
    assert part(ran, "next session") == [*KEPT, "close", *KEPT, "close", "run 1x8x200x3"]
    assert part(ran, "while it is built")[:3] == ["build", "run 1x8x12x3", "engine"]


def test_tensors_on_the_device_are_answered_there(run):
    ran = run(
        """
def on_device(*shape):
    value = onnxruntime.OrtValue.ortvalue_from_numpy(images(*shape), "cuda", 0)
    mark(shape)
    given = session.run_dlpack(value)
    mark("copied out")
    return [*given.shape(), given.device_name(), round(float(given.numpy().max()), 3)]

session = opened(max_batch=4)
answers += [asked(on_device, *shape) for shape in ((2, 8, 12), (5, 8, 12), (1, 8, 200), (1, 3, 12))]
"""
    )
    found, *refused = ran.answer
    assert found == [2, 1, 8, 12, "cuda", ENGINE]
    assert not [call for call in ran.part("(2, 8, 12)") if "cudaMemcpy" in call]
    advice = "or allow_rebuild=True to have another engine built"
    assert refused == [
        "DeviceError: images of the batch: found 5, the TensorRT engine takes 1 to 4; give "
        f"ProviderOptions(max_batch=...), {advice}",
        "DeviceError: width of the batch: found 200, the TensorRT engine takes 4 to 88; give "
        f"ProviderOptions(max_size=...), {advice}",
        "DeviceError: tensor: found images of 12x3, and the TensorRT engine takes 12x4; repeat their last row and "
        "column up to that, which does not change the answer, or give ProviderOptions(allow_rebuild=True)",
    ]


def test_auto_serves_on_cuda_until_the_engine_is_built(run):
    ran = run(
        """
no_golden()

def ask(height, width):
    return round(float(predictor.predict(images(1, height, width)[0], size="native").probability.max()), 3)

def predict_all_the_time():
    while not switched.is_set():
        seen.append(ask(8, 12))
    seen.append(ask(8, 12))

hold_builds()
predictor = Predictor(model, options=ProviderOptions(engine_folder=folder))
answers += [predictor.report.device, predictor.report.switch, ask(8, 12)]
seen, switched = [], threading.Event()
asking = [threading.Thread(target=predict_all_the_time) for _ in range(3)]
for thread in asking:
    thread.start()
let_builds_go()
while not predictor.report.device.startswith("tensorrt"):
    time.sleep(0.01)
switched.set()
for thread in asking:
    thread.join()
answers += [sorted(set(seen)), predictor.report.provider, predictor.report.switch.partition(" after")[0]]
mark("inside")
answers.append(ask(56, 88))
mark("outside")
answers.append(ask(60, 88))
mark("next predictor")
predictor = Predictor(model, options=ProviderOptions(engine_folder=folder))
answers += [predictor.report.device, predictor.report.switch, ask(8, 12)]
mark("two at once")
hold_builds()
two = [Predictor(model, options=ProviderOptions(engine_folder=folder, max_batch=2)) for _ in range(2)]
let_builds_go()
for predictor in two:
    predictor.prepare()
    answers.append(predictor.report.device)
"""
    )
    assert ran.answer == [
        "cuda:0",
        "tensorrt:0 is being built, cuda:0 serves until then",
        0.0,
        [0.0, ENGINE],
        "TensorrtExecutionProvider",
        "switched from cuda:0 to tensorrt:0",
        ENGINE,
        0.0,
        "tensorrt:0",
        "",
        ENGINE,
        "tensorrt:0",
        "tensorrt:0",
    ]
    assert part(ran, "inside") == ["run 1x56x88x3"]
    assert part(ran, "outside") == []
    assert part(ran, "next predictor")[:3] == [*KEPT, "close"]
    assert part(ran, "two at once").count("build") == 1


MEMORY = """
import ctypes
no_golden()
cuda = ctypes.CDLL("libcudart.so.13")

def used():
    gc.collect()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value

def predictor_of(device, **options):
    return Predictor(model, device, options=ProviderOptions(engine_folder=folder, **options))
"""


def test_a_predictor_gives_its_memory_back(run):
    ran = run(
        MEMORY
        + """
def use(device):
    with predictor_of(device) as predictor:
        predictor.predict(images(1, 8, 12)[0])
        answers.append(used())

use("tensorrt")
before = used()
use("tensorrt")
answers.append(used() - before)
hold_builds()
mark("build")
predictor = predictor_of("auto", max_batch=2)
wait_for_build()
builder = predictor._model.session._builder
predictor.close()
answers.append(used() - before)
mark("build goes on")
let_builds_go()
builder.join()
answers.append(used() - before)
mark("next")
predictor_of("auto", max_batch=2)
"""
    )
    one, other, *left = ran.answer
    assert one == other > 2**20
    assert left == [0, 0, 0]
    assert part(ran, "build goes on") == ["engine", "context", "close"]
    assert part(ran, "next")[:2] == KEPT


FULL = (
    "has too little memory for its TensorRT engine, it seems ([ONNXRuntimeError] : 1 : FAIL : TensorRT EP {} for "
    "fused node: ...); free memory on the GPU (see nvidia-smi), or give a smaller "
    "ProviderOptions(max_batch=..., max_size=...)"
)


def test_a_full_card_is_told_and_costs_no_engine(run):
    ran = run(
        MEMORY
        + """
predictor_of("tensorrt").close()
mark("full")
set_memory(used() + 2**20 + 5000)
answers.append(asked(predictor_of, "tensorrt"))
predictor = predictor_of("auto")
answers += [predictor.report.device, dict(predictor.report.skipped)["tensorrt"]]
predictor.close()
mark("free")
set_memory(2**40)
predictor = predictor_of("tensorrt", allow_rebuild=True)
set_memory(used() + 2**20 + 5000)
wide = images(1, 100, 100)[0]
answers.append(asked(predictor.predict, wide, size="native"))
answers.append(float(predictor.predict(images(1, 8, 12)[0]).probability.max()) > 0)
predictor.close()
set_memory(used() + 2**20 + 5000)
mark("built and full")
answers.append(asked(predictor_of, "tensorrt", max_batch=4))
set_memory(2**40)
mark("built before")
predictor_of("tensorrt", max_batch=4).close()
hold_builds()
mark("build")
predictor = predictor_of("auto", max_batch=3)
predictor.predict(images(1, 8, 12)[0])
wait_for_build()
set_memory(used() + 2**19)
let_builds_go()
predictor._model.session._builder.join()
answers.append(predictor.report.switch)
"""
    )
    no_context, not_read = FULL.format("could not build execution context"), FULL.format("failed to deserialize engine")
    said = [re.sub(r"node: \w+\)", "node: ...)", text) if isinstance(text, str) else text for text in ran.answer]
    assert said == [
        f"DeviceError: device tensorrt:0: {no_context}",
        "cuda:0",
        no_context,
        f"DeviceError: device tensorrt:0: {no_context}",
        True,
        f"DeviceError: device tensorrt:0: {no_context}",
        f"stayed on cuda:0, since tensorrt:0 failed: device tensorrt:0: {not_read}",
    ]
    assert part(ran, "full") == ["engine", "close"] * 2
    assert part(ran, "free")[:2] == KEPT
    assert part(ran, "built and full") == ["build", "engine", "close"]
    assert part(ran, "built before") == [*KEPT, "close"]


def test_an_engine_that_is_wrong_when_it_is_new_is_not_built_at_every_start(run):
    ran = run(
        """
for start in range(2):
    mark(start)
    answers.append(asked(Predictor, model, "tensorrt", options=ProviderOptions(engine_folder=folder)))
no_golden()
mark("right")
answers.append(Predictor(model, "tensorrt", options=ProviderOptions(engine_folder=folder)).report.device)
"""
    )
    first, second, last = ran.answer
    assert first == second
    assert first.startswith("DeviceError: device tensorrt:0: answers the golden sample wrongly (off by 0.")
    assert first.endswith("; export the model again, update the driver or choose another device")
    assert last == "tensorrt:0"
    assert part(ran, "0") == [*NEW, "run 1x56x88x3", "close"]
    assert part(ran, "1") == [*KEPT, "run 1x56x88x3", "close"]
    assert part(ran, "right")[:2] == KEPT


def test_a_graph_that_tensorrt_takes_in_part_is_refused_before_an_engine_is_built(run):
    ran = run(
        """
for kind in ("Relu", "Cast", "Conv", "Sigmoid"):
    answers.append(asked(opened, extra={"trt_op_types_to_exclude": kind}))
"""
    )
    assert ran.answer == [
        "DeviceError: device tensorrt:0: TensorRT takes the graph in 2 parts, since it does not take Relu; give "
        "device='cuda', or leave out trt_op_types_to_exclude",
        "DeviceError: device tensorrt:0: TensorRT does not take the node that makes 'float', so its engine would hold "
        "only a part of the model; give device='cuda', or leave out trt_op_types_to_exclude",
        "DeviceError: device tensorrt:0: 2 nodes would run elsewhere: {'Conv on CUDAExecutionProvider': 2}",
        "DeviceError: device tensorrt:0: 1 nodes would run elsewhere: {'Sigmoid on CUDAExecutionProvider': 1}",
    ]
    assert engine_calls(ran.calls) == []


def test_a_refused_session_gives_its_memory_back_at_once(run, write_model):
    model = write_model("conv", "fixed.onnx", fit="letterbox", fixed_batch=2)
    ran = run(
        f"""
gc.disable()
mark("refused")
options = {{"engine_folder": folder, "extra": {{"trt_op_types_to_exclude": "Sigmoid"}}}}
answers.append(asked(open_on, {str(model)!r}, "tensorrt", **options))
mark("afterwards")
"""
    )
    assert ran.answer == [
        "DeviceError: device tensorrt:0: 1 nodes would run elsewhere: {'Sigmoid on CUDAExecutionProvider': 1}"
    ]
    assert part(ran, "refused") == [*NEW, "close"]


def test_threads_and_gpus_share_one_engine(run):
    ran = run(
        """
def open_and_run(device):
    answers.append(answer(open_on(model, device, engine_folder=folder), 1, 8, 12))

os.environ["STAND_IN_DEVICES"] = "2"
opening = [threading.Thread(target=open_and_run, args=(f"tensorrt:{number % 2}",)) for number in range(4)]
for thread in opening:
    thread.start()
for thread in opening:
    thread.join()
"""
    )
    assert ran.answer == [[1, 1, 8, 12, ENGINE, ENGINE]] * 4
    assert sorted(engine_calls(ran.calls)) == sorted(["build", *[*KEPT, "run 1x8x12x3", "close"] * 4])


def test_files_of_one_shape_and_of_every_precision_have_engines(run, make_card, write_model):
    files = [write_model("conv", "fixed.onnx", fit="letterbox", fixed_batch=2)]
    for precision in ("fp16", "int8"):
        card = replace(make_card("conv"), precision=precision)
        files.append(write_model("conv", f"{precision}.onnx", metadata={CARD_KEY: card.to_json()}))
    ran = run(
        f"""
for path in {[str(path) for path in files]!r} * 2:
    mark(Path(path).stem)
    answers.append(answer(open_on(path, "tensorrt", engine_folder=folder), 3, 8, 12))
"""
    )
    assert ran.answer == [[3, 1, 8, 12, ENGINE, ENGINE]] * 6
    calls = engine_calls(ran.calls)
    fixed, moving = ["run 2x8x12x3"] * 2, ["run 3x8x12x3"]
    assert calls == [
        call for start in (NEW, KEPT) for runs in (fixed, moving, moving) for call in (*start, *runs, "close")
    ]
