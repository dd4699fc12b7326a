"""A web page that runs an exported file in the browser, by onnxruntime-web: static files for any web server."""

import base64
import json
import os
import shutil
from pathlib import Path

import numpy as np

from runtime.card import ModelCard
from runtime.devices.registry import golden_tolerance
from runtime.errors import ConfigError, OutputError
from runtime.model_file.digest import check_digest
from runtime.model_file.golden import Golden
from runtime.model_file.reader import read_model
from runtime.page.files import alone_files
from runtime.support.files import replacing, write_bytes

MODEL, CONTENT, RUNTIME = "model.onnx", "model.json", "ort"
"""Names in the folder: the ONNX file, its card and golden sample, and the folder of onnxruntime-web."""

RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Files of onnxruntime-web that the page loads: ONNX Runtime for CPUs as WebAssembly."""

MARK = b'<meta name="generator" content="unet-deploy">'
"""Line of every index.html that `write_page` wrote."""


def write_page(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    onnxruntime_web: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a page that runs an exported file in a browser, and return the path of its index.html.

    The page works wherever a web server sends these files; pictures stay in the browser. It replays the file's golden
    sample before it takes pictures. Other files in `folder` stay.

    Args:
        model: an ONNX file that `unet-export` wrote, for pictures (RGB or grey).
        folder: the folder to write, which may be one that this function wrote before.
        onnxruntime_web: folder of the npm package onnxruntime-web, or its folder dist; `RUNTIME_FILES` are copied from
            it. Without it the page tells how to get them.

    Raises:
        ModelError: the file is damaged, changed since its export, or a raw export.
        ConfigError: the model takes arrays only, or `onnxruntime_web` lacks a file.
        OutputError: `folder` holds an index.html of somebody else, or cannot be written.
    """
    source = Path(model)
    card, golden = read_model(source)
    check_digest(source)
    check_page(card, folder, onnxruntime_web)
    target = Path(folder)
    if onnxruntime_web is not None:
        for name, file in runtime_files(onnxruntime_web).items():
            with replacing(target / RUNTIME / name) as part:
                shutil.copyfile(file, part)
    with replacing(target / MODEL) as part:
        shutil.copyfile(source, part)
    write_bytes(target / CONTENT, page_content(card, golden).encode())
    for name, static in alone_files().items():
        write_bytes(target / name, static.content)
    return target / "index.html"


def check_page(
    card: ModelCard, folder: str | os.PathLike[str], onnxruntime_web: str | os.PathLike[str] | None = None
) -> None:
    """Refuse what `write_page` would refuse, before a file with this card is there.

    Raises:
        ConfigError, OutputError: as `write_page`.
    """
    if card.input.channels == "raw":
        raise ConfigError(
            f"--web: the model takes arrays of {card.architecture.in_channels} channels, expected pictures (RGB or "
            "grey), which are all that a page can show; leave it out"
        )
    if onnxruntime_web is not None:
        runtime_files(onnxruntime_web)
    index = Path(folder) / "index.html"
    try:
        is_ours = not os.path.lexists(index) or MARK in index.read_bytes()
    except OSError:
        is_ours = False
    if not is_ours:
        raise OutputError(f"{index}: is not a page that unet-export wrote; move it away, or choose another folder")


def runtime_files(package: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the paths of `RUNTIME_FILES` in the npm package onnxruntime-web, or in its folder dist.

    Raises:
        ConfigError: a file is missing.
    """
    folder = Path(package)
    folder = folder / "dist" if (folder / "dist").is_dir() else folder
    for name in RUNTIME_FILES:
        if not (folder / name).is_file():
            raise ConfigError(
                f"--onnxruntime-web {package}: has no {name}, expected the npm package onnxruntime-web; run "
                "npm install onnxruntime-web and give node_modules/onnxruntime-web"
            )
    return {name: folder / name for name in RUNTIME_FILES}


def missing_runtime(folder: str | os.PathLike[str]) -> str:
    """Tell how to get the files of onnxruntime-web that a written page lacks; "" if it has them all."""
    place = Path(folder) / RUNTIME
    if all((place / name).is_file() for name in RUNTIME_FILES):
        return ""
    return (
        f"the page lacks onnxruntime-web; run npm install onnxruntime-web and copy {', '.join(RUNTIME_FILES)} from "
        f"node_modules/onnxruntime-web/dist to {place}, or give --onnxruntime-web node_modules/onnxruntime-web"
    )


def page_content(card: ModelCard, golden: Golden) -> str:
    """Return the JSON that the page reads beside the ONNX file: its name, the card, and the golden sample."""
    image = np.ascontiguousarray(golden.shown(card.input.fixed_size))
    sample = {
        "image": base64.b64encode(image.tobytes()).decode(),
        "shape": image.shape,
        "probability": base64.b64encode(golden.probability.astype("<f4").tobytes()).decode(),
        "size": golden.probability.shape[1:],
        "limit": golden_tolerance(card, "cpu"),
    }
    return json.dumps({"file": MODEL, "card": json.loads(card.to_json()), "golden": sample})
