"""unet-doctor: what it tells, in which order, and the exit code; no part of it may crash."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.card import CARD_KEY, Bf16Permission, Gate
from runtime.commands import diagnostics, system_info
from runtime.commands.doctor import main, model_lines
from runtime.devices import availability, openvino
from runtime.engine_store.engine_cache import MANIFEST, EngineCache
from runtime.model_file.digest import DIGEST_KEY
from runtime.model_file.golden import GOLDEN_KEY, Golden
from runtime.model_file.metadata import read_metadata

GPU = {"driver": "580.1", "gpus": [{"name": "GPU 0", "memory_bytes": 8_000_000_000, "free_bytes": 4_000_000_000}]}


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch, tmp_path, quota):
    """A machine without a GPU, whose libraries load, with an empty cache; latency is looked at for a moment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(diagnostics, "SECONDS", 0.01)
    monkeypatch.setattr(diagnostics, "PAUSE", 0)
    monkeypatch.setattr(diagnostics, "SLOW_MS", 1e9)
    monkeypatch.setattr(diagnostics, "KINDS", ("tensorrt", "cuda", "cpu"))
    monkeypatch.setattr(system_info.OtherPrograms, "cores", lambda self: 0.0)
    monkeypatch.setattr(system_info, "death_by", lambda program: None)
    monkeypatch.setattr(system_info, "nvidia_cards", lambda: 0)
    monkeypatch.setattr(system_info, "gpus", dict)
    monkeypatch.setattr(system_info, "cuda_gpus", lambda: None)
    monkeypatch.setattr(system_info, "clashes_of", lambda folder: [folder])
    for name in diagnostics.OF_THREADS:
        monkeypatch.delenv(name, raising=False)
    quota(None)
    monkeypatch.setattr(
        availability, "unavailable_reason", lambda device: None if device.kind == "cpu" else "no NVIDIA driver"
    )


