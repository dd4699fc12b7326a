"""Contestants in turns: what is measured, what is skipped and why, what of budget and memory is left."""

import dataclasses

import numpy as np
import pytest
import torch
from benchmark_models import MadeUpContestant, write_bare_benchmark_model, write_benchmark_model
from devices import CPU, GPU

from benchmarks.cases import latency
from benchmarks.cases.latency import measure
from benchmarks.contestants.onnx_runtime import OURS, PLAIN
from benchmarks.contestants.pytorch import CHANNELS_LAST, EAGER
from benchmarks.measuring import rounds
from benchmarks.measuring.graph_cost import count_work
from benchmarks.results import Measurement, Results, Skipped
from runtime.errors import ConfigError, DeviceError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_benchmark_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch):
    monkeypatch.setattr(rounds, "WARM_UP_SECONDS", 0.0)


@pytest.fixture
def contestants(monkeypatch):
    """Sets the contestants that there are: those of the CPU, and of GPU 0."""

    def set_contestants(*made):
        def on(device):
            return tuple(one for one in made if (one.device == CPU) == (device.kind == "cpu"))

        monkeypatch.setattr(latency, "contestants_on", on)
        return made

    return set_contestants


def peak(precision="fp32", device="cpu", value=100.0):
    settings = {"device": device, "precision": precision, "threads": 1}
    return Measurement(part="peak", contestant="matrix product", settings=settings, unit="GFLOP/s", values=(value,))


def test_real_contestants_of_one_size_are_one_group(model):
    names = [EAGER, CHANNELS_LAST, PLAIN, OURS]
    found = measure(
        model,
        batches=[1, 5],
        sizes=[(20, 24)],
        contestants=names,
        precisions=["fp32"],
        threads=1,
        rounds=5,
        peaks=[peak()],
    )
    assert [(one.contestant, one.settings["batch"]) for one in found] == [(n, b) for b in (1, 5) for n in names]
    assert {one.group for one in found} == {"latency cpu 1x20x24", "latency cpu 5x20x24"}
    work = count_work(model.path, 5, 20, 24)
    last = found[-1]
    expected = {"batch": 5, "height": 20, "width": 24, "threads": 1, "precision": "fp32", "device": "cpu"}
    assert (last.settings, last.unit, len(last.values)) == (expected, "ms", 5)
    assert min(last.values) > 0
    assert last.facts["provider"] == "CPUExecutionProvider"
    assert (last.facts["gflop"], last.facts["mb_least"]) == (work.gflop, work.least_mb)
    assert last.facts["mb_moved"] == work.weights_mb + work.activations_mb
    assert last.facts["peak_share"] == pytest.approx(work.gflop / last.median * 1e3 / 100)
    assert all(0 <= one.facts["mean_abs_error"] <= one.facts["max_abs_error"] < 5e-6 for one in found)
    Results(environment={}, method={}, disturbance=None, measurements=tuple(found))


def test_without_a_checkpoint_the_answer_is_onnx_runtimes(tmp_path):
    found = measure(
        write_bare_benchmark_model(tmp_path), precisions=["fp32"], contestants=[EAGER, PLAIN, OURS], threads=1, rounds=5
    )
    assert [(type(one), one.contestant) for one in found] == [
        (Skipped, EAGER),
        (Measurement, PLAIN),
        (Measurement, OURS),
    ]
    assert found[0].settings == {"precision": "fp32", "device": "cpu"}
    assert found[0].reason.endswith("give --checkpoint")
    assert found[1].facts["max_abs_error"] == 0
    assert (found[1].settings["height"], found[1].settings["width"]) == (32, 48)


