"""Segmentation of a Ray Dataset: `segment` adds the answers of a model to the rows of a data set (extra `ray`).

    >>> import ray
    >>> from runtime.distributed import segment
    >>> images = ray.data.read_binary_files("s3://bucket/images", include_paths=True)
    >>> answers = segment(images, "model.onnx", output="s3://bucket/masks", root="s3://bucket/images")
    >>> answers.write_parquet("s3://bucket/manifest")

Folders of files are answered by `unet-predict --engine ray`, which needs none of this.
"""

import os
from typing import Any

from runtime.cluster.library import capacity, ray_library
from runtime.cluster.rows import RowSettings, RowWorker, place_of
from runtime.cluster.worker import WorkerSettings
from runtime.errors import ConfigError
from runtime.image import Decode
from runtime.inference.predict_options import resolve_options
from runtime.model_file.digest import check_digest
from runtime.model_file.reader import path_of, read_model
from runtime.output_formats import Format, format_named

BATCH = 16
"""Rows that a worker gets at once by default."""


def segment(
    dataset: Any,
    model: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    format: str | Format | None = None,  # noqa: A002 - as of `Segmentation.save`
    device: str = "auto",
    workers: int | None = None,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    batch_size: int = BATCH,
    verify: bool = True,
    decode: Decode = "full",
    **options: Any,
) -> Any:
    """Return a `ray.data.Dataset` with the answers of a model; nothing runs before it is consumed.

    Rows hold an image in one of three columns: "bytes" (`ray.data.read_binary_files`), "image" (uint8 [height, width,
    channels], `ray.data.read_images`), or else "path", of files that the workers read, on disk or at URLs. The other
    columns stay, and these are added:

    - "answer": bytes of a file in `format`, or with `output`
    - "file": path or URL of the file that they were written to;
    - "status": "written" or "failed"; "error": the reason;
    - "ms", "foreground": milliseconds of all stages, and the share of the foreground's pixels.

    A bad image is a row whose status is "failed". Ray Data runs the images of a worker or machine that died again, when
    there is room for another worker.

    Args:
        dataset: a `ray.data.Dataset`.
        model: path of an ONNX file that `unet-export` wrote, on this machine: the workers get its bytes.
        output: folder that all machines see, or URL, for a file of each image; needs the column "path" and `root`.
        root: folder or URL of the images: files are named after their paths below it, with another suffix. Of two
            images whose names differ in the suffix alone, the last one's file stays.
        format: format of the answers, as of `Segmentation.save`; by default mask, tiff for classes that overlap.
        device: as of `Predictor`.
        workers: number of workers; by default as many as fit, and leave a CPU for reading.
        cpus_per_worker: CPUs and threads of a worker.
        gpus_per_worker: GPUs of a worker; 0.5 puts two on each.
        batch_size: rows that a worker gets at once.
        verify, decode: as of `Predictor`.
        options: those of `Predictor.predict`.

    Raises:
        ConfigError: Ray is not installed, an option is invalid, or no CPU would be left for reading.
        ModelError: the model's file is invalid.
        OutputError: the format cannot hold the model's answers.
    """
    path = path_of(model)
    card, _ = read_model(path)
    if verify:
        check_digest(path)
    resolve_options(card, **options)
    form = format_named(format or ("tiff" if card.output.overlapping else "mask"))
    form.check(card.output, f"format {form.name}")
    if (output is None) != (root is None):
        raise ConfigError("output and root: one was given without the other; files are named after paths below root")
    data = ray_library("ray.data")
    if not isinstance(dataset, data.Dataset):
        raise ConfigError(f"dataset: found {type(dataset).__name__}, expected a ray.data.Dataset")
    ray = ray_library()
    count = workers_for(ray, workers, cpus_per_worker, gpus_per_worker)
    settings = WorkerSettings(
        form=form,
        device=device,
        threads=cpus_per_worker,
        verify=verify,
        decode=decode,
        gpus=gpus_per_worker,
        options=options,
        returned=output is None,
    )
    rows = RowSettings(
        output=None if output is None else place_of(output), root=None if root is None else place_of(root)
    )
    return dataset.map_batches(
        RowWorker,
        fn_constructor_kwargs={"settings": settings, "rows": rows, "model": ray.put(path.read_bytes())},
        batch_size=batch_size,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(size=count),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker,
    )


def workers_for(ray: Any, asked: int | None, cpus: int, gpus: float) -> int:
    """Return the number of workers, which leaves a CPU for reading: without one Ray Data would wait for ever.

    Raises:
        ConfigError: the cluster does not hold as many.
    """
    total = int(ray.cluster_resources().get("CPU", 0))
    most = min(capacity(ray, cpus, gpus), (total - 1) // cpus)
    if most < 1:
        needs = f"{cpus + 1} CPUs, {cpus} for a worker and one for reading" + (f", and {gpus:g} GPU" if gpus else "")
        raise ConfigError(f"workers: the cluster has {total} CPUs, and the smallest job needs {needs}; add a machine")
    if asked is not None and asked > most:
        raise ConfigError(
            f"workers: found {asked} of {cpus} CPU each, expected at most {most}: the cluster has {total} CPUs, and "
            "one is left for reading"
        )
    return asked or most