@pytest.fixture
def run():
    def call(*arguments):
        result = CliRunner().invoke(main, [str(item) for item in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.stderr == "" or result.exit_code == 2
        return result

    return call


@pytest.fixture
def report(run):
    def call(*arguments):
        result = run(*arguments, "--json")
        found = json.loads(result.stdout)
        assert found["ok"] == (result.exit_code == 0)
        return found

    return call


def test_machine_without_gpu_is_well(run):
    result = run()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[-1] == "No problems found."
    assert f"unet-deploy {version('unet-deploy')}" in result.stdout
    assert lines[lines.index("Devices") + 1 :][:3] == [
        "  tensorrt  no NVIDIA driver",
        "  cuda      no NVIDIA driver",
        "  cpu       available",
    ]


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino, which is no dependency")
def test_openvino_is_measured_where_it_is_installed(report, root, monkeypatch):
    monkeypatch.setattr(diagnostics, "KINDS", ("openvino", "cpu"))
    monkeypatch.setattr(availability, "unavailable_reason", lambda _: None)
    found = report(root / "tests/data/v0.1/models/int8-u8.onnx")
    assert list(found["model"]["devices"]) == ["openvino", "cpu"]
    one = found["model"]["devices"]["openvino"]
    assert one["golden_error"] <= one["tolerance"] and one["latency"]["runs"] > 1 and "OpenVINO in u8" in one["nodes"]
    found = report(root / "tests/data/v0.1/models/int8-s8.onnx")
    assert [(problem["severity"], problem["do"]) for problem in found["problems"]] == [
        ("advice", "export the model with --for cpu")
    ]
    monkeypatch.setattr(
        diagnostics.importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )
    assert list(report()["devices"]) == ["cpu"]


def test_model_is_replayed_and_timed(report, run, models):
    found = report(models["conv"])
    assert found["problems"] == []
    model = found["model"]
    assert (model["safe"], model["bytes"]) == (True, models["conv"].stat().st_size)
    assert (model["card"]["size"], model["card"]["classes"], model["card"]["threshold"]) == ([8, 12], ["car"], 0.5)
    assert list(model["devices"]) == ["cpu"]
    cpu = model["devices"]["cpu"]
    assert cpu["golden_error"] < 1e-6 and cpu["tolerance"] == 1e-4
    assert list(cpu["nodes"]) == ["CPUExecutionProvider"]
    assert cpu["latency"]["runs"] >= 1 and 0 < cpu["latency"]["median_ms"] <= cpu["latency"]["p95_ms"]
    assert model["digest"] == "verified"
    text = run(models["conv"]).stdout
    assert "card read, digest verified" in text and "golden sample off by" in text and "images/s" in text


def test_model_is_compared_with_its_digest(report, run, write_model):
    path = write_model("conv", metadata={DIGEST_KEY: None})
    assert report(path)["model"]["digest"] == "not verified (the file has none; export it again)"
    path = write_model("conv")
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"threshold": 0.5', b'"threshold": 0.1'))
    done = run(path)
    assert done.exit_code == 1
    assert f"  1. error: {path}: was damaged or changed since it was exported: its digest does not fit its card" in (
        done.stdout
    )
    assert (
        "     copy or export it again, or take it unverified: verify=False in Python, --no-verify of unet-predict"
        in done.stdout
    )


def test_a_model_for_cpus_is_looked_at_there_alone(monkeypatch, report, run, write_model, make_card):
    monkeypatch.setattr(availability, "unavailable_reason", lambda device: None)
    path = write_model("conv", metadata={CARD_KEY: replace(make_card("conv"), target="cpu").to_json()})
    found = report(path)
    assert found["problems"] == []
    assert found["model"]["card"]["target"] == "cpu" and list(found["model"]["devices"]) == ["cpu"]
    assert "fp32, for CPUs, U-Net of widths" in run(path).stdout


def test_classes_that_overlap_have_a_threshold(report, run, write_model):
    path = write_model("sigmoids", scale=0.5)
    card = report(path)["model"]["card"]
    assert (card["classes"], card["activation"], card["threshold"]) == (["red", "green", "blue"], "sigmoids", 0.5)
    assert "sigmoids: red, green, blue, each by itself; 12x8 RGB, native at 0.5 of its size; fp32" in run(path).stdout


def test_a_network_of_another_architecture_and_of_many_channels_is_looked_at(run, write_model):
    done = run(write_model(channels=5))
    assert done.exit_code == 0
    assert "brightness: car; 12x8 raw, native; fp32, net.Net" in done.stdout
    assert "golden sample off by" in done.stdout and "images/s" in done.stdout


@pytest.mark.parametrize(
    ("name", "what", "do"),
    [
        ("gone.onnx", "no such file", "make it with: unet-export model.pth"),
        ("cut; off.onnx", "is not an ONNX file, or is truncated (the file ends early)", "copy or export it again"),
        (
            "a; folder.onnx",
            "is a folder, expected an .onnx file",
            "give another file, or export the model again: unet-export model.pth",
        ),
    ],
)
def test_file_that_is_refused_is_a_line_with_what_to_do(report, run, tmp_path, write_model, name, what, do):
    (tmp_path / "a; folder.onnx").mkdir()
    (tmp_path / "cut; off.onnx").write_bytes(write_model().read_bytes()[:-3])
    found = report(tmp_path / name)
    assert found["problems"] == [{"severity": "error", "what": f"{tmp_path / name}: {what}", "do": do}]
    assert found["model"]["failed"].startswith(f"{tmp_path / name}: {what}")
    assert run(tmp_path / name).stdout.splitlines()[-2:] == [f"  1. error: {tmp_path / name}: {what}", f"     {do}"]


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("x: is wrong; mend it", ("x: is wrong", "mend it")),
        ("x: a; b; mend it", ("x: a; b", "mend it")),
        ("x: is wrong", ("x: is wrong", "else")),
        ("x: fails (see y; z)", ("x: fails (see y; z)", "else")),
        ("a; b.onnx: is wrong", ("a; b.onnx: is wrong", "else")),
    ],
)
def test_advice_is_what_stands_behind_the_last_semicolon(message, parts):
    assert diagnostics.parted(message, "else") == parts


def test_wrong_answer_is_an_error(report, write_model, make_golden):
    golden = make_golden("softmax")
    golden.probability[0, 0, 0] += 0.5
    path = write_model("softmax", metadata={"unet.golden": golden.to_json()})
    (problem,) = report(path)["problems"]
    assert problem["severity"] == "error"
    assert problem["what"].startswith(f"{path}: answers the golden sample wrongly (off by 0.5")
    assert problem["do"] == "export the model again, update the driver or choose another device"


