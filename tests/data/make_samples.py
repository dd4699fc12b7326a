"""Write one sample of every kind of file that a user keeps, with the version of the code that is installed.

    python tests/data/make_samples.py tests/data/v0.1 --commit 6be6bda

`tests/test_compatibility.py` reads the samples with the code of today. For a release, run this script once, into a new
folder for that version. The samples of older versions are never written again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

WIDTHS = "4,8"
SIZE = (32, 48)
"""(height, width) of the images and of the networks, in pixels."""


def write_pair(folder: Path, split: str, index: int, classes: int) -> None:
    """Write a noisy image with one rectangle for each class, and its mask: values 0 and 255, or class indices."""
    random = np.random.default_rng(index)
    height, width = SIZE
    mask = np.zeros(SIZE, np.uint8)
    for number in range(1, max(2, classes)):
        top, left = int(random.integers(0, height // 2)), int(random.integers(0, width // 2))
        mask[top : top + height // 3, left : left + width // 3] = number
    image = random.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
    image[mask == 1] += 150
    image[mask == 2, 0] += 150
    images, masks = folder / f"{split}_images", folder / f"{split}_masks"
    for path in (images, masks):
        path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(images / f"{split}{index}.png")
    Image.fromarray(mask if classes > 1 else mask * np.uint8(255)).save(masks / f"{split}{index}.png")


def run(*arguments: str | Path, cwd: Path) -> str:
    """Run a command with `python -m` and return its output; the command has to succeed."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cwd / "user-cache")}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def export(*arguments: str | Path, cwd: Path) -> None:
    """Run `unet-export`; the command has to succeed."""
    code = "from export.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"


def write_for_cpus(folder: Path) -> None:
    """Write a file as `--target cpu` does, with every form of a convolution; the command leaves so thin a network."""
    import onnx

    from export.winograd.transform import FORMS, rewritable, rewrite
    from runtime.model_file.digest import DIGEST_KEY, seal

    graph = onnx.load(folder / "fp32.onnx")
    forms = {name: FORMS[1 + index % (len(FORMS) - 1)] for index, name in enumerate(rewritable(graph))}
    written = rewrite(graph, forms)
    del written.metadata_props[:]
    for entry in graph.metadata_props:
        if entry.key == DIGEST_KEY:
            continue  # it is of another graph
        value = entry.value
        if entry.key == "unet.card":
            value = json.dumps(json.loads(value) | {"target": "cpu"})
        onnx.helper.set_model_props(
            written, {item.key: item.value for item in written.metadata_props} | {entry.key: value}
        )
    onnx.save(written, folder / "cpu.onnx")
    seal(folder / "cpu.onnx")


def make(work: Path) -> None:
    """Write data sets, runs, ONNX files and the recorded answers into the folder `work`."""
    for index in range(6):
        write_pair(work / "data", "train", index, 1)
        write_pair(work / "data3", "train", index, 3)
    for index in range(6, 9):
        write_pair(work / "data", "val", index, 1)
        write_pair(work / "data3", "val", index, 3)
    height, width = map(str, SIZE)
    common = ["--widths", WIDTHS, "--height", height, "--width", width, "--batch-size", "4", "--lr", "1e-2"]
    common += ["--workers", "0", "--no-tensorboard", "--device", "cpu", "--cache-dir", "cache"]
    run("unet_core.train", "data", "--out", "run", "--epochs", "4", *common, cwd=work)
    grey = ["--channels", "L", "--fit", "letterbox", "--up", "bilinear", "--ema", "0.9", "--cache-gb", "0"]
    run("unet_core.train", "data", "--out", "grey", "--epochs", "2", *common, *grey, cwd=work)
    several = ["--classes", "sky,road,car", "--fit", "native", "--cache-gb", "0"]
    run("unet_core.train", "data3", "--out", "several", "--epochs", "2", *common, *several, cwd=work)
    models = {
        "fp32": ["run/model.pth"],
        "grey": ["grey/model.pth"],
        "several": ["several/model.pth"],
        "opset18": ["run/model.pth", "--opset", "18"],
        "fp16": ["run/model.pth", "--precision", "fp16", "--data", "data", "--force"],
        "int8-s8": ["run/model.pth", "--precision", "int8", "--values", "s8", "--data", "data", "--force"],
        "int8-u8": ["run/model.pth", "--precision", "int8", "--values", "u8", "--data", "data", "--force"],
        "raw": ["run/model.pth", "--raw"],
    }
    (work / "models").mkdir()
    for name, arguments in models.items():
        export(*arguments, "-o", f"models/{name}.onnx", cwd=work)
    write_for_cpus(work / "models")
    from runtime.predictor import Predictor

    picture = np.asarray(Image.open(work / "data3" / "val_images" / "val7.png").convert("RGB"))
    picture = np.tile(picture, (2, 2, 1))[:50, :75]
    answers = {"picture": picture}
    for name in sorted({*models, "cpu"} - {"raw"}):
        predictor = Predictor(work / "models" / f"{name}.onnx", "cpu", threads=1)
        given = picture if predictor.card.input.channels == "RGB" else np.ascontiguousarray(picture[:, :, 0])
        answers[name] = predictor.predict(given).probability
        answers[f"{name} tiles"] = predictor.predict(given, tile=(32, 32), tta="flip").probability
    np.savez_compressed(work / "answers.npz", **answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the samples")
    parser.add_argument("--commit", required=True, help="commit of the code that writes the samples")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make(work)
        given.folder.mkdir(parents=True)
        for part in ("data", "data3", "run", "grey", "several", "models", "answers.npz"):
            if (work / part).is_dir():
                left_out = shutil.ignore_patterns(".lock", "saved_images", "curves.png")
                shutil.copytree(work / part, given.folder / part, ignore=left_out)
            else:
                shutil.copy2(work / part, given.folder / part)
        for folder in sorted((work / "cache").iterdir()):
            if folder.is_dir():
                shutil.copytree(folder, given.folder / "cache" / folder.name, ignore=shutil.ignore_patterns("lock"))
    about = {
        "commit": given.commit,
        "command": f"python tests/data/make_samples.py {given.folder} --commit {given.commit}",
    }
    (given.folder / "made.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
