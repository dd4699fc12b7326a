"""unet-serve: models behind HTTP from the command line."""

import re
from pathlib import Path
from typing import Any

import click

from runtime.commands.console import Command
from runtime.commands.entry import exit_without
from runtime.errors import ConfigError
from runtime.support.cpu_count import MAX_THREADS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Names of models in addresses."""

MEBI = 2**20


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all networks.")
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Name, without port, by which the server may be called; may be repeated.  [default: localhost if it listens "
    "on this machine alone, else any]",
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1_024),
    default=1,
    show_default=True,
    help="Processes, each with all models. One that dies is replaced.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu, openvino, gpu, cuda or tensorrt, as of unet-predict.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="CPU threads of the network in each worker.  [default: all cores, shared by the workers]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1_024),
    help="Images of several requests that run together.  [default: 1 on the CPU, else 8]",
)
@click.option(
    "--max-delay",
    "max_delay_ms",
    type=click.FloatRange(0, 10_000),
    default=0.0,
    show_default=True,
    help="Milliseconds that a batch waits to fill up. With 0 it takes what came while the batch before it ran.",
)
@click.option(
    "--queue",
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    help="Requests that a worker takes at once. Further ones are answered 429 with Retry-After.",
)
@click.option(
    "--max-mb",
    type=click.FloatRange(0, 1_024, min_open=True),
    default=64,
    show_default=True,
    help="Largest body of a request, in MiB.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=25_000_000,
    show_default=True,
    help="Largest image, in pixels (width times height).",
)
@click.option(
    "--max-network-pixels",
    type=click.IntRange(1),
    default=4 * MEBI,
    show_default=True,
    help="Pixels that the network sees at once, which take some 440 bytes each: bounds size, tile and whole images.",
)
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(0.01, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds for one request, receiving and waiting included.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare models with their digests.")
def serve(models: tuple[str, ...], max_mb: float, no_verify: bool, threads: int | None, **given: Any) -> None:
    """Serve MODELs (.onnx files) over HTTP: POST an image to /v1/predict, or tensors by the Open Inference Protocol.

    A model's name is that of its card, or NAME. A file that is replaced is opened anew, and requests that run finish on
    the old one. Logs are lines of JSON on standard output. If the environment variable UNET_SERVE_API_KEY is set,
    requests need that key. SIGTERM finishes what runs and exits with 0.

    Exit code: 0 after SIGTERM, 130 after Ctrl-C, 2 if the server could not start.
    """
    try:
        from runtime.serve.process import serve as run  # takes a second
        from runtime.serve.process import threads_of
        from runtime.serve.settings import ServerSettings
    except ModuleNotFoundError as error:
        exit_without(error, "serve")

    settings = ServerSettings(
        models=named(models),
        threads=threads or threads_of(given["workers"]),
        max_bytes=int(max_mb * MEBI),
        verify=not no_verify,
        **given,
    )
    run(settings)


def named(models: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """Return the name and the path of each model.

    Raises:
        ConfigError: two models have one name, or a name does not fit into an address.
        ModelError: a file has no card.
    """
    from runtime.model_file.reader import read_model

    found: dict[str, Path] = {}
    for text in models:
        name, sign, rest = ("", "", "") if Path(text).is_file() else text.partition("=")
        path = Path(rest if sign else text)
        if not sign:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", read_model(path)[0].name).lstrip("._-") or "model"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{text}: found the name {name!r}, expected letters, digits, '.', '_' and '-'")
        if name in found:
            raise ConfigError(f"{path}: is called {name} as {found[name]} is; give names, as in {name}-2={path}")
        found[name] = path
    return tuple(found.items())