def test_two_onnxruntimes_come_before_advice(monkeypatch, report, run):
    both = {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"], "cv2": ["opencv-python", "opencv-python-headless"]}
    monkeypatch.setattr(system_info, "clashes_of", lambda folder: both.get(folder, [folder]))
    monkeypatch.setattr(system_info, "SHARED", ("cv2", "onnxruntime"))
    problems = report()["problems"]
    assert [problem["severity"] for problem in problems] == ["error", "advice"]
    overwritten = "are installed together and overwrite each other's files in onnxruntime/"
    assert problems[0]["what"] == f"onnxruntime and onnxruntime-gpu {overwritten}"
    assert problems[0]["do"] == (
        "pip uninstall onnxruntime onnxruntime-gpu, then install unet-deploy again; without the GPU's libraries: "
        "docs/container.md"
    )
    assert problems[1]["do"] == "pip uninstall opencv-python opencv-python-headless, then install unet-deploy again"
    assert "Problems, worst first\n  1. error: onnxruntime and" in run().stdout


@pytest.mark.parametrize(
    ("working", "expected"),
    [
        ({"cpu"}, [("error", "there is a GPU, but device cuda does not work", "libx.so is missing")]),
        (
            {"cpu", "cuda"},
            [("advice", "device tensorrt does not work; it may be faster than cuda", "libx.so is missing")],
        ),
        ({"cpu", "cuda", "tensorrt"}, []),
    ],
)
def test_gpu_that_is_not_used_is_an_error(monkeypatch, report, run, working, expected):
    monkeypatch.setattr(system_info, "gpus", lambda: GPU)
    monkeypatch.setattr(
        availability, "unavailable_reason", lambda device: None if device.kind in working else "libx.so is missing"
    )
    monkeypatch.setattr(diagnostics.importlib.util, "find_spec", lambda name: None)
    assert [(one["severity"], one["what"], one["do"]) for one in report()["problems"]] == expected
    assert "  0: GPU 0, 4.0 GB of 8.0 GB free" in run().stdout


def test_gpu_without_a_driver_is_advice(monkeypatch, report):
    monkeypatch.setattr(system_info, "nvidia_cards", lambda: 2)
    found = report()
    assert found["ok"] and found["problems"][0]["what"].startswith("2 NVIDIA GPUs are installed")


def test_a_driver_without_nvml_is_not_called_missing(monkeypatch, report, run):
    """As in a container that has the driver's capability "compute" alone."""
    monkeypatch.setattr(system_info, "nvidia_cards", lambda: 1)
    monkeypatch.setattr(system_info, "cuda_gpus", lambda: 1)
    monkeypatch.setattr(
        availability, "unavailable_reason", lambda device: "install x" if device.kind == "cuda" else None
    )
    (problem,) = report()["problems"]
    assert (problem["what"], problem["do"]) == ("there is a GPU, but device cuda does not work", "install x")
    lines = run().stdout.splitlines()
    assert lines[lines.index("GPU") + 1 :][:2] == [
        "  GPUs that the NVIDIA driver sees: 1; without NVML (libnvidia-ml) no more is known",
        "  in a container: start it with the variable NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ]


@pytest.mark.parametrize(("limit", "threads"), [(2.5, 3), (None, 16)])
def test_threads_above_the_cores_are_advice_where_a_variable_asks_for_them(
    monkeypatch, report, run, quota, limit, threads
):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    quota(limit)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    found = report()
    assert (found["problems"], found["threads"]["threads"]) == ([], threads)
    shown = "none" if limit is None else "2.5 cores"
    line = f"  {threads} threads for a prediction; this process may use 16 of 64 cores, quota of its cgroup: {shown}"
    assert line in run().stdout.splitlines()
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    (problem,) = report()["problems"]
    assert problem["what"].startswith(
        f"OMP_NUM_THREADS=17: NumPy and PyTorch start 17 threads, but this process may use {threads}"
    )
    assert problem["do"] == f"set OMP_NUM_THREADS={threads}"


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)), raising=False)


@pytest.mark.parametrize(
    ("limit", "used", "busy"),
    [(None, 3.1, True), (None, 0.5, True), (None, 0.3, False), (None, None, False), (2, 2.1, False), (2, 2.3, True)],
)
def test_a_busy_machine_is_said(monkeypatch, report, run, quota, four_cores, limit, used, busy):
    """A quota of two of four cores leaves two to others."""
    quota(limit)
    monkeypatch.setattr(system_info.OtherPrograms, "cores", lambda self: used)
    found = report()
    what = (
        f"this machine is busy: other programs use {used} of the 4 cores, so predictions and "
        "the times of this report are longer than on an idle one"
    )
    problem = {"severity": "advice", "what": what, "do": "close them, and run unet-doctor again"}
    assert found["problems"] == ([problem] if busy else [])
    assert found["threads"]["other_programs"] == used
    line = f"  other programs use {used} of these 4 cores"
    assert (line in run().stdout.splitlines()) == (used is not None)


