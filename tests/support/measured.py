"""The results of an invented run: every part, two sizes, values drawn with a fixed seed."""

import numpy as np

from benchmarks.results import Measurement, Results, Skipped

ENVIRONMENT = {
    "cpu": "Abacus 3000",
    "cpu_flags": "avx2 fma",
    "cores": 2,
    "gpu": None,
    "versions": {"torch": "2.15.0", "onnxruntime": "1.31.1"},
    "git_commit": "0123456789abcdef",
    "model": "model.onnx",
    "time": "2026-01-02T03:04:05+00:00",
}
CPU = {"device": "cpu", "threads": 2}

SPEEDS = {
    "PyTorch eager": 1.0,
    "PyTorch channels_last": 1.21,
    "torch.compile": 1.28,
    "ONNX Runtime": 1.4,
    "unet-deploy": 1.45,
    "OpenVINO": 1.62,
    "ncnn": 2.07,
}
"""Speed of each contestant, relative to the first one."""

WORKS = {(1, 160, 240): 96.0, (4, 160, 240): 384.0, (1, 640, 960): 1536.0}
"""GFLOP by batch, height and width."""


def noisy(median, rounds=20, spread=0.03, seed=0):
    """Draw values around a median, as many as there are rounds."""
    random = np.random.default_rng([seed, round(1e3 * median)])
    return tuple((median * np.exp(random.normal(0, spread, rounds))).tolist())


def measurement(part, contestant, settings, unit, values, **others):
    values = values if isinstance(values, tuple) else (values,)
    return Measurement(part=part, contestant=contestant, settings=settings, unit=unit, values=values, **others)


def latency(slower=1.0):
    for (batch, height, width), gflop in WORKS.items():
        settings = {"batch": batch, "height": height, "width": width, "precision": "fp32", **CPU}
        for index, (name, speed) in enumerate(SPEEDS.items()):
            ms = gflop / 0.111 / speed * (slower if name == "unet-deploy" else 1)
            facts = {
                "gflop": gflop,
                "mb_moved": 420 + gflop * 5,
                "mb_least": 124 + gflop / 100,
                "provider": "CPU",
                "max_abs_error": 3e-7,
                "peak_share": gflop / ms / 0.218,
            }
            group = f"latency {batch} {height} {width}"
            yield measurement("latency", name, settings, "ms", noisy(ms, seed=index), group=group, facts=facts)


def peaks():
    for precision, gflops in (("fp32", 218.0), ("bf16", 380.0)):
        settings = {"precision": precision, **CPU}
        yield measurement("peak", "matrix product", settings, "GFLOP/s", noisy(gflops, 5))
    yield measurement("peak", "copy", CPU, "GB/s", noisy(24.0, 5))


def scaling():
    shapes = [(1, 80, 112), (1, 112, 176), (1, 160, 240), (1, 224, 336), (1, 320, 480), (1, 448, 672), (2, 160, 240)]
    for batch, height, width in [*shapes, (4, 160, 240), (8, 160, 240)]:
        settings = {"batch": batch, "height": height, "width": width, **CPU}
        pixels = batch * height * width
        ms, megabytes = 0.012 * pixels**1.04, 40 + 0.004 * pixels
        yield measurement("scaling", "Predictor.run", settings, "ms", noisy(ms, 10), group="scaling")
        yield measurement("scaling", "Predictor.run", settings, "MB", megabytes)
    for over, of, exponent, scale in [
        ("pixels", "ms", 1.04, 0.012),
        ("pixels", "MB", 0.81, 0.045),
        ("images", "ms", 1.04, 0.012 * 38_400**1.04),
        ("images", "MB", 0.9, 187.0),
    ]:
        values = noisy(exponent, 10, 0.01) if of == "ms" else exponent
        facts = {"scale": scale, "miss": 0.04}
        settings = {"of": of, "over": over, **CPU}
        yield measurement("scaling", "Predictor.run", settings, "exponent", values, facts=facts)


def stages():
    for height, width in ((160, 240), (640, 960), (1280, 1918)):
        million = height * width / 1e6
        settings = {"height": height, "width": width, "pictures": "real", **CPU}
        for stage, ms in {"decode": 9 * million, "fit": 2 * million + 0.3, "infer": 24, "restore": 6 * million}.items():
            yield measurement("stages", stage, settings, "ms", noisy(ms, 15), group="stages")


def trade_off():
    for precision, faster, loss in (("fp32", 1.0, 0.0), ("fp16", 0.97, 0.0001), ("int8", 1.5, 0.004)):
        for base, dice, ms in ((8, 0.791, 9.0), (16, 0.842, 24.0), (32, 0.868, 71.0), (64, 0.874, 245.0)):
            settings = {"base": base, "precision": precision, **CPU}
            facts = {"epochs": 3 if base == 64 else 40, "file_mb": 124 * (base / 64) ** 2}
            name, values = f"base {base}, {precision}", noisy(ms / faster, 10)
            yield measurement("trade-off", name, settings, "ms", values, group="trade-off", facts=facts)
            yield measurement("trade-off", name, settings, "Dice", dice - loss, facts=facts)


def others():
    one = {"batch": 1, "height": 160, "width": 240, **CPU}
    for name, ms in {"bare session.run": 240.0, "Predictor.run": 241.0, "Predictor.predict": 244.0}.items():
        yield measurement("overhead", name, one, "ms", noisy(ms), group="overhead")
    for count in (8, 32):
        for name, speed in {"plain PyTorch script": 3.1, "stream": 4.4}.items():
            settings = {"images": count, **CPU}
            yield measurement("folder", name, settings, "images/s", noisy(speed, 5), group=f"folder of {count}")
    for name, seconds in {"by hand": 0.31, "runtime": 0.36}.items():
        yield measurement("cold start", name, CPU, "s", noisy(seconds, 15), group="cold start")
    yield measurement("memory", "Predictor.predict", {"images": 2000, **CPU}, "MB", (310.0, 402.0, 401.0, 400.0))
    for name, seconds, megabytes in (("whole", 9.0, 4100.0), ("tiles of 512x512", 11.0, 420.0)):
        settings = {"height": 2048, "width": 2048, **CPU}
        yield measurement("tiles", name, settings, "s", noisy(seconds, 5), group="tiles")
        yield measurement("tiles", name, settings, "MB", noisy(megabytes, 5), group="tiles")
    parity = {"images": 12, "device": "cpu"}
    yield measurement("parity", "unet-deploy", parity, "error", (2.4e-7, 4.8e-7, 1.2e-7))
    yield measurement("parity", "unet-deploy", parity, "share", (0.0, 0.0, 2e-5))


SKIPPED = (
    Skipped(
        part="latency",
        contestant="TensorRT",
        settings={"batch": 1, "height": 160, "width": 240, "precision": "fp16"},
        reason="no NVIDIA driver; install it | or not",
    ),
)


def measured(*, slower=1.0, **others_of):
    """Make results of all parts, with `slower` times the latency of "unet-deploy" and other fields of `Results`."""
    parts = (latency(slower), peaks(), scaling(), stages(), trade_off(), others())
    given = {
        "environment": ENVIRONMENT,
        "method": {"rounds": 20, "threads": 2, "budget_s": 600},
        "disturbance": None,
        "measurements": tuple(one for part in parts for one in part),
        "skipped": SKIPPED,
    }
    return Results(**given | others_of)
