"""The steps' own work, with the CPU in place of the GPU, so that answers and times are real."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_run import answers, behaviour, gpu_tests, sessions, speed, training
from benchmarks.gpu_run.findings import Finding
from benchmarks.gpu_run.sessions import CpuReference, Gap, Model
from benchmarks.results import Measurement, Results, Skipped
from runtime.card import OutputSpec
from runtime.devices.device import CPU_DEVICE
from runtime.devices.registry import golden_tolerance
from runtime.errors import DeviceError

CARS = OutputSpec(classes=("car",), activation="sigmoid")


@pytest.fixture
def on_cpu(monkeypatch):
    for module in (sessions, answers):
        monkeypatch.setattr(module, "CUDA_DEVICE", CPU_DEVICE)
    monkeypatch.setattr(answers, "SHAPES", ((1, 24, 40), (2, 32, 48)))
    monkeypatch.setattr(behaviour, "THREADS", 2)
    monkeypatch.setattr(behaviour, "RUNS", 3)
    for module in (behaviour, speed):
        monkeypatch.setattr(module, "TIMING_S", 0.1)


def test_answers_of_every_precision_are_compared(context, on_cpu):
    found = {one.subject: one for one in answers.on_cuda(context)}
    assert [one for one in found.values() if one.state == "failed"] == []
    assert len(found) == 6 * (1 + 1 + len(answers.SHAPES)) + 3
    fp16 = Model.read(context.model("fp16"))
    limit = golden_tolerance(fp16.card, "cpu", fp16.golden)
    assert found["fp16, TF32 on, 2x32x48"].figures == {"max_abs_error": 0.0, "limit": limit}
    assert found["fp32, TF32 off, 2x32x48"].figures["limit"] == answers.FULL_PRECISION
    assert found["fp32, TF32 on, golden sample"].figures["max_abs_error"] < 1e-5
    assert found["int8, as users open it"].text.startswith("cpu: CPUExecutionProvider, nodes: ")
    assert found["fp32, TF32 on, placement"].figures["CPUExecutionProvider"] > 5


def test_a_precision_without_a_file_is_skipped_and_one_that_fails_leaves_the_others(context, on_cpu):
    context.model("int8").unlink()
    context.model("fp16").write_bytes(b"damaged")
    found = {one.subject: one for one in answers.on_cuda(context)}
    assert found["int8, TF32 on"].text == "there is no file of this precision; see step models"
    assert found["fp16, TF32 off"].state == "failed" and found["fp16, TF32 off"].text.startswith("ModelError: ")
    assert found["fp32, TF32 off, golden sample"].state == "passed"


def test_wrong_answers_fail(context, on_cpu):
    reference = CpuReference(model=Model.read(context.model("fp32")), is_stand_in=False)
    images = reference.model.images((2, 16, 24))
    right = reference.expected(images)
    assert reference.check("same", lambda _: right, 1e-4, images).state == "passed"
    off = reference.check("off", lambda _: np.clip(right + 0.25, 0, 2), 1e-4, images, images)
    assert (off.state, off.text) == ("failed", "off by 0.25, expected at most 0.0001")
    assert off.figures == {"max_abs_error": pytest.approx(0.25), "limit": 1e-4}
    nan = reference.check("nan", lambda _: np.full_like(right, np.nan), 1e-4, images)
    assert nan.text == "off by inf, expected at most 0.0001"
    broken = reference.check("broken", lambda _: 1 / 0, 1e-4, images)
    assert (broken.state, broken.text) == ("failed", "ZeroDivisionError: division by zero")


def test_a_gap_counts_flipped_pixels():
    right = np.zeros((1, 1, 2, 5), np.float32)
    answer = right.copy()
    answer[0, 0, 0, :3] = 0.25, 0.75, 0.625
    gap = Gap.between(answer, right, CARS)
    assert gap == Gap(error=0.75, flipped=pytest.approx(0.2))
    assert Gap.worst([gap, Gap(error=0.1, flipped=0.4)]) == Gap(error=0.75, flipped=pytest.approx(0.3))
    assert Gap.between(answer[:, :, :1], right, CARS) == Gap(error=float("inf"), flipped=1.0)


def test_behaviour_is_measured(context, on_cpu):
    shapes = [*behaviour.change_of_shape(context)]
    assert all(one.state == "measured" for one in shapes) and len(shapes) >= 2
    assert list(shapes[0].figures) == ["1_A_ms", "2_A_ms", "3_B_ms", "4_B_ms", "5_A_ms", "6_B_ms"]
    (threads,) = behaviour.threads(context)
    assert (threads.state, threads.figures["max_abs_error"]) == ("passed", pytest.approx(0, abs=1e-5))
    found = [*behaviour.graphs(context)]
    assert [one.state for one in found] == 3 * [*4 * ["passed"], "measured"]
    assert set(found[4].figures) == {"graph_ms", "plain_ms"}


def test_without_the_cuda_runtime_a_full_card_cannot_be_made(context, on_cpu, monkeypatch):
    monkeypatch.setattr(behaviour, "MANY", (4, 32, 48))
    monkeypatch.setattr(sessions, "MAPS", context.out / "maps")  # PyTorch's tests may have loaded it here
    found = {one.subject: one for one in behaviour.full_card(context)}
    assert found["4 images of 48x32 with 600 MiB, second time"].state == "passed"
    reason = "OSError: no CUDA runtime (libcudart) is loaded in this process"
    assert found["a shape that failed once"] == Finding(subject="a shape that failed once", state="failed", text=reason)


def test_results_of_pytest_are_findings():
    text = """<testsuites><testsuite>
      <testcase classname="tests.a" name="test_one" time="0.1"/>
      <testcase classname="tests.a" name="test_two"><failure message="assert 1&#10; where">long</failure></testcase>
      <testcase classname="tests.a" name="test_three"><skipped message="needs two GPUs"/></testcase>
      <testcase classname="tests.a" name="test_four"><error>fixture
      failed</error></testcase>
    </testsuite></testsuites>"""
    assert [*gpu_tests.findings_in(text)] == [
        Finding.verdict("tests.a::test_one", True),
        Finding.verdict("tests.a::test_two", False, "assert 1 where"),
        Finding.skipped("tests.a::test_three", "needs two GPUs"),
        Finding.verdict("tests.a::test_four", False, "fixture failed"),
    ]


def test_tests_need_a_checkout(context, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_tests, "FOLDER", tmp_path / "missing")
    (found,) = gpu_tests.run(context)
    assert (found.state, found.text) == (
        "skipped",
        "needs the tests of a checkout and pytest; neither is part of an installation",
    )


def results(*measurements):
    skipped = (Skipped(part="latency", contestant="all", settings={"precision": "bf16"}, reason="no file"),)
    return Results(environment={}, method={}, disturbance=None, measurements=measurements, skipped=skipped)


def measurement(part, contestant, unit, value, facts=None, **settings):
    return Measurement(
        part=part, contestant=contestant, settings=settings, unit=unit, values=(value, value / 2), facts=facts or {}
    )


PEAKS = (
    measurement("peak", "matrix product", "GFLOP/s", 1000.0, device="cuda:0", precision="fp16"),
    measurement("peak", "matrix product", "GFLOP/s", 9.0, device="cpu", precision="fp16"),
    measurement("peak", "copy of memory", "GB/s", 500.0, device="cuda:0"),
)


def test_latencies_and_peaks_are_told():
    work = {"batch": 4, "height": 640, "width": 960, "threads": 2, "precision": "fp16", "device": "cuda:0"}
    one = measurement("latency", "unet-deploy", "ms", 4.0, {"peak_share": 0.5}, **work)
    assert [*speed.latency_findings(results(*PEAKS, one))] == [
        Finding.measured("peak, matrix product fp16", {"GFLOP/s": 1000.0}),
        Finding.measured("peak, copy of memory", {"GB/s": 500.0}),
        Finding.measured(
            "latency, unet-deploy",
            {
                "precision": "fp16",
                "size": "960x640",
                "batch": 4,
                "median_ms": 3.0,
                "peak_share": 0.5,
                "max_abs_error": None,
            },
        ),
        Finding.skipped("latency, all, bf16", "no file"),
    ]
    assert speed.peak(results(*PEAKS), "matrix product", "fp16") == 1000.0
    assert speed.peak(results(*PEAKS), "copy of memory", None) == 500.0
    assert speed.peak(results(), "copy of memory", None) is None


BENCH = """
import sys
from pathlib import Path
from benchmarks.results import Measurement, Results