def test_every_variable_that_is_listed_is_explained(monkeypatch, report, run):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_PLACES", "cores")
    found = report()["threads"]
    assert found["explained"].keys() == found["environment"].keys() and all(found["explained"].values())
    lines = run().stdout.splitlines()
    shown = "the GPUs that CUDA shows to this process, renumbered from 0; empty or -1: none"
    assert f"  CUDA_VISIBLE_DEVICES= ({shown})" in lines
    assert "  OMP_PLACES=cores (a setting of OpenMP, for PyTorch; ONNX Runtime does not use it)" in lines


@pytest.fixture
def timed(monkeypatch, four_cores):
    """Set how long a model takes on each device or with a number of threads on the CPU, and how busy others are."""

    def set_times(others=0.0, vnni=False, bf16=False, **known):
        def latency(predictor, seconds=None):
            device, threads = predictor.report.device, predictor.report.threads
            median = known.get(f"cpu{threads}", known["cpu"]) if device == "cpu" else known[device]
            numbers = {"median_ms": median, "p95_ms": median, "fastest_ms": median, "other_programs": others}
            return {"runs": 1, **numbers}

        monkeypatch.setattr(diagnostics, "latency", latency)
        monkeypatch.setattr(diagnostics, "SLOW_MS", 1.0)
        monkeypatch.setattr(diagnostics, "has_vnni", lambda: vnni)
        monkeypatch.setattr(diagnostics, "has_bf16", lambda: bf16)
        monkeypatch.setattr(openvino, "has_vnni", lambda: vnni)
        monkeypatch.setattr(openvino, "has_bf16", lambda: bf16)
        monkeypatch.setattr(openvino, "is_installed", lambda: False)

    return set_times


TUNE = "unet-export CHECKPOINT --target cpu --tune, which measures here what is fastest"


@pytest.mark.parametrize(
    ("made_for", "what", "do"),
    [
        ({}, "is for any device (30.0 ms an image); a file for CPUs may be faster", TUNE),
        (
            {"vnni": True},
            "is fp32, and this CPU has VNNI: int8 for CPUs takes about half of these 30.0 ms an image",
            "unet-export CHECKPOINT --precision int8 --for cpu --data FOLDER, which says what it loses; "
            f"without loss: {TUNE}",
        ),
        (
            {"vnni": True, "bf16": True},
            "is fp32, and this CPU has VNNI: int8 for CPUs takes about half of these 30.0 ms an image",
            "unet-export CHECKPOINT --precision int8 --for cpu --data FOLDER, which says what it loses; less is lost "
            f"in bf16, by OpenVINO: --allow bf16 --data FOLDER; without loss: {TUNE}",
        ),
    ],
)
def test_a_file_for_cpus_is_suggested_where_the_cpu_is_best(report, timed, models, made_for, what, do):
    timed(cpu=30.0, **made_for)
    (problem,) = report(models["conv"])["problems"]
    assert problem == {"severity": "advice", "what": f"{models['conv']}: {what}", "do": do}
    timed(cpu=0.9, **made_for)
    assert report(models["conv"])["problems"] == []


def permitted(model_of, path):
    """Write a file with the permission to compute it in bf16."""
    gate = Gate(images="data", count=9, flipped=0.0, image_dice=None, image_dice_fp32=None, kept=(), passed=True)
    permission = Bf16Permission(
        gate=gate, max_flipped=1e-4, golden_error=0.01, max_abs_error=0.01, provider="OpenVINO in bf16"
    )
    golden = Golden.from_json(read_metadata(path)[GOLDEN_KEY])
    return model_of("conv", metadata={GOLDEN_KEY: replace(golden, bf16=permission).to_json()})


def test_a_file_that_may_be_computed_in_bf16_wants_openvino(report, run, timed, models, write_model):
    path = permitted(write_model, models["conv"])
    what = f"{path}: may be computed in bf16, in which this CPU is faster, but OpenVINO is not installed"
    for bf16 in (True, False):
        timed(cpu=30.0, bf16=bf16)
        found = report(path)
        said = {"severity": "advice", "what": what, "do": "pip install openvino"}
        assert (said in found["problems"]) == bf16
        assert found["model"]["card"]["bf16"] is True and found["model"]["devices"]["cpu"]["arithmetic"] == ""
    assert "; fp32, bf16 permitted, " in run(path).stdout
    assert "bf16 permitted" not in run(models["conv"]).stdout


