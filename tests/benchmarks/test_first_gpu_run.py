"""The command of a first run: where there is no GPU, in a folder of an older run, single steps, a run cut short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import first_gpu_run
from benchmarks.first_gpu_run import main
from benchmarks.gpu_run import steps
from benchmarks.gpu_run.findings import Finding, GpuRun, Outcome
from benchmarks.gpu_run.steps import STEPS
from benchmarks.gpu_run.training import CAMVID_FOLDERS


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def ran(monkeypatch):
    """Names of the steps that were run; each ends as `ends` says, and the first one finds everything that works."""
    names, ends = [], {}

    def run_step(name, title, context, environment, limit_s, function):
        names.append(name)
        if ends.get(name) == "interrupted":
            raise KeyboardInterrupt
        subjects = (steps.GPU, steps.CUDA, steps.TENSORRT, steps.PYTORCH)
        found = tuple(Finding.verdict(one, True, figures={"name": "a card"}) for one in subjects)
        context.model("fp32").parent.mkdir(exist_ok=True)
        context.model("fp32").touch()
        text = f"run {len(names)}"
        return Outcome(step=name, title=title, end=ends.get(name, "passed"), text=text, seconds=1.0, findings=found)

    monkeypatch.setattr(steps, "run_step", run_step)
    return names, ends


def test_without_a_gpu_the_run_says_what_is_missing(tmp_path):
    """In a process of its own, with no driver; nothing is trained."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    command = [sys.executable, "-m", "benchmarks.first_gpu_run", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    outcomes = {one.step: one for one in GpuRun.read_outcomes(tmp_path / "run" / "report.json")}
    machine = outcomes.pop("machine")
    assert machine.end == "failed" and machine.text.startswith("GPU: no NVIDIA driver (libcuda.so.1")
    assert machine.of("versions").figures["torch"]
    assert machine.of("loaded libraries").text == "none of CUDA's"
    assert {one.end for one in outcomes.values()} == {"skipped"} and len(outcomes) == len(STEPS) - 1
    assert outcomes["answers"].text.startswith("no NVIDIA driver")
    assert outcomes["training"].text.startswith("PyTorch sees no GPU (")
    assert not (tmp_path / "run" / "data").exists()
    assert done.stdout.startswith("# First run on a GPU\n\nDevice: none that the driver names\n")


def test_all_steps_run_in_order_and_the_report_is_written(tmp_path, ran):
    for name in CAMVID_FOLDERS:
        (tmp_path / name).mkdir()
    done = run("--out", tmp_path / "run", "--data", tmp_path)
    assert (done.exit_code, ran[0]) == (0, list(STEPS))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["device"], report["is_stand_in"], report["schema"]) == ("a card", False, 1)
    assert [one["step"] for one in report["outcomes"]] == list(STEPS)
    assert [one["verdict"] for one in report["goals"]] == 4 * ["not measured"]


@pytest.mark.parametrize("end", ["failed", "crashed", "timed out"])
def test_a_step_with_a_fault_is_exit_code_1(tmp_path, ran, end):
    ran[1]["threads"] = end
    assert run("--out", tmp_path / "run").exit_code == 1
    assert ran[0][-1] == "tensorrt"  # the others ran; camvid had no data


def test_a_run_cut_short_leaves_a_report_of_what_it_has(tmp_path, ran):
    ran[1]["shapes"] = "interrupted"
    done = run("--out", tmp_path / "run")
    assert done.exit_code == 130
    written = f"written: {tmp_path / 'run' / 'report.json'} and {tmp_path / 'run' / 'report.md'}"
    assert done.stderr.splitlines()[-2:] == [written, "interrupted"]
    outcomes = {one.step: one for one in GpuRun.read_outcomes(tmp_path / "run" / "report.json")}
    assert [outcomes[name].end for name in ("machine", "models", "answers")] == 3 * ["passed"]
    assert outcomes["shapes"].text == first_gpu_run.CUT_SHORT
    assert {outcomes[name].text for name in list(STEPS)[4:]} == {first_gpu_run.UNREACHED}
    assert "| graphs   | CUDA graphs, with shapes in turns" in (tmp_path / "run" / "report.md").read_text()


def test_the_terminal_tells_what_begins_and_how_it_ended(tmp_path, ran):
    ran[1]["models"] = "failed"
    lines = run("--out", tmp_path / "run", "--seconds", "90").stderr.splitlines()
    assert lines[2:4] == [
        "models: begins, at most 90 s (a small network and its files in each precision)",
        "models: failed, run 2",
    ]
    assert "camvid: skipped, needs --data, a folder with CamVid's images and labels" in lines
    assert lines[-1] == f"written: {tmp_path / 'run' / 'report.json'} and {tmp_path / 'run' / 'report.md'}"


def test_single_steps_run_again_and_the_others_stay(tmp_path, ran):
    run("--out", tmp_path / "run")
    ran[0].clear()
    assert run("--out", tmp_path / "run", "--only", "graphs").exit_code == 0
    assert ran[0] == ["machine", "graphs"]
    texts = {one.step: one.text for one in GpuRun.read_outcomes(tmp_path / "run" / "report.json")}
    assert (texts["machine"], texts["models"], texts["graphs"], texts["dlpack"]) == ("run 1", "run 2", "run 2", "run 8")


def test_data_of_another_kind_is_refused_before_the_first_step(tmp_path, ran):
    """Step camvid is the last: a wrong folder would be told of after ten minutes."""
    (tmp_path / "train_images").mkdir()
    (tmp_path / "val_images").mkdir()
    done = run("--out", tmp_path / "run", "--data", tmp_path)
    assert (done.exit_code, ran[0], (tmp_path / "run").exists()) == (2, [], False)
    assert done.stderr == (
        f"error: --data {tmp_path}: found no train_classes/, val_classes/, expected CamVid's images and labels in "
        "train_images/, train_classes/, val_images/, val_classes/; leave --data out to skip step camvid\n"
    )


def test_a_folder_with_an_older_run_is_refused(tmp_path, ran):
    run("--out", tmp_path / "run")
    done = run("--out", tmp_path / "run")
    assert done.exit_code == 2
    message = "holds an older run; give another folder, or run single steps again with --only"
    assert done.stderr == f"error: {tmp_path / 'run'}: {message}\n"
