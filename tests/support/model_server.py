"""A process that opens models for a campaign: it may crash, run out of memory or print without harm to the tests.

Each line of its input is JSON, {"path", "verify"}; each line of its output is JSON about what became of the file.
"""

import hashlib
import json
import os
import resource
import selectors
import subprocess
import sys
import time
from pathlib import Path

MEMORY = 6 * 2**30
"""Bytes of addresses that the process may have: what a damaged graph asks for in excess is refused to it."""

SECONDS = 20
"""A file that takes longer on the processor hangs."""

ROUNDS = 15
"""Times that `SECONDS` are waited for a process to which others leave little of the processor."""


class ModelServer:
    """The process, started anew when it has died or hung; use it as a context manager.

    `seconds` are those of its processor for all answers so far.
    """

    def __enter__(self):
        self._process, self.seconds = None, 0.0
        return self

    def __exit__(self, *_):
        self._stop()

    def ask(self, path, *, verify):
        """Let the process open a file and predict two images, and return what it said.

        Raises:
            TimeoutError: there was no answer within `SECONDS` of the processor.
            AssertionError: it crashed, or wrote to standard error.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )
            os.set_blocking(self._process.stderr.fileno(), False)
        process = self._process
        process.stdin.write(json.dumps({"path": str(path), "verify": verify}).encode() + b"\n")
        process.stdin.flush()
        begun, rounds = used_seconds(process.pid), ROUNDS
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while not (answers := waiting.select(SECONDS)) and rounds:
                rounds = rounds - 1 if used_seconds(process.pid) - begun < SECONDS else 0
        if not answers:
            self._stop()
            raise TimeoutError(f"no answer within {SECONDS} s")
        line = process.stdout.readline()
        printed = (process.stderr.read() or b"").decode(errors="replace")
        if not line:
            self._stop()
            raise AssertionError(f"the process died ({process.returncode}): {printed[-500:]}")
        assert not printed, f"printed: {printed[:500]}"
        said = json.loads(line)
        self.seconds += said["seconds"]
        return said

    def _stop(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def used_seconds(process):
    """Seconds of the processor that a process has used (proc(5): utime and stime)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve():
    import traceback

    import numpy as np

    from runtime.errors import UnetError
    from runtime.predictor import Predictor

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    random = np.random.default_rng(0)
    for line in sys.stdin:
        asked, begun, opened = json.loads(line), time.process_time(), False
        try:
            with Predictor(asked["path"], "cpu", threads=1, verify=asked["verify"]) as predictor:
                opened = True
                card = predictor.card
                random = np.random.default_rng(0)
                shapes = [(*size, card.architecture.in_channels) for size in ((21, 40), card.input.size)]
                images = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
                answers = [predictor.predict(image).probability.tobytes() for image in images]
                said = {
                    "taken": hashlib.sha256(b"".join([card.to_json().encode(), *answers])).hexdigest(),
                    "integrity": predictor.report.integrity,
                }
        except UnetError as error:
            said = {"refused": type(error).__name__, "opened": opened, "text": str(error)}
        except BaseException:
            said = {"escaped": traceback.format_exc()}
        print(json.dumps(said | {"seconds": time.process_time() - begun}), flush=True)


if __name__ == "__main__":
    serve()
