"""unet-serve under load from clients on this machine, and `predict_async` with as many tasks, from files to masks."""

import asyncio
import base64
import io
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from benchmarks.measuring.subprocesses import (
    end_on_sigterm,
    environment_variables,
    exit_reason,
    python_command,
    run_script,
)
from benchmarks.results import Measurement
from runtime.errors import ConfigError, DeviceError
from runtime.inference.batcher import Batching
from runtime.output_formats import Format, format_named
from runtime.predictor import Predictor
from runtime.serve.settings import API_KEY
from unet_core.reporting.progress import Display

PART = "serving"
SERVED = "unet-serve"
BARE = "predict_async"

WAITING = 64
"""Images that wait at most: the default of `unet-serve --queue`."""

START_S, LIMIT_S = 120.0, 120.0
"""Seconds in which a server has to start or stop, and in which clients have to end once their time is over."""

DIFFERENT = 1e-3
"""Share of a mask's pixels that may differ from `predict`'s: on a GPU, batches round differently."""

PERCENTILES = (50, 90, 99)

SERVER_SCRIPT = "from runtime.commands.entry import serve; serve()"

CLIENTS_SCRIPT = """
import base64, collections, http.client, json, sys, threading, time
port, clients, seconds, *paths = sys.argv[1:]
images = [open(path, "rb").read() for path in paths]
end = time.monotonic() + float(seconds)
found = {"times": [], "in_time": 0, "statuses": collections.Counter(), "lost": 0, "masks": [set() for _ in images]}
lock = threading.Lock()
def client(turn):
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
    while time.monotonic() < end:
        turn = (turn + 1) % len(images)
        begun = time.perf_counter()
        try:
            connection.request("POST", "/v1/predict", images[turn])
            answer = connection.getresponse()
            mask = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            with lock:
                found["lost"] += 1
            time.sleep(0.1)
            continue
        taken = 1e3 * (time.perf_counter() - begun)
        with lock:
            found["statuses"][answer.status] += 1
            if answer.status == 200:
                found["times"].append(taken)
                found["in_time"] += time.monotonic() <= end
                found["masks"][turn].add(base64.b64encode(mask).decode())
        if answer.status == 429:
            time.sleep(float(answer.headers["Retry-After"]))
threads = [threading.Thread(target=client, args=(number,)) for number in range(int(clients))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(found, default=sorted))
"""
"""Clients with a connection each, in one process: each sends the next image as soon as it has its mask."""


def measure(
    model: Path,
    images: Sequence[Path],
    *,
    clients: int,
    seconds: float,
    workers: int,
    threads: int,
    device: str,
    rounds: int,
    display: Display | None = None,
) -> list[Measurement]:
    """Measure images per second, the time of an answer in ms, and the server's memory in MB.

    Server and tasks take turns of `seconds`. Every answer of the server is compared with the mask that `predict` gives.
    A first turn of a tenth of the time does not count.

    Args:
        model: an ONNX file that `unet-export` wrote.
        images: files to send.
        clients: number of clients, and of tasks.
        seconds: time of a turn.
        workers: processes of the server.
        threads: CPU threads of each worker; the tasks' process has as many as all of them together.
        device: the device, as of `Predictor`.
        rounds: number of turns of each.
        display: shows what is being measured.

    Raises:
        ConfigError: there are no images.
        ModelError: the model's file is invalid.
        ImageError: an image cannot be read.
        DeviceError: the server could not start, lost a request, or answered wrongly.
    """
    display = display or Display(quiet=True)
    if not images:
        raise ConfigError("serving: there are no images to send")
    contents = [path.read_bytes() for path in images]
    settings = {"clients": clients, "workers": workers, "threads": workers * threads, "device": device}
    batching = Batching(max_batch=None, max_waiting=WAITING)
    rates: dict[str, list[float]] = {SERVED: [], BARE: []}
    times: dict[str, list[Any]] = {SERVED: [], BARE: []}
    memory, counts = [], {"answers": 0, "refused": 0}
    display.note(f"serving: {len(images)} images, predicted once each, then by {clients} clients")
    with (
        end_on_sigterm(),
        Predictor(model, device, workers * threads, batching=batching) as predictor,
        serving(model, workers, threads, device) as (server, port),
    ):
        form = format_named("tiff" if predictor.card.output.overlapping else "mask")
        masks = [pixels_of(form.encode(predictor.predict(content))) for content in contents]
        for number in range(rounds + 1):
            display.note(f"serving: round {number} of {rounds}" if number else "serving: warming up")
            asked = (port, clients, seconds if number else seconds / 10, *images)
            found = json.loads(run_script(CLIENTS_SCRIPT, *asked, limit_s=seconds + LIMIT_S))
            if server.poll() is not None:
                raise DeviceError(f"unet-serve: {exit_reason(server.returncode, '')}")
            check_answers(found, masks)
            if number == 0:
                continue
            counts["answers"] += len(found["times"])
            counts["refused"] += found["statuses"].get("429", 0)
            memory.append(megabytes_of(server.pid))
            bare = asyncio.run(tasks(predictor, form, contents, clients, seconds))
            for name, taken, in_time in ((SERVED, found["times"], found["in_time"]), (BARE, *bare)):
                rates[name].append(in_time / seconds)
                times[name].append(np.percentile(taken, PERCENTILES))
    facts = {SERVED: counts, BARE: {}}
    measurements = [measurement(name, "images/s", values, settings, facts[name]) for name, values in rates.items()]
    for index, percentile in enumerate(PERCENTILES):
        measurements += [
            measurement(name, "ms", [float(one[index]) for one in values], settings | {"percentile": percentile})
            for name, values in times.items()
        ]
    if None not in memory:
        measurements.append(measurement(SERVED, "MB", memory, settings))
    return measurements