def test_an_int8_file_wants_openvino_where_there_is_vnni(report, timed, write_model, make_card):
    path = write_model("conv", metadata={CARD_KEY: replace(make_card("conv"), precision="int8").to_json()})
    what = (
        f"{path}: is int8, which OpenVINO computes faster than ONNX Runtime on this CPU, but OpenVINO is not installed"
    )
    for vnni in (True, False):
        timed(cpu=30.0, vnni=vnni)
        said = {"severity": "advice", "what": what, "do": "pip install openvino"}
        assert (said in report(path)["problems"]) == vnni


def test_instructions_that_decide_on_the_file_are_listed(report, run, monkeypatch):
    monkeypatch.setattr(diagnostics, "listed_instructions", lambda: {"sse", "amx_bf16", "avx2"})
    assert report()["threads"]["instructions"] == ["avx2", "amx_bf16"]
    assert "  instructions: avx2, amx_bf16 (docs/export.md says which file is fast with them)\n" in run().stdout
    monkeypatch.setattr(diagnostics, "listed_instructions", set)
    assert "instructions:" not in run().stdout


def test_the_arithmetic_of_a_device_is_shown():
    taken = {"median_ms": 1.0, "fastest_ms": 1.0, "p95_ms": 1.0, "runs": 1}
    known = {"golden_error": 0.01, "tolerance": 0.02, "nodes": {"OpenVINO in bf16": 9}, "threads": 1, "latency": taken}
    card = {"size": [2, 3], "fixed_shape": None, "classes": ["car"], "activation": "sigmoid", "fit": "stretch"}
    card |= {"scale": 1, "name": "m", "channels": "L", "precision": "fp32", "target": "any", "bf16": True}
    found = {"path": "m.onnx", "bytes": 9, "digest": "verified", "card": card | {"architecture": "net", "metrics": {}}}
    lines = [*model_lines(found | {"devices": {"openvino": known | {"arithmetic": "bf16"}}})]
    assert lines[2] == (
        "openvino  layers in bf16, golden sample off by 1.0e-02 (limit 0.02); nodes: 9 on OpenVINO in bf16"
    )


def test_fewer_threads_are_suggested_where_they_are_faster(report, run, timed, write_model, make_card):
    path = write_model("conv", metadata={CARD_KEY: replace(make_card("conv"), target="cpu").to_json()})
    timed(cpu=30.0, cpu2=20.0, cpu1=26.0)
    found = report(path)
    assert found["model"]["devices"]["cpu"]["fewer_threads_ms"] == {"1": 26.0, "2": 20.0}
    (problem,) = found["problems"]
    assert problem["what"] == "2 threads are faster here: 20.0 ms an image instead of 30.0 ms with 4"
    assert problem["do"] == "give --threads 2, in Python threads=2"
    assert "            26.0 ms with 1 thread\n            20.0 ms with 2 threads\n" in run(path).stdout
    timed(cpu=30.0, cpu2=28.0, cpu1=20.0)
    assert report(path)["problems"][0]["what"].startswith("1 thread is faster here: 20.0 ms an image")
    timed(cpu=30.0, cpu2=28.0)
    assert report(path)["problems"] == []


def test_nothing_is_suggested_by_times_of_a_busy_machine(report, timed, models):
    timed(cpu=30.0, cpu2=20.0, others=2.0)
    found = report(models["conv"])
    assert [problem["what"] for problem in found["problems"]] == [
        "this machine was busy while the model ran, so its times are longer than on an idle one"
    ]
    assert "fewer_threads_ms" not in found["model"]["devices"]["cpu"]


@pytest.mark.parametrize(("cuda", "named"), [(5.0, True), (8.5, False)])
def test_the_faster_device_is_named_if_auto_takes_another(monkeypatch, cuda, named):
    monkeypatch.setattr(diagnostics, "SLOW_MS", 1.0)
    findings, times = diagnostics.Findings(), {"tensorrt": 9.0, "cuda": cuda, "cpu": 80.0}
    devices = {kind: {"latency": {"median_ms": median}} for kind, median in times.items()}
    diagnostics.advise_on_speed(findings, Path("m.onnx"), None, devices | {"cpu": {"failed": "no"}})
    what = "device cuda is faster here: 5.0 ms an image instead of tensorrt's 9.0 ms"
    do = "give --device cuda, in Python device='cuda'; auto takes tensorrt"
    assert findings.problems == ([diagnostics.Problem("advice", what, do)] if named else [])


