"""Both commands on a thin model: what they print, what they write, and when they refuse."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from folders import write_pair
from networks import make_card, make_network

from benchmarks import latency, timing
from benchmarks.environment import environment
from export import export_onnx
from runtime.console import Command
from unet_core.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for name, seed in (("model", 0), ("other", 1)):
        network = make_network(seed)
        save_checkpoint(folder / f"{name}.pth", network.state_dict(), make_card(network))
    export_onnx(folder / "model.pth")
    for index in range(3):
        write_pair(folder, "val", f"v{index}", size=(40, 60 + index), seed=index)
    return folder


def run(command: Command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch):
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(latency, "busy_cores", lambda: None)


def test_latency_table_and_json_agree(files, tmp_path):
    arguments = [files / "model.onnx", "--checkpoint", files / "model.pth", "--rounds", 5, "--out", tmp_path]
    result = run(latency.main, *arguments, "--batch", 2, "--size", "40x24")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "latency.json").read_text())
    assert (report["shape"], report["rounds"]) == ([2, 24, 40, 3], 5)
    assert set(report["timings"]) == {"PyTorch eager, CPU", "ONNX Runtime, cpu"}
    for name, timings in report["timings"].items():
        assert 0 < timings["median"] <= timings["p90"] <= timings["p99"]
        assert f"| {name:<28} | {timings['median']:6.1f} |" in result.output
    assert report["ratio"][1] <= report["ratio"][0] <= report["ratio"][2]
    assert report["max_abs_error"] < 2e-6
    assert (tmp_path / "latency.md").read_text() == result.output


def test_latency_on_a_busy_machine_says_so_in_table_and_json(files, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "disturbance", lambda before, after: "somebody else computes")
    arguments = [files / "model.onnx", "--checkpoint", files / "model.pth", "--rounds", 5, "--out", tmp_path]
    result = run(latency.main, *arguments)
    assert result.output.startswith("**Not a measurement**: somebody else computes.\n")
    assert json.loads((tmp_path / "latency.json").read_text())["disturbance"] == "somebody else computes"


def test_latency_of_two_different_models_is_refused(files):
    result = run(latency.main, files / "model.onnx", "--checkpoint", files / "other.pth")
    assert result.exit_code == 1
    assert "their answers differ by" in result.stderr
    assert "are they the same model?" in result.stderr


def test_latency_pins_the_threads_of_both(files, monkeypatch):
    before, pinned = torch.get_num_threads(), []

    def interleave(contestants, rounds):
        pinned.append(torch.get_num_threads())
        return timing.interleave(contestants, rounds)

    monkeypatch.setattr(latency, "interleave", interleave)
    for threads in (1, 3):
        report = latency.measure_latency(files / "model.onnx", files / "model.pth", rounds=5, threads=threads)
        assert report.threads == threads
        assert torch.get_num_threads() == before
    assert pinned == [1, 3]


def test_environment_names_machine_versions_and_model(files):
    found = environment(files / "model.onnx")
    assert len(str(found["model_sha256"])) == 64
    assert found["versions"]["numpy"] == np.__version__
    assert found["cpu"]
    assert found["model"] == "model.onnx"
