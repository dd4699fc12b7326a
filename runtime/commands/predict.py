"""unet-predict: masks for files, folders and pipes from the command line.

This module holds the options. `predict_files` does the work and is imported when the options are known to be right.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runtime.commands.console import Command, Named, Size, max_pixels_option
from runtime.errors import ConfigError
from runtime.output_formats import FORMATS, TABLES, Format, TableFormat, cutout_format
from runtime.storage.remote import RemoteFile, is_url, local_path
from runtime.support.cpu_count import MAX_THREADS

PIPE, TRANSPARENT = "-", "transparent"

WORKERS = 10_000
"""Most workers that may be asked for."""

CHOICES: dict[str, Format | TableFormat] = {**FORMATS, **TABLES}
"""Formats by name; `--format` offers those that have a help text."""


class NetworkSize(Size):
    """`WIDTHxHEIGHT`, or "native" for each image's own size."""

    name = "WxH|native"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "native" else super().convert(value, param, ctx)


class Destination(Named):
    """A path, or a URL that fsspec writes to."""

    name = "path|URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = local_path(value) if isinstance(value, str) else value
        if not is_url(text):
            return super().convert(text, param, ctx)
        if not text.partition("://")[2].strip("/"):
            self.fail(f"{text}: names no bucket or folder (is a shell variable unset?)", param, ctx)
        return RemoteFile(text.rstrip("/"))


