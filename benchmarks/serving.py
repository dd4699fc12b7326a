"""What `runtime` costs and brings around the network: `python -m benchmarks.serving MODEL IMAGES --checkpoint X`.

*run*: `Predictor.run` against a bare session; *predict*: with the image work. *folder*: image files to PNG masks on
disk. *cold start*: one mask in a fresh process. *memory*: over many predictions of varied sizes. *tiles*: a large image
whole and in tiles. The last three each in processes of their own.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.environment import environment
from benchmarks.report import framed
from benchmarks.timing import Timing, busy_cores, disturbance, interleave, ratio
from runtime.console import Command
from runtime.errors import ConfigError
from runtime.files import make_folder, write_text
from runtime.golden import synthetic_image
from runtime.image import list_images
from runtime.predictor import Predictor
from runtime.result import Segmentation
from unet_core.checkpoint import load_checkpoint
from unet_core.model import Segmenter

BARE, RUN, PREDICT = "bare session.run", "Predictor.run", "Predictor.predict, from a decoded image"
SCRIPT, LOOP, POOL, STREAM = "plain PyTorch script", "predict in a loop", "predict in a pool of threads", "stream"
COLD_BARE, COLD_OURS = "onnxruntime, Pillow and numpy by hand", "runtime.predict"

COLD_SCRIPTS = {
    COLD_BARE: """
import sys
import numpy as np, onnxruntime
from PIL import Image
model, image, target, height, width, mode, threads = sys.argv[1:8]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
picture = Image.open(image).convert(mode)
pixels = np.asarray(picture.resize((int(width), int(height)), Image.Resampling.BILINEAR))
pixels = pixels[None] if pixels.ndim == 3 else pixels[None, :, :, None]
probability = session.run(["probability"], {"image": pixels})[0][0]
mask = probability[0] > 0.5 if len(probability) == 1 else probability.argmax(0)
Image.fromarray((mask * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST).save(target)
""",
    COLD_OURS: """
import sys
import runtime
model, image, target = sys.argv[1:4]
runtime.predict(image, model=model, device="cpu").save(target)
""",
}
"""One mask in a fresh process; the first does less: it checks nothing, and resizes the mask, not the probability."""

MEMORY_SCRIPT = """
import resource, sys
import numpy as np
from runtime import Predictor
model, count = sys.argv[1], int(sys.argv[2])
predictor = Predictor(model, "cpu")
random = np.random.default_rng(0)
for index in range(count):
    height, width = random.integers(32, 512, 2)
    image = random.integers(0, 256, (height, width, 3), np.uint8)
    predictor.predict(image, size="native")
    if (index + 1) % (count // 10) == 0:
        with open("/proc/self/statm") as file:
            print(int(file.read().split()[1]) * resource.getpagesize() / 1e6)
"""

TILES_SCRIPT = """
import json, sys, time
import numpy as np
from runtime import Predictor
def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
model, side, tile = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
predictor = Predictor(model, "cpu")
pattern, count = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), -(-side // 256)
image = np.ascontiguousarray(np.tile(pattern, (count, count, 1))[:side, :side])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # VmHWM, the peak, begins anew; see proc(5)
before = kilobytes("VmRSS")
start = time.perf_counter()
predictor.predict(image, **({"tile": (tile, tile)} if tile else {"size": "native"}))
seconds = time.perf_counter() - start
print(json.dumps([seconds, (kilobytes("VmHWM") - before) / 1e3]))
"""


@dataclass(frozen=True, kw_only=True)
class ServingReport:
    """Milliseconds and images per second by contestant; ratios as medians with the ends of a 90 % interval.

    `memory` is the process in MB after each tenth of its predictions; `tiles` (seconds, MB more than before) by way.
    """

    calls: dict[str, Timing]
    overhead: tuple[float, float, float]
    images: int
    folder: dict[str, float]
    folder_ratios: dict[str, tuple[float, float, float]]
    cold: dict[str, Timing]
    cold_ratio: tuple[float, float, float]
    memory: list[float]
    predictions: int
    side: int
    tiles: dict[str, tuple[float, float]]
    disturbance: str | None
    environment: dict[str, object]

    def table(self) -> str:
        """The report as Markdown."""
        lines = ["| one call | median ms | p90 | p99 |", "|---|---:|---:|---:|"]
        lines += [f"| {name} | {one.median:.2f} | {one.p90:.2f} | {one.p99:.2f} |" for name, one in self.calls.items()]
        lines += ["", f"{RUN} takes {_shown(self.overhead)} times as long as a bare session.", ""]
        lines += [f"| {self.images} files to masks on disk | images/s | times the script's speed |", "|---|---:|---:|"]
        lines += [f"| {name} | {self.folder[name]:.1f} | {_shown(self.folder_ratios[name])} |" for name in self.folder]
        lines += ["", "| one mask in a fresh process | median ms | p90 |", "|---|---:|---:|"]
        lines += [f"| {name} | {one.median:.0f} | {one.p90:.0f} |" for name, one in self.cold.items()]
        lines += ["", f"{COLD_OURS} takes {_shown(self.cold_ratio)} times as long.", ""]
        shown = ", ".join(f"{value:.0f}" for value in self.memory)
        lines += [f"Memory in MB after each tenth of {self.predictions} predictions of varied sizes: {shown}.", ""]
        lines += [f"| {self.side}x{self.side} pixels | s | MB beyond the image |", "|---|---:|---:|"]
        lines += [f"| {name} | {seconds:.1f} | {size:.0f} |" for name, (seconds, size) in self.tiles.items()]
        return framed([*lines, ""], self.disturbance, self.environment)


def _shown(found: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*found)


def measure_serving(
    model: Path,
    checkpoint: Path,
    images: Path,
    *,
    rounds: int = 15,
    passes: int = 5,
    predictions: int = 2000,
    side: int = 2048,
) -> ServingReport:
    """Measure all parts on the CPU, with as many threads as this process may use.

    Raises:
        ConfigError: there is no image in the folder.
    """
    paths = list_images(images)
    if not paths:
        raise ConfigError(f"{images}: has no images; expected a folder of JPEG or PNG files")
    busy_before = busy_cores()
    predictor = Predictor(model, "cpu")
    calls = interleave(_calls(model, predictor, paths[0]), rounds)
    with tempfile.TemporaryDirectory() as folder:
        seconds = interleave(_folder(predictor, checkpoint, paths, Path(folder)), passes)
        cold = interleave(_cold(model, predictor, paths[0], Path(folder) / "mask.png"), rounds)
    memory = [float(line) for line in _fresh(MEMORY_SCRIPT, model, predictions).split()]
    tiles = {"whole": 0, "tiles of 512x512, overlap 0.25": 512, "tiles of 256x256, overlap 0.25": 256}
    found = {name: tuple(json.loads(_fresh(TILES_SCRIPT, model, side, tile))) for name, tile in tiles.items()}
    return ServingReport(
        calls={name: Timing.of(values) for name, values in calls.items()},
        overhead=ratio(calls[RUN], calls[BARE]),
        images=len(paths),
        folder={name: 1e3 * len(paths) / float(np.median(values)) for name, values in seconds.items()},
        folder_ratios={name: ratio(seconds[SCRIPT], values) for name, values in seconds.items()},
        cold={name: Timing.of(values) for name, values in cold.items()},
        cold_ratio=ratio(cold[COLD_OURS], cold[COLD_BARE]),
        memory=memory,
        predictions=predictions,
        side=side,
        tiles={name: (seconds, size) for name, (seconds, size) in found.items()},
        disturbance=disturbance(busy_before, busy_cores()),
        environment=environment(model),
    )


def _calls(model: Path, predictor: Predictor, path: Path) -> dict[str, Callable[[], object]]:
    """One image of the trained size: the bare session with the same threads, ours, and with decoded pixels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = predictor.report.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as ours
    session = onnxruntime.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])
    batch = synthetic_image(*predictor.card.input.size, predictor.card.architecture.in_channels, 0)[None]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return {
        BARE: lambda: session.run(["probability"], {"image": batch}),
        RUN: lambda: predictor.run(batch),
        PREDICT: lambda: predictor.predict(pixels),
    }


