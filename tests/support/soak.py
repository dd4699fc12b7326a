"""Many threads on one predictor for a while: a process that prints its memory and the answers as JSON.

    python tests/support/soak.py MODEL SECONDS THREADS

Images of all sizes and formats, at the trained size and at their own, in a random order. Each answer is compared with
the one that a single thread got before.
"""

import hashlib
import io
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import Predictor

IMAGES = 60
FORMATS = ("JPEG", "PNG", "WEBP")
SAMPLES = 120
"""Number of times that the memory is read."""


def resident():
    """Memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def encoded_images():
    random = np.random.default_rng(5)
    for index in range(IMAGES):
        height, width = (int(side) for side in random.integers(32, 700, 2))
        coarse = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((width, height)).save(file, FORMATS[index % len(FORMATS)])
        yield file.getvalue()


def soak(model, seconds, threads):
    started = resident()
    predictor = Predictor(model, "cpu")
    cases = [(content, size) for content in encoded_images() for size in (None, "native")]

    def answer(case):
        return hashlib.sha256(predictor.predict(case[0], size=case[1]).probability.tobytes()).digest()

    expected = [answer(case) for case in cases]
    begun, counts, wrong = time.monotonic(), [0] * threads, []

    def work(number):
        random = np.random.default_rng([6, number])
        while time.monotonic() - begun < seconds:
            index = int(random.integers(len(cases)))
            try:
                if answer(cases[index]) != expected[index]:
                    wrong.append(f"case {index}: another answer")
            except Exception as error:
                wrong.append(f"case {index}: {error!r}")
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    memory = []
    for sample in range(SAMPLES):
        time.sleep(max(0.0, begun + seconds * (sample + 1) / SAMPLES - time.monotonic()))
        memory.append(round(resident(), 1))
    for worker in workers:
        worker.join()
    predictor.close()
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "threads": threads,
        "answers": sum(counts),
        "wrong": wrong[:5],
        "start": round(started, 1),
        "memory": memory,
        "closed": round(resident(), 1),
    }


if __name__ == "__main__":
    print(json.dumps(soak(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