def test_what_is_wrong_with_a_contestant_is_its_reason_and_the_others_are_measured(model, contestants):
    made = contestants(
        MadeUpContestant(name="good"),
        MadeUpContestant(name="off", off=0.01),
        MadeUpContestant(name="nan", off=np.nan),
        MadeUpContestant(name="elsewhere", error=DeviceError("device: found cpu, expected cuda")),
        MadeUpContestant(name="broken", error=ValueError("two\nlines")),
        MadeUpContestant(name="absent", reason="not installed"),
    )
    found = {one.contestant: one for one in measure(model, threads=1, rounds=5)}
    assert {name: one.reason for name, one in found.items() if isinstance(one, Skipped)} == {
        "off": "answers differ by 0.01, expected at most 0.0001 in fp32",
        "nan": "answers differ by inf, expected at most 0.0001 in fp32",
        "elsewhere": "device: found cpu, expected cuda",
        "broken": "ValueError: two lines",
        "absent": "not installed",
    }
    assert found["good"].facts["provider"] == "made up" and found["good"].facts["file"] == "f"
    assert found["off"].settings["batch"] == 1
    told = {one.name: one.told for one in made}
    assert told["good"] == [("load", 1, (1, 32, 48)), *["run"] * 12, "close"]
    assert told["off"] == told["nan"] == [("load", 1, (1, 32, 48)), "run", "close"]
    assert told["absent"] == []


class Failing(MadeUpContestant):
    """Fails at its third call."""

    def load(self, model, threads, shape):
        loaded, calls = super().load(model, threads, shape), []

        def run(images):
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError
            return loaded.run(images)

        return dataclasses.replace(loaded, run=run)


def test_one_that_fails_while_it_is_timed_is_left_out_and_the_others_are_timed_again(model, contestants):
    made = contestants(MadeUpContestant(name="one"), Failing(name="two"), MadeUpContestant(name="three"))
    found = measure(model, threads=1, rounds=5)
    assert [(type(one).__name__, one.contestant) for one in found] == [
        ("Skipped", "two"),
        ("Measurement", "one"),
        ("Measurement", "three"),
    ]
    assert found[0].reason == "MemoryError: "
    assert all(one.told.count("close") == 1 for one in made)


class Stale(MadeUpContestant):
    """Answers as it did to the first batch, for ever."""

    def load(self, model, threads, shape):
        loaded, answers = super().load(model, threads, shape), []

        def run(images):
            answers.append(loaded.run(images))
            return answers[0]

        return dataclasses.replace(loaded, run=run)


def test_one_whose_answers_are_stale_is_found_out(model, contestants):
    contestants(Stale(name="stale"), MadeUpContestant(name="good"))
    stale, good = measure(model, threads=1, rounds=5)
    assert stale.reason.startswith("while it was timed, answers differ by 0.")
    assert isinstance(good, Measurement)


def test_images_of_a_batch_are_compared_at_their_places(model, contestants):
    """A contestant that answers the first image for all of them is found out."""

    class FirstOnly(MadeUpContestant):
        def load(self, model, threads, shape):
            loaded = super().load(model, threads, shape)
            return dataclasses.replace(loaded, run=lambda images: loaded.run(np.repeat(images[:1], len(images), 0)))

    contestants(FirstOnly(name="first"))
    assert isinstance(measure(model, batches=[1], threads=1, rounds=5)[0], Measurement)
    (found,) = measure(model, batches=[6], threads=1, rounds=5)
    assert found.reason.startswith("answers differ by ")


def test_threads_are_pinned_for_every_contestant(model, contestants):
    seen = []

    class Watched(MadeUpContestant):
        def load(self, model, threads, shape):
            seen.append((threads, torch.get_num_threads()))
            return super().load(model, threads, shape)

    contestants(Watched(name="watched"))
    before = torch.get_num_threads()
    for threads in (1, 3):
        assert measure(model, threads=threads, rounds=5)[0].settings["threads"] == threads
        assert torch.get_num_threads() == before
    assert seen == [(1, 1), (3, 3)]


def test_a_precision_that_nobody_has_is_told_and_the_others_are_measured(model, contestants):
    contestants(MadeUpContestant(name="one"))
    skipped, measured = measure(model, precisions=["bf16", "fp32"], threads=1, rounds=5)
    assert (skipped.contestant, skipped.settings) == ("all", {"precision": "bf16"})
    assert (measured.contestant, measured.settings["precision"]) == ("one", "fp32")


