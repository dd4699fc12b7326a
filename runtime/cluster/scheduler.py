"""`Scheduler`: batches of images to the workers of a cluster, again when a worker dies, and the outcomes in order.

Ray Data restarts a worker that died where it finds room, and waits for ever with its images if there is none; an image
that ends its worker's process ends it again each time. Here a worker's images go to any other worker, one by one, and
an image whose workers died `TRIES` times has failed.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from runtime.cluster.library import capacity
from runtime.cluster.worker import ImageWorker, WorkerSettings
from runtime.errors import ConfigError, DeviceError, OutputError, one_line
from runtime.jobs.job import Job
from runtime.jobs.outcome import JobOutcome

BATCH = 16
"""Images that a worker gets at once: these are lost when it dies."""

AHEAD = 2
"""Batches that a worker has, so that it need not wait for the next one."""

TRIES = 4
"""Workers that may die with an image, or fail to write its answer, before the image has failed."""

WINDOW = 8
"""Batches for each worker between the first image without an answer and the last one that was given to a worker."""

PATIENCE = 30
"""Seconds without any worker after which the user is told."""

LEAVING = 5
"""Seconds that workers have for the batch that they are at when the job ends, so that they can clean up."""


class Scheduler:
    """Workers of a cluster, and the images that they are at.

    Args:
        ray: the module, connected to a cluster.
        settings: what each worker is told.
        model: bytes of the model's file.
        workers: number of workers to keep alive.
        tell: called with a line for the user.
    """

    def __init__(
        self, ray: Any, settings: WorkerSettings, model: bytes, workers: int, tell: Callable[[str], None]
    ) -> None:
        self._ray, self._settings, self._tell = ray, settings, tell
        self._model = ray.put(model)
        self._wanted = workers
        self._starting: dict[Any, Any] = {}  # the promise of a started worker: the worker
        self._running: dict[Any, tuple[Any, range]] = {}  # the promise of a batch: its worker, numbers of the jobs
        self._loads: dict[Any, int] = {}  # a worker that was started: number of its batches
        self._failed_starts = 0
        self.devices: Counter[str] = Counter()
        self.retried = 0

    def answers(self, jobs: Sequence[Job]) -> Generator[JobOutcome]:
        """Answer jobs, and yield what became of each, in order.

        Raises:
            OutputError: an answer cannot be written, by `TRIES` workers.
            DeviceError, ModelError, ConfigError: no worker can open the model.
        """
        waiting = deque(range(start, min(start + BATCH, len(jobs))) for start in range(0, len(jobs), BATCH))
        tries: Counter[int] = Counter()
        done: dict[int, JobOutcome] = {}
        first = 0
        idle = 0
        while first < len(jobs):
            while len(self._starting) + len(self._loads) < min(self._wanted, len(waiting) + len(self._running)):
                self._hire()
            self._assign(waiting, jobs, first + self._wanted * WINDOW * BATCH)
            promises = [*self._starting, *self._running]
            ready, _ = self._ray.wait(promises, num_returns=1, timeout=1)
            idle = 0 if ready or self._loads else idle + 1
            if idle == PATIENCE:
                self._tell(f"no worker has started for {PATIENCE} s: the cluster is busy or has no room; still waiting")
            for promise in ready:
                if promise in self._starting:
                    self._welcome(promise)
                else:
                    self._collect(promise, waiting, jobs, tries, done)
            while first in done:
                yield done.pop(first)
                first += 1

    def stop(self) -> None:
        """End all workers; those that have started remove their copy of the model first."""
        if self._loads:
            closing = [worker.close.remote() for worker in self._loads]
            self._ray.wait(closing, num_returns=len(closing), timeout=LEAVING)
        for worker in [*self._starting.values(), *self._loads]:
            self._ray.kill(worker)
        self._starting, self._loads, self._running = {}, {}, {}

    def _hire(self) -> None:
        settings = self._settings
        kind = self._ray.remote(num_cpus=settings.threads, num_gpus=settings.gpus, max_restarts=0)(ImageWorker)
        worker = kind.remote(settings)
        self._starting[worker.start.remote(self._model)] = worker

    def _welcome(self, promise: Any) -> None:
        """Take in a worker that was started; one that died while it opened the model is replaced a few times."""
        worker = self._starting.pop(promise)
        try:
            device = self._ray.get(promise)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts < TRIES:
                return
            reason = first_line(error)
            if not self._loads:
                raise DeviceError(
                    f"workers: {TRIES} died while they opened the model ({reason}); look at the memory of the "
                    "machines, and whether unet-deploy is installed there"
                ) from error
            self._wanted = len(self._loads) + len(self._starting)
            self._tell(f"workers: {TRIES} died while they opened the model ({reason}); going on with {self._wanted}")
        else:
            self.devices[device] += 1
            self._loads[worker] = 0
        self._failed_starts = 0

    def _assign(self, waiting: deque[range], jobs: Sequence[Job], end: int) -> None:
        """Give batches to the workers that have the fewest, as far as the job number `end`."""
        while waiting and self._loads and waiting[0].start < end:
            worker = min(self._loads, key=self._loads.__getitem__)
            if self._loads[worker] >= AHEAD:
                return
            batch = waiting.popleft()
            self._loads[worker] += 1
            self._running[worker.answer.remote([jobs[i] for i in batch])] = worker, batch

    def _collect(
        self, promise: Any, waiting: deque[range], jobs: Sequence[Job], tries: Counter[int], done: dict[int, JobOutcome]
    ) -> None:
        """Take the outcomes of a batch; if they were lost, its images wait again, one by one."""
        worker, batch = self._running.pop(promise)
        if worker in self._loads:  # else another batch was lost with it
            self._loads[worker] -= 1
        try:
            done.update(zip(batch, self._ray.get(promise), strict=True))
            return
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, OutputError):
                raise error.cause from error
            problem: Exception = error.cause
        except self._ray.exceptions.RayError as error:
            problem = error
            if self._loads.pop(worker, None) is not None:
                self._ray.kill(worker)  # it may be there still, and only out of reach
        tries.update(batch)
        self.retried += len(batch)
        for i in reversed(batch):
            if tries[i] < TRIES:
                waiting.appendleft(range(i, i + 1))
            elif isinstance(problem, OutputError):
                raise problem
            else:
                text = f"{jobs[i].source}: the process that answered it died, {TRIES} times ({first_line(problem)})"
                done[i] = JobOutcome.lost(jobs[i], text)


def room_for(ray: Any, cpus: int, gpus: float, *, may_be_none: bool) -> int:
    """Return the number of workers that a cluster has room for.

    Raises:
        ConfigError: it has none, though it must have some.
    """
    room = capacity(ray, cpus, gpus)
    if not room and not may_be_none:
        asked = f"--threads {cpus}" + (f" and --gpus-per-worker {gpus:g}" if gpus else "")
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus_found, gpus_found = (max((node.get(name, 0) for node in alive), default=0) for name in ("CPU", "GPU"))
        raise ConfigError(
            f"workers: none with {asked} has room in the cluster, whose machines have at most {cpus_found:g} CPUs and "
            f"{gpus_found:g} GPUs; ask for less, or add machines"
        )
    return room


def room_note(ray: Any, workers: int, settings: WorkerSettings) -> str:
    """Return a note if the cluster has no room for all workers, or GPUs that no worker asks for; else ""."""
    room = capacity(ray, settings.threads, settings.gpus)
    if room < workers:
        asked = f"{settings.threads} CPU" + (f" and {settings.gpus:g} GPU" if settings.gpus else "")
        return f"{room} of {workers} workers ({asked} each) have room in the cluster; the others start when they have"
    unused = ray.cluster_resources().get("GPU", 0)
    if unused and not settings.gpus:
        return f"the cluster has {unused:g} GPUs, and workers use none; give --gpus-per-worker 1"
    return ""


def first_line(error: Exception) -> str:
    """Return the first sentence of one of Ray's errors, which may be pages long."""
    text = one_line(str(error).strip().partition("\n")[0]).rstrip(".")
    return text[:200] or type(error).__name__