def measurement(
    contestant: str,
    unit: str,
    values: Sequence[Any],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Measurement:
    """Make the record of one figure."""
    return Measurement(
        part=PART,
        contestant=contestant,
        settings=settings,
        unit=unit,
        values=tuple(values),
        group=f"{PART} {unit} {settings.get('percentile', '')}".strip(),
        facts=facts or {},
    )


@contextmanager
def serving(model: Path, workers: int, threads: int, device: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a server within the block: its process, and its port.

    Raises:
        DeviceError: it does not start.
    """
    options = ("--port", 0, "--workers", workers, "--threads", threads, "--device", device, "--queue", WAITING)
    environment = {name: value for name, value in environment_variables().items() if name != API_KEY}
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder, "log"), Path(folder, "errors")
        with log.open("wb") as out, errors.open("wb") as err:
            server = subprocess.Popen(
                python_command(SERVER_SCRIPT, f"model={model}", *options),
                stdout=out,
                stderr=err,
                env=environment,
            )
        try:
            end = time.monotonic() + START_S
            while log.read_text().count("startup complete") < workers:
                if server.poll() is not None:
                    raise DeviceError(f"unet-serve: {exit_reason(server.returncode, errors.read_text())}")
                if time.monotonic() > end:
                    raise DeviceError(f"unet-serve: did not start within {START_S:g} s; give a smaller model")
                time.sleep(0.1)
            url: str = json.loads(log.read_text().splitlines()[0])["url"]
            yield server, int(url.rpartition(":")[2])
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(START_S)
            server.kill()
            server.wait()


def pixels_of(mask: bytes) -> NDArray[Any]:
    """Decode a mask's file: labels [pages, height, width]."""
    with Image.open(io.BytesIO(mask)) as picture:
        return np.stack([np.asarray(page) for page in ImageSequence.Iterator(picture)])


def check_answers(found: Mapping[str, Any], masks: Sequence[NDArray[Any]]) -> None:
    """Refuse the answers that clients report if any is not the mask of its image, or a request had none.

    Args:
        found: what the clients report.
        masks: the mask of each image, labels [pages, height, width].

    Raises:
        DeviceError: that is so; the message has the numbers.
    """
    others = {status: count for status, count in found["statuses"].items() if status not in ("200", "429")}
    if found["lost"] or others or not found["times"]:
        told = "".join(f", {count} answered {status}" for status, count in others.items())
        raise DeviceError(
            f"unet-serve: {len(found['times'])} requests answered with a mask, {found['lost']} lost{told}; give fewer "
            "--clients, or more --seconds"
        )
    wrong = 0
    for given, mask in zip(found["masks"], masks, strict=True):
        answers = [pixels_of(base64.b64decode(one)) for one in given]
        wrong += any(one.shape != mask.shape or (one != mask).mean() > DIFFERENT for one in answers)
    if wrong:
        raise DeviceError(f"unet-serve: answers for {wrong} of {len(masks)} images differ from predict's")


def megabytes_of(process: int) -> float | None:
    """Return the memory of a process and its children in MB, shared pages once; None where /proc does not tell."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        rollups = [Path(f"/proc/{one}/smaps_rollup").read_text() for one in (process, *children)]
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith("Pss:")]
    return sum(kibibytes) * 1024 / 1e6


async def tasks(
    predictor: Predictor, form: Format, contents: Sequence[bytes], count: int, seconds: float
) -> tuple[list[float], int]:
    """Let tasks predict and encode one image after the other in this process.

    Returns:
        The ms of each image, and how many of them were ready when the time was over.
    """
    end, times, in_time = time.monotonic() + seconds, [], 0

    async def task(turn: int) -> None:
        nonlocal in_time
        while time.monotonic() < end:
            turn = (turn + 1) % len(contents)
            begun = time.perf_counter()
            result = await predictor.predict_async(contents[turn])
            await asyncio.to_thread(form.encode, result)
            times.append(1e3 * (time.perf_counter() - begun))
            in_time += time.monotonic() <= end

    await asyncio.gather(*map(task, range(count)))
    return times, in_time