out = Path(sys.argv[sys.argv.index("--out") + 1])
print(sys.argv[1:])
if out.name == "bench-large":
    sys.exit("no room for 1918x1280")
one = Measurement(part="peak", contestant="copy of memory", settings={"device": "cuda:0"}, unit="GB/s", values=(9.0,))
Results(environment={}, method={}, disturbance=None, measurements=(one,)).write(out)
"""


def test_unet_bench_runs_for_each_group_of_sizes(context, monkeypatch, tmp_path):
    """With a program in place of unet-bench, of which the second run fails."""
    (tmp_path / "bench.py").write_text(BENCH)
    real = subprocess.run
    monkeypatch.setattr(
        speed.subprocess,
        "run",
        lambda command, **given: real([sys.executable, str(tmp_path / "bench.py"), *command[4:]], **given),
    )
    files = {"fp32": context.model("fp32"), "fp16": context.model("fp16")}
    found = []
    for folder, (sizes, _) in speed.BENCHES.items():
        found += speed.benched(context, files, Path("model.pth"), context.out / folder, sizes, 50)
    assert found == [
        Finding.verdict("unet-bench, 240x160,960x640", True),
        Finding.measured("peak, copy of memory", {"GB/s": 9.0}),
        Finding.verdict("unet-bench, 1918x1280", False, "ended with status 1: no room for 1918x1280"),
    ]
    asked = (context.out / "steps" / "bench.log").read_text()
    assert "'--size', '240x160,960x640', '--batch', '1,4', '--precision', 'tf32,fp16', '--budget', '35'" in asked


def test_the_options_of_unet_bench_are_accepted():
    """The real command refuses none of them: neither a size, a precision nor a contestant's name."""
    from benchmarks.cases.latency import contestants_by_machine
    from benchmarks.cli import run as unet_bench

    options = ["m.onnx", "--size", "240x160,960x640", "--batch", speed.BATCHES, "--precision", speed.ARITHMETICS]
    options += [word for name in speed.CONTESTANTS for word in ("--contestant", name)]
    given = unet_bench.make_context("run", [*options, "--device", "cuda", "--budget", "35", "--quick"]).params
    _, on_gpu = contestants_by_machine(given["device"], given["contestants"], given["precision"])
    assert {(one.name, one.precision) for one in on_gpu if one.device.kind == "cuda"} == {
        (name, precision) for name in speed.CONTESTANTS for precision in ("tf32", "fp16")
    }


