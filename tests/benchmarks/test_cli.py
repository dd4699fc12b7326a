"""unet-bench from the command line, with parts that give known figures where a real one is not needed."""

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import get_args

import pytest
from click.testing import CliRunner

from benchmarks import cli, suite
from benchmarks.contestants import base
from benchmarks.contestants.base import Arithmetic
from benchmarks.measuring import environment, rounds
from benchmarks.results import Measurement, Results, Skipped
from benchmarks.suite import BenchmarkPlan, Part
from runtime.errors import ImageError


def bench(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def measured(part, value=2.0, settings=None):
    return Measurement(part=part, contestant="it", settings=settings or {}, unit="ms", values=(value,) * 5)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    """Runs without --out write to the current folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture
def parts(monkeypatch):
    """Parts give one figure each, or do what `replaced` says; `parts` has name and plan of each call."""

    class Calls(list):
        def __init__(self):
            super().__init__()
            self.replaced = {}

    calls = Calls()

    def measure(part, plan):
        if part.name in calls.replaced:
            return calls.replaced[part.name](plan)
        calls.append((part.name, plan))
        return [measured(*(part.results or (part.name,))[:1])]

    monkeypatch.setattr(Part, "measure", measure)
    monkeypatch.setattr(environment, "busy_cores", lambda: 0.0)
    return calls


def test_all_parts_but_those_that_train_are_measured_in_order(thin, parts, tmp_path):
    done = bench(thin / "model.onnx", "--out", tmp_path / "out", "--threads", 1)
    assert done.exit_code == 0, done.output
    assert [name for name, *_ in parts] == [name for name in suite.PARTS if not suite.PARTS[name].on_request]
    results = Results.read(tmp_path / "out")
    assert [one.part.replace(" ", "-") for one in results.measurements] == [name for name, *_ in parts]
    assert results.method == {"rounds": 20, "threads": 1, "options": "model.onnx --out out --threads 1"}
    assert results.environment["model"] == "model.onnx"
    assert (tmp_path / "out" / "report.md").read_text().startswith("# Benchmarks of ")


def test_without_out_each_run_has_a_folder_of_its_own(thin, parts):
    for _ in range(3):
        assert bench(thin / "model.onnx", "--part", "latency").exit_code == 0
    folders = sorted(Path().iterdir())
    assert [folder.name for folder in folders] == ["bench-model", "bench-model-2", "bench-model-3"]
    assert all((folder / "report.md").exists() for folder in folders)


def test_runs_without_out_that_begin_together_have_a_folder_each(thin, parts, monkeypatch):
    read = cli.plan_of

    def plan_of(*arguments):
        if not Path("bench-model").exists():  # another run is as far, while this one still checks its options
            Path("bench-model").mkdir()
        return read(*arguments)

    monkeypatch.setattr(cli, "plan_of", plan_of)
    done = bench(thin / "model.onnx", "--part", "latency")
    assert done.exit_code == 0, done.output
    assert list(Path("bench-model").iterdir()) == []
    assert Path("bench-model-2", "report.md").exists()


@pytest.mark.parametrize("options", [("--device", "openvino"), ("--contestant", "caffe"), ("--batch", 0)])
def test_what_is_refused_leaves_no_folder(thin, parts, tmp_path, options):
    assert bench(thin / "model.onnx", "--out", tmp_path / "out", *options).exit_code == 2
    assert bench(thin / "model.onnx", *options).exit_code == 2
    assert not (tmp_path / "out").exists() and list(Path().iterdir()) == []


def test_larger_images_are_taken_by_max_pixels(thin, tmp_path):
    """The limit is that of all parts that read images."""
    options = ("--data", thin, "--quick", "--device", "cpu", "--threads", 1)
    parts = ("--part", "overhead", "--part", "stages", "--part", "cold-start", "--part", "folder")
    refused = bench(thin / "model.onnx", *options, *parts, "--out", tmp_path, "--max-pixels", 100)
    assert refused.exit_code == 1
    reasons = {one.part: one.reason for one in Results.read(tmp_path).skipped if one.contestant == "all"}
    expected = "has 60 x 40 pixels, expected at most 100 in all; make it smaller, or allow more with --max-pixels 2400"
    assert {part: reason.partition(": ")[2] for part, reason in reasons.items()} == dict.fromkeys(
        ("overhead", "stages", "cold start", "folder"), expected
    )


def test_named_parts_with_what_was_asked(thin, parts):
    options = ("--part", "scaling", "--part", "latency", "--quick", "--batch", "1,4,1", "--size", "64x48,32x16,64x48")
    done = bench(
        thin / "model.onnx", "--data", thin, "--checkpoint", thin / "model.pth", *options, "--precision", "fp32"
    )
    assert done.exit_code == 0, done.output
    assert [name for name, *_ in parts] == ["latency", "scaling"]
    plan = parts[0][1]
    assert (plan.batches, plan.sizes, plan.precisions) == ((1, 4), ((48, 64), (16, 32)), ("fp32",))
    assert (plan.rounds, plan.folder_sizes, plan.side) == (5, (8,), 1024)
    assert [path.name for path in plan.images] == ["v0.jpg", "v1.jpg", "v2.jpg"]


@pytest.mark.parametrize(
    ("given", "device"), [("CPU", "cpu"), ("gpu", "cuda"), ("1", "cuda:1"), ("gpu:1", "cuda:1"), ("auto", "auto")]
)
def test_devices_as_the_other_commands_take_them(thin, parts, given, device):
    done = bench(thin / "model.onnx", "--part", "latency", "--device", given)
    assert done.exit_code == 0, done.output
    assert [plan.devices for _, plan in parts] == [device]


def test_a_command_that_was_mistyped_is_no_model(thin, parts):
    done = bench("compair", "a", "b")
    assert (done.exit_code, done.output.splitlines()[-1]) == (
        2,
        "Error: No such command 'compair'. Did you mean compare?",
    )


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_trial_measures_everything_once(thin, parts, monkeypatch, options):
    monkeypatch.setenv(rounds.TRIAL, "1")
    done = bench(thin / "model.onnx", "--part", "scaling", *options)
    assert done.exit_code == 0, done.output
    plan = parts[0][1]
    assert (plan.rounds, plan.predictions, plan.side) == (1, 10, 640)
    assert "rounds 1," in done.output


def test_each_part_has_its_share_of_the_budget_that_is_left(thin, parts, monkeypatch):
    clock = iter([0.0, 30.0, 40.0, 90.0])
    monkeypatch.setattr(suite.time, "monotonic", lambda: next(clock))
    plan = BenchmarkPlan(**dict.fromkeys(BenchmarkPlan.__dataclass_fields__) | {"devices": "cpu"})
    list(suite.measure_parts(plan, ["peak", "latency", "overhead"], 100.0))
    assert [plan.budget_s for _, plan in parts] == [10.0, 50.0, 10.0]  # a seventh of 70, five sixths of 60, all of 10


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImageError("a.jpg: is empty"), "a.jpg: is empty"),
        (RuntimeError("CUDA error:\n1"), "RuntimeError: CUDA error: 1"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_a_part_that_fails_is_skipped_and_the_others_go_on(thin, parts, monkeypatch, error, reason):
    parts.replaced["cold-start"] = failing(error)
    done = bench(thin / "model.onnx", "--part", "cold-start", "--part", "memory")
    assert done.exit_code == 1
    assert f"- all: {reason}\n" in done.output
    assert done.output.endswith("error: nothing was measured of cold-start; the report says why\n")
    assert [name for name, *_ in parts] == ["memory"]


def test_what_was_measured_before_ctrl_c_is_kept(thin, parts, monkeypatch, tmp_path):
    parts.replaced["memory"] = failing(KeyboardInterrupt())
    done = bench(thin / "model.onnx", "--part", "latency", "--part", "memory", "--out", tmp_path)
    assert done.exit_code == 130
    kept = Results.read(tmp_path)
    assert [one.part for one in kept.measurements] == ["latency"]
    assert {(one.part, one.reason) for one in kept.skipped} >= {("memory", "the run ended before it")}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("existed", [False, True])
def test_a_run_that_ends_before_the_first_result_leaves_no_folder(thin, parts, named, existed):
    """Unless it was there before; without --out, another one was."""
    out = Path("mine" if named else "bench-model")
    if existed:
        out.mkdir()
    parts.replaced["peak"] = failing(KeyboardInterrupt())
    options = ("--out", out) if named else ()
    assert bench(thin / "model.onnx", *options).exit_code == 130
    assert sorted(Path().iterdir()) == [out] * existed


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "export"),
        ("onnx.helper", "export"),
        ("matplotlib", "export"),
        ("openvino", "openvino"),
        ("pycocotools.mask", "data"),
        ("segmentation_models_pytorch", "encoders"),
        ("ncnn", None),
    ],
)
def test_a_missing_module_is_told_with_what_installs_it(thin, parts, module, extra):
    parts.replaced["peak"] = failing(ModuleNotFoundError(f"No module named {module!r}", name=module))
    bench(thin / "model.onnx", "--part", "peak", "--part", "parity", "--out", "here")
    name = module.partition(".")[0]
    way = f"pip install {name}" if extra is None else f"install unet-deploy with its extra [{extra}]"
    (skipped,) = Results.read(Path("here")).skipped
    assert skipped.reason == f"{name} is not installed; {way}"


def test_an_older_run_stays_until_something_is_measured_and_its_pictures_go_with_it(thin, parts, monkeypatch, tmp_path):
    assert bench(thin / "model.onnx", "--part", "latency", "--out", tmp_path).exit_code == 0
    (tmp_path / "latency.png").write_bytes(b"older")
    before = (tmp_path / "results.json").read_bytes()
    parts.replaced["memory"] = failing(MemoryError())
    done = bench(thin / "model.onnx", "--part", "memory", "--out", tmp_path)
    assert (done.exit_code, "nothing was measured, so the older run stays" in done.output) == (1, True)
    assert (tmp_path / "results.json").read_bytes() == before
    done = bench(thin / "model.onnx", "--part", "overhead", "--out", tmp_path)
    assert (done.exit_code, "holds an older run, which is replaced" in done.output) == (0, True)
    assert [one.part for one in Results.read(tmp_path).measurements] == ["overhead"]
    assert not (tmp_path / "latency.png").exists()


def test_options_are_told_with_the_names_of_files(thin, parts, tmp_path):
    options = ("--part", "latency", "--part", "memory", "--batch", "1,4", "--quick", "--contestant", "PyTorch eager")
    done = bench(thin / "model.onnx", *options, "--data", thin, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    told = Results.read(tmp_path).method["options"]
    assert told == (
        f"model.onnx --data {thin.name} --out {tmp_path.name} --part latency --part memory --batch 1,4 "
        "--contestant 'PyTorch eager' --quick"
    )


def test_terminate_ends_a_run_as_an_error_would(thin, parts, monkeypatch, tmp_path):
    folders = []

    def ended(plan):
        folders.append(plan.folder)
        os.kill(os.getpid(), signal.SIGTERM)

    parts.replaced["memory"] = ended
    done = bench(thin / "model.onnx", "--part", "latency", "--part", "memory", "--out", tmp_path)
    assert done.exit_code == 128 + signal.SIGTERM
    assert not folders[0].exists()
    assert [one.part for one in Results.read(tmp_path).measurements] == ["latency"]


def test_parts_of_the_cpu_are_not_measured_where_a_gpu_was_asked_for(thin, parts):
    done = bench(thin / "model.onnx", "--device", "cuda", "--quick")
    assert [name for name, *_ in parts] == ["peak", "latency", "stages", "parity"]
    assert (
        "## Cold start\n\nSkipped:\n\n- all: is measured on the CPU; give --device cpu, or auto for both" in done.output
    )


def test_answers_that_are_not_pytorch_s_end_with_1_after_all_was_written(thin, parts, tmp_path):
    facts = {"allowed": 1e-4, "max_abs_error": 0.5}
    wrong = Measurement(
        part="parity", contestant="it", settings={"device": "cpu"}, unit="error", values=(0.5,), facts=facts
    )
    parts.replaced["parity"] = lambda *_: [wrong]
    done = bench(thin / "model.onnx", "--part", "parity", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "error: " in done.output
    assert Results.read(tmp_path / "out").measurements == (wrong,)


def test_real_parts_land_in_one_file(thin, tmp_path):
    options = ("--quick", "--threads", 1, "--device", "cpu", "--contestant", "unet-deploy", "--predictions", 10)
    options += ("--part", "latency", "--part", "overhead", "--part", "parity")
    done = bench(
        thin / "model.onnx", "--checkpoint", thin / "model.pth", "--data", thin, "--out", tmp_path / "out", *options
    )
    assert done.exit_code == 0, done.output
    results = Results.read(tmp_path / "out")
    assert {one.part for one in results.measurements} == {"latency", "overhead", "parity"}
    assert (tmp_path / "out" / "latency.png").stat().st_size > 1000
    assert "![latency](latency.png)" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "{thin}/nothing"), "nothing: cannot be listed"),
        (("--size", "12"), "'12' is not a size"),
        (("--batch", "4,0"), "--batch 0: expected at least 1"),
        (("--contestant", "caffe"), "contestant: found 'caffe', expected one of "),
        (("--precision", "fp8"), "precision: found 'fp8', expected one of "),
        (("--part", "speed"), "'speed' is not one of 'peak', 'latency'"),
        (("--also", "{thin}/model.onnx"), "is a second fp32 file"),
        (("--checkpoint", "{thin}/other.pth"), "are they the same model?"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_measured(thin, parts, arguments, message):
    done = bench(thin / "model.onnx", *(argument.format(thin=thin) for argument in arguments))
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert "Traceback" not in done.output and parts == []


def written(folder, *measurements, skipped=()):
    results = Results(environment={}, method={}, disturbance=None, measurements=measurements, skipped=skipped)
    results.write(folder)
    return folder


def test_comparing_two_runs(tmp_path):
    old = written(tmp_path / "old", measured("latency", 2.0))
    slower = written(tmp_path / "slower", measured("latency", 3.0))
    same = bench("compare", old, old)
    assert (same.exit_code, "same within noise" in same.output) == (0, True)
    worse = bench("compare", old, slower / "results.json")
    assert (worse.exit_code, "**REGRESSION**: 50.0 % worse" in worse.output) == (1, True)
    assert bench("compare", old, slower, "--fail-above", "60").exit_code == 0
    (slower / "results.json").write_text(json.dumps({"schema": 9}))
    refused = bench("compare", old, slower)
    assert (refused.exit_code, "schema: found 9, expected 1" in refused.output) == (2, True)


def test_what_cannot_be_measured_any_more_ends_with_1_unless_it_may_be_missing(tmp_path):
    old = written(tmp_path / "old", measured("latency"), measured("folder"))
    failed = Skipped(part="folder", contestant="all", settings={}, reason="broke")
    new = written(tmp_path / "new", measured("latency"), skipped=(failed,))
    not_asked = written(tmp_path / "part", measured("latency"))
    assert bench("compare", old, new).exit_code == 1
    assert bench("compare", old, new, "--allow-missing").exit_code == 0
    assert bench("compare", old, not_asked).exit_code == 0


WITHOUT_PYTORCH = """
import sys
for name in ("torch", "torchvision", "onnxscript", "albumentations", "tensorboard", "safetensors"):
    sys.modules[name] = None
from benchmarks.cli import main
main()
"""
"""The command where the extra [bench] is installed and [export] is not."""

NO_PYTORCH = "needs PyTorch, which is not installed; install unet-deploy with its extra [export]"


def test_without_pytorch_everything_else_is_measured(thin, tmp_path):
    options = ("--data", str(thin), "--out", str(tmp_path), "--device", "cpu", "--threads", "1", "--folder", "2")
    parts = ("peak", "latency", "layers", "overhead", "stages", "folder", "loading", "cold-start", "scaling", "parity")
    words = [word for part in (*parts[1:-1], "training") for word in ("--part", part)]
    command = [sys.executable, "-c", WITHOUT_PYTORCH, str(thin / "model.onnx"), *options, *words]
    done = subprocess.run(
        command, cwd=Path(cli.__file__).parents[1], env=os.environ | {rounds.TRIAL: "1"}, capture_output=True, text=True
    )
    results = Results.read(tmp_path)
    assert {one.part.replace(" ", "-") for one in results.measurements} == set(parts[1:-1]), done.stdout
    reasons = {(one.part, one.contestant): one.reason for one in results.skipped}
    assert reasons["latency", "PyTorch eager"] == reasons["folder", "plain PyTorch script"] == NO_PYTORCH
    assert reasons["training", "all"] == "torch is not installed; install unet-deploy with its extra [export]"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "error: nothing was measured of training; the report says why",
    )


def test_without_pytorch_a_checkpoint_is_refused(thin, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = bench(thin / "model.onnx", "--checkpoint", thin / "model.pth", "--part", "latency")
    assert (done.exit_code, done.output) == (
        2,
        f"error: --checkpoint {thin / 'model.pth'}: {NO_PYTORCH}; or leave --checkpoint out\n",
    )


def test_a_pytorch_that_cannot_be_imported_is_told(monkeypatch):
    def import_module(name):
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(base, "import_module", import_module)
    assert base.torch_missing() == (
        "needs PyTorch, which cannot be imported (libtorch.so: cannot open shared object file); install it again"
    )


HEAVY = ("numpy", "onnxruntime", "cv2", "PIL", "torch", "torchvision", "onnx", "matplotlib", "rich", "albumentations")


def test_help_imports_nothing_heavy():
    program = """
import sys
from benchmarks.cli import main
for words in ([], ["run"], ["compare"]):
    main([*words, "--help"], standalone_mode=False)
print([name for name in sys.argv[1:] if name in sys.modules])
"""
    root = Path(cli.__file__).parents[1]
    command = [sys.executable, "-c", program, *HEAVY]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: ") == 3
    assert done.stdout.splitlines()[-1] == "[]"


def test_constants_that_are_copied_for_help_are_those_of_the_heavy_modules():
    assert (rounds.MIN_ROUNDS, get_args(Arithmetic)) == (cli.MIN_ROUNDS, cli.PRECISIONS)


@pytest.mark.parametrize("part", suite.PARTS.values(), ids=suite.PARTS)
def test_the_function_of_a_part_takes_what_its_entry_says(part):
    inspect.signature(resolve_name(part.function)).bind(**dict.fromkeys((*part.takes, "threads", "display")))
    assert {*part.takes} <= {*dir(BenchmarkPlan), *BenchmarkPlan.__dataclass_fields__}


def test_the_peaks_are_given_to_the_parts_after_them(parts):
    plan = BenchmarkPlan(**dict.fromkeys(BenchmarkPlan.__dataclass_fields__) | {"devices": "cpu", "peaks": ()})
    list(suite.measure_parts(plan, ["peak", "latency"]))
    assert [plan.peaks for _, plan in parts] == [(), [measured("peak")]]


def test_python_m_benchmarks_is_the_command():
    command = [sys.executable, "-m", "benchmarks", "--version"]
    done = subprocess.run(command, cwd=Path(cli.__file__).parents[1], capture_output=True, text=True, check=True)
    assert " " in done.stdout


def test_images_are_those_of_the_validation(tmp_path):
    for name in ("train_images", "val_images"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
    assert [path.name for path in cli.images_in(tmp_path)] == ["val_images.png"]
    (tmp_path / "val_images" / "val_images.png").unlink()
    with pytest.raises(ImageError, match="no images in this folder"):
        cli.images_in(tmp_path)
    assert cli.images_in(None) == []


@pytest.mark.parametrize("part", ["training", "trade-off"])
def test_parts_that_train_take_the_recipe_s_settings_and_train_on_the_data(thin, data, tmp_path, monkeypatch, part):
    asked = []
    function = suite.PARTS[part].function.replace(":", ".")
    monkeypatch.setattr(function, lambda config, **_: asked.append(config) or [measured(part)])
    (tmp_path / "recipe.toml").write_text('data = "elsewhere"\nepochs = 7\nloss = "dice"\n')
    options = ("--part", part, "--data", data, "--recipe", tmp_path / "recipe.toml", "--bases", "2")
    done = bench(thin / "model.onnx", *options)
    assert done.exit_code == 0, done.output
    assert [(config.data, config.epochs, config.loss) for config in asked] == [(str(data), 7, "dice")]