def _folder(
    predictor: Predictor, checkpoint: Path, paths: Sequence[Path], out: Path
) -> dict[str, Callable[[], object]]:
    def answer(path: Path) -> None:
        predictor.predict(path).save(out / f"{path.stem}.png")

    def loop() -> None:
        for path in paths:
            answer(path)

    def pool() -> None:
        with ThreadPoolExecutor(predictor.report.threads) as threads:
            list(threads.map(answer, paths))

    def save(path: Path, result: Segmentation) -> Path:
        return result.save(out / f"{path.stem}.png")

    def stream() -> None:
        for _ in predictor.stream(paths, then=save):
            pass

    return {SCRIPT: _script(checkpoint, predictor, paths, out), LOOP: loop, POOL: pool, STREAM: stream}


def _script(checkpoint: Path, predictor: Predictor, paths: Sequence[Path], out: Path) -> Callable[[], object]:
    """What one writes without any library: image after image, resized as trained and back."""
    loaded = load_checkpoint(checkpoint)
    network = Segmenter(loaded.network(), loaded.card).eval()
    height, width = predictor.card.input.size
    mode = predictor.card.input.channels

    def run() -> None:
        for path in paths:
            picture = Image.open(path).convert(mode)
            pixels = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(1, height, width, -1)
            with torch.inference_mode():
                small = network(torch.from_numpy(pixels))
                probability = functional.interpolate(small, picture.size[::-1], mode="bilinear")[0]
            mask = probability[0] > 0.5 if len(probability) == 1 else probability.argmax(0)
            Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(out / f"{path.stem}.png")

    return run


def _cold(model: Path, predictor: Predictor, path: Path, target: Path) -> dict[str, Callable[[], object]]:
    height, width = predictor.card.input.size
    common = (model, path, target, height, width, predictor.card.input.channels, predictor.report.threads)
    return {name: lambda script=script: _fresh(script, *common) for name, script in COLD_SCRIPTS.items()}  # type: ignore[misc]


def _fresh(script: str, *arguments: object) -> str:
    """What a script prints in a Python process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root})
    return done.stdout


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="What MODEL was exported from.")
@click.option("--rounds", type=click.IntRange(min=5), default=15, show_default=True, help="Of calls and cold starts.")
@click.option("--passes", type=click.IntRange(min=5), default=5, show_default=True, help="Over the folder.")
@click.option("--predictions", type=click.IntRange(min=10), default=2000, show_default=True, help="Of varied sizes.")
@click.option("--side", type=click.IntRange(min=64), default=2048, show_default=True, help="Of the image in tiles.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for serving.json and serving.md.")
def main(
    model: Path,
    images: Path,
    checkpoint: Path,
    rounds: int,
    passes: int,
    predictions: int,
    side: int,
    out: Path | None,
) -> None:
    """Measure what surrounds MODEL (.onnx) in an application, on the files in IMAGES."""
    if out is not None:
        make_folder(out)
    report = measure_serving(
        model, checkpoint, images, rounds=rounds, passes=passes, predictions=predictions, side=side
    )
    click.echo(report.table())
    if out is not None:
        write_text(out / "serving.json", json.dumps(asdict(report), indent=2) + "\n")
        write_text(out / "serving.md", report.table() + "\n")


if __name__ == "__main__":
    main()