def test_the_floor_is_that_of_operations_or_of_bytes(context):
    from benchmarks.measuring.graph_cost import count_work

    path = context.model("fp32")
    work = count_work(path, 1, 160, 240)
    convolutions = [node for node in work.nodes if node.operator in ("Conv", "ConvTranspose")]
    gflop, moved = (sum(getattr(node, name) for node in convolutions) for name in ("gflop", "mb_moved"))
    assert speed.floor_ms(path, 1.0, 1e9, 1.0) == pytest.approx(1e3 * gflop)
    assert speed.floor_ms(path, 1e9, 1.0, 1.0) == pytest.approx(moved)
    assert speed.floor_ms(path, 1e9, 1.0, 0.5) == pytest.approx(moved / 2)


def test_floors_of_files_are_found(context, on_cpu):
    files = {"fp32": context.model("fp32"), "fp16": context.model("fp16")}
    (found,) = speed.floor_findings(files, results(*PEAKS))  # TF32 has no peak here
    assert found.subject == "floor, fp16"
    assert found.figures["times_floor"] == pytest.approx(found.figures["median_ms"] / found.figures["floor_ms"])


def test_without_peaks_there_is_no_floor(context):
    (found,) = speed.floors(context)
    assert found.text == "needs the peaks that step speed measures, which are not there; see that step"


def write_metrics(run, *rows):
    run.mkdir(parents=True)
    names = ("epoch", "train_loss", "image_dice", "train_seconds")
    (run / "metrics.csv").write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows)]))


