"""The steps of a first run, the most valuable first, and running them one after the other.

To add a step, write a generator of `Finding` that takes a `StepContext`, and add its entry to `STEPS`.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.gpu_run.findings import Outcome
from benchmarks.gpu_run.processes import StepContext, run_step, variables

MACHINE = "machine"
CUDA, TENSORRT, PYTORCH, GPU = "device cuda", "device tensorrt", "PyTorch on the GPU", "GPU"
"""Subjects of the first step's findings, on which the other steps depend."""

MODELS, ANSWERS, DATA = "models", "answers", "data"
"""Further things that a step may need: exported files, answers that mean something, the user's data."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        name: its name after --only.
        title: what it finds out, for the report.
        function: the generator of its findings, "module:function"; called in a process of its own.
        limit_s: time limit in seconds.
        least_s: seconds with which it is worth beginning.
        needs: what it cannot do without: subjects of the first step, or `MODELS`, `ANSWERS`, `DATA`.
    """

    name: str
    title: str
    function: str
    limit_s: float
    least_s: float = 5.0
    needs: tuple[str, ...] = ()

    @property
    def for_pytorch(self) -> bool:
        """True if its process, or one that it starts, imports PyTorch."""
        return PYTORCH in self.needs or self.name == MODELS


STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        Step(
            name=MACHINE,
            title="driver, libraries, devices",
            function="benchmarks.gpu_run.machine:describe",
            limit_s=90,
        ),
        Step(
            name=MODELS,
            title="a small network and its files in each precision",
            function="benchmarks.gpu_run.models:make",
            limit_s=240,
            least_s=20,
            needs=(GPU,),
        ),
        Step(
            name="answers",
            title="CUDA's answers against the CPU's, and where nodes run",
            function="benchmarks.gpu_run.answers:on_cuda",
            limit_s=120,
            needs=(CUDA, MODELS),
        ),
        Step(
            name="shapes",
            title="a change of shape",
            function="benchmarks.gpu_run.behaviour:change_of_shape",
            limit_s=60,
            needs=(CUDA, MODELS),
        ),
        Step(
            name="memory",
            title="a full card: halved batches, stale plans",
            function="benchmarks.gpu_run.behaviour:full_card",
            limit_s=60,
            needs=(CUDA, MODELS),
        ),
        Step(
            name="threads",
            title="eight threads and two shapes",
            function="benchmarks.gpu_run.behaviour:threads",
            limit_s=60,
            needs=(CUDA, MODELS),
        ),
        Step(
            name="graphs",
            title="CUDA graphs, with shapes in turns",
            function="benchmarks.gpu_run.behaviour:graphs",
            limit_s=60,
            needs=(CUDA, MODELS),
        ),
        Step(
            name="dlpack",
            title="DLPack with PyTorch, without a copy",
            function="benchmarks.gpu_run.behaviour:dlpack",
            limit_s=60,
            needs=(CUDA, MODELS, PYTORCH),
        ),
        Step(
            name="tests",
            title="the tests that need a GPU: pytest -m gpu",
            function="benchmarks.gpu_run.gpu_tests:run",
            limit_s=120,
            least_s=20,
            needs=(CUDA, ANSWERS),
        ),
        Step(
            name="training",
            title="training: mixed precision, accumulation, moving average, resume, compiled",
            function="benchmarks.gpu_run.training:variants",
            limit_s=200,
            least_s=30,
            needs=(PYTORCH,),
        ),
        Step(
            name="speed",
            title="latency against PyTorch, share of the measured peak",
            function="benchmarks.gpu_run.speed:measure",
            limit_s=260,
            least_s=60,
            needs=(CUDA, MODELS, PYTORCH),
        ),
        Step(
            name="floor",
            title="one image with CUDA graphs, against its floor",
            function="benchmarks.gpu_run.speed:floors",
            limit_s=60,
            needs=(CUDA, MODELS, PYTORCH),
        ),
        Step(
            name="tensorrt",
            title="TensorRT's answers, and a second start",
            function="benchmarks.gpu_run.answers:on_tensorrt",
            limit_s=180,
            least_s=30,
            needs=(TENSORRT, MODELS, ANSWERS),
        ),
        Step(
            name="camvid",
            title="CamVid's eleven classes, 31 million weights",
            function="benchmarks.gpu_run.training:camvid",
            limit_s=420,
            least_s=60,
            needs=(PYTORCH, DATA),
        ),
    )
}
"""All steps by name, in the order in which they run."""

REASONS: Mapping[str, str] = {
    MODELS: "needs the files of step models, which are not there; add --only models, or see why it failed",
    DATA: "needs --data, a folder with CamVid's images and labels",
    ANSWERS: "compares answers, and a stand-in has none",
}


def run_steps(
    names: Collection[str],
    context: StepContext,
    known: Mapping[str, Outcome],
    note: Callable[[str], None],
) -> Iterator[Outcome]:
    """Run the steps with these names in order, each with its limit, as long as the context has time left.

    `known` holds outcomes by step and grows while the steps run; `note` is told what begins.
    """
    for step in (step for step in STEPS.values() if step.name in names):
        reason = missing_reason(step, context, known)
        left = context.left
        if reason is not None:
            yield Outcome(step=step.name, title=step.title, end="skipped", text=reason)
        elif left < step.least_s:
            text = f"{max(left, 0):.0f} s of the run were left, and it needs at least {step.least_s:.0f} s"
            yield Outcome(step=step.name, title=step.title, end="not reached", text=text)
        else:
            limit_s = min(step.limit_s, left)
            note(f"{step.name}: begins, at most {limit_s:.0f} s ({step.title})")
            stand_in = is_stand_in(known)
            own = StepContext(
                out=context.out,
                data=context.data,
                checkpoint=context.checkpoint,
                is_stand_in=stand_in,
                ends=time.time() + limit_s,
            )
            environment = variables(for_pytorch=step.for_pytorch, is_stand_in=stand_in)
            yield run_step(step.name, step.title, own, environment, limit_s, step.function)


def missing_reason(step: Step, context: StepContext, known: Mapping[str, Outcome]) -> str | None:
    """Return why a step cannot run; None if nothing is known to be missing."""
    machine = known.get(MACHINE)
    for need in step.needs:
        found = machine.of(need) if machine is not None else None
        if found is not None and found.state != "passed":
            return found.text
        absent = {
            MODELS: not context.model("fp32").exists(),
            DATA: context.data is None,
            ANSWERS: is_stand_in(known),
        }
        if absent.get(need):
            return REASONS[need]
    return None


def is_stand_in(known: Mapping[str, Outcome]) -> bool:
    """Return True if the first step found a stand-in in place of a GPU."""
    gpu = known[MACHINE].of(GPU) if MACHINE in known else None
    return gpu is not None and bool(gpu.figures.get("stand_in"))


def device_name(known: Mapping[str, Outcome]) -> str | None:
    """Return the name of the GPU that the first step found; None if it found none."""
    gpu = known[MACHINE].of(GPU) if MACHINE in known else None
    name = gpu.figures.get("name") if gpu is not None else None
    return None if name is None else str(name)