class ModelFile(Named):
    """The path of a model."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        text = local_path(value) if isinstance(value, str) else value
        if is_url(text):
            self.fail(f"{text}: is a URL, expected a file on disk; download the model first", param, ctx)
        return super().convert(text, param, ctx)


@click.command(cls=Command)
@click.argument("model", type=ModelFile("standard input is for an image, name an .onnx file"))
@click.argument("images", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=Destination("standard output is for one image, without -o, as in MODEL - < IMAGE > MASK"),
    help="Folder for the files, or a URL such as s3://bucket/masks. Subfolders of an image folder are kept. With a "
    "format of one file for all images: that file.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, openvino, gpu, cuda or tensorrt; gpu:N (or N), cuda:N or tensorrt:N for one of several GPUs. auto "
    "takes the fastest one that works here, gpu the better one of TensorRT and CUDA.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice([name for name, form in CHOICES.items() if form.help]),
    help=" ".join(f"{name}: {form.help}" for name, form in CHOICES.items() if form.help)
    + "  [default: mask; tiff for models whose classes overlap]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, True, True),
    help="Probability threshold, for models with one class or with classes that overlap.  [default: the model's]",
)
@click.option(
    "--size",
    type=NetworkSize(),
    help="Size that images are resized to for the network.  [default: the training size]",
)
@click.option("--tile", type=Size(), help="Split large images into tiles of this size, to limit memory.")
@click.option(
    "--overlap",
    type=click.FloatRange(0, 0.9),
    help="With --tile: overlap of neighbouring tiles, as a fraction of a tile's side.  [default: 0.25]",
)
@click.option(
    "--tta",
    type=click.Choice(["flip", "d4"]),
    help="Test-time augmentation. flip: mean of the image and its mirror image, twice the time. "
    "d4: mean of all turns and mirror images, eight times the time.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1024),
    help="Images that the network takes at once.  [default: 1 on the CPU, else 8]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="CPU threads of the network, and for reading and writing images.  [default: all cores of this process]",
)
@click.option(
    "--no-verify",
    is_flag=True,
    help="Do not compare MODEL with its digest, for a file that was changed on purpose.",
)
@click.option(
    "--fast-decode",
    is_flag=True,
    help="Decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is at least twice what the network sees. "
    "Answers keep the image's own size and differ slightly. Not with overlays and cut-outs.",
)
@click.option("--soft", is_flag=True, help="With --format cutout: opacity is the probability, also far from the edge.")
@click.option(
    "--background",
    metavar="COLOUR",
    help="With --format cutout: transparent, or a colour to lay the foreground on, such as white or '#ff8800'. With a "
    "colour, NAME.png is RGB.  [default: transparent]",
)
@click.option(
    "--keep-colours",
    is_flag=True,
    help="With --format cutout: keep the colours of transparent pixels; otherwise they are black.",
)
@max_pixels_option
@click.option("--skip-existing", is_flag=True, help="Skip images that already have a complete file, or a row.")
@click.option(
    "--manifest",
    type=Destination(),
    help="Parquet file with a row for each image: path, file, status, error, ms, foreground, model. Needs pyarrow.  "
    "[default: none; with --engine ray manifest.parquet in OUT, or OUT with the suffix .parquet]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="local: this process. ray: workers on all machines of a Ray cluster, or on this one (extra [ray]).",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="With --engine ray: the cluster, auto or HOST:PORT.  [default: RAY_ADDRESS, or a new one on this machine]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, WORKERS),
    help="With --engine ray: processes that hold the model, each with --threads CPUs (1).  [default: all that fit]",
)
@click.option(
    "--gpus-per-worker",
    type=click.FloatRange(0, 64),
    help="With --engine ray: GPUs of a worker; 0.5 puts two workers on each.  [default: 0]",
)
def predict(
    model: Path,
    images: tuple[str, ...],
    out: Path | RemoteFile | None,
    device: str,
    kind: str | None,
    threshold: float | None,
    batch_size: int | None,
    threads: int | None,
    no_verify: bool,
    fast_decode: bool,
    soft: bool,
    background: str | None,
    keep_colours: bool,
    skip_existing: bool,
    manifest: Path | RemoteFile | None,
    engine: str,
    ray_address: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
    **asked: Any,
) -> None:
    """Segment IMAGES with MODEL (an .onnx file) and write the answers to OUT, each at its image's own size.

    IMAGES are files, folders (with their subfolders, without masks: *_masks/ and *_mask.*), quoted patterns
    ('in/**/*.jpg') and URLs that fsspec reads (s3://bucket/folder). A single - reads one image
    from standard input and writes its answer to standard output.

    An image that cannot be read does not stop the others. Exit code: 0 if all answers were written, 1 if some failed,
    2 if all failed or the command could not start, 130 after Ctrl-C.
    """
    form = None if kind is None else CHOICES[kind]
    if "" in images:
        raise click.UsageError("IMAGES: one name is empty; leave it out (is a shell variable unset?)")
    if soft or background is not None or keep_colours:
        if kind != "cutout":
            raise click.UsageError("--soft, --background and --keep-colours are for --format cutout")
        if keep_colours and background is not None and background.lower() != TRANSPARENT:
            raise click.UsageError("--keep-colours is for a transparent background; leave out --background")
        try:
            form = cutout_format(soft=soft, background=background, keep_colours=keep_colours)
        except ConfigError as error:
            raise ConfigError(f"--{error}") from error
    if threshold is not None and form is not None and not form.thresholded:
        raise click.UsageError(f"--threshold changes nothing with --format {kind}{' --soft' * soft}")
    if asked["overlap"] is not None and asked["tile"] is None:
        raise click.UsageError("--overlap needs --tile")
    if fast_decode:
        check_fast_decode(kind, form, asked["size"], asked["tile"])
    options = {name: value for name, value in {"threshold": threshold, **asked}.items() if value is not None}
    if PIPE in images:
        several = {"--skip-existing": skip_existing, "--batch-size": batch_size, "--manifest": manifest}
        several |= {"--engine ray": engine == "ray"}
        check_pipe(images, out, form, [name for name, value in several.items() if value])
    elif out is None:
        raise click.UsageError("Missing option '-o' / '--out', where to write to.")

    if engine == "local":
        refused = {"--ray-address": ray_address, "--workers": workers, "--gpus-per-worker": gpus_per_worker}
        if given := [name for name, value in refused.items() if value is not None]:
            raise click.UsageError(f"{given[0]} is for --engine ray")
    elif device.partition(":")[0] in ("gpu", "cuda", "tensorrt") and not gpus_per_worker:
        raise click.UsageError(f"--device {device}: workers of --engine ray have no GPU; add --gpus-per-worker 1")

    from runtime.commands.predict_files import (  # takes half a second
        Engine,
        PredictorArguments,
        ThisProcess,
        predict_files,
        predict_pipe,
    )

    arguments = PredictorArguments(
        model=model, device=device, threads=threads, verify=not no_verify, fast_decode=fast_decode, options=options
    )
    if out is None:
        assert not isinstance(form, TableFormat)
        predict_pipe(arguments, form)
        return
    if engine == "ray":
        from runtime.commands.predict_cluster import ClusterOptions, RayCluster

        cluster = ClusterOptions(address=ray_address, workers=workers, gpus_per_worker=gpus_per_worker or 0)
        chosen: Engine = RayCluster(arguments, cluster, form, batch_size, out, skip_existing)
        manifest = manifest or manifest_of(out, form)
    else:
        chosen = ThisProcess(arguments, batch_size)
    code = predict_files(arguments, images, out, form, skip_existing=skip_existing, engine=chosen, manifest=manifest)
    click.get_current_context().exit(code)


def check_fast_decode(kind: str | None, form: Format | TableFormat | None, size: Any, tile: Any) -> None:
    """Raise a usage error for options that need all pixels of an image."""
    if isinstance(form, Format) and form.shows_image:
        raise click.UsageError(f"--fast-decode: --format {kind} shows the whole image; leave out one of the two")
    if size == "native" or (tile is not None and size is None):
        option = "--size native" if size else "--tile without --size"
        raise click.UsageError(f"--fast-decode changes nothing with {option}: the network sees the image's own size")


def manifest_of(out: Path | RemoteFile, form: Format | TableFormat | None) -> Path | RemoteFile:
    """Return the place of the manifest of a job: in the folder of answers, or beside the one file of all answers."""
    if not isinstance(form, TableFormat):
        return out / "manifest.parquet"
    return out.with_suffix(".parquet") if isinstance(out, Path) else RemoteFile(f"{out.url.rpartition('.')[0]}.parquet")


def check_pipe(
    images: tuple[str, ...], out: object, form: Format | TableFormat | None, for_several: Sequence[str]
) -> None:
    """Raise a usage error for options that contradict the pipe; `for_several` are those of a folder that were given."""
    if len(images) > 1:
        raise click.UsageError("- is one image from standard input; give it alone, and the other images without it")
    if out is not None:
        raise click.UsageError("- writes its answer to standard output; leave out -o and add > FILE")
    if isinstance(form, TableFormat):
        raise click.UsageError(f"- has no name for --format {form.name} to list; name a file, or leave out --format")
    if for_several:
        raise click.UsageError(f"- is one image; leave out {' and '.join(for_several)}")
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("- reads an image from standard input, which is a terminal or closed; use < or |")
    if sys.stdout is None or sys.stdout.isatty():
        raise click.UsageError("- writes a file's bytes to standard output, which is a terminal or closed; use > or |")