@pytest.mark.parametrize(
    ("rows", "state", "text"),
    [
        ([(1, 0.51, 0.8, 2.0)], "passed", "the first epoch's loss is 0.01 off the CPU's 0.5000, expected at most 0.02"),
        ([(1, 0.55, 0.8, 2.0)], "failed", "the first epoch's loss is 0.05 off the CPU's 0.5000, expected at most 0.02"),
        ([(1, 0.5, 0.8, 2.0), (2, 0.5, 0.8, 2.0)], "failed", "2 epochs were trained, expected 1"),
    ],
)
def test_a_training_on_the_gpu_is_compared_with_the_cpu(context, rows, state, text):
    write_metrics(context.out / "small", (1, 0.5, 0.8, 3.0), (2, 0.4, 0.8, 3.0))
    write_metrics(context.out / "runs" / "fp32", *rows)
    found = training.variant_finding(context, training.VARIANTS[0], 12.34)
    assert (found.state, found.text) == (state, text)
    assert (found.figures["train_loss"], found.figures["whole_s"]) == (rows[-1][1], 12.3)


def test_training_and_camvid_say_which_folders_they_need(context, tmp_path):
    (found,) = training.variants(context)
    assert found.text == "needs the data set of step models, which is not there; see that step"
    data = tmp_path / "Data"
    (data / "train_images").mkdir(parents=True)
    (found,) = training.camvid(replace(context, data=data))
    assert found.text == f"{data}: has no folder train_classes; expected CamVid's images and labels"


TRAINER = """
import sys
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--out") + 1])
old = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
run.mkdir(exist_ok=True, parents=True)
epochs = int(sys.argv[sys.argv.index("--epochs") + 1])
print("trained in", run.name, old, flush=True)
if "--compile" in sys.argv:
    sys.exit("torch.compile: no compiler")
rows = [f"{epoch},0.5,0.6,0.7,2.0" for epoch in range(1, epochs + 1)]
(run / "metrics.csv").write_text("\\n".join(["epoch,train_loss,image_dice,iou,train_seconds", *rows]))
"""


@pytest.fixture
def trainer(context, monkeypatch, tmp_path):
    """A program in place of the trainer, which cannot compile; it prints what it found in the folder of its run."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    real = subprocess.Popen
    monkeypatch.setattr(
        training.subprocess,
        "Popen",
        lambda command, **given: real([sys.executable, str(tmp_path / "trainer.py"), *command[4:]], **given),
    )
    (context.out / "data").mkdir()


def test_each_way_to_train_is_tried_though_one_fails(context, trainer):
    write_metrics(context.out / "runs" / "fp32", (1, 0.9, 0.1, 9.0))  # of an earlier run of the step
    found = [*training.variants(context)]
    assert [(one.subject, one.state) for one in found] == [
        *((variant.name, "passed") for variant in training.VARIANTS[:4]),
        ("bf16, compiled", "failed"),
    ]
    assert found[-1].text == "DeviceError: ended with status 1: torch.compile: no compiler"
    assert found[2].figures["epoch"] == 3 and found[0].figures["train_loss"] == 0.5
    logs = {name: (context.out / "steps" / f"training-{name}.log").read_text() for name in ("fp32", "fp16")}
    assert logs == {
        "fp32": "trained in fp32 []\n",
        "fp16": "trained in fp16 []\ntrained in fp16 ['metrics.csv']\n",
    }


def test_no_training_is_begun_without_time(context, trainer):
    found = [*training.variants(replace(context, ends=time.time() + 3))]
    assert {one.state for one in found} == {"skipped"} and len(found) == len(training.VARIANTS)
    assert found[0].text == "3 s are left, and it needs 15 s"


@pytest.mark.timing
def test_a_training_that_takes_too_long_is_told(context, trainer, tmp_path):
    (tmp_path / "trainer.py").write_text("import time; print('step 7', flush=True); time.sleep(60)")
    with pytest.raises(DeviceError) as error:
        training.train_for(context, "slow", context.out / "data", (), 1, 5.0)
    assert str(error.value) == "took longer than 5 s; last output: step 7"


def test_the_options_of_every_training_are_accepted(context):
    """Each variant's options make a `TrainConfig`, so a first run does not end at a typing error."""
    from unet_core.config import TrainConfig
    from unet_core.train import main

    fresh = [(*training.COMMON, *one.options) for one in training.VARIANTS if "--resume" not in one.options]
    for options in (*fresh, training.CAMVID):
        flags = main.make_context("train", ["Data", "--out", "run", *options]).params
        given = {name: value for name, value in flags.items() if value is not None and name != "resume"}
        assert TrainConfig(**given).device == "cuda"
    assert len(training.CLASSES.split(",")) == 11
