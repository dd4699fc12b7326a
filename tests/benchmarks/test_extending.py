"""docs/design.md, "How to add": each recipe is tried with a throw-away entry."""

from benchmark_models import write_bare_benchmark_model

from benchmarks import suite
from benchmarks.cases import latency
from benchmarks.contestants import registry
from benchmarks.contestants.onnx_runtime import PlainContestant
from benchmarks.suite import PARTS, BenchmarkPlan, Part

CASE = """
from benchmarks.results import Measurement

def measure(model, *, rounds, threads, display):
    settings = {"threads": threads}
    size = (model.stat().st_size / 1e6,) * rounds
    return [Measurement(part="loading", contestant=model.name, settings=settings, unit="MB", values=size)]
"""


class AnotherContestant(PlainContestant):
    name = "another"
    precisions = {"cpu": ("fp32",)}  # noqa: RUF012 - as in dataclasses, without the annotation


def test_a_contestant_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "CONTESTANTS", (*registry.CONTESTANTS, AnotherContestant))
    model = write_bare_benchmark_model(tmp_path)
    (found,) = latency.measure(model, contestants=["another"], threads=1, rounds=5)
    assert (found.contestant, found.settings["precision"], len(found.values)) == ("another", "fp32", 5)


def test_a_part_is_one_entry(tmp_path, monkeypatch):
    (tmp_path / "throw_away_case.py").write_text(CASE)
    monkeypatch.syspath_prepend(tmp_path)
    part = Part(
        name="size", function="throw_away_case:measure", takes=("model", "rounds"), cpu_only=True, results=("loading",)
    )
    monkeypatch.setattr(suite, "PARTS", {**PARTS, "size": part})
    asked = {"benchmark_model": write_bare_benchmark_model(tmp_path), "devices": "auto", "rounds": 3, "threads": 2}
    plan = BenchmarkPlan(**dict.fromkeys(BenchmarkPlan.__dataclass_fields__) | asked)
    ((found,),) = suite.measure_parts(plan, ["size"])
    assert (found.contestant, found.settings, len(found.values)) == ("bare.onnx", {"threads": 2}, 3)
    on_gpu = BenchmarkPlan(**dict.fromkeys(BenchmarkPlan.__dataclass_fields__) | asked | {"devices": "cuda"})
    ((skipped,),) = suite.measure_parts(on_gpu, ["size"])
    assert (skipped.part, skipped.reason) == ("loading", "is measured on the CPU; give --device cpu, or auto for both")
