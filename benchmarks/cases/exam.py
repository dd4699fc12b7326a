"""The exam of contestants: two batches with the right answers, with which every timed call is compared."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants.answers import Difference, compare_answers
from benchmarks.contestants.base import Arithmetic, BenchmarkModel, LoadedContestant, Shape
from benchmarks.contestants.onnx_runtime import PlainContestant
from runtime.errors import ProofError, UnetError, one_line
from runtime.model_file.golden import synthetic_image

DISTINCT = 4
"""Maximum number of different images in a batch; a larger batch repeats them, so the reference is asked less often."""


class WrongAnswerError(ProofError):
    """A contestant's answer differs by too much, so its time means nothing."""


@dataclass(frozen=True)
class Exam:
    """Two batches uint8 [batch, h, w, channels] that differ at every place of the batch, and the right answers.

    `tolerance` is the error that the model's own proof allows.
    """

    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    answers: tuple[NDArray[np.float32], NDArray[np.float32]]
    tolerance: float


class FailedCallError(Exception):
    """A call failed while it was timed."""

    def __init__(self, call: "CheckedCall", error: Exception) -> None:
        super().__init__(str(error))
        self.call, self.error = call, error


class CheckedCall:
    """A contestant's call, on one batch and the other in turns; the last answer to each is kept.

    So a contestant that returns the answer of an earlier call is found out.
    """

    def __init__(self, loaded: LoadedContestant, exam: Exam, precision: Arithmetic) -> None:
        self.loaded, self.exam, self.precision = loaded, exam, precision
        self.answers: dict[int, NDArray[np.float32]] = {}
        self.calls = 0

    def __call__(self) -> None:
        which = self.calls % 2
        try:
            self.answers[which] = self.loaded(self.exam.images[which])
        except Exception as error:
            raise FailedCallError(self, error) from error
        self.calls += 1

    def difference(self) -> Difference:
        """The larger difference of the last answers."""
        found = [compare_answers(answer, self.exam.answers[which]) for which, answer in self.answers.items()]
        return max(found, key=lambda one: one.largest)

    def refusal(self) -> str | None:
        """Return why the last answers are wrong; None if they are within the limits."""
        return self.difference().refusal(self.precision, self.exam.tolerance)


def prepare_exam(model: BenchmarkModel, threads: int, shape: Shape) -> tuple[Exam, float]:
    """Make two batches with the reference's answers; also return the seconds that the reference takes for a batch.

    The reference gets each image alone, so that it needs little memory and places in a batch are compared, too.
    """
    batch, height, width = shape
    channels = model.card.architecture.in_channels
    distinct = max(2, min(batch, DISTINCT))
    images = np.stack([synthetic_image(height, width, channels, seed) for seed in range(distinct)])
    if model.checkpoint is not None:
        run = model.network_run()
    else:
        run = PlainContestant().load(model, threads, (1, height, width)).run
    seconds, answers = [], []
    for image in (images[0], *images):  # the first call takes longer, and does not count
        started = time.perf_counter()
        answers.append(run(image[None]))
        seconds.append(time.perf_counter() - started)
    places, known = np.arange(batch) % distinct, np.concatenate(answers[1:])
    others = (places + 1) % distinct
    exam = Exam((images[places], images[others]), (known[places], known[others]), model.tolerance)
    return exam, min(seconds) * batch


def skip_reason(error: Exception) -> str:
    """The reason to skip after an error, in one line: our own message, or the class and message of another's."""
    if isinstance(error, FailedCallError):
        error = error.error
    text = one_line(str(error))[:400]
    return text if isinstance(error, UnetError) else f"{type(error).__name__}: {text}"