def test_a_gpus_contestants_are_a_group_of_their_own(model, contestants, monkeypatch):
    monkeypatch.setattr(latency, "free_mb", lambda device: 1e6)
    contestants(MadeUpContestant(name="a"), MadeUpContestant(name="a", device=GPU, precision="tf32"))
    both = measure(model, devices="auto", threads=1, rounds=5, peaks=[peak(), peak("tf32", "cuda:0", 50.0)])
    assert [(one.group, one.settings["device"]) for one in both] == [
        ("latency cpu 1x32x48", "cpu"),
        ("latency gpu 1x32x48", "cuda:0"),
    ]
    assert both[1].facts["peak_share"] == pytest.approx(both[1].facts["gflop"] / both[1].median * 1e3 / 50)
    assert [one.settings["device"] for one in measure(model, devices="cuda", threads=1, rounds=5)] == ["cuda:0"]


def test_small_batches_come_first_and_what_does_not_fit_the_budget_is_skipped(model, contestants, monkeypatch):
    contestants(MadeUpContestant(name="one"), MadeUpContestant(name="two"))
    now, taken, given = [0.0], {1: 1.0, 2: 30.0}, []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    exam = latency.prepare_exam

    def slow(model, threads, shape):
        return exam(model, threads, shape)[0], taken[shape[0]]

    def interleave(contestants, rounds, budget_s):
        given.append(budget_s)
        now[0] += 40
        return {name: np.ones(5) for name in contestants}

    monkeypatch.setattr(latency, "prepare_exam", slow)
    monkeypatch.setattr(latency, "interleave", interleave)
    found = measure(model, batches=[2, 1], threads=1, budget_s=100)
    assert [(type(one).__name__, one.settings["batch"]) for one in found] == [
        ("Measurement", 1),
        ("Measurement", 1),
        ("Skipped", 2),
    ]
    assert given == [50]  # half of it, for one of two groups
    least = 2 * (30 + 30 + 5 * (30 + 0.5))  # its answer, its warm-up, and five rounds with pauses
    assert found[2].reason == f"all would take about {least:.0f} s, and 60 s of this part's budget are left"
    assert (found[2].contestant, found[2].settings["device"]) == ("all", "cpu")


@pytest.mark.parametrize(
    ("free", "reasons"),
    [
        (0.1, {"all": "the reference's answer needs about 0 MB, which are not free"}),
        (8.0, {"large": None, "kept": "needs about 10 MB beside those before it, and 8 MB are free", "again": None}),
        (20.0, {"large": None, "kept": None, "again": None}),
    ],
)
def test_what_does_not_fit_into_memory_is_skipped(model, contestants, monkeypatch, free, reasons):
    """The first gives its memory back, and needs it again beside the second, which does not."""
    unit = count_work(model.path, 1, 32, 48).peak_mb

    class Large(MadeUpContestant):
        memory = 6 / unit
        keeps_memory = False

    class Kept(MadeUpContestant):
        memory = 4 / unit

    class Again(Large):
        memory = 7 / unit

    contestants(Large(name="large"), Kept(name="kept"), Again(name="again"))
    monkeypatch.setattr(latency, "free_mb", lambda device: free)
    found = measure(model, threads=1, rounds=5)
    assert {one.contestant: getattr(one, "reason", None) for one in found} == reasons


@pytest.mark.parametrize(("told", "free"), [(None, float("inf")), (0.0, 0.0), (100.0, 100.0)])
def test_free_memory_is_what_the_process_may_still_take(monkeypatch, told, free):
    monkeypatch.setattr(latency, "available_megabytes", lambda: told)
    assert latency.free_mb(CPU) == free


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"contestants": ["caffe"]}, ConfigError, "contestant: found 'caffe', expected one of "),
        (
            {"devices": "cpu", "precisions": ["tf32"]},
            ConfigError,
            "contestants: found none on this device in tf32, expected one",
        ),
        ({"devices": "tpu"}, DeviceError, "device 'tpu': expected "),
    ],
)
def test_absurd_questions(model, asked, kind, words):
    with pytest.raises(kind) as error:
        measure(model, **asked)
    assert str(error.value).startswith(words)


def test_openvino_is_a_contestant_and_no_device_of_its_own():
    with pytest.raises(ConfigError) as caught:
        latency.contestants_by_machine("openvino", (), ())
    assert str(caught.value) == "device openvino: OpenVINO is one of the contestants on the CPU; give --device cpu"