@pytest.mark.parametrize(
    ("brought", "system", "do"),
    [
        (["onnxruntime"], "Linux", "pip install --force-reinstall onnxruntime"),
        (["onnxruntime-gpu"], "Linux", "pip install --force-reinstall onnxruntime-gpu"),
        ([], "Linux", "pip install onnxruntime-gpu"),
        ([], "Darwin", "pip install onnxruntime"),
    ],
)
def test_an_onnxruntime_that_does_not_load_is_installed_again(monkeypatch, report, brought, system, do):
    """The one that is there: for CPUs alone nobody wants the libraries of GPUs."""
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(system_info, "clashes_of", lambda folder: brought if folder == "onnxruntime" else [folder])
    monkeypatch.setattr(system_info, "death_by", lambda program: "crashes Python (exit code -4)")
    assert [problem["do"] for problem in report()["problems"]] == [do]


def test_crash_of_onnxruntime_is_a_line(monkeypatch, report, models):
    monkeypatch.setattr(system_info, "death_by", lambda program: "crashes Python (exit code -4)")
    found = report(models["conv"])
    assert [problem["what"] for problem in found["problems"]] == ["onnxruntime crashes Python (exit code -4)"]
    unseen = {"failed": "not checked, since ONNX Runtime cannot be used"}
    assert (found["devices"], found["model"]) == (unseen, unseen)
    assert found["engines"]["engines"] == []


def test_crash_of_a_driver_is_a_line(monkeypatch, report, models):
    monkeypatch.setattr(
        system_info, "death_by", lambda program: "does not end" if "unavailable_reason" in program else None
    )
    found = report(models["conv"])
    line = "CUDA and TensorRT: loading the libraries does not end"
    do = "install the extra [gpu] again"
    assert found["problems"] == [{"severity": "error", "what": line, "do": do}]
    assert found["model"] == {"failed": "not checked, since ONNX Runtime cannot be used"}


@pytest.mark.parametrize("part", ["python", "gpus", "cores", "variables"])
def test_part_that_fails_is_a_line(monkeypatch, report, run, part):
    def fail():
        raise ValueError("two\nlines")

    monkeypatch.setattr(system_info, part, fail)
    (problem,) = report()["problems"]
    assert problem["what"].endswith("cannot be checked (ValueError: two lines)")
    assert run().exit_code == 1


@pytest.fixture
def cache():
    """Two engines: one of today, one that was used 40 days ago."""
    cache = EngineCache()
    for key, days in (("a" * 64, 0), ("b" * 64, 40)):

        def build(folder, building):
            (folder / "unet.engine").write_bytes(b"engine")

        cache.open(key, {"model": f"{key[0]}.onnx"}, build, lambda text: None)
        then = time.time() - 86_400 * days
        os.utime(cache.folder / key / MANIFEST, (then, then))
    return cache


def test_engines_are_listed_and_pruned(report, run, cache):
    assert [one["key"][0] for one in report()["engines"]["engines"]] == ["b", "a"]
    text = run("--prune").stdout
    assert f"{cache.folder}: 1 engines, 0.0 MB, 1 removed" in text and "a.onnx, used 0 days ago" in text
    assert report("--prune", "--unused-days", 0)["engines"]["removed"] == ["a" * 64]
    assert cache.entries() == []


def test_cache_that_others_can_read_is_an_error(report, cache):
    cache.folder.chmod(0o755)
    found = report()
    assert found["engines"]["failed"].startswith(f"{cache.folder}: has mode 755, expected 700")
    assert not found["ok"]


def test_nothing_is_written(run, models, tmp_path):
    run(models["conv"], "--prune")
    assert not (tmp_path / "cache").exists()


def test_wrong_arguments(run):
    result = run("--unused-days", 3)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "Error: --unused-days needs --prune")


def test_control_characters_of_a_card_are_not_printed(run, write_model, make_card):
    text = make_card("conv").to_json().replace('"name": "conv"', '"name": "x\\u001b[2Jy"')
    assert r"x\x1b[2Jy: car; 12x8 RGB" in run(write_model("conv", metadata={"unet.card": text})).stdout


def test_command_in_a_process_of_its_own(models, root):
    program = "from runtime.commands.doctor import main; main(prog_name='unet-doctor')"
    done = subprocess.run([sys.executable, "-c", program, "--json"], cwd=root, capture_output=True, text=True)
    assert done.stderr == ""
    assert json.loads(done.stdout)["installed"]["onnxruntime"] is not None
