"""unet-serve under load from clients on this machine, and `predict_async` with as many tasks, from files to masks."""

import asyncio
import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring.subprocesses import environment_variables, exit_reason, python_command, run_script
from benchmarks.results import Measurement
from runtime.errors import ConfigError, DeviceError
from runtime.inference.batcher import Batching
from runtime.output_formats import Format, format_named
from runtime.predictor import Predictor
from unet_core.reporting.progress import Display

PART = "serving"
SERVED = "unet-serve"
BARE = "predict_async"

WAITING = 64
"""Images that wait at most: the default of `unet-serve --queue`."""

START_S, LIMIT_S = 120.0, 120.0
"""Seconds in which a server has to start, and in which clients have to end once their time is over."""

PERCENTILES = (50, 90, 99)

SERVER_SCRIPT = "from runtime.commands.entry import serve; serve()"

CLIENTS_SCRIPT = """
import collections, hashlib, http.client, json, sys, threading, time
port, clients, seconds, *paths = sys.argv[1:]
images = [open(path, "rb").read() for path in paths]
end = time.monotonic() + float(seconds)
found = {"times": [], "statuses": collections.Counter(), "lost": 0, "masks": [set() for _ in images]}
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
            continue
        taken = 1e3 * (time.perf_counter() - begun)
        with lock:
            found["statuses"][answer.status] += 1
            if answer.status == 200:
                found["times"].append(taken)
                found["masks"][turn].add(hashlib.sha256(mask).hexdigest())
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

    Server and tasks take turns of `seconds`. Every answer of the server is compared with the mask that `predict` gives;
    those of a first turn of a tenth of the time do not count.

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
    with (
        Predictor(model, device, workers * threads, batching=batching) as predictor,
        serving(model, workers, threads, device) as (server, port),
    ):
        form = format_named("tiff" if predictor.card.output.overlapping else "mask")
        masks = [hashlib.sha256(form.encode(predictor.predict(content))).hexdigest() for content in contents]
        asked = (port, clients, seconds / 10, *images)
        check_answers(json.loads(run_script(CLIENTS_SCRIPT, *asked, limit_s=seconds + LIMIT_S)), masks)
        for number in range(rounds):
            display.note(f"serving: round {number + 1} of {rounds}")
            asked = (port, clients, seconds, *images)
            found = json.loads(run_script(CLIENTS_SCRIPT, *asked, limit_s=seconds + LIMIT_S))
            check_answers(found, masks)
            counts["answers"] += len(found["times"])
            counts["refused"] += found["statuses"].get("429", 0)
            memory.append(megabytes_of(server.pid))
            for name, taken in (
                (SERVED, found["times"]),
                (BARE, asyncio.run(tasks(predictor, form, contents, clients, seconds))),
            ):
                rates[name].append(len(taken) / seconds)
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
    with tempfile.TemporaryDirectory() as folder:
        log, errors = Path(folder, "log"), Path(folder, "errors")
        with log.open("wb") as out, errors.open("wb") as err:
            server = subprocess.Popen(
                python_command(SERVER_SCRIPT, f"model={model}", *options),
                stdout=out,
                stderr=err,
                env=environment_variables(),
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
            server.wait()


def check_answers(found: Mapping[str, Any], masks: Sequence[str]) -> None:
    """Refuse the answers that clients report if any is not the mask of its image, or a request had none.

    Raises:
        DeviceError: that is so; the message has the numbers.
    """
    others = {status: count for status, count in found["statuses"].items() if status not in ("200", "429")}
    if found["lost"] or others or not found["times"]:
        told = "".join(f", {count} answered {status}" for status, count in others.items())
        raise DeviceError(
            f"unet-serve: {len(found['times'])} requests answered with a mask, {found['lost']} lost{told}; give more "
            "--seconds, or fewer --clients"
        )
    wrong = sum(not set(given) <= {mask} for given, mask in zip(found["masks"], masks, strict=True))
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
) -> list[float]:
    """Let tasks predict and encode one image after the other in this process; return the ms of each."""
    end, times = time.monotonic() + seconds, []

    async def task(turn: int) -> None:
        while time.monotonic() < end:
            turn = (turn + 1) % len(contents)
            begun = time.perf_counter()
            result = await predictor.predict_async(contents[turn])
            await asyncio.to_thread(form.encode, result)
            times.append(1e3 * (time.perf_counter() - begun))

    await asyncio.gather(*map(task, range(count)))
    return times
